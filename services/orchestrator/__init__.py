"""The orchestrator: accepts jobs, hands tasks to workers, records outcomes."""

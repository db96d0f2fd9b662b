"""The worker: pulls tasks, executes them, reports outcomes."""

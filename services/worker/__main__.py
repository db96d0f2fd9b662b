"""`python -m services.worker`: pulls tasks from an orchestrator and runs them."""

from __future__ import annotations

from antfarm import program
from antfarm.settings import load_settings
from services.worker.app import run_worker
from services.worker.settings import WorkerSettings

PROGRAM = "python -m services.worker"


def main() -> None:
    """Run the worker."""
    settings = load_settings(
        WorkerSettings,
        None,
        program=PROGRAM,
        description="Pulls tasks from an orchestrator and runs them: functions in child processes, coroutines on a loop, commands.",
    )
    program.setup_logging(settings.log_format, settings.log_level)
    program.run(lambda: run_worker(settings), program=PROGRAM)


if __name__ == "__main__":
    main()

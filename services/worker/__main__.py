"""`python -m services.worker`: pulls tasks from an orchestrator and runs them."""

from __future__ import annotations

from antfarm import program
from antfarm.errors import ProtocolUnsupported
from antfarm.settings import load_settings
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

    async def serve() -> int:
        with program.loading():  # after the settings: --help must not wait for gRPC
            from services.worker import app

        try:
            return await app.run_worker(settings)
        except ProtocolUnsupported as error:
            from antfarm.wire import NOT_SERVED

            if str(error) != NOT_SERVED:
                raise
            raise ProtocolUnsupported(f"{', '.join(settings.addresses)} is no orchestrator: check --connect") from None

    program.run(serve, program=PROGRAM)


if __name__ == "__main__":
    main()

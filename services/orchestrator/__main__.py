"""`python -m services.orchestrator`: the orchestrator program."""

from __future__ import annotations

from antfarm import program, settings
from antfarm.errors import ProtocolUnsupported
from services.orchestrator.settings import OrchestratorSettings

NAME = "services.orchestrator"


def main() -> None:
    """Read the settings and serve."""
    chosen = settings.load_settings(
        OrchestratorSettings,
        None,
        program=f"python -m {NAME}",
        description="Distributes tasks to workers, and records every outcome durably.",
    )
    program.setup_logging(chosen.log_format, chosen.log_level)

    async def serve() -> int:
        with program.loading():  # after the settings: --help must not wait for gRPC
            from services.orchestrator import app

        try:
            return await app.serve(chosen)
        except ProtocolUnsupported as error:
            from antfarm.wire import NOT_SERVED

            if str(error) != NOT_SERVED:
                raise
            raise ProtocolUnsupported(f"{chosen.upstream} is no orchestrator: check --upstream") from None

    program.run(serve, program=NAME)


if __name__ == "__main__":
    main()

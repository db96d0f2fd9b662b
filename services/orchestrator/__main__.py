"""`python -m services.orchestrator`: the orchestrator program."""

from __future__ import annotations

from antfarm import program, settings
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
        from services.orchestrator import app  # after the settings: --help must not wait for gRPC

        return await app.serve(chosen)

    program.run(serve, program=NAME)


if __name__ == "__main__":
    main()

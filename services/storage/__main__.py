"""Entry point of the storage program: `python -m services.storage --port 50052`."""

from __future__ import annotations

from antfarm import program
from antfarm.settings import load_settings
from services.storage.settings import StorageSettings


def main() -> None:
    """Read the settings and serve."""
    settings = load_settings(
        StorageSettings,
        None,
        program="python -m services.storage",
        description="Keeps blobs where every node of the farm can reach them.",
    )
    program.setup_logging(settings.log_format, settings.log_level)

    async def serve() -> int:
        with program.loading():  # after the settings: --help must not wait for gRPC
            from services.storage import app

        return await app.serve(settings)

    program.run(serve, program="storage")


if __name__ == "__main__":
    main()

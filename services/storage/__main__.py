"""Entry point of the storage program: `python -m services.storage --port 50052`."""

from __future__ import annotations

from antfarm import program
from antfarm.settings import load_settings
from services.storage.app import serve
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
    program.run(lambda: serve(settings), program="storage")


if __name__ == "__main__":
    main()

"""What the orchestrator above has said of itself, kept in a small file beside the journal.

Only its Welcome says it, and after a restart something has to be known before that comes. The file is a note, not a part of the journal: a copy of the
journal goes without it, and where it is missing the next Welcome writes it anew.
"""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

from antfarm.files import sync, write_durably

log = logging.getLogger("antfarm.upstream")

_FIELDS = ("orchestrator_id", "storage_address")


class Above:
    """The note: read when it is made, written by `keep`."""

    def __init__(self, directory: Path) -> None:
        """Read what an earlier process kept. A note that cannot be read is as good as none."""
        self._path = directory / "upstream.json"
        self._writing = threading.Lock()
        self._kept = _read(self._path)

    @property
    def orchestrator_id(self) -> str:
        """Whose queue the tasks from above are of; empty when nobody has said."""
        return self._kept["orchestrator_id"]

    @property
    def storage_address(self) -> str:
        """Where Storage is, as it has said; empty when it has not."""
        return self._kept["storage_address"]

    def keep(self, **said: str) -> None:
        """Make these fields durable beside the others; then they are what is read here. Blocks, so call it in a thread. OSError: nothing changed."""
        with self._writing:
            kept = self._kept | said
            write_durably(self._path, json.dumps(kept) + "\n")
            sync(self._path.parent)
            self._kept = kept


def _read(path: Path) -> dict[str, str]:
    content: object = None
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        content = {}
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read: %s", path, error)
    found = content if isinstance(content, dict) else {}
    return {name: value if isinstance(value := found.get(name), str) else "" for name in _FIELDS}

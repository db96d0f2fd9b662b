"""The worker's name and its directory: two processes never share one, which the lock file in it guarantees."""

from __future__ import annotations

import os
import re
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from antfarm import files
from antfarm.errors import InvalidArgument
from antfarm.settings import state_home

SLOTS_MAX = 1_000
"""Workers of one node that get a name by themselves."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A claimed name and directory; claimed until the process ends."""

    worker_id: str
    directory: Path
    lock_fd: int

    @property
    def outbox(self) -> Path:
        """The file of unacked reports."""
        return self.directory / "outbox"

    @property
    def scratch(self) -> Path:
        """Transient Storage: below it one directory per child, below that one per attempt."""
        return self.directory / "scratch"

    @property
    def inputs(self) -> Path:
        """Inputs too large for a pipe."""
        return self.directory / "inputs"

    def sweep(self) -> None:
        """Remove what an earlier process left of its attempts. InvalidArgument in one line when that cannot be done."""
        for path in (self.scratch, self.inputs):
            try:
                _remove(path)
                path.mkdir(mode=0o700, exist_ok=True)
            except OSError as error:
                raise InvalidArgument(
                    f"{error.filename or path} cannot be removed: {error.strerror or error}; remove it, or give another --state"
                ) from None


def default_state(environment: dict[str, str]) -> Path:
    """`$XDG_STATE_HOME/antfarm/worker`, by default below ~/.local/state. InvalidArgument where nobody is at home."""
    return state_home(environment) / "antfarm" / "worker"


def claim(state: Path, worker_id: str = "") -> Place:
    """Claim a name below `state`: the given one, or `<host>-<n>` with the first free n.

    InvalidArgument in one line when it is taken by a living process, malformed, or the directory cannot be made.
    """
    if worker_id:
        if not _NAME.fullmatch(worker_id) or worker_id in (".", ".."):
            raise InvalidArgument(f"--worker-id {worker_id!r}: at most 128 characters of A-Z a-z 0-9 . _ -")
        place = _try(state, worker_id)
        if place is None:
            raise InvalidArgument(
                f"--worker-id {worker_id}: another process has this name; stop it or choose another one"
            )
        return place
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:100] or "worker"
    for number in range(1, SLOTS_MAX + 1):
        place = _try(state, f"{host}-{number}")
        if place is not None:
            return place
    raise InvalidArgument(f"{SLOTS_MAX} workers use {state} already; give another --state")


def _try(state: Path, name: str) -> Place | None:
    directory = state / name
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InvalidArgument(f"--state {state}: {error.strerror}; give a directory that can be written") from None
    try:
        is_ours = files.lock(fd, directory / "lock", f"--state {state}")
    except InvalidArgument:
        os.close(fd)
        raise
    if not is_ours:
        os.close(fd)
        return None
    return Place(worker_id=name, directory=directory, lock_fd=fd)


def _remove(path: Path) -> None:
    """Remove a directory, also one with directories that tasks have made read-only, as some caches are."""
    shutil.rmtree(path, ignore_errors=True)
    if not path.exists():
        return
    path.chmod(0o700)
    for parent, names, _ in os.walk(path):  # from above, so that each is made readable before it is looked into
        for directory in (Path(parent, name) for name in names):
            if not directory.is_symlink():  # that leads to what is not ours
                directory.chmod(0o700)
    shutil.rmtree(path)

"""Settings of the storage program."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from antfarm.address import parse_address
from antfarm.duration import seconds
from antfarm.errors import InvalidArgument
from antfarm.settings import ProgramSettings, setting
from services.storage.core.sweep import Ages


def _default_directory() -> Path:
    state_home = os.environ.get("XDG_STATE_HOME", "")  # must be absolute by the XDG base directory specification
    try:
        base = Path(state_home) if state_home.startswith("/") else Path.home() / ".local" / "state"
    except RuntimeError:  # a service's user has no home
        base = Path("/var/lib")
    return base / "antfarm" / "storage"


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSettings(ProgramSettings):
    """All settings of `python -m services.storage`."""

    host: str = setting("127.0.0.1", "Address to listen on; beyond this machine it needs TLS or --insecure.")
    port: int = setting(50052, "Port to listen on; 0 picks a free one.")
    backend: str = setting(
        f"file:{_default_directory()}",
        "Where blobs lie: file:DIR, a directory of a local disk that this program alone uses.",
        metavar="URL",
    )
    insecure: bool = setting(
        False, "Serve other machines without TLS. Anybody who reaches the port can read and write."
    )
    drain_s: float = setting(10.0, "Time that open streams get to end when the program is told to stop, in seconds.")
    streams_max: int = setting(
        512, "Reads and writes of content at once; more are refused until some end. Each holds about 3 MiB of memory."
    )

    sweep_for: str = setting(
        "",
        "Addresses, with commas between, of all orchestrators whose workers write here and of all orchestrators above them, with workers of their"
        " own or without. Their records are asked which outputs of tasks nobody needs, and these are deleted. Empty: nothing is ever deleted.",
        metavar="HOST:PORT",
    )
    sweep_ended: str = setting(
        "24h", "How old an output must be that the recorded outcome of its task does not name.", metavar="TIME"
    )
    sweep_unknown: str = setting("7d", "How old an output must be whose task no orchestrator knows.", metavar="TIME")
    sweep_dry_run: bool = setting(False, "Only log what would be deleted.")

    def __post_init__(self) -> None:
        """Check what types alone do not say."""
        if not 0 <= self.port <= 65535:
            raise InvalidArgument(f"--port {self.port} is not a port; give 0 to 65535")
        if not 0 <= self.drain_s < math.inf:
            raise InvalidArgument(f"--drain-s {self.drain_s:g}: give a number of seconds, 0 or more")
        if self.streams_max < 1:
            raise InvalidArgument(f"--streams-max {self.streams_max} would serve nobody; give at least 1")
        for address in self.orchestrators:
            parse_address(address)
        assert self.ages

    @property
    def orchestrators(self) -> tuple[str, ...]:
        """The addresses of --sweep-for."""
        return tuple(part.strip() for part in self.sweep_for.split(",") if part.strip())

    @property
    def ages(self) -> Ages:
        """--sweep-ended and --sweep-unknown."""
        return Ages(
            ended_s=_seconds("--sweep-ended", self.sweep_ended),
            unknown_s=_seconds("--sweep-unknown", self.sweep_unknown),
        )


def _seconds(flag: str, text: str) -> float:
    try:
        return seconds(text)
    except InvalidArgument as error:
        raise InvalidArgument(f"{flag} {error}") from None


def file_directory(backend: str) -> tuple[Path, bool]:
    """(directory, whether it is the default one) of a `file:` backend; InvalidArgument for any other backend."""
    scheme, colon, rest = backend.partition(":")
    if colon and scheme in ("s3", "az", "gs"):
        raise InvalidArgument(f"--backend {backend}: {scheme}:// is not in this version; give file:DIR")
    if scheme != "file" or not rest:
        raise InvalidArgument(f"--backend {backend}: unknown; give file:DIR")
    if rest.startswith("//"):
        rest = rest[2:]
        if not rest.startswith("/"):
            raise InvalidArgument(f"--backend {backend}: a file URL has three slashes; give file:DIR")
    path = Path(rest).expanduser().absolute()
    return path, path == _default_directory()

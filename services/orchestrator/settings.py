"""Settings of the orchestrator program."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from antfarm.address import parse_address
from antfarm.duration import seconds
from antfarm.errors import InvalidArgument
from antfarm.model import SECOND_NS
from antfarm.settings import ProgramSettings, setting

QUEUED_MIB_MIN = 4
"""What the tasks of one message may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrchestratorSettings(ProgramSettings):
    """All settings of `python -m services.orchestrator`."""

    host: str = setting("127.0.0.1", "Address to listen on; beyond this machine it needs TLS or --insecure.")
    port: int = setting(50051, "Port to listen on; 0 picks a free one.")
    state: str = setting(
        "",
        "Directory of the journal, on a local disk. Default: ~/.local/state/antfarm/orchestrator-PORT.",
        metavar="DIR",
    )
    restore: str = setting(
        "",
        "Make this backup the journal of --state, which must not have one, and end; `antfarm restore` calls it.",
        metavar="FILE",
    )
    storage: str = setting(
        "",
        "Address of Storage; told to workers and clients. Default with --upstream: what the orchestrator above says.",
        metavar="HOST:PORT",
    )
    upstream: str = setting(
        "", "Address of the orchestrator above this one, for a down-stream one.", metavar="HOST:PORT"
    )
    as_: str = setting(
        "", "Task types, with commas between, that this orchestrator runs for --upstream.", metavar="TYPE"
    )
    upstream_slots: int = setting(
        16,
        "Tasks of the up-stream orchestrator that are expanded here at the same time; what is relayed as it came"
        " follows the slots of the workers here.",
    )
    heartbeat_s: float = setting(
        3.0,
        "H: how often workers beat. They are suspect after two and lost after four beats of silence, orchestrators below after 60 s where that is longer.",
        metavar="S",
    )
    keep_ended: str = setting(
        "7d",
        "How long ended jobs are kept with their results, such as 12h or 30d. After a day they may be purged sooner, when they have"
        " ten million tasks or the disk is nearly full.",
        metavar="TIME",
    )
    queued_mib: int = setting(
        4096,
        "What tasks that have not succeeded take in memory: their payloads and 100 bytes each. Beyond it submissions are refused until some have"
        " run, or ended jobs with failed or cancelled tasks are purged.",
        metavar="MIB",
    )
    ballast_mib: int = setting(
        64,
        "Room kept beside the journal and given up when its disk is full, so that outcomes can still be recorded; at most"
        " 2 % of the disk. 0 keeps none.",
        metavar="MIB",
    )
    insecure: bool = setting(False, "Serve other machines without TLS. Anybody who reaches the port can run tasks.")

    def __post_init__(self) -> None:
        """Check what types alone do not say."""
        if not 0 <= self.port <= 65535:
            raise InvalidArgument(f"--port {self.port} is not a port; give 0 to 65535")
        if not 0.02 <= self.heartbeat_s <= 3600:
            raise InvalidArgument(f"--heartbeat-s {self.heartbeat_s} is outside 0.02 to 3600")
        if bool(self.upstream) != bool(self.as_):
            raise InvalidArgument(
                "--upstream HOST:PORT and --as TYPE go together: give both for a down-stream orchestrator"
            )
        if self.keep_ended_ns <= 0:
            raise InvalidArgument(f"--keep-ended {self.keep_ended}: give a time above 0, such as 7d")
        if self.queued_mib < QUEUED_MIB_MIN:
            raise InvalidArgument(
                f"--queued-mib {self.queued_mib}: give at least {QUEUED_MIB_MIN}, so that every batch fits"
            )
        if self.ballast_mib < 0:
            raise InvalidArgument(f"--ballast-mib {self.ballast_mib}: give 0 or more")
        if self.upstream_slots < 1:
            raise InvalidArgument(f"--upstream-slots {self.upstream_slots}: give at least 1")
        for address in filter(None, (self.storage, self.upstream)):
            parse_address(address)

    @property
    def state_directory(self) -> Path:
        """Where the journal lies. A PostgreSQL address is refused by name, not taken for a directory."""
        if self.state.startswith("postgresql:"):
            raise InvalidArgument("--state postgresql://...: this version keeps its journal in a directory; give one")
        try:
            if self.state:
                return Path(self.state).expanduser()
            state_home = os.environ.get("XDG_STATE_HOME", "")
            base = Path(state_home) if state_home.startswith("/") else Path.home() / ".local" / "state"
        except RuntimeError:  # a service's user has no home
            raise InvalidArgument("this user has no home directory: give --state, without ~") from None
        return base / "antfarm" / f"orchestrator-{self.port}"

    @property
    def keep_ended_ns(self) -> int:
        """--keep-ended in nanoseconds."""
        try:
            return round(seconds(self.keep_ended) * SECOND_NS)
        except InvalidArgument as error:
            raise InvalidArgument(f"--keep-ended {error}") from None

    @property
    def task_types(self) -> tuple[str, ...]:
        """The task types of --as."""
        return tuple(part.strip() for part in self.as_.split(",") if part.strip())

"""Attempts in this worker and what those of one job share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from antfarm.model import SECOND_NS
from services.worker.core.estimate import Estimate
from services.worker.core.stop import Stop

Token = tuple[str, int, int, int]


@dataclass(slots=True, eq=False, kw_only=True)
class Group:
    """What the attempts of one job and epoch share: how they run, what they cost, what limits them. Durations in ns; 0: no limit."""

    job_id: str
    epoch: int
    type: str
    is_async: bool
    estimate: Estimate
    cost: Mapping[str, float]
    run_timeout_ns: int = 0
    progress_timeout_ns: int = 0
    at_most_once: bool = False
    exclusive: bool = False
    memory_bytes: int = 0
    common_payload: bytes = b""
    input_count: int = 0
    shared_inputs: dict[int, object] = field(default_factory=dict)
    """Inputs that are the same for all its tasks, once they are here."""


class Attempt:
    """One attempt from its arrival to its report. Changed by the board and the driver only."""

    __slots__ = (
        "attempt",
        "group",
        "index",
        "inputs",
        "last_word_ns",
        "log",
        "payload",
        "progress",
        "progress_ns",
        "progress_text",
        "seq",
        "since_ns",
        "started_ns",
        "stop",
        "unsent_log",
    )

    def __init__(self, group: Group, index: int, attempt: int, payload: bytes, since_ns: int) -> None:
        self.group = group
        self.index = index
        self.attempt = attempt
        self.payload = payload
        self.inputs: list[tuple[int, bytes]] | None = None
        self.since_ns = since_ns  # arrival here, for waiting ones
        self.seq = 0  # its number in the child that it was fed to; 0: to none
        self.started_ns = 0  # 0: not known to have started
        self.stop: Stop | None = None
        self.log = ""  # its end, kept for a failure
        self.unsent_log = ""
        self.progress: float | None = None
        self.progress_text = ""
        self.progress_ns = 0  # last sign of progress
        self.last_word_ns = 0  # 0: none was sent

    @property
    def token(self) -> Token:
        """Names it everywhere."""
        return self.group.job_id, self.index, self.group.epoch, self.attempt

    def add_log(self, text: str, chars_max: int) -> None:
        """Take text that it wrote; of more than `chars_max` the end is kept."""
        self.log = (self.log + text)[-chars_max:]
        self.unsent_log = (self.unsent_log + text)[-chars_max:]

    def overdue(self, now_ns: int) -> str:
        """Which limit it has broken, in words; "" for none."""
        group = self.group
        if group.run_timeout_ns and now_ns - self.started_ns > group.run_timeout_ns:
            return f"ran longer than its limit of {group.run_timeout_ns / SECOND_NS:g} s"
        last_ns = max(self.progress_ns, self.started_ns)
        if group.progress_timeout_ns and now_ns - last_ns > group.progress_timeout_ns:
            return f"showed no progress for {group.progress_timeout_ns / SECOND_NS:g} s"
        return ""

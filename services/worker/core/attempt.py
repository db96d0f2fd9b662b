"""Attempts in this worker and what those of one job share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from antfarm.link.estimate import Estimate
from antfarm.model import LOG_TAIL_BYTES_MAX, SECOND_NS
from services.worker.core.stop import Stop

Token = tuple[str, int, int, int]

DEADLINE_GRACE_NS = SECOND_NS
"""After its total deadline an attempt is stopped this much later: the orchestrator ends the task and says so itself, when it can be heard."""


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
    live: int = 0
    """Its attempts in this worker; counted only where there are inputs, which go with the last one."""


class TailText:
    """The end of a growing text: cheap to add to, cut now and then."""

    __slots__ = ("_chars_max", "_parts", "_size")

    def __init__(self, chars_max: int) -> None:
        self._chars_max = chars_max
        self._parts: list[str] = []
        self._size = 0

    def add(self, text: str) -> None:
        """Append."""
        self._parts.append(text)
        self._size += len(text)
        if self._size > 2 * self._chars_max:
            kept = self.text
            self._parts, self._size = [kept], len(kept)

    @property
    def text(self) -> str:
        """Its end, at most `chars_max` characters."""
        return "".join(self._parts)[-self._chars_max :]

    def take(self) -> str:
        """Its end; it is empty afterwards."""
        text = self.text
        self._parts, self._size = [], 0
        return text

    def __bool__(self) -> bool:
        return self._size > 0


class Attempt:
    """One attempt from its arrival to its report. Changed by the board and the driver only."""

    __slots__ = (
        "attempt",
        "deadline_ns",
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

    def __init__(
        self, group: Group, index: int, attempt: int, payload: bytes, since_ns: int, deadline_ns: int = 0
    ) -> None:
        self.group = group
        self.index = index
        self.attempt = attempt
        self.payload = payload
        self.inputs: list[tuple[int, bytes]] | None = None
        self.since_ns = since_ns  # arrival here, for waiting ones
        self.deadline_ns = deadline_ns  # end of its task's total time; 0: none
        self.seq = 0  # its number in the child that it was fed to; 0: to none
        self.started_ns = 0  # 0: not known to have started
        self.stop: Stop | None = None
        self.log: TailText | None = None  # kept for a failure
        self.unsent_log: TailText | None = None
        self.progress: float | None = None
        self.progress_text = ""
        self.progress_ns = 0  # last sign of progress
        self.last_word_ns = 0  # 0: none was sent

    @property
    def token(self) -> Token:
        """Names it everywhere."""
        return self.group.job_id, self.index, self.group.epoch, self.attempt

    def add_log(self, text: str) -> None:
        """Take text that it wrote."""
        if self.log is None or self.unsent_log is None:
            self.log, self.unsent_log = TailText(LOG_TAIL_BYTES_MAX), TailText(LOG_TAIL_BYTES_MAX)
        self.log.add(text)
        self.unsent_log.add(text)

    def expired(self, now_ns: int) -> bool:
        """Whether its task's total time was over a while ago, and nobody has said so."""
        return bool(self.deadline_ns) and now_ns > self.deadline_ns + DEADLINE_GRACE_NS

    def overdue(self, now_ns: int) -> str:
        """Which limit it has broken, in words; "" for none."""
        group = self.group
        if group.run_timeout_ns and now_ns - self.started_ns > group.run_timeout_ns:
            return f"ran longer than its limit of {group.run_timeout_ns / SECOND_NS:g} s"
        last_ns = max(self.progress_ns, self.started_ns)
        if group.progress_timeout_ns and now_ns - last_ns > group.progress_timeout_ns:
            return f"showed no progress for {group.progress_timeout_ns / SECOND_NS:g} s"
        return ""

"""Stopping an attempt that does not want to end: ask, then SIGTERM, then SIGKILL."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from antfarm.model import SECOND_NS, Ending, FailureClass

TIMEOUT_TERM_NS = SECOND_NS // 2
"""From SIGTERM to SIGKILL for an attempt that broke its time limit; it had its time."""
DRAIN_TERM_NS = SECOND_NS
"""The same for attempts that outlive a drain."""


class Step(Enum):
    """What to do to it now."""

    ASK = "ask"
    TERMINATE = "terminate"
    KILL = "kill"


@dataclass(slots=True, kw_only=True)
class Stop:
    """An attempt's way to its end, whatever it does; begun once. `ending` is what is reported then, TIMED_OUT with its class."""

    ending: Ending
    failure_class: FailureClass
    cause: str
    term_at_ns: int
    kill_at_ns: int
    done: Step = Step.ASK

    def due(self, now_ns: int) -> Step | None:
        """The next step when its time has come, each once."""
        if now_ns >= self.kill_at_ns and self.done is not Step.KILL:
            self.done = Step.KILL
            return Step.KILL
        if now_ns >= self.term_at_ns and self.done is Step.ASK:
            self.done = Step.TERMINATE
            return Step.TERMINATE
        return None


def plan_stop(
    ending: Ending,
    cause: str,
    *,
    now_ns: int,
    grace_ns: int,
    listens: bool,
    failure_class: FailureClass = FailureClass.APP,
) -> Stop:
    """How to stop an attempt.

    Args:
        ending: REVOKED gives the grace: half of it to end by itself when it `listens`, the rest after SIGTERM. TIMED_OUT and
            RELEASED (a drain over its limit) had their time: SIGTERM at once.
        cause: in words, for the report.
        grace_ns: all that a revoked attempt gets.
        listens: it looks at `ctx.cancelled`, or is a coroutine, which is cancelled instead of signalled.
        failure_class: of TIMED_OUT: APP for a limit of its own, EXPIRED when its task's total time is over.
    """
    term_ns, kill_ns = 0, TIMEOUT_TERM_NS if ending is Ending.TIMED_OUT else DRAIN_TERM_NS
    if ending is Ending.REVOKED:
        term_ns, kill_ns = grace_ns // 2 if listens else 0, grace_ns
    return Stop(
        ending=ending,
        failure_class=failure_class,
        cause=cause,
        term_at_ns=now_ns + term_ns,
        kill_at_ns=now_ns + kill_ns,
    )

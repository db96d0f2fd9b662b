"""How attempts end, said to the orchestrator: each ending of an attempt is one method here.

A last word with what the attempt logged goes in front of its outcome, so that nobody sees the end before the text.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from antfarm import wire
from antfarm.errors import AntFarmError
from antfarm.link import Link, OutcomeParts
from antfarm.link.estimate import Estimate
from antfarm.link.stream import now_ns
from antfarm.model import PROCESS_LOST_KIND, Ending, FailureClass
from antfarm.v1 import work_queue_pb2
from services.worker.core.attempt import Attempt, Group
from services.worker.runtime import translation
from services.worker.runtime.inputs import is_hopeless

WORD_AFTER_NS = 250_000_000
"""Attempts that run for this long are spoken of, at most this often."""


class Reporter:
    """Turns endings into reports. `link` is set before the first. `on_last` is told of groups with inputs whose last attempt has ended."""

    def __init__(self, on_last: Callable[[Group], None]) -> None:
        self.link: Link
        self._on_last = on_last

    # ---- while it runs ------------------------------------------------------------------------------------------------

    def speak(self, attempt: Attempt, now: int) -> None:
        """A word of a running attempt when one is due: once after a while, then with news only."""
        if now - attempt.started_ns < WORD_AFTER_NS or now - attempt.last_word_ns < WORD_AFTER_NS:
            return
        if not attempt.last_word_ns or attempt.unsent_log or attempt.progress_ns > attempt.last_word_ns:
            self.link.running(translation.word(attempt, now))
            attempt.last_word_ns = now

    # ---- its own endings ----------------------------------------------------------------------------------------------

    def succeeded(self, attempt: Attempt, run_us: int, result: bytes, saved: Sequence[Any] = ()) -> None:
        """It returned. A revoked one stays revoked; one that was late by a moment counts."""
        if attempt.stop is not None and attempt.stop.ending is Ending.REVOKED:
            self._end(attempt, translation.handed_back(attempt, Ending.REVOKED))
        else:
            self._end(attempt, translation.success(attempt, run_us, result, saved))

    def failed(self, attempt: Attempt, run_us: int, failure_class: int, kind: str, message: str, trace: str) -> None:
        """It failed; if it was being stopped, because of that."""
        if attempt.stop is not None:
            self.stopped(attempt)
        else:
            self._end(attempt, translation.failure(attempt, failure_class, kind, message, trace, run_us=run_us))

    def stopped(self, attempt: Attempt) -> None:
        """It has ended because it was stopped."""
        stop = attempt.stop
        assert stop is not None
        if stop.ending is Ending.TIMED_OUT:
            kind = "expired" if stop.failure_class is FailureClass.EXPIRED else "timeout"
            outcome = translation.failure(
                attempt, stop.failure_class, kind, stop.cause, run_us=_run_us(attempt), ending=Ending.TIMED_OUT
            )
        else:
            outcome = translation.handed_back(attempt, stop.ending)
        self._end(attempt, outcome)

    # ---- its process died -----------------------------------------------------------------------------------------------

    def died(self, attempt: Attempt, code: int) -> None:
        """The process ended while it ran there alone: a crash when a signal ended it, else its own doing, with code 0 too."""
        if attempt.stop is not None:
            self.stopped(attempt)
            return
        text = f"the process that ran the task ended with {death(code)}"
        if code >= 0:
            failure_class, text = FailureClass.APP, f"{text} before the task had a result"
        else:
            failure_class = FailureClass.CRASH
            text += " (the machine may have run out of memory)" if code == -signal.SIGKILL else ""
        run_us = _run_us(attempt)
        self._end(attempt, translation.failure(attempt, failure_class, death(code), text, run_us=run_us))

    def suspected(self, attempt: Attempt, code: int, count: int, noise: str) -> None:
        """The process ended while `count` attempts ran there; nobody knows which one is to blame."""
        if noise:
            attempt.add_log(noise)
        text = f"the process that ran {count} coroutines ended with {death(code)}"
        self._end(attempt, translation.failure(attempt, FailureClass.INFRA, PROCESS_LOST_KIND, text))

    # ---- never run, or not to its end --------------------------------------------------------------------------------------

    def released(self, attempts: Iterable[Attempt], *, never_started: bool = True) -> None:
        """Handed back; costs the task nothing."""
        for attempt in attempts:
            self._end(attempt, translation.handed_back(attempt, Ending.RELEASED, never_started=never_started))

    def revoked(self, attempts: Iterable[Attempt]) -> None:
        """Revoked before they started."""
        for attempt in attempts:
            self._end(attempt, translation.handed_back(attempt, Ending.REVOKED, never_started=True))

    def unknown_type(self, message: work_queue_pb2.TaskGroup) -> None:
        """Nobody here can run these."""
        kind = message.template.type
        text = f"this worker does not know the task type {kind!r}; start it with --app and the module or file that defines it"
        group = translation.group_from_wire(message, is_async=False, estimate=Estimate())
        group.input_count = 0  # none was asked for
        for index, number in wire.assigned_pairs(message):
            attempt = Attempt(group, index, number, b"", 0)
            self._end(attempt, translation.failure(attempt, FailureClass.PERMANENT, "unknown task type", text))

    def without_input(self, attempts: Iterable[Attempt], error: AntFarmError | OSError) -> None:
        """Their inputs cannot be read, or cannot be kept on this node."""
        failure_class = FailureClass.PERMANENT if is_hopeless(error) else FailureClass.INFRA
        for attempt in attempts:
            text = f"an input cannot be read: {error}"
            self._end(attempt, translation.failure(attempt, failure_class, "input", text))

    def _end(self, attempt: Attempt, outcome: OutcomeParts) -> None:
        if attempt.unsent_log:
            self.link.running(translation.word(attempt, now_ns()))
        group = attempt.group
        self.link.report(group.job_id, group.epoch, outcome)
        if group.input_count:
            group.live -= 1
            if group.live == 0:
                self._on_last(group)


def _run_us(attempt: Attempt) -> int:
    """How long it has run, as far as the agent can tell."""
    return max(now_ns() - attempt.started_ns, 0) // 1000 if attempt.started_ns else 0


def death(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"

"""Failpoints: named places of the programs at which a test makes the process die, stand still or fail. Without a test they do nothing.

A program reads ANTFARM_FAILPOINTS once, at its start: `name=action` or `name=action@n` for the n-th time that the place is passed, several with
commas between. Nothing that comes over the wire arms one. Actions: `kill` (SIGKILL to itself: nothing after this place happens, as at the loss of
power but for what the kernel has), `pause:SECONDS` (the thread that passes stands still), `error` (OSError EIO).

    ANTFARM_FAILPOINTS=journal.after_commit=kill@7 python -m services.orchestrator
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping

from antfarm.errors import InvalidArgument

VARIABLE = "ANTFARM_FAILPOINTS"
POINTS = {
    "epoch.before_record": "an orchestrator serves, its new term is not yet made",
    "journal.before_commit": "records are written, the transaction is open",
    "journal.after_commit": "the transaction is durable, the driver does not know",
    "driver.before_release": "records are durable, replies and verdicts that waited for them have not left",
    "driver.after_release": "they have left the driver",
    "session.before_welcome": "the core has taken a worker on, its welcome is not queued",
    "work_queue.after_write": "a frame to a worker is written; the first one of a stream is the welcome",
    "report_queue.before_write": "verdicts are about to be written",
    "report_queue.after_write": "they are written",
    "link.before_outbox": "attempts have ended, their reports are in memory only",
    "link.after_outbox": "they are in the outbox and not sent",
    "link.after_send": "they are sent, there is no verdict",
    "link.before_verdict": "verdicts have arrived, nothing is forgotten yet",
    "upstream.before_bind": "tasks have come from the orchestrator above, and nothing of them is in the journal",
    "upstream.before_report": "a parent has ended here, its report is not handed to the link",
    "upstream.before_acked": "the final verdict on a parent is there, the core does not know",
    "storage.before_fsync": "a blob is written and not synced",
    "storage.before_link": "it is synced and has no name",
    "storage.after_link": "it has its name, also after a loss of power",
    "storage.before_reply": "it is durable, the writer does not know",
}
"""Every place, and what is true there."""

log = logging.getLogger("antfarm.failpoint")

_armed: dict[str, tuple[int, Callable[[str], None]]] = {}
_passed: dict[str, int] = {}


def failpoint(name: str) -> None:
    """Pass the place `name`. Costs a look at an empty dictionary unless a test has armed something."""
    if _armed:
        _pass(name)


def arm(environment: Mapping[str, str]) -> None:
    """Arm what the variable names, and nothing else. InvalidArgument names what is misspelt."""
    _armed.clear()
    _passed.clear()
    for item in filter(None, environment.get(VARIABLE, "").split(",")):
        name, _, rest = item.partition("=")
        action, _, number = rest.partition("@")
        if name not in POINTS:
            raise InvalidArgument(f"{VARIABLE}: there is no failpoint {name!r}; there are {', '.join(POINTS)}")
        if number and not (number.isdigit() and int(number) > 0):
            raise InvalidArgument(f"{VARIABLE}: {item}: after @ comes a number from 1")
        _armed[name] = (int(number or 1), _action(item, action))
    if _armed:
        log.warning("armed: %s", environment[VARIABLE])


def _action(item: str, action: str) -> Callable[[str], None]:
    kind, _, seconds = action.partition(":")
    if kind == "pause":
        try:
            pause_s = float(seconds)
        except ValueError:
            raise InvalidArgument(f"{VARIABLE}: {item}: after pause: come seconds") from None
        return lambda name: time.sleep(pause_s)
    if action == "kill":
        return lambda name: os.kill(os.getpid(), signal.SIGKILL)
    if action == "error":
        return _fail
    raise InvalidArgument(f"{VARIABLE}: {item}: the action is kill, pause:SECONDS or error")


def _fail(name: str) -> None:
    raise OSError(errno.EIO, f"failpoint {name}")


def _pass(name: str) -> None:
    armed = _armed.get(name)
    if armed is None:
        return
    _passed[name] = number = _passed.get(name, 0) + 1
    if number == armed[0]:
        armed[1](name)

"""What agent and child say to each other: msgpack arrays, one after the other, on two pipes, and a page of shared memory.

To the child (`IN_...`):
    [IN_SETUP, {...}]                   once, first: how to run (keys: `Setup`)
    [IN_STORAGE, address]               where Storage is, whenever it becomes known or changes
    [IN_TEMPLATE, slot, {...}]          what tasks of a job have in common, kept in one of TEMPLATE_SLOTS places
    [IN_TASKS, slot, [[seq, index, attempt, payload, inputs], ...]]
    [IN_CANCEL, seq]                    loop children only: cancel that attempt's coroutine
From the child (`OUT_...`):
    [OUT_READY, [[name, version, is_async], ...]] or [OUT_BROKEN, line], first
    [OUT_DONE, seq, run_us, result]
    [OUT_SAVED, seq, run_us, result, [[key, size_bytes, sha256], ...]]   as DONE, with outputs
    [OUT_FAILED, seq, run_us, class, kind, message, traceback]
    [OUT_LOG, seq, text]
    [OUT_PROGRESS, seq, fraction or nil, text]

`seq` numbers the tasks of one child and grows. A plain child runs its tasks in order, one at a time, and writes each result before it starts
the next: what the pipe holds survives the child's death, so the first task without a result is the one to blame.

The page holds unsigned 64-bit words, each written by one side only. The agent takes back tasks that wait behind a long one by setting
DEAD_FROM and DEAD_TO: tasks with DEAD_FROM < seq <= DEAD_TO are not started (`take_back`, `may_start`). Should the child start one in the same
instant, that task runs twice and its first result counts, which is why tasks that may start only once are never fed behind others. The other way
round must not happen: a task that the agent takes for started is started, or nobody would ever run it.

CURRENT also says what has ended: all before it. A signal meant for one task must not hit the next, so the agent takes back what waits behind it, and
sends the signal only while CURRENT has not gone beyond it. Should the child start another one in the same instant, that was taken back and runs elsewhere.

A loop child begins its coroutines in order too, but many run at once, and what it was given is never taken back: there CURRENT says nothing of what has ended, and
only the end of the process makes use of it. Those above it had not begun.
"""

from __future__ import annotations

from typing import Any, Final, TypedDict

IN_SETUP: Final = 0
IN_STORAGE: Final = 1
IN_TEMPLATE: Final = 2
IN_TASKS: Final = 3
IN_CANCEL: Final = 4

OUT_READY: Final = 0
OUT_BROKEN: Final = 1
OUT_DONE: Final = 2
OUT_SAVED: Final = 3
OUT_FAILED: Final = 4
OUT_LOG: Final = 5
OUT_PROGRESS: Final = 6

TEMPLATE_SLOTS: Final = 64

PAGE_BYTES: Final = 4096
DEAD_FROM: Final = 0  # agent
DEAD_TO: Final = 1  # agent
CANCEL: Final = 2  # agent: seq of the attempt that should stop
CURRENT: Final = 3  # child: seq of the task that was started last, or left out as taken back
COOPERATIVE: Final = 4  # child: seq of the attempt that looks at its context

FRAME_BYTES_MAX: Final = 256 * 1024 * 1024
"""Largest thing that the agent sends: inputs of a whole job above this go by file."""
RECORD_BYTES_MAX: Final = 4 * 1024 * 1024
"""Largest thing that a child sends; results above 64 KiB go by Storage. More than this is garbage."""
SAVED_MAX: Final = 1_000
"""Outputs of one attempt; their references must fit into a report."""
LOG_CHARS_MAX: Final = 64 * 1024
"""Text of one attempt shipped within LOG_WINDOW_S; what is beyond is cut from the front."""
LOG_RECORDS_MAX: Final = 64
"""Records with text of one attempt within LOG_WINDOW_S; beyond that lines are put together."""
LOG_WINDOW_S: Final = 0.25


class Setup(TypedDict):
    """Content of IN_SETUP."""

    apps: list[str]
    installed_apps: bool
    allow_pickle: bool
    scratch: str
    tls: list[str]
    open_files: int


class Template(TypedDict, total=False):
    """Content of IN_TEMPLATE."""

    job_id: str
    epoch: int
    type: str
    common: bytes
    memory_bytes: int
    shared_inputs: dict[int, Any]


def take_back(page: memoryview, first: int, last: int) -> int:
    """The agent's side: tasks up to `last` that are not started are not to be. Seq of the task that counts as started last, `first` at least.

    The range begins before it ends, and `may_start` reads it the other way round: whichever way the two meet, the child that has said what it
    starts sees either the old end, or the new beginning, which is not before that task. That holds where stores and loads keep their order, as on x86; on
    other processors some hundred instructions of the interpreter lie between two of ours, and nothing stronger can be had from Python.
    """
    started = max(page[CURRENT], first)
    page[DEAD_FROM] = started
    page[DEAD_TO] = last
    return started


def may_start(page: memoryview, seq: int) -> bool:
    """The child's side: say that this task is started, unless it was taken back."""
    page[CURRENT] = seq
    return seq > page[DEAD_TO] or page[DEAD_FROM] >= seq

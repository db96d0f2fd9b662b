"""`python -m services.worker.child MODE IN_FD OUT_FD PAGE_FD`: started by the agent, never by hand."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import resource
import signal
import sys
import traceback
from typing import Any, NoReturn

from antfarm import load_apps
from antfarm.errors import AntFarmError
from services.worker.child.channel import Channel
from services.worker.child.output import capture
from services.worker.child.protocol import IN_SETUP, OUT_BROKEN, OUT_READY, Setup
from services.worker.child.runner import Runner, all_tasks

_PR_SET_PDEATHSIG = 1


def _die_with(parent: int) -> None:
    """Ask the kernel to kill this process when the agent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(0)


def _first_frame(channel: Channel) -> Setup:
    frame = channel.receive_first()
    if frame is None or frame[0] != IN_SETUP:
        os._exit(0)  # the agent has gone
    setup: Setup = frame[1]
    return setup


def _limit_open_files(soft: int) -> None:
    """As it was before the agent raised it for itself: some programs close as many as there may be, or cannot `select` beyond 1,024."""
    if soft:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _child(mode: str) -> tuple[Any, type[Runner]]:
    # Only what is needed is imported: a plain child starts a quarter faster without asyncio.
    if mode == "plain":
        from services.worker.child.plain import PlainChild

        return PlainChild(), Runner
    from services.worker.child.loop import LoopChild, LoopRunner

    return LoopChild(), LoopRunner


def main(mode: str, parent: int, in_fd: int, out_fd: int, page_fd: int) -> None:
    """Load the apps, say what can be run, run what comes."""
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable(file=2, all_threads=False)
    channel = Channel(in_fd, out_fd, page_fd)
    setup = _first_frame(channel)
    _limit_open_files(setup["open_files"])
    child, make_runner = _child(mode)
    logger = capture(child.current_log)
    try:
        load_apps(setup["apps"], entry_points=setup["installed_apps"])
    except AntFarmError as error:
        channel.send((OUT_BROKEN, " ".join(str(error).split())))
        return
    tasks = all_tasks(setup["allow_pickle"])
    child.runner = make_runner(channel, setup, logger, tasks)
    gc.collect()
    gc.freeze()
    channel.send((OUT_READY, [[task.name, task.version, task.is_async] for task in tasks.values()]))
    child.run()


def run() -> NoReturn:
    """The program; what ended it is on standard error, past what tasks have made of that.

    It ends at once in any case: threads and exit handlers of user code must not keep a child that nobody talks to, nor one that cannot talk.
    """
    code = 1
    try:
        main(sys.argv[1], *map(int, sys.argv[2:6]))
        code = 0
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(code)


if __name__ == "__main__":
    run()

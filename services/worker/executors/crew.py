"""The crew: all children of a worker, by the number of their lane."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

import msgpack

from antfarm.model import SECOND_NS
from services.worker.child.protocol import CANCEL, COOPERATIVE, CURRENT, IN_CANCEL, take_back
from services.worker.core.attempt import Attempt
from services.worker.core.lane import Lane
from services.worker.executors.feeder import Feeder
from services.worker.executors.process import ChildProcess, ChildSpec, Warden

log = logging.getLogger("antfarm.worker")

START_PAUSE_NS = SECOND_NS // 2
START_PAUSE_MAX_NS = 30 * SECOND_NS


class Crew:
    """Starts children and talks to them; what it says to which is decided elsewhere."""

    def __init__(
        self,
        spec: ChildSpec,
        *,
        on_records: Callable[[int, list[list[Any]]], float],
        on_noise: Callable[[int, bytes], None],
        on_exit: Callable[[int, int], None],
    ) -> None:
        self._spec = spec
        self._warden = Warden()
        self._callbacks = {
            "on_records": on_records,
            "on_pause": self._pause,
            "on_noise": on_noise,
            "on_exit": on_exit,
        }
        self._loop = asyncio.get_running_loop()
        self._listening: asyncio.Handle | None = None  # to those that are not listened to now, at that time of the loop
        self._listening_at = 0.0
        self._children: dict[int, ChildProcess] = {}
        self._feeders: dict[int, Feeder] = {}
        self._next_number = 1
        self._storage = ""
        self._failures = 0
        self._start_after_ns = 0

    @property
    def broken(self) -> bool:
        """True while the last child that was started died before it was ready."""
        return self._failures > 0

    @property
    def size(self) -> int:
        """Living children."""
        return len(self._children)

    def start(self, *, is_loop: bool, now_ns: int) -> int | None:
        """Start a child; its number. None: not now, because the last one failed to start."""
        if now_ns < self._start_after_ns:
            return None
        number = self._next_number
        self._next_number += 1
        try:
            child = ChildProcess(
                number=number,
                mode="loop" if is_loop else "plain",
                spec=self._spec,
                warden=self._warden,
                **self._callbacks,  # type: ignore[arg-type]
            )
        except OSError as error:
            log.warning("no child could be started: %s; trying again", error.strerror)
            self.failed_to_start(now_ns)
            return None
        self._children[number] = child
        self._feeders[number] = Feeder()
        if self._storage:
            child.set_storage(self._storage)
        return number

    def started(self) -> None:
        """A child is ready."""
        self._failures = 0
        self._start_after_ns = 0

    def failed_to_start(self, now_ns: int) -> None:
        """A child could not be started or died before it was ready: pause, longer each time."""
        self._start_after_ns = now_ns + min(START_PAUSE_NS << min(self._failures, 10), START_PAUSE_MAX_NS)
        self._failures += 1

    def set_storage(self, address: str) -> None:
        """Tell all where Storage is."""
        if address != self._storage:
            self._storage = address
            for child in self._children.values():
                child.set_storage(address)

    def feed(self, lane: Lane, attempts: Iterable[Attempt]) -> None:
        """Send attempts to the lane's child."""
        self._children[lane.number].feed(self._feeders[lane.number].pack(attempts))

    def _pause(self, pause_s: float) -> None:
        """A child is not listened to for that long. The first pause that is over ends all: one turn, one message and one commit serve every child."""
        at = self._loop.time() + pause_s
        if self._listening is not None:
            if self._listening_at <= at:
                return
            self._listening.cancel()
        self._listening, self._listening_at = self._loop.call_at(at, self.listen), at

    def listen(self) -> None:
        """Take what all children have said, also those that are not listened to just now."""
        if self._listening is not None:
            self._listening.cancel()
            self._listening = None
        for child in list(self._children.values()):
            child.listen()

    def take_back(self, lane: Lane) -> int:
        """Tell the child not to start what it was fed and has not started. Seq of the task that it started last."""
        return take_back(self._children[lane.number].page, lane.fed[0].seq, lane.next_seq - 1)

    def begun_last(self, lane: Lane) -> int:
        """Plain lanes: seq of the task that the child began last, or left out because it was taken back. All before it have ended."""
        return self._children[lane.number].page[CURRENT]

    def listens(self, lane: Lane, attempt: Attempt) -> bool:
        """Whether the attempt would notice a request to stop."""
        return lane.is_loop or self._children[lane.number].page[COOPERATIVE] == attempt.seq

    def ask(self, lane: Lane, attempt: Attempt) -> None:
        """Ask the attempt to stop: by its context, or by cancelling its coroutine."""
        child = self._children[lane.number]
        if lane.is_loop:
            child.feed(msgpack.packb([IN_CANCEL, attempt.seq]))
        else:
            child.page[CANCEL] = attempt.seq

    def terminate(self, lane: Lane) -> None:
        """SIGTERM to the lane's process group."""
        self._children[lane.number].terminate()

    def kill(self, lane: Lane) -> None:
        """SIGKILL to the lane's process group."""
        self._children[lane.number].kill()

    def remove(self, number: int) -> int:
        """The child is dead. Seq of the task that it started last, in both kinds of lanes."""
        del self._feeders[number]
        return self._children.pop(number).started_last

    def kill_all(self) -> None:
        """End all children now."""
        for child in self._children.values():
            child.kill()

    def close(self) -> None:
        """End the warden; the children must be dead."""
        self._warden.close()

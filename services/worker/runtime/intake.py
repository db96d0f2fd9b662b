"""Arriving work: from frames to attempts, which wait here while their inputs are read and go on to the board then."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

from antfarm import wire
from antfarm.errors import AntFarmError
from antfarm.link.estimate import Estimate
from antfarm.link.stream import now_ns
from antfarm.link.window import WindowSizer
from antfarm.v1 import work_queue_pb2
from services.worker.core.attempt import Attempt, Group
from services.worker.runtime import translation
from services.worker.runtime.inputs import InputReader
from services.worker.runtime.reporting import Reporter

GROUPS_KEPT = 256
"""Jobs whose template is remembered between two frames."""


class Intake:
    """Owner of the attempts whose inputs are not here yet.

    `on_ready` gets attempts of one kind that can run; `on_change` is told afterwards when that happened between two frames.
    """

    def __init__(
        self,
        *,
        types: Mapping[str, bool],
        inputs: InputReader,
        reporter: Reporter,
        sizer: WindowSizer,
        on_ready: Callable[[list[Attempt], bool], None],
        on_change: Callable[[], None],
    ) -> None:
        """Make it. `types`: which task types can be run, and whether they are coroutines."""
        self._types = types
        self._inputs = inputs
        self._reporter = reporter
        self._sizer = sizer
        self._on_ready = on_ready
        self._on_change = on_change
        self._groups: OrderedDict[tuple[str, int], Group] = OrderedDict()
        self._estimates: dict[str, Estimate] = {}
        self._fetching: dict[Attempt, None] = {}
        self._fetches: set[asyncio.Task[None]] = set()

    @property
    def idle(self) -> bool:
        """True when no attempt waits for its inputs."""
        return not self._fetching

    def take(self, messages: Iterable[work_queue_pb2.TaskGroup]) -> None:
        """Assignments of one frame; types that nobody here knows are refused at once."""
        now = now_ns()
        for message in messages:
            is_async = self._types.get(message.template.type)
            if is_async is None:
                self._reporter.unknown_type(message)
                continue
            group = self._group(message, is_async)
            assigned = wire.assigned_in(message)
            attempts = [Attempt(group, index, attempt, payload, now) for index, attempt, payload, _, _ in assigned]
            if message.template.timeouts.HasField("total"):
                for attempt, one in zip(attempts, assigned, strict=True):
                    if one.remaining_ns is not None:
                        attempt.deadline_ns = now + one.remaining_ns
            size = sum([len(attempt.payload) for attempt in attempts])
            self._sizer.arrived(len(attempts), group.cost["cpu"], size)
            if group.input_count:
                group.live += len(attempts)
                self._fetching.update(dict.fromkeys(attempts))
                task = asyncio.create_task(self._fetch(group, message, attempts))
                self._fetches.add(task)
                task.add_done_callback(self._fetched)
            else:
                self._on_ready(attempts, is_async)

    def withdraw(self, wanted: Callable[[Attempt], bool]) -> list[Attempt]:
        """Take off attempts that wait for their inputs."""
        found = [attempt for attempt in self._fetching if wanted(attempt)]
        for attempt in found:
            del self._fetching[attempt]
        return found

    def forget(self, group: Group) -> None:
        """The last attempt of a group with inputs has ended; they are read again should another one come."""
        if self._groups.get((group.job_id, group.epoch)) is group:
            del self._groups[group.job_id, group.epoch]
        self._inputs.forget(group)

    def forget_queue(self) -> None:
        """Another queue is served from now on: its jobs may have the names of those of the one before. No attempt is left."""
        self._groups.clear()

    async def close(self) -> None:
        """Stop reading."""
        for task in self._fetches:
            task.cancel()
        await asyncio.gather(*self._fetches, return_exceptions=True)

    def _group(self, message: work_queue_pb2.TaskGroup, is_async: bool) -> Group:
        key = (message.job_id, message.epoch)
        group = self._groups.get(key)
        if group is not None and group.type == message.template.type:
            self._groups.move_to_end(key)
            return group
        estimate = self._estimates.setdefault(message.template.type, Estimate())
        group = translation.group_from_wire(message, is_async=is_async, estimate=estimate)
        self._groups[key] = group
        if len(self._groups) > GROUPS_KEPT:
            del self._groups[next(iter(self._groups))]
        return group

    async def _fetch(self, group: Group, message: work_queue_pb2.TaskGroup, attempts: list[Attempt]) -> None:
        error: AntFarmError | OSError | None = None
        try:
            await self._inputs.fill(group, message.inputs, attempts)
        except (AntFarmError, OSError) as problem:  # OSError: this node has no room for them, or no descriptor
            error = problem
        wanted = [attempt for attempt in attempts if attempt in self._fetching]  # others were revoked or released
        for attempt in wanted:
            del self._fetching[attempt]
        if error is None:
            now = now_ns()
            for attempt in wanted:
                attempt.since_ns = now
            self._on_ready(wanted, group.is_async)
        else:
            self._reporter.without_input(wanted, error)
        self._on_change()

    def _fetched(self, task: asyncio.Task[None]) -> None:
        self._fetches.discard(task)
        if not task.cancelled():
            task.result()  # a defect ends the program

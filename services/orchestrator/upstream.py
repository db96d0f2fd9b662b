"""This orchestrator as a worker of the one above it, over the very same two queues.

What it is given becomes events of the core (`core.parents` decides); what the core wants told up-stream becomes reports of the link, which
keeps them until their final verdict. The held set survives a restart in the journal, because a parent's token is bound there before it is started.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import platform
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from google.protobuf.message import DecodeError

from antfarm import net, wire
from antfarm.errors import AntFarmError, Unavailable, Weather
from antfarm.failpoint import failpoint
from antfarm.link import Link, OutcomeParts, WorkerIdentity
from antfarm.link.session import Token
from antfarm.link.window import LONG_S, WindowSizer, worth_a_frame
from antfarm.model import SECOND_NS, Ending, Failure, FailureClass, TaskState, TaskTemplate
from antfarm.v1 import common_pb2, report_queue_pb2, work_queue_pb2
from services.orchestrator.core import effects, events, records
from services.orchestrator.core.state import Worker
from services.orchestrator.core.workers import offers
from services.orchestrator.inputs import Inputs
from services.orchestrator.runtime.above import Above
from services.orchestrator.runtime.driver import Driver
from services.orchestrator.runtime.sessions import Sessions

log = logging.getLogger("antfarm.upstream")

POLL_S = 0.2
WORD_POLLS = 5
"""Parents that are bound for so many polls are spoken of."""
LONG_NS = int(LONG_S * SECOND_NS)
STORAGE_RETRY_S = 2.0


class Upstream:
    """The tie to the orchestrator above."""

    def __init__(
        self,
        driver: Driver,
        sessions: Sessions,
        *,
        address: str,
        task_types: tuple[str, ...],
        slots: int,
        orchestrator_id: str,
        storage_address: str,
        above: Above,
        tls: net.Tls | None,
    ) -> None:
        self._driver = driver
        self._sessions = sessions
        self._above = above
        self._orchestrator_id = orchestrator_id
        self._inputs = Inputs(storage_address, tls, above.storage_address)
        self._task_types = task_types
        self._slots = slots
        self._window = 2 * slots
        self._sizer = WindowSizer()
        self._below = 0  # slots that workers have, as of the last poll
        self._expands = self._long = False
        self._fit_ns = driver.clock.monotonic_ns()
        """When somebody below could run tasks of a type from above, as of the last poll."""
        self._largest, self._largest_ns = 0.0, self._fit_ns
        """Most CPUs that one worker below has, or had within a lease, and when it was seen there; 0 before the first one comes."""
        self._deserted = False
        """Nobody could for longer than a lease: whoever was lost or started again would be back."""
        self._draining = False
        self._drain_over = False
        """The drain's limit is past: what has begun is given back too."""
        self._drain_limit: asyncio.TimerHandle | None = None
        self._reported: set[Token] = set()
        """Tokens whose end was handed to the link and has no final verdict yet."""
        self._seqs: deque[int] = deque([0], maxlen=WORD_POLLS + 1)
        """What was durable at the last polls: parents that were bound at the first of them are spoken of."""
        self._said: dict[Token, None] = {}
        """Parents of which up-stream has had a word on this connection."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading: set[asyncio.Task[None]] = set()
        """Those of them that read what a parent ended with."""
        self._moving: asyncio.Task[None] | None = None
        """Gives up what is of another queue; while it does no Welcome is taken."""
        self._link = Link(
            addresses=[address],
            tls=tls,
            identity=WorkerIdentity(
                worker_id=f"orchestrator-{orchestrator_id}",
                slots=slots,
                window=self._window,
                task_types=task_types,
                resources={"cpu": float(slots)},  # a guess until workers come
                host=platform.node(),
                orchestrator=True,
                descendants=(orchestrator_id,),
            ),
            handler=self,
            queue=above.orchestrator_id,
            on_other_queue=self._on_other_queue,
        )
        for parent in driver.core.state.parents.values():
            self._link.hold((parent.job_id, parent.index, parent.epoch, parent.attempt))

    async def run(self) -> None:
        """Serve until cancelled. Raises what no further dial can cure."""
        polls = asyncio.create_task(self._poll())
        try:
            await self._report_ended()
            await self._link.run()
        finally:
            polls.cancel()
            self._end_drain()
            for task in self._tasks:
                task.cancel()

    async def _report_ended(self) -> None:
        """Report what ended in an earlier life before the first Hello, which then says so: else it would be taken from us where somebody else has it."""
        await self._driver.settled(self._driver.core.state.seq)
        if self._reading:
            await asyncio.wait(self._reading)

    # ---- from above -------------------------------------------------------------------------------------------------

    def on_welcome(self, welcome: work_queue_pb2.Welcome) -> None:
        """Attached. Storage is the parent's, unless the operator named another; who was restarted does not know what has started here.

        Unavailable while what is of another queue is given up.
        """
        if self._moving is not None:
            raise Unavailable("what is of another orchestrator's queue is given up first")
        if self._link.queue != self._above.orchestrator_id:
            self._spawn(self._keep(orchestrator_id=self._link.queue))
        if self._inputs.learn(welcome.storage_address):
            self._sessions.move_storage(welcome.storage_address)
        if not self._inputs.given and self._inputs.storage_address != self._above.storage_address:
            self._spawn(self._keep(storage_address=self._inputs.storage_address))
        self._said.clear()
        self._end_drain()  # where it is not over, it is asked for again
        self._resize()

    def _on_other_queue(self, orchestrator_id: str) -> None:
        """Tokens are of a queue, and another one may have tasks of the same names: give up all that is of the one before, also what has ended here and was not told."""
        if self._moving is not None:
            return
        parents = self._driver.core.state.parents.values()
        tokens = list(dict.fromkeys([*self._link.forget_all(), *(parent.token for parent in parents)]))
        log.warning("the orchestrator above is another one now: %d tasks of the one before are given up", len(tokens))
        cause = "it is of another queue than that of the orchestrator above"
        self._driver.post(events.ParentsRevoked(tokens=tokens, cause=cause))
        self._reported.clear()
        self._said.clear()
        working = [*self._tasks]
        self._moving = self._spawn(self._move(orchestrator_id, working))

    async def _move(self, orchestrator_id: str, working: Sequence[asyncio.Task[None]]) -> None:
        """Note whose queue it is, once nothing of the one before is bound: after a crash in between all of it would be given up again."""
        try:
            seq = self._driver.core.state.seq  # the turn that was told has been: it was due before this task
            while not await self._driver.settled(seq):
                await self._driver.next_commit()
            # The new queue's tokens may look like those that these still speak of.
            for task in (*working, *self._reading):
                task.cancel()
            await self._keep(orchestrator_id=orchestrator_id)
            self._link.queue = orchestrator_id
        finally:
            self._moving = None

    async def _keep(self, **said: str) -> None:
        """Keep what the orchestrator above has said over restarts."""
        try:
            await asyncio.to_thread(self._above.keep, **said)
        except OSError as error:
            log.warning(
                "what the orchestrator above says of itself cannot be kept: %s; the next Welcome says it again", error
            )

    def on_tasks(self, groups: list[work_queue_pb2.TaskGroup]) -> None:
        """Parents to expand or to relay. Inputs from other jobs of the orchestrator above are put into the payload first."""
        self._tell_acked()  # first: what has a verdict is bound no more when its name comes again
        for group in groups:
            if group.inputs:
                self._spawn(self._assign_with_inputs(group))
            else:
                self._assign(group, wire.assigned_in(group))

    def _assign(
        self,
        group: work_queue_pb2.TaskGroup,
        assigned: Sequence[wire.Assigned],
        age_ns: int = 0,
    ) -> None:
        """Hand tasks to the core. In a drain they came late, behind a commit above or their inputs: only what is bound here may have begun, as the core knows."""
        if not self._draining:
            self._bind(group, assigned, age_ns)
            return
        bound = [one for one in assigned if not self._turn_away(_token(group, one))]
        if bound:
            self._bind(group, bound, age_ns)
            self._give_back()  # in the same batch, so that nothing of it is placed before

    def _turn_away(self, token: Token) -> bool:
        """Give a task back unseen in a drain. False: there is none, or the task is bound here under an older token, and may have begun."""
        if not self._draining or token[:2] in self._driver.core.state.parents:
            return False
        self._report(token, _outcome(token, Ending.RELEASED, never_started=True))
        return True

    def _bind(
        self,
        group: work_queue_pb2.TaskGroup,
        assigned: Sequence[wire.Assigned],
        age_ns: int,
    ) -> None:
        template = wire.template_from_wire(group.template)
        # How long they may queue was for the queue above; of the total deadline what was left when they came, `age_ns` ago, counts. Where it differs
        # within a group the longest will do, because the orchestrator above keeps the deadline of each.
        left_ns = [one.remaining_ns for one in assigned if one.remaining_ns is not None]
        total_ns = max(max(left_ns) - age_ns, 1) if left_ns else None
        timeouts = replace(template.timeouts, queue_ns=None, total_ns=total_ns)
        tasks = [events.ParentTask(index, attempt, payload, used) for index, attempt, payload, _, used in assigned]
        failpoint("upstream.before_bind")
        self._sizer.arrived(len(tasks), 1.0, sum([len(one.payload) for one in assigned]))
        self._driver.post(
            events.ParentsAssigned(
                job_id=group.job_id,
                epoch=group.epoch,
                template=replace(template, timeouts=timeouts),
                tasks=tasks,
                since_epoch=group.since_epoch,
            )
        )

    async def _assign_with_inputs(self, group: work_queue_pb2.TaskGroup) -> None:
        """Fetch the inputs; what cannot be fetched now goes back and comes again."""
        came_ns = self._driver.clock.monotonic_ns()
        for one in wire.assigned_in(group):
            token = _token(group, one)
            if self._turn_away(token):
                continue
            try:
                payload = await self._inputs.resolve(group, one, self._link.channel)
            except Weather as error:
                log.warning("inputs of %s/%d cannot be fetched now: %s", *token[:2], error)
                self._report(token, _outcome(token, Ending.RELEASED, never_started=True))
            except (AntFarmError, ValueError, RecursionError) as error:
                failure = Failure(failure_class=FailureClass.PERMANENT, kind="inputs", message=str(error))
                self._report(token, _outcome(token, Ending.FAILED, failure))
            else:
                if self._answers_for(token):  # else it was revoked meanwhile: nobody would hear of its end
                    age_ns = self._driver.clock.monotonic_ns() - came_ns
                    self._assign(group, [one._replace(payload=payload)], age_ns)

    def on_revoke(self, tokens: list[Token], cause: str) -> None:
        """Parents to give up."""
        self._driver.post(events.ParentsRevoked(tokens=tokens, cause=cause))
        for token in tokens:
            self._report(token, _outcome(token, Ending.REVOKED))

    def on_drain(self, limit_s: float) -> None:
        """Take no more, give back what has not begun, and after the limit the rest."""
        self._end_drain()
        self._draining = True
        self._resize()
        self._give_back()
        self._drain_limit = asyncio.get_running_loop().call_later(limit_s, self._run_out)

    def _run_out(self) -> None:
        self._drain_over = True
        self._give_back()

    def _give_back(self) -> None:
        if self._draining:
            self._driver.post(events.ParentsDrained(over=self._drain_over))
        else:
            self._driver.post(events.ParentsDrained(over=False, cause="nobody is attached here who can run it"))

    def _end_drain(self) -> None:
        self._draining = self._drain_over = False
        if self._drain_limit is not None:
            self._drain_limit.cancel()

    # ---- from the core ----------------------------------------------------------------------------------------------

    def deliver(self, effect: effects.Effect) -> None:
        """Carry out an effect that concerns a parent."""
        match effect:
            case effects.ReadPlan():
                self._spawn(self._read_plan(effect))
            case effects.ReleaseParents():
                for token in effect.tokens:
                    outcome = _outcome(token, Ending.RELEASED, never_started=effect.never_started)
                    if token in effect.app_failures:
                        outcome["app_failures"] = effect.app_failures[token]
                    self._report(token, outcome)
            case effects.FailParent():
                self._report(effect.token, _outcome(effect.token, Ending.FAILED, effect.failure))
            case effects.ReportParents():
                reading = self._spawn(self._report_ends(effect))
                self._reading.add(reading)
                reading.add_done_callback(self._reading.discard)

    def _spawn(self, coroutine: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the orchestrator above cannot go on: %r", error, exc_info=error)

    async def _read_plan(self, effect: effects.ReadPlan) -> None:
        template: TaskTemplate | None = None
        payloads: list[bytes] = []
        failure: Failure | None = None
        try:
            content = await self._result_bytes(effect.result_seq, 0)
            template, payloads = parse_expansion(content)
        except ValueError as error:
            failure = Failure(
                failure_class=FailureClass.PERMANENT, kind="plan", message=f"the plan cannot be read: {error}"
            )
        except AntFarmError as error:
            failure = Failure(
                failure_class=FailureClass.INFRA, kind="plan", message=f"the plan cannot be fetched: {error}"
            )
        self._driver.post(
            events.ParentExpanded(
                parent=effect.parent, plan=effect.job, template=template, payloads=payloads, failure=failure
            )
        )

    async def _result_bytes(self, seq: int, index: int) -> bytes:
        """The encoded result that a record holds, from Storage where it is kept there."""
        result = (await self._ended_tasks(seq, [index]))[index].result
        if self._inputs.lacks(result):
            await (
                self._link.first_attached()
            )  # after a restart plans are read before the Welcome that says where Storage is
        while True:
            try:
                return await self._inputs.whole(result)
            except Weather as error:
                log.warning("a plan cannot be fetched from Storage yet: %s", error)
                await asyncio.sleep(STORAGE_RETRY_S)

    async def _ended_tasks(self, seq: int, indices: Sequence[int]) -> dict[int, records.EndedTask]:
        """Those of the tasks that the record ends; ValueError when it is gone."""
        for _, record in await self._driver.read_records([seq]):
            return records.ended_tasks(record, indices)
        raise ValueError("it was purged")

    async def _report_ends(self, effect: effects.ReportParents) -> None:
        try:
            ended = await self._ended_tasks(effect.seq, [end.local for end in effect.ends])
        except ValueError:
            return  # they came again under newer tokens meanwhile, and are done anew
        for token, local in effect.ends:
            task = ended[local]
            if task.state is TaskState.SUCCEEDED:
                outcome = _outcome(token, Ending.SUCCEEDED)
                outcome["result"] = task.result
                if task.outputs:
                    outcome["outputs"] = [wire.blob_to_wire(blob) for blob in task.outputs]
            else:
                outcome = _outcome(token, Ending.FAILED, task.failure)
            outcome["run_us"] = task.run_us
            self._report(token, outcome)
        run_us = sum(task.run_us for task in ended.values()) if effect.took_ns is None else effect.took_ns // 1_000
        self._sizer.ended(run_us, len(ended))
        self._resize()

    def _answers_for(self, token: Token) -> bool:
        """True until its end is told up-stream, or up-stream does not want it any more."""
        return token not in self._reported and self._link.holds(token)

    def _report(self, token: Token, outcome: OutcomeParts) -> None:
        if not self._answers_for(token):
            return
        failpoint("upstream.before_report")
        self._reported.add(token)
        self._link.report(token[0], token[2], outcome)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            self._look()

    def _look(self) -> None:
        """All that changes here by itself, told up-stream and to the core."""
        self._link.set_descendants(self._descendants())
        self._tell_acked()
        self._say_started()
        self._look_below()
        self._resize()
        if (self._draining or self._deserted) and self._driver.core.state.parents:
            self._give_back()  # what might have begun before, as after a restart, may have turned out not to have

    def _tell_acked(self) -> None:
        """Tell the core of final verdicts: the link then holds the token no longer."""
        acked = self._link.let_go(self._reported)
        if acked:
            failpoint("upstream.before_acked")
            self._reported.difference_update(acked)
            self._driver.post(events.ParentsAcked(tokens=acked))

    def _say_started(self) -> None:
        """A word up-stream of each parent that takes a while, once on each connection: who was restarted does not know what has begun here."""
        self._seqs.append(self._driver.durable_seq)
        if not self._link.attached:
            return
        said, self._said = self._said, {}
        for parent in self._driver.core.state.parents.values():
            if parent.seq > self._seqs[0]:
                break  # they stand in the order in which they were bound
            token = parent.token
            if token in self._reported:
                continue
            self._said[token] = None
            if token not in said:
                job_id, index, epoch, attempt = token
                self._link.running(report_queue_pb2.Running(job_id=job_id, epoch=epoch, index=index, attempt=attempt))

    # ---- how much it asks for ---------------------------------------------------------------------------------------

    def _look_below(self) -> None:
        """See how many slots there are to keep busy, and whether what runs in them takes long. Too much to do for each report."""
        now_ns = self._driver.clock.monotonic_ns()
        workers = self._driver.core.state.sessions.values()
        lease_ns = self._driver.core.config.lease_ns
        fit = self._fit(workers)
        if fit:
            self._fit_ns = now_ns
            self._see_largest(max(worker.resources["cpu"] for worker in fit), now_ns, lease_ns)
        self._deserted = now_ns - self._fit_ns > lease_ns
        # Whoever is away for a moment will be back, and an orchestrator with many reports under way asks for nothing for a moment: what it holds
        # tells what it has use for.
        known = [one for one in self._driver.core.state.workers.values() if not (one.lost or one.gone or one.draining)]
        own = [worker for worker in known if not worker.orchestrator]
        slots = sum(worker.slots for worker in own)
        below = sum(max(worker.window, int(worker.taken)) for worker in known if worker.orchestrator)
        self._below = slots + below
        self._expands = any(offers(workers, f"{task_type}:plan") for task_type in self._task_types)
        long_ago_ns = now_ns - LONG_NS
        running = (attempt for worker in own for attempt in worker.live.values() if attempt.started)
        self._long = 0 < slots <= sum(attempt.started_ns <= long_ago_ns for attempt in running)

    def _fit(self, workers: Iterable[Worker]) -> list[Worker]:
        """Those who can run or plan tasks of a type from above. An orchestrator below that asks for none has nobody itself."""
        wanted = {name for own in self._task_types for name in (own, f"{own}:plan")}
        return [
            worker
            for worker in workers
            if not wanted.isdisjoint(worker.task_types) and (worker.window or not worker.orchestrator)
        ]

    def _see_largest(self, cpus: float, now_ns: int, lease_ns: int) -> None:
        """Say up-stream what one task may ask for: not all slots together, and nothing that is only away for a moment is taken back."""
        if cpus < self._largest and now_ns - self._largest_ns <= lease_ns:
            return
        self._largest, self._largest_ns = cpus, now_ns
        self._link.set_resources({"cpu": cpus})

    def _resize(self) -> None:
        """Ask for as much as is of use: what is relayed keeps the slots below busy, of what is expanded a few at a time are plenty."""
        no_room = self._driver.core.state.disk_low  # clients here are refused then
        if self._draining or self._deserted or no_room:
            wanted = 0
        elif not self._below:  # whatever was learned, nobody is here now
            wanted = 2 * self._slots
        else:
            wanted = self._sizer.window(self._slots if self._expands else self._below, LONG_S if self._long else 0.0)
        if worth_a_frame(wanted, self._window):
            self._window = wanted
            self._link.set_window(wanted)

    def _descendants(self) -> tuple[str, ...]:
        """This orchestrator and all below it, as far as they are attached."""
        below = {
            name
            for worker in self._driver.core.state.sessions.values()
            if worker.orchestrator
            for name in worker.descendants
        }
        return (self._orchestrator_id, *sorted(below - {self._orchestrator_id}))


def _token(group: work_queue_pb2.TaskGroup, one: wire.Assigned) -> Token:
    return (group.job_id, one.index, group.epoch, one.attempt)


def _outcome(
    token: Token, ending: Ending, failure: Failure | None = None, *, never_started: bool = False
) -> OutcomeParts:
    _, index, _, attempt = token
    outcome = OutcomeParts(index=index, attempt=attempt, ending=ending.value)
    if never_started:
        outcome["never_started"] = True
    if ending is Ending.FAILED:
        unknown = Failure(failure_class=FailureClass.APP, kind="unknown", message="no failure was recorded")
        outcome["failure"] = wire.failure_to_wire(failure or unknown)
    return outcome


def parse_expansion(content: bytes) -> tuple[TaskTemplate, list[bytes]]:
    """Template and payloads of an encoded plan (docs/protocol.md, Plans). ValueError when it is none."""
    try:
        form = json.loads(content)["$expansion"]
        template = common_pb2.TaskTemplate.FromString(base64.b64decode(form["template"], validate=True))
        payloads = [base64.b64decode(text, validate=True) for text in form["payloads"]]
    except (ValueError, KeyError, TypeError, RecursionError, DecodeError) as error:
        raise ValueError(f"it is no expansion ({error!r}): let the plan return an af.Expansion") from None
    return wire.template_from_wire(template), payloads

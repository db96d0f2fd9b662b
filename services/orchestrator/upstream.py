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
from dataclasses import replace
from typing import Any

from google.protobuf.message import DecodeError

from antfarm import net, wire
from antfarm.errors import AntFarmError, Weather
from antfarm.failpoint import failpoint
from antfarm.link import Link, OutcomeParts, WorkerIdentity
from antfarm.link.session import Token
from antfarm.model import Ending, Failure, FailureClass, TaskState, TaskTemplate
from antfarm.v1 import common_pb2, report_queue_pb2, work_queue_pb2
from services.orchestrator.core import effects, events, records
from services.orchestrator.inputs import Inputs
from services.orchestrator.runtime.driver import Driver
from services.orchestrator.runtime.sessions import Sessions

log = logging.getLogger("antfarm.upstream")

ACK_POLL_S = 0.2
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
        tls: net.Tls | None,
    ) -> None:
        self._driver = driver
        self._sessions = sessions
        self._orchestrator_id = orchestrator_id
        self._inputs = Inputs(storage_address, tls)
        self._reported: set[Token] = set()
        """Tokens whose end was handed to the link and has no final verdict yet."""
        self._started: dict[tuple[str, int], tuple[int, int]] = {}
        """Parents that are durable here and have not ended -> epoch and attempt."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading: set[asyncio.Task[None]] = set()
        """Those of them that read what a parent ended with."""
        self._link = Link(
            addresses=[address],
            tls=tls,
            identity=WorkerIdentity(
                worker_id=f"orchestrator-{orchestrator_id}",
                slots=slots,
                window=2 * slots,
                task_types=task_types,
                host=platform.node(),
                orchestrator=True,
                descendants=(orchestrator_id,),
            ),
            handler=self,
        )
        for parent in driver.core.state.parents.values():
            self._link.hold((parent.job_id, parent.index, parent.epoch, parent.attempt))

    async def run(self) -> None:
        """Serve until cancelled. Raises what no further dial can cure."""
        acks = asyncio.create_task(self._watch_acks())
        try:
            await self._report_ended()
            await self._link.run()
        finally:
            acks.cancel()
            for task in self._tasks:
                task.cancel()

    async def _report_ended(self) -> None:
        """Report what ended in an earlier life before the first Hello, which then says so: else it would be taken from us where somebody else has it."""
        await self._driver.settled(self._driver.core.state.seq)
        if self._reading:
            await asyncio.wait(self._reading)

    # ---- from above -------------------------------------------------------------------------------------------------

    def on_welcome(self, welcome: work_queue_pb2.Welcome) -> None:
        """Attached. Storage is the parent's, unless the operator named another; who was restarted does not know what has started here."""
        if not self._inputs.storage_address and welcome.storage_address:
            self._inputs.storage_address = welcome.storage_address
            self._sessions.storage_address = welcome.storage_address
        for parent, (epoch, attempt) in self._started.items():
            self._say_started(parent, epoch, attempt)

    def on_tasks(self, groups: list[work_queue_pb2.TaskGroup]) -> None:
        """Parents to expand. Inputs from other jobs of the orchestrator above are put into the payload first."""
        for group in groups:
            if group.inputs:
                self._spawn(self._assign_with_inputs(group))
            else:
                for assignment in group.assignments:
                    self._assign(group, assignment, assignment.payload)

    def _assign(self, group: work_queue_pb2.TaskGroup, assignment: work_queue_pb2.Assignment, payload: bytes) -> None:
        template = wire.template_from_wire(group.template)
        # How long it may queue was for the queue above; of the total deadline what is left counts from here on.
        left_ns = wire.duration_from_wire(assignment.remaining) if assignment.HasField("remaining") else None
        timeouts = replace(template.timeouts, queue_ns=None, total_ns=max(left_ns, 1) if left_ns is not None else None)
        event = events.ParentAssigned(
            job_id=group.job_id,
            index=assignment.index,
            epoch=group.epoch,
            attempt=assignment.attempt,
            template=replace(template, timeouts=timeouts),
            payload=payload,
        )
        self._driver.post(event)

    async def _assign_with_inputs(self, group: work_queue_pb2.TaskGroup) -> None:
        """Fetch the inputs; what cannot be fetched now goes back and comes again."""
        for assignment in group.assignments:
            token = (group.job_id, assignment.index, group.epoch, assignment.attempt)
            try:
                payload = await self._inputs.resolve(group, assignment, self._link.channel)
            except Weather as error:
                log.warning("inputs of %s/%d cannot be fetched now: %s", *token[:2], error)
                self._report(token, _outcome(assignment, Ending.RELEASED, never_started=True))
            except (AntFarmError, ValueError, RecursionError) as error:
                failure = Failure(failure_class=FailureClass.PERMANENT, kind="inputs", message=str(error))
                self._report(token, _outcome(assignment, Ending.FAILED, failure))
            else:
                self._assign(group, assignment, payload)

    def on_revoke(self, tokens: list[Token], cause: str) -> None:
        """Parents to give up."""
        for token in tokens:
            job_id, index, epoch, attempt = token
            self._started.pop((job_id, index), None)
            self._driver.post(
                events.ParentRevoked(job_id=job_id, index=index, epoch=epoch, attempt=attempt, cause=cause)
            )
            self._report(token, _outcome(work_queue_pb2.Assignment(index=index, attempt=attempt), Ending.REVOKED))

    def on_drain(self, limit_s: float) -> None:
        """Take no more; what is expanded here goes on."""
        self._link.set_window(0)

    # ---- from the core ----------------------------------------------------------------------------------------------

    def deliver(self, effect: effects.Effect) -> None:
        """Carry out an effect that concerns a parent."""
        match effect:
            case effects.StartParent():
                failpoint("upstream.before_start")
                self._started[effect.parent] = effect.epoch, effect.attempt
                self._say_started(effect.parent, effect.epoch, effect.attempt)
            case effects.ReadPlan():
                self._spawn(self._read_plan(effect))
            case effects.ReportParent():
                self._started.pop(effect.parent, None)
                reading = self._spawn(self._report_parent(effect))
                self._reading.add(reading)
                reading.add_done_callback(self._reading.discard)

    def _say_started(self, parent: tuple[str, int], epoch: int, attempt: int) -> None:
        job_id, index = parent
        self._link.running(report_queue_pb2.Running(job_id=job_id, epoch=epoch, index=index, attempt=attempt))

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
            events.ParentExpanded(parent=effect.parent, template=template, payloads=payloads, failure=failure)
        )

    async def _result_bytes(self, seq: int, index: int) -> bytes:
        """The encoded result that a record holds, from Storage where it is kept there."""
        result = (await self._ended_task(seq, index)).result
        while True:
            try:
                return await self._inputs.whole(result)
            except Weather as error:
                log.warning("a plan cannot be fetched from Storage yet: %s", error)
                await asyncio.sleep(STORAGE_RETRY_S)

    async def _ended_task(self, seq: int, index: int) -> records.EndedTask:
        for _, record in await self._driver.read_records([seq]):
            if (ended := records.ended_task(record, index)) is not None:
                return ended
        raise ValueError("it was purged")

    async def _report_parent(self, effect: effects.ReportParent) -> None:
        job_id, index = effect.parent
        assignment = work_queue_pb2.Assignment(index=index, attempt=effect.attempt)
        token = (job_id, index, effect.epoch, effect.attempt)
        if effect.result_of is None:
            self._report(token, _outcome(assignment, Ending.FAILED, effect.failure))
            return
        _, local_index, seq = effect.result_of
        try:
            ended = await self._ended_task(seq, local_index)
        except ValueError:
            return  # it came again under a newer token meanwhile, and is done anew
        if ended.state is TaskState.SUCCEEDED:
            outcome = _outcome(assignment, Ending.SUCCEEDED)
            outcome["result"] = ended.result
            outcome["outputs"] = [wire.blob_to_wire(blob) for blob in ended.outputs]
        else:
            outcome = _outcome(assignment, Ending.FAILED, ended.failure)
        outcome["run_us"] = ended.run_us
        self._report(token, outcome)

    def _report(self, token: Token, outcome: OutcomeParts) -> None:
        if token in self._reported or not self._link.holds(token):
            return
        failpoint("upstream.before_report")
        self._reported.add(token)
        self._link.report(token[0], token[2], outcome)

    async def _watch_acks(self) -> None:
        """Tell the core of final verdicts: the link then holds the token no longer."""
        while True:
            await asyncio.sleep(ACK_POLL_S)
            self._link.set_descendants(self._descendants())
            for token in [token for token in self._reported if not self._link.holds(token)]:
                failpoint("upstream.before_acked")
                self._reported.discard(token)
                job_id, index, epoch, attempt = token
                self._driver.post(events.ParentAcked(job_id=job_id, index=index, epoch=epoch, attempt=attempt))

    def _descendants(self) -> tuple[str, ...]:
        """This orchestrator and all below it, as far as they are attached."""
        below = {
            name
            for worker in self._driver.core.state.sessions.values()
            if worker.orchestrator
            for name in worker.descendants
        }
        return (self._orchestrator_id, *sorted(below - {self._orchestrator_id}))


def _outcome(
    assignment: work_queue_pb2.Assignment,
    ending: Ending,
    failure: Failure | None = None,
    *,
    never_started: bool = False,
) -> OutcomeParts:
    outcome = OutcomeParts(
        index=assignment.index, attempt=assignment.attempt, ending=ending.value, never_started=never_started
    )
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

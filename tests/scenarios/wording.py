"""Records and effects in a line each, as scenarios show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import assert_never

from antfarm.model import SECOND_NS, Failure
from services.orchestrator.core import effects as e
from services.orchestrator.core import records as r
from services.orchestrator.core.effects import Effect
from services.orchestrator.core.records import Record

Token = tuple[str, int, int, int]


def token_text(token: Token) -> str:
    """job/index@epoch.attempt."""
    job_id, index, epoch, attempt = token
    return f"{job_id}/{index}@{epoch}.{attempt}"


def tokens_text(tokens: Iterable[Token]) -> str:
    """Several, with a space between."""
    return " ".join(map(token_text, tokens))


def seconds(duration_ns: int) -> str:
    """A duration as scenarios write it."""
    return f"{duration_ns / SECOND_NS:g}s"


def _failure_text(failure: Failure) -> str:
    return f"{failure.failure_class.name.lower()} failure, {failure.message}"


def record_text(record: Record, names: Mapping[int, str]) -> str:
    """A record; `names` are the ids of jobs by number."""
    match record:
        case r.EpochStarted():
            return f"epoch {record.epoch}" + (", history gap" if record.history_gap else "")
        case r.JobCreated():
            return f"job {record.job_id} created" + (f", retry of {record.retry_of}" if record.retry_of else "")
        case r.TasksAdded():
            return (
                f"{names[record.job]} gets tasks {record.first_index}..{record.first_index + len(record.payloads) - 1}"
            )
        case r.JobClosed():
            return f"{names[record.job]} closed"
        case r.JobPaused():
            return f"{names[record.job]} {'paused' if record.paused else 'resumed'}"
        case r.TasksEnded():
            return _ended_text(record, names[record.job])
        case r.AttemptFailed():
            token = (names[record.job], record.index, record.epoch, record.attempt)
            counts = f"app {record.app_failures}, crash {record.crashes}, infra {record.infra_failures}"
            counts += f", suspected {record.suspected}" if record.suspected else ""
            how = "lost" if record.lost else "failed"
            return f"{token_text(token)} {how} on {record.worker_id}: {_failure_text(record.failure)}; now {counts}"
        case r.AttemptIssued():
            token = (names[record.job], record.index, record.epoch, record.attempt)
            return f"{token_text(token)} issued to {record.worker_id}"
        case r.AttemptReturned():
            return f"{names[record.job]}/{record.index} returned, it never started"
        case r.JobCancelled():
            return f"{names[record.job]} cancelled: {record.cause}"
        case r.JobEnded():
            return f"{names[record.job]} ended"
        case r.JobPurged():
            return f"{names[record.job]} purged"
        case r.WorkerSeen():
            return f"{'orchestrator' if record.orchestrator else 'worker'} {record.worker_id} seen"
        case r.WorkerLeft():
            return f"worker {record.worker_id} left"
        case r.ParentBound():
            return f"parent {token_text((record.job_id, record.index, record.epoch, record.attempt))} bound"
        case r.ParentDone():
            return f"parent {record.job_id}/{record.index} done"
        case r.ParentsRelayed():
            here = f"{names[record.job]}/{record.local}"
            more = f" and {record.count - 1} more" if record.count > 1 else ""
            return f"parent {token_text((record.job_id, record.index, record.epoch, record.attempt))}{more} is {here}"
        case r.RelaysDone():
            return f"parents {' '.join(f'{record.job_id}/{index}' for index in record.indices)} done"
        case _:
            assert_never(record)


def _ended_text(record: r.TasksEnded, job_id: str) -> str:
    """All tasks of one record end in one state and for one reason, as far as the core goes."""
    tasks = " ".join(
        token_text((job_id, task.index, task.epoch, task.attempt)) if task.attempt else f"{job_id}/{task.index}"
        for task in record.ended
    )
    first = record.ended[0]
    by = f" by {record.worker_id}" if record.worker_id else ""
    why = f": {_failure_text(first.failure)}" if first.failure is not None else ""
    return f"{tasks} {first.state.name}{by}{why}"


def effect_text(effect: Effect, names: Mapping[int, str], reports: Mapping[int, Token]) -> str:
    """An effect, to whom it goes first; `reports` are the tokens of its worker's report numbers."""
    text = _effect_text(effect, names, reports)
    return f"{text} (after #{effect.after})" if effect.after else text


def _effect_text(effect: Effect, names: Mapping[int, str], reports: Mapping[int, Token]) -> str:
    match effect:
        case e.Reply():
            if effect.error is not None:
                return f"client <- {type(effect.error).__name__}: {effect.error}"
            return "client <- " + ("existed" if effect.existed else "done")
        case e.Welcome():
            durations = f"lease {seconds(effect.lease_ns)}, heartbeat {seconds(effect.heartbeat_ns)}"
            return f"{_to(effect)} welcome to epoch {effect.epoch}, {durations}{_stop(effect.revoked)}"
        case e.Refuse():
            return f"{_to(effect)} {type(effect.error).__name__}: {effect.error}"
        case e.SendTasks():
            tasks = [
                token_text((names[number], task.index, effect.epoch, task.attempt)) + _left(task.remaining_ns)
                for number, tasks in effect.groups
                for task in tasks
            ]
            return f"{_to(effect)} tasks {' '.join(tasks)}"
        case e.SendRevoke():
            return f"{_to(effect)} revoke {tokens_text(effect.tokens)}: {effect.cause}"
        case e.SendDrain():
            return f"{_to(effect)} drain within {seconds(effect.limit_ns)}"
        case e.AckHeartbeat():
            return f"{_to(effect)} beat {effect.number} heard{_stop(effect.revoked)}"
        case e.SendVerdicts():
            tokens = [reports[number] for number in effect.report_nos]
            return f"{_to(effect)} {effect.code.name} {tokens_text(tokens)}"
        case e.ReadPlan():
            return f"read plan of {effect.parent[0]}/{effect.parent[1]} in #{effect.result_seq}"
        case e.ReportParents():
            ends = " ".join(f"{token_text(end.token)} as task {end.local}" for end in effect.ends)
            return f"up <- {ends} of #{effect.seq}"
        case e.FailParent():
            return f"up <- {token_text(effect.token)} FAILED: {_failure_text(effect.failure)}"
        case e.Audit():
            return f"audit: {effect.text}"
        case _:
            assert_never(effect)


def _to(
    effect: e.Welcome | e.Refuse | e.SendTasks | e.SendRevoke | e.SendDrain | e.AckHeartbeat | e.SendVerdicts,
) -> str:
    return f"{effect.session} <-"


def _stop(tokens: Iterable[Token]) -> str:
    text = tokens_text(tokens)
    return f"; stop {text}" if text else ""


def _left(remaining_ns: int | None) -> str:
    return "" if remaining_ns is None else f" ({seconds(round(remaining_ns, -7))} left)"

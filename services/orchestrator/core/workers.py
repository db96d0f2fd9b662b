"""Workers: attach, beat, grant credit, leave, fall silent. Their word on what they hold is reconciled with ours.

State over commands: every hello and every heartbeat carries the full held set, so that any lost message is repaired by the next (the set is
bounded by the worker's window, which makes a digest superfluous).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from antfarm import errors
from antfarm.model import PROTOCOL_MAJOR, TaskState, WorkerId
from services.orchestrator.core import events, health, records
from services.orchestrator.core.effects import AckHeartbeat, Audit, Refuse, Reply, SendDrain, Welcome
from services.orchestrator.core.events import HeldToken
from services.orchestrator.core.limits import EPOCH_SEEN_MAX, check_resources
from services.orchestrator.core.reports import Judgement, adopt, give_back, judge, lose, remember_revoked
from services.orchestrator.core.state import Past, Worker
from services.orchestrator.core.turn import Turn


def attach(turn: Turn, event: events.Attach) -> bool:
    """A worker said hello: welcome it under a session, or refuse it. True when it is welcome."""
    state = turn.state
    worker = state.workers.get(event.worker_id)
    if event.queue not in ("", turn.config.orchestrator_id):  # tokens and epochs of another queue mean nothing here
        event = replace(event, max_epoch_seen=0, held=(), unacked=())
    refusal = _refusal(turn, worker, event)
    if refusal is not None:
        turn.effect(Audit(text=f"refused: worker {event.worker_id}: {refusal}"))
        turn.effect(Refuse(session=event.session, error=refusal))
        return False
    if worker is None:
        worker = state.workers[event.worker_id] = Worker(event.worker_id)
    elif worker.session is not None:
        state.sessions.pop(worker.session, None)
        turn.effect(
            Refuse(session=worker.session, error=errors.Unavailable("the worker attached anew on another stream"))
        )
    if event.max_epoch_seen > state.epoch:
        turn.record(records.EpochStarted(epoch=event.max_epoch_seen + 1, wall_ns=turn.wall_ns, history_gap=True))
        turn.effect(
            Audit(text=f"history gap: {event.worker_id} has seen epoch {event.max_epoch_seen}; now {state.epoch}")
        )
    another = worker.incarnation != event.incarnation
    previous_live = list(worker.live.values()) if another else []
    _take_over(turn, worker, event)
    unacked = set(event.unacked)
    held = dict.fromkeys((*event.held, *event.unacked))
    # A hello without a number may be an old one, of a connection that was given up: the first heartbeat says what never arrived.
    revoked = _reconcile(turn, worker, held, unacked, frames_received=None, spare=another or event.dial == 0)
    # A new incarnation under the same identity proves that the old process is dead: what it ran is lost.
    for attempt in previous_live:
        if attempt.token not in held:
            lose(turn, attempt, f"worker {worker.worker_id} was restarted")
    if another:
        worker.stopping = {token: 0 for token in worker.stopping if token in held}
        health.probe_soon(turn, worker)
    if event.worker_id not in state.seen:
        turn.record(records.WorkerSeen(worker_id=event.worker_id, orchestrator=event.orchestrator))
    state.awaited.discard(event.worker_id)
    # A new process is not asked: it was started after the drain. One that runs what it held before is the old one, which was lost meanwhile.
    if worker.draining and (worker.orchestrator or not another or not unacked.issuperset(event.held)):
        turn.effect(SendDrain(session=event.session, limit_ns=max(worker.drain_until_ns - turn.now, 0)))
    turn.effect(
        Welcome(
            session=event.session,
            after=state.seq,
            epoch=state.epoch,
            lease_ns=worker.lease_ns,
            heartbeat_ns=turn.config.heartbeat_ns,
            revoked=revoked,
        )
    )
    return True


def _refusal(turn: Turn, worker: Worker | None, event: events.Attach) -> errors.AntFarmError | None:
    if event.protocol_major != PROTOCOL_MAJOR:
        return errors.ProtocolUnsupported(
            f"this orchestrator speaks protocol {PROTOCOL_MAJOR}, the worker speaks {event.protocol_major}: install matching versions"
        )
    if event.max_epoch_seen > max(EPOCH_SEEN_MAX, turn.state.epoch):  # our own epoch is always believed
        return errors.InvalidArgument(f"max_epoch_seen {event.max_epoch_seen} cannot be: no epoch is that high")
    if turn.config.orchestrator_id and turn.config.orchestrator_id in event.descendants:
        return errors.Cycle(f"{event.worker_id} stands above this orchestrator already: name another --upstream")
    try:
        check_resources(event.resources)
    except errors.InvalidArgument as error:
        return error
    if worker is not None and event.incarnation in worker.former:
        return errors.IncarnationLost(
            f"another process of worker {worker.worker_id} has taken its place: attach as a new incarnation"
        )
    if worker is None:
        return None
    if worker.incarnation == event.incarnation:
        if worker.lost:
            return errors.IncarnationLost(
                f"worker {worker.worker_id} was silent beyond its lease: attach as a new incarnation"
            )
        if 0 < event.dial <= worker.dial:
            # What it says was true before the session that it would end: that one's assignments are not in it.
            return errors.Unavailable(f"worker {worker.worker_id} has attached on a newer connection: this one is late")
        return None
    if worker.session is not None and not worker.suspect and not worker.lost:
        return errors.WorkerIdInUse(
            f"a worker {worker.worker_id} is attached already: give this one another --worker-id"
        )
    return None


def _take_over(turn: Turn, worker: Worker, event: events.Attach) -> None:
    if worker.incarnation not in (b"", event.incarnation):
        worker.former.append(worker.incarnation)
    worker.incarnation = event.incarnation
    worker.dial = event.dial
    worker.session = event.session
    worker.slots = event.slots
    worker.window = event.window
    worker.task_types = event.task_types
    worker.labels = event.labels
    worker.resources = {"cpu": float(event.slots), **event.resources}
    worker.descendants = event.descendants
    worker.orchestrator = event.orchestrator
    worker.host = event.host
    worker.software = event.software
    worker.heard(turn.now)
    worker.lease_ns = turn.config.lease_of(orchestrator=event.orchestrator)
    worker.lost = worker.gone = False
    worker.frames = 0
    worker.lanes.clear()
    worker.spared.clear()
    worker.virtual_time = 0.0
    turn.state.sessions[event.session] = worker


def _reconcile(
    turn: Turn,
    worker: Worker,
    held: Collection[HeldToken],
    unacked: Collection[HeldToken] = (),
    *,
    frames_received: int | None,
    spare: bool = False,
) -> list[HeldToken]:
    """Make what a worker says it holds and what we believe agree. Returns what it should stop and forget.

    Args:
        unacked: those of the held ones that have finished: their reports come next, and are judged then.
        frames_received: assignments in later frames are still on their way; None: the stream is new, none is.
        spare: leave attempts that are not held alone: the caller knows better what became of them, or will hear it.
    """
    beats = frames_received is not None
    revoked = [token for token in held if not _may_hold(turn, worker, token, finished=token in unacked, beats=beats)]
    for token in revoked:
        remember_revoked(turn, worker, token)
    if not spare:
        worker.stopping = {
            token: frame
            for token, frame in worker.stopping.items()
            if token in held or (frames_received is not None and frame > frames_received)
        }
    worker.stopping.update(dict.fromkeys(revoked, 0))
    ghosts = [
        attempt
        for attempt in worker.live.values()
        if not spare and (frames_received is None or attempt.frame <= frames_received) and attempt.token not in held
    ]
    for attempt in ghosts:
        # The incarnation that it was sent to does not have it, and would have it until a final verdict: it never arrived.
        give_back(turn, attempt, Past.LOST, never_started=True)
    if frames_received is None:  # numbers of frames of the stream before say nothing on this one
        for attempt in worker.live.values():
            attempt.frame = 0
        worker.stopping = dict.fromkeys(worker.stopping, 0)
    return revoked


def _may_hold(turn: Turn, worker: Worker, token: HeldToken, *, finished: bool, beats: bool) -> bool:
    """True when the worker should go on with what it holds; a token of an earlier epoch is adopted on the way.

    finished: its report comes next, as a hello says. A heartbeat (`beats`) does not say it.
    """
    job_id, index, epoch, number = token
    job = turn.state.by_id.get(job_id)
    if job is None or not 0 <= index < job.task_count:
        return False
    match judge(turn, worker, job, epoch, index, number):
        case Judgement.LIVE:
            return True
        case Judgement.DUPLICATE:
            # Its report will be told that it has counted; but a task that was given up may have been so without a report, and run on.
            given_up = job.states[index] == TaskState.DEAD_LETTER or (beats and token in worker.stopping)
            return (finished or beats) and not given_up
        case Judgement.ADOPT:
            adopt(turn, worker, job, index, epoch, number)
            return True
        case Judgement.LATE:
            if finished:
                worker.spared.add(token)
            if index in job.live:
                # A newer attempt runs elsewhere. Stop this one, unless nothing is left to stop and its late report may count.
                return token in worker.spared
            note = job.note(index)
            if (epoch, number) >= (note.epoch, note.attempt):
                adopt(turn, worker, job, index, epoch, number)  # nobody has taken the task since: no need to repeat it
            elif not finished:
                worker.stopping[token] = 0  # it runs on beside what is live
            return True
        case Judgement.SUPERSEDED | Judgement.FENCED | Judgement.FOREIGN:
            return False


def heartbeat(turn: Turn, event: events.Heartbeat) -> None:
    """A worker lives; what it holds is reconciled."""
    worker = turn.state.sessions.get(event.session)
    if worker is None:
        return
    worker.heard(turn.now)
    revoked = _reconcile(turn, worker, dict.fromkeys(event.held), frames_received=event.frames_received)
    # What makes an attempt unwanted may not be durable yet, and the worker forgets its report for good.
    after = turn.state.seq if revoked else 0
    turn.effect(AckHeartbeat(session=event.session, number=event.number, revoked=revoked, after=after))


def credit(turn: Turn, event: events.Credit) -> None:
    """A worker sets its window."""
    worker = turn.state.sessions.get(event.session)
    if worker is not None:
        worker.heard(turn.now)
        worker.window = event.window


def detach(turn: Turn, event: events.Detach) -> None:
    """A stream broke. That proves nothing: the lease goes on, only no work is sent."""
    worker = turn.state.sessions.pop(event.session, None)
    if worker is not None:
        worker.session = None


def goodbye(turn: Turn, event: events.Goodbye) -> None:
    """A worker left, holding nothing: whatever we believed it held goes back at no cost."""
    worker = turn.state.sessions.pop(event.session, None)
    if worker is None:
        return
    worker.session = None
    worker.gone = True
    worker.stopping.clear()
    for attempt in list(worker.live.values()):
        give_back(turn, attempt, Past.LOST, never_started=True)
    _forget(turn, worker.worker_id)


def _forget(turn: Turn, worker_id: WorkerId) -> None:
    if worker_id in turn.state.seen:
        turn.record(records.WorkerLeft(worker_id=worker_id))
    turn.state.awaited.discard(worker_id)


def drain(turn: Turn, event: events.DrainWorker) -> None:
    """An operator drains a worker, or lets it work again."""
    worker = turn.state.workers.get(event.worker_id)
    if worker is None:
        raise errors.WorkerNotFound(f"no worker {event.worker_id!r} here: `antfarm worker list` shows those that are")
    drains, worker.drain_limit_ns = worker.draining, event.limit_ns if event.drain else None
    worker.drain_until_ns = turn.now + event.limit_ns
    if not event.drain:
        health.trust(turn, worker, "somebody said so")
        if drains and worker.session is not None:
            # Told by a welcome that no drain follows: a frame for it would be lost on workers that do not know it.
            turn.state.sessions.pop(worker.session, None)
            turn.effect(Refuse(session=worker.session, error=errors.Unavailable("the drain is over: attach again")))
            worker.session = None
    if event.drain and worker.session is not None:
        turn.effect(SendDrain(session=worker.session, limit_ns=event.limit_ns))
    turn.effect(Reply(request=event.request, after=0))


def sweep(turn: Turn) -> None:
    """Look at every lease. Suspects get no new work; an expired lease loses the worker and re-queues what it held."""
    suspect_ns = 2 * turn.config.heartbeat_ns
    for worker in list(turn.state.workers.values()):
        if worker.lost or worker.gone:
            continue
        silent_ns = turn.now - worker.heard_ns
        if silent_ns > worker.lease_ns:
            _expire(turn, worker, silent_ns)
        elif silent_ns > suspect_ns:
            worker.suspect = True
    if len(turn.state.workers) > turn.config.workers_known_max:
        _forget_oldest(turn)


def _forget_oldest(turn: Turn) -> None:
    known = turn.state.workers
    away = [worker.worker_id for worker in known.values() if worker.lost or worker.gone]
    for worker_id in away[: len(known) - turn.config.workers_known_max]:
        del known[worker_id]
        turn.state.quarantined.pop(worker_id, None)


def _expire(turn: Turn, worker: Worker, silent_ns: int) -> None:
    worker.lost = True
    cause = f"worker {worker.worker_id} was silent for {silent_ns / 1e9:.1f} s"
    turn.effect(Audit(text=f"lost: {cause}, {len(worker.live)} attempts"))
    if worker.session is not None:
        turn.state.sessions.pop(worker.session, None)
        turn.effect(
            Refuse(session=worker.session, error=errors.IncarnationLost(f"{cause}: attach as a new incarnation"))
        )
        worker.session = None
    for attempt in list(worker.live.values()):
        lose(turn, attempt, cause)
    worker.stopping.clear()  # after the losses: what dies beside them is no proof
    _forget(turn, worker.worker_id)


def offers(workers: Iterable[Worker], task_type: str) -> bool:
    """True when an attached worker can run the type."""
    return any(task_type in worker.task_types for worker in workers if worker.session is not None)

"""Scenarios: scripts that a person can read, and what the core makes of them.

A script has comments (`#`), commands (at the start of a line) and below each command, indented, all that came of it: records with their numbers, then
effects in the order in which they leave, each with the record that it waits for. Workers in it hold what they were sent until a final verdict, as the
protocol says, and name it in every hello and heartbeat. Invariants are checked after every step, and after every command that replay of the journal
gives the same state.

    create JOB N [open] [once] [fence] [twice] [type=t] [retries=N] [backoff=10s] [priority=N] [limit=NAME:N] [each=JOB,OFFSET] [all=JOB]
                 [queue=5s] [total=5s] [run=5s] [max_failures=N]
    append JOB FIRST N [close]    close JOB    cancel JOB [INDEX]    pause JOB    resume JOB    retry JOB NEW    purge JOB    show JOB
    attach W [new] [reborn] [orchestrator] [slots=N] [window=N] [types=t,u] [forgets=TASK,..] [finished=TASK,..] [seen=EPOCH] [protocol=N]
             (finished: their reports are still to come; new: the same process under a new incarnation; reborn: another process, which holds nothing)
    detach W    goodbye W    credit W N    beat W [frames=N] [forgets=TASK,..]    started W TASK    drain W 30s    undrain W
    report W TASK OUTCOME [TASK OUTCOME ..]
             (succeeded, failed, permanent, crash, infra, timeout, released: unstarted, stopped: started)
    tick 250ms    wait 10s [beating=W,..]    restart [after=5s]    journal slow    journal synced
    parent TASK [type=t]    planned JOB/INDEX N [type=t]    unplanned JOB/INDEX    parent-acked TASK    parent-revoked TASK

TASK is JOB/INDEX, the attempt that the worker holds, or JOB/INDEX@EPOCH.ATTEMPT. `wait` says nothing of heartbeats that stop nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from orchestrator_harness import Harness, append_event, create_event, durable_parts, template
from wording import Token, effect_text, record_text, token_text

from antfarm.model import (
    SECOND_NS,
    ConcurrencyLimit,
    Dependency,
    DependencyKind,
    Ending,
    Failure,
    FailureClass,
    JobId,
    RetryPolicy,
    SessionId,
    TaskState,
    Timeouts,
    WorkerId,
)
from services.orchestrator.core import effects, events, records
from services.orchestrator.core.effects import Effect

SWEEP_NS = SECOND_NS // 4
_OUTCOMES = {
    "succeeded": (Ending.SUCCEEDED, None),
    "failed": (Ending.FAILED, FailureClass.APP),
    "permanent": (Ending.FAILED, FailureClass.PERMANENT),
    "crash": (Ending.FAILED, FailureClass.CRASH),
    "infra": (Ending.FAILED, FailureClass.INFRA),
    "timeout": (Ending.TIMED_OUT, FailureClass.APP),
    "released": (Ending.RELEASED, None),
    "stopped": (Ending.REVOKED, None),
}


def duration(text: str) -> int:
    """'250ms' or '10s' in nanoseconds."""
    match = re.fullmatch(r"([\d.]+)(ms|s)", text)
    assert match is not None, f"{text!r} is no duration"
    return int(float(match[1]) * (SECOND_NS if match[2] == "s" else SECOND_NS // 1000))


class Peer:
    """A worker process: what it holds, and what it has reported."""

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        self.session = SessionId("")
        self.sessions = 0
        self.incarnation = 0
        self.hello: dict[str, str] = {}
        self.frames = 0
        self.beats = 0
        self.held: dict[Token, None] = {}
        self.reports: dict[int, Token] = {}

    def hears(self, effect: Effect, names: dict[int, str]) -> None:
        """What it makes of a message."""
        match effect:
            case effects.SendTasks():
                self.frames += 1
                for number, tasks in effect.groups:
                    self.held.update({(names[number], task.index, effect.epoch, task.attempt): None for task in tasks})
            case effects.Welcome() | effects.AckHeartbeat():
                self.forget(effect.revoked)
            case effects.SendVerdicts() if effect.code.final:
                self.forget([self.reports[number] for number in effect.report_nos])

    def forget(self, tokens: Sequence[Token]) -> None:
        """It answers for these no more."""
        for token in tokens:
            self.held.pop(token, None)

    def token(self, text: str) -> Token:
        """The token that a script means."""
        job_id, index, epoch, attempt = _task(text)
        if epoch:
            return job_id, index, epoch, attempt
        found = [token for token in self.held if token[:2] == (job_id, index)]
        assert len(found) == 1, f"{self.worker_id} holds {found} of {text}"
        return found[0]


def _task(text: str) -> Token:
    match = re.fullmatch(r"(.+)/(\d+)(?:@(\d+)\.(\d+))?", text)
    assert match is not None, f"{text!r} is no task"
    return match[1], int(match[2]), int(match[3] or 0), int(match[4] or 0)


class Scenario:
    """A farm that does what a script says. Each command is a method that begins with `do_`."""

    def __init__(self) -> None:
        self.farm = Harness()
        self.peers: dict[str, Peer] = {}
        self.names: dict[int, str] = {}
        self.requests = 0
        self.lines: list[str] = []
        self._told = len(self.farm.records)
        self._waiting: list[Effect] = []

    def run(self, command: str) -> list[str]:
        """Carry out a command; what came of it."""
        self.lines = []
        word, *arguments = command.split()
        plain = [argument for argument in arguments if "=" not in argument]
        named = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
        getattr(self, "do_" + word.replace("-", "_"))(*plain, **named)
        self._tell()
        if not self.farm.pending:
            self._check_replay()
        return self.lines

    def _check_replay(self) -> None:
        core = self.farm._make_core()
        for seq, record in self.farm.journal.replay():
            core.replay(seq, record)
        assert durable_parts(core.state) == durable_parts(self.farm.state), "replay gives the same state"

    # ---- what came of it --------------------------------------------------------------------------------------------

    def _tell(self, prefix: str = "", *, beats: bool = True) -> None:
        """Put all that was recorded and wanted since the last time into lines, and deliver it."""
        made = self.farm.records[self._told :]
        self._told += len(made)
        for seq, record in enumerate(made, self.farm.state.seq - len(made) + 1):
            if isinstance(record, records.JobCreated):
                self.names[record.job] = record.job_id
            self.lines.append(f"{prefix}#{seq} {record_text(record, self.names)}")
        sent, self.farm.sent = self.farm.sent, []
        for effect in sent:
            if beats or not isinstance(effect, effects.AckHeartbeat) or effect.revoked:
                self.lines.append(prefix + self._text(effect))
            self._deliver(effect)
        for effect in self.farm.held:
            if not any(effect is known for known in self._waiting):
                self.lines.append(f"{prefix}(waits) {self._text(effect)}")
        self._waiting = list(self.farm.held)

    def _text(self, effect: Effect) -> str:
        peer = self._peer_of(effect)
        return effect_text(effect, self.names, peer.reports if peer is not None else {})

    def _peer_of(self, effect: Effect) -> Peer | None:
        return self.peers.get(getattr(effect, "session", "").rpartition(".")[0])

    def _deliver(self, effect: Effect) -> None:
        peer = self._peer_of(effect)
        if peer is not None and peer.session == effect.session:  # type: ignore[union-attr]
            peer.hears(effect, self.names)

    # ---- clients ------------------------------------------------------------------------------------------------------

    def _request(self) -> int:
        self.requests += 1
        return self.requests

    def do_create(self, job_id: str, count: str, *flags: str, **options: str) -> None:
        fields: dict[str, Any] = {
            "at_most_once": "once" in flags,
            "fence_late_results": "fence" in flags,
            "idempotent": "twice" in flags,
        }
        fields |= {name: int(options[name]) for name in ("priority", "max_failures") if name in options}
        pause_ns = duration(options.get("backoff", "10s"))
        fields["retry"] = RetryPolicy(
            max_attempts=int(options.get("retries", "0")) + 1, backoff_initial_ns=pause_ns, backoff_max_ns=8 * pause_ns
        )
        fields["timeouts"] = Timeouts(
            **{f"{name}_ns": duration(options[name]) for name in ("queue", "total", "run") if name in options}
        )
        if "limit" in options:
            name, _, most = options["limit"].partition(":")
            fields["limit"] = ConcurrencyLimit(name=name, max_active=int(most))
        if "each" in options:
            other, _, offset = options["each"].partition(",")
            needs = Dependency(job_id=JobId(other), kind=DependencyKind.EACH, offset=int(offset or 0))
            fields["dependencies"] = (needs,)
        if "all" in options:
            fields["dependencies"] = (Dependency(job_id=JobId(options["all"]), kind=DependencyKind.ALL),)
        fields["type"] = options.get("type", "t")
        self.farm.do(create_event(self._request(), job_id, int(count), close="open" not in flags, **fields))

    def do_append(self, job_id: str, first: str, count: str, *flags: str) -> None:
        self.farm.do(append_event(self._request(), job_id, int(first), int(count), close="close" in flags))

    def do_close(self, job_id: str) -> None:
        self.farm.do(events.CloseJob(request=self._request(), job_id=JobId(job_id)))

    def do_cancel(self, job_id: str, index: str = "") -> None:
        number, cause = self._request(), "no longer wanted"
        if index:
            self.farm.do(events.CancelTask(request=number, job_id=JobId(job_id), index=int(index), cause=cause))
        else:
            self.farm.do(events.CancelJob(request=number, job_id=JobId(job_id), cause=cause))

    def do_pause(self, job_id: str) -> None:
        self.farm.do(events.PauseJob(request=self._request(), job_id=JobId(job_id), paused=True))

    def do_resume(self, job_id: str) -> None:
        self.farm.do(events.PauseJob(request=self._request(), job_id=JobId(job_id), paused=False))

    def do_retry(self, job_id: str, new: str) -> None:
        self.farm.do(events.RetryJob(request=self._request(), job_id=JobId(job_id), new_job_id=JobId(new)))

    def do_purge(self, job_id: str) -> None:
        self.farm.do(events.PurgeJob(request=self._request(), job_id=JobId(job_id)))

    def do_show(self, job_id: str) -> None:
        job = self.farm.job(job_id)
        self.lines.append(f"{job_id} {job.state.name}")
        for index, state in enumerate(job.states):
            line = f"{job_id}/{index} {TaskState(state).name}"
            if (attempt := job.live.get(index)) is not None:
                line += f" {token_text(attempt.token)} on {attempt.worker.worker_id}"
            if winner := job.winners[index]:
                line += f" by {token_text((job_id, index, winner >> 32, winner & 0xFFFFFFFF))}"
            self.lines.append(line)

    # ---- workers ------------------------------------------------------------------------------------------------------

    def do_attach(self, name: str, *flags: str, forgets: str = "", finished: str = "", **options: str) -> None:
        peer = self.peers.setdefault(name, Peer(name))
        if "reborn" in flags:
            peer.held.clear()
        if not peer.incarnation or {"new", "reborn"} & set(flags):
            peer.incarnation += 1
        self._forgets(peer, forgets)
        peer.hello = {**peer.hello, **options}
        peer.sessions += 1
        peer.frames = 0
        peer.session = SessionId(f"{name}.{peer.sessions}")
        slots = int(peer.hello.get("slots", "1"))
        self.farm.do(
            events.Attach(
                session=peer.session,
                worker_id=WorkerId(name),
                incarnation=b"%d" % peer.incarnation,
                protocol_major=int(options.get("protocol", "1")),
                slots=slots,
                window=int(peer.hello.get("window", slots)),
                task_types=frozenset(peer.hello.get("types", "t").split(",")),
                max_epoch_seen=int(options.get("seen", "0")),
                dial=peer.sessions,
                held=list(peer.held),
                unacked=[peer.token(task) for task in finished.split(",") if task],
                orchestrator="orchestrator" in flags,
            )
        )

    def _forgets(self, peer: Peer, tasks: str) -> None:
        peer.forget([peer.token(task) for task in tasks.split(",") if task])

    def do_detach(self, name: str) -> None:
        self.farm.do(events.Detach(session=self.peers[name].session))

    def do_goodbye(self, name: str) -> None:
        self.farm.do(events.Goodbye(session=self.peers[name].session))

    def do_credit(self, name: str, window: str) -> None:
        self.farm.do(events.Credit(session=self.peers[name].session, window=int(window)))

    def do_beat(self, name: str, *, frames: str = "", forgets: str = "") -> None:
        peer = self.peers[name]
        self._forgets(peer, forgets)
        self._beat(peer, int(frames) if frames else peer.frames)

    def _beat(self, peer: Peer, frames: int) -> None:
        peer.beats += 1
        self.farm.do(
            events.Heartbeat(session=peer.session, number=peer.beats, frames_received=frames, held=list(peer.held))
        )

    def do_started(self, name: str, task: str) -> None:
        peer = self.peers[name]
        job_id, index, epoch, attempt = peer.token(task)
        self.farm.do(
            events.Running(
                session=peer.session, job_id=job_id, index=index, epoch=epoch, attempt=attempt, running_for_ns=0
            )
        )

    def do_report(self, name: str, *pairs: str) -> None:
        peer = self.peers[name]
        made: dict[tuple[str, int], list[events.Outcome]] = {}
        for task, word in zip(pairs[::2], pairs[1::2], strict=True):
            token = peer.token(task)
            number = len(peer.reports) + 1
            peer.reports[number] = token
            made.setdefault((token[0], token[2]), []).append(_outcome(number, token, word))
        for (job_id, epoch), outcomes in made.items():
            self.farm.do(events.Outcomes(session=peer.session, job_id=job_id, epoch=epoch, outcomes=outcomes))

    def do_drain(self, name: str, limit: str) -> None:
        self._drain(name, drain=True, limit_ns=duration(limit))

    def do_undrain(self, name: str) -> None:
        self._drain(name, drain=False, limit_ns=0)

    def _drain(self, name: str, *, drain: bool, limit_ns: int) -> None:
        number = self._request()
        self.farm.do(events.DrainWorker(request=number, worker_id=WorkerId(name), drain=drain, limit_ns=limit_ns))

    # ---- the orchestrator above ----------------------------------------------------------------------------------------

    def do_parent(self, task: str, *, type: str = "t") -> None:
        job_id, index, epoch, attempt = _task(task)
        self.farm.do(
            events.ParentsAssigned(
                job_id=job_id,
                epoch=epoch,
                template=template(type),
                tasks=[events.ParentTask(index, attempt, b"request")],
            )
        )

    def do_planned(self, task: str, count: str, *, type: str = "t") -> None:
        payloads = [b"%d" % i for i in range(int(count))]
        self._expanded(task, template=template(type), payloads=payloads, failure=None)

    def do_unplanned(self, task: str) -> None:
        failure = Failure(failure_class=FailureClass.PERMANENT, kind="plan", message="the plan cannot be read")
        self._expanded(task, template=None, payloads=[], failure=failure)

    def _expanded(self, task: str, **fields: Any) -> None:
        key = _task(task)[:2]
        plan = self.farm.state.by_id.get("up/{}/{}/plan".format(*key))
        self.farm.do(events.ParentExpanded(parent=key, plan=plan.number if plan is not None else 0, **fields))

    def do_parent_acked(self, task: str) -> None:
        self.farm.do(events.ParentsAcked(tokens=[_task(task)]))

    def do_parent_revoked(self, task: str) -> None:
        self.farm.do(events.ParentsRevoked(tokens=[_task(task)], cause="revoked up-stream"))

    # ---- time and the journal ------------------------------------------------------------------------------------------

    def do_tick(self, time: str) -> None:
        self.farm.now += duration(time)
        self.farm.do(events.Tick(wall_ns=self.farm.wall_ns))

    def do_wait(self, time: str, *, beating: str = "") -> None:
        """A sweep every quarter of a second; the beating workers beat each heartbeat. Lines begin with the time since the command."""
        began = self.farm.now
        beat_at = {name: began for name in beating.split(",") if name}
        for step in range(1, duration(time) // SWEEP_NS + 1):
            self.farm.now = began + step * SWEEP_NS
            prefix = f"+{step * SWEEP_NS / SECOND_NS:g}s "
            for name, at in beat_at.items():
                if self.farm.now >= at:
                    beat_at[name] = at + self.farm.config.heartbeat_ns
                    self._beat(self.peers[name], self.peers[name].frames)
            self.farm.do(events.Tick(wall_ns=self.farm.wall_ns))
            self._tell(prefix, beats=False)

    def do_restart(self, *, after: str = "0s") -> None:
        """SIGKILL and start: sessions are gone, and all that was not synced."""
        self._waiting = []
        self.farm.restart(after_s=duration(after) / SECOND_NS)

    def do_journal(self, how: str) -> None:
        self.farm.autocommit = how == "synced"
        if self.farm.autocommit:
            self.farm.commit()


def _outcome(number: int, token: Token, word: str) -> events.Outcome:
    ending, failure_class = _OUTCOMES[word]
    return events.Outcome(
        report_no=number,
        index=token[1],
        attempt=token[3],
        ending=ending,
        result=b"result" if ending is Ending.SUCCEEDED else b"",
        failure=Failure(failure_class=failure_class, kind=word, message=f"it said {word}") if failure_class else None,
        never_started=word == "released",
    )

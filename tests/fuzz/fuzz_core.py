"""Target `core`: well-typed events of any content in any order. Names and tokens are mostly real ones, or next to real."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, TypeVar

from fuzz_world import World

from antfarm.model import (
    SECOND_NS,
    BlobRef,
    ConcurrencyLimit,
    Dependency,
    DependencyKind,
    Ending,
    Failure,
    FailureClass,
    JobId,
    JobSpec,
    RetryPolicy,
    SessionId,
    TaskTemplate,
    Timeouts,
    WorkerId,
)
from services.orchestrator.core import events

T = TypeVar("T")
EVENTS_PER_WORLD = 250
"""Then a new one: what one event spoils must not hide what the next would find."""
JOBS_MAX = 8
_SMALL = (0, 0, 1, 1, 2, 3, 4)
_EDGES = (
    -1,
    -(1 << 31),
    -(1 << 63),
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
)
_JOB_IDS = ("a", "b", "c", "d", "e", "x/y", "x/y/0/tasks", "up/a/0/tasks", "up/top/0/plan", "up/top/²/tasks")
_BAD_IDS = ("", ".", "..", "no good", "a//b", "/a", "a/", "x" * 300, "ü", "\0", "up/", "a\n")
_TYPES = ("t", "u", "s", "s:plan", "s:summarise")
_TEXTS = ("", "why", "ü\n\x00" * 20, "x" * 300, "\u202e")
_AMOUNTS = (0.0, 1.0, 2.0, 0.5, -0.0, -1.0, 1e300, 5e-324, float("inf"), float("-inf"), float("nan"))
_TIMES_NS = (0, 1, SECOND_NS // 4, SECOND_NS, 4 * SECOND_NS, 13 * SECOND_NS, 70 * SECOND_NS, 400 * SECOND_NS, 10**18)


class Maker:
    """Makes events for a world."""

    def __init__(self, world: World, dice: random.Random) -> None:
        self.world = world
        self._dice = dice
        self._sessions = 0
        self._requests = 0
        self._makers: list[Callable[[], Any]] = [
            *[self.outcomes] * 9, *[self.heartbeat] * 4, *[self.attach] * 4, *[self.create] * 4, *[self.append] * 2, *[self.tick] * 3,
            *[self.running] * 3, self.close, self.cancel, self.cancel_task, self.pause, self.retry, self.purge, self.detach, self.goodbye,
            self.credit, self.drain, self.parent_assigned, self.parent_assigned, self.parent_revoked, self.parents_drained, self.parent_expanded, self.parent_expanded,
            self.parent_acked, self.disk,
        ]  # fmt: skip

    def any(self) -> Any:
        """An event of any kind."""
        return self.pick(self._makers)()

    # ---- values -----------------------------------------------------------------------------------------------------

    def pick(self, choices: list[T] | tuple[T, ...]) -> T:
        """Any of them."""
        return choices[int(self._dice.random() * len(choices))]

    def chance(self, share: float) -> bool:
        """True that often."""
        return self._dice.random() < share

    def number(self, near: int = 1) -> int:
        """Small, near to what is right, or at the edge of a type."""
        if self.chance(0.15):
            return self.pick(_EDGES)
        return self.pick(_SMALL) if self.chance(0.5) else max(min(near + self.pick((-1, 0, 1)), _EDGES[-1]), _EDGES[2])

    def job_id(self) -> JobId:
        """Of a job that is there, or might be."""
        jobs = self.world.state.by_id
        if jobs and self.chance(0.7):
            return JobId(self.pick(tuple(jobs)))
        return JobId(self.pick(_BAD_IDS if self.chance(0.1) else _JOB_IDS))

    def session(self) -> SessionId:
        """Of a worker that is attached, mostly."""
        sessions = self.world.state.sessions
        if sessions and self.chance(0.9):
            return SessionId(self.pick(tuple(sessions)))
        return SessionId(self.pick(("", "gone", f"s{self._sessions - 1}")))

    def token(self, session: str = "") -> tuple[str, int, int, int]:
        """One that the session's worker has, one that somebody had, or a forged one."""
        worker = self.world.state.sessions.get(session)
        if worker is not None and worker.live and self.chance(0.6):
            token = self.pick(tuple(worker.live.values())).token
        elif self.world.issued and self.chance(0.8):
            token = self.pick(self.world.issued)[1:]
        else:
            token = (self.job_id(), self.number(), self.number(self.world.state.epoch), self.number())
        if self.chance(0.8):
            return token
        place, forged = self._dice.randrange(4), list(token)
        forged[place] = self.job_id() if place == 0 else self.number(token[place])  # type: ignore[arg-type]
        return tuple(forged)  # type: ignore[return-value]

    def held(self, session: str = "") -> list[tuple[str, int, int, int]]:
        """What a worker says it holds: all of it, or anything."""
        worker = self.world.state.sessions.get(session)
        if worker is not None and self.chance(0.85):
            return [attempt.token for attempt in worker.live.values()]
        return [self.token(session) for _ in range(self._dice.randrange(5))]

    def payloads(self) -> list[bytes]:
        """A few, seldom one that is too large."""
        if self.chance(0.01):
            return [b"x" * 70_000]
        return [self.pick((b"", b"0", b"1", b"payload")) for _ in range(self._dice.randrange(5))]

    def failure(self) -> Failure | None:
        """Of any class, or none."""
        if self.chance(0.1):
            return None
        return Failure(failure_class=self.pick(tuple(FailureClass)), kind=self.pick(_TEXTS), message=self.pick(_TEXTS))

    def duration(self) -> int:
        """Of any length that the wire lets through, and some that it does not."""
        return self.pick(_TIMES_NS) if self.chance(0.9) else self.pick(_EDGES[:6])

    def template(self) -> TaskTemplate:
        """Plain ones mostly, the others wild."""
        if self.chance(0.6):
            return TaskTemplate(
                type=self.pick(_TYPES[:3]), at_most_once=self.chance(0.2), fence_late_results=self.chance(0.2)
            )
        maybe = self.chance
        return TaskTemplate(
            type=self.pick(_TYPES) if maybe(0.97) else self.pick(_BAD_IDS),
            version=self.pick(_TEXTS) if maybe(0.1) else "",
            retry=RetryPolicy(max_attempts=self.number(4), backoff_initial_ns=self.duration(), backoff_max_ns=self.duration()),
            timeouts=Timeouts(
                run_ns=self.duration() if maybe(0.2) else None,
                progress_ns=self.duration() if maybe(0.1) else None,
                queue_ns=self.duration() if maybe(0.2) else None,
                total_ns=self.duration() if maybe(0.2) else None,
            ),
            resources={self.pick(("cpu", "gpu", "")): self.pick(_AMOUNTS if maybe(0.3) else _AMOUNTS[:4]) for _ in range(self._dice.randrange(3))},
            labels={self.pick(("zone", "")): self.pick(("", "z"))} if maybe(0.1) else {},
            limit=ConcurrencyLimit(name=self.pick(("web", "db", "")), max_active=self.number()) if maybe(0.3) else None,
            at_most_once=maybe(0.2),
            fence_late_results=maybe(0.2),
            idempotent=maybe(0.2),
            common_payload=b"common" if maybe(0.1) else b"",
        )  # fmt: skip

    def spec(self) -> JobSpec:
        """A job's."""
        dependencies = [
            Dependency(job_id=self.job_id(), kind=self.pick(tuple(DependencyKind)), offset=self.number())
            for _ in range(self._dice.randrange(3) if self.chance(0.3) else 0)
        ]
        return JobSpec(
            template=self.template(),
            priority=self._dice.randrange(-12, 12) if self.chance(0.2) else 0,
            dependencies=tuple(dependencies),
            max_failures=self.number() if self.chance(0.2) else None,
        )

    # ---- of clients -------------------------------------------------------------------------------------------------

    def _request(self) -> int:
        self._requests += 1
        return self._requests

    def create(self) -> Any:
        """A job; while there are many, one of them goes."""
        jobs = self.world.state.by_id
        if len(jobs) > JOBS_MAX:
            ended = [job for job in jobs.values() if job.ended]
            if ended:
                return events.PurgeJob(request=self._request(), job_id=self.pick(ended).job_id)
            return events.CancelJob(
                request=self._request(), job_id=self.pick(tuple(jobs.values())).job_id, cause="room"
            )
        return events.CreateJob(
            request=self._request(), job_id=self.job_id(), spec=self.spec(), payloads=self.payloads(), close=self.chance(0.6)
        )  # fmt: skip

    def append(self) -> Any:
        """Tasks, at the right index or not."""
        job_id = self.job_id()
        job = self.world.state.by_id.get(job_id)
        first = self.number(job.task_count if job is not None else 0)
        return events.AppendTasks(
            request=self._request(), job_id=job_id, first_index=first, payloads=self.payloads(), close=self.chance(0.2)
        )

    def close(self) -> Any:
        """A job is closed."""
        return events.CloseJob(request=self._request(), job_id=self.job_id())

    def cancel(self) -> Any:
        """A job is cancelled."""
        return events.CancelJob(request=self._request(), job_id=self.job_id(), cause=self.pick(_TEXTS))

    def cancel_task(self) -> Any:
        """A task is cancelled."""
        return events.CancelTask(
            request=self._request(), job_id=self.job_id(), index=self.number(), cause=self.pick(_TEXTS)
        )

    def pause(self) -> Any:
        """A job is paused or resumed."""
        return events.PauseJob(request=self._request(), job_id=self.job_id(), paused=self.chance(0.4))

    def retry(self) -> Any:
        """A job is retried."""
        return events.RetryJob(request=self._request(), job_id=self.job_id(), new_job_id=self.job_id())

    def purge(self) -> Any:
        """A job is purged."""
        return events.PurgeJob(request=self._request(), job_id=self.job_id())

    def drain(self) -> Any:
        """A worker is drained."""
        worker = WorkerId(self.pick(("w1", "w2", "nobody")))
        return events.DrainWorker(
            request=self._request(), worker_id=worker, drain=self.chance(0.4), limit_ns=self.duration()
        )

    # ---- of workers -------------------------------------------------------------------------------------------------

    def attach(self) -> Any:
        """A hello: a new worker, a known one again, or a new process of it."""
        self._sessions += 1
        worker_id = WorkerId(f"w{self._dice.randrange(1, 9)}")
        known = self.world.state.workers.get(worker_id)
        again = known is not None and self.chance(0.7)
        resources = {self.pick(("cpu", "gpu", "")): self.pick(_AMOUNTS) for _ in range(self._dice.randrange(3))}
        return events.Attach(
            session=SessionId(f"s{self._sessions}"),
            worker_id=worker_id,
            incarnation=known.incarnation if again and known is not None else b"%d" % self._dice.randrange(4),
            protocol_major=1 if self.chance(0.95) else self.number(),
            slots=self.number(2) if self.chance(0.2) else 2,
            window=self.number(3) if self.chance(0.2) else 3,
            task_types=frozenset(self.pick(_TYPES) for _ in range(3)) if self.chance(0.3) else frozenset(_TYPES),
            labels={"zone": "z"} if self.chance(0.2) else {},
            resources=resources if self.chance(0.2) else {"gpu": 4.0},
            max_epoch_seen=self.number(self.world.state.epoch) if self.chance(0.1) else 0,
            held=self.held(known.session or "" if known is not None else ""),
            descendants=("me",) if self.chance(0.02) else (),
            orchestrator=self.chance(0.1),
            host=self.pick(_TEXTS),
        )

    def detach(self) -> Any:
        """A stream ends."""
        return events.Detach(session=self.session())

    def goodbye(self) -> Any:
        """A worker leaves."""
        return events.Goodbye(session=self.session(), cause=self.pick(_TEXTS))

    def credit(self) -> Any:
        """A window."""
        return events.Credit(session=self.session(), window=self.number(3) if self.chance(0.3) else 3)

    def heartbeat(self) -> Any:
        """A beat with any held set."""
        session = self.session()
        worker = self.world.state.sessions.get(session)
        frames = worker.frames if worker is not None and self.chance(0.8) else self.number()
        return events.Heartbeat(session=session, number=self.number(), frames_received=frames, held=self.held(session))

    def outcomes(self) -> Any:
        """Reports on attempts of one job: true ones, early, late, forged, replayed, several on the same."""
        session = self.session()
        job_id, index, epoch, attempt = self.token(session)
        found = [self.outcome(index, attempt)]
        while self.chance(0.3):
            found.append(found[-1] if self.chance(0.3) else self.outcome(index + self.pick((0, 1, 2)), attempt))
        return events.Outcomes(session=session, job_id=job_id, epoch=epoch, outcomes=found if self.chance(0.97) else [])

    def outcome(self, index: int, attempt: int) -> events.Outcome:
        """One report."""
        ending = Ending.SUCCEEDED if self.chance(0.5) else self.pick(tuple(Ending))
        return events.Outcome(
            report_no=self.number(),
            index=index,
            attempt=attempt,
            ending=ending,
            result=b"r" if ending is Ending.SUCCEEDED else b"",
            outputs=(BlobRef(key="k", size_bytes=(1 << 64) - 1, sha256=b"x" * 32),) if self.chance(0.05) else (),
            failure=None if ending is Ending.SUCCEEDED else self.failure(),
            run_us=self.number(),
            never_started=self.chance(0.3),
            app_failures=self.number() if self.chance(0.3) else 0,
        )

    def running(self) -> Any:
        """A word of an attempt."""
        session = self.session()
        job_id, index, epoch, attempt = self.token(session)
        return events.Running(
            session=session, job_id=job_id, epoch=epoch, index=index, attempt=attempt, running_for_ns=self.duration(),
            progress=self.pick(_AMOUNTS) if self.chance(0.5) else None, progress_text=self.pick(_TEXTS),
        )  # fmt: skip

    # ---- of the orchestrator above ----------------------------------------------------------------------------------

    def _parent(self) -> tuple[str, int]:
        parents = self.world.state.parents
        if parents and self.chance(0.7):
            return self.pick(tuple(parents))
        return self.pick(("top", "x/y", "a", *_BAD_IDS) if self.chance(0.2) else ("top", "a")), self.number()

    def _parent_tokens(self) -> list[events.HeldToken]:
        return [self._parent_token() for _ in range(self.pick((1, 1, 2, 4)))]

    def _parent_token(self) -> events.HeldToken:
        job_id, index = self._parent()
        known = self.world.state.parents.get((job_id, index))
        epoch, attempt = (known.epoch, known.attempt) if known is not None else (1, 1)
        if self.chance(0.4):
            epoch, attempt = self.number(epoch), self.number(attempt)
        return (job_id, index, epoch, attempt)

    def parent_assigned(self) -> Any:
        """A task from above; while there are many, one is acknowledged."""
        if len(self.world.state.parents) > 4:
            return self.parent_acked()
        job_id, index, epoch, attempt = self._parent_token()
        last = min(index + self.pick((0, 0, 1, 4)), (1 << 64) - 1)
        tasks = [events.ParentTask(i, attempt, self.pick((b"", b"[]"))) for i in range(index, last + 1)]
        since_epoch = self.number(epoch) if self.chance(0.2) else 0
        return events.ParentsAssigned(
            job_id=job_id, epoch=epoch, template=self.template(), tasks=tasks, since_epoch=since_epoch
        )

    def parent_revoked(self) -> Any:
        """A task is taken away."""
        return events.ParentsRevoked(tokens=self._parent_tokens(), cause=self.pick(_TEXTS))

    def parents_drained(self) -> Any:
        """The one above drains this one."""
        return events.ParentsDrained(over=self.chance(0.5))

    def parent_acked(self) -> Any:
        """The end of one is acknowledged."""
        return events.ParentsAcked(tokens=self._parent_tokens())

    def parent_expanded(self) -> Any:
        """A plan was read."""
        parent = self._parent()
        plan = self.world.state.by_id.get("up/{}/{}/plan".format(*parent))
        return events.ParentExpanded(
            parent=parent,
            plan=plan.number if plan is not None and self.chance(0.9) else self.number(1),
            template=self.template() if self.chance(0.9) else None,
            payloads=self.payloads(),
            failure=self.failure() if self.chance(0.1) else None,
        )

    # ---- of the process ---------------------------------------------------------------------------------------------

    def tick(self) -> Any:
        """Time passes, by clocks that may say anything."""
        self.world.now += self.pick(_TIMES_NS[:5] if self.chance(0.8) else _TIMES_NS)
        if self.chance(0.05):
            self.world.wall_ns = self.pick((0, 10**18, 4 * 10**18))
        return events.Tick(wall_ns=self.world.wall_ns)

    def disk(self) -> Any:
        """The disk has room or not."""
        return events.DiskLow(low=self.chance(0.3))


def run(seed: str, inputs: int, *, check_every: int = 16) -> int:
    """That many events at one world. Returns how many were refused."""
    dice = random.Random(seed)
    world = World(dice, check_every=check_every)
    maker = Maker(world, dice)
    for _ in range(inputs):
        if dice.random() < 0.002:
            world.restart()
        elif dice.random() < 0.02:
            world.pass_time(maker.pick(_TIMES_NS[2:6]))
        world.give(maker.any())
    world.check()
    world.restart()
    world.check()
    return world.refused

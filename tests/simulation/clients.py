"""A client: submits jobs, appends, cancels, pauses, retries and purges, repeating each request until it is answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from antfarm.errors import AntFarmError, DiskFull, Overloaded
from antfarm.model import (
    ConcurrencyLimit,
    Dependency,
    DependencyKind,
    JobId,
    JobSpec,
    RetryPolicy,
    TaskTemplate,
    Timeouts,
    WorkerId,
)
from services.orchestrator.core import events
from tests.simulation.checks import ORCHESTRATOR
from tests.simulation.kernel import SECOND

if TYPE_CHECKING:
    from tests.simulation.orchestrator import Orchestrator
    from tests.simulation.world import World

PROBE = -1
"""Number of no request: the job of the second phase is still to come."""
TIMEOUT_NS = 4 * SECOND
Make = Callable[[int], events.Event]
KINDS = (b"ok",) * 12 + (b"app1", b"app2", b"permanent", b"crash1", b"crash", b"infra1", b"hang", b"kill1", b"kill")

HARD = (b"ok", b"ok", b"kill", b"kill1", b"crash", b"infra1", b"app1")


class Client:
    """All the clients of a farm."""

    def __init__(self, world: World, owner: Orchestrator) -> None:
        self.world, self.owner = world, owner
        self.waiting: list[int] = []
        """Requests without an answer."""
        self.open: dict[str, int] = {}
        """Jobs that are not closed -> tasks that they have."""
        self.jobs: list[str] = []
        self._dice = world.kernel.dice

    @staticmethod
    def retry(attempts: int) -> RetryPolicy:
        """A policy with short pauses."""
        return RetryPolicy(max_attempts=attempts, backoff_initial_ns=SECOND // 2, backoff_max_ns=4 * SECOND)

    # ---- requests -----------------------------------------------------------------------------------------------------

    def ask(self, make: Make, then: Callable[[AntFarmError | None], None] | None = None) -> None:
        """Send a request until it is answered. `then` is called when the orchestrator lets the answer out."""
        number = self.world.next_number()
        self.waiting.append(number)
        self._send(number, make, then)

    def _send(self, number: int, make: Make, then: Callable[[AntFarmError | None], None] | None) -> None:
        if number not in self.waiting:
            return
        kernel, owner = self.world.kernel, self.owner

        def answer(error: AntFarmError | None, existed: bool) -> None:
            if then is not None:
                then(error)
            if not isinstance(error, (DiskFull, Overloaded)) and not kernel.chance(self.world.network.loss):
                kernel.after(self.world.network.delay_ns(), self._answered, number)

        life = owner.process.life
        kernel.after(
            self.world.network.delay_ns(), owner.process.enter, life, owner.heard, None, 0, ("request", make, answer)
        )
        kernel.after(TIMEOUT_NS, self._send, number, make, then)

    def _answered(self, number: int) -> None:
        if number in self.waiting:
            self.waiting.remove(number)

    # ---- what it wants ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Lay the load of the whole run out in time."""
        left, end = self.world.knobs.tasks, self.world.knobs.seconds * SECOND
        while left > 0:
            count = min(left, self._dice.randint(1, 12))
            left -= count
            self.world.kernel.after(int(self._dice.random() * end * 0.8), self._submit, count)
        for _ in range(self._dice.randint(0, 6)):
            act = self._dice.choice(
                (self._cancel, self._cancel_task, self._pause, self._retry, self._purge, self._redo, self._drain)
            )
            self.world.kernel.after(int(self._dice.random() * end), act)

    def _submit(self, count: int, name: str = "") -> None:
        job_id = JobId(name or f"j{self.world.next_number()}")
        spec = self._spec()
        payloads = self._payloads(count)
        closed = self._dice.random() < 0.8
        self.jobs.append(job_id)
        if not closed:
            self.open[job_id] = count
            self.world.kernel.after(int(self._dice.random() * 5 * SECOND), self._append, job_id)
        self.ask(
            lambda n: events.CreateJob(request=n, job_id=job_id, spec=spec, payloads=payloads, close=closed),
            lambda error: self._taken(job_id, 0, count, error),
        )

    def _taken(self, job_id: str, first: int, count: int, error: AntFarmError | None) -> None:
        if error is None:
            self.world.checks.submission_acked(self.owner.name, job_id, first, count)

    def _spec(self) -> JobSpec:
        dice = self._dice
        rare: dict[str, Any] = {}
        if dice.random() < 0.15:
            rare["at_most_once"] = True
        elif dice.random() < 0.3:
            rare["idempotent"] = True
        if dice.random() < 0.2:
            rare["fence_late_results"] = True
        if dice.random() < 0.1:
            rare["limit"] = ConcurrencyLimit(name="l", max_active=dice.randint(1, 3))
        timeouts = Timeouts(
            run_ns=dice.choice((None, None, 2 * SECOND)),
            queue_ns=dice.choice((None,) * 5 + (5 * SECOND,)),
            total_ns=dice.choice((None,) * 8 + (20 * SECOND,)),
        )
        kind = dice.choice(("t", "u") if self.world.knobs.levels == 1 else ("t",))
        template = TaskTemplate(type=kind, retry=self.retry(dice.choice((1, 2, 4))), timeouts=timeouts, **rare)
        needs: tuple[Dependency, ...] = ()
        known = [job_id for job_id in self.owner.core.state.by_id if job_id.startswith("j")]
        if known and dice.random() < 0.2:
            kind_of = dice.choice((DependencyKind.EACH, DependencyKind.ALL))
            needs = (Dependency(job_id=JobId(dice.choice(known)), kind=kind_of),)
        few = dice.choice((None,) * 8 + (0, 1))
        return JobSpec(template=template, dependencies=needs, priority=dice.choice((0, 0, 5)), max_failures=few)

    def _payloads(self, count: int) -> list[bytes]:
        dice = self._dice
        plans = self.world.knobs.plans and self.world.knobs.levels > 1
        kinds = (b"plan",) if plans else dice.choice((KINDS, KINDS, KINDS, HARD))
        mean = dice.choice((20, 300, 3000))
        return [
            b"%s:%d:%d" % (dice.choice(kinds), 1 + int(dice.expovariate(1 / mean)), self.world.next_number())
            for _ in range(count)
        ]

    def _append(self, job_id: JobId) -> None:
        first = self.open.get(job_id)
        if first is None:
            return
        count = self._dice.randint(0, 5)
        payloads, close = self._payloads(count), self._dice.random() < 0.5
        if close:
            del self.open[job_id]
        else:
            self.open[job_id] = first + count
        self.ask(
            lambda n: events.AppendTasks(request=n, job_id=job_id, first_index=first, payloads=payloads, close=close),
            lambda error: self._taken(job_id, first, count, error),
        )

    def _pick(self) -> JobId | None:
        return JobId(self._dice.choice(self.jobs)) if self.jobs else None

    def _cancel(self) -> None:
        job_id = self._pick()
        if job_id is not None:
            self.ask(
                lambda n: events.CancelJob(request=n, job_id=job_id, cause="as drawn"),
                lambda error: self.world.checks.cancel_acked(self.owner.name, job_id) if error is None else None,
            )

    def _cancel_task(self) -> None:
        job_id = self._pick()
        if job_id is not None:
            self.ask(lambda n: events.CancelTask(request=n, job_id=job_id, index=0, cause="as drawn"))

    def _pause(self) -> None:
        job_id = self._pick()
        if job_id is not None:
            self.ask(lambda n: events.PauseJob(request=n, job_id=job_id, paused=True))

    def _retry(self) -> None:
        job_id, again = self._pick(), JobId(f"r{self.world.next_number()}")
        if job_id is not None:
            self.ask(lambda n: events.RetryJob(request=n, job_id=job_id, new_job_id=again))

    def _purge(self) -> None:
        job_id = self._pick()
        if job_id is not None:
            self.ask(lambda n: events.PurgeJob(request=n, job_id=job_id))

    def _redo(self) -> None:
        """Give up a job and submit another one under its name, while workers still run what was of the first."""
        job_id = self._pick()
        if job_id is None:
            return

        def cancelled(error: AntFarmError | None) -> None:
            if error is None:
                self.world.checks.cancel_acked(self.owner.name, job_id)
                self.ask(lambda n: events.PurgeJob(request=n, job_id=job_id), purged)

        def purged(error: AntFarmError | None) -> None:
            if error is None:
                self._submit(self._dice.randint(1, 5), job_id)

        self.ask(lambda n: events.CancelJob(request=n, job_id=job_id, cause="as drawn"), cancelled)

    def _drain(self) -> None:
        """Drain a worker, which leaves and comes back, or an orchestrator, which stays until that is over."""
        below = [one for one in self.world.orchestrators.values() if one.upper == self.owner.name]
        if below and self._dice.random() < 0.5:
            name = WorkerId(f"{ORCHESTRATOR}{self._dice.choice(below).name}")
            self.world.kernel.after(int(self._dice.random() * 10 * SECOND), self._undrain, name)
        else:
            worker = self._dice.choice(self.world.workers)
            if worker.upper != self.owner.name:
                return
            name = WorkerId(worker.name)
        self.ask(lambda n: events.DrainWorker(request=n, worker_id=name, drain=True, limit_ns=2 * SECOND))

    def _undrain(self, name: WorkerId) -> None:
        self.world.checks.did["undrained"] += 1
        self.ask(lambda n: events.DrainWorker(request=n, worker_id=name, drain=False, limit_ns=0))

    def finish(self) -> None:
        """Phase 2: let everything end."""
        for job_id in list(self.owner.core.state.by_id):
            name = JobId(job_id)
            self.ask(lambda n, name=name: events.PauseJob(request=n, job_id=name, paused=False))  # type: ignore[misc]
            self.ask(lambda n, name=name: events.CloseJob(request=n, job_id=name))  # type: ignore[misc]
        # What waits in sockets is read first: hellos of processes that have died since, which would each use up an attempt.
        self.waiting.append(PROBE)
        self.world.kernel.after(5 * SECOND, self._probe)
        self.world.kernel.after(10 * SECOND, self._close_late)

    def _probe(self) -> None:
        """A healed farm runs what it is given."""
        self.waiting.remove(PROBE)
        job_id, spec = JobId("probe"), JobSpec(template=TaskTemplate(type="t", retry=self.retry(2)))
        kind = b"plan" if self.world.knobs.plans and self.world.knobs.levels > 1 else b"ok"
        payloads = [b"%s:20:%d" % (kind, self.world.next_number()) for _ in range(4)]
        self.ask(lambda n: events.CreateJob(request=n, job_id=job_id, spec=spec, payloads=payloads, close=True))

    def _close_late(self) -> None:
        """What was still on its way when phase 2 began: jobs and drains."""
        for known in self.owner.core.state.workers.values():
            if known.drain_limit_ns is not None:
                who = WorkerId(known.worker_id)
                self.ask(
                    lambda n, who=who: events.DrainWorker(request=n, worker_id=who, drain=False, limit_ns=0)  # type: ignore[misc]
                )
        for job_id, job in list(self.owner.core.state.by_id.items()):
            name = JobId(job_id)
            if not job.closed and not job_id.startswith("up/"):
                self.ask(lambda n, name=name: events.CloseJob(request=n, job_id=name))  # type: ignore[misc]
            if job.paused:
                self.ask(lambda n, name=name: events.PauseJob(request=n, job_id=name, paused=False))  # type: ignore[misc]
        if self.waiting or self.world.checks.unended():
            self.world.kernel.after(10 * SECOND, self._close_late)

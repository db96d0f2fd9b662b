"""A worker process: slots, a queue of waiting attempts, and payloads that say what will become of them.

A payload is `kind:milliseconds:salt`. What user code does is drawn before the run, so that it does not depend on where it runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from antfarm.link.session import Token
from antfarm.model import Ending, Failure, FailureClass, TaskTemplate
from services.orchestrator.core.events import Outcome
from tests.simulation.kernel import MS, SECOND, Process
from tests.simulation.link import Group, Kept, Link

if TYPE_CHECKING:
    from tests.simulation.world import World

GRACE_NS = 200 * MS
LOOK_NS = SECOND // 2


@dataclass(slots=True, eq=False)
class Run:
    """An attempt in this process."""

    token: Token
    template: TaskTemplate
    payload: bytes
    since_ns: int
    started_ns: int = 0
    stopping: Ending | None = None


class Worker:
    """One worker over all its lives: its id and its outbox file outlive the process."""

    def __init__(self, world: World, name: str, upper: str, slots: int, types: frozenset[str], **about: Any) -> None:
        self.world, self.name, self.upper, self.slots = world, name, upper, slots
        self.types = types
        self.about = about
        self.process = Process(world.kernel, name)
        self.outbox: list[Kept] = []
        self.link: Link
        self.speed = 1.0
        """How much longer than others it takes."""
        self.black_hole = False
        """Fails whatever it is given, at once."""
        self.draining = False
        self._drained_by = self._drains = 0
        """The life of the orchestrator that asked it to drain, and how often it was asked."""
        self.waiting: deque[Run] = deque()
        self.running: dict[Token, Run] = {}

    # ---- life -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """A new process with a new incarnation; reports of the earlier one go out again."""
        kernel = self.world.kernel
        self.process.begin()
        self.process.clock_start_ns = kernel.dice.randrange(1, 10**6) * SECOND
        self.waiting.clear()
        self.running.clear()
        self.draining = False
        about = dict(
            self.about,
            slots=self.slots,
            window=2 * self.slots,
            task_types=self.types,
            resources={},
        )
        about.setdefault("protocol_major", 1)
        self.link = Link(self.world, self.process, self.upper, self.name, self, about)
        self.link.recover(self.outbox)
        self.outbox = self.link.outbox
        self.process.later(MS, self.link.dial)
        self.process.later(LOOK_NS, self._look)

    def die(self, *, silent: bool = False) -> None:
        """SIGKILL; or loss of power, which takes what the outbox file had not synced."""
        if not self.process.alive:
            return
        held = list(self.link.session.held)
        self.process.end()
        if silent and self.outbox:
            del self.outbox[self.world.kernel.dice.randrange(len(self.outbox) + 1) :]
        self.world.network.reset_all(self.process, silent=silent)
        self.world.checks.worker_died(self, held)

    @property
    def idle(self) -> bool:
        """True when there is nothing in it."""
        return not self.waiting and not self.running

    # ---- the link's handler -----------------------------------------------------------------------------------------

    def on_tasks(self, epoch: int, groups: list[Group]) -> None:
        """Queue new attempts."""
        now = self.process.clock_ns
        for job_id, template, assignments, _ in groups:
            for index, attempt, payload, _, _ in assignments:
                self.waiting.append(Run((job_id, index, epoch, attempt), template, payload, now))
        self._pump()

    def on_revoke(self, tokens: list[Token], *, forgotten: bool) -> None:
        """Stop what runs, drop what waits."""
        wanted = set(tokens)
        dropped = [run for run in self.waiting if run.token in wanted]
        self.waiting = deque(run for run in self.waiting if run.token not in wanted)
        if not forgotten:
            for run in dropped:
                self._hand_back(run, Ending.REVOKED, never_started=True)
        for token in tokens:
            running = self.running.get(token)
            if running is not None:
                self._stop(running, Ending.REVOKED)
        self._pump()
        self._maybe_leave()

    def on_welcome(self) -> None:
        """A drain is over, or is asked for again; who was restarted has forgotten it."""
        if self.draining and self._drained_by == self.link.owner:
            self.draining = False
            self._drains += 1
            self.link.want(self.link.about["window"])

    def on_drain(self, limit_ns: int) -> None:
        """Hand back what waits, finish what runs."""
        self.draining = True
        self._drained_by = self.link.owner
        self._drains += 1
        self.link.want(0)
        waiting, self.waiting = self.waiting, deque()
        for run in waiting:
            self._hand_back(run, Ending.RELEASED, never_started=True)
        self.process.later(limit_ns, self._end_drain, self._drains)
        self._maybe_leave()

    def _end_drain(self, number: int) -> None:
        """What still runs at the end of a drain is stopped and handed back."""
        if number != self._drains:
            return
        for run in list(self.running.values()):
            self._stop(run, Ending.RELEASED)

    def on_judged(self, tokens: Sequence[Token]) -> None:
        """Perhaps nothing is owed any more."""
        self._maybe_leave()

    def _maybe_leave(self) -> None:
        if self.draining and self.idle and not self.link.session.held:
            self.link.goodbye()
            self.outbox.clear()
            self.process.end()
            self.world.checks.drained(self)

    # ---- runs -------------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        while self.waiting and len(self.running) < self.slots:
            self._begin(self.waiting.popleft())

    def _begin(self, run: Run) -> None:
        run.started_ns = self.process.clock_ns
        self.running[run.token] = run
        self.world.checks.started(self, run.token)
        kind, millis = self.world.fate(run.payload)
        if self.black_hole:
            kind, millis = "app", 1
        run_ns = run.template.timeouts.run_ns
        duration = int(millis * MS * self.speed)
        if kind == "hang" or (run_ns is not None and duration > run_ns):
            if run_ns is None:
                kind, duration = "ok", 20 * SECOND
            else:
                kind, duration = "timeout", run_ns
        self.process.later(duration, self._finish, run, kind)
        self.process.later(LOOK_NS, self._speak, run)

    def _speak(self, run: Run) -> None:
        if self.running.get(run.token) is run:
            self.link.say_running(run.token, self.process.clock_ns - run.started_ns)
            self.process.later(10 * LOOK_NS, self._speak, run)

    def _stop(self, run: Run, ending: Ending) -> None:
        if run.stopping is None:
            run.stopping = ending
            self.process.later(int(GRACE_NS * self.world.kernel.dice.random()), self._stopped, run)

    def _stopped(self, run: Run) -> None:
        if self.running.pop(run.token, None) is not None:
            assert run.stopping is not None
            self._hand_back(run, run.stopping, never_started=False)
            self._pump()
            self._maybe_leave()

    def _hand_back(self, run: Run, ending: Ending, *, never_started: bool) -> None:
        _, index, _, attempt = run.token
        self.link.report(
            run.token,
            Outcome(report_no=0, index=index, attempt=attempt, ending=ending, never_started=never_started),
        )

    def _finish(self, run: Run, kind: str) -> None:
        if self.running.get(run.token) is not run:
            return
        if kind == "kill":
            self.world.kernel.note(self.name, "killed by", run.token)
            self.die()
            self.world.revive_later(self)
            return
        del self.running[run.token]
        _, index, _, attempt = run.token
        outcome = Outcome(report_no=0, index=index, attempt=attempt, ending=Ending.SUCCEEDED, run_us=1, result=b"")
        match kind:
            case "ok":
                number = self.world.next_number()
                outcome.result = f"{number}@{self.name}".encode()
                if number % 2:
                    outcome.outputs = (self.world.storage.write(run.token, outcome.result),)
            case "plan":
                outcome.result = self.world.write_plan(run.payload)
            case "timeout":
                outcome.ending, outcome.failure = Ending.TIMED_OUT, _failure(FailureClass.APP, kind)
            case _:
                outcome.ending, outcome.failure = Ending.FAILED, _failure(FailureClass[kind.upper()], kind)
        self.link.report(run.token, outcome)
        self._pump()
        self._maybe_leave()

    def _look(self) -> None:
        """Hand back what has waited for long, as the real board does."""
        now = self.process.clock_ns
        while self.waiting and now - self.waiting[0].since_ns > 2 * SECOND:
            self._hand_back(self.waiting.popleft(), Ending.RELEASED, never_started=True)
        self._maybe_leave()
        self.process.later(LOOK_NS, self._look)


def _failure(failure_class: FailureClass, kind: str) -> Failure:
    return Failure(failure_class=failure_class, kind=kind, message="as drawn")

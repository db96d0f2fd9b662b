"""Explanations for people who ask: the state and the journal together, and nothing that a crash could take back.

What the state says is taken down first, then what it rests on is waited for, then the journal is read up to there: so both tell of the same moment.
"""

from __future__ import annotations

from antfarm.model import Explanation, Finding, TaskResult, TaskState
from services.orchestrator.core import explain, story
from services.orchestrator.core.records import Record
from services.orchestrator.core.state import Job
from services.orchestrator.core.waiting import Scene, name_of, stopping
from services.orchestrator.runtime.driver import Driver
from services.orchestrator.runtime.views import job_status, results_of, task_state

SPAN = 2_000
"""Record numbers that the journal looks through at once: a few milliseconds (measured: 10,000 are 10 to 25 ms), between which it commits."""
SPANS_MAX = 500
"""Such looks for one explanation: a million records. Attempts before that are not told."""
FAILURES_MAX = 200
"""Failed tasks of a job whose causes are read."""
_UNREAD = Finding(what="What came before these attempts was not looked for.")


class Explainer:
    """Explains tasks and jobs."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def task(self, job: Job, index: int) -> Explanation:
        """How one task stands and how it came there."""
        scene, state = self._scene(), job.states[index]
        seq, attempt, noted = scene.state.seq, job.live.get(index), index in job.notes
        now = explain.task(scene, job, index) if state < TaskState.SUCCEEDED else stopping(scene, job, index)
        last = attempt.attempt if attempt is not None else job.winners[index] & 0xFFFFFFFF
        origin = story.culprit(job, index) if state == TaskState.FAILED else None
        if not await self._driver.settled(seq):
            seq, now = self._driver.durable_seq, []
            head = explain.task_head(scene, job, index, task_state(job, index, durable_seq=seq))
            return explain.bounded([head, explain.NO_ROOM, *await self._story(job, index, seq, 0)])
        found = [explain.task_head(scene, job, index, TaskState(state))]
        troubled = noted or last > 1 or state > TaskState.SUCCEEDED
        if troubled:
            found += await self._story(job, index, seq, last)
        found += now
        found += await self._end(job, index, seq)
        if origin is not None:
            found += await self._origin(*origin, seq)
        return explain.bounded(found)

    async def job(self, job: Job) -> Explanation:
        """How a job stands: what keeps its tasks, and why some failed."""
        scene = self._scene()
        seq, now = scene.state.seq, explain.job(scene, job)
        head = explain.job_head(scene, job, job.state)
        failed = explain.failed_indices(job, FAILURES_MAX)
        if not await self._driver.settled(seq):
            seen = job_status(job, durable_seq=self._driver.durable_seq, wall_ns=scene.wall_ns)
            return explain.bounded([explain.job_head(scene, job, seen.state), explain.NO_ROOM])
        outcomes = await self._outcomes(job, failed, seq)
        return explain.bounded([head, *now, *explain.causes(job, outcomes)])

    def _scene(self) -> Scene:
        core, clock = self._driver.core, self._driver.clock
        return Scene(state=core.state, config=core.config, now=clock.monotonic_ns(), wall_ns=clock.wall_ns())

    async def _story(self, job: Job, index: int, seq: int, last: int) -> list[Finding]:
        """What is recorded of a task's attempts, read from the newest to the oldest."""
        found: list[Record] = []
        end = seq if job.retried or job.template.at_most_once else 0  # else no attempt of the job is on record
        for _ in range(SPANS_MAX):
            if end < job.created_seq or len(found) > story.SHOWN_MAX:
                break
            first = max(end - SPAN + 1, job.created_seq)
            part = await self._driver.read_history(job.number, first, end)
            found[:0] = [record for _, record in part if getattr(record, "index", None) == index]
            # Where there is nothing the numbers may leap, as a restored backup's do.
            end = first - 1 if part else await self._driver.newest_record(job.number, first - 1)
        if end < job.created_seq:
            return story.attempts(job, found, last, self._driver.core.config)
        return [_UNREAD, *story.attempts(job, found, 0, self._driver.core.config)]

    async def _end(self, job: Job, index: int, seq: int) -> list[Finding]:
        outcomes = await self._outcomes(job, [index], seq)
        return [story.end(job, outcome, self._driver.core.config) for outcome in outcomes]

    async def _origin(self, job: Job, index: int, seq: int) -> list[Finding]:
        """The task whose end made another one fail."""
        name = name_of(job, index)
        first = f"What failed first is task {name}:"
        head = Finding(
            what=first if story.is_first(job, index) else f"As far back as is known, that is because of task {name}:"
        )
        return [head, *await self._story(job, index, seq, 0), *await self._end(job, index, seq)]

    async def _outcomes(self, job: Job, indices: list[int], seq: int) -> list[TaskResult]:
        """Recorded outcomes up to that record."""
        seqs = sorted({job.outcome_seqs[index] for index in indices if 0 < job.outcome_seqs[index] <= seq})
        wanted = frozenset(indices)
        found = await self._driver.read_records(seqs)
        return [result for _, record in found for result in results_of(record, job, wanted)]

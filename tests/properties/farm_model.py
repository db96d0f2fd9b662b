"""What the properties believe of the farm, in plain dictionaries: nothing here is taken from the core but what it says aloud.

It hears what is acknowledged, what is sent to workers, what they report, and what becomes durable; each method is one thing heard, and says which
invariant (semantics section 14) it breaks when it cannot be.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from services.orchestrator.core import records
from services.orchestrator.core.records import Record

Key = tuple[str, int]
Token = tuple[str, int, int, int]


@dataclass
class Task:
    """A task that was submitted."""

    at_most_once: bool = False
    acknowledged: bool = False
    """Its submission was answered: it must never be lost (I1)."""
    durable: bool = False
    recorded: str = ""
    """Its terminal state, once that is durable; never changes (I3)."""


@dataclass
class Model:
    """All that was promised and seen."""

    tasks: dict[Key, Task] = field(default_factory=dict)
    jobs: dict[int, str] = field(default_factory=dict)
    """Number -> id of the jobs that are durable."""
    counts: dict[str, int] = field(default_factory=dict)
    """Tasks of each of them."""
    issued: dict[Token, str] = field(default_factory=dict)
    """Token -> worker that it was sent to (I2, I8)."""
    former: dict[Token, str] = field(default_factory=dict)
    """The same of tasks that were purged, or never became durable."""
    newest: dict[Key, tuple[int, int]] = field(default_factory=dict)
    """Task -> newest (epoch, attempt) that was sent, whatever became of its job since (I7)."""
    results: dict[Token, bytes] = field(default_factory=dict)
    """Token -> result that its worker reported for it (I4)."""
    never_started: set[Token] = field(default_factory=set)
    """Tokens that their holder does not hold, or handed back unstarted (I11)."""
    backups: set[Token] = field(default_factory=set)
    """Tokens that were live beside another one of their task."""
    cancelled: set[int] = field(default_factory=set)
    """Numbers of jobs whose cancel was acknowledged (I16)."""
    needs: dict[str, list[tuple[str, bool]]] = field(default_factory=dict)
    """Job -> jobs that its tasks wait for, each for its own one or for the whole."""
    epochs: list[int] = field(default_factory=list)
    parents: dict[Key, tuple[int, int]] = field(default_factory=dict)
    """Tasks from above -> newest token that was bound durably."""
    bound: set[Token] = field(default_factory=set)
    """All tokens from above that ever were."""
    worked: Counter[str] = field(default_factory=Counter)
    """How often what happened: a run in which little does proves nothing."""

    def depends(self, job_id: str, needs: list[tuple[str, bool]]) -> None:
        """A job is about to be submitted whose tasks wait for (another job, True: the whole of it)."""
        self.needs[job_id] = needs

    def promise(self, key: Key, *, at_most_once: bool) -> None:
        """A task is about to be submitted."""
        self.tasks.setdefault(key, Task(at_most_once=at_most_once))

    def assigned(self, worker_id: str, token: Token) -> None:
        """An assignment reached its worker."""
        key = token[:2]
        if key[0].startswith("up/"):
            self.promise(key, at_most_once=False)
        assert token[2] in self.epochs, f"I12: {token} is of an epoch that is not durable"
        assert key in self.tasks, f"I2: {token} names no submitted task"
        assert token[2:] > self.newest.get(key, (0, 0)), f"I7: {token} is not above {self.newest.get(key)}"
        if self.tasks[key].at_most_once:
            others = [t for t in self.issued if t[:2] == key and t not in self.never_started]
            assert not others, f"I11: {token} although {others} may have started"
        for job_id, whole in self.needs.get(key[0], ()):
            needed = [(job_id, i) for i in range(self.counts[job_id])] if whole else [(job_id, key[1])]
            states = [self.tasks[other].recorded for other in needed]
            assert all(states), f"I5: {token} was sent before what it needs is durable"
            assert whole or states == ["SUCCEEDED"], f"{token} was sent although {job_id} has not succeeded"
        self.issued[token] = worker_id
        self.newest[key] = (token[2], token[3])
        self.worked["assigned"] += 1

    def became_durable(self, record: Record) -> None:
        """A record was committed."""
        match record:
            case records.EpochStarted():
                assert record.epoch > max(self.epochs, default=0), "I12: epochs strictly increase"
                self.epochs.append(record.epoch)
            case records.JobCreated():
                assert record.job_id not in self.counts, f"I19: there are two jobs {record.job_id}"
                self.jobs[record.job], self.counts[record.job_id] = record.job_id, 0
            case records.TasksAdded():
                job_id = self.jobs[record.job]
                assert record.first_index == self.counts[job_id], f"I1: {job_id} has a gap"
                self.counts[job_id] += len(record.payloads)
                for index in range(record.first_index, self.counts[job_id]):
                    self.promise((job_id, index), at_most_once=False)
                    self.tasks[job_id, index].durable = True
            case records.TasksEnded():
                job_id = self.jobs[record.job]
                for ended in record.ended:
                    token = (job_id, ended.index, ended.epoch, ended.attempt)
                    self._ended((job_id, ended.index), ended.state.name, token, ended.result)
                    if ended.state.name == "SUCCEEDED":
                        assert record.job not in self.cancelled, f"I16: {token} succeeded after its cancel was told"
                        assert self.issued.get(token) == record.worker_id, f"I8: {token} was not {record.worker_id}'s"
            case records.JobCancelled():
                job_id = self.jobs[record.job]
                for index in range(self.counts[job_id]):
                    if not self.tasks[job_id, index].recorded:
                        self._ended((job_id, index), "CANCELLED", None, b"")
            case records.JobPurged():
                self._purged(self.jobs.pop(record.job))
            case records.ParentBound():
                parent, bound = (record.job_id, record.index), (record.epoch, record.attempt)
                assert bound > self.parents.get(parent, (0, 0)), "I19: an older token took over"
                self.parents[parent] = bound
            case records.ParentDone():
                del self.parents[record.job_id, record.index]
            case records.ParentsRelayed():
                for step in range(record.count):
                    parent, bound = (record.job_id, record.index + step), (record.epoch, record.attempt)
                    assert bound > self.parents.get(parent, (0, 0)), "I19: an older token took over"
                    self.parents[parent] = bound
            case records.RelaysDone():
                for index in record.indices:
                    del self.parents[record.job_id, index]

    def _ended(self, key: Key, state: str, token: Token | None, result: bytes) -> None:
        assert key in self.tasks, f"I2: the record of {key} names no submitted task"
        task = self.tasks[key]
        assert task.durable, f"I5: {key} ended before it was there"
        assert not task.recorded, f"I3: {key} was {task.recorded} and is {state} now"
        if state == "SUCCEEDED":
            assert token in self.issued, f"I8: {token} was never issued"
            assert self.results.get(token) == result, f"I4: {token} never sent {result!r}"
        task.recorded = state
        self.worked[state] += 1
        self.worked["won by a backup"] += token in self.backups and state == "SUCCEEDED"

    def _purged(self, job_id: str) -> None:
        for index in range(self.counts.pop(job_id)):
            task = self.tasks.pop((job_id, index))
            assert task.recorded, f"I1: {job_id}/{index} was purged before it ended"
        for token in [token for token in self.issued if token[0] == job_id]:
            self.former[token] = self.issued.pop(token)
        self.worked["purged"] += 1

    def crashed(self) -> None:
        """The orchestrator lost what was not durable: that was never acknowledged, and may be missing."""
        for key, task in list(self.tasks.items()):
            if not task.durable:
                assert not task.acknowledged, f"I1: {key} is lost"
                del self.tasks[key]
                for token in [token for token in self.issued if token[:2] == key]:
                    self.former[token] = self.issued.pop(token)

    def runs_beside_another(self, token: Token) -> None:
        """A backup is live."""
        if token not in self.backups:
            assert not self.tasks[token[:2]].at_most_once, f"I11: {token} runs beside another attempt"
            self.backups.add(token)
            self.worked["backups"] += 1

    def holder(self, token: Token) -> str | None:
        """Worker that a token was ever sent to."""
        return self.issued.get(token) or self.former.get(token)

    @property
    def unended(self) -> list[Key]:
        """Durable tasks that have not ended."""
        return [key for key, task in self.tasks.items() if task.durable and not task.recorded]

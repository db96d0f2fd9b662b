"""Lanes: which job is next among those that the same workers can run.

A lane holds the jobs with the same needs: task type, labels, resources, concurrency limit. So whether a worker fits, and how many more tasks there is room
for, is asked once per lane and not once per job, and ten thousand jobs cost no more than ten.

Within a lane, shares are dealt by stride scheduling: each has a virtual time (`pass_value`) that advances with what it gets, slower for higher priorities
(each step up quadruples the share), and the one that is furthest behind is next. Between lanes each worker deals its room by the same rule, a lane
counting as much as the shares in it. Virtual times are compared only among those who compete: what other workers do pushes nobody back.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import TYPE_CHECKING, NamedTuple, NewType

if TYPE_CHECKING:
    from antfarm.model import JobId, JobSpec, TaskTemplate
    from services.orchestrator.core.state import Job, Worker

LaneKey = NewType("LaneKey", tuple[object, ...])

PARENT_PREFIX = "up/"
"""Start of the ids of jobs that a task of the up-stream orchestrator was expanded into: up/<job>/<index>/<stage>."""
RELAY_STAGE = "relay-"
"""Start of the stage where the job's tasks are tasks of the up-stream orchestrator as they came."""
_WEIGHT_OF_PRIORITY_0 = 4**10


class Share:
    """What is dealt out fairly: a job of a client, or all jobs that one job of the up-stream orchestrator was expanded into.

    Within one, jobs go by their `rank`, so that what came first is done first instead of everything at the end.
    """

    __slots__ = ("_heap", "jobs", "number", "pass_value", "weight")

    def __init__(self, number: int, weight: int) -> None:
        self.number = number
        """Of its first job."""
        self.weight = weight
        self.pass_value = 0.0
        self.jobs = 0
        """Jobs that have it."""
        self._heap: list[tuple[int, int, Job]] = []
        """(rank, number, job) of those on offer."""

    def __len__(self) -> int:
        """Jobs on offer."""
        return len(self._heap)

    def __iter__(self) -> Iterator[Job]:
        """Jobs on offer, the one that is next first."""
        return (job for _, _, job in self._heap)

    def offer(self, job: Job) -> None:
        """The job may have a ready task."""
        job.offered = True
        heappush(self._heap, (job.rank, job.number, job))

    def next(self) -> Job | None:
        """The job that is next; it stays on offer. None when none has a ready task."""
        while self._heap:
            job = self._heap[0][2]
            if job.ready and not job.paused:
                return job
            self.withdraw()
        return None

    def withdraw(self) -> Job:
        """Take the job that is next off the offer."""
        job = heappop(self._heap)[2]
        job.offered = False
        return job

    def remove(self, job: Job) -> None:
        """Take any job off the offer."""
        job.offered = False
        self._heap = [entry for entry in self._heap if entry[2] is not job]
        heapify(self._heap)


class Limit:
    """A concurrency limit: how many attempts live under one name, and how many may."""

    __slots__ = ("bounds", "kept_for", "lanes", "live")

    def __init__(self) -> None:
        self.live = 0
        self.kept_for: Lane | None = None
        """Whose tasks alone get what becomes free, because others took it from them for too long; see `room`."""
        self.lanes = 0
        """Lanes that name it."""
        self.bounds: dict[int, int] = {}
        """max_active -> jobs that say so and have not ended."""

    @property
    def room(self) -> int:
        """Attempts that may be added. The smallest bound of all jobs that name the limit holds."""
        return max(min(self.bounds, default=0) - self.live, 0)

    def room_for(self, lane: Lane) -> int:
        """Attempts of the lane that may be added."""
        return self.room if self.kept_for in (None, lane) else 0

    def bind(self, max_active: int) -> None:
        """A job names the limit."""
        self.bounds[max_active] = self.bounds.get(max_active, 0) + 1

    def unbind(self, max_active: int) -> None:
        """It has ended."""
        self.bounds[max_active] -= 1
        if not self.bounds[max_active]:
            del self.bounds[max_active]


class Lane:
    """Jobs with the same needs, and their shares: those with a job that may have a ready task in the order in which they are next."""

    __slots__ = (
        "_heap",
        "jobs",
        "key",
        "limit",
        "plain",
        "refused_ns",
        "shares",
        "slots",
        "template",
        "undemanding",
        "virtual_time",
        "weight",
    )

    def __init__(self, key: LaneKey, template: TaskTemplate, limit: Limit | None) -> None:
        self.key = key
        self.template = template
        """Of any of its jobs: in what decides about fitness they are equal."""
        self.limit = limit
        self.plain = limit is None and not template.resources
        """Attempts take a slot and nothing else."""
        self.undemanding = not template.labels and not template.resources
        """Whoever offers the type can run them."""
        self.slots = max(template.resources.get("cpu", 1.0), 1.0)
        """What an attempt takes of a worker's slots and window. At least 1: outstanding assignments never exceed the credit."""
        self.jobs = 0
        self.shares: dict[str, Share] = {}
        self.weight = 0
        """Sum of the weights of shares with an offered job."""
        self.virtual_time = 0.0
        self.refused_ns = 0
        """Since when tasks wait that fit on a worker but for what others take there, and none was given out; 0: there are none."""
        self._heap: list[tuple[float, int, Share]] = []
        """(pass value as it was, number, share) of shares on offer; a pass value only grows, so an old one comes up early and is put right."""

    def __len__(self) -> int:
        """Shares with a job on offer."""
        return len(self._heap)

    def add(self, job: Job) -> None:
        """A job came to be."""
        name, job.rank = share_of(job.job_id, job.number)
        share = self.shares.get(name)
        if share is None:
            share = self.shares[name] = Share(job.number, 4 ** (10 + job.spec.priority))
        share.jobs += 1
        self.jobs += 1
        job.share = share

    def remove(self, job: Job) -> None:
        """A job was purged."""
        share = job.share
        if job.offered:
            share.remove(job)
            if not share:
                self._heap = [entry for entry in self._heap if entry[2] is not share]
                heapify(self._heap)
                self.weight -= share.weight
        share.jobs -= 1
        self.jobs -= 1
        if not share.jobs:
            self.shares.pop(share_of(job.job_id, job.number)[0], None)

    def offer(self, job: Job) -> None:
        """A job may have a ready task. A share that comes back gets no credit for the time it had nothing to do."""
        if job.offered or job.paused:
            return
        share = job.share
        if not share:
            share.pass_value = max(share.pass_value, self.virtual_time)
            self.weight += share.weight
            heappush(self._heap, (share.pass_value, share.number, share))
        share.offer(job)

    def next(self) -> Job | None:
        """The job that is next; it stays on offer. None when no job has a ready task, as far as is known."""
        heap = self._heap
        while heap:
            pass_value, number, share = heap[0]
            if pass_value < share.pass_value:
                heapreplace(heap, (share.pass_value, number, share))
            elif (job := share.next()) is not None:
                return job
            else:
                self._withdraw_share()
        return None

    def withdraw(self) -> Job:
        """Take the job that is next off the offer."""
        share = self._heap[0][2]
        job = share.withdraw()
        if not share:
            self._withdraw_share()
        return job

    def _withdraw_share(self) -> None:
        """Take the share that is next off the offer: it has no job that is."""
        self.weight -= heappop(self._heap)[2].weight

    def waits_no_more(self) -> None:
        """A task of it was given out, or none can be: nothing is kept for it on account of how long it has waited."""
        self.refused_ns = 0
        if self.limit is not None and self.limit.kept_for is self:
            self.limit.kept_for = None

    def charge(self, job: Job, tasks: int) -> None:
        """The job that is next was given that many tasks."""
        share = job.share
        self.virtual_time = max(self.virtual_time, share.pass_value)
        share.pass_value += tasks * _WEIGHT_OF_PRIORITY_0 / share.weight

    def waiting(self, enough: int) -> int:
        """Tasks that may be ready, counted up to `enough`."""
        total = 0
        for job in (job for _, _, share in self._heap for job in share):
            if total >= enough:
                break
            total += job.ready.size(enough - total)
        return min(total, enough)


def key_of(spec: JobSpec) -> LaneKey:
    """The lane that jobs of this spec are in."""
    template = spec.template
    return LaneKey(
        (
            template.type,
            tuple(sorted(template.labels.items())),
            tuple(sorted(template.resources.items())),
            template.limit.name if template.limit is not None else None,
        )
    )


def share_of(job_id: JobId, number: int) -> tuple[str, int]:
    """(share, rank within it) of a job."""
    if job_id.startswith(PARENT_PREFIX):
        parent, _, _ = job_id.rpartition("/")
        parent_job, _, index = parent.rpartition("/")
        if index.isdigit():
            return parent_job, int(index)
    return job_id, number


class Misfit(NamedTuple):
    """Something that a task needs and a worker does not offer."""

    need: str
    """"type", "label" or "resource"."""
    name: str
    wanted: str | float
    offered: str | float | None


def misfits(worker: Worker, template: TaskTemplate) -> Iterator[Misfit]:
    """What keeps the worker from running tasks of the template, whatever else it does: type, labels and resources."""
    if template.type not in worker.task_types:
        yield Misfit("type", template.type, template.type, None)
    for label, value in template.labels.items():
        if worker.labels.get(label) != value:
            yield Misfit("label", label, value, worker.labels.get(label))
    for resource, amount in template.resources.items():
        if worker.resources.get(resource, 0.0) < amount:
            yield Misfit("resource", resource, amount, worker.resources.get(resource))


def fits(worker: Worker, lane: Lane) -> bool:
    """True when the worker can run the lane's tasks."""
    if lane.undemanding:
        return lane.template.type in worker.task_types
    return next(misfits(worker, lane.template), None) is None

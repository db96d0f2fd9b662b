"""Series in which clients are the trouble: they die in the middle of a submission and submit again, cancel at any moment, and submit far too much."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from chaos_farm import PATIENCE_S, ChaosFarm, chaos_farm, raise_failed
from chaos_report import Report
from farm_bench import CALM_S, connect, memory_mib, until
from fault_proxy import FaultProxy
from history import Task

from antfarm.client.connection import CALL_TIMEOUT_S, Connection
from antfarm.client.farm import AsyncFarm
from antfarm.errors import Conflict, JobClosed, Overloaded
from antfarm.v1 import common_pb2, job_pb2, task_pb2, worker_pb2
from antfarm.wire import error_from_rpc, spec_to_wire

# After antfarm.net, which sets what gRPC reads when it is loaded.
import grpc.aio  # isort: skip

# ---- clients that die and submit again ------------------------------------------------------------------------------------

LANES = 4
"""Clients at work at the same time."""
PACE_S = 0.002
"""Between two calls of a job: slow enough that a submission is several messages, each of which may be the last."""
TASKS_MAX = 16
ROUNDS_BETWEEN_KILLS = 60


async def resubmissions(directory: Path, rounds: int) -> Report:
    """Each job's client is stopped in the middle of its submission, by turns by SIGKILL and by a cut connection, and the job is submitted again.

    Now and then the orchestrator dies too. Each job must be there once with each of its tasks once, and no other content be taken under its id.
    """
    complaints: list[str] = []
    with chaos_farm(directory) as farm:
        await farm.start(CALM_S, workers=3)
        kills = _Kills(farm, min(rounds, ROUNDS_BETWEEN_KILLS))
        numbers = iter(range(rounds))
        lanes = [asyncio.create_task(_lane(farm, kills, numbers, complaints)) for _ in range(LANES)]
        try:
            while kills.down or not all(lane.done() for lane in lanes):
                raise_failed(lanes)
                await kills.restart()
                await asyncio.sleep(0.01)
            raise_failed(lanes)
        finally:
            for lane in lanes:
                lane.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)
        await farm.read_again()
        complaints += await _miscounted(farm)
        done = f"{rounds} submissions repeated, {(rounds + 1) // 2} after SIGKILL of their client, {rounds // 2} over a cut connection; {len(farm.history.faults)} SIGKILLs of the orchestrator"
        report = Report.untouched(done, farm.verdict(), farm.losses())
    report.complaints += complaints
    return report


class _Kills:
    """Kills the orchestrator now and then, each time at once when a job was acknowledged: what is not durable by then is lost."""

    def __init__(self, farm: ChaosFarm, between_max: int) -> None:
        self._farm = farm
        self._between_max = between_max
        self._left = farm.dice.randint(1, between_max)
        self.down = False

    def acknowledged(self) -> None:
        """To be called when a job was."""
        self._left -= 1
        if self._left == 0:
            self._farm.signal(signal.SIGKILL, "orchestrator")
            self.down = True

    async def restart(self) -> None:
        """Start it again where it was killed."""
        if self.down:
            await self._farm.kill("orchestrator")  # it is dead; now its farm knows
            await self._farm.restart("orchestrator")
            self.down, self._left = False, self._farm.dice.randint(1, self._between_max)


async def _lane(farm: ChaosFarm, kills: _Kills, numbers: Iterator[int], complaints: list[str]) -> None:
    """One job after the other, each submitted at least twice."""
    async with (
        _nursery(farm.directory) as nursery,
        FaultProxy(farm.farm.address) as proxy,
        await connect(farm.farm.address, PATIENCE_S) as client,
        await connect(proxy.address, PATIENCE_S) as cut_off,
    ):
        for number in numbers:
            job_id, tasks = f"r{number}", farm.dice.randint(1, TASKS_MAX)
            last = farm.dice.randint(0, tasks)
            farm.history.submitted[job_id] = tasks
            if number % 2:
                await _submit(
                    cut_off, farm.path, job_id, tasks, lambda n, last=last: proxy.cut() if n == last else None
                )
            else:
                await _killed(nursery, farm, job_id, tasks, last)
                await _submit(client, farm.path, job_id, tasks)
            farm.acknowledge(job_id)
            kills.acknowledged()
            complaints += await _taken_for_the_same(client, farm, job_id, tasks)
            async for batch in client.connection.results(job_id):
                farm.tell(job_id, batch)


async def _submit(
    client: AsyncFarm,
    path: str,
    job_id: str,
    tasks: int,
    tell: Callable[[int], object] = lambda number: None,
    *,
    other: int = -1,
    seconds: float = 0.0,
) -> None:
    """A job whose calls come at a pace. `tell` hears of each before it goes, and of the end. `other`: the index of a call that is another one."""

    async def calls() -> AsyncIterator[int]:
        for number in range(tasks):
            tell(number)
            yield tasks if number == other else number
            await asyncio.sleep(PACE_S)
        tell(tasks)

    common = {"path": path, "name": job_id, "seconds": seconds}
    async with asyncio.timeout(2 * PATIENCE_S):
        await client.map("chaos.step", calls(), job_id=job_id, common=common)


async def _killed(nursery: asyncio.subprocess.Process, farm: ChaosFarm, job_id: str, tasks: int, last: int) -> None:
    """Let a client process submit, and kill it when it is about to send its call number `last`."""
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    nursery.stdin.write(f"{farm.farm.address} {farm.path} {job_id} {tasks}\n".encode())
    async with asyncio.timeout(PATIENCE_S):
        while True:
            whose, pid, number = (await nursery.stdout.readline()).decode().split()
            if (whose, int(number)) == (job_id, last):
                os.kill(int(pid), signal.SIGKILL)
                return


async def _taken_for_the_same(client: AsyncFarm, farm: ChaosFarm, job_id: str, tasks: int) -> list[str]:
    """Submit other content under the id: a call that differs, a specification that differs, a call more."""
    differing: dict[str, dict[str, float]] = {
        "with another call": {"tasks": tasks, "other": farm.dice.randrange(tasks)},
        "with another argument of all calls": {"tasks": tasks, "seconds": 1.0},
        "with one call more": {"tasks": tasks + 1},
    }
    complaints = []
    for what, options in differing.items():
        try:
            await _submit(client, farm.path, job_id, **options)  # type: ignore[arg-type]
        except (Conflict, JobClosed):
            continue
        complaints.append(f"{job_id} was taken for the same {what} (of {tasks}): {options}")
    return complaints


async def _miscounted(farm: ChaosFarm) -> list[str]:
    """Jobs that the orchestrator has not exactly once, or not with as many tasks as they were submitted with."""
    async with await connect(farm.farm.address, PATIENCE_S) as client:
        found = [(status.job_id, status.task_count) async for status in client.jobs()]
    wanted = [(job_id, farm.history.submitted[job_id]) for job_id in farm.history.acknowledged]
    return [
        f"it has {job} {found.count(job)} times"
        for job in {*found, *wanted}
        if not (found.count(job) == wanted.count(job) == 1)
    ]


@asynccontextmanager
async def _nursery(directory: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that makes client processes, in little time because it has loaded all that they need. They end with it."""
    with (directory / "clients.log").open("a") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            __file__,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def _be_the_nursery() -> None:
    """Each line makes a process that submits what the line says. gRPC has not begun anything yet when it forks."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for line in sys.stdin:
        if os.fork() == 0:
            address, path, job_id, tasks = line.split()
            asyncio.run(_be_a_client(address, path, job_id, int(tasks)))


async def _be_a_client(address: str, path: str, job_id: str, tasks: int) -> None:
    """Submits, writes a line before each call, and waits for its end."""
    connection = await Connection.open(address, patience_s=PATIENCE_S, dial_timeout_s=PATIENCE_S)

    def tell(number: int) -> None:
        os.write(sys.stdout.fileno(), f"{job_id} {os.getpid()} {number}\n".encode())  # whole or not at all

    await _submit(AsyncFarm(connection), path, job_id, tasks, tell)
    await asyncio.Event().wait()


# ---- cancels at any moment ------------------------------------------------------------------------------------------------

WORKERS, SLOTS = ("w1", "w2", "w3"), 2
STOP_S = 0.5
"""What it may take until a worker has heard of a cancel that its client knows of, on a loaded machine: both are told at the same time."""
GATED = 0.3
"""So many of the jobs are of tasks that end only when they are let go, some time after the cancel."""
GATED_TASKS = 12
SUCCEEDED, CANCELLED = common_pb2.TASK_STATE_SUCCEEDED, common_pb2.TASK_STATE_CANCELLED


class _Cancels:
    """What was cancelled, and what the acknowledgement said about it."""

    def __init__(self, farm: ChaosFarm, client: AsyncFarm) -> None:
        self._farm = farm
        self._client = client
        self.said: dict[Task, int] = {}
        """In which state each cancelled task was, once its cancel was acknowledged."""
        self.others: set[Task] = set()
        """Tasks of the same jobs that nobody cancelled."""
        self.acknowledged_at: dict[str, float] = {}
        self.quiet_at: dict[str, float] = {}
        """From when on nothing that was cancelled of a job may begin."""
        self.complaints: list[str] = []

    async def job(self, job_id: str, tasks: int) -> None:
        """Cancel a whole job. Its record must be complete with that."""
        connection = self._client.connection
        answer = await connection.call(connection.jobs.CancelJob, job_pb2.CancelJobRequest(job_id=job_id))
        self.acknowledged_at[job_id] = time.time()
        counts = {count.state: count.count for count in answer.job.counts}
        if sum(counts.values()) != tasks or counts.keys() - {SUCCEEDED, CANCELLED}:
            self.complaints.append(f"{job_id} of {tasks} tasks was cancelled with tasks in states {counts}")
        messages = [m async for batch in connection.results(job_id, follow=False) for m in batch]
        self.said.update({(job_id, m.index): m.state for m in messages})
        found = Counter(m.state for m in messages)
        if found != counts:
            self.complaints.append(f"{job_id} was cancelled with {counts}, and its record says {found}")
        self._farm.tell(job_id, messages)

    async def some(self, job_id: str, tasks: int) -> None:
        """Cancel single tasks of a job, all at once."""
        connection = self._client.connection
        indices = self._farm.dice.sample(range(tasks), self._farm.dice.randint(1, tasks))
        self.others.update((job_id, index) for index in range(tasks) if index not in indices)

        async def one(index: int) -> None:
            request = task_pb2.CancelTaskRequest(job_id=job_id, index=index)
            self.said[job_id, index] = (await connection.call(connection.tasks.CancelTask, request)).task.state

        await asyncio.gather(*map(one, indices))
        self.acknowledged_at[job_id] = time.time()

    def judge(self) -> list[str]:
        """Compare with what is recorded and was executed. After the farm's verdict."""
        history = self._farm.history
        final = {(job_id, o.index): o.state for job_id, outcomes in history.recorded.items() for o in outcomes}
        complaints = [
            f"{task} was {said} when its cancel was acknowledged, and is {final.get(task)}"
            for task, said in self.said.items()
            if final.get(task) != said or said not in {SUCCEEDED, CANCELLED}
        ]
        complaints += [
            f"{task}, which nobody cancelled, is {final.get(task)}"
            for task in self.others
            if final.get(task) != SUCCEEDED
        ]
        for execution in history.executions:
            if execution.task in self.said and execution.began_at > self.quiet_at[execution.job_id]:
                late_s = execution.began_at - self.acknowledged_at[execution.job_id]
                complaints.append(f"{execution.task} began {late_s:.2f} s after its cancel was acknowledged")
        return self.complaints + complaints

    def latest_s(self) -> float:
        """How long after the acknowledgement of a cancel the last task of it began, orchestrators that died meanwhile included."""
        return max(
            (e.began_at - self.acknowledged_at[e.job_id] for e in self._farm.history.executions if e.task in self.said),
            default=0.0,
        )


async def cancel_races(directory: Path, rounds: int) -> Report:
    """Jobs, and some tasks of others, are cancelled at once, when they have begun and when they are ending; every fourth time the orchestrator dies around that.

    What the acknowledgement says must stay so, nothing may begin afterwards, and in the end all slots must be free.
    """
    with chaos_farm(directory) as farm:
        await farm.start(CALM_S, workers=len(WORKERS), slots=SLOTS)
        async with await connect(farm.farm.address, PATIENCE_S) as client:
            cancels = _Cancels(farm, client)
            async with farm.load(clients=1, tasks=20):
                for number in range(rounds):
                    await _cancelled(farm, client, cancels, number)
            await until(lambda: _all_free(client), "no worker holds anything", PATIENCE_S)
            await _meet(farm, client)
        kills = len(farm.history.faults)
        done = f"{rounds} cancels, {kills} with a SIGKILL of the orchestrator around them"
        report = Report.untouched(done, farm.verdict(), farm.losses())
    states = Counter(cancels.said.values())
    report.figures += f"; {states[CANCELLED]} tasks cancelled, {states[SUCCEEDED]} had succeeded before; the last to begin did so {cancels.latest_s():.2f} s after the acknowledgement"
    report.complaints += cancels.judge()
    return report


async def _cancelled(farm: ChaosFarm, client: AsyncFarm, cancels: _Cancels, number: int) -> None:
    """One job, cancelled at the moment and with the fault that the number stands for."""
    dice = farm.dice
    job_id, gated = f"x{number}", dice.random() < GATED
    farm.history.cancelled.add(job_id)
    if gated:
        tasks, goal = GATED_TASKS, (b"begin", dice.randint(0, SLOTS))
        await farm.submit(client, job_id, tasks, 0.0, type_="chaos.gated")
    else:
        tasks = dice.randint(1, 24)
        goal = dice.choice((b"begin", b"end")), dice.randint(0, tasks)
        await farm.submit(client, job_id, tasks, dice.choice((0.005, 0.05)))
    await until(lambda: _noted(farm, goal[0], job_id) >= goal[1], f"{goal} of {job_id}", PATIENCE_S)
    some = number % 3 == 2 and not gated
    cancel = asyncio.create_task((cancels.some if some else cancels.job)(job_id, tasks))
    if number % 8 == 1:
        await asyncio.sleep(dice.uniform(0, 0.005))  # so that it dies in every part of a cancel
    else:
        await cancel
    if number % 4 == 1:
        await farm.kill("orchestrator")
        await farm.restart("orchestrator")
        await cancel
        await until(lambda: _attached(client), "the workers are back", PATIENCE_S)
    cancels.quiet_at[job_id] = time.time() + STOP_S
    if gated:
        await asyncio.sleep(STOP_S)  # what waits behind those that run must be gone when they end
        _let_go(farm, job_id)


def _let_go(farm: ChaosFarm, job_id: str) -> None:
    Path(f"{farm.path}.{job_id}").touch()


def _noted(farm: ChaosFarm, what: bytes, job_id: str) -> int:
    """Executions of a job that have begun, or ended."""
    path = Path(farm.path)
    return path.read_bytes().count(b"%s %s " % (what, job_id.encode())) if path.exists() else 0


async def _workers(client: AsyncFarm) -> Sequence[worker_pb2.Worker]:
    connection = client.connection
    return (await connection.call(connection.workers.ListWorkers, worker_pb2.ListWorkersRequest())).workers


async def _attached(client: AsyncFarm) -> bool:
    return [worker.state for worker in await _workers(client)] == [worker_pb2.WORKER_STATE_READY] * len(WORKERS)


async def _all_free(client: AsyncFarm) -> bool:
    return [worker.held for worker in await _workers(client)] == [0] * len(WORKERS)


async def _meet(farm: ChaosFarm, client: AsyncFarm) -> None:
    """As many tasks as there are slots, none of which ends before all have begun."""
    count = len(WORKERS) * SLOTS
    common = {"path": f"{farm.path}.meeting", "count": count}
    job = await client.map("chaos.meet", range(count), job_id="meeting", common=common)
    async with asyncio.timeout(PATIENCE_S):
        assert [value async for value in job.results()] == [count] * count


# ---- far too much ---------------------------------------------------------------------------------------------------------

FLOOD_S = 6.0
QUEUED_MIB = 16
FILLER = "x" * 16_000
FLOOD_TASKS, FLOOD_SECONDS = 50, 0.1
"""Tasks of a job of the flood, and what each takes."""
CAPACITY = len(WORKERS) * SLOTS / FLOOD_SECONDS
"""Tasks a second that the farm could run if all else cost nothing."""
FLOOD_CLIENTS = 8
PATIENT_CLIENTS = 2
BACK_MAX_S = 10.0
RSS_GROWTH_MAX_MIB = 100
"""What the flood may cost in memory: the payloads that are let in, those that are on their way, and as much again for what Python makes of them."""


class _Flood:
    """Clients that submit far more than the farm can run, without ever waiting when they are refused."""

    def __init__(self, farm: ChaosFarm, client: AsyncFarm) -> None:
        self._farm = farm
        self._client = client
        self.offered = 0
        self.refused = 0
        self.silent_s = 0.0
        self.rates: list[float] = []
        """Tasks a second that began during each flood."""
        self.complaints: list[str] = []

    async def run(self, number: int) -> None:
        """For its time, beside patient clients, which get all in that they have."""
        began, end = self._farm.begun(), time.monotonic() + FLOOD_S
        patient = [asyncio.create_task(self._wait_patiently(f"p{number}-{n}", end)) for n in range(PATIENT_CLIENTS)]
        await asyncio.gather(self._look(end), *(self._pour(f"f{number}-{n}", end) for n in range(FLOOD_CLIENTS)))
        self.rates.append((self._farm.begun() - began) / (FLOOD_S + time.monotonic() - end))
        await asyncio.gather(*patient)

    async def _pour(self, name: str, end: float) -> None:
        """One job after the other, each sent once, at a pace at which all together offer ten times what the farm can run."""
        payloads = None
        pace_s = FLOOD_TASKS * FLOOD_CLIENTS / (10 * CAPACITY)
        turn, due = 0, time.monotonic()
        while (now := time.monotonic()) < end:
            if now < due:
                await asyncio.sleep(due - now)
            due += pace_s
            turn += 1
            job_id = f"{name}-{turn}"
            plan = await self._client.plan("chaos.heavy", _CALLS, self._common(job_id))
            payloads = payloads or list(plan.payloads())
            await self._once(
                job_pb2.CreateJobRequest(job_id=job_id, spec=spec_to_wire(plan.spec), payloads=payloads, close=True)
            )

    async def _once(self, request: job_pb2.CreateJobRequest) -> None:
        history, job_id = self._farm.history, request.job_id
        self.offered += FLOOD_TASKS
        history.submitted[job_id] = FLOOD_TASKS
        try:
            await self._client.connection.jobs.CreateJob(request, timeout=CALL_TIMEOUT_S)
            self._farm.acknowledge(job_id)
        except grpc.aio.AioRpcError as rpc_error:
            error = error_from_rpc(rpc_error)
            del history.submitted[job_id]  # nothing of it may be there
            self.refused += 1
            if not isinstance(error, Overloaded) or not error.retry_after_s:
                self.complaints.append(f"{job_id} was refused without a pause: {error!r}")

    async def _wait_patiently(self, name: str, end: float) -> None:
        """Jobs as the library sends them: it waits when it is refused."""
        turn = 0
        while time.monotonic() < end:
            turn += 1
            job_id = f"{name}-{turn}"
            self.offered += FLOOD_TASKS
            self._farm.history.submitted[job_id] = FLOOD_TASKS
            await self._client.map("chaos.heavy", *_CALLS, job_id=job_id, common=self._common(job_id))
            self._farm.acknowledge(job_id)

    def _common(self, job_id: str) -> dict[str, object]:
        return {"path": self._farm.path, "name": job_id, "seconds": FLOOD_SECONDS}

    async def _look(self, end: float) -> None:
        """How long any worker was not heard of."""
        while time.monotonic() < end:
            for worker in await _workers(self._client):
                self.silent_s = max(self.silent_s, worker.silent_for.ToNanoseconds() / 1e9)
            await asyncio.sleep(0.05)


_CALLS = (range(FLOOD_TASKS), [FILLER] * FLOOD_TASKS)


async def floods(directory: Path, rounds: int) -> Report:
    """Clients submit ten times what the farm can run. What is refused is refused with a pause and not taken, what is taken runs, and nobody is lost.

    The memory of the orchestrator stays bounded, and soon afterwards a new job runs at once again.
    """
    backs: list[float] = []
    with chaos_farm(directory) as farm:
        await farm.start(CALM_S, workers=len(WORKERS), slots=SLOTS, options=["--queued-mib", str(QUEUED_MIB)])
        pid = farm.farm.program("orchestrator").pid
        async with await connect(farm.farm.address, 2 * PATIENCE_S) as client:
            flood = _Flood(farm, client)
            before_mib = memory_mib(pid)
            for number in range(rounds):
                await flood.run(number)
                ended = time.monotonic()
                await farm.submit(client, f"after-{number}", 1, 0.0)
                async for batch in client.connection.results(f"after-{number}"):
                    farm.tell(f"after-{number}", batch)
                backs.append(time.monotonic() - ended)
            await farm.read_again()
            complaints = flood.complaints + await _miscounted(farm)
        grown_mib = memory_mib(pid, "VmHWM") - before_mib
        report = Report.untouched(f"{rounds} floods of {FLOOD_S:g} s", farm.verdict(), farm.losses())
    report.figures += (
        f"; {flood.offered} tasks offered, {flood.offered / (rounds * FLOOD_S * CAPACITY):.1f} times what could run, of which {min(flood.rates) / CAPACITY:.0%} or more ran meanwhile; {flood.refused} jobs of {FLOOD_TASKS} refused, memory grew by {grown_mib:.0f} MiB at most ({QUEUED_MIB} of payloads), "
        f"no worker was silent for more than {flood.silent_s:.2f} s, a new job was done {max(backs):.2f} s after the flood at the latest"
    )
    report.complaints += complaints
    if not flood.refused:
        report.complaints.append("nothing was refused: that was no flood")
    if grown_mib > RSS_GROWTH_MAX_MIB:
        report.complaints.append(f"memory grew by {grown_mib:.0f} MiB, more than {RSS_GROWTH_MAX_MIB}")
    if max(backs) > BACK_MAX_S:
        report.complaints.append(f"a new job was done {max(backs):.2f} s after the flood")
    return report


if __name__ == "__main__":
    _be_the_nursery()

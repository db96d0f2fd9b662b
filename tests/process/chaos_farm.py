"""A farm of real programs under load, with everything written down for the history checker: submissions, executions, records, faults."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from farm_bench import connect, local_farm, until, worker_of
from history import NOBODY, Fault, History, Outcome, Task, Verdict, check, read_executions

from antfarm.client.farm import AsyncFarm
from antfarm.errors import AntFarmError
from antfarm.local import LocalFarm
from antfarm.v1 import common_pb2, worker_pb2

APP = str(Path(__file__).parent / "chaos_app.py")
PATIENCE_S = 60.0
"""For anything to happen that must: far beyond what a loaded machine takes."""
CLIENT_PATIENCE_S = 600.0
"""How long a client of the load tries on. An orchestrator that dies in its first second, time after time, has no ear for it for minutes."""


class ChaosFarm:
    """One orchestrator with workers, its history, and dice of a given seed for when and whom to hit."""

    def __init__(self, farm: LocalFarm, directory: Path, seed: int = 1) -> None:
        self.farm = farm
        self.directory = directory
        self.path = str(directory / "executions")
        self.history = History()
        self._sums: dict[str, int] = {}  # result of every task of the jobs whose tasks are expanded below
        self.dice = random.Random(seed)
        self._offset = 0
        self._begun = 0
        self._clients: list[asyncio.Task[None]] = []
        self._connected = 0
        self._relayed = False

    # ---- programs ---------------------------------------------------------------------------------------------------

    async def start(self, heartbeat_s: float, workers: int = 4, slots: int = 2, options: Sequence[str] = ()) -> None:
        """An orchestrator "orchestrator", with further options, and workers w1, w2 ..."""
        options = ["--heartbeat-s", str(heartbeat_s), *options]
        await asyncio.to_thread(self.farm.start_orchestrator, options=options)
        await self.start_workers([f"w{n + 1}" for n in range(workers)], slots=slots)

    async def start_workers(
        self, names: list[str], *, slots: int = 2, connect: str = "", options: Sequence[str] = ()
    ) -> None:
        """Start workers at the same time."""
        options = ["--no-installed-apps", "--cancel-grace-s", "1", *options]

        async def one(name: str) -> None:
            await asyncio.to_thread(
                self.farm.start_worker, name, slots=slots, app=[APP], options=options, connect=connect
            )

        await asyncio.gather(*map(one, names))

    async def kill(self, *names: str) -> None:
        """SIGKILL, noted; workers are then excused for what they had."""
        for name in names:
            program = self.farm.program(name)
            agent = program.pid if program.role == "worker" else NOBODY
            self.history.faults.append(Fault(name, time.time(), agent))
            await asyncio.to_thread(self.farm.kill, name)

    async def restart(self, *names: str) -> None:
        """Start programs again, at the same time. When one cannot be started, that is raised after all have been tried."""
        starts = (asyncio.to_thread(self.farm.restart, name) for name in names)
        for end in await asyncio.gather(*starts, return_exceptions=True):
            if isinstance(end, BaseException):
                raise end

    @contextmanager
    def troubled(self, *workers: str) -> Iterator[None]:
        """What happens to these living workers inside is noted as one fault of each; leave it when they are well again."""
        at = time.time()
        agents = {name: self.farm.program(name).pid for name in workers}
        yield
        self.history.faults += [Fault(name, at, agent, until=time.time()) for name, agent in agents.items()]

    def signal(self, number: signal.Signals, *names: str, children: bool = False) -> None:
        """A signal to programs, on wish also to what they have started."""
        for name in names:
            pid = self.farm.program(name).pid
            for each in [pid, *(children_of(pid) if children else ())]:
                os.kill(each, number)

    # ---- load -------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def load(
        self,
        *,
        clients: int = 3,
        tasks: int = 40,
        seconds: float = 0.02,
        address: str = "",
        expand: int = 0,
        type_: str = "chaos.step",
        relayed: bool = False,
    ) -> AsyncIterator[None]:
        """Clients that each submit one job after the other and read its outcomes. At the end the last jobs are waited for, and all is read again.

        `expand`: submit requests that become so many tasks each, below. `relayed`: the tasks are executed below as they are.
        """
        where = address or self.farm.address
        self._relayed = relayed

        def client(number: int, end: asyncio.Event) -> Coroutine[Any, Any, None]:
            return self._client(number, end, tasks, seconds, where, expand, type_)

        self._connected = 0
        async with at_work(client, clients) as self._clients:
            # A client that finds nobody at its start does not wait for long.
            await until(lambda: self._connected == clients, "every client is connected", PATIENCE_S)
            await self.progress()
            yield
        await self.read_again(where)

    async def _client(
        self, number: int, end: asyncio.Event, tasks: int, seconds: float, address: str, expand: int, type_: str
    ) -> None:
        async with await connect(address, CLIENT_PATIENCE_S) as client:
            self._connected += 1
            turn = 0
            while not end.is_set():
                turn += 1
                job_id = f"c{number}-{turn}"
                await self.submit(client, job_id, tasks, seconds, expand=expand, type_=type_)
                async for batch in client.connection.results(job_id):
                    self.tell(job_id, batch)

    async def submit(
        self, client: AsyncFarm, job_id: str, tasks: int, seconds: float, *, expand: int = 0, type_: Any = "chaos.step"
    ) -> None:
        """One job of a type's name, or of a task with its options; it counts as acknowledged when this returns."""
        submitted = self.history.submitted
        submitted[job_id] = tasks
        if self._relayed:
            self.history.relayed.add(job_id)
        arguments: dict[str, object] = {"path": self.path, "name": job_id, "seconds": seconds}
        if expand:
            arguments["count"] = expand
            squares = sum(n * n for n in range(expand))
            levels = 2 if type_ == "chaos.requests" else 1
            self._sums[job_id] = squares * 2 ** (levels - 1)
            self.history.expanded.add(job_id)
            for index in range(tasks):
                if levels == 1:
                    submitted[f"{job_id}.{index}"] = expand
                else:
                    submitted.update({f"{job_id}.{index}.{below}": expand for below in range(2)})
        await client.map(type_, range(tasks), job_id=job_id, common=arguments)
        self.acknowledge(job_id)

    def acknowledge(self, job_id: str) -> None:
        """A client was told just now that the whole job is durable."""
        self.history.acknowledged[job_id] = time.time()

    def tell(self, job_id: str, messages: Sequence[common_pb2.TaskResult]) -> None:
        """A client was told these outcomes."""
        self.history.told += [(job_id, _outcome(message)) for message in messages]

    async def read_again(self, address: str = "") -> None:
        """What is recorded of every acknowledged job, from the beginning."""
        async with await connect(address or self.farm.address, PATIENCE_S) as client:
            for job_id in sorted(self.history.acknowledged):
                outcomes = self.history.recorded[job_id]
                async for batch in client.connection.results(job_id):
                    outcomes += map(_outcome, batch)

    def begun(self) -> int:
        """Executions that have begun so far."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._offset)
                more = file.read()
        except FileNotFoundError:
            return 0
        self._offset += len(more)
        self._begun += more.count(b"begin ")
        return self._begun

    async def progress(self, executions: int = 1, *, since: int | None = None) -> None:
        """Wait until so many more executions have begun: the farm works, and the next fault hits work. `since`: more than that, not than now."""
        goal = (self.begun() if since is None else since) + executions

        def there() -> bool:
            raise_failed(self._clients)
            return self.begun() >= goal

        await until(there, f"{executions} more executions begin", PATIENCE_S)

    # ---- looking ----------------------------------------------------------------------------------------------------

    async def all_in_state(self, client: AsyncFarm, state: int, *workers: str) -> None:
        """Wait until these workers are in that state."""

        async def there() -> bool:
            return {(await worker_of(client, name)).state for name in workers} == {state}

        await until(there, f"{workers} in state {worker_pb2.WorkerState.Name(state)}", PATIENCE_S)  # type: ignore[arg-type]

    def losses(self, name: str = "orchestrator") -> list[str]:
        """Workers that the orchestrator has declared lost, by its log, in order."""
        return re.findall(r"lost: worker (\S+) was silent", self.farm.program(name).log.read_text())

    def note_quarantines(self) -> None:
        """Note each quarantine as a fault of its worker, by the orchestrator's log: what is not known to have begun there is given to others. Before `verdict`."""
        for clock, name in re.findall(
            r"(\d\d:\d\d:\d\d) .* quarantine: worker (\S+):", self.farm.program("orchestrator").log.read_text()
        ):
            began = datetime.combine(datetime.now().date(), datetime.strptime(clock, "%H:%M:%S").time())
            if began > datetime.now():  # it was before midnight
                began -= timedelta(days=1)
            at = began.timestamp()
            self.history.faults.append(Fault(f"quarantine of {name}", at, self.farm.program(name).pid, until=at + 1.0))

    def verdict(self) -> Verdict:
        """Judge all that has happened. After the load."""
        self.history.executions = read_executions(Path(self.path))
        return check(self.history, self._expected)

    def _expected(self, task: Task) -> bytes:
        job_id, index = task
        return b"%d" % self._sums.get(job_id, index * index)


def _outcome(message: common_pb2.TaskResult) -> Outcome:
    succeeded = message.state == common_pb2.TASK_STATE_SUCCEEDED
    return Outcome(message.index, succeeded, message.attempt, bytes(message.result), message.state)


def children_of(pid: int) -> list[int]:
    """What a process has started, and what that has started."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            below = [int(word) for word in (task / "children").read_text().split()]
        except OSError:
            continue
        found += [pid for child in below for pid in (child, *children_of(child))]
    return found


@contextmanager
def chaos_farm(directory: Path, seed: int = 1) -> Iterator[ChaosFarm]:
    """A farm of which nothing is left in the end."""
    with local_farm(directory) as farm:
        yield ChaosFarm(farm, directory, seed)


async def dies(farm: ChaosFarm, name: str) -> None:
    """Wait until a program has died of itself."""
    program = farm.farm.program(name)
    await until(lambda: not program.running, f"{name} dies", PATIENCE_S)


@asynccontextmanager
async def at_work(
    client: Callable[[int, asyncio.Event], Coroutine[Any, Any, None]], count: int
) -> AsyncIterator[list[asyncio.Task[None]]]:
    """So many clients meanwhile, each told its number and the event at which it is to end what it has begun, and no more."""
    end = asyncio.Event()
    clients = [asyncio.create_task(client(number, end)) for number in range(count)]
    try:
        yield clients
        end.set()
        async with asyncio.timeout(2 * PATIENCE_S):
            await asyncio.gather(*clients)
    finally:
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


def raise_failed(clients: Iterable[asyncio.Task[None]]) -> None:
    """Raise what one of them has failed with."""
    for client in clients:
        if client.done():
            client.result()


async def restart_armed(farm: ChaosFarm, name: str, failpoints: str) -> bool:
    """Start a program with failpoints. False: it died before it was ready, as some of them want."""
    farm.farm.environment["ANTFARM_FAILPOINTS"] = failpoints
    try:
        await asyncio.to_thread(farm.farm.restart, name)
    except AntFarmError as error:
        if "exit code -9" not in str(error):
            raise
        return False
    finally:
        del farm.farm.environment["ANTFARM_FAILPOINTS"]
    return True

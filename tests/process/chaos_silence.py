"""Series in which programs live but are not heard: stopped, cut off, on lossy lines, under clocks that jump."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from chaos_app import SLOWNESS, twice
from chaos_farm import ChaosFarm, chaos_farm
from chaos_report import Report
from farm_bench import CALM_S, connect, until
from fault_proxy import FaultProxy

from antfarm.v1 import worker_pb2

LOST, READY, SUSPECT = (
    worker_pb2.WORKER_STATE_LOST,
    worker_pb2.WORKER_STATE_READY,
    worker_pb2.WORKER_STATE_SUSPECT,
)
SHORT_H_S = 0.5
"""Heartbeat of the series in which leases have to end: a lease of 2 s in place of 12."""
DEFAULT_H_S = 3.0
DETECTION_MAX_S = 12.25
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"


async def zombies(directory: Path, rounds: int) -> Report:
    """Workers are stopped for longer than their lease and continued; every second time with the processes that run their tasks."""
    with chaos_farm(directory) as farm:
        names = _names(rounds)
        await farm.start(SHORT_H_S, workers=len(names), slots=1)
        async with farm.load(), await connect(farm.farm.address) as client:
            for number, victims in enumerate(_victims(farm, names, rounds)):
                await farm.progress(4)
                children = number % 2 == 1
                with farm.troubled(*victims):
                    farm.signal(signal.SIGSTOP, *victims, children=children)
                    await farm.all_in_state(client, LOST, *victims)
                    farm.signal(signal.SIGCONT, *victims, children=children)
                    await farm.all_in_state(client, READY, *victims)
        return Report(done=f"{rounds} zombies (lease scaled to {4 * SHORT_H_S:g} s)", verdict=farm.verdict())


async def slow_node(directory: Path, rounds: int) -> Report:
    """One node of three takes sixty times as long for everything. The task that it holds at the end of a job gets a backup elsewhere."""
    tasks, seconds, slots = 40, 1.0, 2
    took: list[float] = []
    with chaos_farm(directory) as farm:
        await farm.start(SHORT_H_S, workers=0)
        for name in ("w1", "w2"):
            await farm.start_workers([name], slots=slots, options=["--node", name])
        farm.farm.environment[SLOWNESS] = "60"
        await farm.start_workers(["slow"], slots=1, options=["--node", "slow", "--env", SLOWNESS])
        async with await connect(farm.farm.address) as client:
            for number in range(rounds):
                began = time.monotonic()
                with farm.troubled("slow"):
                    await farm.submit(client, f"slow-{number}", tasks, seconds, type_=twice)
                    async for _ in client.connection.results(f"slow-{number}"):
                        pass
                took.append(time.monotonic() - began)
            await farm.read_again(farm.farm.address)
        ideal = tasks * seconds / (2 * slots)
        figures = f"{min(took) / ideal:.2f} to {max(took) / ideal:.2f} of what the other nodes alone need at best"
        verdict = farm.verdict()
        complaints = [] if verdict.repeated >= rounds else ["a task on the slow node got no backup"]
        return Report(
            done=f"{rounds} jobs with a slow node (heartbeat scaled to {SHORT_H_S:g} s)",
            verdict=verdict,
            figures=figures,
            complaints=complaints,
        )


def _names(rounds: int) -> list[str]:
    """Enough workers for the count; two of them are always left alone."""
    return [f"w{n + 1}" for n in range(min(rounds, 10) + 2)]


def _victims(farm: ChaosFarm, names: list[str], rounds: int) -> list[list[str]]:
    """Whom to hit, time after time, until it was done so often."""
    at_once = len(names) - 2
    sizes = [at_once] * (rounds // at_once) + ([rounds % at_once] if rounds % at_once else [])
    return [farm.dice.sample(names, size) for size in sizes]


# ---- partitions -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _behind_proxies(
    directory: Path, rounds: int, heartbeat_s: float
) -> AsyncIterator[tuple[ChaosFarm, dict[str, FaultProxy]]]:
    """A farm whose workers each reach their orchestrator through a proxy of their own."""
    with chaos_farm(directory) as farm:
        await farm.start(heartbeat_s, workers=0)
        async with AsyncExitStack() as stack:
            proxies = {}
            for name in _names(rounds):
                proxies[name] = await stack.enter_async_context(FaultProxy(farm.farm.address))
            await asyncio.gather(
                *(farm.start_workers([name], slots=1, connect=proxy.address) for name, proxy in proxies.items())
            )
            try:
                yield farm, proxies
            finally:
                for proxy in proxies.values():
                    proxy.heal()
                await asyncio.to_thread(farm.farm.stop)  # while there is a line to say goodbye on


async def short_partitions(directory: Path, rounds: int) -> Report:
    """Workers are cut off until they are suspect, which is half of their lease: nothing may be repeated."""
    async with _behind_proxies(directory, rounds, CALM_S) as (farm, proxies):
        async with farm.load(), await connect(farm.farm.address) as client:
            for victims in _victims(farm, list(proxies), rounds):
                await farm.progress(4)
                for name in victims:
                    proxies[name].silence()
                await farm.all_in_state(client, SUSPECT, *victims)
                for name in victims:
                    proxies[name].heal()
                await farm.all_in_state(client, READY, *victims)
        done = f"{rounds} partitions of half a lease (scaled to {4 * CALM_S:g} s)"
        return Report.untouched(done, farm.verdict(), farm.losses())


def _partitions(kind: str, begin: Callable[[FaultProxy], None]) -> Callable[[Path, int], object]:
    async def series(directory: Path, rounds: int) -> Report:
        async with _behind_proxies(directory, rounds, SHORT_H_S) as (farm, proxies):
            async with farm.load(), await connect(farm.farm.address) as client:
                for victims in _victims(farm, list(proxies), rounds):
                    await farm.progress(4)
                    with farm.troubled(*victims):
                        for name in victims:
                            begin(proxies[name])
                        await farm.all_in_state(client, LOST, *victims)
                        for name in victims:
                            proxies[name].heal()
                        await farm.all_in_state(client, READY, *victims)
            return Report(
                done=f"{rounds} {kind} until the lease is over (scaled to {4 * SHORT_H_S:g} s)",
                verdict=farm.verdict(),
            )

    return series


long_partitions = _partitions("partitions", lambda proxy: proxy.silence())
deaf_to_client = _partitions("one-way partitions, nothing from the orchestrator", lambda p: p.silence(to_server=False))
deaf_to_server = _partitions("one-way partitions, nothing from the worker", lambda p: p.silence(to_client=False))


async def half_open(directory: Path, rounds: int) -> Report:
    """The orchestrator's side of the connection ends and the worker hears nothing of it: it finds out by itself and comes back."""
    async with _behind_proxies(directory, rounds, SHORT_H_S) as (farm, proxies):
        async with farm.load(), await connect(farm.farm.address) as client:
            for victims in _victims(farm, list(proxies), rounds):
                await farm.progress(4)
                before = {name: proxies[name].connections for name in victims}
                with farm.troubled(*victims):
                    for name in victims:
                        proxies[name].half_open()
                    await until(
                        lambda before=before: all(proxies[name].connections > n for name, n in before.items()),
                        "they dial again",
                        60,
                    )
                    await farm.all_in_state(client, READY, *victims)
        return Report(
            done=f"{rounds} half-open connections (lease scaled to {4 * SHORT_H_S:g} s)", verdict=farm.verdict()
        )


async def flapping(directory: Path, rounds: int) -> Report:
    """Slow lines that come and go: what is sent takes up to 0.2 s, another time each time, and connections are cut again as soon as they stand."""
    async with _behind_proxies(directory, rounds, CALM_S) as (farm, proxies):
        async with farm.load(), await connect(farm.farm.address) as client:
            for victims in _victims(farm, list(proxies), rounds):
                await farm.progress(4)
                await farm.all_in_state(client, READY, *victims)  # a line over which no hello ever comes is a partition
                for proxy in proxies.values():
                    proxy.delay_s = farm.dice.uniform(0, 0.2)
                for name in victims:
                    proxies[name].cut()
        dials = sum(proxy.connections for proxy in proxies.values())
        report = Report.untouched(f"{rounds} cuts of slow lines", farm.verdict(), farm.losses())
        report.figures += f", {dials} connections made"
        return report


# ---- time -----------------------------------------------------------------------------------------------------------------


async def paused_orchestrator(directory: Path, rounds: int) -> Report:
    """The orchestrator stands still for five leases, as a minute is at the default ones: nobody is lost by that."""
    return await _paused(directory, rounds, SHORT_H_S)


async def paused_for_a_minute(directory: Path, rounds: int) -> Report:
    """The same at the default settings."""
    return await _paused(directory, rounds, DEFAULT_H_S)


async def _paused(directory: Path, rounds: int, heartbeat_s: float) -> Report:
    pause_s = 5 * 4 * heartbeat_s
    with chaos_farm(directory) as farm:
        await farm.start(heartbeat_s, workers=3)
        async with farm.load():
            for _ in range(rounds):
                await farm.progress(4)
                farm.signal(signal.SIGSTOP, "orchestrator")
                await asyncio.sleep(pause_s)  # the fault itself
                farm.signal(signal.SIGCONT, "orchestrator")
        done = f"{rounds} pauses of the orchestrator of {pause_s:g} s at a lease of {4 * heartbeat_s:g} s"
        return Report.untouched(done, farm.verdict(), farm.losses())


async def clock_jumps(directory: Path, rounds: int) -> Report:
    """The orchestrator's wall clock jumps by hours and years, there and back: nobody is lost and nothing repeated."""
    if not os.path.exists(FAKETIME):  # noqa: ASYNC240 - a look at a local file
        return Report(done="", skipped=f"no {FAKETIME}: install faketime")
    with chaos_farm(directory) as farm:
        clock = directory / "clock"
        clock.write_text("+0\n")
        faked = {
            "LD_PRELOAD": FAKETIME,
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        farm.farm.environment |= faked
        # Kept for longer than the clock jumps: after a restart, what ended under a clock that was a year behind has ended a year ago (ADR 13).
        await farm.start(SHORT_H_S, workers=0, options=["--keep-ended", "3650d"])
        farm.farm.environment.clear()
        await farm.start_workers(["w1", "w2", "w3"])
        async with farm.load():
            for number in range(rounds):
                clock.write_text(
                    farm.dice.choice(["+3600", "-3600", "+40000000", "-40000000", "+0.5", "-86400"]) + "\n"
                )
                await farm.progress(20)
                if number % 5 == 4:  # what it has recorded under one clock it reads under another
                    clock.write_text(farm.dice.choice(["-3600", "+86400"]) + "\n")
                    await farm.kill("orchestrator")
                    farm.farm.environment |= faked
                    await farm.restart("orchestrator")
                    farm.farm.environment.clear()
        return Report.untouched(f"{rounds} jumps of the orchestrator's wall clock", farm.verdict(), farm.losses())


async def detection(directory: Path, rounds: int) -> Report:
    """Workers die silently at the default settings: how long until each is declared lost, which queues its tasks again in the same turn."""
    with chaos_farm(directory) as farm:
        names = [f"w{n + 1}" for n in range(rounds)]
        await farm.start(DEFAULT_H_S, workers=0)
        await farm.start_workers(["spare"])
        for first in range(0, rounds, 5):
            await farm.start_workers(names[first : first + 5], slots=1)
        died: dict[str, float] = {}
        late_s: dict[str, float] = {}
        async with farm.load(seconds=0.1), await connect(farm.farm.address) as client:
            await farm.progress(2 * rounds)

            async def look() -> bool:
                answer = await client.connection.workers.ListWorkers(worker_pb2.ListWorkersRequest(page_size=1_000))
                for worker in answer.workers:
                    if worker.state == LOST and worker.worker_id in died:
                        late_s.setdefault(worker.worker_id, time.monotonic() - died[worker.worker_id])
                return len(late_s) == len(names)

            for name in names:
                died[name] = time.monotonic()
                await farm.kill(name)
                await asyncio.sleep(farm.dice.uniform(0, 0.3))  # in all phases of the heartbeat
            await until(look, "all are declared lost", 60)
        slowest = max(late_s.values())
        return Report(
            done=f"{rounds} silent deaths at the default settings",
            verdict=farm.verdict(),
            figures=f"declared lost after {min(late_s.values()):.2f} to {slowest:.2f} s (at most {DETECTION_MAX_S} s + delay)",
            complaints=[f"re-queued after {slowest:.2f} s"] if slowest > DETECTION_MAX_S + 1 else [],
        )


# ---- a network of one's own -----------------------------------------------------------------------------------------------

_RULES = "nft add table inet chaos && nft add chain inet chaos in '{ type filter hook input priority 0; }'"


def _network_of_its_own() -> str:
    """Why there is none to be had; "" when there is."""
    missing = [tool for tool in ("unshare", "ip", "nft") if shutil.which(tool) is None]
    if missing:
        return f"no {missing[0]} on this machine: install iproute2 and nftables"
    return "" if os.geteuid() == 0 else "network namespaces need root"


async def lossy_network(directory: Path, rounds: int) -> Report:
    """All packets between the programs are lost with 5 % probability, at the default settings: nobody is taken for dead."""
    return await _in_network(directory, rounds, "lossy")


async def one_way_network(directory: Path, rounds: int) -> Report:
    """A firewall drops all that the orchestrator sends, until it has lost its workers; then they come back."""
    return await _in_network(directory, rounds, "one-way")


async def _in_network(directory: Path, rounds: int, name: str) -> Report:
    """Run a series of this module in a network namespace of its own, which ends with it."""
    reason = _network_of_its_own()
    if reason:
        return Report(done="", skipped=reason)
    python = f"{sys.executable} {Path(__file__)} {name} {directory} {rounds}"
    process = await asyncio.create_subprocess_exec(
        "unshare", "--net", "sh", "-c", f"ip link set lo up && {_RULES} && exec {python}",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    text = output.decode(errors="replace")
    print(text)  # noqa: T201 - goes to the log
    if process.returncode == 0:
        return Report(done=text.rpartition("REPORT ")[2].strip())
    return Report(done=f"{rounds} rounds", complaints=[text[-3000:]])


async def lossy(directory: Path, rounds: int) -> Report:
    """Inside the namespace: see `lossy_network`."""
    await _sh("nft add rule inet chaos in meta l4proto tcp numgen random mod 100 '<' 5 counter drop")
    with chaos_farm(directory) as farm:
        await farm.start(DEFAULT_H_S, workers=4)
        began = time.monotonic()
        async with farm.load(clients=4, seconds=0.1):
            for _ in range(rounds):
                await farm.progress(100)
        counted = await _sh("nft list chain inet chaos in")
        dropped = counted.partition("packets ")[2].split(" ")[0]
        done = f"{time.monotonic() - began:.0f} s at 5 % loss, {dropped} packets dropped, default settings"
        return Report.untouched(done, farm.verdict(), farm.losses())


async def one_way(directory: Path, rounds: int) -> Report:
    """Inside the namespace: see `one_way_network`."""
    with chaos_farm(directory) as farm:
        names = [f"w{n + 1}" for n in range(4)]
        await farm.start(SHORT_H_S, workers=len(names))
        port = farm.farm.program("orchestrator").port
        async with farm.load(), await connect(farm.farm.address) as client:
            for _ in range(rounds):
                await farm.progress(4)
                before = len(farm.losses())
                with farm.troubled(*names):
                    await _sh(f"nft add rule inet chaos in tcp sport {port} drop")
                    await until(lambda before=before: len(farm.losses()) >= before + len(names), "all are lost", 60)
                    await _sh("nft flush chain inet chaos in")
                    await farm.all_in_state(client, READY, *names)
        return Report(
            done=f"{rounds * len(names)} one-way partitions by firewall (lease scaled to {4 * SHORT_H_S:g} s)",
            verdict=farm.verdict(),
        )


async def _sh(command: str) -> str:
    process = await asyncio.create_subprocess_shell(command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0, command
    return output.decode()


def _inside() -> int:
    """The program that runs in the namespace."""
    _, name, directory, rounds = sys.argv
    report = asyncio.run({"lossy": lossy, "one-way": one_way}[name](Path(directory), int(rounds)))
    print(f"REPORT {report}")  # noqa: T201
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(_inside())

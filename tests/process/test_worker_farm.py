"""Workers in a real farm: real orchestrator, real Storage, the library as client."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))

from fake_orchestrator import until
from worker_process import ROOT, WorkerProcess

from antfarm import aio, errors, net, task
from antfarm.model import FailureClass
from antfarm.storage import AsyncStorage
from antfarm.task import Task
from antfarm.v1 import common_pb2, job_pb2, job_pb2_grpc

pytestmark = pytest.mark.slow


@task(name="note")
def note(path: str, line: str, seconds: float = 0.0) -> str: ...  # type: ignore[empty-body]


@task(name="big")
def big(size: int) -> str: ...  # type: ignore[empty-body]


@task(name="aio.big")
def aio_big(size: int) -> str: ...  # type: ignore[empty-body]


@task(name="length")
def length(text: str) -> int: ...  # type: ignore[empty-body]


@task(name="aio.length")
def aio_length(text: str) -> int: ...  # type: ignore[empty-body]


@task(name="save")
def save(name: str, text: str) -> object: ...


@task(name="aio.save")
def aio_save(name: str, text: str) -> object: ...


class Program:
    """A service of the farm as a real process."""

    def __init__(self, module: str, log: Path, *flags: str) -> None:
        self.module, self.flags, self.log = module, flags, log
        self.address = ""

    async def start(self) -> Program:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(  # noqa: ASYNC220 - it takes a millisecond
                [sys.executable, "-m", self.module, *self.flags],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
            )
        assert self.process.stdout is not None
        line = await asyncio.wait_for(asyncio.to_thread(self.process.stdout.readline), 30)
        found = re.search(r"ready on (\S+)", line)
        assert found, self.log.read_text()
        self.address = found[1]
        return self

    async def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        await asyncio.wait_for(asyncio.to_thread(self.process.wait), 30)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Farm:
    """Orchestrator and Storage, and a client."""

    def __init__(self, directory: Path, orchestrator: Program, storage: Program, *flags: str) -> None:
        self.directory, self.orchestrator, self.storage, self.flags = directory, orchestrator, storage, flags

    def worker(self, *flags: str) -> WorkerProcess:
        return WorkerProcess(self.orchestrator.address, self.directory, *self.flags, *flags)


@asynccontextmanager
async def farm_in(
    directory: Path, *flags: str, host: str = "127.0.0.1", orchestrator_flags: tuple[str, ...] = ()
) -> AsyncIterator[Farm]:
    """Both services on `host` with common flags."""
    async with AsyncExitStack() as stack:
        where = ("--host", host, "--port")
        storage = Program(
            "services.storage", directory / "storage.log", *where, "0", "--backend", f"file:{directory}/blobs", *flags
        )
        await storage.start()
        stack.push_async_callback(storage.end)
        port = free_port()
        state = ("--state", str(directory / "orchestrator"), "--storage", storage.address)
        orchestrator = Program(
            "services.orchestrator",
            directory / "orchestrator.log",
            *where,
            str(port),
            *state,
            *flags,
            *orchestrator_flags,
        )
        await orchestrator.start()
        stack.push_async_callback(lambda: orchestrator.end())
        yield Farm(directory, orchestrator, storage, *flags)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
async def farm(tmp_path: Path) -> AsyncIterator[Farm]:
    async with farm_in(tmp_path) as made:
        yield made


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


async def test_large_results_and_arguments_go_by_storage_without_notice(farm: Farm) -> None:
    async with farm.worker(), await aio.connect(farm.orchestrator.address) as client:
        assert await client.submit(big, 300_000) == "x" * 300_000
        assert await client.submit(aio_big, 200_000) == "y" * 200_000
        assert await client.submit(length, "z" * 500_000) == 500_000
        assert await client.submit(big, 65_000) == "x" * 65_000
    async with AsyncStorage(farm.storage.address) as storage:
        kept = [ref.size_bytes async for ref in storage.list("tasks/") if ref.key.endswith("/result")]
    assert sorted(kept) == [200_002, 300_002]


async def test_outputs_are_in_storage_under_the_attempts_own_key(farm: Farm) -> None:
    async with farm.worker(), await aio.connect(farm.orchestrator.address) as client:
        for function in (save, aio_save):
            job = await client.map(function, ["a/report.txt"], ["some text"])
            [file] = [result async for result in job.results()]
            assert file.name == "a/report.txt"
            assert re.fullmatch(rf"tasks/{job.job_id}/0/\d+-1/a/report.txt", file.key)
            async with AsyncStorage(farm.storage.address) as storage:
                assert await storage.get(file) == b"some text"


@pytest.mark.parametrize("function", [length, aio_length], ids=["plain", "coroutine"])
async def test_a_large_argument_that_is_rotten_or_gone_fails_its_task_for_good_and_names_the_blob(
    farm: Farm, function: Task[..., int]
) -> None:
    async with await aio.connect(farm.orchestrator.address) as client:
        job = await client.map(function, ["a" * 500_000, "b" * 500_000], retries=2)
        paths = list((farm.directory / "blobs" / "blobs").rglob("*@"))
        rotten, gone = sorted(paths, key=lambda path: b"b" in path.read_bytes())
        with rotten.open("r+b") as file:
            file.seek(400_000)
            file.write(b"A")
        gone.unlink()
        async with farm.worker():
            outcomes = {outcome.index: outcome async for outcome in job.outcomes()}
            assert await client.submit(function, "c") == 1
    for index, path, kind in ((0, rotten, "DataLoss"), (1, gone, "undecodable input")):
        failure = outcomes[index].failure
        assert failure is not None
        assert (failure.failure_class, failure.kind) == (FailureClass.PERMANENT, kind)
        assert path.name.rstrip("@") in failure.message
        assert outcomes[index].attempt == 1


async def test_all_output_of_a_long_winded_command_is_kept_in_storage(farm: Farm) -> None:
    from antfarm.builtin import COMMAND, command_call

    async with farm.worker(), await aio.connect(farm.orchestrator.address) as client:
        result = await client.submit(COMMAND, **command_call(["seq", "1", "100000"]))
        key = re.search(r"all of it: (\S+) \.\.\.", result["stdout"])
        assert key
        async with AsyncStorage(farm.storage.address) as storage:
            text = (await storage.get(key[1])).decode()
        assert text == "".join(f"{n}\n" for n in range(1, 100_001))


async def test_a_function_by_value_runs_only_where_both_ends_allow_it(farm: Farm) -> None:
    offset = 7

    async with farm.worker("--allow-pickle"), await aio.connect(farm.orchestrator.address, allow_pickle=True) as client:
        assert await client.submit(lambda x: x + offset, 1) == 8
        assert await client.submit(length, {1j: object}.keys().__len__().__str__()) == 1
    async with farm.worker(), await aio.connect(farm.orchestrator.address) as client:
        with pytest.raises(errors.AntFarmError):
            await client.submit(lambda x: x + offset, 1)


async def test_a_killed_worker_and_its_next_process_do_every_task_and_record_each_once(farm: Farm) -> None:
    path = farm.directory / "trace"
    async with await aio.connect(farm.orchestrator.address) as client:
        async with farm.worker("--worker-id", "w", "--slots", "2") as worker:
            job = await client.map(note, [str(path)] * 60, [str(i) for i in range(60)], seconds=0.02)
            await until(lambda: len(lines(path)) >= 20)
            worker.signal(signal.SIGKILL)
            await worker.exit()
        async with farm.worker("--worker-id", "w", "--slots", "2"):
            results = [result async for result in job.results()]
    assert results == [str(i) for i in range(60)]
    repeated = {line: n for line, n in Counter(lines(path)).items() if n > 1}
    assert sum(repeated.values()) <= 3 * len(repeated)
    assert len(repeated) <= 2 + 2, "only what ran or waited in a child at the kill"


async def test_a_killed_orchestrator_comes_back_and_repeats_nothing_that_its_workers_hold(farm: Farm) -> None:
    path = farm.directory / "trace"
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(farm.worker("--slots", "2"))
        client = await stack.enter_async_context(await aio.connect(farm.orchestrator.address))
        job = await client.map(note, [str(path)] * 200, [str(i) for i in range(200)], seconds=0.02)
        for count in (30, 90):
            await until(lambda count=count: len(lines(path)) >= count)
            await farm.orchestrator.end(signal.SIGKILL)
            await asyncio.sleep(0.3)
            await farm.orchestrator.start()
        results = [result async for result in job.results()]
    assert results == [str(i) for i in range(200)]
    assert Counter(lines(path)) == Counter(str(i) for i in range(200))


async def test_a_worker_that_was_taken_for_dead_goes_on_as_another_incarnation(tmp_path: Path) -> None:
    """A zombie: stopped for longer than its lease, then continued. Its late successes count or are superseded; nothing is lost."""
    path = tmp_path / "trace"
    async with farm_in(tmp_path, orchestrator_flags=("--heartbeat-s", "0.5")) as farm, AsyncExitStack() as stack:
        first = await stack.enter_async_context(farm.worker("--slots", "2"))
        client = await stack.enter_async_context(await aio.connect(farm.orchestrator.address))
        job = await client.map(note, [str(path)] * 20, [str(i) for i in range(20)], seconds=0.2)
        await until(lambda: len(lines(path)) >= 4)
        first.signal(signal.SIGSTOP)
        await until(lambda: "lost" in farm.orchestrator.log.read_text(), what="the stopped worker is declared lost")
        second = await stack.enter_async_context(farm.worker("--slots", "2"))
        await asyncio.sleep(0.5)
        first.signal(signal.SIGCONT)
        assert [result async for result in job.results()] == [str(i) for i in range(20)]
        await until(lambda: first.log.count("attached to") >= 2, what="the zombie attaches again")
        again = await client.map(note, [str(path)] * 20, [f"again{i}" for i in range(20)], seconds=0.1)
        assert len([result async for result in again.results()]) == 20
        assert second.process.poll() is None


async def test_a_cancelled_job_stops_in_the_children(farm: Farm) -> None:
    path = farm.directory / "trace"
    async with farm.worker("--slots", "2") as worker, await aio.connect(farm.orchestrator.address) as client:
        job = await client.map(note, [str(path)] * 50, [str(i) for i in range(50)], seconds=60)
        await until(lambda: len(lines(path)) == 2)
        await client.cancel(job)
        again = await client.map(note, [str(path)], ["after"])
        assert [result async for result in again.results()] == ["after"]
        worker.signal(signal.SIGTERM)
        assert await worker.exit(5) == 0
    assert len(lines(path)) == 3


async def test_inputs_come_from_the_orchestrator(farm: Farm) -> None:
    async with farm.worker():
        channel = net.open_channel(farm.orchestrator.address)
        stub = job_pb2_grpc.JobServiceStub(channel)

        async def create(job_id: str, type_: str, payloads: list[bytes], kind: int = 0) -> None:
            depends = [common_pb2.Dependency(job_id="numbers", kind=kind)] if kind else []  # type: ignore[arg-type]
            spec = job_pb2.JobSpec(template=common_pb2.TaskTemplate(type=type_), dependencies=depends)
            await stub.CreateJob(job_pb2.CreateJobRequest(job_id=job_id, spec=spec, payloads=payloads, close=True))

        await create("numbers", "add", [b"[%d, 1]" % i for i in range(50)])
        each = common_pb2.DEPENDENCY_KIND_EACH
        await create("twice", "pair", [b'[{"$input": 0}, 0]'] * 50, each)
        await create("sum", "sum:summarise", [b"[1]"], common_pb2.DEPENDENCY_KIND_ALL)
        results: dict[str, dict[int, bytes]] = {"twice": {}, "sum": {}}
        for job_id, found in results.items():
            async for message in stub.StreamResults(job_pb2.StreamResultsRequest(job_id=job_id, follow=True)):
                found.update({result.index: result.result for result in message.results})
        await channel.close()
    assert results["twice"] == {i: b"[%d,0]" % (i + 1) for i in range(50)}
    assert results["sum"] == {0: b"%d" % sum(range(1, 51))}


# ---- TLS ----------------------------------------------------------------------------------------------------------------


def issue(directory: Path) -> dict[str, tuple[str, ...]]:
    """A CA and a certificate per role; the flags of each."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    now = dt.datetime.now(dt.UTC)

    def make(name: str, uri: str, signer: tuple[object, object] | None) -> tuple[object, object]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = subject if signer is None else signer[0].subject  # type: ignore[attr-defined]
        names: list[x509.GeneralName] = [x509.DNSName("localhost")]
        if uri:
            names.append(x509.UniformResourceIdentifier(uri))
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
            .sign(key if signer is None else signer[1], hashes.SHA256())  # type: ignore[arg-type]
        )
        (directory / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (directory / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate, key

    ca = make("ca", "", None)
    flags = {}
    for role, name in (("orchestrator-up", "o"), ("worker", "w1"), ("client", "c")):
        make(name, f"spiffe://antfarm/{role}/{name}", ca)
        flags[name] = (
            "--tls-cert", f"{directory}/{name}.pem", "--tls-key", f"{directory}/{name}.key", "--tls-ca", f"{directory}/ca.pem"
        )  # fmt: skip
    return flags


async def test_with_mutual_tls_everything_works_and_without_a_certificate_nothing(tmp_path: Path) -> None:
    flags = issue(tmp_path)
    async with farm_in(tmp_path, *flags["o"], host="localhost") as farm:
        farm.flags = ()
        tls = {
            name.replace("-", "_").lstrip("_"): path
            for name, path in zip(flags["c"][::2], flags["c"][1::2], strict=True)
        }
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(farm.worker("--worker-id", "w1", *flags["w1"]))
            client = await stack.enter_async_context(await aio.connect(farm.orchestrator.address, **tls))  # type: ignore[arg-type]
            assert await client.submit(big, 300_000) == "x" * 300_000
        stranger = farm.worker("--worker-id", "w2").start()
        try:
            await until(lambda: "no connection to" in stranger.log)
            assert stranger.process.poll() is None
        finally:
            os.kill(stranger.pid, signal.SIGTERM)
            await stranger.exit()
            assert stranger.process.stdout is not None
            stranger.process.stdout.close()

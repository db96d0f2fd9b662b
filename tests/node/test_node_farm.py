"""A farm of two languages: real programs, a worker in Node beside one in Python, clients of both."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

import antfarm as af
from antfarm import net
from antfarm.v1 import common_pb2, task_pb2, task_pb2_grpc

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
Start = Callable[..., Any]


@pytest.fixture
def orchestrator(start: Start, python: str, tmp_path: Path) -> str:
    """Address of an orchestrator that notices a lost worker in about a second and a half."""
    command = (
        python,
        "-m",
        "services.orchestrator",
        "--port",
        "0",
        "--state",
        tmp_path / "state",
        "--heartbeat-s",
        "0.3",
    )
    return str(start(*command).address())


@pytest.fixture
def worker(start: Start, node: str, orchestrator: str) -> Callable[..., Any]:
    """Starts a worker in Node and waits until it is attached."""

    def run(name: str, slots: int = 2) -> Any:
        program = start(node, "examples/node/worker.js", "--connect", orchestrator, "--id", name, "--slots", str(slots))
        program.says("ready on")
        return program

    return run


@pytest.fixture
def python_worker(start: Start, python: str, orchestrator: str, tmp_path: Path) -> Any:
    """A worker in Python with the types of polyglot.py."""
    app = ROOT / "tests" / "node" / "polyglot.py"
    program = start(
        *(python, "-m", "services.worker", "--connect", orchestrator, "--slots", "1"),
        *("--worker-id", "python-1", "--app", app, "--state", tmp_path / "worker"),
    )
    program.says("ready on")
    return program


def client(node: str, address: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run client.js."""
    command = [node, "examples/node/client.js", "--connect", address, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_a_client_in_node_has_work_done_in_node_and_in_python(
    node: str, orchestrator: str, worker: Callable[..., Any], python_worker: Any
) -> None:
    worker("node-1")
    done = client(node, orchestrator, "node.wordcount", "to be or not to be", "ants")
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"be": 2, "not": 1, "or": 1, "to": 2},
        {"ants": 1},
    ]
    done = client(node, orchestrator, "python.reverse", "abc", "αβγ")
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line) for line in done.stdout.splitlines()] == ["cba", "γβα"]


def test_a_client_in_python_has_work_done_in_node(orchestrator: str, worker: Callable[..., Any]) -> None:
    worker("node-1")
    with af.connect(orchestrator) as farm:
        assert farm.submit("node.wordcount", "to be or not to be", least=2).result(timeout=30) == {"be": 2, "to": 2}
        texts = [f"word{i} word{i}" for i in "abcdefgh"] * 25
        futures = farm.map("node.wordcount", texts, least=1)
        assert [f.result(timeout=30) for f in futures] == [{text[:5]: 2} for text in texts]
        with pytest.raises(af.TaskFailed, match="PermanentError: the first argument must be a text"):
            farm.submit("node.wordcount", 42).result(timeout=30)


def test_a_failed_task_is_told_in_words_and_in_the_exit_code(
    node: str, orchestrator: str, worker: Callable[..., Any]
) -> None:
    worker("node-1")
    done = client(node, orchestrator, "node.wordcount", "one", "2")
    assert done.returncode == 1
    assert done.stdout == '{"one":1}\n'
    assert done.stderr == "2: FAILED node-1: PermanentError: the first argument must be a text\n"


def test_work_of_a_killed_node_worker_is_done_by_another(
    node: str, orchestrator: str, worker: Callable[..., Any]
) -> None:
    first = worker("node-1", slots=2)
    with af.connect(orchestrator) as farm:
        futures = [farm.submit("node.sleep", 1.0 + i / 10) for i in range(2)]
        _wait_active(orchestrator, futures)
        first.send(signal.SIGKILL)
        worker("node-2")
        assert [f.result(timeout=40) for f in futures] == [1.0, 1.1]
    for future in futures:
        task = asyncio.run(_task(orchestrator, future))
        assert (task.worker_id, task.attempt) == ("node-2", 2)
        assert (task.app_failures, task.crashes) == (0, 0)


def test_a_restarted_orchestrator_goes_on_with_what_the_worker_holds(
    node: str, start: Start, python: str, tmp_path: Path
) -> None:
    """The worker reattaches with its held set, and nothing runs twice."""
    common = (python, "-m", "services.orchestrator", "--state", tmp_path / "state", "--heartbeat-s", "0.3")
    first = start(*common, "--port", "0")
    address = first.address()
    start(node, "examples/node/worker.js", "--connect", address, "--id", "node-1").says("ready on")
    with af.connect(address) as farm:
        future = farm.submit("node.sleep", 3)
        _wait_active(address, [future])
        first.send(signal.SIGKILL)
        first.wait()
        start(*common, "--port", address.rpartition(":")[2]).says("ready on")
        assert future.result(timeout=40) == 3
    task = asyncio.run(_task(address, future))
    assert (task.worker_id, task.attempt) == ("node-1", 1)


def test_a_client_waits_for_an_orchestrator_that_comes_late(
    node: str, start: Start, python: str, tmp_path: Path
) -> None:
    done = client(node, "127.0.0.1:1", "--give-up-s", "0.5", "node.sleep", "0")
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("client.js: 127.0.0.1:1: ")


def _wait_active(address: str, futures: list[Any]) -> None:
    async def poll() -> None:
        async with asyncio.timeout(20):
            while {  # noqa: ASYNC110 - what is waited for happens in another process
                (await _task(address, future)).state for future in futures
            } != {common_pb2.TASK_STATE_ACTIVE}:
                await asyncio.sleep(0.02)

    asyncio.run(poll())


async def _task(address: str, future: Any) -> task_pb2.Task:
    """The task as it stands; an empty one while its submission is still under way."""
    request = task_pb2.GetTaskRequest(job_id=future.job_id, index=future.index)
    async with net.open_channel(address) as channel:
        stub: Any = task_pb2_grpc.TaskServiceStub(channel)
        try:
            task: task_pb2.Task = (await stub.GetTask(request, timeout=10)).task
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return task_pb2.Task()
    return task


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed; it makes the certificates")
def test_node_and_python_meet_under_mutual_tls(node: str, start: Start, python: str, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    make = "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL)[:2])
    subprocess.run(["bash", "-ec", make], cwd=tmp_path, check=True, capture_output=True)
    tls = [
        f"--tls-{name}={tmp_path}/{file}"
        for name, file in (("cert", "node.pem"), ("key", "node.key"), ("ca", "ca.pem"))
    ]
    serve = (python, "-m", "services.orchestrator", "--port", "0", "--host", "0.0.0.0", "--state", tmp_path / "state")
    address = "localhost:" + start(*serve, *tls).address().rpartition(":")[2]
    start(node, "examples/node/worker.js", "--connect", address, "--id", "node-1", *tls).says("ready on")
    done = client(node, address, *tls, "node.wordcount", "ants and ants")
    assert (done.returncode, done.stdout, done.stderr) == (0, '{"and":1,"ants":2}\n', "")
    refused = client(node, address, "--give-up-s", "0", "node.wordcount", "ants")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (3, "", 1)

"""The worker in Node keeps every MUST of docs/protocol.md, told by a scripted orchestrator."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from node_fake import FakeOrchestrator, held, tasks

from antfarm import errors
from antfarm.v1 import common_pb2, report_queue_pb2, work_queue_pb2

pytestmark = pytest.mark.slow
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "node"
ACCEPTED = report_queue_pb2.VERDICT_CODE_ACCEPTED


@pytest.fixture
async def farm() -> AsyncIterator[FakeOrchestrator]:
    """A scripted orchestrator."""
    async with FakeOrchestrator() as made:
        yield made


@pytest.fixture
def worker(node: str, start: Callable[..., Any]) -> Callable[..., Any]:
    """`worker(farm)` starts a worker of two slots named w."""
    return lambda farm, *flags: start(node, "examples/node/worker.js", "--connect", farm.address, "--id", "w", *flags)


async def test_it_introduces_itself(farm: FakeOrchestrator, worker: Callable[..., Any]) -> None:
    program = worker(farm, "--slots", "3")
    hello = await farm.attached()
    assert (hello.protocol_major, hello.worker_id, hello.slots, hello.window) == (1, "w", 3, 6)
    assert len(hello.incarnation) == 16
    assert list(hello.task_types) == ["node.wordcount", "node.sleep"]
    assert (hello.max_epoch_seen, list(hello.held)) == (0, [])
    assert await asyncio.to_thread(program.says, "ready on") == f"worker w ready on {farm.address} (3 slots)"


async def test_it_runs_tasks_and_reports_what_they_return(farm: FakeOrchestrator, worker: Callable[..., Any]) -> None:
    worker(farm)
    await farm.attached()
    payloads = [b'["to be or not to be"]', '{"args":["é É b"],"kwargs":{"least":1}}'.encode(), b"[7]", b"nonsense"]
    await farm.tell(tasks=tasks("node.wordcount", *payloads, common_payload=b'{"least":2}'))
    seen: dict[int, report_queue_pb2.Outcome] = {}
    while len(seen) < 4:
        seen |= {o.index: o for o in await farm.outcomes()}
    assert json.loads(seen[0].result) == {"be": 2, "to": 2}
    assert json.loads(seen[1].result) == {"b": 1, "é": 2}
    assert [seen[i].ending for i in range(4)] == [1, 1, 2, 2]
    assert [(seen[i].failure.failure_class, seen[i].failure.kind) for i in (2, 3)] == [
        (common_pb2.FAILURE_CLASS_PERMANENT, "PermanentError"),
        (common_pb2.FAILURE_CLASS_PERMANENT, "UndecodableInput"),
    ]
    assert len({o.report_no for o in seen.values()}) == 4


async def test_a_type_it_does_not_know_is_a_permanent_failure(
    farm: FakeOrchestrator, worker: Callable[..., Any]
) -> None:
    worker(farm)
    await farm.attached()
    await farm.tell(tasks=tasks("clouds.analyse", b"[]"))
    (outcome,) = await farm.outcomes()
    assert outcome.failure.failure_class == common_pb2.FAILURE_CLASS_PERMANENT
    assert outcome.failure.message == "this worker does not know clouds.analyse"


async def test_heartbeats_carry_all_that_is_held_until_the_final_verdict(
    farm: FakeOrchestrator, worker: Callable[..., Any]
) -> None:
    worker(farm)
    await farm.attached()
    await farm.tell(tasks=tasks("node.sleep", b"[30]", b"[30]", b"[0]"))
    await farm.tell(tasks=tasks("node.sleep", b"[0]", attempt=2, first=0))
    while (beat := await farm.hear(work_queue_pb2.Heartbeat)).tasks_frames_received < 2:
        pass
    (group,) = beat.held
    assert sorted(zip(group.indices, group.attempts, strict=True)) == [(0, 1), (0, 2), (1, 1), (2, 1)]
    assert (group.job_id, group.epoch) == ("job", 9)
    following = await farm.hear(work_queue_pb2.Heartbeat)
    assert following.number == beat.number + 1


async def test_a_token_that_comes_twice_runs_once_and_an_old_epoch_never(
    farm: FakeOrchestrator, worker: Callable[..., Any]
) -> None:
    worker(farm)
    await farm.attached()
    await farm.tell(tasks=tasks("node.sleep", b"[0.2]"))
    await farm.tell(tasks=tasks("node.sleep", b"[0.2]"))
    await farm.tell(tasks=tasks("node.sleep", b"[0]", epoch=8, first=5))
    await farm.tell(tasks=tasks("node.sleep", b"[0.3]", first=6))
    seen = [*(await farm.outcomes()), *(await farm.outcomes())]
    assert sorted(o.index for o in seen) == [0, 6]
    await farm.judge(ACCEPTED, *seen)
    while (await farm.hear(work_queue_pb2.Heartbeat)).held:
        pass


async def test_what_has_no_final_verdict_is_told_again_to_the_next_session(
    farm: FakeOrchestrator, worker: Callable[..., Any]
) -> None:
    worker(farm)
    first = await farm.attached()
    await farm.tell(tasks=tasks("node.sleep", b"[0]", b"[30]"))
    (outcome,) = await farm.outcomes()
    farm.hang_up()
    again = await farm.attached()
    assert again.incarnation == first.incarnation
    assert again.max_epoch_seen == 9
    assert list(again.held) == [held(0, 1)]
    (repeated,) = await farm.outcomes()
    assert (repeated.index, repeated.ending, repeated.result) == (0, outcome.ending, outcome.result)
    await farm.judge(ACCEPTED, repeated)
    while list((await farm.hear(work_queue_pb2.Heartbeat)).held) != [held(1)]:
        pass


async def test_a_verdict_of_retry_brings_the_report_again(farm: FakeOrchestrator, worker: Callable[..., Any]) -> None:
    worker(farm)
    await farm.attached()
    await farm.tell(tasks=tasks("node.sleep", b"[0]"))
    first = await farm.outcomes()
    await farm.judge(report_queue_pb2.VERDICT_CODE_RETRY, *first, retry_after=Duration(nanos=50_000_000))
    (second,) = await farm.outcomes()
    assert (second.index, second.result) == (0, b"0")
    assert second.report_no != first[0].report_no


async def test_revoked_attempts_stop_and_say_so(farm: FakeOrchestrator, worker: Callable[..., Any]) -> None:
    worker(farm, "--slots", "1")
    await farm.attached()
    await farm.tell(tasks=tasks("node.sleep", b"[30]", b"[30]"))
    await farm.tell(revoke=work_queue_pb2.Revoke(attempts=[held(0, 1, 77)], cause="cancelled"))
    seen: dict[int, report_queue_pb2.Outcome] = {}
    while len(seen) < 2:
        seen |= {o.index: o for o in await farm.outcomes()}
    assert {o.ending for o in seen.values()} == {report_queue_pb2.ENDING_REVOKED}
    assert [seen[i].never_started for i in (0, 1)] == [False, True]


async def test_attempts_revoked_in_an_answer_are_forgotten_without_a_report(
    farm: FakeOrchestrator, worker: Callable[..., Any]
) -> None:
    worker(farm)
    await farm.attached()
    await farm.tell(tasks=tasks("node.sleep", b"[30]", b"[30]"))
    await farm.tell(heartbeat_ack=work_queue_pb2.HeartbeatAck(number=1, revoked=[held(0)]))
    while list((await farm.hear(work_queue_pb2.Heartbeat)).held) != [held(1)]:
        pass
    assert not any(isinstance(frame, report_queue_pb2.Reports) for frame in farm.heard._queue)  # type: ignore[attr-defined]


async def test_the_run_timeout_is_kept_by_the_worker(farm: FakeOrchestrator, worker: Callable[..., Any]) -> None:
    worker(farm)
    await farm.attached()
    timeouts = common_pb2.Timeouts(run=Duration(nanos=100_000_000))
    await farm.tell(tasks=tasks("node.sleep", b"[30]", timeouts=timeouts))
    (outcome,) = await farm.outcomes()
    assert outcome.ending == report_queue_pb2.ENDING_TIMED_OUT
    assert 90_000 <= outcome.run_us < 5_000_000


@pytest.mark.parametrize("asked_by", ["orchestrator", "signal"])
async def test_drain_finishes_what_runs_hands_back_what_waits_and_says_goodbye(
    asked_by: str, farm: FakeOrchestrator, worker: Callable[..., Any]
) -> None:
    program = worker(farm, "--slots", "1")
    await farm.attached()
    await farm.tell(tasks=tasks("node.sleep", b"[0.5]", b"[30]"))
    while not (await farm.hear(work_queue_pb2.Heartbeat)).held:
        pass
    if asked_by == "orchestrator":
        await farm.tell(drain=work_queue_pb2.Drain(limit=Duration(seconds=20)))
    else:
        program.send(signal.SIGTERM)
    assert (await farm.hear(work_queue_pb2.Credit)).window == 0
    (released,) = await farm.outcomes()
    assert (released.index, released.ending, released.never_started) == (1, report_queue_pb2.ENDING_RELEASED, True)
    await farm.judge(ACCEPTED, released)
    (finished,) = await farm.outcomes()
    assert (finished.index, finished.ending, finished.result) == (0, report_queue_pb2.ENDING_SUCCEEDED, b"0.5")
    await farm.judge(ACCEPTED, finished)
    await farm.hear(work_queue_pb2.Goodbye)
    assert await asyncio.to_thread(program.wait) == 0


async def test_a_drain_that_is_asked_for_again_has_the_new_limit(
    farm: FakeOrchestrator, worker: Callable[..., Any]
) -> None:
    worker(farm, "--slots", "1")
    await farm.attached()
    await farm.tell(tasks=tasks("node.sleep", b"[60]"))
    await farm.tell(drain=work_queue_pb2.Drain(limit=Duration(seconds=3600)))
    assert (await farm.hear(work_queue_pb2.Credit)).window == 0
    await farm.tell(drain=work_queue_pb2.Drain(limit=Duration(nanos=1)))
    (released,) = await farm.outcomes()
    assert (released.index, released.ending, released.never_started) == (0, report_queue_pb2.ENDING_RELEASED, False)


async def test_a_welcome_of_a_lower_epoch_is_not_obeyed(farm: FakeOrchestrator, worker: Callable[..., Any]) -> None:
    program = worker(farm)
    await farm.attached()
    farm.epoch = 8
    farm.hang_up()
    assert (await farm.hear(work_queue_pb2.Hello)).max_epoch_seen == 9
    line = await asyncio.to_thread(program.says, "its epoch 8 is below 9, which was seen before")
    assert line.startswith(f"{farm.address}: its epoch")
    farm.epoch = 10
    assert (await farm.attached()).max_epoch_seen == 9


@pytest.mark.parametrize("refusal", [errors.WorkerIdInUse, errors.ProtocolUnsupported, errors.Cycle])
async def test_a_refusal_that_cannot_be_cured_ends_the_program_with_one_line(
    refusal: type[errors.AntFarmError], farm: FakeOrchestrator, worker: Callable[..., Any]
) -> None:
    farm.refusal = refusal("no, because of this")
    program = worker(farm)
    assert await asyncio.to_thread(program.wait) == 2
    assert program.lines == [f"worker.js: {farm.address} refuses this worker: no, because of this"]


async def test_a_lost_incarnation_comes_back_as_another(farm: FakeOrchestrator, worker: Callable[..., Any]) -> None:
    worker(farm)
    first = await farm.attached()
    await farm.tell(tasks=tasks("node.sleep", b"[30]"))
    await farm.hear(work_queue_pb2.Heartbeat)
    farm.refusal = errors.IncarnationLost("declared lost")
    farm.hang_up()
    refused = await farm.hear(work_queue_pb2.Hello)
    farm.refusal = None
    second = await farm.attached()
    assert refused.incarnation == first.incarnation != second.incarnation
    assert list(second.held) == [held(0)]


async def test_frames_of_a_newer_orchestrator_are_ignored(farm: FakeOrchestrator, worker: Callable[..., Any]) -> None:
    worker(farm)
    await farm.attached()
    newer = work_queue_pb2.PullTasksResponse.FromString(b"\xfa\x3f\x03new")  # a frame of number 1023
    await farm._pull.write(newer)
    await farm.tell(tasks=tasks("node.sleep", b"[0]"))
    assert [o.index for o in await farm.outcomes()] == [0]


def test_wrong_flags_are_one_line(node: str, start: Callable[..., Any]) -> None:
    for flags, words in [
        ([], "--connect HOST:PORT must be given, e.g. 127.0.0.1:50051"),
        (["--connect", "here"], "--connect HOST:PORT must be given, e.g. 127.0.0.1:50051"),
        (["--connect", "h:1", "--slots", "none"], "--slots none: give a whole number from 1"),
        (
            ["--connect", "h:1", "--tls-ca", "/no/ca.pem"],
            "--tls-key is missing: TLS needs --tls-cert, --tls-key and --tls-ca together",
        ),
    ]:
        program = start(node, "examples/node/worker.js", *flags)
        assert program.wait() == 2
        assert program.lines == [f"worker.js: {words}"]


def test_the_lock_file_pins_every_package_and_names_no_server() -> None:
    lock = json.loads((EXAMPLE / "package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert [name for name, entry in packages.items() if not entry["integrity"].startswith("sha512-")] == []
    assert [name for name, entry in packages.items() if "resolved" in entry] == []
    wanted = json.loads((EXAMPLE / "package.json").read_text())["dependencies"]
    assert all(version[0].isdigit() for version in wanted.values())

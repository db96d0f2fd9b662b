"""The worker program with real children against a scripted orchestrator: what every kind of task, and of trouble, ends as."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))

from fake_orchestrator import FakeOrchestrator, until
from google.protobuf import duration_pb2
from worker_process import ROOT, TASKS, WorkerProcess, alive, resident_bytes

from antfarm.v1 import common_pb2
from antfarm.v1 import report_queue_pb2 as rq

pytestmark = pytest.mark.slow

APP, PERMANENT, CRASH, INFRA, EXPIRED = (
    common_pb2.FAILURE_CLASS_APP,
    common_pb2.FAILURE_CLASS_PERMANENT,
    common_pb2.FAILURE_CLASS_CRASH,
    common_pb2.FAILURE_CLASS_INFRA,
    common_pb2.FAILURE_CLASS_EXPIRED,
)


def seconds(value: float) -> duration_pb2.Duration:
    message = duration_pb2.Duration()
    message.FromNanoseconds(int(value * 1e9))
    return message


def run_for(value: float) -> common_pb2.Timeouts:
    return common_pb2.Timeouts(run=seconds(value))


@pytest.fixture
async def farm() -> AsyncIterator[FakeOrchestrator]:
    async with FakeOrchestrator() as orchestrator:
        yield orchestrator


@pytest.fixture
async def worker(farm: FakeOrchestrator, tmp_path: Path) -> AsyncIterator[WorkerProcess]:
    async with WorkerProcess(farm.address, tmp_path, "--slots", "2", "--cancel-grace-s", "1") as process:
        yield process


async def one(farm: FakeOrchestrator, type_: str, *args: object, **template: object) -> rq.Outcome:
    job_id = f"{type_}-{len(farm.outcomes)}-{len(farm.waiting)}".replace(":", "-")
    [token] = farm.give(type_, [json.dumps(args).encode()], job_id=job_id, **template)
    return await farm.outcome(token)


def value(outcome: rq.Outcome) -> object:
    assert outcome.ending == rq.ENDING_SUCCEEDED, outcome
    return json.loads(outcome.result)


# ---- what tasks may do ------------------------------------------------------------------------------------------------


async def test_hello_offers_the_registry_and_commands_and_the_ready_line_names_worker_and_address(
    farm: FakeOrchestrator, worker: WorkerProcess
) -> None:
    hello = farm.now.hello
    assert {"noop", "aio.sleep", "sum:summarise", "antfarm.command"} <= set(hello.task_types)
    assert "antfarm.call" not in hello.task_types
    assert hello.slots == 2
    assert hello.resources["cpu"] == 2
    assert worker.ready_line.strip() == f"worker {hello.worker_id} ready on {farm.address} (2 slots)"


async def test_arguments_common_arguments_and_results_are_those_of_the_function(
    farm: FakeOrchestrator, worker: WorkerProcess
) -> None:
    assert value(await one(farm, "add", 2, 3)) == 5
    assert value(await one(farm, "add", 2, common_payload=b'{"b": 40}')) == 42
    [token] = farm.give("who", [b"[]"], job_id="some/job", first=7, attempt=3)
    assert value(await farm.outcome(token)) == ["some/job", 7, 1, 3]


async def test_an_exception_is_an_app_failure_with_the_users_frames_only(
    farm: FakeOrchestrator, worker: WorkerProcess
) -> None:
    outcome = await one(farm, "fail", "no good")
    failure = outcome.failure
    assert (outcome.ending, failure.failure_class, failure.kind, failure.message) == (
        rq.ENDING_FAILED,
        APP,
        "ValueError",
        "no good",
    )
    assert 'worker_tasks.py", line' in failure.traceback
    assert "services/worker" not in failure.traceback


@pytest.mark.parametrize(
    ("type_", "args", "kind", "message"),
    [
        ("fail.permanently", [], "antfarm.errors.PermanentError", "never"),
        ("fail.on", ["key"], "KeyError", "'key'"),
        ("odd", [], "unencodable result", "a value of type object cannot be sent"),
        ("add", [1, 2, 3], "TypeError", "the arguments do not fit"),
        ("add", [{"$nonsense": 1}], "undecodable input", "unknown form '$nonsense'"),
        ("no.such.task", [], "unknown task type", "does not know the task type 'no.such.task'; start it with --app"),
        ("big", [70_000], "unencodable result", "the farm has no Storage"),
    ],
)
async def test_what_no_retry_can_help_is_permanent_in_one_line(
    farm: FakeOrchestrator, worker: WorkerProcess, type_: str, args: list[object], kind: str, message: str
) -> None:
    failure = (await one(farm, type_, *args)).failure
    assert (failure.failure_class, failure.kind) == (PERMANENT, kind)
    assert message in failure.message
    assert "\n" not in failure.message


async def test_a_retry_filter_lets_its_own_exceptions_be_tried_again(
    farm: FakeOrchestrator, worker: WorkerProcess
) -> None:
    assert (await one(farm, "fail.on", "os")).failure.failure_class == APP


async def test_a_payload_that_is_no_call_is_permanent(farm: FakeOrchestrator, worker: WorkerProcess) -> None:
    for payload in (b"\x80\x05pickle", b"not json", b"12", b"\xff\xfe"):
        [token] = farm.give("add", [payload], job_id=f"job-{payload.hex()}")
        assert (await farm.outcome(token)).failure.failure_class == PERMANENT


async def test_output_and_logs_belong_to_the_attempt_and_arrive_while_it_runs(
    farm: FakeOrchestrator, worker: WorkerProcess
) -> None:
    [token] = farm.give("talk", [b"[]"])
    await until(lambda: any("logged" in word.log for word in farm.words), what="log of a running attempt")
    assert token not in farm.outcomes
    assert value(await farm.outcome(token)) == "said"
    text = "".join(word.log for word in farm.words)
    for line in ("printed\n", "to stderr\n", "INFO logged\n", "raw\n", "at the end"):
        assert text.count(line) == 1
    assert any((word.progress, word.progress_text) == (0.5, "half") for word in farm.words)
    assert all(word.index == 0 for word in farm.words)


async def test_a_flood_of_output_is_bounded_and_its_end_stays_with_the_failure(
    farm: FakeOrchestrator, worker: WorkerProcess
) -> None:
    before = resident_bytes(worker.pid)
    failure = (await one(farm, "flood", 100_000)).failure
    assert failure.message == "after the flood"
    assert failure.log_tail.rstrip().endswith("99999")
    assert len(failure.log_tail.encode()) <= 64 * 1024
    assert resident_bytes(worker.pid) - before < 64 * 1024 * 1024


async def test_scratch_is_empty_at_first_and_gone_afterwards(farm: FakeOrchestrator, worker: WorkerProcess) -> None:
    path, *names = value(await one(farm, "scratch"))  # type: ignore[misc]
    assert names == ["file"]
    assert str(worker.directory / "state") in path
    await until(lambda: not Path(path).exists())


async def test_children_see_listed_variables_only_and_none_of_our_descriptors(
    farm: FakeOrchestrator, worker: WorkerProcess
) -> None:
    seen = value(await one(farm, "environment"))
    assert isinstance(seen, dict)
    assert seen["PATH"] == os.environ["PATH"]
    assert "SECRET_OF_THE_OPERATOR" not in seen
    count = value(await one(farm, "descriptors"))
    assert count == 3 + 3 + 1, "stdin, stdout, stderr; two pipes and the page (kept by its map); the listing itself"


async def test_the_worker_may_open_as_many_files_as_it_can_and_tasks_as_many_as_before(
    farm: FakeOrchestrator, tmp_path: Path
) -> None:
    """Each child costs it five; what tasks start may rely on a small limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))  # of this process, from which the worker has it
    try:
        async with WorkerProcess(farm.address, tmp_path) as worker:
            assert resource.prlimit(worker.pid, resource.RLIMIT_NOFILE) == (hard, hard)
            [token] = farm.give("antfarm.command", [command("sh", "-c", "ulimit -Sn; ulimit -Hn")])
            assert value(await farm.outcome(token)) == {"exit_code": 0, "stdout": f"512\n{hard}\n", "stderr": ""}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_coroutines_run_at_the_same_time_and_keep_their_words_apart(
    farm: FakeOrchestrator, tmp_path: Path
) -> None:
    async with WorkerProcess(farm.address, tmp_path, "--slots", "20"):
        tokens = farm.give("aio.meet", [b"[20]"] * 20, job_id="together")
        assert {value(await farm.outcome(token)) for token in tokens} == set(range(20))
        tokens = farm.give("aio.talk", [json.dumps([f"word{i}"]).encode() for i in range(20)])
        for index, token in enumerate(tokens):
            assert value(await farm.outcome(token)) == index
        for index in range(20):
            text = "".join(word.log for word in farm.words if word.index == index)
            assert text == f"word{index}\n" * 5


async def test_a_task_takes_as_many_slots_as_its_resources_say(farm: FakeOrchestrator, worker: WorkerProcess) -> None:
    started = time.monotonic()
    tokens = farm.give("sleep", [b"[0.4]"] * 2, resources={"cpu": 2})
    for token in tokens:
        await farm.outcome(token)
    assert time.monotonic() - started > 0.8
    tokens = farm.give("aio.meet", [b"[20]"] * 20, job_id="small", resources={"cpu": 0.1})
    assert {value(await farm.outcome(token)) for token in tokens} == set(range(20))


# ---- inputs -----------------------------------------------------------------------------------------------------------


async def test_inputs_of_one_task_and_of_a_whole_job_stand_in_the_arguments(
    farm: FakeOrchestrator, worker: WorkerProcess
) -> None:
    ok = common_pb2.TASK_STATE_SUCCEEDED
    farm.results["before"] = [common_pb2.TaskResult(index=i, state=ok, result=b"%d" % (i * 10)) for i in (2, 0, 1, 3)]
    each = common_pb2.Dependency(job_id="before", kind=common_pb2.DEPENDENCY_KIND_EACH, offset=1)
    tokens = farm.give("pair", [b'[{"$input": 0}, "x"]'] * 3, inputs=[each])
    assert [value(await farm.outcome(token)) for token in tokens] == [[10, "x"], [20, "x"], [30, "x"]]
    whole = common_pb2.Dependency(job_id="before", kind=common_pb2.DEPENDENCY_KIND_ALL)
    [token] = farm.give("sum:summarise", [b"[2]"], job_id="s", inputs=[whole])
    assert value(await farm.outcome(token)) == 120


async def test_a_whole_job_of_large_outcomes_goes_by_file_and_the_file_does_not_stay(
    farm: FakeOrchestrator, worker: WorkerProcess
) -> None:
    ok = common_pb2.TASK_STATE_SUCCEEDED
    digits = b"7" * 4000
    farm.results["before"] = [common_pb2.TaskResult(index=i, state=ok, result=digits) for i in range(600)]
    whole = common_pb2.Dependency(job_id="before", kind=common_pb2.DEPENDENCY_KIND_ALL)
    [token] = farm.give("sum:summarise", [b"[1]"], inputs=[whole])
    assert value(await farm.outcome(token)) == int(digits) * 600


async def test_an_input_that_is_not_there_is_permanent(farm: FakeOrchestrator, worker: WorkerProcess) -> None:
    farm.results["before"] = []
    each = common_pb2.Dependency(job_id="before", kind=common_pb2.DEPENDENCY_KIND_EACH)
    [token] = farm.give("pair", [b'[{"$input": 0}]'], inputs=[each])
    failure = (await farm.outcome(token)).failure
    assert failure.failure_class == PERMANENT
    assert failure.message == "an input cannot be read: the result of task before/0 is not there"


# ---- commands -----------------------------------------------------------------------------------------------------------


def command(*argv: str, **more: object) -> bytes:
    return json.dumps({"args": [], "kwargs": {"argv": list(argv), **more}}).encode()


async def test_a_command_gets_its_input_variables_and_directory_and_gives_both_outputs(
    farm: FakeOrchestrator, worker: WorkerProcess, tmp_path: Path
) -> None:
    [first, second] = farm.give(
        "antfarm.command",
        [
            command("sh", "-c", 'cat; echo "$WORD" >&2; pwd', stdin="in\n", env={"WORD": "err"}, cwd=str(tmp_path)),
            command("sh", "-c", "pwd; ls -A | wc -l"),
        ],
    )
    assert value(await farm.outcome(first)) == {"exit_code": 0, "stdout": f"in\n{tmp_path}\n", "stderr": "err\n"}
    scratch, count = value(await farm.outcome(second))["stdout"].split()  # type: ignore[index]
    assert count == "0"
    await until(lambda: not Path(scratch).exists())


@pytest.mark.parametrize(
    ("argv", "failure_class", "kind", "tail"),
    [
        (("sh", "-c", "echo why; exit 7"), APP, "exit code 7", "why\n"),
        (("sh", "-c", "kill -SEGV $$"), APP, "signal SIGSEGV", ""),
        (("no-such-program",), PERMANENT, "antfarm.errors.PermanentError", ""),
    ],
)
async def test_a_command_that_fails_says_how(
    farm: FakeOrchestrator, worker: WorkerProcess, argv: tuple[str, ...], failure_class: int, kind: str, tail: str
) -> None:
    [token] = farm.give("antfarm.command", [command(*argv)])
    failure = (await farm.outcome(token)).failure
    assert (failure.failure_class, failure.kind, failure.log_tail) == (failure_class, kind, tail)


async def test_a_command_of_much_output_keeps_the_ends(farm: FakeOrchestrator, worker: WorkerProcess) -> None:
    [token] = farm.give("antfarm.command", [command("sh", "-c", "seq 1 200000; seq 5 >&2")])
    result = value(await farm.outcome(token))
    assert isinstance(result, dict)
    assert result["stdout"].endswith("199999\n200000\n")
    assert result["stdout"].startswith("... 1,")
    assert "bytes left out; the rest is lost, because the farm has no Storage" in result["stdout"]
    assert len(result["stdout"]) < 32 * 1024
    assert result["stderr"] == "1\n2\n3\n4\n5\n"


async def test_a_command_that_leaves_something_in_the_background_ends_all_the_same(
    farm: FakeOrchestrator, worker: WorkerProcess
) -> None:
    [token] = farm.give("antfarm.command", [command("sh", "-c", "sleep 100 & echo $!")])
    result = value(await farm.outcome(token))
    pid = int(result["stdout"])  # type: ignore[index]
    worker.signal(signal.SIGTERM)
    assert await worker.exit() == 0
    await until(lambda: not alive(pid), what="the process in the background")


async def test_a_command_may_end_in_its_own_way_when_it_is_revoked(
    farm: FakeOrchestrator, worker: WorkerProcess, tmp_path: Path
) -> None:
    path = tmp_path / "trace"
    script = f"trap 'echo cleaned >> {path}; exit 0' TERM; echo on >> {path}; while :; do sleep 0.05; done"
    [token] = farm.give("antfarm.command", [command("sh", "-c", script)])
    await until(lambda: path.exists() and path.read_text() == "on\n")
    farm.revoke([token])
    assert (await farm.outcome(token)).ending == rq.ENDING_REVOKED
    assert path.read_text() == "on\ncleaned\n"


# ---- trouble ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "failure_class", "kind"),
    [
        ("segfault", CRASH, "signal SIGSEGV"),
        ("abort", CRASH, "signal SIGABRT"),
        ("kill", CRASH, "signal SIGKILL"),
        ("exit", APP, "exit code 3"),
        ("exit 0", APP, "exit code 0"),
    ],
)
async def test_a_crash_fails_the_running_task_alone(
    farm: FakeOrchestrator, worker: WorkerProcess, how: str, failure_class: int, kind: str
) -> None:
    farm.give("noop", [b"[]"] * 50, job_id="warm")
    await farm.outcome(("warm", 49, 1, 1))
    good = farm.give("noop", [b"[]"] * 100, job_id="before")
    [bad] = farm.give("crash", [json.dumps([how]).encode()])
    good += farm.give("noop", [b"[]"] * 100, job_id="after")
    failure = (await farm.outcome(bad)).failure
    assert (failure.failure_class, failure.kind) == (failure_class, kind)
    assert failure.message.startswith(f"the process that ran the task ended with {kind}")
    for token in good:
        outcomes = farm.outcomes.get(token) or [await farm.outcome(token)]
        assert [outcome.ending for outcome in outcomes] == [rq.ENDING_SUCCEEDED]
    if how == "segfault":
        assert "Fatal Python error: Segmentation fault" in failure.log_tail
        assert "worker_tasks.py" in failure.log_tail


async def test_the_copy_of_a_function_that_forks_neither_reports_nor_runs_on(
    farm: FakeOrchestrator, worker: WorkerProcess
) -> None:
    tokens = farm.give("fork", [b"[]"] * 20)
    tokens += farm.give("add", [b"[%d]" % i for i in range(20)], job_id="after")
    for token in tokens:
        await farm.outcome(token)
    assert {value(farm.outcomes[token][0]) for token in tokens[:20]} == {worker.pid}
    assert {len(farm.outcomes[token]) for token in tokens} == {1}


async def test_sys_exit_is_the_functions_own_failure(farm: FakeOrchestrator, worker: WorkerProcess) -> None:
    failure = (await one(farm, "crash", "sys.exit")).failure
    assert (failure.failure_class, failure.kind, failure.message) == (APP, "SystemExit", "3")


async def test_a_memory_limit_is_a_crash_of_that_task_and_others_do_not_feel_it(
    farm: FakeOrchestrator, worker: WorkerProcess
) -> None:
    limit = 64 * 1024 * 1024
    failure = (await one(farm, "eat", 4 * limit, resources={"memory_bytes": limit})).failure
    assert (failure.failure_class, failure.kind) == (CRASH, "MemoryError")
    assert failure.message == "the task needed more than its memory limit of 67,108,864 bytes"
    assert value(await one(farm, "eat", limit // 4, resources={"memory_bytes": limit})) == limit // 4
    assert value(await one(farm, "eat", 4 * limit)) == 4 * limit


async def test_a_hang_with_an_ignored_sigterm_and_a_grandchild_is_ended_at_its_limit(
    farm: FakeOrchestrator, worker: WorkerProcess, tmp_path: Path
) -> None:
    path = tmp_path / "pids"
    outcome = await one(farm, "stubborn", str(path), timeouts=run_for(0.5))
    assert (outcome.ending, outcome.failure.failure_class, outcome.failure.kind) == (
        rq.ENDING_TIMED_OUT,
        APP,
        "timeout",
    )
    assert outcome.failure.message == "ran longer than its limit of 0.5 s"
    pids = [int(word) for word in path.read_text().split()]
    await until(lambda: not any(map(alive, pids)), 5, "child and grandchild gone")


async def test_silence_longer_than_the_progress_limit_ends_a_task(
    farm: FakeOrchestrator, worker: WorkerProcess
) -> None:
    limit = common_pb2.Timeouts(progress=seconds(0.3))
    assert value(await one(farm, "talk", timeouts=common_pb2.Timeouts(progress=seconds(3)))) == "said"
    outcome = await one(farm, "sleep", 60, timeouts=limit)
    assert outcome.ending == rq.ENDING_TIMED_OUT
    assert outcome.failure.message == "showed no progress for 0.3 s"


@pytest.mark.parametrize("type_", ["sleep", "aio.sleep"])
async def test_an_attempt_is_stopped_when_the_time_of_its_task_is_over_and_nobody_says_so(
    farm: FakeOrchestrator, worker: WorkerProcess, type_: str
) -> None:
    [token] = farm.give(type_, [b"[60]"], timeouts=common_pb2.Timeouts(total=seconds(9)), remaining=seconds(0.3))
    outcome = await farm.outcome(token)
    assert outcome.ending == rq.ENDING_TIMED_OUT
    assert (outcome.failure.failure_class, outcome.failure.kind) == (EXPIRED, "expired")
    assert value(await one(farm, "add", 1)) == 1


async def test_what_runs_is_spoken_of_anew_on_each_session(farm: FakeOrchestrator, worker: WorkerProcess) -> None:
    [token] = farm.give("sleep", [b"[60]"])
    await until(lambda: farm.words, what="a word of the running attempt")
    farm.words.clear()
    farm.hang_up()
    await until(lambda: farm.words, what="a word on the next session")
    assert farm.words[0].index == token[1]
    assert farm.words[0].running_for.ToNanoseconds() > 0
    farm.revoke([token])
    await farm.outcome(token)


async def test_a_coroutine_over_its_limit_is_cancelled_and_its_neighbours_run_on(
    farm: FakeOrchestrator, worker: WorkerProcess
) -> None:
    [good] = farm.give("aio.sleep", [b"[1.5]"], job_id="good")
    outcome = await one(farm, "aio.sleep", 60, timeouts=run_for(0.3))
    assert outcome.ending == rq.ENDING_TIMED_OUT
    assert value(await farm.outcome(good)) == 1.5


async def test_a_coroutine_that_is_revoked_before_it_could_begin_costs_its_neighbours_nothing(
    farm: FakeOrchestrator, worker: WorkerProcess
) -> None:
    """Another one blocks their loop for a moment."""
    [good] = farm.give("aio.sleep", [b"[3]"], job_id="good", resources={"cpu": 0.1})
    await until(lambda: [word for word in farm.words if word.job_id == "good"])
    [block] = farm.give("aio.block", [b"[0.8]"], job_id="block", resources={"cpu": 0.1})
    await until(lambda: [word for word in farm.words if word.job_id == "block"])
    [revoked] = farm.give("aio.sleep", [b"[60]"], job_id="revoked", resources={"cpu": 0.1})
    farm.revoke([revoked])
    assert (await farm.outcome(revoked)).ending == rq.ENDING_REVOKED
    assert (await farm.outcome(block)).ending == rq.ENDING_SUCCEEDED
    assert value(await farm.outcome(good)) == 3


async def test_a_coroutine_that_will_not_end_costs_its_neighbours_nothing_but_time(
    farm: FakeOrchestrator, worker: WorkerProcess
) -> None:
    [good] = farm.give("aio.sleep", [b"[60]"], job_id="good")
    outcome = await one(farm, "aio.stubborn", timeouts=run_for(0.3))
    assert outcome.ending == rq.ENDING_TIMED_OUT
    neighbour = await farm.outcome(good)
    assert (neighbour.ending, neighbour.never_started) == (rq.ENDING_RELEASED, False)
    assert value(await one(farm, "aio.sleep", 0)) == 0


async def test_a_crash_among_coroutines_is_blamed_on_one_that_was_alone_only(
    farm: FakeOrchestrator, worker: WorkerProcess
) -> None:
    failure = (await one(farm, "aio.crash")).failure
    assert (failure.failure_class, failure.kind) == (APP, "exit code 5")
    [good] = farm.give("aio.sleep", [b"[60]"], job_id="good")
    await until(lambda: [w for w in farm.words if w.job_id == "good"])
    failures = [(await one(farm, "aio.crash")).failure, (await farm.outcome(good)).failure]
    assert [(f.failure_class, f.kind) for f in failures] == [(INFRA, "process lost")] * 2


async def test_garbage_on_the_pipes_ends_that_child_only(farm: FakeOrchestrator, worker: WorkerProcess) -> None:
    failure = (await one(farm, "garbage")).failure
    assert failure.failure_class == CRASH
    assert value(await one(farm, "add", 1)) == 1
    assert "wrote what is no record" in worker.log


async def test_user_code_that_blocks_everything_delays_no_heartbeat(
    farm: FakeOrchestrator, worker: WorkerProcess
) -> None:
    farm.give("sleep", [b"[3]"] * 2)
    [token] = farm.give("aio.block", [b"[3]"], job_id="aio")
    start = len(farm.now.heartbeats)
    await until(lambda: len(farm.now.heartbeats) - start >= 5, what="one each 0.2 s")
    assert token not in farm.outcomes
    await farm.outcome(token)


async def test_an_orchestrator_that_fills_the_worker_with_long_tasks_gets_short_ones_back(
    farm: FakeOrchestrator, worker: WorkerProcess
) -> None:
    farm.give("noop", [b"[]"] * 2000, job_id="warm")
    await farm.outcome(("warm", 1999, 1, 1))
    await until(lambda: farm.now.window > 100, what="a wide window for short tasks")
    long = farm.give("sleep", [b"[8]"] * 2, job_id="long")
    short = farm.give("noop", [b"[]"] * 50, job_id="short")
    outcome = await farm.outcome(short[-1], 6)
    assert (outcome.ending, outcome.never_started) == (rq.ENDING_RELEASED, True)
    await until(lambda: farm.now.window == 2, what="a window without prefetch while tasks are long")
    assert not any(token in farm.outcomes for token in long)
    farm.revoke(long)
    await farm.outcome(long[1])


async def test_short_tasks_behind_one_long_task_go_to_the_other_child(
    farm: FakeOrchestrator, worker: WorkerProcess
) -> None:
    farm.give("noop", [b"[]"] * 2000, job_id="warm")
    await farm.outcome(("warm", 1999, 1, 1))
    mixed = farm.give("sleep", [b"[0]"] * 400, job_id="mixed")
    await farm.outcome(mixed[-1])
    [long] = farm.give("sleep", [b"[30]"], job_id="long")
    short = farm.give("sleep", [b"[0]"] * 200, job_id="short")
    for token in short:
        assert (await farm.outcome(token)).ending == rq.ENDING_SUCCEEDED, "not handed back"
    farm.revoke([long])
    assert (await farm.outcome(long)).ending == rq.ENDING_REVOKED


# ---- cancel -------------------------------------------------------------------------------------------------------------


async def test_a_revoked_function_that_listens_ends_by_itself_and_its_child_lives_on(
    farm: FakeOrchestrator, worker: WorkerProcess, tmp_path: Path
) -> None:
    path = tmp_path / "trace"
    [token] = farm.give("patient", [json.dumps([str(path)]).encode()])
    await until(lambda: path.exists() and path.read_text() == "running")
    await asyncio.sleep(0.1)
    farm.revoke([token])
    assert (await farm.outcome(token)).ending == rq.ENDING_REVOKED
    assert path.read_text() == "asked"


async def test_revoked_attempts_end_wherever_they_are(farm: FakeOrchestrator, worker: WorkerProcess) -> None:
    loop = farm.give("aio.sleep", [b"[60]"], job_id="loop", resources={"cpu": 0.1})
    await until(lambda: farm.words)
    running = farm.give("sleep", [b"[60]"], job_id="running", resources={"cpu": 1.9})
    await until(lambda: {w.job_id for w in farm.words} == {"loop", "running"})
    farm.now.window += 2  # more than the worker asked for, so that something waits there
    waiting = farm.give("sleep", [b"[60]"] * 2, job_id="waiting")
    farm.revoke([*running, *waiting, *loop])
    for token in [*running, *waiting, *loop]:
        assert (await farm.outcome(token)).ending == rq.ENDING_REVOKED
    assert value(await one(farm, "add", 1)) == 1


# ---- the own lease ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("type_", "neighbour"), [("sleep", "aio.sleep"), ("aio.sleep", "sleep")])
async def test_an_exclusive_attempt_is_stopped_at_the_workers_own_lease_and_no_other(
    tmp_path: Path, type_: str, neighbour: str
) -> None:
    """Nothing is heard any more: others may be given it when the lease is over, so it must not run until then."""
    lease_s, heartbeat_s = 4.0, 0.2
    async with (
        FakeOrchestrator(heartbeat_s=heartbeat_s, lease_s=lease_s) as farm,
        WorkerProcess(farm.address, tmp_path, "--slots", "3"),
    ):
        [exclusive] = farm.give(type_, [b"[60]"], job_id="exclusive", fence_late_results=True)
        others = farm.give(neighbour, [b"[60]"], job_id="other")
        await until(lambda: {word.job_id for word in farm.words} == {"exclusive", "other"})
        farm.ack_beats = False
        silent = time.monotonic()
        outcome = await farm.outcome(exclusive)
        passed_s = time.monotonic() - silent
        assert (outcome.ending, outcome.never_started) == (rq.ENDING_RELEASED, False)
        assert 0.75 * lease_s - 2 * heartbeat_s < passed_s < lease_s
        assert len(farm.connections) == 1, "it was not told so by anybody"
        farm.ack_beats = True
        beats = len(farm.now.heartbeats)
        await until(lambda: len(farm.now.heartbeats) >= beats + 2)
        assert value(await one(farm, "add", 1, fence_late_results=True)) == 1
        assert not any(token in farm.outcomes for token in others)
        farm.revoke(others)
        await farm.outcome(others[0])


# ---- coming and going ---------------------------------------------------------------------------------------------------


async def test_sigterm_finishes_what_runs_hands_back_what_waits_and_says_goodbye(
    farm: FakeOrchestrator, worker: WorkerProcess
) -> None:
    running = farm.give("sleep", [b"[3]"] * 2, job_id="running")
    waiting = farm.give("sleep", [b"[3]"] * 2, job_id="waiting")
    await until(lambda: len(farm.words) >= 2)
    worker.signal(signal.SIGTERM)
    for token in waiting:
        outcome = await farm.outcome(token)
        assert (outcome.ending, outcome.never_started) == (rq.ENDING_RELEASED, True)
    assert await worker.exit() == 0
    for token in running:
        assert value(farm.outcomes[token][0]) == 3
    assert farm.now.goodbye == "drained"
    assert farm.now.credits[-1] == 0


async def test_a_drain_over_its_limit_stops_and_hands_back_what_still_runs(
    farm: FakeOrchestrator, worker: WorkerProcess
) -> None:
    [token] = farm.give("sleep", [b"[60]"])
    await until(lambda: farm.words)
    farm.drain(0.5)
    outcome = await farm.outcome(token)
    assert (outcome.ending, outcome.never_started) == (rq.ENDING_RELEASED, False)
    assert await worker.exit() == 0


async def test_a_second_drain_with_a_shorter_limit_is_obeyed(farm: FakeOrchestrator, worker: WorkerProcess) -> None:
    [token] = farm.give("sleep", [b"[60]"])
    await until(lambda: farm.words)
    farm.drain(25.0)
    await until(lambda: "draining: running tasks get 25 s" in worker.log)
    farm.drain(0.5)
    outcome = await farm.outcome(token, timeout_s=15.0)
    assert (outcome.ending, outcome.never_started) == (rq.ENDING_RELEASED, False)
    assert await worker.exit() == 0
    assert farm.now.goodbye == "drained"


async def test_a_second_sigterm_ends_it_at_once_with_all_children(
    farm: FakeOrchestrator, worker: WorkerProcess
) -> None:
    farm.give("sleep", [b"[60]"])
    await until(lambda: farm.words)
    worker.signal(signal.SIGTERM)
    await until(lambda: "draining" in worker.log)
    worker.signal(signal.SIGTERM)
    assert await worker.exit(5) == 4


async def test_sigkill_of_the_agent_leaves_no_process_behind(
    farm: FakeOrchestrator, worker: WorkerProcess, tmp_path: Path
) -> None:
    path = tmp_path / "pids"
    farm.give("stubborn", [json.dumps([str(path)]).encode()])
    farm.give("antfarm.command", [command("sh", "-c", f"echo $$ > {tmp_path}/sh; sleep 600; true")], job_id="sh")
    pids = await until(lambda: path.exists() and len(path.read_text().split()) == 2 and path.read_text().split())
    await until(lambda: (tmp_path / "sh").exists() and (tmp_path / "sh").read_text().strip())
    pids = [*pids, (tmp_path / "sh").read_text()]
    worker.signal(signal.SIGKILL)
    await worker.exit()
    await until(lambda: not any(alive(int(pid)) for pid in pids), 5, "children and grandchildren")
    await worker.gone()


async def test_an_orchestrator_that_goes_and_comes_back_disturbs_no_attempt(
    farm: FakeOrchestrator, worker: WorkerProcess
) -> None:
    tokens = farm.give("sleep", [b"[1.5]"] * 2)
    await until(lambda: len(farm.words) >= 2)
    await farm.stop()
    farm.epoch = 2
    await asyncio.sleep(0.5)
    await farm.start()
    second = await farm.attached(2)
    assert [list(h.indices) for h in second.hello.held] == [[0, 1]]
    for token in tokens:
        assert value(await farm.outcome(token)) == 1.5
        assert len(farm.outcomes[token]) == 1


async def test_reports_survive_the_worker_and_are_sent_by_its_next_process(
    farm: FakeOrchestrator, tmp_path: Path
) -> None:
    farm.verdict = lambda token, outcome: None
    async with WorkerProcess(farm.address, tmp_path, "--worker-id", "w7") as first:
        tokens = farm.give("add", [b"[1]", b"[2]", b"[3]"])
        await farm.outcome(tokens[-1])
        await until(lambda: all(token in farm.outcomes for token in tokens))
        first.signal(signal.SIGKILL)
        await first.exit()
    farm.verdict = lambda token, outcome: rq.VERDICT_CODE_ACCEPTED
    async with WorkerProcess(farm.address, tmp_path, "--worker-id", "w7"):
        assert [sorted(h.indices) for h in farm.now.hello.held] == [[0, 1, 2]]
        await until(lambda: all(len(farm.outcomes[token]) == 2 for token in tokens))
        assert farm.now.hello.incarnation != farm.connections[0].hello.incarnation


async def test_a_worker_that_is_started_for_another_farm_brings_it_no_report_of_the_one_before(tmp_path: Path) -> None:
    """That has a task of the same name, and its token is the same."""
    async with FakeOrchestrator() as before, FakeOrchestrator() as after:
        before.verdict = lambda token, outcome: None
        after.orchestrator_id = "other"
        async with WorkerProcess(before.address, tmp_path, "--worker-id", "w") as first:
            [token] = before.give("add", [b"[1, 1]"], job_id="nightly")
            await before.outcome(token)
            first.signal(signal.SIGKILL)
            await first.exit()
        async with WorkerProcess(after.address, tmp_path, "--worker-id", "w") as second:
            connection = await after.attached(2)
            assert (after.connections[0].hello.orchestrator_id, connection.hello.orchestrator_id) == ("fake", "other")
            assert list(connection.hello.held) == []
            assert after.give("add", [b"[2, 2]"], job_id="nightly") == [token]
            assert value(await after.outcome(token)) == 4
            assert "another orchestrator answers than before: 1 tasks of that one's queue are given up" in second.log
        assert len(after.outcomes[token]) == 1


async def test_a_worker_that_is_stopped_while_its_orchestrator_restarts_brings_its_reports_first(
    farm: FakeOrchestrator, worker: WorkerProcess
) -> None:
    farm.verdict = lambda token, outcome: None
    [token] = farm.give("add", [b"[1]"])
    await farm.outcome(token)
    await farm.stop()
    await until(lambda: "no connection to" in worker.log)
    worker.signal(signal.SIGTERM)
    await until(lambda: "draining" in worker.log)
    farm.verdict = lambda token, outcome: rq.VERDICT_CODE_ACCEPTED
    await farm.start()
    assert await worker.exit() == 0
    assert len(farm.outcomes[token]) == 2
    assert farm.now.goodbye == "drained"


async def test_a_stopped_worker_goes_on_where_it_was(farm: FakeOrchestrator, worker: WorkerProcess) -> None:
    [token] = farm.give("sleep", [b"[1]"])
    await until(lambda: farm.words)
    worker.signal(signal.SIGSTOP)
    beats = len(farm.now.heartbeats)
    await asyncio.sleep(3)
    assert len(farm.now.heartbeats) <= beats + 1
    assert token not in farm.outcomes
    worker.signal(signal.SIGCONT)
    assert value(await farm.outcome(token)) == 1


async def test_two_workers_of_one_directory_get_names_of_their_own(farm: FakeOrchestrator, tmp_path: Path) -> None:
    async with WorkerProcess(farm.address, tmp_path) as first:
        async with WorkerProcess(farm.address, tmp_path) as second:
            names = [p.ready_line.split()[1] for p in (first, second)]
            assert [name.rpartition("-")[2] for name in names] == ["1", "2"]
        async with WorkerProcess(farm.address, tmp_path) as third:
            assert third.ready_line.split()[1] == names[1]


# ---- bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "apps", "line"),
    [
        (
            ["--app", "no_such_module"],
            (),
            "--app no_such_module cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        (["--label", "zone"], (str(TASKS),), "--label zone: write NAME=VALUE, e.g. --label zone=a"),
        (["--slots", "-1"], (str(TASKS),), "--slots -1: must be from 1 to 4096, or 0 for the number of CPUs"),
        (["--worker-id", "a/b"], (str(TASKS),), "--worker-id 'a/b': at most 128 characters of A-Z a-z 0-9 . _ -"),
        (["--connect", "nowhere"], (str(TASKS),), "address 'nowhere' is not HOST:PORT, e.g. 127.0.0.1:50051"),
    ],
)
async def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, flags: list[str], apps: tuple[str, ...], line: str
) -> None:
    worker = WorkerProcess("127.0.0.1:1", tmp_path, *flags, apps=apps).start()
    try:
        assert await worker.exit() == 2
        assert worker.log == f"python -m services.worker: {line}\n"
        await worker.gone()
    finally:
        assert worker.process.stdout is not None
        worker.process.stdout.close()


async def test_an_address_that_answers_nothing_is_said_in_one_line_and_dialled_on(tmp_path: Path) -> None:
    worker = WorkerProcess("127.0.0.1:1", tmp_path).start()
    try:
        await until(lambda: "no connection to 127.0.0.1:1" in worker.log)
        await asyncio.sleep(1.0)
        assert worker.log.count("no connection") == 1
        assert worker.process.poll() is None
        worker.signal(signal.SIGTERM)
        assert await worker.exit() == 0
        await worker.gone()
    finally:
        assert worker.process.stdout is not None
        worker.process.stdout.close()


async def test_a_defect_of_the_agent_ends_it_and_its_children_and_says_where(tmp_path: Path) -> None:
    """The agent is broken on purpose, by a module that is found in front of the real one."""
    breaker = tmp_path / "sitecustomize.py"
    breaker.write_text(
        "import sys\n"
        "if 'services.worker' in sys.orig_argv:\n"
        "    from services.worker.core.board import Board\n"
        "    def settle(*args):\n"
        "        assert False, 'broken on purpose'\n"
        "    Board.settle = settle\n"
    )
    async with FakeOrchestrator() as farm:
        worker = WorkerProcess(farm.address, tmp_path, "--slots", "2", env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}).start()
        try:
            await worker.ready()
            farm.give("noop", [b"[]"])
            assert await worker.exit() == 1
            assert "AssertionError: broken on purpose" in worker.log
            assert farm.now.goodbye is None
            await worker.gone()
        finally:
            assert worker.process.stdout is not None
            worker.process.stdout.close()


async def test_systemd_is_told_of_readiness_of_life_and_of_the_end(tmp_path: Path) -> None:
    """Ready as soon as tasks could run, even when the orchestrator does not answer yet."""
    heard: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.setblocking(False)

        def listen() -> list[str]:
            with suppress(BlockingIOError):
                while True:
                    heard.extend(notify.recv(4096).decode().splitlines())
            return heard

        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        worker = WorkerProcess("127.0.0.1:1", tmp_path, env=env).start()
        try:
            await until(lambda: {"READY=1", "WATCHDOG=1"} <= set(listen()))
            worker.signal(signal.SIGTERM)
            assert await worker.exit() == 0
            assert "STOPPING=1" in listen()
        finally:
            assert worker.process.stdout is not None
            worker.process.stdout.close()

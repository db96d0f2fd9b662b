"""The library against real programs: one orchestrator, one storage, one worker of two slots."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import client_app
import pytest

import antfarm as af
from antfarm import errors
from antfarm.local import LocalFarm
from antfarm.model import JobState, TaskState

pytestmark = pytest.mark.slow
APP = str(Path(client_app.__file__))


@pytest.fixture(scope="module")
def programs() -> Iterator[LocalFarm]:
    with LocalFarm() as farm:
        farm.start_storage()
        farm.start_orchestrator()
        farm.start_worker(slots=2, app=[APP], allow_pickle=True)
        yield farm


@pytest.fixture(scope="module")
def farm(programs: LocalFarm) -> Iterator[af.Farm]:
    with af.connect(programs.address) as connected:
        yield connected


@pytest.fixture
async def aio_farm(programs: LocalFarm) -> AsyncIterator[af.aio.Farm]:
    async with await af.aio.connect(programs.address) as connected:
        yield connected


# ---- submit ---------------------------------------------------------------------------------------------------------


def test_a_submitted_call_gives_its_value(farm: af.Farm) -> None:
    future = farm.submit(client_app.square, 7)
    assert future.result(10) == 49
    assert future.done()
    assert future.exception() is None
    assert future.state is TaskState.SUCCEEDED


def test_calls_made_together_travel_together_and_keep_their_order(farm: af.Farm) -> None:
    futures = [farm.submit(client_app.add, x, y=1) for x in range(500)]
    assert farm.gather(futures) == [x + 1 for x in range(500)]
    assert len({future.job_id for future in futures}) < 50


def test_values_of_all_kinds_come_back(farm: af.Farm) -> None:
    assert farm.submit(client_app.flip, client_app.Point(1, 2)).result(10) == client_app.Point(2, 1)
    assert farm.submit(client_app.double, 4).result(10) == 8
    assert farm.submit("client_app.undecorated", 5).result(10) == -5
    assert farm.submit(client_app.undecorated, 5).result(10) == -5


def test_arguments_and_results_above_the_inline_limit_go_by_storage_unseen(farm: af.Farm) -> None:
    text = "x" * 300_000
    assert farm.submit(client_app.length, text).result(10) == 300_000
    assert farm.submit(client_app.repeat, "ab", 100_000).result(10) == "ab" * 100_000
    assert list(farm.map(client_app.length, [text, "y"]).results()) == [300_000, 1]
    assert list(farm.map(client_app.add, ["a"], y=text).results()) == ["a" + text]


def test_a_future_among_the_arguments_is_waited_for_by_the_farm(farm: af.Farm) -> None:
    first = farm.submit(client_app.square, 3)
    second = farm.submit(client_app.add, first, y=first)
    third = [farm.submit(client_app.add, second, y=n) for n in range(3)]
    assert farm.gather(third) == [18, 19, 20]


def test_a_job_among_the_arguments_gives_all_its_outcomes(farm: af.Farm) -> None:
    job = farm.map(client_app.fail_odd, range(5))
    assert farm.submit(client_app.total, job, scale=10).result(10) == {"sum": 60, "failed": 2}


# ---- failures -------------------------------------------------------------------------------------------------------


def test_a_remote_error_is_raised_with_its_traceback_and_where_it_happened(farm: af.Farm) -> None:
    future = farm.submit(client_app.fail, 3)
    with pytest.raises(af.TaskFailed, match="ValueError: no 3") as caught:
        future.result(10)
    error = caught.value
    assert 'raise ValueError(f"no {x}")' in str(error)
    assert (error.attempt, error.failure.kind, error.worker_id) == (1, "ValueError", "worker-1")
    assert type(future.exception()) is af.TaskFailed
    assert future.outcome().ok is False


def test_retries_count_attempts(farm: af.Farm) -> None:
    assert farm.submit(client_app.third_time).result(20) == 3


def test_a_crash_is_told_from_a_failure(farm: af.Farm) -> None:
    with pytest.raises(af.TaskCrashed):
        farm.submit(client_app.die).result(60)
    with pytest.raises(af.TaskFailed, match="exit code 7"):
        farm.submit(client_app.leave).result(60)


def test_a_failed_dependency_is_named(farm: af.Farm) -> None:
    broken = farm.submit(client_app.fail, 1)
    with pytest.raises(af.DependencyFailed, match=broken.job_id):
        farm.submit(client_app.add, broken).result(10)


def test_unencodable_arguments_are_refused_before_anything_is_sent(farm: af.Farm) -> None:
    with pytest.raises(errors.InvalidArgument, match="cannot be sent"):
        farm.submit(client_app.add, object())
    with pytest.raises(errors.InvalidArgument, match="cannot be sent"):
        farm.map(client_app.add, [1, object()])


def test_arguments_that_do_not_fit_the_function_fail_at_once(farm: af.Farm) -> None:
    with pytest.raises(af.TaskFailed, match="arguments do not fit"):
        farm.submit(client_app.square, 1, 2, 3).result(10)


# ---- map ------------------------------------------------------------------------------------------------------------


def test_results_come_in_input_order_and_as_completed_with_keys(farm: af.Farm) -> None:
    job = farm.map(client_app.square, [5, 3, 4], name="three")
    assert list(job.results()) == [25, 9, 16]
    assert {done.key: done.result() for done in job.as_completed()} == {5: 25, 3: 9, 4: 16}
    assert [future.result() for future in job] == [25, 9, 16]
    assert (len(job), job[1].result(), job[-1].result()) == (3, 9, 16)
    assert farm.gather(job) == [[25, 9, 16]]
    status = job.wait(10)
    assert (status.state, status.spec.name, status.counts) == (JobState.SUCCEEDED, "three", {TaskState.SUCCEEDED: 3})
    assert job.progress == 1.0


def test_common_arguments_and_several_iterables(farm: af.Farm) -> None:
    assert list(farm.map(client_app.add, [1, 2], y=10).results()) == [11, 12]
    assert list(farm.map(client_app.add, [1, 2, 3], [10, 20]).results()) == [11, 22]
    assert list(farm.starmap(client_app.add, [(1, 2), (3,)]).results()) == [3, 3]


def test_keys_may_be_chosen(farm: af.Farm) -> None:
    by_function = farm.map(client_app.square, [1, 2], key=lambda x: f"n{x}")
    assert {done.key: done.result() for done in by_function.as_completed()} == {"n1": 1, "n2": 4}
    assert [future.key for future in farm.map(client_app.square, [1, 2], key="ab")] == ["a", "b"]
    assert [future.key for future in farm.map(client_app.square, (n for n in [8, 9]))] == [0, 1]


def test_a_map_over_a_job_flows_item_by_item(farm: af.Farm, tmp_path: Path) -> None:
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    first = farm.map(client_app.wait_for, paths)
    second = farm.map(client_app.length, first)
    Path(paths[1]).touch()
    done = next(second.as_completed())
    assert (done.key, done.result()) == (paths[1], len(paths[1]))  # while the first item still waits
    Path(paths[0]).touch()
    assert list(second.results()) == [len(path) for path in paths]


def test_a_map_over_futures_and_over_two_jobs(farm: af.Farm) -> None:
    numbers = farm.map(client_app.square, range(6))
    assert list(farm.map(client_app.add, list(numbers)[2:5]).results()) == [4, 9, 16]
    assert list(farm.map(client_app.add, numbers, numbers).results()) == [2 * n * n for n in range(6)]
    with pytest.raises(errors.InvalidArgument, match="futures of one job in their order"):
        farm.map(client_app.add, [numbers[2], numbers[1]])


def test_jobs_that_are_still_on_their_way_may_be_mapped_over(farm: af.Farm) -> None:
    large = b"x" * 3_000_000  # goes to Storage first, and the job of its call waits for that
    assert list(farm.map(client_app.same, [farm.submit(client_app.same, large)]).results()) == [large]
    assert list(farm.map(client_app.same, farm.submit(client_app.same, large).job).results()) == [large]
    assert list(farm.map(client_app.sizes, [3], job=farm.submit(client_app.same, large).job).results()) == [
        [3_000_000, 3]
    ]
    assert list(farm.starmap(client_app.sizes, [(3,)], job=farm.submit(client_app.same, large).job).results()) == [
        [3_000_000, 3]
    ]
    failed = farm.submit("no such type!", 1)
    with pytest.raises(errors.InvalidArgument, match="no such type"):
        farm.map(client_app.same, [failed])


def test_a_starmap_takes_common_arguments_as_a_map_does(farm: af.Farm) -> None:
    assert list(farm.starmap(client_app.add, [(1,), (2,)], common={"y": 5}).results()) == [6, 7]
    with pytest.raises(errors.InvalidArgument, match="common="):
        farm.starmap(client_app.add, [(1,)], common=[5])  # type: ignore[arg-type]


def test_a_generator_is_streamed_in_constant_memory(farm: af.Farm) -> None:
    job = farm.map(client_app.square, (n for n in range(30_000)), name="streamed")
    assert len(job) == 30_000
    assert sum(job.results()) == sum(n * n for n in range(30_000))


def test_a_generator_that_fails_leaves_what_was_sent_to_be_cancelled(farm: af.Farm) -> None:
    def numbers() -> Iterator[int]:
        yield from range(10_000)
        while not is_there("broken-source"):  # on a busy machine nothing of it may have left yet
            time.sleep(0.01)
        raise RuntimeError("the source broke")

    def is_there(job_id: str) -> bool:
        with suppress(errors.JobNotFound):
            return farm.job(job_id).status is not None
        return False

    with pytest.raises(RuntimeError, match="the source broke") as caught:
        farm.map(client_app.square, numbers(), job_id="broken-source")
    [note] = caught.value.__notes__
    assert note.startswith("job broken-source ")
    assert note.endswith("(in Python job_id=), or `antfarm job cancel broken-source`")
    job = farm.job("broken-source")
    assert job.status.state is JobState.OPEN
    assert job.cancel("its source broke").state is JobState.CANCELLED


def test_a_slow_generator_is_not_held_back(farm: af.Farm) -> None:
    release = threading.Event()

    def numbers() -> Iterator[int]:
        yield 3
        time.sleep(0.15)
        yield 4
        assert release.wait(20)
        yield 5

    with concurrent.futures.ThreadPoolExecutor() as pool:
        mapping = pool.submit(farm.map, client_app.square, numbers(), job_id="slow-source")
        deadline = time.monotonic() + 20
        while True:
            try:
                if farm.job("slow-source").status.counts.get(TaskState.SUCCEEDED, 0) >= 2:
                    break
            except errors.JobNotFound:
                pass
            assert time.monotonic() < deadline
            time.sleep(0.02)
        release.set()
        assert list(mapping.result(20).results()) == [9, 16, 25]


def test_a_task_is_counted_from_either_end_and_refused_by_the_number_that_was_asked_for(farm: af.Farm) -> None:
    job = farm.job(farm.map(client_app.square, [1, 2, 3]).job_id)
    assert (job[-1].index, job[-3].index) == (2, 0)
    with pytest.raises(errors.TaskNotFound, match=r"has no task -5; it has 3$"):
        job[-5]
    with pytest.raises(errors.InvalidArgument, match="'1' is no task"):
        job["1"]  # type: ignore[index]


def test_what_names_no_job_is_refused(farm: af.Farm) -> None:
    with pytest.raises(errors.InvalidArgument, match="5 is no job"):
        farm.job(5)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidArgument, match="limit=-1"):
        list(farm.jobs(limit=-1))
    with pytest.raises(errors.InvalidArgument, match="name=3"):
        list(farm.jobs(name=3))  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidArgument, match="cause=3"):
        farm.map(client_app.square, [1]).cancel(3)  # type: ignore[arg-type]


def test_an_empty_map_succeeds_with_nothing(farm: af.Farm) -> None:
    job = farm.map(client_app.square, [])
    assert job.wait(10).state is JobState.SUCCEEDED
    assert list(job.results()) == []


def test_repeating_a_map_under_its_id_runs_nothing_twice(farm: af.Farm) -> None:
    first = farm.map(client_app.square, range(9000), job_id="once")
    assert len(list(first.results())) == 9000
    again = farm.map(client_app.square, range(9000), request_id="once")
    assert len(again) == 9000
    assert again.status.age_s > 0
    assert list(again.results()) == [n * n for n in range(9000)]
    with pytest.raises(errors.Conflict):
        farm.map(client_app.add, range(9000), job_id="once")
    for fewer in (1, 8999):
        with pytest.raises(errors.Conflict, match=f"job once has 9,000 tasks, not {fewer:,}: "):
            farm.map(client_app.square, range(fewer), request_id="once")


def test_results_stop_at_a_failure_and_outcomes_do_not(farm: af.Farm) -> None:
    job = farm.map(client_app.fail_odd, range(4))
    results = job.results()
    assert next(results) == 0
    with pytest.raises(af.TaskFailed, match="odd 1"):
        next(results)
    assert [outcome.ok for outcome in job.outcomes()] == [True, False, True, False]
    [values] = farm.gather(job, return_exceptions=True)
    assert values[0] == 0
    assert isinstance(values[1], af.TaskFailed)
    assert job.wait(10).state is JobState.FAILED


def check_gathered(values: list[Any]) -> None:
    """Of `count_two` over 0 to 4, without leave to read pickles."""
    assert [type(value) for value in values] == [int, af.TaskFailed, errors.InvalidArgument, af.TaskFailed, int]
    assert (values[0], values[4]) == (0, 4)
    assert "odd 1" in str(values[1])
    assert str(values[2]) == "the value is a pickle; both ends must opt in with allow_pickle to use pickles"


def test_a_value_that_cannot_be_read_takes_no_other_with_it(farm: af.Farm) -> None:
    job = farm.map(client_app.count_two, range(5))
    [values] = farm.gather(job, return_exceptions=True)
    check_gathered(values)
    check_gathered(farm.gather(*job, return_exceptions=True))
    fine = farm.map(client_app.square, range(500))
    assert farm.gather(fine, fine[3], return_exceptions=True) == [[n * n for n in range(500)], 9]


async def test_nor_on_the_asynchronous_face(aio_farm: af.aio.Farm) -> None:
    job = await aio_farm.map(client_app.count_two, range(5))
    [values] = await aio_farm.gather(job, return_exceptions=True)
    check_gathered(values)
    check_gathered(await aio_farm.gather(*await job.futures(), return_exceptions=True))
    fine = await aio_farm.map(client_app.square, range(500))
    assert await aio_farm.gather(fine, fine[3], return_exceptions=True) == [[n * n for n in range(500)], 9]


def test_failed_tasks_are_retried_as_a_new_job(farm: af.Farm) -> None:
    job = farm.map(client_app.fail_odd, range(6))
    job.wait(10)
    again = job.retry(failed=True)
    assert len(again) == 3
    assert again.wait(10).state is JobState.FAILED
    assert again.status.retry_of == job.job_id
    fine = farm.map(client_app.square, range(2))
    fine.wait(10)
    with pytest.raises(errors.NothingToRetry):
        farm.retry(fine)


def test_a_job_ends_after_too_many_failures(farm: af.Farm) -> None:
    job = farm.map(client_app.fail, range(2000), max_failures=3)
    assert job.wait(30).state is JobState.CANCELLED


# ---- waiting, cancelling, finding ------------------------------------------------------------------------------------


def test_waiting_has_limits(farm: af.Farm, tmp_path: Path) -> None:
    path = tmp_path / "go"
    future = farm.submit(client_app.wait_for, str(path))
    other = farm.submit(client_app.square, 1)
    with pytest.raises(TimeoutError, match=r"^task .*/0 has not ended within 0\.1 s$"):
        future.result("100ms")
    with pytest.raises(TimeoutError, match=r"^job .* has not ended within 0\.1 s$"):
        future.job.wait(0.1)
    assert not future.done()
    other.result(10)
    assert farm.wait(future, other, timeout=0.3) == ({other}, {future})
    path.touch()
    assert farm.wait([future, other], timeout=10) == ({future, other}, set())


def test_cancelled_tasks_raise_that(farm: af.Farm, tmp_path: Path) -> None:
    job = farm.map(client_app.wait_for, [str(tmp_path / f"{n}") for n in range(10)])
    assert job[9].cancel("not this one") is True
    with pytest.raises(af.TaskCancelled, match="not this one"):
        job[9].result(10)
    assert job.cancel("enough").state is JobState.CANCELLED
    with pytest.raises(af.TaskCancelled, match="enough"):
        list(job.results())


def test_a_paused_job_gives_out_nothing(farm: af.Farm) -> None:
    job = farm.map("client_app.later", range(3))
    assert job.pause().paused is True
    assert job.resume().paused is False
    job.cancel()


def test_jobs_are_found_again_from_anywhere(programs: LocalFarm, farm: af.Farm) -> None:
    job = farm.map(client_app.square, range(3), name="findable", job_id="findable-id-1")
    with af.connect(programs.address) as other:
        for selector in ("findable-id-1", "findable", "findable-i", "last"):
            assert other.job(selector).job_id == job.job_id
        assert list(other.job("findable").results()) == [0, 1, 4]
        assert other.job("findable")[2].result() == 4
        with pytest.raises(errors.JobNotFound, match="no job has the id or name 'nonesuch'"):
            other.job("nonesuch")
        farm.map(client_app.square, range(3), job_id="findable-id-2")
        with pytest.raises(errors.InvalidArgument, match="beginning of 2 job ids"):
            other.job("findable-id")
        assert [status.job_id for status in other.jobs(limit=1)] == ["findable-id-2"]


def test_as_completed_takes_futures_and_jobs_together(farm: af.Farm) -> None:
    job = farm.map(client_app.square, range(100))
    futures = [farm.submit(client_app.add, n) for n in range(20)]
    done = list(farm.as_completed(job, futures))
    assert sorted(each.result() for each in done) == sorted([n * n for n in range(100)] + list(range(20)))


def test_purged_jobs_are_gone(farm: af.Farm) -> None:
    job = farm.map(client_app.square, range(3))
    job.wait(10)
    job.purge()
    with pytest.raises(errors.JobNotFound):
        _ = job.status


def test_a_task_nobody_offers_is_mentioned(programs: LocalFarm, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "antfarm.client"), af.connect(programs.address) as farm:
        job = farm.map("nobody.knows", [1])
        deadline = time.monotonic() + 10
        while not caplog.records:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        job.cancel()
    assert "no worker of the farm" in caplog.text
    assert "'nobody.knows'" in caplog.text


# ---- other faces ------------------------------------------------------------------------------------------------------


def test_a_shell_line_is_a_task(farm: af.Farm) -> None:
    job = farm.map(af.shell("echo {word} and {other}"), ["it's", "b c"], other="more")
    assert [result["stdout"] for result in job.results()] == ["it's and more\n", "b c and more\n"]
    with pytest.raises(af.TaskFailed, match="exit code 3"):
        farm.submit(af.shell("exit {}"), 3).result(10)
    with pytest.raises(errors.InvalidArgument, match=r"no argument for \{b\}"):
        farm.submit(af.shell("echo {a} {b}"), 3)


def test_a_shell_line_gets_what_other_tasks_gave(farm: af.Farm) -> None:
    job = farm.map(client_app.same, ["it's $HOME", "b;c\n"])
    line = af.shell("printf '[%s]' {} {again} {more}")
    assert [value["stdout"] for value in farm.map(line, job, job, more="d e").results()] == [
        "[it's $HOME][it's $HOME][d e]",
        "[b;c\n][b;c\n][d e]",
    ]
    assert farm.submit(line, farm.submit(client_app.square, 5), again="", more=1).result(10)["stdout"] == "[25][][1]"


def test_functions_by_value_need_both_ends(programs: LocalFarm, farm: af.Farm) -> None:
    with pytest.raises(errors.InvalidArgument, match="has no name that a worker could know"):
        farm.submit(lambda x: x + 1, 1)
    with af.connect(programs.address, allow_pickle=True) as trusting:
        assert list(trusting.map(lambda x, k: x + k, [1, 2], k=5).results()) == [6, 7]
        assert trusting.submit(lambda *args, **kwargs: (args, kwargs), 1, a={2}).result(10) == ((1,), {"a": {2}})


def test_the_executor_runs_calls_like_any_other(farm: af.Farm) -> None:
    with farm.executor() as pool:
        futures = [pool.submit(client_app.square, n) for n in range(20)]
        assert [future.result(10) for future in futures] == [n * n for n in range(20)]
        assert list(pool.map(client_app.square, range(3))) == [0, 1, 4]
        broken = pool.submit(client_app.fail, 1)
        assert isinstance(broken.exception(10), af.TaskFailed)
        assert len(concurrent.futures.wait(futures).done) == 20
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(client_app.square, 1)


def test_an_executor_waits_for_its_maps_and_takes_none_after_its_end(farm: af.Farm, tmp_path: Path) -> None:
    with farm.executor() as pool:
        values = pool.map(client_app.wait_for, [str(tmp_path / "go")])
        threading.Timer(0.3, (tmp_path / "go").touch).start()
    assert farm.job("last").status.state is JobState.SUCCEEDED
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.map(client_app.square, [1])
    assert len(list(values)) == 1


def test_an_executor_that_cancels_its_maps_as_it_ends_has_cancelled_them(farm: af.Farm) -> None:
    pool = farm.executor()
    values = pool.map("nobody.maps", range(3))
    pool.shutdown(cancel_futures=True)
    assert farm.job("last").status.state is JobState.CANCELLED
    with pytest.raises(af.TaskCancelled):
        next(values)


def test_an_executor_that_cancels_its_calls_as_it_ends_has_cancelled_them(programs: LocalFarm, farm: af.Farm) -> None:
    other = af.connect(programs.address)
    pool = other.executor()
    futures = [pool.submit("nobody.runs", n) for n in range(3)]
    other.flush()
    job_ids = {status.job_id for status in farm.jobs(limit=3) if status.spec.template.type == "nobody.runs"}
    pool.shutdown(wait=True, cancel_futures=True)
    other.close()
    assert [future.cancelled() for future in futures] == [True] * 3
    counts = [farm.job(job_id).status.counts for job_id in job_ids]
    assert sum(count[TaskState.CANCELLED] for count in counts) == 3


def test_saved_files_and_logs(farm: af.Farm) -> None:
    future = farm.submit(client_app.say, "hello")
    file = future.result(10)
    assert (file.name, file.size_bytes) == ("said.txt", 5)
    outcome = future.outcome()
    assert [ref.key for ref in outcome.outputs] == [file.key]


async def test_the_asynchronous_face_has_the_same_names(aio_farm: af.aio.Farm) -> None:
    assert await aio_farm.submit(client_app.square, 3) == 9
    job = await aio_farm.map(client_app.square, range(5))
    assert [value async for value in job.results()] == [0, 1, 4, 9, 16]
    assert {done.key: await done.result() async for done in job.as_completed()} == {n: n * n for n in range(5)}
    assert await aio_farm.gather(job, job[3], aio_farm.submit(client_app.double, 1)) == [[0, 1, 4, 9, 16], 9, 2]
    assert (await job.wait(10)).state is JobState.SUCCEEDED
    assert await job.progress() == 1.0
    with pytest.raises(af.TaskFailed):
        await aio_farm.submit(client_app.fail, 1)
    assert (await (await aio_farm.job(job.job_id)).status()).task_count == 5


async def test_an_asynchronous_source_that_fails_says_what_became_of_its_job(aio_farm: af.aio.Farm) -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1
        while True:
            with suppress(errors.JobNotFound):
                await aio_farm.job("broken-stream")
                break
            await asyncio.sleep(0.01)
        raise RuntimeError("the source broke")

    def others() -> Iterator[int]:
        yield from range(9_000)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke") as caught:
        await aio_farm.map(client_app.square, numbers(), job_id="broken-stream")
    [note] = caught.value.__notes__
    assert note.startswith("job broken-stream ")
    await (await aio_farm.job("broken-stream")).cancel()
    with pytest.raises(RuntimeError, match="the source broke") as caught:
        await aio_farm.map(client_app.square, others(), job_id="broken-list")
    [note] = caught.value.__notes__
    assert re.match("job broken-list stays open with [48],000 tasks or more: ", note)
    await (await aio_farm.job("broken-list")).cancel()
    with pytest.raises(errors.InvalidArgument) as refused:
        await aio_farm.map(client_app.square, [object()])
    assert not hasattr(refused.value, "__notes__")  # nothing was sent


async def test_the_asynchronous_face_maps_over_what_is_on_its_way(aio_farm: af.aio.Farm) -> None:
    large = b"x" * 3_000_000
    job = await aio_farm.map(client_app.same, [aio_farm.submit(client_app.same, large)])
    assert [value async for value in job.results()] == [large]
    job = await aio_farm.starmap(client_app.add, [(1,), (2,)], common={"y": 5})
    assert [value async for value in job.results()] == [6, 7]


async def test_asynchronous_sources_are_streamed(aio_farm: af.aio.Farm) -> None:
    async def numbers() -> AsyncIterator[int]:
        for n in range(3000):
            if n % 1000 == 0:
                await asyncio.sleep(0.01)
            yield n

    job = await aio_farm.map(client_app.square, numbers())
    assert [value async for value in job.results()] == [n * n for n in range(3000)]


async def test_many_waits_share_one_stream(aio_farm: af.aio.Farm) -> None:
    job = await aio_farm.map(client_app.square, range(2000))
    assert await asyncio.gather(*(future.result() for future in await job.futures())) == [n * n for n in range(2000)]
    assert aio_farm.connection.streams <= 1


# ---- weather ---------------------------------------------------------------------------------------------------------


def test_an_address_that_nobody_answers_is_one_clear_line() -> None:
    with pytest.raises(errors.Unavailable, match=r"no farm answers at 127\.0\.0\.1:9 \(connection refused\)") as caught:
        af.connect("127.0.0.1:9")
    assert "\n" not in str(caught.value)
    with pytest.raises(errors.InvalidArgument, match="is not HOST:PORT"):
        af.connect("nonsense")


@pytest.mark.parametrize(
    "options",
    [
        {"address": 50051},
        {"slots": "two"},
        {"slots": -1},
        {"patience": "soon"},
        {"allow_pickle": "yes"},
        {"state_dir": 3},
        {"address": "127.0.0.1:9", "slots": 2},
    ],
    ids=str,
)
def test_an_option_of_connect_of_another_form_is_refused_by_its_name(options: dict[str, object]) -> None:
    with pytest.raises(errors.InvalidArgument, match=list(options)[-1]):
        af.connect(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"slots": 2}, {"state_dir": "/nowhere"}], ids=str)
def test_options_of_an_own_farm_are_refused_where_the_environment_names_another(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTFARM_ADDRESS", "127.0.0.1:9")
    told = r"not for that at 127\.0\.0\.1:9: leave them out, or unset ANTFARM_ADDRESS$"
    with pytest.raises(errors.InvalidArgument, match=told):
        af.connect(**options)  # type: ignore[arg-type]


def test_a_closed_farm_says_so_whatever_is_asked_of_it(programs: LocalFarm) -> None:
    farm = af.connect(programs.address)
    job = farm.map(client_app.square, [1])
    farm.close()
    calls = (
        lambda: farm.map(client_app.square, [1]),
        lambda: farm.map(client_app.square, (n for n in range(3))),
        lambda: farm.submit(client_app.square, 1).result(),
        lambda: list(job.results()),
        lambda: job.wait(),
        lambda: job.status,
        lambda: farm.job("last"),
        lambda: list(farm.jobs()),
    )
    for call in calls:
        with pytest.raises(errors.Unavailable, match="the farm was closed; connect again"):
            call()


def test_the_storages_address_is_told_apart(programs: LocalFarm) -> None:
    with pytest.raises(errors.InvalidArgument, match="is a storage, not an orchestrator"):
        af.connect(programs.storage_address)


def test_calls_outlive_a_restart_of_the_orchestrator(tmp_path: Path) -> None:
    with LocalFarm(tmp_path / "farm") as programs:
        programs.start_orchestrator()
        programs.start_worker(slots=1, app=[APP])
        with af.connect(programs.address) as farm:
            gate = tmp_path / "gate"
            waiting = farm.submit(client_app.wait_for, str(gate))
            job = farm.map(client_app.square, range(5000))
            results = job.as_completed()
            with pytest.raises(TimeoutError):
                waiting.result(0.3)
            programs.kill("orchestrator")
            restarting = threading.Thread(target=programs.restart, args=("orchestrator",))
            restarting.start()
            more = farm.map(client_app.square, range(10_000, 20_000))
            restarting.join()
            gate.touch()
            assert waiting.result(60) == str(gate)
            assert sorted(done.result() for done in results) == [n * n for n in range(5000)]
            assert list(more.results()) == [n * n for n in range(10_000, 20_000)]


def test_a_process_that_dies_leaves_its_job_to_be_collected(programs: LocalFarm, farm: af.Farm) -> None:
    code = (
        "import antfarm as af, os, sys\n"
        f"farm = af.connect({programs.address!r})\n"
        "farm.map('client_app.square', range(100), job_id='orphan')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(af.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == -9
    assert list(farm.job("orphan").results()) == [n * n for n in range(100)]

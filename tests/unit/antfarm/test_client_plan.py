"""Functions and arguments become jobs: what workers are asked for, what is waited for, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from antfarm import builtin, payload
from antfarm.client.handle import FutureHandle, JobHandle
from antfarm.client.plan import chosen_id, common_arguments, plan_map, plan_submit, resolve
from antfarm.client.writer import BATCH_TASKS_MAX, batches
from antfarm.errors import InvalidArgument, PermanentError
from antfarm.model import BATCH_BYTES_MAX, Dependency, DependencyKind, JobId
from antfarm.task import Options, Retry, Task, register


def plain(x: int) -> int:
    return x


def _hidden(x: int) -> int:
    return x


TASK: Task[Any, Any] = Task(plain, "demo.plain", Options(retries=Retry(max_attempts=4)))


class AJob(JobHandle):
    def __init__(self, job_id: str, keys: list[Any] | None = None) -> None:
        self.job_id = job_id
        self.keys = keys


class AFuture(FutureHandle):
    def __init__(self, job_id: str, index: int) -> None:
        self._name = job_id, index

    @property
    def job_id(self) -> str:
        return self._name[0]

    @property
    def index(self) -> int:
        return self._name[1]


def each(job_id: str, offset: int = 0) -> Dependency:
    return Dependency(job_id=JobId(job_id), kind=DependencyKind.EACH, offset=offset)


def whole(job_id: str) -> Dependency:
    return Dependency(job_id=JobId(job_id), kind=DependencyKind.ALL)


# ---- what is run ----------------------------------------------------------------------------------------------------


def test_names_are_used_where_there_are_any() -> None:
    assert resolve(TASK, allow_pickle=False).name == "demo.plain"
    assert resolve(TASK, allow_pickle=False).options.retries is not None
    assert resolve("only.workers.know", allow_pickle=True).name == "only.workers.know"
    assert resolve(plain, allow_pickle=False).name == f"{__name__}.plain"


def test_with_pickles_a_name_is_used_only_where_a_worker_offers_it() -> None:
    assert resolve(TASK, allow_pickle=True, offered={"demo.plain"}).by_value == b""
    by_value = resolve(TASK, allow_pickle=True)
    assert (by_value.name, by_value.options) == (builtin.CALL, TASK.options_set)
    assert builtin.unpickle_function(by_value.by_value)(3) == 3
    assert resolve(plain, allow_pickle=True, offered={f"{__name__}.plain"}).name == f"{__name__}.plain"
    assert resolve(math.sqrt, allow_pickle=True).name == builtin.CALL


def test_by_value_the_worker_judges_errors_by_what_the_retries_are_on() -> None:
    def fail() -> None:
        raise KeyError("no")

    made = Task(fail, "demo.fail", Options(retries=Retry(max_attempts=3, on=(OSError,))))
    by_value = resolve(made, allow_pickle=True).by_value
    with pytest.raises(KeyError):
        builtin.CALL_TASK(**{builtin.FUNCTION_KEY: by_value})
    assert builtin.CALL_TASK.is_permanent(KeyError())
    assert not builtin.CALL_TASK.is_permanent(FileNotFoundError())
    with pytest.raises(InvalidArgument, match="the function cannot be read"):
        builtin.CALL_TASK(**{builtin.FUNCTION_KEY: b"rotten"})
    assert not builtin.CALL_TASK.is_permanent(KeyError())  # of the attempt before nothing is left
    assert builtin.CALL_TASK.is_permanent(PermanentError("no"))


def test_what_retries_are_on_is_not_changed_for_a_task_that_runs_by_its_name() -> None:
    made = register(Task(plain, "demo.judged", Options(retries=Retry(max_attempts=3, on=OSError))))
    changed = made.options(retries=Retry(max_attempts=3, on=KeyError))
    for same in (made, made.options(retries=9), made.options(retries=0), made.options(version="2")):
        assert resolve(same, allow_pickle=False).options == same.options_set
    assert resolve(made.options(retries=Retry(max_attempts=9, on=(OSError,))), allow_pickle=False).name == "demo.judged"
    assert resolve(changed, allow_pickle=True).name == builtin.CALL
    for other in (changed, made.options(retries=Retry(max_attempts=9))):
        with pytest.raises(
            InvalidArgument, match=r"demo\.judged runs by its name, and workers judge by the on= of its @af\.task"
        ):
            resolve(other, allow_pickle=False)


@pytest.mark.parametrize("function", [lambda x: x, _hidden, math.sqrt, AJob, TASK.template, 7, None])
def test_what_has_no_name_is_refused_without_pickles(function: Any) -> None:
    with pytest.raises(InvalidArgument):
        resolve(function, allow_pickle=False)


# ---- map ------------------------------------------------------------------------------------------------------------


def test_a_map_is_a_template_and_one_payload_per_call() -> None:
    plan = plan_map(
        TASK, ([1, 2, 3], "abc".__class__("ab") and ("a", "b")), {"k": 9}, name="n", priority=-3, max_failures=2
    )
    assert list(plan.payloads()) == [b'[1,"a"]', b'[2,"b"]']
    assert (plan.spec.name, plan.spec.priority, plan.spec.max_failures) == ("n", -3, 2)
    assert plan.spec.template.common_payload == b'{"k":9}'
    assert plan.spec.template.retry.max_attempts == 4
    assert plan.keys == [1, 2, 3]
    assert plan.ready


def test_a_job_among_the_iterables_is_waited_for_item_by_item() -> None:
    plan = plan_map(TASK, (AJob("up", ["k0", "k1"]), [10, 20, 30]), {}, counts={"up": 2})
    assert plan.spec.dependencies == (each("up"),)
    assert list(plan.payloads()) == [b'[{"$input":0},10]', b'[{"$input":0},20]']
    assert plan.keys == ["k0", "k1"]


def test_two_jobs_zip_and_the_same_one_twice_is_one_input() -> None:
    plan = plan_map(TASK, (AJob("a"), AJob("b"), AJob("a")), {"every": AJob("c")}, counts={"a": 1, "b": 5})
    assert plan.spec.dependencies == (each("a"), each("b"), whole("c"))
    assert list(plan.payloads()) == [b'[{"$input":0},{"$input":1},{"$input":0}]']
    assert plan.spec.template.common_payload == b'{"every":{"$input":2}}'


def test_a_run_of_futures_is_a_dependency_with_an_offset() -> None:
    plan = plan_map(TASK, ([AFuture("a", 4), AFuture("a", 5)],), {})
    assert plan.spec.dependencies == (each("a", 4),)
    assert list(plan.payloads()) == [b'[{"$input":0}]'] * 2


@pytest.mark.parametrize(
    ("iterables", "options", "said"),
    [
        ((), {}, "at least one iterable"),
        ((5,), {}, "map takes iterables, not int"),
        (("text",), {}, "once per character"),
        (([AFuture("a", 1), AFuture("a", 3)],), {}, "in their order"),
        (([AFuture("a", 1), AFuture("b", 2)],), {}, "in their order"),
        (([1],), {"priority": 11}, "priority=11: must be a whole number from -10 to 10"),
        (([1],), {"priority": "high"}, "priority='high'"),
        (([1],), {"max_failures": -1}, "max_failures=-1: must be a whole number of at least 0"),
        (([1],), {"max_failures": 1.5}, "max_failures=1.5"),
        (([1],), {"max_failures": 1 << 64}, "max_failures="),
        (([1],), {"labels": {"a": 1}}, "labels="),
        (([1],), {"name": 3}, "name=3"),
        (([1],), {"name": "\udc80"}, "name="),
        (([1],), {"key": 5}, "key=5"),
        (([1, 2, 3],), {"key": ["a"]}, "key= has 1 values for 3 tasks"),
        ((AJob("a"), [1]), {"counts": {"a": 2}, "key": ["a", "b"]}, "key= has 2 values for 1 tasks"),
        ((AJob("a"),), {"counts": {"a": 1}, "key": str}, "key= cannot be a function"),
        ((5,), {"star": True}, "map takes iterables, not int"),
    ],
)
def test_what_cannot_be_mapped_is_refused_in_one_line(iterables: Any, options: Any, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said) as caught:
        plan_map(TASK, iterables, {}, **options)
    assert "\n" not in str(caught.value)


def test_a_starmap_over_single_arguments_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="starmap takes calls, each a tuple of arguments, not 2"):
        list(plan_map(TASK, ([(1,), 2],), {}, star=True).payloads())


def test_an_id_has_two_words_and_common_arguments_are_a_dict() -> None:
    assert (chosen_id("a", ""), chosen_id("", "a"), chosen_id("a", "a"), chosen_id("", "")) == ("a", "a", "a", "")
    for words in ((3, ""), ("", None), ("a", "b"), ("last", ""), ("", "last")):
        with pytest.raises(InvalidArgument, match=r"(job|request)_id="):
            chosen_id(*words)
    assert common_arguments({"a": 1}, {"b": 2}) == {"a": 1, "b": 2}
    for common in (["a"], {1: 2}):
        with pytest.raises(InvalidArgument, match="common="):
            common_arguments({}, common)


def test_a_function_by_value_travels_once_with_the_job() -> None:
    plan = plan_map(lambda x, k: x + k, ([1, 2],), {"k": 5}, allow_pickle=True)
    assert list(plan.payloads()) == [b"[1]", b"[2]"]
    args, kwargs = payload.decode_call(b"[1]", plan.spec.template.common_payload)
    assert builtin.CALL_TASK(*args, **kwargs) == 6


def test_a_shell_line_is_made_whole_for_each_call() -> None:
    plan = plan_map(builtin.shell("echo {a} {b}"), (["x y", "$z"],), {"b": 1})
    assert plan.spec.template.type == builtin.COMMAND
    assert plan.spec.template.common_payload == b""
    assert [payload.decode_call(p)[1]["argv"][2] for p in plan.payloads()] == ["echo 'x y' 1", "echo '$z' 1"]


def test_what_another_task_gives_to_a_shell_line_comes_in_a_variable() -> None:
    line = builtin.shell("echo {} {k} {all}")
    plan = plan_map(line, (AJob("up"),), {"k": "a b", "all": AJob("c")}, counts={"up": 2})
    call = {
        "argv": ["sh", "-c", 'echo "$antfarm_input_0" \'a b\' "$antfarm_input_1"'],
        "env": {"antfarm_input_0": "<0>", "antfarm_input_1": "<1>"},
    }
    assert plan.spec.dependencies == (each("up"), whole("c"))
    assert [payload.decode_call(p, inputs=["<0>", "<1>"]) for p in plan.payloads()] == [([], call)] * 2


@pytest.mark.parametrize("handle", [AFuture("a", 0), AJob("a")])
def test_a_handle_that_is_no_input_is_not_taken_for_a_text_of_a_shell_line(handle: Any) -> None:
    with pytest.raises(InvalidArgument, match="cannot be sent"):
        list(plan_map(builtin.shell("echo {}"), ([(handle,)],), {}, star=True).payloads())


@pytest.mark.parametrize(
    ("iterables", "keys"),
    [
        (([7], ["b"]), [7]),
        (((x for x in [7]), ["b"]), None),
        (({7: 1}, ["b"]), None),
        (([AFuture("a", 0)], ["b"]), None),
        (((AFuture("a", 0),), ["b"]), None),
        ((range(2), ["a", "b"]), range(2)),
    ],
)
def test_a_task_is_called_by_its_first_argument_or_not_at_all(iterables: Any, keys: Any) -> None:
    assert plan_map(TASK, iterables, {}).keys == keys


# ---- submit ---------------------------------------------------------------------------------------------------------


def test_a_call_knows_what_it_follows_relative_to_its_place() -> None:
    runnable = resolve(TASK, allow_pickle=False)
    template = runnable.template({}, allow_pickle=False)
    args = (AFuture("a", 5), AFuture("a", 5), 1)
    plan = plan_submit(runnable, template, args, {"all": AJob("b"), "f": AFuture("c", 0)})
    assert plan.payload == b'{"args":[{"$input":0},{"$input":0},1],"kwargs":{"all":{"$input":2},"f":{"$input":1}}}'
    assert plan.dependencies(0) == (each("a", 5), each("c", 0), whole("b"))
    assert plan.dependencies(3) == (each("a", 2), each("c", -3), whole("b"))


# ---- batches --------------------------------------------------------------------------------------------------------


def test_batches_keep_order_and_bounds() -> None:
    payloads = [b"x" * size for size in [10] * 9000 + [60_000] * 40 + [500_000] * 5]
    found = list(batches(payloads))
    assert [encoded for batch, _ in found for encoded in batch] == payloads
    assert [last for _, last in found] == [False] * (len(found) - 1) + [True]
    for batch, _ in found:
        assert len(batch) <= BATCH_TASKS_MAX
        assert sum(len(encoded) for encoded in batch if len(encoded) < 65536) <= BATCH_BYTES_MAX
    assert list(batches([])) == [([], True)]

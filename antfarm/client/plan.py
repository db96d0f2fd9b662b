"""From a function and its arguments to a job: what workers are asked for, what the job depends on, how each call is encoded.

Pure: nothing is sent and nobody is asked. Handles on other jobs and tasks become dependencies; the farm waits for them, not the client.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Container,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Sized,
)
from dataclasses import dataclass
from typing import Any

from antfarm import apps, builtin, model, payload
from antfarm.builtin import ShellTask
from antfarm.client.handle import FutureHandle, JobHandle
from antfarm.client.selection import LAST
from antfarm.errors import InvalidArgument
from antfarm.form import Input, refuse
from antfarm.model import Dependency, DependencyKind, JobSpec
from antfarm.task import Options, Retry, Task, check_labels, is_plain_task, is_whole, registry, task_name, template
from antfarm.text import is_text

Function = Callable[..., Any] | Task[..., Any] | str


# ---- what is run ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Runnable:
    """What a worker is asked to run: a task type, its options, and the function itself where it travels by value."""

    name: str
    options: Options
    by_value: bytes = b""
    bind: Callable[[Sequence[Any], Mapping[str, Any]], Mapping[str, Any]] | None = None

    def encode(self, args: Sequence[Any], kwargs: Mapping[str, Any], *, allow_pickle: bool) -> bytes:
        """The payload of one call."""
        if self.bind is not None:
            for value in (*args, *kwargs.values()):
                if isinstance(value, FutureHandle | JobHandle):  # it would be taken for a text
                    refuse(value)
            return payload.encode_call((), self.bind(args, kwargs))
        return payload.encode_call(args, kwargs, allow_pickle=allow_pickle)

    def template(self, common: Mapping[str, Any], *, allow_pickle: bool) -> model.TaskTemplate:
        """The job's template; a function by value stands among the common arguments."""
        if self.by_value:
            common = {**common, builtin.FUNCTION_KEY: self.by_value}
        return template(self.name, self.options, payload.encode_common(common, allow_pickle=allow_pickle))


def resolve(function: Function, *, allow_pickle: bool, offered: Container[str] = ()) -> Runnable:
    """How workers are asked for the function: by its name, or, only where pickles are allowed and no worker offers the name, by value.

    A function has a name when it is a task, or stands at the top level of a module. InvalidArgument in one line when neither way is open.
    """
    if isinstance(function, str):
        if not is_text(function):
            raise InvalidArgument(f"{function!r} is no task type")
        return Runnable(name=function, options=Options())
    if isinstance(function, ShellTask):
        return Runnable(name=function.name, options=function.options_set, bind=function.bind)
    if isinstance(function, Task):
        if allow_pickle and function.name not in offered:
            return _by_value(_judging(function), function.options_set)
        _check_on(function)
        return Runnable(name=function.name, options=function.options_set)
    if not callable(function):
        raise InvalidArgument(f"{function!r} is neither a function, nor a task, nor the name of one")
    name = _top_level_name(function)
    if name and (name in offered or not allow_pickle):
        return Runnable(name=name, options=Options())
    if allow_pickle:
        return _by_value(function, Options())
    shown = getattr(function, "__qualname__", repr(function))
    raise InvalidArgument(
        f"{shown} has no name that a worker could know: put it at the top level of a module that workers load with --app, "
        "or allow pickles on both ends (connect(allow_pickle=True), workers with --allow-pickle)"
    )


def _judging(made: Task[..., Any]) -> Callable[..., Any]:
    """What travels of a task: the function, and what its retries are `on` where they say it, since the worker judges by that."""
    retries = made.options_set.retries
    if retries is None or retries.on is None:
        return made.function
    return Task(made.function, made.name, Options(retries=retries))


def _check_on(made: Task[..., Any]) -> None:
    """InvalidArgument when the task's `on` is not that of its decorator: it does not travel, and workers would judge by theirs."""
    known, retries = registry().get(made.name), made.options_set.retries
    if (
        known is not None
        and retries is not None
        and retries.max_attempts > 1
        and _kinds(retries) != _kinds(known.options_set.retries)
    ):
        raise InvalidArgument(
            f"retries={retries!r}: {made.name} runs by its name, and workers judge by the on= of its @af.task: give on= there, "
            "and here the same, or a number of retries"
        )


def _kinds(retries: Retry | None) -> set[type[BaseException]] | None:
    """What the retries are `on`, in whatever way it is written."""
    on = None if retries is None else retries.on
    return None if on is None else set(on) if isinstance(on, tuple) else {on}


def _top_level_name(function: Callable[..., Any]) -> str:
    """The task name of a function that an import of its module defines; "" for lambdas, inner functions, other callables."""
    name = getattr(function, "__qualname__", "")
    module = apps.find_module(getattr(function, "__module__", None) or "")
    if module is None or not inspect.isfunction(function) or getattr(module, name, None) is not function:
        return ""
    if not is_plain_task(function, name) or (module.__name__ == "__main__" and not apps.main_app()):
        return ""
    return task_name(function)


def _by_value(function: Callable[..., Any], options: Options) -> Runnable:
    return Runnable(name=builtin.CALL, options=options, by_value=builtin.pickle_function(function))


# ---- plans ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class MapPlan:
    """A job to be made of many calls: its spec, its payloads (lazily), and the keys of its tasks where they are known."""

    spec: JobSpec
    encode: Callable[[tuple[Any, ...]], bytes]
    calls: Iterable[tuple[Any, ...]] | AsyncIterable[tuple[Any, ...]]
    keys: Sequence[Any] | None
    ready: bool
    """All calls are at hand, so that reading them cannot block."""
    count: int | None = None
    """How many there are, where that is known."""

    def payloads(self) -> Iterator[bytes]:
        """The payloads in order; runs the user's generators."""
        assert not isinstance(self.calls, AsyncIterable)
        return map(self.encode, self.calls)


class Inputs:
    """Collects the dependencies of a job while its arguments are looked at; the position of each is its `Input` number."""

    def __init__(self) -> None:
        self.dependencies: list[Dependency] = []

    def add(self, job_id: str, kind: DependencyKind, offset: int = 0) -> Input:
        """The placeholder for what that dependency yields."""
        wanted = Dependency(job_id=model.JobId(job_id), kind=kind, offset=offset)
        if wanted not in self.dependencies:
            self.dependencies.append(wanted)
        return Input(self.dependencies.index(wanted))

    def replace(self, value: Any) -> Any:
        """The value with whole jobs in it replaced by placeholders: every task waits for all of theirs."""
        if isinstance(value, JobHandle):
            return self.add(value.job_id, DependencyKind.ALL)
        if isinstance(value, FutureHandle):
            raise InvalidArgument(
                "a future cannot be common to all tasks of a map; use submit, or map over the futures"
            )
        return value


def plan_map(
    function: Function,
    iterables: Sequence[Any],
    common: Mapping[str, Any],
    *,
    star: bool = False,
    name: str = "",
    priority: int = 0,
    max_failures: int | None = None,
    labels: Mapping[str, str] | None = None,
    key: Callable[..., Any] | Iterable[Any] | None = None,
    counts: Mapping[str, int] | None = None,
    allow_pickle: bool = False,
    offered: Container[str] = (),
) -> MapPlan:
    """The job of `map` or (with `star`) `starmap`.

    `counts` tells how many tasks each job among the iterables has, `offered` what workers offer (see `resolve`).
    """
    if not iterables:
        raise InvalidArgument("map needs at least one iterable of arguments")
    check_labels("labels", labels)
    runnable, inputs = resolve(function, allow_pickle=allow_pickle, offered=offered), Inputs()
    if star and not isinstance(iterables[0], AsyncIterable):
        source: Any = _column(iterables[0], inputs, counts or {})
        calls: Any = map(_tuple, source)
    elif star:
        calls = _tuples(iterables[0])
    else:
        columns = [_column(each, inputs, counts or {}) for each in iterables]
        calls = (
            _zip_async(columns) if any(isinstance(c, AsyncIterable) for c in columns) else zip(*columns, strict=False)
        )
    shared = {word: inputs.replace(value) for word, value in common.items()}
    fixed: Mapping[str, Any] = {}
    if runnable.bind is not None:  # a command is made whole here; workers know nothing of its template
        fixed, shared = shared, {}
    keys = _natural_keys(iterables, star) if key is None or callable(key) else _given_keys(key, iterables, counts or {})
    noted: list[Any] | None = [] if callable(key) else None
    if noted is not None and any(isinstance(each, JobHandle) for each in iterables):
        raise InvalidArgument("key= cannot be a function of a job's values; give one value per task")

    def encode(call: tuple[Any, ...]) -> bytes:
        if noted is not None:
            noted.append(key(*call))  # type: ignore[operator,misc]
        return runnable.encode(call, fixed, allow_pickle=allow_pickle)

    spec = JobSpec(
        template=runnable.template(shared, allow_pickle=allow_pickle),
        name=_checked_name(name),
        priority=_checked_priority(priority),
        dependencies=tuple(inputs.dependencies),
        max_failures=_checked_failures(max_failures),
        labels=dict(labels or {}),
    )
    count = _count(iterables, counts or {})
    return MapPlan(
        spec=spec,
        encode=encode,
        calls=calls,
        keys=keys if noted is None else noted,
        ready=count is not None,
        count=count,
    )


def common_arguments(kwargs: Mapping[str, Any], common: Any) -> dict[str, Any]:
    """The keyword arguments of all calls of a map."""
    if common is not None and (not isinstance(common, Mapping) or not all(isinstance(word, str) for word in common)):
        raise InvalidArgument(f"common={common!r:.80}: give a dict of keyword arguments, e.g. {{'name': 1}}")
    return {**kwargs, **(common or {})}


def chosen_id(job_id: Any, request_id: Any) -> str:
    """The id that the caller chose for a job by either word; "" without one. The orchestrator knows what an id may consist of."""
    for word, value in (("job_id", job_id), ("request_id", request_id)):
        if not is_text(value):
            raise InvalidArgument(f"{word}={value!r}: give a text")
    if job_id and request_id and job_id != request_id:
        raise InvalidArgument(
            f"job_id={job_id!r} and request_id={request_id!r} are two words for the job's id: give one"
        )
    chosen = str(job_id or request_id)
    if chosen == LAST:
        raise InvalidArgument(
            f"job_id={chosen!r}: this word means the last job wherever a job is named; choose another"
        )
    return chosen


def _checked_name(name: Any) -> str:
    if not is_text(name):
        raise InvalidArgument(
            f"name={name!r}: give a text; an argument of the function that is named so goes into common="
        )
    return name


def _checked_priority(priority: Any) -> int:
    if not is_whole(priority) or not -model.PRIORITY_MAX <= priority <= model.PRIORITY_MAX:
        raise InvalidArgument(
            f"priority={priority!r}: must be a whole number from {-model.PRIORITY_MAX} to {model.PRIORITY_MAX}"
        )
    return int(priority)


def _checked_failures(max_failures: Any) -> int | None:
    if max_failures is not None and (not is_whole(max_failures) or not 0 <= max_failures < 1 << 63):
        raise InvalidArgument(
            f"max_failures={max_failures!r}: must be a whole number of at least 0; None lets the job go on whatever fails"
        )
    return None if max_failures is None else int(max_failures)


def _given_keys(key: Any, iterables: Sequence[Any], counts: Mapping[str, int]) -> Sequence[Any]:
    if not isinstance(key, Iterable):
        raise InvalidArgument(
            f"key={key!r}: give a function of the call's arguments, or a list with one value per task"
        )
    keys, count = list(key), _count(iterables, counts)
    if count is not None and len(keys) != count:
        raise InvalidArgument(f"key= has {len(keys)} values for {count} tasks: give one per task")
    return keys


def _count(iterables: Sequence[Any], counts: Mapping[str, int]) -> int | None:
    """How many calls the iterables make, where all of them can tell."""
    if not all(isinstance(each, Sized | JobHandle) for each in iterables):
        return None
    return min(counts[each.job_id] if isinstance(each, JobHandle) else len(each) for each in iterables)


def _column(each: Any, inputs: Inputs, counts: Mapping[str, int]) -> Iterable[Any] | AsyncIterable[Any]:
    """One argument of all calls; a job or a run of its futures becomes a placeholder for each call's own input."""
    if isinstance(each, JobHandle):
        return itertools.repeat(inputs.add(each.job_id, DependencyKind.EACH), counts[each.job_id])
    if isinstance(each, str | bytes):
        raise InvalidArgument(
            f"map over {type(each).__name__} {each[:20]!r} would run once per character; put it in a list"
        )
    if isinstance(each, list | tuple) and each and isinstance(each[0], FutureHandle):
        return _column_of_futures(each, inputs)
    if not isinstance(each, Iterable | AsyncIterable):
        raise InvalidArgument(
            f"map takes iterables, not {type(each).__name__}; arguments that all calls share go by keyword"
        )
    return each


def _column_of_futures(futures: Sequence[Any], inputs: Inputs) -> Iterable[Input]:
    first = futures[0]
    for number, future in enumerate(futures):
        if not isinstance(future, FutureHandle) or (future.job_id, future.index) != (
            first.job_id,
            first.index + number,
        ):
            raise InvalidArgument(
                "map takes futures of one job in their order; for others: [farm.submit(function, future) for future in futures]"
            )
    return itertools.repeat(inputs.add(first.job_id, DependencyKind.EACH, first.index), len(futures))


def _natural_keys(iterables: Sequence[Any], star: bool) -> Sequence[Any] | None:
    """By what people know the tasks: the first argument, where it can be told without running anything."""
    if star:
        return None
    first = iterables[0]
    if isinstance(first, JobHandle):
        return first.keys
    if isinstance(first, range):
        return first
    if isinstance(first, list | tuple) and not isinstance(first[0] if first else None, FutureHandle):
        return list(first)
    return None


def _tuple(call: Any) -> tuple[Any, ...]:
    if not isinstance(call, Iterable) or isinstance(call, str | bytes):
        raise InvalidArgument(
            f"starmap takes calls, each a tuple of arguments, not {call!r:.60}; map takes single arguments"
        )
    return tuple(call)


async def _tuples(calls: AsyncIterable[Iterable[Any]]) -> AsyncIterator[tuple[Any, ...]]:
    async for call in calls:
        yield _tuple(call)


async def _zip_async(columns: Sequence[Any]) -> AsyncIterator[tuple[Any, ...]]:
    iterators = [aiter(c) if isinstance(c, AsyncIterable) else iter(c) for c in columns]
    while True:
        call = []
        for iterator in iterators:
            try:
                call.append(await anext(iterator) if isinstance(iterator, AsyncIterator) else next(iterator))
            except (StopIteration, StopAsyncIteration):
                return
        yield tuple(call)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitPlan:
    """One call: the template and dependencies of its job, and its payload.

    `follows` are (job_id, index) of the futures among its arguments, in the order of `inputs`, before offsets are known.
    """

    template: model.TaskTemplate
    follows: tuple[tuple[str, int], ...]
    whole: tuple[str, ...]
    payload: bytes

    def dependencies(self, position: int) -> tuple[Dependency, ...]:
        """Its dependencies as task number `position` of a job."""
        each = [
            Dependency(job_id=model.JobId(job_id), kind=DependencyKind.EACH, offset=index - position)
            for job_id, index in self.follows
        ]
        return (*each, *(Dependency(job_id=model.JobId(j), kind=DependencyKind.ALL) for j in self.whole))


def plan_submit(
    runnable: Runnable,
    template: model.TaskTemplate,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    allow_pickle: bool = False,
) -> SubmitPlan:
    """The plan of one call. Futures and jobs among its arguments become inputs of the task."""
    follows: list[tuple[str, int]] = []
    whole: list[str] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, FutureHandle) and (value.job_id, value.index) not in follows:
            follows.append((value.job_id, value.index))
        elif isinstance(value, JobHandle) and value.job_id not in whole:
            whole.append(value.job_id)

    def place(value: Any) -> Any:
        if isinstance(value, FutureHandle):
            return Input(follows.index((value.job_id, value.index)))
        if isinstance(value, JobHandle):
            return Input(len(follows) + whole.index(value.job_id))
        return value

    if follows or whole:
        args, kwargs = [place(value) for value in args], {word: place(value) for word, value in kwargs.items()}
    return SubmitPlan(
        template=template,
        follows=tuple(follows),
        whole=tuple(whole),
        payload=runnable.encode(args, kwargs, allow_pickle=allow_pickle),
    )

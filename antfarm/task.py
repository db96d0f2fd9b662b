"""Functions as tasks: the decorator, its options, and the registry that workers offer.

A decorated function stays a plain function; the decorator only gives it a name that both ends know and the options that travel in
the job's template. The network never names a module or a path: a worker runs what is in its registry and nothing else. The registry holds

- every function decorated with `@task` in a module that was imported,
- the plain public functions defined at the top level of a module or file that the operator named with `--app`
  (not what that module imported, not names that start with an underscore, not `main`),
- what every worker can do (`antfarm.builtin`).

Nothing here talks to anybody.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from types import ModuleType
from typing import Any, Generic, ParamSpec, TypeVar, overload

from antfarm import apps, model
from antfarm.duration import Duration, nanoseconds, seconds
from antfarm.errors import DataLoss, InvalidArgument, PermanentError, Weather
from antfarm.text import is_text

P = ParamSpec("P")
R = TypeVar("R")

_NAME = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_NAME_BYTES_MAX = 128
_TEXT_BYTES_MAX = 256
_ATTEMPTS_MAX = 1_000_000
_AMOUNT_MAX = 1e15
"""Of one resource, as the orchestrator has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Retries after failures of the task's own code. Lost nodes, drains and a Storage that is away are retried anyway, whatever stands here.

    Args:
        max_attempts: attempts in all that may fail, the first included.
        on: exception or exceptions that are worth another attempt; others fail at once. None: all but `PermanentError`. Workers judge by
            the `on` of the `@task` that they have loaded.
        backoff: first pause; later ones double. The actual pause is drawn evenly from zero to it.
        backoff_max: upper bound of the pause.

    >>> Retry(max_attempts=5, on=(OSError,), backoff="2s").max_attempts
    5
    """

    max_attempts: int = 3
    on: type[BaseException] | tuple[type[BaseException], ...] | None = None
    backoff: Duration = 1.0
    backoff_max: Duration = 60.0

    def __post_init__(self) -> None:
        """Check what the network would refuse later and far away."""
        if not is_whole(self.max_attempts) or not 1 <= self.max_attempts <= _ATTEMPTS_MAX:
            raise InvalidArgument(f"max_attempts={self.max_attempts!r}: must be from 1 to {_ATTEMPTS_MAX:,}")
        kinds = self.on if isinstance(self.on, tuple) else (self.on,)
        if self.on is not None and not all(
            isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds
        ):
            raise InvalidArgument(f"on={self.on!r}: give a class of exceptions or a tuple of them, e.g. (OSError,)")
        _duration("backoff", self.backoff)
        _duration("backoff_max", self.backoff_max)

    def policy(self) -> model.RetryPolicy:
        """The part of it that travels."""
        return model.RetryPolicy(
            max_attempts=self.max_attempts,
            backoff_initial_ns=nanoseconds(self.backoff) or 0,
            backoff_max_ns=nanoseconds(self.backoff_max) or 0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Limits in time, as seconds, `timedelta` or text ("10m"). None means no limit.

    Args:
        run: start to end of one attempt; the attempt is stopped then.
        progress: longest silence between two calls of `ctx.progress`; the attempt is stopped then.
        queue: from submission until it has begun, waiting for other tasks included, for a retry not; the task ends as expired.
        total: from submission to the end, all attempts included, and all that a plan makes of it; the task ends as expired.
    """

    run: Duration | None = None
    progress: Duration | None = None
    queue: Duration | None = None
    total: Duration | None = None

    def __post_init__(self) -> None:
        """Check what the network would refuse later and far away."""
        for name in ("run", "progress", "queue", "total"):
            value = getattr(self, name)
            if value is not None and _duration(name, value) == 0:
                raise InvalidArgument(f"{name}={value!r}: must be above 0; None means no limit")

    def limits(self) -> model.Timeouts:
        """As it travels."""
        return model.Timeouts(
            run_ns=nanoseconds(self.run),
            progress_ns=nanoseconds(self.progress),
            queue_ns=nanoseconds(self.queue),
            total_ns=nanoseconds(self.total),
        )


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `max_active` attempts at the same time under one name, over all jobs and workers of an orchestrator.

    >>> Limit("nasa", 4).max_active
    4
    """

    name: str
    max_active: int

    def __post_init__(self) -> None:
        """Check what the network would refuse later and far away."""
        if not is_text(self.name) or not 0 < len(self.name.encode()) <= _NAME_BYTES_MAX:
            raise InvalidArgument(f"the name of a limit is {self.name!r}: give a text of 1 to {_NAME_BYTES_MAX} bytes")
        if not is_whole(self.max_active) or not 1 <= self.max_active < 1 << 32:
            raise InvalidArgument(f"max_active={self.max_active!r}: must be a whole number of at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a task asks of the farm. See `task` for the meaning of each."""

    version: str = ""
    retries: Retry | None = None
    timeouts: Timeouts | None = None
    resources: Mapping[str, float] | None = None
    labels: Mapping[str, str] | None = None
    limit: Limit | None = None
    at_most_once: bool = False
    fence_late_results: bool = False
    idempotent: bool = False

    def __post_init__(self) -> None:
        """Check what the network would refuse later and far away; a number of retries becomes a `Retry`."""
        if not is_text(self.version) or len(self.version.encode()) > _TEXT_BYTES_MAX:
            raise InvalidArgument(f"version={self.version!r}: give a text of at most {_TEXT_BYTES_MAX} bytes, e.g. '3'")
        if is_whole(self.retries):
            object.__setattr__(self, "retries", retry_of(self.retries))
        for name, kind, example in _KINDS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise InvalidArgument(f"{name}={value!r}: give {example}")
        check_labels("labels", self.labels)
        _check_resources(self.resources)
        for name in ("at_most_once", "fence_late_results", "idempotent"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidArgument(f"{name}={getattr(self, name)!r}: give True or False")


_KINDS = (
    ("retries", Retry, "a number, e.g. 3, or af.Retry(max_attempts=4)"),
    ("timeouts", Timeouts, "af.Timeouts(run='10m')"),
    ("limit", Limit, "af.Limit('name', 4)"),
)
"""Options that are values of a class of their own."""


def retry_of(count: Any) -> Retry | None:
    """What a number of retries means: so many attempts beside the first one."""
    if not 0 <= count < _ATTEMPTS_MAX:
        raise InvalidArgument(f"retries={count!r}: must be from 0 to {_ATTEMPTS_MAX - 1:,}")
    return Retry(max_attempts=count + 1) if count else None


def check_labels(name: str, labels: Any) -> None:
    """InvalidArgument when the value of the parameter `name` is no mapping of texts to texts."""
    if labels is None:
        return
    if not isinstance(labels, Mapping) or not all(is_text(word) for pair in labels.items() for word in pair):
        raise InvalidArgument(f"{name}={labels!r}: give a dict of texts, e.g. {{'zone': 'north'}}")


def _check_resources(resources: Any) -> None:
    if resources is None:
        return
    if not isinstance(resources, Mapping) or not all(
        is_text(name) and name and _is_amount(amount) for name, amount in resources.items()
    ):
        raise InvalidArgument(
            f"resources={resources!r}: give a dict of names and numbers from 0 to {_AMOUNT_MAX:g}, e.g. {{'gpu': 1}}"
        )


def _is_amount(value: Any) -> bool:
    number = isinstance(value, Real) and not isinstance(value, bool)
    return number and bool(0 <= value <= _AMOUNT_MAX)  # NaN is not


def _duration(name: str, value: Any) -> float:
    try:
        return seconds(value)
    except InvalidArgument as error:
        raise InvalidArgument(f"{name}: {error}") from None


def is_whole(value: Any) -> bool:
    """Whether the value is a whole number; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


class Task(Generic[P, R]):
    """A function that the farm can run under a name. Calling it runs the function here.

    `name`, `version`, `function`, `is_async`, `options_set` and `context_parameter` (the parameter that takes the `Context`, or "") may be read.
    """

    def __init__(self, function: Callable[P, R], name: str = "", options: Options | None = None) -> None:
        if not callable(function):
            raise InvalidArgument(
                f"{function!r} is no function: write @af.task, or options by keyword, @af.task(name='app.fetch')"
            )
        if isinstance(function, Task):  # what is not given anew stays as it is
            name, options = name or function.name, options or function.options_set
            function = function.function
        functools.update_wrapper(self, function)  # first: attributes of the function must not pass for the task's own
        self.name: str = name or task_name(function)
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise InvalidArgument(
                f"{self.name!r} cannot name a task: give @task(name=...) of at most 128 characters of A-Z a-z 0-9 . _ : -"
            )
        self.function: Callable[P, R] = function
        self.options_set: Options = options or Options()
        self.is_async = inspect.iscoroutinefunction(function)
        self.context_parameter = context_parameter(function)

    @property
    def version(self) -> str:
        """Version of the function as its author counts; told to workers and shown to people."""
        return self.options_set.version

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<task {self.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _revive, (self.function, self.name, self.options_set)

    def options(self, **changes: Any) -> Task[P, R]:
        """The same task with some options changed, e.g. `farm.map(fetch.options(retries=9), urls)`.

        A number of retries changes that number alone; the pauses of a `Retry` and what it is `on` stay.
        """
        _check_known(changes)
        retries, before = changes.get("retries"), self.options_set.retries
        if is_whole(retries) and before is not None:
            counted = retry_of(retries)
            changes["retries"] = counted and replace(before, max_attempts=counted.max_attempts)
        return Task(self.function, self.name, replace(self.options_set, **changes))

    def template(self, common_payload: bytes = b"", traceparent: str = "") -> model.TaskTemplate:
        """What all tasks of a job of this task have in common."""
        return template(self.name, self.options_set, common_payload, traceparent)

    def is_permanent(self, error: BaseException) -> bool:
        """Whether the options say that no retry can help against the error; of the weather they say nothing."""
        retries = self.options_set.retries
        if isinstance(error, PermanentError):
            return True
        if isinstance(error, Weather | DataLoss):
            return False
        return retries is not None and retries.on is not None and not isinstance(error, retries.on)


def _check_known(options: Mapping[str, Any]) -> None:
    unknown = [name for name in options if name not in Options.__dataclass_fields__]
    if unknown:
        known = ", ".join(Options.__dataclass_fields__)
        raise InvalidArgument(f"there is no option {', '.join(unknown)}; there are: {known}")


def _revive(function: Callable[..., Any], name: str, options: Options) -> Task[..., Any]:
    return Task(function, name, options)


def template(name: str, options: Options, common_payload: bytes = b"", traceparent: str = "") -> model.TaskTemplate:
    """The template of a task type that needs no function here, e.g. one that only workers know."""
    return model.TaskTemplate(
        type=name,
        version=options.version,
        retry=options.retries.policy() if options.retries else model.RetryPolicy(),
        timeouts=options.timeouts.limits() if options.timeouts else model.Timeouts(),
        resources={name: float(amount) for name, amount in (options.resources or {}).items()},
        labels=dict(options.labels or {}),
        limit=model.ConcurrencyLimit(name=options.limit.name, max_active=options.limit.max_active)
        if options.limit
        else None,
        at_most_once=options.at_most_once,
        fence_late_results=options.fence_late_results,
        idempotent=options.idempotent,
        common_payload=common_payload,
        traceparent=traceparent,
    )


def task_name(function: Callable[..., Any]) -> str:
    """The default name of a function: `<module>.<qualname>`, the main program's module by the stem of its file."""
    module = apps.public_module(getattr(function, "__module__", None) or "builtins")
    qualname = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{module}.{qualname}"


def context_parameter(function: Callable[..., Any]) -> str:
    """The parameter annotated `Context` (any spelling, since annotations may be text), else one named ctx, else ""."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return ""
    for parameter in parameters:
        annotation = parameter.annotation
        name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
        if name.strip("\"'").rpartition(".")[2] == "Context":
            return parameter.name
    return next((p.name for p in parameters if p.name == "ctx"), "")


# ---- registry -------------------------------------------------------------------------------------------------------

_registry: dict[str, Task[..., Any]] = {}


@overload
def task(function: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(
    *,
    name: str = ...,
    version: str = ...,
    retries: Retry | int | None = ...,
    timeouts: Timeouts | None = ...,
    resources: Mapping[str, float] | None = ...,
    labels: Mapping[str, str] | None = ...,
    limit: Limit | None = ...,
    at_most_once: bool = ...,
    fence_late_results: bool = ...,
    idempotent: bool = ...,
) -> Callable[[Callable[P, R]], Task[P, R]]: ...
def task(function: Callable[..., Any] | None = None, /, *, name: str = "", **options: Any) -> Any:
    """Make a function a task that workers can run. It stays callable as before.

    Args:
        name: what both ends call it. Default: module and function name; a script's module is its file's stem.
        version: shown to people and recorded with results.
        retries: after failures of the function itself: how many, or a `Retry`. Default: none.
        timeouts: limits in time. Default: none.
        resources: what an attempt takes of a worker, e.g. {"cpu": 1}. Default: one slot.
        labels: labels that a worker must carry.
        limit: at most so many attempts at a time, farm-wide under one name.
        at_most_once: rather give the task up than start it twice.
        fence_late_results: refuse the success of an attempt that was already declared lost. Its worker stops it when it has heard nothing from the
            orchestrator for three quarters of the lease. That narrows the time in which two attempts run and cannot exclude it: the machine may stand
            still, the function may not end. What must never be done twice at a time has to compare tokens (`ctx.epoch`, `ctx.attempt`) where it is done.
        idempotent: running it twice at the same time does no harm. A task that takes much longer than the others of its job may get a second
            attempt then, on another host when slots are idle; the first success counts, the other attempt is stopped.

    >>> @task(name="demo.double", retries=Retry(max_attempts=5))
    ... def double(x: int) -> int:
    ...     return 2 * x
    >>> double(4)
    8
    """
    if function is not None:
        return register(Task(function, name))
    _check_known(options)
    settings = Options(**options)
    return lambda decorated: register(Task(decorated, name, settings))


def register(made: Task[P, R]) -> Task[P, R]:
    """Offer a task to this process's worker. InvalidArgument when another function has the name."""
    known = _registry.get(made.name)
    if known is not None and task_name(known.function) != task_name(made.function):
        raise InvalidArgument(
            f"two functions are named {made.name}: {task_name(known.function)} and {task_name(made.function)}; "
            "give one of them another @task(name=...)"
        )
    _registry[made.name] = made
    return made


def registry() -> dict[str, Task[..., Any]]:
    """All tasks that this process can run, by name."""
    return dict(_registry)


def load_apps(names: Iterable[str] = (), *, entry_points: bool = True) -> dict[str, Task[..., Any]]:
    """Import the installed `antfarm.apps` entry points and the given modules and files, and return the registry.

    InvalidArgument in one line when one cannot be loaded. Plain functions of the given ones become tasks too (see above).
    """
    for module in apps.load(names, entry_points=entry_points):
        _register_plain_functions(module)
    return registry()


def _register_plain_functions(module: ModuleType) -> None:
    for name, value in list(vars(module).items()):
        if not inspect.isfunction(value) or not is_plain_task(value, name) or value.__module__ != module.__name__:
            continue
        made = Task(value)
        _registry.setdefault(made.name, made)


def is_plain_task(function: Callable[..., Any], name: str) -> bool:
    """Whether an undecorated function of an `--app` module may be run by its name."""
    return (
        not name.startswith("_")
        and name != "main"
        and function.__qualname__ == name
        and not inspect.isgeneratorfunction(function)
        and not inspect.isasyncgenfunction(function)
    )

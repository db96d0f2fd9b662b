"""Task types that workers have without any app: commands, and functions sent by value.

`antfarm.command` runs a program: its payload's keyword arguments are those of `command_call`, its result is `{"exit_code": 0, "stdout": "...",
"stderr": "..."}`. An exit code other than 0 is a failure of class APP and kind "exit code N" whose log tail ends with what the program wrote.
Every worker offers it; it is the worker's own process code that runs it.

`antfarm.call` runs a function that travels with the job, pickled by value. Only a worker started with --allow-pickle offers it (semantics S7).
"""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

from antfarm.context import current_context
from antfarm.errors import InvalidArgument
from antfarm.form import Input
from antfarm.task import Options, Task, context_parameter

COMMAND = "antfarm.command"
CALL = "antfarm.call"

FUNCTION_KEY = "__function__"
"""Keyword under which the pickled function stands in the job's common arguments."""


def command_call(
    argv: Sequence[str],
    *,
    stdin: str | None = None,
    env: Mapping[str, Any] | None = None,
    cwd: str | None = None,
) -> dict[str, Any]:
    """Keyword arguments of one `antfarm.command`.

    Args:
        argv: the program and its arguments; no shell reads them. For a shell line: ["sh", "-c", line].
        stdin: text for its standard input; None: empty.
        env: variables in addition to the worker's; values that are no texts, as what tasks before this one gave, become texts there.
        cwd: directory to run in; None: the attempt's own scratch directory.
    """
    if not argv or not all(isinstance(word, str) for word in argv):
        raise InvalidArgument("a command is a list of texts: the program and its arguments")
    call: dict[str, Any] = {"argv": list(argv)}
    if stdin is not None:
        call["stdin"] = stdin
    if env:
        call["env"] = dict(env)
    if cwd is not None:
        call["cwd"] = cwd
    return call


_PLACE = re.compile(r"\{(\w*)\}")


class ShellTask(Task[..., Any]):
    """A shell line with places for arguments; made by `shell`."""

    def __init__(self, line: str, options: Options | None = None) -> None:
        super().__init__(command_call, COMMAND, options)
        self.line = line

    def __repr__(self) -> str:
        return f"<shell {self.line!r}>"

    def options(self, **changes: Any) -> ShellTask:
        """The same line with some options changed."""
        return ShellTask(self.line, super().options(**changes).options_set)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments of the `antfarm.command` that runs the line with these arguments, each quoted for the shell.

        What comes from another task is not known yet: in its place stands a variable, which the worker sets.
        """
        named = [name for name in dict.fromkeys(_PLACE.findall(self.line)) if name and not name.isdigit()]
        free = [name for name in named if name not in kwargs]
        values: dict[str, Any] = {**dict(zip(free, args, strict=False)), **kwargs}
        anonymous = iter(args)
        env: dict[str, Any] = {}

        def fill(place: re.Match[str]) -> str:
            name = place.group(1)
            try:
                value = next(anonymous) if not name else args[int(name)] if name.isdigit() else values[name]
            except (StopIteration, IndexError, KeyError):
                raise InvalidArgument(f"{self.line!r}: no argument for {place.group(0)}") from None
            if not isinstance(value, Input):
                return shlex.quote(str(value))
            variable = f"antfarm_input_{value.k}"
            env[variable] = value
            return f'"${variable}"'

        return command_call(["sh", "-c", _PLACE.sub(fill, self.line)], env=env)


def shell(line: str) -> ShellTask:
    """A shell line as a task, with places for arguments: `{}` in order, `{0}` by position, `{name}` by name or in order.

    Its result is `{"exit_code": 0, "stdout": "...", "stderr": "..."}`; another exit code raises TaskFailed.
    Arguments are quoted, so that none is read as shell code; do not put quotes around the places. The value of a future or a job among them
    comes in a variable of the environment, which must not have more than the system allows, 128 KiB on Linux.

    >>> shell("wc -c {path} | sort").bind(["a b.txt"], {})
    {'argv': ['sh', '-c', "wc -c 'a b.txt' | sort"]}
    """
    return ShellTask(line)


def pickle_function(function: Callable[..., Any]) -> bytes:
    """A function by value, or a task with its options, for `FUNCTION_KEY`. InvalidArgument when it holds on to something that cannot be pickled."""
    cloudpickle = importlib.import_module("cloudpickle")
    try:
        return bytes(cloudpickle.dumps(function))
    except Exception as error:
        name = getattr(function, "__qualname__", repr(function))
        raise InvalidArgument(f"{name} cannot be sent by value: {type(error).__name__}: {error}") from None


@lru_cache(maxsize=64)
def unpickle_function(data: bytes) -> Callable[..., Any]:
    """The function again. Only for children of workers that allow pickles."""
    try:
        function: Callable[..., Any] = importlib.import_module("pickle").loads(data)
    except Exception as error:
        raise InvalidArgument(f"the function cannot be read: {type(error).__name__}: {error}") from None
    return function


_sent: ContextVar[Any] = ContextVar("antfarm_sent", default=None)
"""What the attempt runs, once it is unpickled."""


def _call(*args: Any, **kwargs: Any) -> Any:
    """Runs the function, and an async one to its end; hands it the context where it takes one."""
    _sent.set(None)  # that of the attempt before does not judge a function that cannot be read
    sent = unpickle_function(kwargs.pop(FUNCTION_KEY))
    _sent.set(sent)
    function = sent.function if isinstance(sent, Task) else sent
    parameter = _context_parameter_of(function)
    if parameter and parameter not in kwargs:
        kwargs[parameter] = current_context()
    value = function(*args, **kwargs)
    if not inspect.iscoroutine(value):
        return value
    import asyncio  # not at the top: every child loads this module, and a plain one starts a quarter faster without asyncio

    return asyncio.run(value)


_context_parameter_of = lru_cache(maxsize=64)(context_parameter)


class _CallTask(Task[..., Any]):
    """What errors mean, the task says that came by value."""

    def is_permanent(self, error: BaseException) -> bool:
        """Whether the options that came with the function say that no retry can help against the error."""
        sent = _sent.get()
        return sent.is_permanent(error) if isinstance(sent, Task) else super().is_permanent(error)


CALL_TASK: Task[..., Any] = _CallTask(_call, CALL)
"""Not in the registry by itself: a worker adds it where pickles are allowed."""

"""Task types that workers have without any app: commands, and functions sent by value.

`antfarm.command` runs a program: its payload's keyword arguments are those of `command_call`, its result is `{"exit_code": 0, "stdout": "...",
"stderr": "..."}`. An exit code other than 0 is a failure of class APP and kind "exit code N" whose log tail ends with what the program wrote.
Every worker offers it; it is the worker's own process code that runs it.

`antfarm.call` runs a function that travels with the job, pickled by value. Only a worker started with --allow-pickle offers it (semantics S7).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from antfarm.errors import InvalidArgument
from antfarm.task import Task

COMMAND = "antfarm.command"
CALL = "antfarm.call"

FUNCTION_KEY = "__function__"
"""Keyword under which the pickled function stands in the job's common arguments."""


def command_call(
    argv: Sequence[str],
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> dict[str, Any]:
    """Keyword arguments of one `antfarm.command`.

    Args:
        argv: the program and its arguments; no shell reads them. For a shell line: ["sh", "-c", line].
        stdin: text for its standard input; None: empty.
        env: variables in addition to the worker's.
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


def pickle_function(function: Callable[..., Any]) -> bytes:
    """A function by value, for `FUNCTION_KEY`. InvalidArgument when it holds on to something that cannot be pickled."""
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


def _call(*args: Any, **kwargs: Any) -> Any:
    """Runs the function; one that is async returns its coroutine, which the caller must await."""
    return unpickle_function(kwargs.pop(FUNCTION_KEY))(*args, **kwargs)


CALL_TASK: Task[..., Any] = Task(_call, CALL)
"""Not in the registry by itself: a worker adds it where pickles are allowed."""

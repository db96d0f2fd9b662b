"""How an exception in a task becomes a failure."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from antfarm.errors import DataLoss, PermanentError, Unavailable
from antfarm.model import ERROR_TEXT_BYTES_MAX, FailureClass
from antfarm.task import Retry, Task, task_name
from services.worker.child.failure import KIND_CHARS_MAX, CommandFailed, describe


def plain() -> None: ...


def raised(function: Callable[[], object]) -> BaseException:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError


def throw(error: BaseException) -> BaseException:
    def function() -> None:
        raise error

    return raised(function)


@pytest.mark.parametrize(
    ("error", "expected", "kind"),
    [
        (ValueError("x"), FailureClass.APP, "ValueError"),
        (PermanentError("x"), FailureClass.PERMANENT, "antfarm.errors.PermanentError"),
        (Unavailable("x"), FailureClass.INFRA, "antfarm.errors.Unavailable"),
        (DataLoss("x"), FailureClass.INFRA, "antfarm.errors.DataLoss"),
        (CommandFailed("exit code 3", "x"), FailureClass.APP, "exit code 3"),
        (MemoryError("x"), FailureClass.APP, "MemoryError"),
        (SystemExit("x"), FailureClass.APP, "SystemExit"),
        (KeyboardInterrupt("x"), FailureClass.APP, "KeyboardInterrupt"),
    ],
)
def test_classes(error: BaseException, expected: FailureClass, kind: str) -> None:
    failure_class, found, message, _ = describe(throw(error), Task(plain))
    assert (failure_class, found, message) == (expected, kind, "x")


def test_memory_errors_are_crashes_under_a_limit_only() -> None:
    failure_class, kind, message, _ = describe(throw(MemoryError()), Task(plain), memory_bytes=1_000_000)
    assert (failure_class, kind) == (FailureClass.CRASH, "MemoryError")
    assert message == "the task needed more than its memory limit of 1,000,000 bytes"


def test_a_retry_filter_makes_others_permanent() -> None:
    task = Task(plain).options(retries=Retry(on=(OSError,)))
    assert describe(throw(ValueError()), task)[0] is FailureClass.PERMANENT
    assert describe(throw(FileNotFoundError()), task)[0] is FailureClass.APP
    assert describe(throw(Unavailable("Storage is away")), task)[0] is FailureClass.INFRA


class Hostile(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")

    __repr__ = __str__


def test_an_exception_that_cannot_be_shown_is_still_a_failure() -> None:
    failure_class, kind, message, trace = describe(throw(Hostile()), Task(plain))
    assert (failure_class, kind) == (FailureClass.APP, f"{__name__}.Hostile")
    assert message == "(its text cannot be shown: RuntimeError)"
    assert trace


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("x" * 10**6), "ValueError"),
        (type("E" * 10**6, (Exception,), {})("x" * 10**6), f"{__name__}.{'E' * KIND_CHARS_MAX}"[:KIND_CHARS_MAX]),
        (CommandFailed("exit code 3", "x" * 10**6), "exit code 3"),
    ],
    ids=["text", "name", "command"],
)
def test_texts_are_bounded(error: BaseException, kind: str) -> None:
    _, found, message, trace = describe(throw(error), Task(plain))
    assert (found, len(message)) == (kind, ERROR_TEXT_BYTES_MAX)
    assert len(trace) <= ERROR_TEXT_BYTES_MAX + 100


def test_causes_are_in_the_traceback() -> None:
    def function() -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error

    trace = describe(raised(function), Task(plain))[3]
    assert "KeyError: 'first'" in trace
    assert "The above exception was the direct cause" in trace
    assert task_name(function).rpartition(".")[2] in trace

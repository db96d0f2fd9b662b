"""How an exception in a task becomes a failure: its class, one line, and the user's own frames."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import TracebackType

from antfarm.errors import DataLoss, Weather
from antfarm.model import ERROR_TEXT_BYTES_MAX, FailureClass
from antfarm.task import Task

KIND_CHARS_MAX = 512
"""Of the name of an exception's class, which user code can make as long as it likes; reports cut it further."""
_OWN_CODE = str(Path(__file__).parent)

Described = tuple[int, str, str, str]
"""(class, kind, message, traceback)"""


class CommandFailed(Exception):
    """A command ended with an exit code other than 0, or by a signal. `kind` says which."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def describe(error: BaseException, task: Task[..., object], memory_bytes: int = 0) -> Described:
    """Class and texts of an exception that the function raised."""
    if isinstance(error, CommandFailed):
        return FailureClass.APP, error.kind, text_of(error), ""
    if isinstance(error, MemoryError) and memory_bytes:
        line = f"the task needed more than its memory limit of {memory_bytes:,} bytes"
        return FailureClass.CRASH, "MemoryError", line, _frames(error)
    if task.is_permanent(error):
        failure_class = FailureClass.PERMANENT
    elif isinstance(error, TypeError) and _raised_by_the_call(error):
        return FailureClass.PERMANENT, "TypeError", f"the arguments do not fit: {text_of(error)}", ""
    elif isinstance(error, Weather | DataLoss):
        failure_class = FailureClass.INFRA
    else:
        failure_class = FailureClass.APP
    return failure_class, _kind(error), text_of(error), _frames(error)


def _kind(error: BaseException) -> str:
    cls = type(error)
    name = cls.__qualname__ if cls.__module__ in ("builtins", "__main__") else f"{cls.__module__}.{cls.__qualname__}"
    return name[:KIND_CHARS_MAX]


def text_of(error: BaseException) -> str:
    """What the exception says, within the limit of error texts."""
    try:
        return str(error)[:ERROR_TEXT_BYTES_MAX]
    except Exception as second:  # user code again
        return f"(its text cannot be shown: {type(second).__name__})"


def _user_frames(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OWN_CODE):
        trace = trace.tb_next
    return trace


def _raised_by_the_call(error: TypeError) -> bool:
    return _user_frames(error.__traceback__) is None


def _frames(error: BaseException) -> str:
    try:
        lines = traceback.format_exception(type(error), error, _user_frames(error.__traceback__))
    except Exception as second:  # a __str__ or __repr__ of the user's raises
        lines = [f"(the traceback cannot be shown: {type(second).__name__})\n"]
    text = "".join(lines)
    if len(text) > ERROR_TEXT_BYTES_MAX:
        half = ERROR_TEXT_BYTES_MAX // 2
        text = f"{text[:half]}\n ...cut...\n{text[-half:]}"
    return text

"""Checks of what a child says, on the agent's side: user code can write into its pipe, and nothing of that may reach the orchestrator.

Each check raises ValueError or TypeError; the child is replaced then. They run before an attempt is taken as ended.
"""

from __future__ import annotations

import math
from typing import Any

from antfarm.model import KEY_BYTES_MAX, PAYLOAD_BYTES_MAX, FailureClass
from services.worker.child.protocol import SAVED_MAX

RUN_US_MAX = 1 << 60
PROGRESS_TEXT_CHARS_MAX = 256


def check_success(run_us: Any, result: Any, saved: Any = ()) -> None:
    """A result within the limit of inline values, and references to blobs."""
    if type(result) is not bytes or type(run_us) is not int:
        raise TypeError("result")
    if len(result) > PAYLOAD_BYTES_MAX or not 0 <= run_us < RUN_US_MAX or len(saved) > SAVED_MAX:
        raise ValueError("result")
    for key, size_bytes, sha256 in saved:
        if type(key) is not str or type(size_bytes) is not int or type(sha256) is not bytes:
            raise TypeError("output")
        if len(key) > KEY_BYTES_MAX or not 0 <= size_bytes < RUN_US_MAX or len(sha256) != 32:
            raise ValueError("output")


def check_failure(run_us: Any, failure_class: Any, kind: Any, message: Any, trace: Any) -> None:
    """A class that we know, and texts."""
    if type(run_us) is not int or not 0 <= run_us < RUN_US_MAX:
        raise ValueError("failure")
    FailureClass(failure_class)
    for text in (kind, message, trace):
        check_text(text)


def check_text(text: Any) -> None:
    """Text; its length is bounded by the record's."""
    if type(text) is not str:
        raise TypeError("text")


def check_progress(fraction: Any, text: Any) -> tuple[float | None, str]:
    """A fraction from 0 to 1, or None, and a short text."""
    check_text(text)
    if fraction is not None:
        fraction = float(fraction)
        fraction = None if math.isnan(fraction) else min(max(fraction, 0.0), 1.0)
    return fraction, text[:PROGRESS_TEXT_CHARS_MAX].encode()[:PROGRESS_TEXT_CHARS_MAX].decode("utf-8", "ignore")

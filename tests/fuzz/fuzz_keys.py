"""Target `keys`: names of blobs and jobs, judged beside a plain reading of the rule, and where an accepted one lies on a disk."""

from __future__ import annotations

import os.path
import random

from fuzz_world import Broken

from antfarm.errors import InvalidArgument, InvalidKey
from antfarm.model import KEY_BYTES_MAX, JobSpec, TaskTemplate
from services.orchestrator.core.limits import JOB_ID_BYTES_MAX, check_job
from services.storage.keys import check_key, check_prefix

_PARTS = (
    "a", "tasks", "0", "7-1", ".", "..", "...", ".a", "a.", "", "-", "_", "A.B-c_9", " ", "\n", "\r", "\0", "\x7f", "~", "%2e%2e", "\\", ":", "*", "ü",
    "\u2024\u2024", "\uff0e\uff0e", "\u2215", "\uff0f", "\u202e", "\ud800", "٣", "²", "K", "CON", "x" * 255, "x" * 512, "/", "//",
)  # fmt: skip
_GOOD = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_SPEC = JobSpec(template=TaskTemplate(type="t"))


def run(seed: str, inputs: int, *, check_every: int = 16) -> int:
    """That many names. Returns how many were refused."""
    dice = random.Random(seed)
    refused = 0
    for _ in range(inputs):
        text = _text(dice)
        right = _is_key(text, KEY_BYTES_MAX)
        if _taken(check_key, InvalidKey, text) is not right:
            raise Broken(f"key {text!r} is {'right' if right else 'wrong'}, and judged otherwise")
        if right and not _lies_below(text):
            raise Broken(f"key {text!r} would lie elsewhere")
        if right and not _taken(check_prefix, InvalidKey, text[: int(dice.random() * (len(text) + 1))]):
            raise Broken(f"the start of key {text!r} is no prefix")
        if _taken(check_prefix, InvalidKey, text) is not _is_prefix(text):
            raise Broken(f"prefix {text!r} is judged wrongly")
        if _taken(lambda name: check_job(name, _SPEC), InvalidArgument, text) is not _is_key(text, JOB_ID_BYTES_MAX):
            raise Broken(f"job id {text!r} is judged wrongly")
        refused += not right
    return refused


def _text(dice: random.Random) -> str:
    parts = [_PARTS[int(dice.random() * len(_PARTS))] for _ in range(1 + int(dice.random() * dice.random() * 7))]
    if dice.random() < 0.6:
        parts = [part for part in parts if part and _GOOD.issuperset(part)]
    text = ("/" if dice.random() < 0.9 else "").join(parts)
    if dice.random() < 0.3:
        at = int(dice.random() * (len(text) + 1))
        text = text[:at] + chr(int(dice.random() * (128 if dice.random() < 0.8 else 0x110000))) + text[at:]
    return text


def _taken(check: object, refusal: type[Exception], text: str) -> bool:
    """False when it is refused; whatever else comes out is a defect."""
    try:
        check(text)  # type: ignore[operator]
    except refusal as error:
        str(error).encode()  # it goes over the wire
        return False
    return True


def _is_key(text: str, size_max: int) -> bool:
    return 0 < len(text) <= size_max and all(
        segment not in ("", ".", "..") and _GOOD.issuperset(segment) for segment in text.split("/")
    )


def _is_prefix(text: str) -> bool:
    *whole, last = text.split("/")
    return len(text) <= KEY_BYTES_MAX and _GOOD.issuperset(last) and all(_is_key(s, KEY_BYTES_MAX) for s in whole)


def _lies_below(key: str) -> bool:
    path = os.path.normpath("/blobs/" + key)
    return path == "/blobs/" + key

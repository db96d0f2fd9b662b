"""Which names a blob may have. Pure; knows nothing of files.

A key is segments of `[A-Za-z0-9._-]` joined by "/", none of them empty, "." or "..", at most 512 bytes in all. So a key is ASCII, sorts the
same as text and as bytes, and can be taken apart into directory entries without any escaping.
"""

from __future__ import annotations

import re

from antfarm.errors import InvalidKey
from antfarm.model import KEY_BYTES_MAX

_SEGMENT = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+"
_KEY = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*\Z")
_PREFIX = re.compile(rf"(?:{_SEGMENT}/)*[A-Za-z0-9._-]*\Z")

_RULE = f"segments of A-Z a-z 0-9 . _ - joined by single /, no segment . or .., at most {KEY_BYTES_MAX} bytes"


def check_key(key: str) -> str:
    """The key itself; InvalidKey with the rule when it breaks it."""
    if len(key) > KEY_BYTES_MAX or not _KEY.match(key):
        raise InvalidKey(f"key {_shown(key)} is not allowed: a key is {_RULE}")
    return key


def check_prefix(prefix: str) -> str:
    """The prefix itself, which may end anywhere in a key; InvalidKey when no key could start with it."""
    if len(prefix) > KEY_BYTES_MAX or not _PREFIX.match(prefix):
        raise InvalidKey(f"prefix {_shown(prefix)} is the start of no key: a key is {_RULE}")
    return prefix


def _shown(text: str) -> str:
    """The text for a message: quoted, escaped, and not longer than helps."""
    return ascii(text if len(text) <= 100 else text[:100] + "...")

"""Keys: what is allowed, what is not, and that no allowed key leads out of the tree."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antfarm.errors import InvalidKey
from antfarm.model import KEY_BYTES_MAX
from services.storage.keys import check_key, check_prefix


@pytest.mark.parametrize(
    "key", ["a", "A-z_0.9", "a/b/c", "...", "a/.b", "a/..b/c..", "x" * KEY_BYTES_MAX, "-", "tasks/j/0/1-1/out.png"]
)
def test_allowed_keys(key: str) -> None:
    """Segments of the alphabet, also with leading dots."""
    assert check_key(key) == key


BAD = [
    "/",
    "/a",
    "a//b",
    ".",
    "..",
    "a/.",
    "a/..",
    "../a",
    "a/../b",
    "./a",
    "a b",
    "a\n",
    "a/b\n",
    "a\x00",
    "ä",
    "a@",
    "a+",
    "a\\b",
    "a:b",
    "\u0661",
    "x" * (KEY_BYTES_MAX + 1),
]


@pytest.mark.parametrize("key", ["", "a/", *BAD])
def test_refused_keys(key: str) -> None:
    """Everything else is refused in one line that states the rule."""
    with pytest.raises(InvalidKey, match=r"^key '.*' is not allowed: a key is segments of .*at most 512 bytes$"):
        check_key(key)


@pytest.mark.parametrize("prefix", ["", "a", "a/", "a/b", "a/.", "a/..", ".", "..", "a/b/."])
def test_a_prefix_may_end_anywhere_in_a_key(prefix: str) -> None:
    """What some allowed key starts with is an allowed prefix: `..` begins `..a`."""
    assert check_prefix(prefix) == prefix
    check_key(prefix + "a")


@pytest.mark.parametrize("prefix", [bad for bad in BAD if bad not in (".", "..", "a/.", "a/..")])
def test_a_prefix_of_no_key_is_refused(prefix: str) -> None:
    """A prefix that nothing can start with is a mistake, not an empty list."""
    with pytest.raises(InvalidKey, match=r"^prefix '.*' is the start of no key"):
        check_prefix(prefix)


@given(st.text(max_size=40) | st.text(alphabet="a./-@", max_size=12))
def test_no_allowed_key_leads_out(text: str) -> None:
    """Whatever is allowed is a relative path of plain names, and each of its beginnings is an allowed prefix."""
    try:
        check_key(text)
    except InvalidKey:
        return
    for segment in text.split("/"):
        assert re.fullmatch(r"[A-Za-z0-9._-]+", segment)
        assert segment not in (".", "..")
    for end in range(len(text)):
        check_prefix(text[:end])


def test_a_long_hostile_key_is_cut_in_the_message() -> None:
    """The message stays one short line of printable characters."""
    with pytest.raises(InvalidKey) as caught:
        check_key("\x1b[2J\n" + "y" * 100_000)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400

"""Commands with places become command lines, and arguments are never read as code."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antfarm.cli.session import find_task
from antfarm.cli.words import combinations, parse, takes_stdin
from antfarm.errors import InvalidArgument


@pytest.mark.parametrize(
    ("words", "args", "argv"),
    [
        (["echo", "{}", ":::", "x"], ["a b"], ["echo", "a b"]),
        (["echo", ":::", "x"], ["a"], ["echo", "a"]),
        (["cc", "{}", "-o", "{.}.o", ":::", "x"], ["src/a.b.c"], ["cc", "src/a.b.c", "-o", "src/a.b.o"]),
        (["f", "{/}|{//}|{/.}|{#}", ":::", "x"], ["d/e.txt"], ["f", "e.txt|d|e|7"]),
        (["f", "{2}{1}{}", ":::", "x", ":::", "y"], ["a", "b"], ["f", "baa b"]),
        (["f", "{name}", "{", ":::", "x"], ["a"], ["f", "{name}", "{", "a"]),
        (["wc -l {} | cat", ":::", "x"], ["a;b"], ["sh", "-c", "wc -l 'a;b' | cat"]),
        (["wc -l", ":::", "x"], ["a b"], ["sh", "-c", "wc -l 'a b'"]),
        (["date", ":::", "x"], ["+%s"], ["date", "+%s"]),
    ],
)
def test_places_are_filled(words: list[str], args: list[str], argv: list[str]) -> None:
    command, _ = parse(words)
    assert command.argv(args, 7) == argv


@pytest.mark.parametrize(
    ("value", "parts"),  # {.} {/} {//} {/.}
    [
        ("http://host/d/a.tar", ["http://host/d/a", "a.tar", "http://host/d", "a"]),
        ("./b.txt", ["./b", "b.txt", ".", "b"]),
        ("b.txt", ["b", "b.txt", ".", "b"]),
        ("/b", ["/b", "b", "/", "b"]),
        ("x//y.z", ["x//y", "y.z", "x", "y"]),
        ("d.e/f", ["d.e/f", "f", "d.e", "f"]),
        ("d.e/", ["d.e/", "d.e", ".", "d"]),
        (".bashrc", [".bashrc", ".bashrc", ".", ".bashrc"]),
        ("../.a.b", ["../.a", ".a.b", "..", ".a"]),
        ("..", ["..", "..", ".", ".."]),
        ("/", ["/", "", "/", ""]),
        ("", ["", "", ".", ""]),
    ],
)
def test_parts_are_cut_out_of_the_argument_as_it_is_written(value: str, parts: list[str]) -> None:
    command, _ = parse(["f", "{.}", "{/}", "{//}", "{/.}", ":::", "x"])
    assert command.argv([value], 1) == ["f", *parts]


def test_lists_multiply_with_the_last_one_fastest() -> None:
    _, lists = parse(["f", ":::", "a", "b", ":::", "1", "2"])
    assert list(combinations(lists)) == [("a", "1"), ("a", "2"), ("b", "1"), ("b", "2")]
    assert parse(["f", "{}"])[1] == []


def test_each_file_is_a_list_of_its_lines(tmp_path: Path) -> None:
    letters, digits, nothing = (str(tmp_path / name) for name in ("letters", "digits", "nothing"))
    Path(letters).write_text("a b\n\nc\n")
    Path(digits).write_text("1\n2")
    Path(nothing).touch()
    assert parse(["f", "::::", letters, digits])[1] == [["a b", "", "c"], ["1", "2"]]
    assert parse(["f", ":::", "x", "::::", digits, ":::", "y"])[1] == [["x"], ["1", "2"], ["y"]]
    assert parse(["f", "::::", "-", digits], ["x", "y"])[1] == [["x", "y"], ["1", "2"]]
    for path, said in (
        (nothing, "nothing is empty: there is nothing to run"),
        ("-", "standard input is empty: there is nothing to run"),
        ("missing", "missing: No such file"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            parse(["f", "::::", path])


def test_standard_input_is_a_list_only_after_the_mark_of_files() -> None:
    assert takes_stdin(["f", ":::", "a", "::::", "b", "-"])
    for words in (["f", "-"], ["f", ":::", "-"], ["f", "::::", "a", ":::", "-"]):
        assert not takes_stdin(words)


@pytest.mark.parametrize("mark", [":::+", "::::+"])
def test_linked_lists_are_refused_by_their_mark(mark: str) -> None:
    for words in (["f", ":::", "a", mark, "b"], ["f", mark, "b"], [mark]):
        with pytest.raises(InvalidArgument, match=rf"^`{re.escape(mark)}` is not supported: "):
            parse(words)


@pytest.mark.parametrize(
    "words", [[], [":::", "a"], ["f", ":::"], ["f", ":::", "a", ":::"], ["f", ":::", ":::", "a"], ["f", "::::"]]
)
def test_what_is_no_command_is_refused(words: list[str]) -> None:
    with pytest.raises(InvalidArgument):
        parse(words)


def test_a_place_without_argument_is_refused() -> None:
    command, _ = parse(["f", "{3}", ":::", "a"])
    with pytest.raises(InvalidArgument, match=r"\{3\} asks for argument 3, and there are 1"):
        command.argv(["a"], 1)


@given(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_the_shell_reads_an_argument_as_one_word(text: str) -> None:
    command, _ = parse(["printf '<%s>' {} ;"])
    argv = command.argv([text], 1)
    assert shlex.split(argv[2], comments=False)[2] == text


def test_a_hostile_argument_stays_text() -> None:
    command, _ = parse(["printf '<%s>' {}"])
    argv = command.argv(["$(echo bad) `id` '; rm -rf x #"], 1)
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "<$(echo bad) `id` '; rm -rf x #>"


@pytest.mark.parametrize("word", ["last", "last/", "last/x", "last/-1", "last/²", "last/" + "9" * 20])
async def test_what_names_no_task_is_told_with_an_example(word: str) -> None:
    with pytest.raises(InvalidArgument, match=r"is not a task: give JOB/INDEX, e\.g\. last/3"):
        await find_task(None, word)  # type: ignore[arg-type]

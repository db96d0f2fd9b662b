"""Settings of the worker and what children get of its environment."""

from __future__ import annotations

import os

import pytest

from antfarm.errors import InvalidArgument
from antfarm.settings import load_settings
from services.worker.executors.process import child_environment
from services.worker.settings import WorkerSettings


def load(*flags: str) -> WorkerSettings:
    return load_settings(
        WorkerSettings, ["--connect", "a:1", *flags], program="python -m services.worker", description=""
    )


def test_defaults_are_one_slot_per_cpu_and_all_memory() -> None:
    settings = load()
    assert settings.slot_count == len(os.sched_getaffinity(0))
    assert settings.resources["cpu"] == settings.slot_count
    assert settings.resources["memory_bytes"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert settings.installed_apps


def test_lists_come_repeated_or_with_commas() -> None:
    settings = load(
        "--connect", "b:2, c:3", "--label", "a=1", "--label", "b=x=y", "--resource", "gpu=0.5", "--slots", "3"
    )
    assert settings.addresses == ("a:1", "b:2", "c:3")
    assert settings.labels == {"a": "1", "b": "x=y"}
    assert (settings.resources["gpu"], settings.resources["cpu"]) == (0.5, 3)


@pytest.mark.parametrize(
    ("flags", "what", "line"),
    [
        (["--label", "zone"], "labels", "--label zone: write NAME=VALUE, e.g. --label zone=a"),
        (["--resource", "gpu=many"], "resources", "--resource gpu=many: 'many' is not a number"),
        (["--resource", "gpu=-1"], "resources", "--resource gpu=-1: must be a number of at least 0"),
        (["--resource", "gpu=nan"], "resources", "--resource gpu=nan: must be a number of at least 0"),
        (["--slots", "5000"], "slot_count", "--slots 5000: must be from 1 to 4096, or 0 for the number of CPUs"),
    ],
)
def test_bad_values_are_one_line(flags: list[str], what: str, line: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        getattr(load(*flags), what)
    assert str(caught.value) == line


@pytest.mark.parametrize("words", ["--drain-s -1", "--drain-s inf", "--cancel-grace-s -1", "--cancel-grace-s nan"])
def test_a_length_of_time_that_is_none_is_refused_at_the_start(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load("--connect", "a:1", *words.split())
    assert caught.value.code == 2
    assert f"{words}: give a number of seconds, 0 or more" in capsys.readouterr().err


def test_children_get_an_allow_list_and_what_the_operator_names() -> None:
    environment = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "OMP_NUM_THREADS": "1",
        "MALLOC_TRIM_THRESHOLD_": "1048576",
        "AWS_SECRET": "s",
        "ANTFARM_TOKEN": "t",
        "PYTHONPATH": "/mine",
        "DATA": "/data",
    }
    seen = child_environment(environment, ["DATA", "MISSING", "MODE=fast=1"])
    assert {
        name: seen.get(name) for name in ("PATH", "LC_ALL", "OMP_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_", "DATA", "MODE")
    } == {
        "PATH": "/bin",
        "LC_ALL": "C",
        "OMP_NUM_THREADS": "1",
        "MALLOC_TRIM_THRESHOLD_": "1048576",
        "DATA": "/data",
        "MODE": "fast=1",
    }
    assert not {"AWS_SECRET", "ANTFARM_TOKEN", "MISSING"} & set(seen)
    assert seen["PYTHONPATH"].endswith(":/mine")
    assert seen["GRPC_ENABLE_FORK_SUPPORT"] == "0"

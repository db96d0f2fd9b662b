"""The measurement of idle workers refuses what it could not measure rightly."""

from __future__ import annotations

import resource
from contextlib import ExitStack

import pytest

from bench.idle import ATTACH_PER_S, Program, demand_attached, demand_descriptors, raw_server


def test_too_few_open_files_are_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 1_000))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: None)
    with pytest.raises(SystemExit, match="5,000 workers need 5,256 open files, the hard limit is 1,000"):
        demand_descriptors(5_000)
    demand_descriptors(700)


@pytest.mark.slow
def test_raw_workers_attach_and_are_answered_and_a_missing_one_ends_the_measurement() -> None:
    with ExitStack() as server:
        _, address = server.enter_context(raw_server())
        with Program("streams", address, "host", "3", str(ATTACH_PER_S)) as program:
            assert program.line(60.0) == "attached\n"
            assert demand_attached([program], 3) == 0
            with pytest.raises(SystemExit, match="3 of 4 workers are attached"):
                demand_attached([program], 4)
            server.close()
            broken = 0
            while broken < 3:
                _, broken = program.ask()
            with pytest.raises(SystemExit, match="0 of 3 workers are attached"):
                demand_attached([program], 3)

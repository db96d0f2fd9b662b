"""Where an orchestrator keeps its journal."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from antfarm.errors import InvalidArgument
from services.orchestrator.settings import OrchestratorSettings


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user of whom the system knows no home directory."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("state", ["", "~/journal"])
def test_a_user_without_a_home_is_told_what_to_give(state: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^this user has no home directory: give --state, without ~$"):
        _ = OrchestratorSettings(port=1, state=state).state_directory


@pytest.mark.usefixtures("nobody")
def test_a_user_without_a_home_may_say_where(monkeypatch: pytest.MonkeyPatch) -> None:
    assert OrchestratorSettings(port=1, state="/srv/farm").state_directory == Path("/srv/farm")
    monkeypatch.setenv("XDG_STATE_HOME", "/var/lib")
    assert OrchestratorSettings(port=7, state="").state_directory == Path("/var/lib/antfarm/orchestrator-7")

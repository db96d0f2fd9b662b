"""The systemd units are right: systemd finds no fault, and the programs do what the units rely on."""

from __future__ import annotations

import importlib
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from configparser import RawConfigParser
from dataclasses import fields
from pathlib import Path

import pytest

from antfarm.settings import ProgramSettings
from services.orchestrator.settings import OrchestratorSettings
from services.storage import settings as storage_settings
from services.storage.settings import StorageSettings
from services.worker.settings import WorkerSettings

UNITS = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
NAMES = ["antfarm-orchestrator.service", "antfarm-storage.service", "antfarm-worker@.service"]
INTERPRETER = "/opt/antfarm/.venv/bin/python"
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed (apt-get install systemd)"
)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as on a node, with this interpreter in the place of the one under /opt."""
    for unit in UNITS.glob("*.service"):
        text = unit.read_text().replace(INTERPRETER, sys.executable).replace("/opt/antfarm/", f"{UNITS.parents[1]}/")
        (tmp_path / unit.name.replace("@.", "@1.")).write_text(text)
    return tmp_path


def test_all_units_are_known_here() -> None:
    assert sorted(p.name for p in UNITS.glob("*.service")) == NAMES


@needs_systemd
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_systemd_finds_no_fault_and_little_exposure(name: str, installed: Path) -> None:
    unit = installed / name.replace("@.", "@1.")
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=25", unit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout.splitlines()[-1:]


@needs_systemd
@pytest.mark.slow
def test_the_tls_drop_in_is_accepted(installed: Path) -> None:
    folder = installed / "antfarm-storage.service.d"
    folder.mkdir()
    shutil.copy(UNITS / "tls.conf", folder)
    unit = installed / "antfarm-storage.service"
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def section(name: str) -> RawConfigParser:
    """A unit, the last of repeated keys only."""
    parser = RawConfigParser(strict=False, delimiters=("=",), interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / name)
    return parser


def test_a_stop_leaves_time_for_the_drain() -> None:
    def default(cls: type[ProgramSettings], name: str) -> float:
        return float(next(f.default for f in fields(cls) if f.name == name))  # type: ignore[arg-type]

    worker = default(WorkerSettings, "drain_s") + default(WorkerSettings, "cancel_grace_s")
    assert float(section(NAMES[2])["Service"]["TimeoutStopSec"]) > worker + 5
    assert float(section(NAMES[1])["Service"]["TimeoutStopSec"]) > default(StorageSettings, "drain_s") + 5


@pytest.mark.parametrize("name", NAMES)
def test_units_drain_restart_and_watch(name: str) -> None:
    service = section(name)["Service"]
    assert (service["Type"], service["KillMode"], service["Restart"]) == ("notify", "mixed", "on-failure")
    assert 0 < float(service["WatchdogSec"]) <= 60
    assert service["RestartPreventExitStatus"] == "2"
    assert section(name)["Install"]["WantedBy"] == "multi-user.target"


def test_every_variable_that_the_pages_and_drop_ins_name_is_a_setting() -> None:
    known = {
        "ANTFARM_" + field.name.rstrip("_").upper()
        for cls in (OrchestratorSettings, StorageSettings, WorkerSettings)
        for field in fields(cls)
    }
    named = {word for page in UNITS.iterdir() for word in re.findall(r"\bANTFARM_[A-Z_]+", page.read_text())}
    assert named - known == set()
    assert {"ANTFARM_TLS_CERT", "ANTFARM_CONNECT", "ANTFARM_AS"} <= named


def test_programs_of_users_without_a_home_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """DynamicUser= makes such users; a default that is not used must not end the program."""

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert importlib.reload(storage_settings).StorageSettings().backend == "file:/var/lib/antfarm/storage"
    monkeypatch.undo()
    importlib.reload(storage_settings)


# ---- the programs as systemd starts them -----------------------------------------------------------------------------


class Service:
    """A program started by its unit's own command line, with a socket that listens as systemd does."""

    def __init__(self, name: str, folder: Path, **environment: str) -> None:
        folder.mkdir()
        (folder / "state").mkdir()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(folder / "notify"))
        self.heard: list[str] = []
        command = section(name)["Service"]["ExecStart"].replace(INTERPRETER, sys.executable)
        command = command.replace("${STATE_DIRECTORY}", str(folder / "state")).replace("%l-%i", "here-1")
        assert "%" not in command
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("ANTFARM_")}
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                shlex.split(command),
                cwd="/",
                env=inherited | environment | {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "400000"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def hears(self, state: str, timeout_s: float = 20.0) -> None:
        """Wait until the program has told systemd this."""
        end = time.monotonic() + timeout_s
        while state not in self.heard:
            ready, _, _ = select.select([self.socket], [], [], max(end - time.monotonic(), 0))
            assert ready, f"no {state} in {self.heard}; log:\n{self.log.read_text()}"
            self.heard.append(self.socket.recv(4096).decode())

    def address(self) -> str:
        """The address in its ready line."""
        (found,) = re.findall(r"ready on (\S+)", self.log.read_text())
        return str(found)

    def close(self) -> None:
        """Kill it with all that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        self.socket.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Start programs by their units; all end with the test, the first one last."""
    started: list[Service] = []

    def run(name: str, **environment: str) -> Service:
        started.append(Service(name, tmp_path / str(len(started)), **environment))
        return started[-1]

    yield run
    for service in reversed(started):
        service.close()


@pytest.mark.slow
def test_programs_tell_systemd_when_they_are_ready_alive_and_stopping(start: Callable[..., Service]) -> None:
    storage = start(NAMES[1], ANTFARM_PORT="0")
    storage.hears("READY=1")
    orchestrator = start(NAMES[0], ANTFARM_PORT="0", ANTFARM_STORAGE=storage.address())
    orchestrator.hears("READY=1")
    worker = start(NAMES[2], ANTFARM_CONNECT=orchestrator.address(), ANTFARM_SLOTS="1")
    worker.hears("READY=1")
    for service in (worker, orchestrator, storage):
        service.heard.clear()
        service.hears("WATCHDOG=1")
        service.heard.clear()
        service.hears("WATCHDOG=1")  # and again
        service.process.send_signal(signal.SIGTERM)
        service.hears("STOPPING=1")
        assert service.process.wait(20) == 0, service.log.read_text()


@pytest.mark.slow
def test_a_stopped_program_is_noticed_by_its_silence(start: Callable[..., Service]) -> None:
    """What systemd's watchdog would see of a program that hangs."""
    storage = start(NAMES[1], ANTFARM_PORT="0")
    storage.hears("WATCHDOG=1")
    storage.process.send_signal(signal.SIGSTOP)
    storage.heard.clear()
    while select.select([storage.socket], [], [], 0)[0]:  # what was sent before
        storage.socket.recv(4096)
    assert not select.select([storage.socket], [], [], 0.6)[0]
    storage.process.send_signal(signal.SIGCONT)
    storage.hears("WATCHDOG=1")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_setting_ends_with_the_exit_code_that_is_not_restarted(
    name: str, start: Callable[..., Service]
) -> None:
    service = start(name, ANTFARM_CONNECT="here:1", ANTFARM_LOG_LEVEL="loud")
    assert service.process.wait(20) == 2
    (line,) = service.log.read_text().splitlines()
    assert line.endswith(": ANTFARM_LOG_LEVEL: 'loud' is none of debug, info, warning, error")

"""docs/security.md is true: its commands make a CA with which a whole farm runs, and nobody else gets in."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from deploy_program import Program

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed; the page's commands need it"),
]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the CA and one node's certificate, made by the page's own commands."""
    folder = tmp_path_factory.mktemp("node")
    make_ca, make_node = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)[:2]
    subprocess.run(["bash", "-ec", make_ca + make_node], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """`start(words..., VARIABLE=value)` starts a program of ours; all are ended after the test, the first one last."""
    started: list[Program] = []

    def run(*words: str | Path, **environment: str) -> Program:
        started.append(Program([sys.executable, "-m", *map(str, words)], tmp_path, environment))
        return started[-1]

    yield run
    for program in reversed(started):
        program.close()


def tls(node: Path) -> dict[str, str]:
    """The three variables of the page."""
    return {
        "ANTFARM_TLS_CERT": f"{node}/node.pem",
        "ANTFARM_TLS_KEY": f"{node}/node.key",
        "ANTFARM_TLS_CA": f"{node}/ca.pem",
    }


def test_a_farm_with_certificates_works_and_nobody_else_gets_in(
    node: Path, start: Callable[..., Program], tmp_path: Path
) -> None:
    ours = tls(node)
    storage = start(
        "services.storage", "--port", "0", "--host", "0.0.0.0", "--backend", f"file:{tmp_path}/blobs", **ours
    )
    blobs = f"localhost:{storage.port()}"
    serve = ("services.orchestrator", "--port", "0", "--host", "0.0.0.0", "--storage", blobs)
    top = start(*serve, "--state", tmp_path / "top", **ours)
    address = f"localhost:{top.port()}"
    below = start(*serve, "--state", tmp_path / "below", "--upstream", address, "--as", "antfarm.command", **ours)
    lower = f"localhost:{below.port()}"
    worker = start("services.worker", "--connect", lower, "--slots", "1", "--state", tmp_path / "worker", **ours)
    assert worker.ready() == lower

    # The client's command is done by a worker two levels below, and what it prints comes back.
    done = start("antfarm.cli", "run", "-c", address, "--", "echo", "{}", ":::", "a", "b", **ours)
    assert (done.wait(), sorted(done.lines)) == (0, ["a", "b"])
    (tmp_path / "big").write_bytes(os.urandom(3_000_000))
    done = start("antfarm.cli", "blob", "put", "-c", address, "test/big", tmp_path / "big", **ours)
    assert done.wait() == 0, done.lines

    # Without a certificate, or with one of another CA: one line that says what is asked for, and exit code 3.
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    make_ca, make_node = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)[:2]
    subprocess.run(["bash", "-ec", make_ca + make_node], cwd=stranger, check=True, capture_output=True)
    shutil.copy(node / "ca.pem", stranger)
    for credentials in ({}, tls(stranger)):
        refused = start("antfarm.cli", "job", "list", "-c", address, **credentials)
        assert refused.wait() == 3
        (line,) = refused.lines
        assert "if it asks for TLS, give --tls-cert, --tls-key and --tls-ca of its CA" in line
    intruder = start("services.worker", "--connect", lower, "--state", tmp_path / "intruder", "--worker-id", "intruder")
    line = intruder.says("no connection to")
    assert "if it asks for TLS, give --tls-cert, --tls-key and --tls-ca of its CA" in line
    workers = start("antfarm.cli", "worker", "list", "-c", lower, "--output", "jsonl", **ours)
    assert workers.wait() == 0
    assert len(workers.lines) == 1
    assert not any("intruder" in text or "andshake" in text for text in (*workers.lines, *below.lines, *top.lines))

    for program in (worker, below, top, storage):
        program.process.send_signal(signal.SIGTERM)
        assert program.wait() == 0, program.lines


@pytest.mark.parametrize("program", ["orchestrator", "storage"])
def test_another_address_without_certificates_is_refused_unless_asked_for(
    program: str, start: Callable[..., Program], tmp_path: Path
) -> None:
    where = ("--state", tmp_path / "s") if program == "orchestrator" else ("--backend", f"file:{tmp_path}/s")
    words = (f"services.{program}", "--port", "0", "--host", "0.0.0.0", *where)
    refused = start(*words)
    assert refused.wait() == 2
    assert len(refused.lines) == 1
    assert refused.lines[0].endswith(
        "--host 0.0.0.0 is reachable from other machines: give --tls-cert, --tls-key and --tls-ca, "
        "or say --insecure to serve without protection"
    )
    loud = start(*words, "--insecure")
    assert loud.ready().startswith("0.0.0.0:")
    assert "WARNING" in loud.says("insecure")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ANTFARM_TLS_KEY": ""}, "TLS needs --tls-cert, --tls-key and --tls-ca together: --tls-key is missing"),
        ({"ANTFARM_TLS_CA": "/no/ca.pem"}, "--tls-ca /no/ca.pem: No such file or directory"),
        ({"ANTFARM_TLS_KEY": "{node}/ca.key"}, "the TLS files do not fit together"),
    ],
    ids=["missing", "unreadable", "foreign key"],
)
def test_wrong_files_are_one_line_at_the_start(
    change: dict[str, str], words: str, node: Path, start: Callable[..., Program], tmp_path: Path
) -> None:
    credentials = tls(node) | {name: value.format(node=node) for name, value in change.items()}
    program = start("services.storage", "--port", "0", "--backend", f"file:{tmp_path}/blobs", **credentials)
    assert program.wait() == 2
    assert len([line for line in program.lines if words in line]) == 1, program.lines
    assert not any("Traceback" in line for line in program.lines)

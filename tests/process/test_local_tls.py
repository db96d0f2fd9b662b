"""A farm with mutual TLS answers clients of its CA, and tells others in one line that they are not."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_storage_program import certificates

import antfarm as af
from antfarm import errors
from antfarm.local import LocalFarm

pytestmark = pytest.mark.slow

APP = """
def square(x):
    return x * x

def long(x):
    return "x" * x
"""


def test_client_and_programs_show_each_other_their_certificates(tmp_path: Path) -> None:
    (tmp_path / "tlsapp.py").write_text(APP)
    cert, key, ca = map(str, certificates(tmp_path, "farm"))
    flags = ["--tls-cert", cert, "--tls-key", key, "--tls-ca", ca]
    with LocalFarm(tmp_path / "state") as programs:
        programs.start_storage(options=flags)
        programs.start_orchestrator(options=flags)
        programs.start_worker(slots=1, app=[str(tmp_path / "tlsapp.py")], options=flags)
        with af.connect(programs.address, tls_cert=cert, tls_key=key, tls_ca=ca) as farm:
            assert farm.submit("tlsapp.square", 3).result(20) == 9
            assert farm.submit("tlsapp.long", 100_000).result(20) == "x" * 100_000
        with pytest.raises(errors.Unavailable, match="no farm answers") as caught:
            af.connect(programs.address)
        assert "\n" not in str(caught.value)
        other_cert, other_key, other_ca = map(str, certificates(tmp_path, "other"))
        with pytest.raises(errors.Unavailable, match="no farm answers"):
            af.connect(programs.address, tls_cert=other_cert, tls_key=other_key, tls_ca=other_ca)
        with pytest.raises(errors.InvalidArgument, match="--tls-ca is missing"):
            af.connect(programs.address, tls_cert=cert, tls_key=key)


def test_up_tells_what_stands_in_the_certificate_and_the_flags_to_join_with(tmp_path: Path) -> None:
    (tmp_path / "tlsapp.py").write_text(APP)
    cert, key, ca = map(str, certificates(tmp_path, "farm"))
    flags = ("--tls-cert", cert, "--tls-key", key, "--tls-ca", ca)
    serving = ("--host", "0.0.0.0", "--advertise", "127.0.0.1", "--port", "0", "--storage-port", "0", *flags)
    process = subprocess.Popen(
        [sys.executable, "-m", "antfarm.cli", "up", *serving, "--app", "tlsapp.py", "--slots", "1", "--state", "up"],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    found = re.match(r"farm ready on (127\.0\.0\.1:\d+) \(storage 127\.0\.0\.1:", process.stdout.readline())
    assert found is not None, process.stderr.read()
    address = found.group(1)
    assert f"af.connect({address!r}, tls_cert={cert!r}, tls_key={key!r}, tls_ca={ca!r})" in process.stdout.readline()
    assert process.stdout.readline().endswith(f" --connect {address} --app MODULE_OR_FILE {' '.join(flags)}\n")
    with af.connect(address, tls_cert=cert, tls_key=key, tls_ca=ca) as farm:
        assert farm.submit("tlsapp.long", 100_000).result(20) == "x" * 100_000
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)

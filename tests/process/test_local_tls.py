"""A farm with mutual TLS answers clients of its CA, and tells others in one line that they are not."""

from __future__ import annotations

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

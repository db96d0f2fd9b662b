"""Fails when antfarm/v1 is not what protos/ generates.

Generates into a temporary directory with the installed grpcio-tools and mypy-protobuf, exactly as `make protos` does, and
compares byte by byte, so that a change of a .proto without its stubs (or of a stub by hand) cannot land. It knows nothing of
what the messages mean.
"""

from __future__ import annotations

import filecmp
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BY_HAND = {"__init__.py"}
"""Files of antfarm/v1 that no generator writes."""


def generate(target: Path) -> None:
    """Generate all stubs below `target`. Raises RuntimeError with protoc's own words when it refuses."""
    sources = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "protos").rglob("*.proto"))
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc", "-Iprotos"),
        *(f"--{kind}_out={target}" for kind in ("python", "grpc_python", "mypy")),
        f"--mypy_grpc_out=only_async:{target}",
        *sources,
    ]
    # protoc finds the mypy plug-ins on PATH, beside this interpreter.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip())


def differences(generated: Path, committed: Path) -> list[str]:
    """One line for each file that is missing, left over or different."""
    theirs = {str(p.relative_to(generated)) for p in generated.rglob("*.py*")}
    ours = {str(p.relative_to(committed)) for p in committed.rglob("*.py*") if "__pycache__" not in p.parts} - BY_HAND
    lines = [f"{name}: generated but not committed" for name in sorted(theirs - ours)]
    lines += [f"{name}: committed but no .proto generates it" for name in sorted(ours - theirs)]
    _, different, unreadable = filecmp.cmpfiles(generated, committed, sorted(theirs & ours), shallow=False)
    return lines + [f"{name}: differs from what protos/ generates" for name in sorted(different + unreadable)]


def main(committed: Path = ROOT / "antfarm" / "v1") -> int:
    """0 when all is as generated; 1 with a line for each difference otherwise."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            generate(Path(directory))
        except RuntimeError as error:
            sys.stderr.write(f"{error}\n")
            return 1
        lines = differences(Path(directory) / "antfarm" / "v1", committed)
    for line in lines:
        sys.stderr.write(f"antfarm/v1/{line}\n")
    if lines:
        sys.stderr.write("run `make protos` and commit the result\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())

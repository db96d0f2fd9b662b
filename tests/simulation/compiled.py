"""The same simulation, compiled: `python -m tests.simulation.compiled --many 100000 --first 1` takes the arguments of `tests.simulation`.

The cores and the simulation are translated to C by mypyc in a copy of the sources, some 40 % of the time a seed. That it is the same simulation is
checked first: the checksums of seeds, over all that happened in them, must equal those of the interpreter. Compiling takes two to three minutes, and
is done again when a source has changed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "simulation"
COPIED = ("antfarm", "services", "tests/simulation")
NOT_COMPILED = {
    "explain.py",
    "story.py",
    "waiting.py",
    "__init__.py",
    "__main__.py",
    "compiled.py",
    "mutants.py",
    "runs.py",
    "test_simulation.py",
}
"""Words for people, and what only starts the rest."""
COMPARED = 200
"""Seeds whose checksums are compared."""

SETUP = """
import sys
from mypyc.build import mypycify
from setuptools import setup
setup(name="simulation", packages=[], py_modules=[], script_args=["-q", "build_ext", "--inplace"],
      ext_modules=mypycify(sys.argv[1:], opt_level="1", debug_level="0"))
"""
MARKS = """
import sys
from tests.simulation import kernel
from tests.simulation.world import World
def mark(seed):
    world = World(seed)
    world.run()
    return world.kernel.mark, world.kernel.events
print(kernel.__file__, file=sys.stderr)
print([mark(seed) for seed in range(1, int(sys.argv[1]) + 1)])
"""


def sources() -> list[str]:
    """What is compiled, from the root."""
    folders = [ROOT / "services/orchestrator/core", ROOT / "tests/simulation"]
    files = [file for folder in folders for file in folder.glob("*.py") if file.name not in NOT_COMPILED]
    single = (
        "antfarm/model.py",
        "antfarm/link/session.py",
        "services/orchestrator/journal/codec.py",
        "services/storage/core/sweep.py",
    )
    return sorted([str(file.relative_to(ROOT)) for file in files] + list(single))


def digest() -> str:
    """Of all that is copied, and of the Python that compiles it."""
    whole = hashlib.sha256(sys.version.encode())
    for name in COPIED:
        for file in sorted((ROOT / name).rglob("*.py")):
            whole.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return whole.hexdigest()


def build() -> None:
    """Compile a copy of the sources, unless that has been done."""
    stamp = BUILD / "stamp"
    if stamp.exists() and stamp.read_text() == digest():
        return
    print("compiling; this takes some minutes", file=sys.stderr)
    shutil.rmtree(BUILD, ignore_errors=True)
    for name in COPIED:
        shutil.copytree(ROOT / name, BUILD / name, ignore=shutil.ignore_patterns("__pycache__"))
    (BUILD / "tests/__init__.py").touch()
    subprocess.run([sys.executable, "-c", SETUP, *sources()], cwd=BUILD, check=True)
    stamp.write_text(digest())


def marks(root: Path) -> str:
    """Checksums of the first seeds, by the sources or the compiled copy."""
    run = subprocess.run(
        [sys.executable, "-c", MARKS, str(COMPARED)],
        cwd=root,
        env=environment(root),
        check=True,
        capture_output=True,
        text=True,
    )
    is_compiled = run.stderr.strip().endswith(".so")
    assert is_compiled == (root == BUILD), f"{run.stderr.strip()} is not what was to be run"
    return run.stdout


def environment(root: Path) -> dict[str, str]:
    """For a Python that takes the sources from there."""
    return {**os.environ, "PYTHONPATH": str(root)}


def main() -> int:
    """Compile, compare, run. Exit code 1 when a seed fails, 2 when the compiled simulation is not the same."""
    build()
    if marks(ROOT) != marks(BUILD):
        print(
            f"the compiled simulation goes another way than the interpreter in one of seeds 1 to {COMPARED}",
            file=sys.stderr,
        )
        return 2
    print(f"compiled; seeds 1 to {COMPARED} have the same checksums as in the interpreter", flush=True)
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *sys.argv[1:]], cwd=BUILD, env=environment(BUILD)
    ).returncode


if __name__ == "__main__":
    sys.exit(main())

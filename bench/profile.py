"""`make bench-profile`: where the orchestrator's, a worker's and the client's time goes under load, as flame graphs by py-spy.

Empty tasks, one orchestrator, one worker of two slots, Storage. The samples slow the program down: shares count here, not the rate. What stands in
docs is of `python -m bench.profile --out docs`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import antfarm as af
from antfarm.local import LocalFarm
from bench import flame
from bench.measure import machine
from bench.tasks import noop

SPY = Path(__file__).parents[1] / "build" / "profile" / "bin" / "py-spy"
PROGRAMS = ("orchestrator", "worker-1", "client")
SAMPLES_S = 400


def main() -> int:
    """Profile one program after the other. Exit code 2 without py-spy."""
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000, help="empty tasks for each program (%(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("build/profile"), help="directory of the pictures (%(default)s)"
    )
    options = parser.parse_args()
    if not SPY.exists():
        print("py-spy is not there: make bench-profile installs it", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    with LocalFarm() as local:
        local.start_storage()
        local.start_orchestrator()
        local.start_worker(slots=2, app=["bench.tasks"])
        with af.connect(local.address) as farm:
            list(farm.map(noop, range(1_000)).results())  # warm
            for name in PROGRAMS:
                samples = local.state_dir / f"{name}.samples"
                spy = _watch(os.getpid() if name == "client" else local.program(name).pid, samples)
                list(farm.map(noop, range(options.tasks)).results())
                spy.send_signal(signal.SIGINT)
                spy.wait()
                picture = options.out / f"flame-{name}.svg"
                picture.write_text(flame.chart(flame.merge(samples.read_text().splitlines()), f"{name}: {machine()}"))
                print(picture)
    return 0


def _watch(pid: int, samples: Path) -> subprocess.Popen[bytes]:
    """A py-spy that samples a process until it is interrupted."""
    command = [
        str(SPY),
        "record",
        "--rate",
        str(SAMPLES_S),
        "--nonblocking",
        "--function",
        "--format",
        "raw",
        "--output",
        str(samples),
        "--pid",
        str(pid),
    ]
    spy = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1.0)  # it reads the symbols first, and says nothing when it is ready
    return spy


if __name__ == "__main__":
    sys.exit(main())

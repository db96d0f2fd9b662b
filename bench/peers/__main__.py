"""`make bench-peers`: AntFarm and its peers on the same work, in turn, round after round, each started anew and alone.

Two slots each, all on this machine over loopback or sockets. A peer that cannot be installed here is named and left out; what would take a peer too long is
made smaller or left out (marked *). The table goes to the standard output.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.peers import environments, noise, record, table
from bench.peers.contenders import CONTENDERS, Contender
from bench.peers.session import Plan, measure

PICTURE = environments.ROOT / "docs" / "peers.svg"


def main() -> int:
    """Measure, print, and keep the record if asked. Exit code 1 when AntFarm itself was in trouble."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("names", nargs="*", help="start of the names of those to measure (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (%(default)s)")
    parser.add_argument("--million", action="store_true", help="bursts of 1,000,000 tasks as well")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work: to see that all works")
    parser.add_argument("--save", action="store_true", help="keep the record in bench/history and the picture in docs")
    parser.add_argument(
        "--show", type=Path, metavar="FILE", help="print a record of the history again, measure nothing"
    )
    options = parser.parse_args()
    if options.show:
        print(table.markdown(record.load(options.show)))
        return 0
    chosen = [one for one in CONTENDERS if one.name.startswith(tuple(options.names) or ("",))]
    if not chosen:
        parser.error(f"nobody is called so; there are: {', '.join(one.name for one in CONTENDERS)}")
    run = record.begin(options.rounds)
    plan = _plan(million=options.million, quick=options.quick)
    for number in range(options.rounds):
        for contender in chosen:
            _measure(run, contender, plan, number)
    print(table.markdown(run))
    if options.save:
        print(f"\nkept as {run.save()}", file=sys.stderr)
        PICTURE.write_text(table.chart(run, "tasks/s, 10,000"))
    return 1 if run.trouble.get(record.OURS) else 0


def _plan(*, million: bool, quick: bool) -> Plan:
    if quick:
        return Plan(bursts=(1_000, 10_000), trips=100, burns=200, killed=200, held=10_000, limit_s=10)
    return Plan(bursts=(10_000, 100_000, *((1_000_000,) if million else ())))


def _measure(run: record.Record, contender: Contender, plan: Plan, number: int) -> None:
    if contender.name in run.trouble and not run.values.get(contender.name):
        return  # it could not be had in the first round
    run.noise_ms.append(noise.loop_ms())
    print(f"round {number + 1}: {contender.name}", file=sys.stderr, flush=True)
    run.durable[contender.name] = contender.durable
    try:
        figures = measure(contender, plan)
    except environments.Missing as error:
        run.trouble[contender.name] = [f"left out: {error}"]
        print(f"    left out: {error}", file=sys.stderr, flush=True)
        return
    values = run.values.setdefault(contender.name, {})
    for name, value in figures.values.items():
        values.setdefault(name, []).append(value)
    for text in figures.trouble:
        print(f"    {text}", file=sys.stderr, flush=True)
        known = run.trouble.setdefault(contender.name, [])
        if text not in known:
            known.append(text)


if __name__ == "__main__":
    sys.exit(main())

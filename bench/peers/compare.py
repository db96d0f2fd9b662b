"""`make bench-compare`: the last run that is kept beside the one before it; ratios to peers that have become worse by more than 15 % are shown."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.peers import record, table

WORSE = 0.85


def main() -> int:
    """Compare two records. Exit code 1 when a ratio has become worse by more than 15 %."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers.compare", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="two records (default: the last two of bench/history)")
    paths = parser.parse_args().files or record.history()[-2:]
    if len(paths) != 2:
        print("two records are needed: make bench-peers keeps one", file=sys.stderr)
        return 2
    before, after = map(record.load, paths)
    print(f"{before.revision} of {before.date} -> {after.revision} of {after.date}")
    worse = 0
    for contender in after.values:
        for measure, _ in table.COLUMNS:
            old, new = before.ratio(contender, measure), after.ratio(contender, measure)
            if contender != record.OURS and old and new:
                regressed = new < WORSE * old
                worse += regressed
                if regressed or new > old / WORSE:
                    print(f"{'WORSE ' if regressed else 'better'} {measure} beside {contender}: {old:.3g} -> {new:.3g}")
    print(f"{worse} ratios have become worse by more than 15 %")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())

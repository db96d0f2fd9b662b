"""`python -m clouds.standin`: the stand-in server as a program of its own.

Prints `stand-in ready on HOST:PORT` when it listens. SIGTERM and SIGINT end it at once, with exit code 0; so does the
end of its standard input where the parent asks for that (`antfarm.program`). What it cannot use is said in one line on standard error, with exit code 2.
"""

import argparse
import asyncio
import sys
from datetime import date
from pathlib import Path

from antfarm.program import stop_on_signals
from clouds.errors import CloudsError
from clouds.standin import (
    Fault,
    FaultPlan,
    FolderSource,
    Planet,
    SceneSource,
    Settings,
    Source,
    parse_day_faults,
    read_faults,
    start_standin,
)

_FAULT_HELP = "DAY=FAULT[+FAULT...], may be given often; DAY is YYYY-MM-DD or *; for example 2021-01-05=http503*2+gap"


def main(arguments: list[str] | None = None) -> int:
    """Run until a signal; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        source, settings = _source(options), _settings(options)
        asyncio.run(_serve(source, settings))
    except CloudsError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


async def _serve(source: Source, settings: Settings) -> None:
    ended = stop_on_signals()
    async with start_standin(source, settings) as standin:
        print(f"stand-in ready on {settings.host}:{standin.port}", flush=True)
        await ended.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m clouds.standin", description="A stand-in for NASA's snapshot service."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0, the default, picks a free one")
    parser.add_argument("--seed", type=int, default=42, help="decides the weather and the realistic faults (42)")
    parser.add_argument("--dir", type=Path, metavar="PATH", help="serve real pictures with YYYY-MM-DD in their names")
    parser.add_argument("--fault", action="append", default=[], metavar="DAY=FAULT", help=_FAULT_HELP)
    parser.add_argument("--faults", type=Path, metavar="FILE", help='JSON, {"2021-01-05": ["http503*2", "gap"]}')
    parser.add_argument("--realistic", action="store_true", help="add the seeded mix of a usual month's faults")
    parser.add_argument("--latency", type=float, default=0.0, metavar="S", help="seconds before every answer (0)")
    parser.add_argument("--no-orbit-gaps", action="store_true", help="leave out the gaps between orbits in the tropics")
    parser.add_argument("--no-night", action="store_true", help="leave out the polar night")
    parser.add_argument("--generated-ground", action="store_true", help="made-up land also where Blue Marble is there")
    return parser


def _source(options: argparse.Namespace) -> Source:
    if options.dir is not None:
        return FolderSource(options.dir)
    return SceneSource(
        Planet(
            options.seed,
            orbit_gaps=not options.no_orbit_gaps,
            night=not options.no_night,
            marble=not options.generated_ground,
        )
    )


def _settings(options: argparse.Namespace) -> Settings:
    if not 0 <= options.port <= 65535:
        raise CloudsError(f"port {options.port} is not within 0..65535")
    if not 0 <= options.latency <= 3600:
        raise CloudsError(f"latency of {options.latency} s is not within 0..3600")
    by_day: dict[date | None, tuple[Fault, ...]] = read_faults(options.faults) if options.faults else {}
    for text in options.fault:
        day, faults = parse_day_faults(text)
        by_day[day] = by_day.get(day, ()) + faults
    plan = FaultPlan(by_day=by_day, realistic_seed=options.seed if options.realistic else None)
    return Settings(host=options.host, port=options.port, plan=plan, latency_s=options.latency)


if __name__ == "__main__":
    sys.exit(main())

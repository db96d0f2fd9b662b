"""`antfarm up`: orchestrator, storage and workers on this machine, durable, until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from antfarm import net, program
from antfarm.address import is_host, is_wildcard, own_address
from antfarm.claim import claim
from antfarm.errors import AntFarmError, InvalidArgument, Unavailable
from antfarm.local import LocalFarm
from antfarm.settings import state_home

_CHECK_S = 0.5
_SLOTS_MAX = 4096
_RESTARTS_MAX = 5
_RESTARTS_WITHIN_S = 60.0


def add(commands: Any, flags: argparse.ArgumentParser) -> None:
    """Declare the subcommand."""
    about = "run a whole farm on this machine until Ctrl-C"
    parser: argparse.ArgumentParser = commands.add_parser("up", help=about, description=about)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve on; default: 127.0.0.1, this machine only"
    )
    parser.add_argument(
        "--advertise",
        metavar="HOST",
        default="",
        help="name or address of this machine that clients and workers are told; default: --host, and where that is every address "
        "(0.0.0.0) that of the default route, with TLS the host's name, which must stand in the certificate",
    )
    parser.add_argument("--port", type=int, default=50051, help="port of the orchestrator; default: 50051; 0: any")
    parser.add_argument("--storage-port", type=int, default=50052, help="port of Storage; default: 50052; 0: any")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="worker processes; default: 1; 0: none here"
    )
    parser.add_argument("--slots", type=int, metavar="N", help="tasks at a time of each worker; default: one per core")
    parser.add_argument("--app", action="append", default=[], metavar="MODULE", help="module or file that holds tasks")
    parser.add_argument("--allow-pickle", action="store_true", help="let clients send functions and values by pickle")
    parser.add_argument(
        "--state", metavar="DIR", type=Path, help="where state and logs lie; default: ~/.local/state/antfarm/up"
    )
    parser.add_argument("--insecure", action="store_true", help="serve other machines without TLS")
    for name in ("cert", "key", "ca"):
        parser.add_argument(f"--tls-{name}", metavar="FILE", default=argparse.SUPPRESS, help="mutual TLS (PEM)")
    parser.set_defaults(run=up)


async def up(options: argparse.Namespace) -> int:
    """antfarm up."""
    _check(options)
    tls = net.Tls.from_paths(options.tls_cert, options.tls_key, options.tls_ca)
    net.check_bind(options.host, tls, insecure=options.insecure)
    stop = program.stop_on_signals()
    state = options.state or _default_state()
    farm = LocalFarm(state)
    farm.advertise = options.advertise
    if not options.advertise and is_wildcard(options.host):
        farm.advertise = socket.gethostname() if tls else own_address()  # certificates are made for names
    with claim(state) as claimed:
        farm.inherit = (claimed.lock,)  # it stands until the last program has ended, however this one ends
        serving = False
        try:
            await asyncio.to_thread(_start, farm, options)
            serving = True
            if not stop.is_set():  # else: what was started is stopped in order
                claimed.tell(farm.address, farm.storage_address)
                _announce(farm, options, state)
                program.notify("READY=1")
                await _supervise(farm, stop)
        finally:
            if any(each.running for each in farm.programs.values()):
                for number in (signal.SIGINT, signal.SIGTERM):
                    asyncio.get_running_loop().add_signal_handler(number, farm.hurry)
                if serving or stop.is_set():
                    again = " again" if stop.is_set() else ""
                    print(f"stopping; running tasks may finish (Ctrl-C{again}: at once)", file=sys.stderr)
            await asyncio.to_thread(farm.stop)
    return program.EXIT_OK


def _check(options: argparse.Namespace) -> None:
    """What can be told before anything is started."""
    for flag, port in (("--port", options.port), ("--storage-port", options.storage_port)):
        if not 0 <= port <= 65535:
            raise InvalidArgument(f"{flag} {port}: not a port; give 1 to 65535, or 0 for any free one")
    if options.port and options.port == options.storage_port:
        raise InvalidArgument(f"--port and --storage-port are the same, {options.port}: give two")
    if options.advertise and not is_host(options.advertise):
        raise InvalidArgument(
            f"--advertise {options.advertise}: give this machine's name or one address of it; the ports are those of --port and --storage-port"
        )
    if options.workers < 0:
        raise InvalidArgument(f"--workers {options.workers}: give 0 or more")
    if options.slots is not None and not 0 <= options.slots <= _SLOTS_MAX:
        raise InvalidArgument(f"--slots {options.slots}: give 1 to {_SLOTS_MAX:,}, or 0 for one per core")


def _default_state() -> Path:
    return state_home(os.environ) / "antfarm" / "up"


def _start(farm: LocalFarm, options: argparse.Namespace) -> None:
    tls = [word for name, path in _tls(options).items() for word in (f"--tls-{name}", path)]
    serving = [*tls, *(["--insecure"] if options.insecure else [])]
    with farm.together():
        try:
            farm.start_storage(port=options.storage_port, host=options.host, options=serving)
        except InvalidArgument as error:  # the program knows no flag of that name
            raise InvalidArgument(str(error).replace(" --port", " --storage-port")) from None
        farm.start_orchestrator(port=options.port, host=options.host, options=serving)
        for _ in range(options.workers):
            farm.start_worker(slots=options.slots, app=options.app, allow_pickle=options.allow_pickle, options=tls)


def _tls(options: argparse.Namespace) -> dict[str, str]:
    """The TLS files that were given: all of them or none."""
    return {name: path for name in ("cert", "key", "ca") if (path := getattr(options, f"tls_{name}"))}


def _announce(farm: LocalFarm, options: argparse.Namespace, state: Path) -> None:
    workers = f"{options.workers} worker{'' if options.workers == 1 else 's'}"
    tls = _tls(options)
    words = "".join(f", tls_{name}={path!r}" for name, path in tls.items())
    flags = "".join(f" --tls-{name} {shlex.quote(path)}" for name, path in tls.items())
    variables = "".join(f" ANTFARM_TLS_{name.upper()}={shlex.quote(path)}" for name, path in tls.items())
    print(f"farm ready on {farm.address} (storage {farm.storage_address}, {workers})")
    print(f"  use it     af.connect({farm.address!r}{words})  or  export ANTFARM_ADDRESS={farm.address}{variables}")
    print(f"  join it    python -m services.worker --connect {farm.address} --app MODULE_OR_FILE{flags}")
    print(f"  state      {state}  (logs in {state / 'logs'})")
    print("  stop       Ctrl-C", flush=True)


async def _supervise(farm: LocalFarm, stop: asyncio.Event) -> None:
    """Start again what dies, until a stop is wished or it dies too often."""
    deaths: list[float] = []
    while not stop.is_set():
        try:
            async with asyncio.timeout(_CHECK_S):
                await stop.wait()
        except TimeoutError:
            pass
        for each in list(farm.programs.values()):
            if each.running or stop.is_set():
                continue
            deaths = [*(at for at in deaths if time.monotonic() - at < _RESTARTS_WITHIN_S), time.monotonic()]
            if len(deaths) > _RESTARTS_MAX:
                raise Unavailable(f"{each.name} keeps dying; its log: {each.log}")
            print(f"{each.name} died; starting it again (log: {each.log})", file=sys.stderr)
            try:
                await asyncio.to_thread(farm.restart, each.name)
            except AntFarmError as error:
                print(f"antfarm up: {error}", file=sys.stderr)

"""Entry of the console command `antfarm`: reads the words, runs one subcommand, turns errors into one line and an exit code.

0 ok, 1 tasks failed, 2 usage, 3 cannot connect, 4 cancelled, 5 timeout.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import sys
from collections.abc import Sequence

import antfarm
from antfarm.errors import AntFarmError, InvalidArgument, TaskError, UserError, Weather
from antfarm.program import (
    EXIT_CANCELLED,
    EXIT_CANNOT_CONNECT,
    EXIT_OK,
    EXIT_TASKS_FAILED,
    EXIT_TIMEOUT,
    EXIT_USAGE,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # as sys.stderr: a terminal may lack letters
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        return int(asyncio.run(options.run(options)))
    except TaskError as error:
        return _say(error, EXIT_TASKS_FAILED, options)
    except UserError as error:
        return _say(error, EXIT_USAGE, options)
    except Weather as error:
        return _say(error, EXIT_CANNOT_CONNECT, options)
    except AntFarmError as error:
        return _say(error, EXIT_TASKS_FAILED, options)
    except TimeoutError as error:
        return _say(error, EXIT_TIMEOUT, options)
    except KeyboardInterrupt:
        parting = getattr(options, "parting", "")  # what becomes of what the subcommand has begun, in words
        return _say(AntFarmError(f"interrupted; {parting}" if parting else "interrupted"), EXIT_CANCELLED)
    except UnicodeEncodeError as error:  # the shell's bytes became half characters, and nothing was sent
        if error.encoding != "utf-8":
            raise
        return _say(InvalidArgument(f"{error.object!r} is not UTF-8: it cannot be sent"), EXIT_USAGE, options)
    except BrokenPipeError:  # `antfarm ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        left = getattr(options, "left", "")
        return _say(AntFarmError(left), EXIT_OK) if left else EXIT_OK
    except OSError as error:
        return _say(
            AntFarmError(f"{error.filename}: {error.strerror}" if error.filename else str(error)), EXIT_USAGE, options
        )


def _say(error: BaseException, code: int, options: argparse.Namespace | None = None) -> int:
    """One line for the error, and one for what is left behind: the subcommand knows it better than the library's notes."""
    from antfarm.text import escape

    left = getattr(options, "left", "")
    for text in (str(error), *([left] if left else getattr(error, "__notes__", ()))):
        print(f"antfarm: {escape(' '.join(text.split()))}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    from antfarm.cli import backup, blob, job, run, session, submit, task, up, worker

    parser = argparse.ArgumentParser(prog="antfarm", description="A durable task farm: run it, feed it, look at it.")
    parser.add_argument("--version", action="version", version=f"antfarm {antfarm.__version__}")
    session.add_farm_flags(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    flags = argparse.ArgumentParser(add_help=False)
    session.add_farm_flags(flags, again=True)
    for part in (up, run, submit, job, task, worker, blob, backup):
        part.add(commands, flags)
    version = commands.add_parser("version", parents=[flags], help="versions of this command and of the farm")
    version.add_argument("--server", action="store_true", help="ask the farm too")
    version.set_defaults(run=_version)
    return parser


async def _version(options: argparse.Namespace) -> int:
    from antfarm.cli.session import open_farm, output
    from antfarm.v1 import system_pb2

    row = {"antfarm": antfarm.__version__, "python": sys.version.split()[0]}
    if options.server:
        async with open_farm(options) as farm:
            info = await farm.connection.call(farm.connection.system.GetServerInfo, system_pb2.GetServerInfoRequest())
            row |= {
                "server": farm.address,
                "software": info.software,
                "protocol": f"{info.protocol_major}.{info.protocol_minor}",
                "storage": info.storage_address,
                "warnings": ", ".join(info.warnings),
            }
    output(options).row(row)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())

"""Settings of a program: one frozen dataclass, filled from defaults < TOML file < ANTFARM_... environment < flags.

A program declares each setting once with `setting(default, help)`; flags, environment names, `--help` and the checks of types
follow from that. Nothing reads the environment later.
"""

from __future__ import annotations

import argparse
import os
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from antfarm import __version__
from antfarm.errors import InvalidArgument

Settings = TypeVar("Settings")


def setting(
    default: Any = MISSING,
    help: str = "",
    *,
    metavar: str | None = None,
    choices: Sequence[str] = (),
    short: str | None = None,
    positional: bool = False,
) -> Any:
    """A field of a settings dataclass. Types: str, int, float, bool, Path, tuple[str, ...] (a repeatable flag), `X | None`.

    `--help` adds "Default: ..." unless the help text has one, as where the default stands for something else.
    """
    metadata = {
        "help": help,
        "metavar": metavar,
        "choices": tuple(choices),
        "short": short,
        "positional": positional,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """The settings that every program with a connection has. Inherit from it."""

    tls_cert: str = setting("", "Certificate (PEM) that this program shows to its peers.", metavar="FILE")
    tls_key: str = setting("", "Private key (PEM) of the certificate.", metavar="FILE")
    tls_ca: str = setting("", "CA certificate (PEM) that every peer's certificate must come from.", metavar="FILE")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSettings(TlsSettings):
    """The settings that every program of the farm has. Inherit from it."""

    log_format: str = setting("text", "Form of the log lines on standard error.", choices=("text", "json"))
    log_level: str = setting("info", "Least level that is logged.", choices=("debug", "info", "warning", "error"))


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line; the usage is for those who ask for --help."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with code 2."""
        self.exit(2, f"{self.prog}: {message}; --help tells more\n")


def load_settings(
    cls: type[Settings], argv: Sequence[str] | None, *, program: str, description: str, epilog: str = ""
) -> Settings:
    """Settings of a program. On `--help` and usage errors it prints and exits (0 and 2) as argparse does.

    Args:
        cls: a dataclass whose fields are made by `setting`.
        argv: flags without the program's name; None takes the process's own.
        program: name shown in usage, e.g. "python -m services.worker". Its last word's last part names the TOML table.
    """
    parser = Parser(
        prog=program,
        description=description,
        epilog=epilog
        or "Each setting can also come from ANTFARM_<NAME> in the environment or from --config FILE (TOML).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", metavar="FILE", help=f"TOML file with settings, under [{_table(program)}] or at top level"
    )
    parser.add_argument("--version", action="version", version=f"antfarm {__version__}")
    hints = typing.get_type_hints(cls)
    for spec in _specs(cls):
        _add_argument(parser, spec, hints[spec.name])
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    config = given.pop("config", None) or os.environ.get("ANTFARM_CONFIG")
    try:
        values = _from_file(cls, hints, config, _table(program)) | _from_environment(cls, hints) | given
        missing = [_flag(s.name) for s in _specs(cls) if s.default is MISSING and s.name not in values]
        if missing:
            raise InvalidArgument(f"{', '.join(missing)} must be given")
        return cls(**values)
    except InvalidArgument as error:
        parser.exit(2, f"{program}: {error}\n")


def _specs(cls: type[Any]) -> list[Field[Any]]:
    return [spec for spec in fields(cls) if "help" in spec.metadata]


def _table(program: str) -> str:
    return program.split()[-1].rpartition(".")[2]


def _flag(name: str) -> str:
    return "--" + name.rstrip("_").replace("_", "-")  # as_ is --as, whose name Python keeps for itself


def _scalar(hint: Any) -> tuple[Callable[[str], Any], bool, bool]:
    """(conversion, repeatable, boolean) of a field's type."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is tuple:
        return str, True, False
    if hint is bool:
        return _boolean, False, True
    return {str: str, int: int, float: float, Path: Path}[hint], False, False


def _boolean(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off", ""):
        return False
    raise ValueError(text)


def _add_argument(parser: argparse.ArgumentParser, spec: Field[Any], hint: Any) -> None:
    convert, repeatable, boolean = _scalar(hint)
    meta = spec.metadata
    shown = spec.default
    about = str(meta["help"]).replace("%", "%%")
    if shown not in (MISSING, None, "", ()) and not boolean and "Default:" not in about:
        about = f"{about} Default: {shown}."
    names = [*([meta["short"]] if meta["short"] else []), _flag(spec.name)]
    if boolean:
        parser.add_argument(*names, dest=spec.name, action=argparse.BooleanOptionalAction, default=None, help=about)
    elif repeatable:
        parser.add_argument(*names, dest=spec.name, action=_Collect, default=None, metavar=meta["metavar"], help=about)
    else:
        parser.add_argument(
            *names,
            dest=spec.name,
            type=convert,
            default=None,
            choices=meta["choices"] or None,
            metavar=meta["metavar"],
            help=about,
        )


class _Collect(argparse.Action):
    """Collects a repeatable flag into a tuple."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        setattr(namespace, self.dest, (*(getattr(namespace, self.dest) or ()), values))


def _convert(name: str, hint: Any, value: object, source: str) -> Any:
    convert, repeatable, _ = _scalar(hint)
    try:
        if repeatable:
            return tuple(str(v) for v in value) if isinstance(value, list) else tuple(str(value).split(","))
        return convert(str(value))
    except ValueError:
        raise InvalidArgument(f"{source}: {name} = {value!r} is not of the form that {_flag(name)} takes") from None


def _checked(spec: Field[Any], value: Any, source: str) -> Any:
    choices = spec.metadata["choices"]
    if choices and value not in choices:
        raise InvalidArgument(f"{source}: {value!r} is none of {', '.join(choices)}")
    return value


def _from_environment(cls: type[Any], hints: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for spec in _specs(cls):
        name = "ANTFARM_" + spec.name.rstrip("_").upper()
        if name in os.environ:
            found[spec.name] = _checked(spec, _convert(spec.name, hints[spec.name], os.environ[name], name), name)
    return found


def _from_file(cls: type[Any], hints: dict[str, Any], path: str | None, table: str) -> dict[str, Any]:
    if not path:
        return {}
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidArgument(f"--config {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidArgument(f"--config {path}: not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(f"--config {path}: not TOML: {error}") from None
    own = content.get(table, {})
    if not isinstance(own, dict):
        raise InvalidArgument(f"--config {path}: [{table}] is not a table")
    merged = {k: v for k, v in content.items() if not isinstance(v, dict)} | own
    known = {_flag(spec.name).removeprefix("--"): spec for spec in _specs(cls)}
    for name in own:
        if name.replace("_", "-") not in known:
            raise InvalidArgument(f"--config {path}: [{table}] has no setting {name!r}")
    found = {}
    for key, value in merged.items():
        spec = known.get(key.replace("_", "-"))
        if spec is not None:
            found[spec.name] = _checked(spec, _convert(spec.name, hints[spec.name], value, path), path)
    return found


def state_home(environment: Mapping[str, str]) -> Path:
    """Where programs of a user keep their state: `$XDG_STATE_HOME`, by default ~/.local/state. InvalidArgument where nobody is at home."""
    try:
        return Path(environment.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    except RuntimeError:  # a service's user has no home
        raise InvalidArgument("this user has no home directory: give --state") from None

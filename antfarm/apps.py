"""Modules that hold tasks: how both ends name them, and how a worker loads them.

The script that a user starts is `__main__` there and `squares` on a worker started with `--app squares.py`; both must say
`squares.square`. So the public name of `__main__` is the stem of its file, everywhere.

Loading happens because an operator named a module on the command line or installed a package with an entry point, never
because a peer's bytes name one: `find_class` looks only at what is imported already.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from antfarm.errors import InvalidArgument

ENTRY_POINT_GROUP = "antfarm.apps"

_loaded: dict[str, ModuleType] = {}
_loading: list[str] = []


def main_script() -> Path | None:
    """The file that the interpreter was started with; None in a notebook, a prompt or `python -c`."""
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(path) if path and path.endswith(".py") else None


def public_module(name: str) -> str:
    """The name under which both ends know a module: its own, or for `__main__` what an import would call it."""
    if name != "__main__":
        return name
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None and spec.name:
        return str(spec.name)  # python -m package.module
    script = main_script()
    return _module_name(script) if script is not None else name


def _module_name(path: Path) -> str:
    """What a file is called as a module: its stem, in the characters that names of tasks may have."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", path.stem)


def main_app() -> str:
    """What `--app` must be given so that a worker knows the functions of this process's main program; "" if it cannot."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None and spec.name:
        # The __main__.py of a package runs its program when it is imported, guard or not.
        return "" if spec.name.endswith("__main__") else str(spec.name)
    script = main_script()
    return str(script.resolve()) if script is not None else ""


def of_main(thing: object) -> bool:
    """Whether a function or task is of the main program, also where another module has imported that by its name."""
    module = getattr(thing, "__module__", None)
    return isinstance(module, str) and public_module(module) == public_module("__main__")


def find_module(name: str) -> ModuleType | None:
    """The module of a public name if it is imported already; imports nothing."""
    module = sys.modules.get(name)
    if module is None and public_module("__main__") == name:
        module = sys.modules.get("__main__")
    return module


def find_class(path: str) -> type | None:
    """The class `module:Qualified.Name` if its module is imported already and defines it; runs no code of the module."""
    module_name, _, qualname = path.partition(":")
    module = find_module(module_name)
    if module is None or not qualname:
        return None
    found: object = module
    for part in qualname.split("."):
        found = vars(found).get(part) if isinstance(found, ModuleType | type) else None
    if isinstance(found, type) and public_module(found.__module__) == module_name:
        return found
    return None


def loaded() -> dict[str, ModuleType]:
    """The modules that the operator named, by public name."""
    return dict(_loaded)


def loading() -> str:
    """The app that is being imported by `load` right now, or ""."""
    return _loading[-1] if _loading else ""


def load(names: Iterable[str], *, entry_points: bool = True) -> list[ModuleType]:
    """Import the installed `antfarm.apps` entry points, then the given modules and files, and return the given ones.

    A file is imported under its stem, with its directory first on `sys.path` as if it had been started as a script.
    InvalidArgument in one line, naming the cause, when one cannot be imported.
    """
    if entry_points:
        import importlib.metadata  # only workers need it, and it is slow to load

        for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
            try:
                point.load()
            except Exception as error:
                raise InvalidArgument(
                    f"the installed app {point.name} ({point.value}) cannot be loaded: {_say(error)}"
                ) from error
    modules = []
    for name in names:
        _loading.append(name)
        try:
            module = _import_file(Path(name)) if _is_path(name) else _import_module(name)
        except InvalidArgument:
            raise
        except (Exception, SystemExit) as error:
            raise InvalidArgument(f"--app {name} cannot be loaded: {_say(error)}") from error
        finally:
            _loading.pop()
        _loaded[module.__name__] = module
        modules.append(module)
    return modules


def _say(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _is_path(name: str) -> bool:
    return name.endswith(".py") or os.sep in name


def _import_module(name: str) -> ModuleType:
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InvalidArgument(f"--app {path}: no such file")
    path = path.resolve()
    name = _module_name(path)
    known = sys.modules.get(name)
    if known is not None:
        if getattr(known, "__file__", None) == str(path):
            return known
        raise InvalidArgument(f"--app {path}: a module named {name} exists already; rename the file")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InvalidArgument(f"--app {path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module

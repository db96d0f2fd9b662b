"""AntFarm: a durable task farm.

>>> import antfarm as af
>>> @af.task
... def square(x: int) -> int:
...     return x * x

Other public names are loaded when they are first used, so that importing the package costs little and loads no gRPC.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# At once, because the decorator shares its name with its module: whoever imports the module first would hide it otherwise.
from antfarm.task import Limit, Options, Retry, Task, Timeouts, load_apps, registry, task

if TYPE_CHECKING:
    import antfarm.aio as aio
    import antfarm.pipeline as pipeline
    from antfarm.builtin import shell as shell
    from antfarm.client.blocking import Farm as Farm
    from antfarm.client.blocking import Future as Future
    from antfarm.client.blocking import Job as Job
    from antfarm.client.opening import connect as connect
    from antfarm.context import Context as Context
    from antfarm.context import current_context as current_context
    from antfarm.errors import AntFarmError as AntFarmError
    from antfarm.errors import DependencyFailed as DependencyFailed
    from antfarm.errors import PermanentError as PermanentError
    from antfarm.errors import TaskCancelled as TaskCancelled
    from antfarm.errors import TaskCrashed as TaskCrashed
    from antfarm.errors import TaskError as TaskError
    from antfarm.errors import TaskExpired as TaskExpired
    from antfarm.errors import TaskFailed as TaskFailed
    from antfarm.errors import TaskLost as TaskLost
    from antfarm.form import File as File
    from antfarm.pipeline import Expansion as Expansion
    from antfarm.pipeline import Outcome as Outcome
    from antfarm.pipeline import stage as stage

_HOMES = {
    "client.blocking": "Farm Job Future",
    "client.opening": "connect",
    "builtin": "shell",
    "context": "Context current_context",
    "form": "File",
    "pipeline": "stage Expansion Outcome",
    "errors": "AntFarmError PermanentError TaskError TaskFailed TaskCrashed TaskLost TaskCancelled TaskExpired DependencyFailed",
}
_HOME = {name: f"antfarm.{module}" for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "Limit",
    "Options",
    "Retry",
    "Task",
    "Timeouts",
    "__version__",
    "aio",
    "pipeline",
    "load_apps",
    "registry",
    "task",
    *_HOME,
]


def __getattr__(name: str) -> Any:
    if name in ("aio", "pipeline"):
        return importlib.import_module(f"antfarm.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'antfarm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, "aio", "pipeline"})

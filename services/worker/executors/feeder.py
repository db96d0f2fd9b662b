"""Packs attempts for one child: a template goes once, then every batch of a job is one frame."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

import msgpack

from services.worker.child.protocol import IN_TASKS, IN_TEMPLATE, TEMPLATE_SLOTS, Template
from services.worker.core.attempt import Attempt, Group


class Feeder:
    """What one child has been told of templates."""

    __slots__ = ("_next", "_places", "_slots")

    def __init__(self) -> None:
        self._slots: dict[Group, int] = {}
        self._places: list[Group | None] = [None] * TEMPLATE_SLOTS
        self._next = 0

    def pack(self, attempts: Iterable[Attempt]) -> bytes:
        """Frames for these attempts, in order."""
        pack: Any = msgpack.packb
        parts: list[bytes] = []
        for group, run in groupby(attempts, key=_group_of):
            slot = self._slots.get(group)
            if slot is None:
                slot = self._place(group)
                parts.append(pack([IN_TEMPLATE, slot, _template(group)]))
            parts.append(pack([IN_TASKS, slot, [(a.seq, a.index, a.attempt, a.payload, a.inputs) for a in run]]))
        return b"".join(parts)

    def _place(self, group: Group) -> int:
        slot = self._next
        self._next = (slot + 1) % TEMPLATE_SLOTS
        before = self._places[slot]
        if before is not None:
            del self._slots[before]
        self._places[slot] = group
        self._slots[group] = slot
        return slot


def _group_of(attempt: Attempt) -> Group:
    return attempt.group


def _template(group: Group) -> Template:
    template = Template(job_id=group.job_id, epoch=group.epoch, type=group.type)
    if group.common_payload:
        template["common"] = group.common_payload
    if group.memory_bytes:
        template["memory_bytes"] = group.memory_bytes
    if group.shared_inputs:
        template["shared_inputs"] = group.shared_inputs
    return template

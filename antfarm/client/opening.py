"""How one comes to a farm: the two `connect`, blocking and asynchronous.

Apart from the farm that they give, because that needs gRPC: the programs of an embedded farm are started before it is loaded, and load it at the same
time.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antfarm import apps
from antfarm.blocking import loop_thread
from antfarm.client.embedded import EmbeddedFarm, script_labels
from antfarm.context import in_task
from antfarm.duration import Duration, seconds
from antfarm.errors import InvalidArgument, WrongState
from antfarm.task import is_whole

if TYPE_CHECKING:
    from antfarm.client.blocking import Farm
    from antfarm.client.farm import AsyncFarm

PATIENCE_S = 300.0
"""How long calls go on trying by default, once there was contact."""
_SLOTS_MAX = 4096
_ADDRESS = "ANTFARM_ADDRESS"
"""Variable that names the farm where the call does not."""


def connect(
    address: str | None = None,
    *,
    tls_cert: str | Path = "",
    tls_key: str | Path = "",
    tls_ca: str | Path = "",
    allow_pickle: bool | None = None,
    patience: Duration = PATIENCE_S,
    slots: int | None = None,
    state_dir: str | Path | None = None,
) -> Farm:
    """Connect to a farm, or without an address to a durable one on this machine. Use it as `with af.connect() as farm`.

    Args:
        address: "host:50051". None: ANTFARM_ADDRESS from the environment, else the embedded farm.
        tls_cert, tls_key, tls_ca: PEM files for mutual TLS; all or none.
        allow_pickle: send and read pickles where values or functions have no other form. Default: only on an embedded farm.
        patience: how long calls go on trying while a farm that had answered before does not.
        slots: embedded farm: tasks at a time. Default: one per core.
        state_dir: embedded farm: where it keeps its state. Default: ~/.local/state/antfarm/local.

    A process that is forked afterwards cannot use the farm, nor connect: start processes by `multiprocessing.get_context("spawn")`.
    A script that connects needs `if __name__ == "__main__":` around it, because workers import the script to find its functions.
    Raises Unavailable in one line when nobody answers at the address.

    >>> import antfarm as af
    >>> with af.connect() as farm:  # doctest: +SKIP
    ...     print(list(farm.map(square, range(10)).results()))
    """
    core = loop_thread().run(
        connect_async(
            address,
            tls_cert=tls_cert,
            tls_key=tls_key,
            tls_ca=tls_ca,
            allow_pickle=allow_pickle,
            patience=patience,
            slots=slots,
            state_dir=state_dir,
        )
    )
    from antfarm.client.blocking import Farm  # by now loaded, but for its own few lines

    return Farm(core)


async def connect_async(
    address: str | None = None,
    *,
    tls_cert: str | Path = "",
    tls_key: str | Path = "",
    tls_ca: str | Path = "",
    allow_pickle: bool | None = None,
    patience: Duration = PATIENCE_S,
    slots: int | None = None,
    state_dir: str | Path | None = None,
) -> AsyncFarm:
    """Connect to a farm, or without an address to a durable one on this machine. Use it as `async with await connect() as farm`.

    Args:
        address: "host:50051". None: ANTFARM_ADDRESS from the environment, else the embedded farm.
        tls_cert, tls_key, tls_ca: PEM files for mutual TLS; all or none.
        allow_pickle: send and read pickles where values or functions have no other form. Default: only on an embedded farm.
        patience: how long calls go on trying while a farm that had answered before does not.
        slots: embedded farm: tasks at a time. Default: one per core.
        state_dir: embedded farm: where it keeps its state. Default: ~/.local/state/antfarm/local.

    Raises Unavailable in one line when nobody answers at the address.
    """
    address = address or os.environ.get(_ADDRESS) or None
    patience_s = _check_options(address, patience=patience, slots=slots, allow_pickle=allow_pickle, state_dir=state_dir)
    _check_place(address)
    may_pickle, embedded = bool(allow_pickle), None
    if address is None:
        may_pickle, directory = allow_pickle is not False, Path(state_dir) if state_dir else None
        embedded = await asyncio.to_thread(EmbeddedFarm.launch, directory, slots=slots, allow_pickle=may_pickle)
    try:  # only now, while the programs start: together these load for as long as one of them
        from antfarm import net
        from antfarm.client.connection import Connection
        from antfarm.client.farm import AsyncFarm, Script

        tls = net.Tls.from_paths(str(tls_cert), str(tls_key), str(tls_ca))
        if embedded is None:
            assert address is not None
            return AsyncFarm(await Connection.open(address, tls, patience_s=patience_s, allow_pickle=may_pickle))
        await asyncio.to_thread(embedded.wait)
        connection = await Connection.open(embedded.address, None, patience_s=patience_s, allow_pickle=may_pickle)
        return AsyncFarm(connection, embedded.close, await Script.look(connection, script_labels()))
    except BaseException:
        if embedded is not None:
            await asyncio.to_thread(embedded.close)
        raise


def _check_place(address: str | None) -> None:
    """Refuse what would start farms without end: to connect while a worker imports the script, or, without address, in a task."""
    app = apps.loading()
    if app:
        raise WrongState(
            f'{app} calls antfarm.connect() when a worker imports it: put that code under `if __name__ == "__main__":`'
        )
    if address is None and in_task():
        raise WrongState("a task cannot bring a farm of its own: give antfarm.connect() the address of one")


def _check_options(address: Any, *, patience: Any, slots: Any, allow_pickle: Any, state_dir: Any) -> float:
    """Refuse what is of no use, by the name of its parameter. The patience in seconds."""
    if address is not None and not isinstance(address, str):
        raise InvalidArgument(f"address={address!r}: give 'HOST:PORT', e.g. '127.0.0.1:50051'")
    if slots is not None and (not is_whole(slots) or not 0 <= slots <= _SLOTS_MAX):
        raise InvalidArgument(f"slots={slots!r}: give a whole number from 1 to {_SLOTS_MAX:,}; None is one per core")
    if allow_pickle is not None and not isinstance(allow_pickle, bool):
        raise InvalidArgument(f"allow_pickle={allow_pickle!r}: give True or False")
    if state_dir is not None and not isinstance(state_dir, str | Path):
        raise InvalidArgument(f"state_dir={state_dir!r}: give the path of a directory")
    if address and (slots is not None or state_dir is not None):
        raise InvalidArgument(
            f"slots= and state_dir= are for a farm of one's own, not for that at {address}: leave them out"
            + (f", or unset {_ADDRESS}" if address == os.environ.get(_ADDRESS) else "")
        )
    try:
        return seconds(patience)
    except InvalidArgument as error:
        raise InvalidArgument(f"patience: {error}") from None

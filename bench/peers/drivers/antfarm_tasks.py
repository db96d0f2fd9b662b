"""The tasks, for AntFarm's workers."""

import peer

import antfarm as af

noop = af.task(name="bench.noop")(peer.noop)
burn = af.task(name="bench.burn")(peer.burn)

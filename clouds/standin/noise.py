"""Seeded noise: the same seed gives the same numbers on every machine, whatever box or size is asked for.

Responsible for two kinds. *Lattice* noise lives on the globe: random numbers at the knots of a grid of degrees and
days, joined by cubic splines, so that neighbouring boxes and days fit together. *Tiles* live on pixels: textures of
fixed size that repeat without a seam, made once, for what is finer than the lattice is worth.
"""

import hashlib
from typing import TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T", bound=np.generic)

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

TILE = 1024
"""Pixels a side of a tile."""


def seed_number(*parts: object) -> int:
    """Return a number of 64 bits that depends on all of `parts` and on nothing else."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


def lattice(seed: int, y: F64, x: F64, t: float) -> F32:
    """Return smooth noise at every (y, x), about N(0, 1), with knots at the whole numbers of y, x and t."""
    t0 = int(np.floor(t))
    knots_y, weights_y = _spline(y)
    knots_x, weights_x = _spline(x)
    turn = (t - t0) * np.pi / 2
    # Cosine and sine keep the variance between two knots of time; a linear mix would calm the weather at noon.
    knots = np.cos(turn) * _hash(seed, knots_y, knots_x, t0) + np.sin(turn) * _hash(seed, knots_y, knots_x, t0 + 1)
    return np.asarray(2.09 * (weights_y @ knots.astype(np.float32) @ weights_x.T), np.float32)


def octaves(seed: int, y: F64, x: F64, t: float, *, step: float, longest: float, shortest: float, fall: float) -> F32:
    """Return the sum of lattices of halving wavelength from `longest`, about N(0, 1); y, x and all lengths in degrees.

    `fall` is how much weaker each shorter one is. Those shorter than two `step`s, the spacing of y and x, are left
    out: they would only alias.
    """
    total = np.zeros((y.size, x.size), np.float32)
    power, gain, length = 0.0, 1.0, longest
    while length >= max(shortest, 2 * step) or power == 0:
        # Shorter things live shorter, down to half a day.
        pace = min(2.0, (longest / length) ** 0.5)
        shift = (seed + int(length * 1000)) % 97 / 97
        total += np.float32(gain) * lattice(seed_number(seed, length), y / length + shift, x / length - shift, t * pace)
        power, gain, length = power + gain * gain, gain * fall, length / 2
    return np.asarray(total / np.float32(np.sqrt(power)), np.float32)


def puffs(seed: int) -> F32:
    """Return a tile of small rounded heaps with gaps between, mean 0, deviation 1: fair-weather cumulus."""
    small = _band(seed_number(seed, "small"), 3.0, 9.0, slope=0.4, stretch=1.35)
    streets = _band(seed_number(seed, "streets"), 14.0, 60.0, slope=1.0, stretch=2.2)
    return _normal(np.exp(0.75 * small) * (1 + 0.5 * streets) + 0.8 * streets)


def fibres(seed: int) -> F32:
    """Return a tile of drawn-out filaments over soft shapes, mean 0, deviation 1: the upper side of layered cloud."""
    soft = _band(seed_number(seed, "soft"), 2.0, 80.0, slope=1.35, stretch=1.6)
    ridge = 1 - np.abs(_band(seed_number(seed, "ridge"), 6.0, 90.0, slope=1.0, stretch=2.5))
    return _normal(soft + 0.6 * ridge.astype(np.float32))


def grain(seed: int) -> F32:
    """Return a tile of plain fractal noise, mean 0, deviation 1: fields and forests, snow and open ground."""
    return _band(seed_number(seed, "grain"), 2.0, 120.0, slope=1.0, stretch=1.0)


def tile_over(tile: npt.NDArray[T], size: tuple[int, int], choice: int) -> npt.NDArray[T]:
    """Return `tile` repeated over (width, height); `choice` picks where it starts and which way it faces."""
    turned = tile[:: -1 if choice & 1 else 1, :: -1 if choice & 2 else 1]
    shifted = np.roll(turned, (choice >> 2 & 1023, choice >> 12 & 1023), axis=(0, 1))
    repeats = (-(-size[1] // TILE), -(-size[0] // TILE))
    return np.tile(shifted, repeats)[: size[1], : size[0]]


def _spline(at: F64) -> tuple[npt.NDArray[np.int64], F32]:
    """The knots that matter to `at`, and the weight of each (rows: points, columns: knots)."""
    whole = np.floor(at).astype(np.int64)
    u = (at - whole).astype(np.float32)
    first = int(whole.min()) - 1
    knots = np.arange(first, int(whole.max()) + 3)
    weights = np.zeros((at.size, knots.size), np.float32)
    rows = np.arange(at.size)
    parts = ((1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3)
    for offset, part in enumerate(parts):
        weights[rows, whole - 1 - first + offset] = part / 6
    return knots, weights


def _hash(seed: int, y: npt.NDArray[np.int64], x: npt.NDArray[np.int64], t: int) -> npt.NDArray[np.float64]:
    """About N(0, 1) for each knot: the sum of four uniform sixteenths of one mixed word."""
    with np.errstate(over="ignore"):
        word = np.uint64(seed) ^ (np.uint64(t & 0xFFFFFFFF) * np.uint64(0x9E3779B97F4A7C15))
        grid = y.astype(np.uint64)[:, None] * np.uint64(0xC2B2AE3D27D4EB4F) + x.astype(np.uint64)[None, :]
        grid = (grid ^ word) * np.uint64(0xFF51AFD7ED558CCD)
        grid = (grid ^ (grid >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
        grid ^= grid >> np.uint64(29)
    total = sum(((grid >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.float64) for shift in (0, 16, 32, 48))
    return np.asarray((total / 65535 - 2) * np.sqrt(3.0))


def _band(seed: int, shortest: float, longest: float, *, slope: float, stretch: float) -> F32:
    """A tile whose waves lie between two lengths in pixels, falling with frequency ** -slope, drawn out along x."""
    noise = np.random.Generator(np.random.PCG64(seed)).standard_normal((TILE, TILE), dtype=np.float32)
    fy = np.fft.fftfreq(TILE).astype(np.float32)[:, None]
    fx = np.fft.rfftfreq(TILE).astype(np.float32)[None, :] * np.float32(stretch)
    frequency = np.sqrt(fy * fy + fx * fx)
    frequency[0, 0] = 1.0
    shape = frequency**-slope / (1 + (frequency * shortest) ** 8) / (1 + (1 / (frequency * longest)) ** 8)
    shape[0, 0] = 0.0
    return _normal(np.fft.irfft2(np.fft.rfft2(noise) * shape, s=(TILE, TILE)))


def _normal(values: npt.NDArray[np.floating]) -> F32:
    return np.asarray((values - values.mean()) / values.std(), np.float32)

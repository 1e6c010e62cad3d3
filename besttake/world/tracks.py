"""The true tracks of a motion, thousands at once, and the one nearest to a track that was seen.

The same laws as `physics.py`, over arrays: there one body is filmed, here a measured track is compared with
everything that physics allows. The free parameters of a motion (start, speed, phase ...) are dials in [0, 1].
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from besttake.world.captions import SIZES, Body
from besttake.world.physics import FLOOR, FRAMES, GRAVITY, PIVOT, SUBSTEPS, WIDTH, half_height

BANK = 1536
"""Tracks a search starts from."""

FINALISTS, TRIALS, WIDTHS = 4, 24, (0.12, 0.06, 0.03, 0.015, 0.006)
"""Then, around the best few, so many trials each, in rounds of shrinking width (in dials)."""

DIALS = {
    "bounces": 5,
    "falls": 2,
    "slides": 3,
    "circles": 4,
    "spins": 2,
    "swings": 3,
    "floats": 4,
    "thrown": 4,
    "hits": 3,
}


def nearest(tracks: np.ndarray, motion: str, bodies: list[tuple[Body, ...]], there: np.ndarray | None = None):
    """The nearest true track of `motion` to each of `n` measured ones.

    Args:
        tracks: (n, bodies, frames, 2), x and y in pixels.
        motion: its name in `captions.MOTIONS`.
        bodies: the bodies of each track.
        there: (n, bodies, frames), 0 where a body cannot be seen and its place does not count.

    Returns:
        The true tracks, in the same shape, and their distances (n,): root mean square over frames, in pixels.
    """
    there = np.ones(tracks.shape[:-1]) if there is None else there
    found = [_closest(motion, who, track, seen) for who, track, seen in zip(bodies, tracks, there, strict=True)]
    dials = np.stack([dials for dials, _ in found])  # (n, finalists, d)
    truth = np.stack([truth for _, truth in found])
    extent = np.array([_extent(who) for who in bodies]).repeat(FINALISTS * TRIALS, 0)
    rows, steps = np.arange(len(tracks))[:, None], _steps(dials.shape[-1])
    for width in WIDTHS:
        trials = np.clip(dials[:, :, None] + width * steps, 0, 1).reshape(len(tracks), -1, dials.shape[-1])
        made = _tracks(motion, trials.reshape(-1, dials.shape[-1]), extent)
        made = made.reshape(*trials.shape[:2], *tracks.shape[1:])
        order = np.argsort(distance(made, tracks[:, None], there[:, None]), 1, kind="stable")[:, :FINALISTS]
        dials, truth = trials[rows, order], made[rows, order]
    return truth[:, 0], distance(truth[:, 0], tracks, there)


def distance(a: np.ndarray, b: np.ndarray, there: np.ndarray) -> np.ndarray:
    """How far two tracks (..., bodies, frames, 2) are apart, root mean square over frames; the worse body counts."""
    apart = np.square(a[..., 0] - b[..., 0]) + np.square(a[..., 1] - b[..., 1])
    return np.sqrt(((apart * there).sum(-1) / np.maximum(there.sum(-1), 1)).max(-1))


def bank(motion: str, bodies: tuple[Body, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Dials (n, d) spread evenly over a motion's freedom, and their tracks (n, bodies, frames, 2)."""
    return _bank(motion, tuple((body.shape, body.size) for body in bodies))


@cache
def stillest(motion: str, bodies: tuple[Body, ...], step: float) -> int:
    """In how many of its steps a true track may move less than `step` pixels."""
    moved = np.linalg.norm(np.diff(bank(motion, bodies)[1], axis=2), axis=-1).max(1)
    return int((moved < step).sum(1).max())


@cache
def _bank(motion: str, outlines: tuple[tuple[str, str], ...]) -> tuple[np.ndarray, np.ndarray]:
    dials = torch.quasirandom.SobolEngine(DIALS[motion.split()[0]], scramble=True, seed=0).draw(BANK).double().numpy()
    extent = _extent(tuple(Body(size, "red", shape) for shape, size in outlines))
    return dials, _tracks(motion, dials, np.repeat(extent[None], BANK, 0))


def _closest(motion: str, bodies: tuple[Body, ...], track: np.ndarray, there: np.ndarray):
    dials, tracks = bank(motion, bodies)
    order = np.argsort(distance(tracks, track, there), kind="stable")[:FINALISTS]
    return dials[order], tracks[order]


@cache
def _steps(dials: int) -> np.ndarray:
    """Fixed directions of search, the first of which stays where it is."""
    steps = np.random.default_rng(0).standard_normal((TRIALS, dials))
    steps[0] = 0
    return steps


def _extent(bodies: tuple[Body, ...]) -> np.ndarray:
    """Half height and reach of each body, as in `physics.simulate`: (bodies, 2)."""
    return np.array([(half_height(body.shape, body.size), SIZES[body.size] * 1.25) for body in bodies])


def _tracks(motion: str, dials: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """Tracks (n, bodies, frames, 2) for dials (n, d) and bodies (n, bodies, 2)."""
    kind, _, direction = motion.partition(" ")
    sign = -1.0 if direction in ("left", "counterclockwise") else 1.0
    if kind == "hits":
        return _hits(dials.T, extent)
    law = {"bounces": _bounces, "falls": _falls, "slides": _slides, "circles": _circles, "spins": _spins}
    law |= {"swings": _swings, "floats": _floats, "thrown": _thrown}
    radius, reach = extent[:, 0].T
    return law[kind](dials.T, radius, reach, sign)[:, None]


def _between(dial, low, high):
    return low + dial * (high - low)


def _either(dial):
    return np.where(dial < 0.5, -1.0, 1.0)


T = np.arange(FRAMES)


def _bounces(dials, radius, reach, sign):
    start = _between(dials[0], reach, WIDTH - reach), _between(dials[1], reach, reach + 6)
    speed = _between(dials[2], 0.15, 0.6) * _either(dials[3])
    return _ballistic(start, (speed, 0.0 * speed), radius, reach, _between(dials[4], 0.80, 0.92), 0.0)


def _falls(dials, radius, reach, sign):
    start = _between(dials[0], reach, WIDTH - reach), _between(dials[1], reach - 1, reach + 5)
    return _ballistic(start, (0.0 * reach, 0.0 * reach), radius, reach, 0.2, 0.0)


def _thrown(dials, radius, reach, sign):
    x = _between(dials[0], reach, reach + 2)
    start = x if sign > 0 else WIDTH - x, FLOOR - radius - _between(dials[1], 0, 3)
    velocity = sign * _between(dials[2], 1.0, 1.5), -_between(dials[3], 3.4, 4.2)
    return _ballistic(start, velocity, radius, reach, 0.35, 0.12)


def _ballistic(start, velocity, radius, reach, restitution, friction):
    (x, y), (vx, vy), floor, dt = start, velocity, FLOOR - radius, 1 / SUBSTEPS
    rows = []
    for step in range((FRAMES - 1) * SUBSTEPS + 1):
        if step % SUBSTEPS == 0:
            rows.append(np.stack([x, y], -1))
        x, y, vy = x + vx * dt, y + vy * dt + 0.5 * GRAVITY * dt**2, vy + GRAVITY * dt
        low = y > floor
        y, vy = np.where(low, floor, y), np.where(low, np.where(vy > 0.3, -restitution * vy, 0.0), vy)
        if friction:
            vx = np.where(low, np.sign(vx) * np.maximum(np.abs(vx) - friction * dt * 4, 0), vx)
        inside = np.clip(x, reach, WIDTH - reach)
        x, vx = inside, np.where(inside == x, vx, -vx)
    return np.stack(rows, 1)


def _slides(dials, radius, reach, sign):
    speed = _between(dials[0], 1.3, 2.2)
    deceleration = np.maximum(speed**2 / (2 * (WIDTH - 2 * reach - 1)), _between(dials[1], 0.04, 0.1))
    t = np.minimum(T, (speed / deceleration)[:, None])
    x = (reach + dials[2])[:, None] + speed[:, None] * t - 0.5 * deceleration[:, None] * t**2
    return np.stack([x if sign > 0 else WIDTH - x, np.broadcast_to((FLOOR - radius)[:, None], x.shape)], -1)


def _circles(dials, radius, reach, sign):
    orbit = _between(dials[0], 5.5, 15 - reach)[:, None]
    phase = 2 * np.pi * dials[1][:, None] + sign * _between(dials[2], 0.3, 0.5)[:, None] * T
    x = 16.0 + _between(dials[3], -1, 1)[:, None]
    return np.stack([x + orbit * np.cos(phase), 15.0 + orbit * np.sin(phase)], -1)


def _spins(dials, radius, reach, sign):
    place = _between(dials[0], reach + 1, WIDTH - reach - 1), _between(dials[1], reach + 1, FLOOR - reach)
    return np.repeat(np.stack(place, -1)[:, None], FRAMES, 1)


def _swings(dials, radius, reach, sign):
    length = _between(dials[0], 13, 17)[:, None]
    rate, phase = np.sqrt(3 * GRAVITY / length), 2 * np.pi * dials[2][:, None]
    swing = _between(dials[1], 0.45, 0.65)[:, None] * np.cos(rate * T + phase)
    return np.array(PIVOT) + length[..., None] * np.stack([np.sin(swing), np.cos(swing)], -1)


def _floats(dials, radius, reach, sign):
    heading, speed = 2 * np.pi * dials[0], _between(dials[1], 1.0, 2.0)
    low, high = np.stack([reach, reach], -1)[:, None], np.stack([WIDTH - reach, FLOOR - reach], -1)[:, None]
    velocity = (speed * np.stack([np.cos(heading), np.sin(heading)])).T[:, None]
    straight = _between(dials[2:].T[:, None], low, high) + velocity * T[:, None]
    folded = (straight - low) % (2 * (high - low))
    return low + np.minimum(folded, 2 * (high - low) - folded)


def _hits(dials, extent):
    radius, reach = extent[..., 0].T, extent[..., 1].T  # (bodies, n)
    touch, first = 0.9 * radius.sum(0), reach[0] + 1.5 * dials[0]
    x = np.stack([first, _between(dials[1], np.maximum(17.5, first + touch + 1), WIDTH - reach[1] - 1)])
    v = np.stack([_between(dials[2], 1.3, 2.2), 0 * dials[2]])
    mass, dt, rows = radius**2, 1 / SUBSTEPS, []
    for step in range((FRAMES - 1) * SUBSTEPS + 1):
        if step % SUBSTEPS == 0:
            rows.append(x)
        x = x + v * dt
        meet = (x[1] - x[0] < touch) & (v[0] > v[1])
        v = np.where(meet, 2 * (mass * v).sum(0) / mass.sum(0) - v, v)
        inside = np.clip(x, reach, WIDTH - reach)
        x, v = inside, np.where(inside == x, v, -v)
    x = np.stack(rows, -1)  # (bodies, n, frames)
    return np.stack([x, np.broadcast_to((FLOOR - radius)[..., None], x.shape)], -1).swapaxes(0, 1)

"""Motion of bodies: one law per motion, in pixels and frames, exact if mechanics has a closed form.

The frame has 32 x 32 pixels with y downwards and the floor at y = 28. Gravity is the same everywhere except for the
pendulum, which swings faster. The free parameters of a motion (start, speed, phase ...) are dials in [0, 1]; the laws
are vectorised over thousands of dials, for the search of the true track nearest to a measured one. Films use only a
part of the dials' range, so that a small model can learn them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from besttake.world.captions import SIZES, Body, Caption

FRAMES, WIDTH, FPS = 16, 32, 8
FLOOR = 28.0
GRAVITY = 0.62
"""Pixels per frame squared."""

SUBSTEPS = 24
PIVOT = (16.0, 0.0)

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
"""Number of dials of each motion."""


@dataclass
class Track:
    """Track of one body: `position` (frames, 2) as x, y in pixels, `angle` (frames,) in radians."""

    position: np.ndarray
    angle: np.ndarray


def half_height(shape: str, size: str) -> float:
    """Distance in pixels from the centre of a resting body to the floor."""
    return SIZES[size] * {"ball": 1.0, "ring": 1.12, "square": 0.886, "triangle": 0.778}[shape]


def extent(bodies: tuple[Body, ...]) -> np.ndarray:
    """Half height of each body, and the minimum distance of its centre to a wall: (bodies, 2)."""
    return np.array([(half_height(body.shape, body.size), SIZES[body.size] * 1.25) for body in bodies])


def simulate(caption: Caption, rng: np.random.Generator, frames: int = FRAMES) -> list[Track]:
    """True motion for a caption, one track per body, with random dials."""
    motion = caption.motion.split()[0]
    dials = _staged(motion, rng.random((1, DIALS[motion])))
    angle = np.zeros(frames)
    if motion == "spins":
        angle = rng.uniform(0.18, 0.3) * rng.choice([-1, 1]) * np.arange(frames)
    (positions,) = true_tracks(caption.motion, dials, extent(tuple(caption.bodies))[None], frames)
    if motion == "swings":
        offset = positions[0] - PIVOT
        angle = -np.arctan2(offset[:, 0], offset[:, 1])
    return [Track(position, angle) for position in positions]


def _staged(motion: str, dials: np.ndarray) -> np.ndarray:
    """Dials (n, d) for films: circles start at the top, pendulums at rest, floating bodies slowly in the middle."""
    if motion == "circles":
        dials[:, 1] = 0.75
    elif motion == "swings":
        dials[:, 2] = np.round(dials[:, 2]) / 2
    elif motion == "floats":
        dials[:, 1:] = np.array([0.0, 0.35, 0.35]) + np.array([0.4, 0.3, 0.3]) * dials[:, 1:]
    return dials


def true_tracks(motion: str, dials: np.ndarray, extents: np.ndarray, frames: int = FRAMES) -> np.ndarray:
    """Tracks (n, bodies, frames, 2) of a motion for dials (n, d) and the extents of the bodies (n, bodies, 2)."""
    kind, _, direction = motion.partition(" ")
    sign = -1.0 if direction in ("left", "counterclockwise") else 1.0
    t = np.arange(frames)
    if kind == "hits":
        return _hits(dials.T, extents, t)
    law = {"bounces": _bounces, "falls": _falls, "slides": _slides, "circles": _circles, "spins": _spins}
    law |= {"swings": _swings, "floats": _floats, "thrown": _thrown}
    radius, reach = extents[:, 0].T
    return law[kind](dials.T, radius, reach, sign, t)[:, None]


def _between(dial, low, high):
    return low + dial * (high - low)


def _either(dial):
    return np.where(dial < 0.5, -1.0, 1.0)


def _bounces(dials, radius, reach, sign, t):
    start = _between(dials[0], reach, WIDTH - reach), _between(dials[1], reach, reach + 6)
    speed = _between(dials[2], 0.15, 0.6) * _either(dials[3])
    return _ballistic(start, (speed, 0.0 * speed), radius, reach, _between(dials[4], 0.80, 0.92), 0.0, t)


def _falls(dials, radius, reach, sign, t):
    start = _between(dials[0], reach, WIDTH - reach), _between(dials[1], reach - 1, reach + 5)
    return _ballistic(start, (0.0 * reach, 0.0 * reach), radius, reach, 0.2, 0.0, t)


def _thrown(dials, radius, reach, sign, t):
    x = _between(dials[0], reach, reach + 2)
    start = x if sign > 0 else WIDTH - x, FLOOR - radius - _between(dials[1], 0, 3)
    velocity = sign * _between(dials[2], 1.0, 1.5), -_between(dials[3], 3.4, 4.2)
    return _ballistic(start, velocity, radius, reach, 0.35, 0.12, t)


def _ballistic(start, velocity, radius, reach, restitution, friction, t):
    """Free fall above the floor with reflecting walls; `friction` slows a body that touches the floor."""
    (x, y), (vx, vy), floor, dt = start, velocity, FLOOR - radius, 1 / SUBSTEPS
    rows = []
    for step in range((len(t) - 1) * SUBSTEPS + 1):
        if step % SUBSTEPS == 0:
            rows.append(np.stack([x, y], -1))
        x, y, vy = x + vx * dt, y + vy * dt + 0.5 * GRAVITY * dt**2, vy + GRAVITY * dt
        low = y > floor
        y, vy = np.where(low, floor, y), np.where(low, np.where(vy > 0.3, -restitution * vy, 0.0), vy)
        if friction:
            vx = np.where(low, np.sign(vx) * np.maximum(np.abs(vx) - friction * dt * 4, 0), vx)
        inside = np.minimum(np.maximum(x, reach), WIDTH - reach)
        x, vx = inside, np.where(inside == x, vx, -vx)
    return np.stack(rows, 1)


def _slides(dials, radius, reach, sign, t):
    speed = _between(dials[0], 1.3, 2.2)
    deceleration = np.maximum(speed**2 / (2 * (WIDTH - 2 * reach - 1)), _between(dials[1], 0.04, 0.1))
    t = np.minimum(t, (speed / deceleration)[:, None])
    x = (reach + dials[2])[:, None] + speed[:, None] * t - 0.5 * deceleration[:, None] * t**2
    return np.stack([x if sign > 0 else WIDTH - x, np.broadcast_to((FLOOR - radius)[:, None], x.shape)], -1)


def _circles(dials, radius, reach, sign, t):
    orbit = _between(dials[0], 5.5, 15 - reach)[:, None]
    phase = 2 * np.pi * dials[1][:, None] + sign * _between(dials[2], 0.3, 0.5)[:, None] * t
    x = 16.0 + _between(dials[3], -1, 1)[:, None]
    return np.stack([x + orbit * np.cos(phase), 15.0 + orbit * np.sin(phase)], -1)


def _spins(dials, radius, reach, sign, t):
    place = _between(dials[0], reach + 1, WIDTH - reach - 1), _between(dials[1], reach + 1, FLOOR - reach)
    return np.repeat(np.stack(place, -1)[:, None], len(t), 1)


def _swings(dials, radius, reach, sign, t):
    length = _between(dials[0], 13, 17)[:, None]
    rate, phase = np.sqrt(3 * GRAVITY / length), 2 * np.pi * dials[2][:, None]
    swing = _between(dials[1], 0.45, 0.65)[:, None] * np.cos(rate * t + phase)
    return np.array(PIVOT) + length[..., None] * np.stack([np.sin(swing), np.cos(swing)], -1)


def _floats(dials, radius, reach, sign, t):
    heading, speed = 2 * np.pi * dials[0], _between(dials[1], 1.0, 2.0)
    low, high = np.stack([reach, reach], -1)[:, None], np.stack([WIDTH - reach, FLOOR - reach], -1)[:, None]
    velocity = (speed * np.stack([np.cos(heading), np.sin(heading)])).T[:, None]
    straight = _between(dials[2:].T[:, None], low, high) + velocity * t[:, None]
    folded = (straight - low) % (2 * (high - low))  # reflection at the walls folds the straight line
    return low + np.minimum(folded, 2 * (high - low) - folded)


def _hits(dials, extents, t):
    """Two bodies on the floor, an elastic collision in one dimension, masses as radius squared; walls reflect."""
    radius, reach = extents[..., 0].T, extents[..., 1].T  # (bodies, n)
    touch, first = 0.9 * radius.sum(0), reach[0] + 1.5 * dials[0]
    x = np.stack([first, _between(dials[1], np.maximum(17.5, first + touch + 1), WIDTH - reach[1] - 1)])
    v = np.stack([_between(dials[2], 1.3, 2.2), 0 * dials[2]])
    mass, dt, rows = radius**2, 1 / SUBSTEPS, []
    for step in range((len(t) - 1) * SUBSTEPS + 1):
        if step % SUBSTEPS == 0:
            rows.append(x)
        x = x + v * dt
        collide = (x[1] - x[0] < touch) & (v[0] > v[1])
        v = np.where(collide, 2 * (mass * v).sum(0) / mass.sum(0) - v, v)
        inside = np.minimum(np.maximum(x, reach), WIDTH - reach)
        x, v = inside, np.where(inside == x, v, -v)
    x = np.stack(rows, -1)  # (bodies, n, frames)
    return np.stack([x, np.broadcast_to((FLOOR - radius)[..., None], x.shape)], -1).swapaxes(0, 1)

"""How bodies move: one function per motion, in pixels and frames, exact where mechanics has a closed form.

The frame is 32 x 32 pixels with y downwards; the floor lies at y = 28. One gravity holds everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from besttake.world.captions import SIZES, Caption

FRAMES, WIDTH, FPS = 16, 32, 8
FLOOR = 28.0
GRAVITY = 0.62
"""Pixels per frame squared."""

SUBSTEPS = 24


@dataclass
class Track:
    """Where one body is: `position` (frames, 2) as x, y in pixels, `angle` (frames,) in radians."""

    position: np.ndarray
    angle: np.ndarray


def half_height(shape: str, size: str) -> float:
    """From the centre of a resting body down to the floor it stands on, in pixels."""
    return SIZES[size] * {"ball": 1.0, "ring": 1.12, "square": 0.886, "triangle": 0.778}[shape]


def simulate(caption: Caption, rng: np.random.Generator, frames: int = FRAMES) -> list[Track]:
    """True motion for a caption, one track per body; the free parameters (start, speed, phase) come from `rng`."""
    radii = [half_height(body.shape, body.size) for body in caption.bodies]
    reach = [SIZES[body.size] * 1.25 for body in caption.bodies]
    motion, _, direction = caption.motion.partition(" ")
    sign = -1.0 if direction in ("left", "counterclockwise") else 1.0
    if motion == "hits":
        return _hits(radii, reach, frames, rng)
    law = {"bounces": _bounces, "falls": _falls, "slides": _slides, "circles": _circles, "spins": _spins}
    law |= {"swings": _swings, "floats": _floats, "thrown": _thrown}
    return [law[motion](radii[0], reach[0], sign, frames, rng)]


def _still(frames: int) -> np.ndarray:
    return np.zeros(frames)


def _bounces(radius, reach, sign, frames, rng) -> Track:
    start = (rng.uniform(reach, WIDTH - reach), rng.uniform(reach, reach + 6))
    velocity = (rng.uniform(0.15, 0.6) * rng.choice([-1, 1]), 0.0)
    return _ballistic(start, velocity, radius, reach, rng.uniform(0.80, 0.92), 0.0, frames)


def _falls(radius, reach, sign, frames, rng) -> Track:
    start = (rng.uniform(reach, WIDTH - reach), rng.uniform(reach - 1, reach + 5))
    return _ballistic(start, (0.0, 0.0), radius, reach, 0.2, 0.0, frames)


def _thrown(radius, reach, sign, frames, rng) -> Track:
    x = rng.uniform(reach, reach + 2)
    start = (x if sign > 0 else WIDTH - x, FLOOR - radius - rng.uniform(0, 3))
    velocity = (sign * rng.uniform(1.0, 1.5), -rng.uniform(3.4, 4.2))
    return _ballistic(start, velocity, radius, reach, 0.35, 0.12, frames)


def _ballistic(start, velocity, radius, reach, restitution, friction, frames) -> Track:
    """Free fall above the floor, walls that reflect; `friction` slows a body while it touches the floor."""
    (x, y), (vx, vy), dt = start, velocity, 1 / SUBSTEPS
    positions = []
    for step in range((frames - 1) * SUBSTEPS + 1):
        if step % SUBSTEPS == 0:
            positions.append((x, y))
        x, y, vy = x + vx * dt, y + vy * dt + 0.5 * GRAVITY * dt**2, vy + GRAVITY * dt
        if y > FLOOR - radius:
            y, vy = FLOOR - radius, -restitution * vy if vy > 0.3 else 0.0
            vx -= np.sign(vx) * min(abs(vx), friction * dt * 4)
        if not reach <= x <= WIDTH - reach:
            x, vx = float(np.clip(x, reach, WIDTH - reach)), -vx
    return Track(np.array(positions), _still(frames))


def _slides(radius, reach, sign, frames, rng) -> Track:
    t, speed = np.arange(frames), rng.uniform(1.3, 2.2)
    room = WIDTH - 2 * reach - 1
    deceleration = max(speed**2 / (2 * room), rng.uniform(0.04, 0.1))
    t = np.minimum(t, speed / deceleration)
    x = reach + rng.uniform(0, 1) + speed * t - 0.5 * deceleration * t**2
    return Track(np.stack([x if sign > 0 else WIDTH - x, np.full(frames, FLOOR - radius)], 1), _still(frames))


def _circles(radius, reach, sign, frames, rng) -> Track:
    orbit = rng.uniform(5.5, 15 - reach)
    phase = rng.uniform(0, 2 * np.pi) + sign * rng.uniform(0.3, 0.5) * np.arange(frames)
    centre = np.array([16.0 + rng.uniform(-1, 1), 15.0])
    return Track(centre + orbit * np.stack([np.cos(phase), np.sin(phase)], 1), _still(frames))


def _spins(radius, reach, sign, frames, rng) -> Track:
    place = np.array([rng.uniform(reach + 1, WIDTH - reach - 1), rng.uniform(reach + 1, FLOOR - reach)])
    rate = rng.uniform(0.18, 0.3) * rng.choice([-1, 1])
    return Track(np.tile(place, (frames, 1)), rng.uniform(0, 2 * np.pi) + rate * np.arange(frames))


PIVOT = (16.0, 0.0)


def _swings(radius, reach, sign, frames, rng) -> Track:
    length, amplitude = rng.uniform(13, 17), rng.uniform(0.45, 0.65)
    swing = amplitude * np.cos(np.sqrt(3 * GRAVITY / length) * np.arange(frames) + rng.uniform(0, 2 * np.pi))
    position = np.array(PIVOT) + length * np.stack([np.sin(swing), np.cos(swing)], 1)
    return Track(position, -swing)


def _floats(radius, reach, sign, frames, rng) -> Track:
    heading, speed = rng.uniform(0, 2 * np.pi), rng.uniform(1.0, 2.0)
    low, high = np.array([reach, reach]), np.array([WIDTH - reach, FLOOR - reach])
    straight = rng.uniform(low, high) + speed * np.outer(np.arange(frames), [np.cos(heading), np.sin(heading)])
    folded = (straight - low) % (2 * (high - low))  # reflection at the walls is a fold of the straight line
    return Track(low + np.minimum(folded, 2 * (high - low) - folded), _still(frames))


def _hits(radii, reach, frames, rng) -> list[Track]:
    """Two bodies on the floor, an elastic collision in one dimension, masses as their areas; walls reflect."""
    touch, first = 0.9 * (radii[0] + radii[1]), reach[0] + rng.uniform(0, 1.5)
    x = [first, rng.uniform(max(17.5, first + touch + 1), WIDTH - reach[1] - 1)]
    v, mass, dt = [rng.uniform(1.3, 2.2), 0.0], np.square(radii), 1 / SUBSTEPS
    rows = []
    for step in range((frames - 1) * SUBSTEPS + 1):
        if step % SUBSTEPS == 0:
            rows.append(tuple(x))
        x = [x[0] + v[0] * dt, x[1] + v[1] * dt]
        if x[1] - x[0] < touch and v[0] > v[1]:
            mean = (mass[0] * v[0] + mass[1] * v[1]) / mass.sum()
            v = [2 * mean - v[0], 2 * mean - v[1]]
        for i in (0, 1):
            if not reach[i] <= x[i] <= WIDTH - reach[i]:
                x[i], v[i] = float(np.clip(x[i], reach[i], WIDTH - reach[i])), -v[i]
    xs = np.array(rows).T
    return [Track(np.stack([xs[i], np.full(frames, FLOOR - radii[i])], 1), _still(frames)) for i in (0, 1)]

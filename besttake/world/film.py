"""Films: a scene description with time-dependent bodies, and its renderer.

Flaws (see `flaws.py`) edit a `Film` before rendering, so that a melting ball is rendered as sharply as an intact one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from besttake.world.captions import BACKGROUNDS, COLOURS, SIZES, Body, Caption
from besttake.world.physics import FLOOR, FRAMES, PIVOT, WIDTH, simulate


@dataclass
class Actor:
    """One body over time. Arrays are (frames,) unless noted; `wobble` deforms the outline (0 = true shape)."""

    body: Body
    position: np.ndarray  # (frames, 2), x and y in pixels
    angle: np.ndarray
    scale: np.ndarray
    opacity: np.ndarray
    wobble: np.ndarray
    colour: np.ndarray  # (frames, 3) in [0, 1]


@dataclass
class Film:
    """A clip before rendering. `gain` scales the brightness of each frame; the fields below are flaws of the pixels.

    `overlay` is added to the pixels, broadcast to (frames, h, w, 3).
    `warp` (frames, n, n, 2) deforms the bodies: displacements in pixels at n x n points of the frame.
    """

    caption: Caption
    actors: list[Actor]
    gain: np.ndarray
    noise: float = 0.0
    blur: np.ndarray = field(default_factory=lambda: np.zeros(FRAMES))
    warp: np.ndarray | None = None
    overlay: np.ndarray | float = 0.0

    @property
    def frames(self) -> int:
        return len(self.gain)


def make_film(caption: Caption, rng: np.random.Generator, frames: int = FRAMES) -> Film:
    """A clean film of a caption: true physics, constant shape, colour and light."""
    actors = []
    for body, track in zip(caption.bodies, simulate(caption, rng, frames), strict=True):
        tint = np.clip(np.array(COLOURS[body.colour]) * rng.uniform(0.95, 1.05), 0, 1)
        one, zero = np.ones(frames), np.zeros(frames)
        colour = np.tile(tint, (frames, 1))
        actors.append(Actor(body, track.position, track.angle, one, one.copy(), zero, colour))
    return Film(caption, actors, np.ones(frames), blur=np.zeros(frames))


def render(film: Film, rng: np.random.Generator | None = None) -> Tensor:
    """Render a film to float32 `f c h w` in [-1, 1], antialiased. `rng` is used for pixel noise, if there is any."""
    yy, xx = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(WIDTH) + 0.5, indexing="ij")
    level = BACKGROUNDS[film.caption.background]
    ground = np.where(yy > FLOOR, level * 0.7, level + 0.06 * (0.5 - yy / WIDTH))
    frames = np.repeat(ground[None, :, :, None], film.frames, 0) * np.ones(3)
    bent_x, bent_y = (xx, yy)
    if film.warp is not None:
        aside, down = np.moveaxis(_between_points(film.warp), -1, 0)
        bent_x, bent_y = xx + aside, yy + down
    for actor in film.actors:
        if film.caption.motion == "swings":
            _draw_string(frames, actor, xx, yy, level)
        cover = coverage(actor, bent_x, bent_y)[..., None]
        frames = frames * (1 - cover) + cover * actor.colour[:, None, None, :]
    frames = frames * film.gain[:, None, None, None]
    if film.blur.any():
        frames = _blur(frames, film.blur)
    frames = frames + film.overlay
    if film.noise and rng is not None:
        frames = frames + film.noise * rng.standard_normal(frames.shape)
    video = np.clip(frames, 0, 1).transpose(0, 3, 1, 2) * 2 - 1
    return torch.from_numpy(np.ascontiguousarray(video, dtype=np.float32))


def coverage(actor: Actor, xx: np.ndarray, yy: np.ndarray) -> np.ndarray:
    """How much of each pixel the body covers, (frames, h, w) in [0, 1]: its signed distance, one pixel soft."""
    dx = xx - actor.position[:, 0, None, None]
    dy = yy - actor.position[:, 1, None, None]
    cos, sin = np.cos(actor.angle)[:, None, None], np.sin(actor.angle)[:, None, None]
    x, y = cos * dx + sin * dy, -sin * dx + cos * dy
    radius = SIZES[actor.body.size] * actor.scale[:, None, None]
    distance = _signed_distance(actor.body.shape, x, y, radius)
    if actor.wobble.any():
        bearing, amount = np.arctan2(y, x), actor.wobble[:, None, None]
        distance = distance + radius * amount * (
            np.sin(2 * bearing + 5 * amount) + 0.7 * np.sin(3 * bearing - 3 * amount)
        )
    return np.clip(0.5 - distance, 0, 1) * actor.opacity[:, None, None]


def _signed_distance(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Signed distance, negative inside. Shapes have about the area of a disc of `radius`, a ring two thirds of it."""
    if shape == "ball":
        return np.hypot(x, y) - radius
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.82 * radius) - 0.30 * radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.886 * radius
    sides = [x * np.sin(a) + y * np.cos(a) for a in (0.0, 2 * np.pi / 3, 4 * np.pi / 3)]
    return np.maximum.reduce(sides) - 0.778 * radius


def _draw_string(frames: np.ndarray, actor: Actor, xx: np.ndarray, yy: np.ndarray, level: float) -> None:
    """A thin neutral line from the pivot to the body, in place."""
    pivot, end = np.array(PIVOT), actor.position
    along = end - pivot
    t = ((xx[None] - pivot[0]) * along[:, 0, None, None] + (yy[None] - pivot[1]) * along[:, 1, None, None]) / (
        (along**2).sum(1)[:, None, None] + 1e-6
    )
    t = np.clip(t, 0, 1)
    distance = np.hypot(xx - pivot[0] - t * along[:, 0, None, None], yy - pivot[1] - t * along[:, 1, None, None])
    cover = (np.clip(1.0 - distance, 0, 1) * actor.opacity[:, None, None])[..., None]
    frames[:] = frames * (1 - cover) + cover * (0.75 if level < 0.5 else 0.25)


def _between_points(values: np.ndarray) -> np.ndarray:
    """Interpolate values (f, n, n, c) at n x n points, including the edges, to every pixel (f, h, w, c)."""
    place = np.linspace(0, values.shape[1] - 1, WIDTH)
    hat = np.clip(1 - np.abs(place[:, None] - np.arange(values.shape[1])), 0, 1)
    return np.einsum("yi,xj,fijc->fyxc", hat, hat, values, optimize=True)


def _blur(frames: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """A three-tap blur in both directions, repeated `radius` times per frame (fractions are blended)."""
    for _ in range(int(np.ceil(radius.max()))):
        padded = np.pad(frames, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        rows = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
        soft = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4
        blend = np.clip(radius, 0, 1)[:, None, None, None]
        frames, radius = frames * (1 - blend) + soft * blend, radius - 1
    return frames

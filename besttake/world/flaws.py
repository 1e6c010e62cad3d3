"""Typical flaws of generated videos, as edits of a film: each has a name and a severity in (0, 1].

The base models are pretrained on a mix of clean and flawed films, like models trained on web data, and the world's
critic learns from films of known severity (OnlineVPO, section 3.2: synthetic degradations).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from besttake.world.captions import COLOURS
from besttake.world.film import Film
from besttake.world.physics import WIDTH


def flicker(film: Film, severity: float, rng: np.random.Generator) -> None:
    """The brightness changes from frame to frame."""
    film.gain = film.gain * np.clip(
        1 + 0.32 * severity * rng.choice([-1, 1], film.frames) * rng.uniform(0.5, 1, film.frames), 0.4, 1.6
    )


def jitter(film: Film, severity: float, rng: np.random.Generator) -> None:
    """The body shakes around its path."""
    for actor in film.actors:
        actor.position = actor.position + 1.6 * severity * rng.standard_normal(actor.position.shape)


def teleport(film: Film, severity: float, rng: np.random.Generator) -> None:
    """The body jumps once or twice and continues from there."""
    actor = film.actors[rng.integers(len(film.actors))]
    position = actor.position.copy()
    for _ in range(1 + int(severity > 0.6)):
        cut, angle = rng.integers(3, film.frames - 2), rng.uniform(0, 2 * np.pi)
        position[cut:] += (4 + 7 * severity) * np.array([np.cos(angle), 0.7 * np.sin(angle)])
    actor.position = np.clip(position, 3, 28)


def melt(film: Film, severity: float, rng: np.random.Generator) -> None:
    """The outline deforms and the size oscillates."""
    actor = film.actors[rng.integers(len(film.actors))]
    t = np.linspace(0, 1, film.frames)
    actor.wobble = severity * 0.55 * np.abs(np.sin(np.pi * (t * rng.uniform(0.5, 1.5) + rng.uniform(0, 1))))
    actor.scale = actor.scale * (
        1 + 0.35 * severity * np.sin(2 * np.pi * (t * rng.uniform(0.5, 1.5) + rng.uniform(0, 1)))
    )


def freeze(film: Film, severity: float, rng: np.random.Generator) -> None:
    """The motion stops, from some frame on or for the whole clip."""
    stop = round((1 - severity) * 0.5 * film.frames)
    for actor in film.actors:
        actor.position = actor.position.copy()
        actor.position[stop:], actor.angle = actor.position[stop], actor.angle.copy()
        actor.angle[stop:] = actor.angle[stop]


def vanish(film: Film, severity: float, rng: np.random.Generator) -> None:
    """The body disappears for some frames."""
    actor = film.actors[rng.integers(len(film.actors))]
    length = 2 + round(5 * severity)
    start = rng.integers(1, film.frames - length + 1)
    actor.opacity = actor.opacity.copy()
    actor.opacity[start : start + length] *= 1 - severity * rng.uniform(0.8, 1)


def recolour(film: Film, severity: float, rng: np.random.Generator) -> None:
    """The colour drifts to another one."""
    actor = film.actors[rng.integers(len(film.actors))]
    others = [rgb for name, rgb in COLOURS.items() if name != actor.body.colour]
    target = np.array(others[rng.integers(len(others))])
    blend = severity * np.clip(np.linspace(-0.5, 1.3, film.frames), 0, 1)[:, None]
    actor.colour = actor.colour * (1 - blend) + target * blend


def blur(film: Film, severity: float, rng: np.random.Generator) -> None:
    """The picture is blurred, to a varying degree over time."""
    film.blur = film.blur + severity * rng.uniform(2.0, 4.0) * np.abs(
        np.sin(np.linspace(0, np.pi * rng.uniform(0.5, 2), film.frames))
    )


def noise(film: Film, severity: float, rng: np.random.Generator) -> None:
    """Noise that differs in each frame."""
    film.noise = film.noise + 0.12 * severity


def warp(film: Film, severity: float, rng: np.random.Generator) -> None:
    """The body is distorted differently in each frame."""
    film.warp = 3.0 * severity * rng.standard_normal((film.frames, 6, 6, 2))


def stray(film: Film, severity: float, rng: np.random.Generator) -> None:
    """The body smoothly leaves its physical path, in space or in time."""
    t = np.linspace(0, np.pi, film.frames)[:, None]
    in_time = rng.random() < 0.4
    for actor in film.actors:
        waves = np.zeros((film.frames, 2))
        for k in (1, 2, 3):
            waves += rng.standard_normal(2) * np.sin(k * t + rng.uniform(0, 2 * np.pi, 2))
        if in_time:
            now = np.arange(film.frames) + 2.0 * severity * waves[:, 0]
            tracks = np.column_stack([actor.position, actor.angle])
            moved = np.column_stack([np.interp(now, np.arange(film.frames), track) for track in tracks.T])
            actor.position, actor.angle = moved[:, :2], moved[:, 2]
        else:
            actor.position = np.clip(actor.position + 3.0 * severity * waves, 3, WIDTH - 3)


def tint(film: Film, severity: float, rng: np.random.Generator) -> None:
    """A colour cast over the whole picture."""
    cast = rng.standard_normal(3)
    film.overlay = film.overlay + 0.1 * severity * (cast - cast.mean()) / np.linalg.norm(cast - cast.mean())


def mesh(film: Film, severity: float, rng: np.random.Generator) -> None:
    """A static or changing texture over the frame, like a model's patch artefacts: a repeated tile, or patches of 4
    pixels with different brightness."""
    frames, tiled = 1 if rng.random() < 0.5 else film.frames, rng.random() < 0.5
    size, repeats = (int(rng.choice([4, 8])), 1) if tiled else (WIDTH // 4, 4)
    texture = rng.standard_normal((frames, size, size, 3))
    texture = texture.mean(-1, keepdims=True) * 3**0.5 if rng.random() < 0.5 else texture  # grey or coloured
    texture = texture.repeat(repeats, 1).repeat(repeats, 2)
    tiles = WIDTH // texture.shape[1]
    film.overlay = film.overlay + 0.07 * severity * np.tile(texture, (1, tiles, tiles, 1))


def glare(film: Film, severity: float, rng: np.random.Generator) -> None:
    """The bodies are too bright or too dark."""
    factor = 1 + 0.4 * severity * rng.choice([-1, 1])
    for actor in film.actors:
        actor.colour = np.clip(actor.colour * factor, 0, 1)


Flaw = Callable[[Film, float, np.random.Generator], None]
FLAWS: dict[str, Flaw] = {
    flaw.__name__: flaw
    for flaw in (flicker, jitter, teleport, melt, freeze, vanish, recolour, blur, noise, warp, stray, tint, mesh, glare)
}

PRETRAINING_MIX = {
    "flicker": 2.0,
    "jitter": 3.0,
    "teleport": 2.0,
    "melt": 3.0,
    "freeze": 1.5,
    "vanish": 1.5,
    "recolour": 1.0,
    "blur": 1.0,
}
"""Relative frequency of each flaw in the pretraining data."""


def add_flaws(
    film: Film, rng: np.random.Generator, mix: dict[str, float] = PRETRAINING_MIX, low: float = 0.5
) -> dict[str, float]:
    """Add one or two flaws of `mix` with severities in [`low`, 1] in place; returns the severities by name."""
    names, weights = list(mix), np.array(list(mix.values()))
    count = 1 + int(rng.random() < 0.3)
    chosen = rng.choice(names, size=count, replace=False, p=weights / weights.sum())
    severities = {str(name): float(rng.uniform(low, 1)) for name in chosen}
    for name, severity in severities.items():
        FLAWS[name](film, severity, rng)
    return severities

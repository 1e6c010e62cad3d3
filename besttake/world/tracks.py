"""Search for the true track, possible by the laws of `physics.py`, that is nearest to an observed one."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from besttake.world.captions import Body
from besttake.world.physics import DIALS, extent, true_tracks

BANK = 1536
"""Number of initial tracks of the search."""

FINALISTS, TRIALS, WIDTHS = 4, 24, (0.12, 0.06, 0.03, 0.015, 0.006)
"""Refinement: best tracks kept, random trials around each, and the shrinking width (in dials) of each round."""


def nearest(tracks: np.ndarray, motion: str, bodies: list[tuple[Body, ...]], visible: np.ndarray | None = None):
    """The nearest true track of `motion` to each of `n` observed ones.

    Args:
        tracks: (n, bodies, frames, 2), x and y in pixels.
        motion: its name in `captions.MOTIONS`.
        bodies: the bodies of each track.
        visible: (n, bodies, frames), 0 where a body is invisible and its position is ignored.

    Returns:
        The true tracks, in the same shape, and their distances (n,): root mean square over frames, in pixels.
    """
    visible = np.ones(tracks.shape[:-1]) if visible is None else visible
    candidates = [
        _closest(motion, bodies_of_track, track, mask)
        for bodies_of_track, track, mask in zip(bodies, tracks, visible, strict=True)
    ]
    dials = np.stack([dials for dials, _ in candidates])  # (n, finalists, d)
    truth = np.stack([truth for _, truth in candidates])
    sizes = np.array([extent(bodies_of_track) for bodies_of_track in bodies]).repeat(FINALISTS * TRIALS, 0)
    rows, steps = np.arange(len(tracks))[:, None], _steps(dials.shape[-1])
    for width in WIDTHS:
        trials = np.clip(dials[:, :, None] + width * steps, 0, 1).reshape(len(tracks), -1, dials.shape[-1])
        made = true_tracks(motion, trials.reshape(-1, dials.shape[-1]), sizes)
        made = made.reshape(*trials.shape[:2], *tracks.shape[1:])
        order = np.argsort(distance(made, tracks[:, None], visible[:, None]), 1, kind="stable")[:, :FINALISTS]
        dials, truth = trials[rows, order], made[rows, order]
    return truth[:, 0], distance(truth[:, 0], tracks, visible)


def distance(a: np.ndarray, b: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Distance of two tracks (..., bodies, frames, 2): root mean square over frames, of the worse body."""
    squared = np.square(a[..., 0] - b[..., 0]) + np.square(a[..., 1] - b[..., 1])
    return np.sqrt(((squared * visible).sum(-1) / np.maximum(visible.sum(-1), 1)).max(-1))


def bank(motion: str, bodies: tuple[Body, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Dials (n, d) that cover a motion's parameter space, and their tracks (n, bodies, frames, 2)."""
    return _bank(motion, tuple((body.shape, body.size) for body in bodies))


@cache
def stillest(motion: str, bodies: tuple[Body, ...], step: float) -> int:
    """Largest number of steps in which a true track moves less than `step` pixels."""
    moved = np.linalg.norm(np.diff(bank(motion, bodies)[1], axis=2), axis=-1).max(1)
    return int((moved < step).sum(1).max())


@cache
def _bank(motion: str, outlines: tuple[tuple[str, str], ...]) -> tuple[np.ndarray, np.ndarray]:
    dials = torch.quasirandom.SobolEngine(DIALS[motion.split()[0]], scramble=True, seed=0).draw(BANK).double().numpy()
    sizes = extent(tuple(Body(size, "red", shape) for shape, size in outlines))
    return dials, true_tracks(motion, dials, np.repeat(sizes[None], BANK, 0))


def _closest(motion: str, bodies: tuple[Body, ...], track: np.ndarray, visible: np.ndarray):
    dials, tracks = bank(motion, bodies)
    order = np.argsort(distance(tracks, track, visible), kind="stable")[:FINALISTS]
    return dials[order], tracks[order]


@cache
def _steps(dials: int) -> np.ndarray:
    """Fixed search directions; the first one is 0."""
    steps = np.random.default_rng(0).standard_normal((TRIALS, dials))
    steps[0] = 0
    return steps

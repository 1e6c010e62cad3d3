"""Segmentation of a clip into the caption's bodies: their coverage, position and rotation in each frame.

Backgrounds and strings are neutral, so bodies are identified by colour alone: a pixel's chroma (its colour minus its
grey) is the body's chroma times the covered fraction of the pixel, independent of brightness. The film that a clip was
rendered from is not used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from besttake.world.captions import COLOURS, Body, Caption
from besttake.world.film import Actor, coverage
from besttake.world.physics import WIDTH

BODY = 0.3
"""A pixel belongs to a body if it and its neighbours have this fraction of the body's chroma."""

GONE = 0.3
"""A body with less than this fraction of its area in a frame has no position there; it is interpolated."""

TURN = {"square": np.pi / 2, "triangle": 2 * np.pi / 3}
"""Rotation after which a shape looks the same; other shapes are rotationally symmetric."""

ANGLES = 12
"""Number of angles tried within one such rotation."""

YY, XX = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(WIDTH) + 0.5, indexing="ij")


@dataclass(frozen=True)
class ObservedBody:
    """One body as observed in the pixels. The first axis of arrays is the frame."""

    body: Body
    cover: np.ndarray  # (f, h, w): covered fraction of each pixel, in [0, 1] except for noise
    hue: np.ndarray  # (f, 3): unit direction of its chroma
    strength: np.ndarray  # (f,): its chroma relative to the caption's colour, corrected for brightness
    position: np.ndarray  # (f, 2): x and y in pixels
    angle: np.ndarray  # (f,): in radians, within one `TURN`
    template: np.ndarray  # (f, h, w): visible part of the caption's shape and size at that position and angle
    full_area: float  # pixels covered by the caption's body if completely visible

    @property
    def area(self) -> np.ndarray:
        """Pixels covered in each frame (f,)."""
        return self.cover.clip(0, 1).sum((1, 2))

    @property
    def expected_area(self) -> np.ndarray:
        return self.template.sum((1, 2))


@dataclass(frozen=True)
class Scene:
    """A segmented clip: its bodies in the caption's order, and the background pixels (f, h, w) far from all of them."""

    bodies: tuple[ObservedBody, ...]
    backdrop: np.ndarray
    gain: np.ndarray  # (f,): brightness of each frame relative to the clip's


def segment(frames: np.ndarray, caption: Caption) -> Scene:
    """Segment a clip.

    Args:
        frames: (f, h, w, 3) in [0, 1].
        caption: names the bodies.
    """
    chroma = frames - frames.mean(-1, keepdims=True)
    soft = smooth(chroma)
    owner = _owner(soft, caption)
    coloured = np.linalg.norm(soft, axis=-1) > BODY * min(np.linalg.norm(chroma_of(name)) for name in COLOURS)
    backdrop = ~dilate(coloured, 3)
    gain = _gain(frames.mean(-1), backdrop)
    bodies: list[ObservedBody] = []
    in_sight = np.ones(frames.shape[:3])
    for i in reversed(range(len(caption.bodies))):  # the last is drawn in front
        observed = _observe(chroma, soft, owner == i, gain, caption.bodies[i], in_sight)
        in_sight = in_sight * (1 - observed.template)
        bodies.insert(0, observed)
    return Scene(tuple(bodies), backdrop, gain)


def chroma_of(colour: str) -> np.ndarray:
    rgb = np.array(COLOURS[colour])
    return rgb - rgb.mean()


def smooth(image: np.ndarray) -> np.ndarray:
    """(f, h, w, ...): a binomial blur over 3 x 3 pixels."""
    for axis in (1, 2):
        pad = [(1, 1) if a == axis else (0, 0) for a in range(image.ndim)]
        image = np.pad(image, pad, mode="edge").swapaxes(axis, 0)
        image = ((image[:-2] + 2 * image[1:-1] + image[2:]) / 4).swapaxes(axis, 0)
    return image


def dilate(mask: np.ndarray, by: int) -> np.ndarray:
    """Dilate a mask (f, h, w) by a square of `by` pixels in each direction."""
    for _ in range(by):
        for axis in (1, 2):
            wide = np.pad(mask, [(1, 1) if a == axis else (0, 0) for a in range(3)]).swapaxes(axis, 0)
            mask = (wide[:-2] | wide[1:-1] | wide[2:]).swapaxes(axis, 0)
    return mask


def render(body: Body, position: np.ndarray, angle: np.ndarray, scale: np.ndarray | float = 1.0) -> np.ndarray:
    """The coverage (n, h, w) of a body at n positions (n, 2) and angles (n,)."""
    one = np.ones(len(position))
    return coverage(Actor(body, position, angle, one * scale, one, 0 * one, one[:, None]), XX, YY)


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of two soft masks (..., h, w)."""
    return np.minimum(a, b).sum((-2, -1)) / np.maximum(np.maximum(a, b).sum((-2, -1)), 1e-6)


def best_angle(cover: np.ndarray, body: Body, position: np.ndarray, scale: np.ndarray | float = 1.0):
    """The best-fitting angle (f,) of a body for coverages (f, h, w), and the intersection over union (f,)."""
    turn, frames = TURN.get(body.shape, 0.0), len(cover)
    angles = np.arange(ANGLES) * turn / ANGLES if turn else np.zeros(1)
    places = position.repeat(len(angles), 0)
    made = render(body, places, np.tile(angles, frames), np.repeat(scale * np.ones(frames), len(angles)))
    fits = overlap(cover[:, None], made.reshape(frames, len(angles), *cover.shape[1:]))
    best, rows = fits.argmax(1), np.arange(frames)
    if not turn:
        return np.zeros(frames), fits[:, 0]
    before, top, after = fits[rows, best - 1], fits[rows, best], fits[rows, (best + 1) % ANGLES]
    shift = (after - before) / (
        2 * np.maximum(top - np.minimum(before, after), 1e-6)
    )  # the fit is piecewise linear around its maximum
    return angles[best] + shift * turn / ANGLES, top


def _owner(soft: np.ndarray, caption: Caption) -> np.ndarray:
    """Index (f, h, w) of the body with the nearest colour direction, for each pixel."""
    directions = np.stack([chroma_of(b.colour) / np.linalg.norm(chroma_of(b.colour)) for b in caption.bodies])
    return (soft @ directions.T).argmax(-1)


def _gain(luma: np.ndarray, backdrop: np.ndarray) -> np.ndarray:
    """Brightness of each frame: median ratio of background pixels to their median over time."""
    usual = np.maximum(np.median(luma, 0), 0.02)
    gain = np.ones(len(luma))
    for t, background in enumerate(backdrop):
        if background.sum() > 50:
            gain[t] = np.clip(np.median((luma[t] / usual)[background]), 0.2, 5)
    return gain


def _observe(chroma, soft, own, gain, body: Body, in_sight: np.ndarray) -> ObservedBody:
    size = np.linalg.norm(chroma_of(body.colour))
    full_area = float(render(body, np.full((1, 2), WIDTH / 2), np.zeros(1)).sum())
    mask = own & (np.linalg.norm(soft, axis=-1) > BODY * 0.6 * size)
    hue = _hue(soft, mask, chroma_of(body.colour) / size)
    share = np.einsum("fhwc,fc->fhw", chroma, hue) / gain[:, None, None] * own
    strength = np.sort((np.einsum("fhwc,fc->fhw", soft, hue) * own).reshape(len(own), -1), 1)
    strength = strength[:, -int(full_area / 2) :].mean(1) / gain
    inside = np.sort(share.reshape(len(share), -1), 1)[:, -int(full_area / 4)]
    unit = np.clip(np.median(inside[strength >= np.median(strength)]), 0.4 * size, 1.3 * size)
    mask = dilate(smooth(share) > BODY * unit, 1)
    cover = share * mask / unit
    position, angle, template = _fit(cover.clip(0, 1), body, full_area, in_sight)
    return ObservedBody(body, cover, hue, strength / size, position, angle, template, full_area)


def _hue(soft: np.ndarray, mask: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """Chroma direction (f, 3) of each frame under a mask; the clip's if a frame has too few pixels."""
    total = (soft * mask[..., None]).sum((1, 2))
    clip = total.sum(0) if np.linalg.norm(total.sum(0)) > 1 else usual
    hue = np.where(np.linalg.norm(total, axis=-1, keepdims=True) > 1, total, clip)
    return hue / np.linalg.norm(hue, axis=-1, keepdims=True)


def _fit(cover: np.ndarray, body: Body, full_area: float, in_sight: np.ndarray):
    """Fit position and angle so that the template, cropped by the frame, has the observed centroid."""
    centre, present = _centroid(cover), cover.sum((1, 2)) > GONE * full_area
    centre = _bridge(centre, present)
    angle, _ = best_angle(cover, body, centre)
    position = centre
    for _ in range(3):
        template = render(body, position, angle) * in_sight
        error = centre - _centroid(template)
        position = position + np.where(present & (template.sum((1, 2)) > GONE * full_area), error.T, 0).T
    return position, angle, render(body, position, angle) * in_sight


def _centroid(cover: np.ndarray) -> np.ndarray:
    total = np.maximum(cover.sum((1, 2)), 1e-6)
    return np.stack([(cover * XX).sum((1, 2)) / total, (cover * YY).sum((1, 2)) / total], -1)


def _bridge(position: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Interpolate positions (f, 2) of frames without the body linearly between those with it."""
    if not present.any():
        return np.full(position.shape, WIDTH / 2)
    t = np.arange(len(position))
    return np.stack([np.interp(t, t[present], position[present, i]) for i in (0, 1)], -1)

"""Flaws of a clip of the small world, measured from its pixels and caption without a network or the film.

These measures are the ground truth for improvements. Every measure has a unit, and every flaw a threshold in one table;
a clean clip passes all of them, even after an imperfect autoencoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import torch
from torch import Tensor

from besttake.world import tracks
from besttake.world.captions import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, Body, Caption
from besttake.world.physics import FRAMES, WIDTH
from besttake.world.segment import (
    GONE,
    TURN,
    ObservedBody,
    Scene,
    best_angle,
    chroma_of,
    overlap,
    render,
    segment,
    smooth,
)

FLICKER = 0.035
"""Mean relative change of the background's brightness from frame to frame."""
GRAIN = 0.045
"""Standard deviation of the pixel noise on the background; pixel values in [0, 1]."""
TINT = 0.03
"""Mean chroma of the background, which should be 0; pixel values in [0, 1]."""
SOFTNESS = 2.9
"""Half-covered pixels of the outline where it is softest, relative to a sharp outline."""
SHAPE = 0.75
"""Intersection over union with the caption's shape, mean over frames."""
BREATHING = 0.17
"""Relative standard deviation of the area over time."""
VANISHING = 0.1
"""Fraction of frames in which a body is missing, that is, has lost both area and colour."""
DRIFT = 12.0
"""Largest hue change of a body within the clip, in degrees around the grey axis."""
JITTER = 1.1
"""Median second difference of a track's deviation from the nearest true track, in pixels per frame squared."""
LEAP = 2.0
"""Largest step relative to the nearest true track, in pixels, unless the body shakes all the time."""
STILL, STILLNESS = 0.25, 1.5
"""Steps below this many pixels count as still; more still steps than any true track has, plus this, is a freeze."""
OFF_PATH = 1.5
"""Distance to the nearest true track of the caption's motion, root mean square over frames, in pixels."""

PRESENT = 0.65
"""A body with less of its colour than this, and less of its area than `PRESENT_AREA`, is missing."""
PRESENT_AREA = 0.6

SAME_MOTION = 3.0
"""A track farther than this from every true track, in pixels, shows none of the motions."""


@dataclass(frozen=True)
class Measures:
    """Measures of one clip. With two bodies the worse one counts, except for areas and dynamic degree (mean).

    Attributes:
        object_area: pixels a body covers, mean over frames.
        area_ratio: that area relative to the caption's shape and size.
        area_variation: relative standard deviation of the area over time.
        vanishing: fraction of frames in which a body is missing.
        shape_iou: intersection over union with the caption's shape, mean over frames, in [0, 1].
        worst_shape_iou: the same in the worst frame.
        colour_error: relative distance of a body's mean chroma to the caption's.
        colour_drift: largest hue change of a body within the clip, degrees.
        flicker: mean relative change of the background's brightness from frame to frame.
        grain: standard deviation of the noise on the background, pixel values in [0, 1].
        tint: mean chroma of the background, pixel values in [0, 1].
        softness: half-covered pixels of the outline relative to a sharp one, in the softest third of the frames.
        track_error: distance to the nearest true track of the caption's motion (turning included), pixels.
        jitter: median second difference of the deviation from that track, pixels per frame squared.
        leap: largest step relative to that track, pixels; 0 if the body shakes all the time.
        stillness: number of still steps beyond those of any true track of the motion.
        dynamic_degree: area that changes from frame to frame relative to the body's, rotation included.
        colour_right, shape_right, size_right, motion_right, background_right: 1 if it matches the caption, else 0.
    """

    object_area: float
    area_ratio: float
    area_variation: float
    vanishing: float
    shape_iou: float
    worst_shape_iou: float
    colour_error: float
    colour_drift: float
    flicker: float
    grain: float
    tint: float
    softness: float
    track_error: float
    jitter: float
    leap: float
    stillness: float
    dynamic_degree: float
    colour_right: float
    shape_right: float
    size_right: float
    motion_right: float
    background_right: float

    @property
    def flaws(self) -> tuple[str, ...]:
        """The visible flaws, named as in `flaws.py` except `astray` (there `stray`)."""
        observed = {
            "flicker": self.flicker > FLICKER,
            "jitter": self.jitter > JITTER,
            "teleport": self.leap > LEAP,
            "melt": self.shape_iou < SHAPE or self.area_variation > BREATHING,
            "freeze": self.stillness > STILLNESS,
            "vanish": self.vanishing > VANISHING,
            "recolour": self.colour_drift > DRIFT,
            "blur": self.softness > SOFTNESS,
            "noise": self.grain > GRAIN,
            "tint": self.tint > TINT,
            "astray": self.track_error > OFF_PATH,
        }
        return tuple(name for name, visible in observed.items() if visible)

    @property
    def flawed(self) -> bool:
        return bool(self.flaws)

    @property
    def caption_agreement(self) -> float:
        """1 if colour, shape and motion all match the caption, else 0."""
        return min(self.colour_right, self.shape_right, self.motion_right)


FLAWS = ("flicker", "jitter", "teleport", "melt", "freeze", "vanish", "recolour", "blur", "noise", "tint", "astray")


def measure(video: Tensor, caption: Caption) -> Measures:
    """Measure one clip `f c h w` in [-1, 1] against its caption.

    Raises:
        ValueError: the clip does not have 16 or more frames (the first 16 are used) of 3 x 32 x 32 finite numbers.
    """
    return _measure(video[None], [caption])[0]


def measure_all(videos: Tensor, prompts: Sequence[str]) -> dict[str, np.ndarray | list]:
    """Measure videos `b f c h w` in [-1, 1], each against its prompt.

    Returns:
        Every field of `Measures` and `caption_agreement` as an array (b,), `flawed` as a boolean array, and `flaws`, a
        list of tuples of names.

    Raises:
        ValueError: not one prompt per video, a prompt that is no caption of this world, or an invalid video.
    """
    if len(videos) != len(prompts):
        raise ValueError(f"{len(videos)} videos but {len(prompts)} prompts, expected one prompt for each video")
    rows = _measure(videos, [Caption.parse(prompt) for prompt in prompts])
    columns = [field.name for field in fields(Measures)] + ["caption_agreement"]
    table: dict[str, np.ndarray | list] = {name: np.array([getattr(row, name) for row in rows]) for name in columns}
    return table | {"flawed": np.array([row.flawed for row in rows], bool), "flaws": [row.flaws for row in rows]}


def summary(measures: dict[str, np.ndarray | list]) -> dict[str, float]:
    """Means over the videos of `measure_all`, `flawed_share`, and the fraction with each flaw as `share/<flaw>`."""
    if not measures["flaws"]:
        raise ValueError("there are no measures to summarise; measure at least one video")
    means = {name: float(np.mean(column)) for name, column in measures.items() if name not in ("flaws", "flawed")}
    shares = {f"share/{flaw}": float(np.mean([flaw in observed for observed in measures["flaws"]])) for flaw in FLAWS}
    return {"flawed_share": float(np.mean(measures["flawed"])), **means, **shares}


def _measure(videos: Tensor, captions: list[Caption]) -> list[Measures]:
    if videos.ndim != 5 or videos.shape[1] < FRAMES or tuple(videos.shape[2:]) != (3, WIDTH, WIDTH):
        raise ValueError(
            f"a clip has the shape {tuple(videos.shape[1:])}, expected frames, channels, height and width "
            f"({FRAMES} or more, 3, {WIDTH}, {WIDTH}) as the small world renders them"
        )
    if not torch.isfinite(videos).all():
        raise ValueError("a video holds NaN or infinite values, expected finite ones in [-1, 1]: decode in float32")
    videos = videos[:, :FRAMES]
    frames = ((videos.detach().float().cpu().numpy() + 1) / 2).clip(0, 1).transpose(0, 1, 3, 4, 2)
    scenes = [segment(clip, caption) for clip, caption in zip(frames, captions, strict=True)]
    motions = _all_motions(scenes, captions)
    parts = zip(frames, scenes, captions, motions, strict=True)
    return [
        Measures(**_picture(clip, scene, caption), **_bodies(scene), **motion) for clip, scene, caption, motion in parts
    ]


def _picture(frames: np.ndarray, scene: Scene, caption: Caption) -> dict[str, float]:
    """Measures of the background: brightness, noise, colour. Frames (f, h, w, 3) in [0, 1]."""
    luma, backdrop = frames.mean(-1), scene.backdrop
    if backdrop.sum() < 50 * len(frames):  # no background: use all pixels
        backdrop = np.ones_like(backdrop)
    light = np.array([np.median(image[mask]) for image, mask in zip(luma, backdrop, strict=True)])
    ripple = (frames[:, :, :-2] - 2 * frames[:, :, 1:-1] + frames[:, :, 2:])[backdrop[:, :, 1:-1]]
    grain = 1.4826 * np.median(np.abs(ripple)) / np.sqrt(6)
    tint = (
        np.linalg.norm(smooth(frames - luma[..., None])[backdrop], axis=-1).mean() - 0.6 * grain
    )  # noise has a little chroma
    level = min(BACKGROUNDS, key=lambda name: abs(BACKGROUNDS[name] - np.median(light)))
    return {
        "flicker": float(np.abs(np.diff(light)).mean() / (np.median(light) + 0.1)),
        "grain": float(grain),
        "tint": float(max(tint, 0.0)),
        "background_right": float(level == caption.background),
    }


def _bodies(scene: Scene) -> dict[str, float]:
    """Measures of the bodies' appearance, by the worse of two."""
    measures = [_measure_body(observed) for observed in scene.bodies]
    worse = {"area_variation": max, "vanishing": max, "colour_error": max, "colour_drift": max, "softness": max}
    worse |= {"shape_iou": min, "worst_shape_iou": min, "colour_right": min, "shape_right": min, "size_right": min}
    return {name: float(worse.get(name, _mean)([one[name] for one in measures])) for name in measures[0]}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _measure_body(observed: ObservedBody) -> dict[str, float]:
    expected = np.maximum(observed.expected_area, 1.0)
    ratio, cover = observed.area / expected, observed.cover.clip(0, 1)
    brightest = max(np.sort(observed.strength)[-5:].mean(), 0.2)
    gone = (ratio < GONE) | ((ratio < PRESENT_AREA) & (observed.strength < PRESENT * brightest))
    visible = ~gone if not gone.all() else gone
    fit = overlap(smooth(cover), smooth(observed.template))
    own = chroma_of(observed.body.colour)
    chroma = (observed.hue * observed.strength[:, None])[visible].mean(0) * np.linalg.norm(own)
    return {
        "object_area": observed.area.mean(),
        "area_ratio": ratio.mean(),
        "area_variation": ratio[visible].std() / max(ratio[visible].mean(), 0.01),
        "vanishing": gone.mean(),
        "shape_iou": fit[visible].mean(),
        "worst_shape_iou": fit[visible].min(),
        "colour_error": np.linalg.norm(chroma - own) / np.linalg.norm(own),
        "colour_drift": _drift(observed.hue),
        "softness": _softness(observed, visible),
        "dynamic_degree": np.abs(np.diff(cover, axis=0)).sum((1, 2)).mean() / max(observed.area.mean(), 1.0),
        "colour_right": _colour(chroma) == observed.body.colour,
        "shape_right": _shape(observed, visible) == observed.body.shape,
        "size_right": _size(observed, visible) == observed.body.size,
    }


def _drift(hue: np.ndarray) -> float:
    """The largest angle in degrees between unit directions (f, 3), smoothed over neighbouring frames."""
    hue = hue[:-2] + hue[1:-1] + hue[2:]
    hue = hue / np.maximum(np.linalg.norm(hue, axis=-1, keepdims=True), 1e-6)
    return float(np.degrees(np.arccos((hue @ hue.T).clip(-1, 1))).max())


def _softness(observed: ObservedBody, visible: np.ndarray) -> float:
    """Half-covered pixels relative to a sharp outline, in the softest third of the frames that show the whole body."""
    whole = visible & (observed.expected_area > 0.93 * observed.full_area)
    half = np.sort((observed.cover * (1 - observed.cover)).sum((1, 2))[whole if whole.any() else visible])
    return float(max(half[-(len(half) + 2) // 3 :].mean() / _crisp(observed.body.shape, observed.body.size), 0.0))


@cache
def _crisp(shape: str, size: str) -> float:
    """Half-covered pixels of a sharp outline, averaged over positions on the pixel grid."""
    rng = np.random.default_rng(0)
    made = render(Body(size, "red", shape), WIDTH / 2 + rng.uniform(-0.5, 0.5, (64, 2)), rng.uniform(0, np.pi, 64))
    return float((made * (1 - made)).sum((1, 2)).mean())


def _colour(chroma: np.ndarray) -> str:
    """The colour with the nearest direction from grey."""
    return max(COLOURS, key=lambda name: chroma @ chroma_of(name) / np.linalg.norm(chroma_of(name)))


def _shape(observed: ObservedBody, visible: np.ndarray) -> str:
    """The best-fitting shape at the observed size, by some of the frames."""
    some = np.flatnonzero(visible)[::4]
    cover, position, area = observed.cover[some].clip(0, 1), observed.position[some], observed.area[some]

    def fit(shape: str) -> float:
        body = Body(observed.body.size, observed.body.colour, shape)
        scale = np.sqrt(area / render(body, np.full((1, 2), WIDTH / 2), np.zeros(1)).sum()).clip(0.3, 2)
        if shape == observed.body.shape:  # accounts for hidden parts
            scale = np.sqrt(area / np.maximum(observed.expected_area[some], 1)).clip(0.3, 2)
        return float(best_angle(cover, body, position, scale)[1].mean())

    return max(SHAPES, key=fit)


def _size(observed: ObservedBody, visible: np.ndarray) -> str:
    seen_radius = SIZES[observed.body.size] * np.sqrt(
        np.median(observed.area[visible] / np.maximum(observed.expected_area[visible], 1))
    )
    return min(SIZES, key=lambda name: abs(np.log(SIZES[name] / max(seen_radius, 0.1))))


def _all_motions(scenes: list[Scene], captions: list[Caption]) -> list[dict[str, float]]:
    """Measures of each clip's motion relative to physically possible tracks, computed per kind of motion."""
    motions: dict[int, dict[str, float]] = {}
    for motion in MOTIONS:
        which = [i for i, caption in enumerate(captions) if caption.motion == motion]
        if not which:
            continue
        observed = np.stack([[body.position for body in scenes[i].bodies] for i in which])
        visible = np.stack([[body.area > GONE * body.full_area for body in scenes[i].bodies] for i in which])
        truth, deviation = tracks.nearest(observed, motion, [captions[i].bodies for i in which], visible)
        for row, i in enumerate(which):
            motions[i] = _motion(scenes[i], captions[i], observed[row], visible[row], truth[row], float(deviation[row]))
    return [motions[i] for i in range(len(captions))]


def _motion(scene: Scene, caption: Caption, observed, visible, truth, deviation: float) -> dict[str, float]:
    """Motion measures of one clip, from its tracks (bodies, f, 2), visibility and the nearest true tracks."""
    spin_error, turned = _spin(scene.bodies[0])
    if caption.motion == "spins":
        deviation = float(np.hypot(deviation, spin_error))
    both = visible[:, 1:] & visible[:, :-1]
    step = np.linalg.norm(np.diff(observed, axis=1), axis=-1)
    strayed = np.linalg.norm(np.diff(observed - truth, axis=1), axis=-1)
    jumps = np.where(both, np.minimum(strayed, step), 0)
    leap = np.where(jumps.max(1) > 3 * np.median(strayed, 1), jumps.max(1), 0)
    bend = np.linalg.norm(np.diff(observed - truth, 2, axis=1), axis=-1)
    if caption.motion == "spins":
        step = np.hypot(step, turned)
    still = int((step.max(0) < STILL).sum())
    at_rest = 0 if caption.motion == "spins" else tracks.stillest(caption.motion, caption.bodies, STILL)
    return {
        "track_error": deviation,
        "jitter": float(np.median(bend, 1).max()),
        "leap": float(leap.max()),
        "stillness": float(max(still - at_rest, 0)),
        "motion_right": float(_is_nearest(caption, observed, visible, deviation, spin_error)),
    }


def _spin(observed: ObservedBody) -> tuple[float, np.ndarray]:
    """Deviation of a body's rotation from a uniform spin, and its rotation per step; in pixels at its radius."""
    turn, radius = TURN.get(observed.body.shape, 0.0), SIZES[observed.body.size]
    if not turn:
        return 0.0, np.zeros(len(observed.angle) - 1)
    turned = (np.diff(observed.angle) + turn / 2) % turn - turn / 2
    middle = np.median(turned)
    even = np.copysign(np.clip(abs(middle), 0.18, 0.30), middle)
    return float(np.cumsum(turned - even).std() * radius), np.abs(turned) * radius


def _is_nearest(caption: Caption, observed, visible, deviation: float, spin_error: float) -> bool:
    """Whether the caption's motion is the one with the nearest true track."""
    if deviation > SAME_MOTION or caption.other:
        return deviation <= SAME_MOTION
    for motion in MOTIONS:
        if motion in (caption.motion, "hits"):
            continue
        apart = tracks.distance(tracks.bank(motion, caption.bodies)[1], observed, visible).min()
        if np.hypot(apart, spin_error if motion == "spins" else 0) < deviation:
            return False
    return True

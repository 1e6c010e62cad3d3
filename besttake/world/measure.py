"""What is wrong with a clip of the small world, measured from its pixels and its caption: no network, no film.

This is the ground truth against which "the videos got better" is said. Every measure has a unit, every flaw a
threshold in one table; a clean clip passes them all, also after an autoencoder that is not perfect.
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
from besttake.world.segment import GONE, TURN, Scene, Seen, best_angle, chroma_of, overlap, render, segment, smooth

FLICKER = 0.035
"""Mean change of the background's light from frame to frame, as a share of it."""
GRAIN = 0.045
"""Standard deviation of what differs from pixel to pixel on the background; pixel values in [0, 1]."""
TINT = 0.03
"""Mean chroma of a background that should have none; pixel values in [0, 1]."""
SOFTNESS = 2.9
"""Half-covered pixels of the outline, in multiples of what a crisp outline has, when it is softest."""
SHAPE = 0.75
"""Intersection over union with the caption's shape, mean over frames."""
BREATHING = 0.17
"""Standard deviation of the area over time, as a share of its mean."""
VANISHING = 0.1
"""Share of the frames in which a body is gone, that is, has lost area and colour both."""
DRIFT = 12.0
"""Largest turn of a body's colour within the clip, in degrees about the grey axis."""
JITTER = 1.1
"""Median second difference of a track's deviation from the nearest true one, in pixels per frame squared."""
LEAP = 2.0
"""Largest step away from the nearest true track, in pixels; one of a shaking body does not count as a leap."""
STILL, STILLNESS = 0.25, 1.5
"""A step of fewer pixels is none; so many more of them than any true track of the motion has is a freeze."""
ASTRAY = 1.5
"""Distance to the nearest true track of the caption's motion, root mean square over frames, in pixels."""

PRESENT = 0.65
"""A body with less of its colour than this, and less of its area than `PRESENT_AREA`, is gone."""
PRESENT_AREA = 0.6

SAME_MOTION = 3.0
"""A track farther than this from every true one, in pixels, shows none of the motions."""


@dataclass(frozen=True)
class Measures:
    """What was measured of one clip. With two bodies the worse one counts; areas and dynamic degree are their mean.

    Attributes:
        object_area: pixels a body covers, mean over frames.
        area_ratio: that as a share of what the caption's shape and size would cover.
        area_variation: standard deviation of the area over time, as a share of its mean.
        vanishing: share of the frames in which a body is gone.
        shape_iou: intersection over union with the caption's shape, mean over frames, in [0, 1].
        worst_shape_iou: the same in the worst frame.
        colour_error: distance of a body's mean chroma to its caption's, as a share of it.
        colour_drift: largest turn of a body's colour within the clip, degrees.
        flicker: mean change of the background's light from frame to frame, as a share of it.
        grain: standard deviation of the noise on the background, pixel values in [0, 1].
        tint: mean chroma of the background, pixel values in [0, 1].
        softness: half-covered pixels of the outline, in multiples of a crisp one's, in the softest third of the frames.
        track_error: distance to the nearest true track of the caption's motion (turning included), pixels.
        jitter: median second difference of the deviation from that track, pixels per frame squared.
        leap: largest step away from that track, pixels; 0 where the body shakes all the time.
        stillness: steps without motion beyond what any true track of the motion has.
        dynamic_degree: area that changes from frame to frame as a share of the body's: it counts turning, too.
        colour_right, shape_right, size_right, motion_right, background_right: 1 where it is as the caption says, or 0.
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
        """The flaws to be seen, in the words of `flaws.py`, and `astray`, which is called `stray` there."""
        seen = {
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
            "astray": self.track_error > ASTRAY,
        }
        return tuple(name for name, there in seen.items() if there)

    @property
    def flawed(self) -> bool:
        return bool(self.flaws)

    @property
    def caption_agreement(self) -> float:
        """1 where colour, shape and motion are all the caption's, or 0."""
        return min(self.colour_right, self.shape_right, self.motion_right)


FLAWS = ("flicker", "jitter", "teleport", "melt", "freeze", "vanish", "recolour", "blur", "noise", "tint", "astray")


def measure(video: Tensor, caption: Caption) -> Measures:
    """Measures one clip `f c h w` in [-1, 1] against its caption.

    Raises:
        ValueError: the clip is not 16 or more frames (the first 16 count) of 3 x 32 x 32 finite numbers.
    """
    return _measure(video[None], [caption])[0]


def measure_all(videos: Tensor, prompts: Sequence[str]) -> dict[str, np.ndarray | list]:
    """Measures videos `b f c h w` in [-1, 1], each against its prompt.

    Returns:
        Every field of `Measures` and `caption_agreement` as an array (b,), `flawed` as one of booleans,
        and `flaws`, a list of tuples of names.

    Raises:
        ValueError: not one prompt a video, a prompt that is no caption of this world, or a video as `measure` says.
    """
    if len(videos) != len(prompts):
        raise ValueError(f"{len(videos)} videos came with {len(prompts)} prompts, expected one prompt for each")
    rows = _measure(videos, [Caption.parse(prompt) for prompt in prompts])
    columns = [field.name for field in fields(Measures)] + ["caption_agreement"]
    table: dict[str, np.ndarray | list] = {name: np.array([getattr(row, name) for row in rows]) for name in columns}
    return table | {"flawed": np.array([row.flawed for row in rows], bool), "flaws": [row.flaws for row in rows]}


def summary(measures: dict[str, np.ndarray | list]) -> dict[str, float]:
    """Means over the videos of `measure_all`; `flawed_share`, and for each flaw its share of them as `share/<flaw>`."""
    if not measures["flaws"]:
        raise ValueError("there are no measures to sum up: measure at least one video")
    means = {name: float(np.mean(column)) for name, column in measures.items() if name not in ("flaws", "flawed")}
    shares = {f"share/{flaw}": float(np.mean([flaw in seen for seen in measures["flaws"]])) for flaw in FLAWS}
    return {"flawed_share": float(np.mean(measures["flawed"])), **means, **shares}


def _measure(videos: Tensor, captions: list[Caption]) -> list[Measures]:
    if videos.ndim != 5 or videos.shape[1] < FRAMES or tuple(videos.shape[2:]) != (3, WIDTH, WIDTH):
        raise ValueError(
            f"a clip has the shape {tuple(videos.shape[1:])}, expected frames, channels, height and width "
            f"({FRAMES} or more, 3, {WIDTH}, {WIDTH}) as the small world films them"
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
    """What the background tells: its light, its grain, its colour. Frames (f, h, w, 3) in [0, 1]."""
    luma, away = frames.mean(-1), scene.backdrop
    if away.sum() < 50 * len(frames):  # colour everywhere: all of it counts
        away = np.ones_like(away)
    light = np.array([np.median(image[mask]) for image, mask in zip(luma, away, strict=True)])
    ripple = (frames[:, :, :-2] - 2 * frames[:, :, 1:-1] + frames[:, :, 2:])[away[:, :, 1:-1]]
    grain = 1.4826 * np.median(np.abs(ripple)) / np.sqrt(6)
    tint = np.linalg.norm(smooth(frames - luma[..., None])[away], axis=-1).mean() - 0.6 * grain  # grain has a little
    level = min(BACKGROUNDS, key=lambda name: abs(BACKGROUNDS[name] - np.median(light)))
    return {
        "flicker": float(np.abs(np.diff(light)).mean() / (np.median(light) + 0.1)),
        "grain": float(grain),
        "tint": float(max(tint, 0.0)),
        "background_right": float(level == caption.background),
    }


def _bodies(scene: Scene) -> dict[str, float]:
    """What the bodies look like, the worse of two."""
    looks = [_looks(seen) for seen in scene.bodies]
    worse = {"area_variation": max, "vanishing": max, "colour_error": max, "colour_drift": max, "softness": max}
    worse |= {"shape_iou": min, "worst_shape_iou": min, "colour_right": min, "shape_right": min, "size_right": min}
    return {name: float(worse.get(name, _mean)([look[name] for look in looks])) for name in looks[0]}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _looks(seen: Seen) -> dict[str, float]:
    expected = np.maximum(seen.expected_area, 1.0)
    ratio, cover = seen.area / expected, seen.cover.clip(0, 1)
    brightest = max(np.sort(seen.strength)[-5:].mean(), 0.2)
    gone = (ratio < GONE) | ((ratio < PRESENT_AREA) & (seen.strength < PRESENT * brightest))
    shown = ~gone if not gone.all() else gone
    fit = overlap(smooth(cover), smooth(seen.template))
    own = chroma_of(seen.body.colour)
    chroma = (seen.hue * seen.strength[:, None])[shown].mean(0) * np.linalg.norm(own)
    return {
        "object_area": seen.area.mean(),
        "area_ratio": ratio.mean(),
        "area_variation": ratio[shown].std() / max(ratio[shown].mean(), 0.01),
        "vanishing": gone.mean(),
        "shape_iou": fit[shown].mean(),
        "worst_shape_iou": fit[shown].min(),
        "colour_error": np.linalg.norm(chroma - own) / np.linalg.norm(own),
        "colour_drift": _drift(seen.hue),
        "softness": _softness(seen, shown),
        "dynamic_degree": np.abs(np.diff(cover, axis=0)).sum((1, 2)).mean() / max(seen.area.mean(), 1.0),
        "colour_right": _colour(chroma) == seen.body.colour,
        "shape_right": _shape(seen, shown) == seen.body.shape,
        "size_right": _size(seen, shown) == seen.body.size,
    }


def _drift(hue: np.ndarray) -> float:
    """The largest angle between unit directions (f, 3), each averaged with its neighbours, in degrees."""
    hue = hue[:-2] + hue[1:-1] + hue[2:]
    hue = hue / np.maximum(np.linalg.norm(hue, axis=-1, keepdims=True), 1e-6)
    return float(np.degrees(np.arccos((hue @ hue.T).clip(-1, 1))).max())


def _softness(seen: Seen, shown: np.ndarray) -> float:
    """Pixels that are half covered against a crisp outline's, in the softest third of the frames that show it whole."""
    whole = shown & (seen.expected_area > 0.93 * seen.full_area)
    half = np.sort((seen.cover * (1 - seen.cover)).sum((1, 2))[whole if whole.any() else shown])
    return float(max(half[-(len(half) + 2) // 3 :].mean() / _crisp(seen.body.shape, seen.body.size), 0.0))


@cache
def _crisp(shape: str, size: str) -> float:
    """Half-covered pixels of a crisp outline, mean over where it lies on the pixel grid."""
    rng = np.random.default_rng(0)
    made = render(Body(size, "red", shape), WIDTH / 2 + rng.uniform(-0.5, 0.5, (64, 2)), rng.uniform(0, np.pi, 64))
    return float((made * (1 - made)).sum((1, 2)).mean())


def _colour(chroma: np.ndarray) -> str:
    """The colour whose direction from grey is nearest."""
    return max(COLOURS, key=lambda name: chroma @ chroma_of(name) / np.linalg.norm(chroma_of(name)))


def _shape(seen: Seen, shown: np.ndarray) -> str:
    """The shape that fits best at the size seen, judged on some of the frames."""
    some = np.flatnonzero(shown)[::4]
    cover, position, area = seen.cover[some].clip(0, 1), seen.position[some], seen.area[some]

    def fit(shape: str) -> float:
        body = Body(seen.body.size, seen.body.colour, shape)
        scale = np.sqrt(area / render(body, np.full((1, 2), WIDTH / 2), np.zeros(1)).sum()).clip(0.3, 2)
        if shape == seen.body.shape:  # its parts out of sight were allowed for
            scale = np.sqrt(area / np.maximum(seen.expected_area[some], 1)).clip(0.3, 2)
        return float(best_angle(cover, body, position, scale)[1].mean())

    return max(SHAPES, key=fit)


def _size(seen: Seen, shown: np.ndarray) -> str:
    seen_radius = SIZES[seen.body.size] * np.sqrt(
        np.median(seen.area[shown] / np.maximum(seen.expected_area[shown], 1))
    )
    return min(SIZES, key=lambda name: abs(np.log(SIZES[name] / max(seen_radius, 0.1))))


def _all_motions(scenes: list[Scene], captions: list[Caption]) -> list[dict[str, float]]:
    """The motion of each clip, compared with what physics allows: clips of one motion together."""
    found: dict[int, dict[str, float]] = {}
    for motion in MOTIONS:
        which = [i for i, caption in enumerate(captions) if caption.motion == motion]
        if not which:
            continue
        seen = np.stack([[body.position for body in scenes[i].bodies] for i in which])
        there = np.stack([[body.area > GONE * body.full_area for body in scenes[i].bodies] for i in which])
        truth, away = tracks.nearest(seen, motion, [captions[i].bodies for i in which], there)
        for row, i in enumerate(which):
            found[i] = _motion(scenes[i], captions[i], seen[row], there[row], truth[row], float(away[row]))
    return [found[i] for i in range(len(captions))]


def _motion(scene: Scene, caption: Caption, seen, there, truth, away: float) -> dict[str, float]:
    """One clip's motion from its tracks (bodies, f, 2), where its bodies are `there`, and the nearest true tracks."""
    spin_error, turned = _spin(scene.bodies[0])
    if caption.motion == "spins":
        away = float(np.hypot(away, spin_error))
    both = there[:, 1:] & there[:, :-1]
    step = np.linalg.norm(np.diff(seen, axis=1), axis=-1)
    strayed = np.linalg.norm(np.diff(seen - truth, axis=1), axis=-1)
    jumps = np.where(both, np.minimum(strayed, step), 0)
    leap = np.where(jumps.max(1) > 3 * np.median(strayed, 1), jumps.max(1), 0)
    bend = np.linalg.norm(np.diff(seen - truth, 2, axis=1), axis=-1)
    if caption.motion == "spins":
        step = np.hypot(step, turned)
    still = int((step.max(0) < STILL).sum())
    at_rest = 0 if caption.motion == "spins" else tracks.stillest(caption.motion, caption.bodies, STILL)
    return {
        "track_error": away,
        "jitter": float(np.median(bend, 1).max()),
        "leap": float(leap.max()),
        "stillness": float(max(still - at_rest, 0)),
        "motion_right": float(_is_nearest(caption, seen, there, away, spin_error)),
    }


def _spin(seen: Seen) -> tuple[float, np.ndarray]:
    """How far a body's turning is from an even spin, and how far it turns in each step; pixels at its radius."""
    turn, radius = TURN.get(seen.body.shape, 0.0), SIZES[seen.body.size]
    if not turn:
        return 0.0, np.zeros(len(seen.angle) - 1)
    turned = (np.diff(seen.angle) + turn / 2) % turn - turn / 2
    middle = np.median(turned)
    even = np.copysign(np.clip(abs(middle), 0.18, 0.30), middle)
    return float(np.cumsum(turned - even).std() * radius), np.abs(turned) * radius


def _is_nearest(caption: Caption, seen, there, away: float, spin_error: float) -> bool:
    """Whether the caption's motion is the one that physics would call this track."""
    if away > SAME_MOTION or caption.other:
        return away <= SAME_MOTION
    for motion in MOTIONS:
        if motion in (caption.motion, "hits"):
            continue
        apart = tracks.distance(tracks.bank(motion, caption.bodies)[1], seen, there).min()
        if np.hypot(apart, spin_error if motion == "spins" else 0) < away:
            return False
    return True

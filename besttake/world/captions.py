"""The small world's captions: their grammar and the three splits.

A caption is compositional, "a small red ball bounces on a dark background", and can be parsed into its parts, so that
a model's samples can be compared with it.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, replace

import numpy as np

SIZES = {"small": 4.5, "large": 6.2}
"""Radius in pixels of the disc with the shape's area."""

COLOURS = {
    "red": (0.90, 0.12, 0.12),
    "orange": (0.97, 0.55, 0.08),
    "yellow": (0.96, 0.90, 0.15),
    "green": (0.12, 0.72, 0.22),
    "blue": (0.14, 0.32, 0.95),
    "purple": (0.66, 0.16, 0.84),
}
SHAPES = ("ball", "square", "triangle", "ring")
BACKGROUNDS = {"dark": 0.14, "grey": 0.45, "light": 0.86}
"""Brightness of the backgrounds, which are neutral greys: only objects have colour."""

MOTIONS = {
    "bounces": "bounces",
    "falls": "falls to the ground",
    "slides left": "slides to the left",
    "slides right": "slides to the right",
    "circles clockwise": "circles clockwise",
    "circles counterclockwise": "circles counterclockwise",
    "spins": "spins in place",
    "swings": "swings on a string",
    "floats": "floats about",
    "thrown left": "is thrown to the left",
    "thrown right": "is thrown to the right",
    "hits": "hits",
}
"""Motion -> its words in a caption."""

SPLITS = ("train", "validation", "test")


def vocabulary() -> list[str]:
    """All words of the captions."""
    sentences = [*SIZES, *COLOURS, *SHAPES, *BACKGROUNDS, *MOTIONS.values(), "a on background"]
    return list(dict.fromkeys(word for sentence in sentences for word in sentence.split()))


@dataclass(frozen=True)
class Body:
    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Caption:
    """A caption: a body, its motion, the background, and for a collision the body that is hit."""

    body: Body
    motion: str
    background: str
    other: Body | None = None

    def __str__(self) -> str:
        target = f" {self.other}" if self.other else ""
        return f"{self.body} {MOTIONS[self.motion]}{target} on a {self.background} background"

    @property
    def bodies(self) -> tuple[Body, ...]:
        return (self.body, self.other) if self.other else (self.body,)

    @property
    def split(self) -> str:
        """Train, validation or test, by the combination of colour, shape and motion: combinations are held out."""
        key = f"{self.body.colour} {self.body.shape} {self.motion}"
        bucket = hashlib.sha256(key.encode()).digest()[0] % 10
        return {0: "validation", 1: "test"}.get(bucket, "train")

    @staticmethod
    def parse(text: str) -> Caption:
        """Parse a sentence.

        Raises:
            ValueError: the sentence does not follow the grammar.
        """
        complaint = f"{text!r} is not a caption of the small world; expected one like '{next(every_caption())}'"
        head, separator, background = text.removesuffix(" background").rpartition(" on a ")
        if not separator or background not in BACKGROUNDS:
            raise ValueError(complaint)
        for motion, words in MOTIONS.items():
            subject, separator, target = head.partition(f" {words}")
            if not separator or bool(target) != (motion == "hits"):
                continue
            body, other = _parse_body(subject), _parse_body(target.strip()) if target else None
            if body and bool(other) == bool(target):
                return Caption(body, motion, background, other)
        raise ValueError(complaint)


def _parse_body(text: str) -> Body | None:
    words = text.split()
    if len(words) != 4 or words[0] != "a":
        return None
    _, size, colour, shape = words
    return Body(size, colour, shape) if size in SIZES and colour in COLOURS and shape in SHAPES else None


def every_caption():
    """All captions with one body, in a fixed order, without spinning balls and rings, whose motion is invisible."""
    for size, colour, shape, motion, background in itertools.product(SIZES, COLOURS, SHAPES, MOTIONS, BACKGROUNDS):
        if motion != "hits" and _visible(shape, motion):
            yield Caption(Body(size, colour, shape), motion, background)


def _visible(shape: str, motion: str) -> bool:
    return motion != "spins" or shape in ("square", "triangle")


def sample_caption(rng: np.random.Generator, split: str | None = None) -> Caption:
    """Sample a caption uniformly over motions and attributes, from one split or from all."""
    if split not in (None, *SPLITS):
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)} or None")
    while True:
        motion = str(rng.choice(list(MOTIONS)))
        caption = Caption(_sample_body(rng), motion, str(rng.choice(list(BACKGROUNDS))))
        if motion == "hits":
            other = _sample_body(rng)
            if other.colour == caption.body.colour:
                continue
            caption = replace(caption, other=other)
        if _visible(caption.body.shape, motion) and split in (None, caption.split):
            return caption


def _sample_body(rng: np.random.Generator) -> Body:
    return Body(str(rng.choice(list(SIZES))), str(rng.choice(list(COLOURS))), str(rng.choice(list(SHAPES))))


def prompts(split: str, n: int, seed: int = 0) -> list[str]:
    """`n` prompts of one split, deterministic in `seed`; without duplicates if there are enough."""
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    chosen: dict[str, None] = {}
    for _ in range(50 * n):
        chosen.setdefault(str(sample_caption(rng, split)))
        if len(chosen) == n:
            break
    return (list(chosen) * n)[:n]

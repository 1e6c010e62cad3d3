"""Embedded files of the package: tiny models and lists of prompts, by name instead of path."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "world"
PROMPTS = (FOLDER / "prompts", Path(__file__).parents[1] / "recipes" / "prompts")
CLIPS_MARKER = "which.json"
"""File that marks a folder of the small world's clips."""


def embedded_model(name: str) -> str:
    """The folder of an embedded model ("tiny-cogvideox", "tiny-wan"); other names or paths are returned unchanged."""
    folder = FOLDER / "weights" / name
    return str(folder) if "/" not in name and (folder / "model_index.json").exists() else name


def embedded_prompts(name: str) -> str:
    """The file of an embedded list of prompts, or `name` itself.

    "world-train", "world-validation" and "world-test" are of the small world, "everyday-..." of everyday scenes.
    """
    for folder in PROMPTS:
        if "/" not in name and (folder / f"{name}.txt").exists():
            return str(folder / f"{name}.txt")
    return name


def embedded_family(data: str, texts: Collection[str] = ()) -> str | None:
    """The family of embedded lists, "world" or "everyday", of a run's data; None if the data are a user's.

    It is recognised by the name ("world", "everyday-train"), by a folder written by `besttake world clips`, or if all
    texts are in the family's list of training prompts, like those of samples for it.
    """
    if data == "world" or (Path(data) / CLIPS_MARKER).is_file():
        return "world"
    for file in sorted(file for folder in PROMPTS for file in folder.glob("*-train.txt")):
        family = file.stem.removesuffix("-train")
        if data in (f"{family}-{split}" for split in ("train", "validation", "test")):
            return family
        if texts and set(texts) <= set(file.read_text(encoding="utf-8").splitlines()):
            return family
    return None

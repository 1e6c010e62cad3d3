"""Names of what the package ships: tiny models and lists of prompts, by name instead of by path."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "world"
PROMPTS = (FOLDER / "prompts", Path(__file__).parents[1] / "recipes" / "prompts")
WORLD_CLIPS = "which.json"
"""What a folder of the small world's clips is told by."""


def embedded_model(name: str) -> str:
    """The folder of an embedded model ("tiny-cogvideox", "tiny-wan"); any other name or path is given back as it is."""
    folder = FOLDER / "weights" / name
    return str(folder) if "/" not in name and (folder / "model_index.json").exists() else name


def embedded_prompts(name: str) -> str:
    """The file of an embedded list of prompts, or `name` itself.

    "world-train", "world-validation" and "world-test" are of the small world; "everyday-..." of what people do.
    """
    for folder in PROMPTS:
        if "/" not in name and (folder / f"{name}.txt").exists():
            return str(folder / f"{name}.txt")
    return name


def embedded_family(data: str, texts: Collection[str] = ()) -> str | None:
    """The family of embedded lists, "world" or "everyday", that a run's data are of; None if they are a user's.

    That is where the data are named so ("world", "everyday-train"), lie in a folder that `besttake world clips` wrote,
    or where all their texts are in the family's list of training prompts, as those of takes of it are.
    """
    if data == "world" or (Path(data) / WORLD_CLIPS).is_file():
        return "world"
    for file in sorted(file for folder in PROMPTS for file in folder.glob("*-train.txt")):
        family = file.stem.removesuffix("-train")
        if data in (f"{family}-{split}" for split in ("train", "validation", "test")):
            return family
        if texts and set(texts) <= set(file.read_text(encoding="utf-8").splitlines()):
            return family
    return None

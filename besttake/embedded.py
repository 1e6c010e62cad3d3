"""Names of what the package ships: tiny models and lists of prompts, by name instead of by path."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "world"


def embedded_model(name: str) -> str:
    """The folder of an embedded model ("tiny-cogvideox", "tiny-wan"); any other name or path is given back as it is."""
    folder = FOLDER / "weights" / name
    return str(folder) if "/" not in name and (folder / "model_index.json").exists() else name


def embedded_prompts(name: str) -> str:
    """The file of an embedded list of prompts ("world-train", "world-validation", "world-test"), or `name` itself."""
    file = FOLDER / "prompts" / f"{name}.txt"
    return str(file) if "/" not in name and file.exists() else name

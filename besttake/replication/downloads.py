"""What a recipe needs from the hub: whether it fits on the disk, that all of it loads, and which revisions it was."""

from __future__ import annotations

import gc
import importlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.file_download import repo_folder_name

from besttake.data.disk_space import format_bytes
from besttake.data.files import quick_hash
from besttake.data.hub import PREFIX
from besttake.data.pairs import read_pairs
from besttake.data.prompts import read_prompts
from besttake.data.real import find_clips
from besttake.models import model_classes, users_family
from besttake.plan.critics import card_of, uncounted_critics
from besttake.rewards import critic_module, critic_names, is_users, load_reward
from besttake.rewards.panel import load_panel
from besttake.runtime.embedded import embedded_family, embedded_model
from besttake.training.setup import load_trained_model

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
"""A hub id."""

UNUSED = ("*.bin", "*.pt", "*.pth", "*.onnx", "*.msgpack", "*.h5", "*.fp16.*", "*.mp4", "*.gif", "*.png", "*.jpg")
"""Files of a pipeline's repository that are not downloaded where there are safetensors."""

READERS: dict[str, Callable[..., Any]] = {
    "prompts_per_step": read_prompts,
    "clips_per_step": find_clips,
    "pairs_per_step": read_pairs,
}
"""What reads the data of an algorithm with this setting."""


def check_data(config: Any, data: str) -> None:
    """ValueError if training data or listed prompts cannot be read; those on the hub are left for `load_once`."""
    for setting, read in READERS.items():
        if hasattr(config, setting) and not data.startswith(PREFIX):
            read(data, skip_bad=getattr(config, "skip_bad", False))
    for listed in (config.validation.prompts, config.evaluation.prompts):
        if listed and not listed.startswith(PREFIX):
            read_prompts(listed)


def check_room(config: Any) -> None:
    """Check that what is to be downloaded fits on the disk of the hub's cache.

    Raises:
        ValueError: it does not, or the hub cannot be reached and has to be.
    """
    folder = Path(constants.HF_HUB_CACHE)
    repository = users_family(config.model)[1]
    missing = {repository: missing_bytes(repository)} if _is_hub_id(repository) else {}
    paths = getattr(getattr(config, "reward", None), "paths", {})
    for critic in uncounted_critics(config):
        if critic not in paths and not revisions(_texts(vars(critic_module(critic)))):
            missing[f"critic {critic}"] = int(card_of(critic).memory * 1e9)
    refuse_small_disk(missing, folder)


def refuse_small_disk(missing: Mapping[str, int], folder: Path) -> None:
    """ValueError if what is missing, in bytes by name, does not fit on the disk of a folder that may not exist yet."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    needed, free = sum(missing.values()), shutil.disk_usage(there).free
    if needed > free:
        listed = ", ".join(f"{name} {format_bytes(size)}" for name, size in missing.items() if size)
        raise ValueError(
            f"{format_bytes(needed)} are to be downloaded ({listed}), but the disk of {folder} has "
            f"{format_bytes(free)} free; set HF_HOME to a folder on a larger disk"
        )


def missing_bytes(repository: str) -> int:
    """Bytes of a pipeline's repository that the hub's cache lacks; ValueError if the hub is needed and not reached."""
    try:
        files = snapshot_download(repository, dry_run=True, ignore_patterns=list(UNUSED))
    except OSError as error:
        if revisions([repository]):
            return 0
        raise ValueError(
            f"the model {repository} is not on this machine, and the hub does not give it ({error}); connect to the "
            "internet, log in if it is gated (hf auth login), or give --model FOLDER"
        ) from error
    return sum(file.file_size or 0 for file in files if file.will_download)


def load_once(config: Any, data: str, device: str) -> None:
    """Load the model, each critic and the data, one after the other, so that what is missing is downloaded.

    Raises:
        ValueError: something cannot be downloaded, or does not load.
    """
    loads: list[Callable[[], object]] = [partial(load_trained_model, config, device)]
    loads += [partial(load_panel, config.reward, device)] if hasattr(config, "reward") else []
    loads += [partial(load_reward, name, device) for name in _other_critics(config)]
    for load in loads:
        load()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    for setting, read in READERS.items():
        if hasattr(config, setting):
            read(data, skip_bad=getattr(config, "skip_bad", False))


def sources(config: Any) -> dict[str, str]:
    """The revision of everything from the hub that a config loads; of a model's own folder, a hash of its content."""
    own, place = users_family(config.model)
    place = embedded_model(place)
    found = {config.model: f"content {quick_hash(place)[:16]}"} if Path(place).is_dir() else {}
    families = [family for family in own or model_classes() if family.serves(place)]
    modules = [importlib.import_module(family.__module__) for family in families]
    critics = [*getattr(getattr(config, "reward", None), "chosen", ()), *_other_critics(config)]
    modules += [critic_module(name) for name in critics if _is_shipped(name)]
    named = [place, *(text for module in modules for text in _texts(vars(module)))]
    named += getattr(getattr(config, "reward", None), "paths", {}).values()
    return found | revisions(named)


def revisions(texts: Iterable[str]) -> dict[str, str]:
    """The commit in the hub's cache of each text that is the id of a model there."""
    found = {}
    for text in texts:
        folder = repo_folder_name(repo_id=text, repo_type="model") if REPOSITORY.fullmatch(text) else ""
        head = Path(constants.HF_HUB_CACHE) / folder / "refs" / "main"
        if folder and head.is_file():
            found[text] = head.read_text().strip()
    return found


def _other_critics(config: Any) -> list[str]:
    """The critics of validation and evaluation."""
    validated = config.validation.critics(embedded_family(str(config.data))) if config.validation.every else ()
    return list(dict.fromkeys((*validated, *config.evaluation.rewards)))


def _is_hub_id(place: str) -> bool:
    return bool(REPOSITORY.fullmatch(place)) and not Path(place).exists()


def _is_shipped(name: str) -> bool:
    return not is_users(name) and name.replace("-", "_").replace(" ", "_") in critic_names()


def _texts(values: Mapping[str, Any]) -> Iterator[str]:
    """The texts among the values of a mapping, and of the mappings in it."""
    for value in values.values():
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict) and not any(name.startswith("__") for name in map(str, value)):
            yield from _texts(value)

"""Export of trained models into the package: a pipeline folder in half precision, with loss curves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from besttake.data.files import normalise_files
from besttake.runtime.embedded import FOLDER
from besttake.world.captions import SPLITS, prompts
from besttake.world.pretrain_denoiser import load_parts


def export(family: str, out: Path) -> Path:
    """Write `weights/<family>`, loadable by `DiffusionPipeline.from_pretrained`, and the lists of prompts."""
    target = FOLDER / "weights" / family
    model = load_parts(family, out, denoiser=True)
    shutil.rmtree(target, ignore_errors=True)
    model.pipeline.to(torch.float16)
    model.pipeline.save_pretrained(target)
    settings = (
        target / "text_encoder" / "config.json"
    )  # transformers loads in the dtype of the config, diffusers in float32
    settings.write_text(settings.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    for part in ("vae", "denoiser"):
        rows = [json.loads(line) for line in (out / family / part / "log.jsonl").read_text().splitlines()]
        (target / f"training-{part}.json").write_text(json.dumps(rows[:: -max(1, len(rows) // 60)][::-1], indent=0))
    normalise_files(target)
    write_prompts()
    return target


def write_prompts(count: int = 512) -> None:
    """Write the lists of prompts `world-train`, `world-validation` and `world-test`."""
    (FOLDER / "prompts").mkdir(exist_ok=True)
    for split in SPLITS:
        lines = prompts(split, count if split == "train" else count // 4)
        (FOLDER / "prompts" / f"world-{split}.txt").write_text("".join(f"{line}\n" for line in lines))

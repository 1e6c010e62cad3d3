"""The commands besides training: sample videos, write clips of the small world, pretrain its models."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
import yaml

from besttake.data.cache import versions
from besttake.data.files import atomic, quick_hash, read_jsonl
from besttake.data.prompts import image_hashes, read_prompts
from besttake.data.video import contact_sheet, read_video, thumbnail, upscale_for, write_video
from besttake.evaluation.before_after import with_adapter
from besttake.models import Quantization, VideoModel, load_model
from besttake.models.policy import weights_hash
from besttake.runtime.configuration import read_yaml, require, to_dict
from besttake.runtime.console import progress
from besttake.runtime.devices import find_device, keep_freed_memory
from besttake.runtime.embedded import CLIPS_MARKER
from besttake.runtime.renamed import rename_files, with_new_keys
from besttake.sampling.rollout import RolloutConfig, generate

SHEET_ROWS = 16
"""Videos on a contact sheet."""


@dataclass(frozen=True)
class GenerateConfig:
    """Sample videos of prompts: writes `NNNNN-K.mp4`, their list `samples.jsonl` and a contact sheet `samples.png`.

    The same command again continues with the remaining prompts.
    """

    prompts: str = "world-train"
    """File of prompts, one per line, or an embedded list."""
    model: str = "tiny-cogvideox"
    """Folder or hub id of a diffusers pipeline, or the name of an embedded one; of a family of your own,
    ./my_family.py:FOLDER."""
    adapter: Path | None = None
    """Folder of a trained adapter: a run's `adapter/`."""
    out: Path = Path("samples")
    """Folder of the videos."""
    n: int = 4
    """Videos per prompt."""
    count: int = 0
    """Number of prompts to use; 0 = all."""
    seed: int = 0
    """Seed of the noise."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the model's weights."""
    quantize: Quantization = "none"
    """Quantization of the denoiser's blocks."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """How videos are sampled."""

    def __post_init__(self):
        require(self.n >= 1, "n", self.n, "1 or more videos per prompt")
        require(self.count >= 0, "count", self.count, "1 or more, or 0 for all prompts")


def generate_samples(config: GenerateConfig) -> Path:
    """Sample and write the missing videos; returns the path of `samples.jsonl`.

    Raises:
        ValueError: the folder has samples of other settings, weights or prompts.
    """
    prompts = read_prompts(config.prompts)
    prompts = prompts[: config.count] if config.count else prompts
    listed, batch = config.out / "samples.jsonl", max(1, config.rollout.batch // config.n)
    model = load_model(config.model, getattr(torch, config.dtype), find_device(config.device), config.quantize)
    model.check_prompts(prompts)
    if config.adapter:
        with_adapter(model, config.adapter)
    policy = f"{config.model}{' + ' + str(config.adapter) if config.adapter else ''}"
    fps = model.fps
    start = _resume(config, prompts, {"weights": weights_hash(model.denoiser), **_fingerprint(model, config.adapter)})
    with listed.open("a") as rows:
        for i in progress(range(start, len(prompts), batch), "sampling"):
            part = prompts[i : i + batch]
            videos = generate(model, part, config.rollout, n=config.n, seed=(config.seed,)).videos.cpu()
            for j, (prompt, videos_of_prompt) in enumerate(zip(part, videos.unflatten(0, (-1, config.n)), strict=True)):
                files = [f"{i + j:05d}-{k}.mp4" for k in range(config.n)]
                for file, video in zip(files, videos_of_prompt, strict=True):
                    write_video(config.out / file, video, fps, upscale=upscale_for(video))
                size = list(videos.shape[-2:])
                row = {"prompt": prompt, "videos": files, "policy": policy, "size": size, "fps": fps}
                row |= {"shown": hashes} if (hashes := image_hashes(prompt)) else {}
                rows.write(json.dumps(row) + "\n")
                rows.flush()
    _contact_sheet(config.out)
    print(f"{len(prompts) * config.n} videos of {len(prompts)} prompts: {listed}")
    return listed


def _fingerprint(model: VideoModel, adapter: Path | None) -> dict[str, str]:
    """Versions and hashes that determine the samples, besides settings, prompts and the denoiser's weights."""
    parts = hashlib.sha256(model.identity(*model.parts.names).encode()).hexdigest()
    return {"parts": parts, "adapter_content": quick_hash(adapter) if adapter else "", **versions()}


def _resume(config: GenerateConfig, prompts: list[str], keys: dict[str, str]) -> int:
    """The number of prompts that an earlier run of the same command finished; an incomplete last line is removed."""
    settings = {key: value for key, value in to_dict(config).items() if key not in ("out", "count", "device")}
    settings |= keys
    rename_files(config.out)
    listed, about = config.out / "samples.jsonl", config.out / "samples.yaml"
    complete, newline, _ = listed.read_text().rpartition("\n") if listed.exists() else ("", "", "")
    rows = [json.loads(line) for line in complete.splitlines()]
    before = read_yaml(about) if rows and about.exists() else {}
    different = sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key)) if rows else []
    different += [] if _same_prompts(prompts, rows) else ["the prompts' texts, first frames or sources"]
    if different:
        raise ValueError(
            f"{config.out} has samples of other settings, weights or prompts (see samples.yaml); different: "
            f"{', '.join(different)}; give another --out"
        )
    with atomic(about) as part:
        part.write_text(yaml.safe_dump(settings, sort_keys=False))
    with atomic(listed) as part:
        part.write_text(complete + newline)
    return len(rows)


def _same_prompts(prompts: list[str], rows: list[dict]) -> bool:
    """Whether the rows match the prompts and their images, in order, up to the shorter length."""
    pairs = zip(rows, prompts, strict=False)
    return all(row["prompt"] == prompt and row.get("shown", {}) == image_hashes(prompt) for row, prompt in pairs)


def _contact_sheet(folder: Path) -> None:
    """`samples.png`: the first videos of the list, one per row."""
    rows = [with_new_keys(row) for _, row in read_jsonl(folder / "samples.jsonl")]
    files = [(folder / file, tuple(row["size"])) for row in rows for file in row["videos"]][:SHEET_ROWS]
    thumbnails = [thumbnail(read_video(file, size=size)) for file, size in files]
    contact_sheet(thumbnails, folder / "samples.png", upscale=upscale_for(thumbnails[0]))


@dataclass(frozen=True)
class ClipsConfig:
    """Write clean clips of the small world as real data: mp4 files and `metadata.csv`."""

    out: Path = Path("runs/world-clips")
    """Folder of the clips."""
    split: Literal["train", "validation", "test"] = "train"
    """Captions: of which of the world's splits."""
    count: int = 384
    """Number of clips."""
    seed: int = 31
    """Seed of the clips."""


def write_clips(config: ClipsConfig) -> Path:
    """Write the clips unless they exist already; returns the folder."""
    from besttake.world.clips import make_clip
    from besttake.world.physics import FPS

    config.out.mkdir(parents=True, exist_ok=True)
    table, marker = config.out / "metadata.csv", config.out / CLIPS_MARKER
    contents = json.dumps({"split": config.split, "count": config.count, "seed": config.seed, "versions": versions()})
    if table.exists() and marker.exists() and marker.read_text() == contents:
        return config.out
    marker.unlink(missing_ok=True)
    with atomic(table) as part, part.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "caption"])
        for i in range(config.count):
            clip = make_clip(config.seed, i, config.split)
            write_video(config.out / f"{i:05d}.mp4", clip.video, FPS, upscale=upscale_for(clip.video))
            rows.writerow([f"{i:05d}.mp4", str(clip.caption)])
    marker.write_text(contents)
    print(f"{config.count} clean clips of the small world: {config.out}")
    return config.out


def real_data(data: str) -> str:
    """The path of a recipe's real clips; those of the embedded "world" are written at the first call."""
    return str(write_clips(ClipsConfig())) if data == "world" else data


@dataclass(frozen=True)
class PretrainConfig:
    """Train the embedded weights, part by part; the same command resumes."""

    part: Literal["vae", "denoiser", "critic-world", "critic-heldout", "export"]
    """What to train; `export` writes the trained parts of a model into the package."""
    family: Literal["tiny-cogvideox", "tiny-wan"] = "tiny-cogvideox"
    """Model whose parts are trained."""
    out: Path = Path("runs/pretrain")
    """Folder of checkpoints and loss curves."""
    threads: int = 2
    """CPU threads."""
    steps: int | None = None
    """Total training steps of the denoiser; default: those of `tiny-cogvideox`."""
    start: Path | None = None
    """Pipeline folder to continue training from, with a new optimizer: `besttake/world/weights/tiny-cogvideox`."""
    compile: bool = False
    """Compile the denoiser: steps take a quarter less time, after a minute of compilation; needs a C++ compiler."""


def pretrain(config: PretrainConfig) -> None:
    """Train one part with its default settings."""
    from besttake.world import export, pretrain_critics, pretrain_denoiser, pretrain_vae

    keep_freed_memory()
    torch.set_num_threads(config.threads)
    if config.part == "vae":
        pretrain_vae.make_vae(pretrain_vae.VAEConfig(config.family, config.out))
    elif config.part == "denoiser":
        training = pretrain_denoiser.DenoiserConfig(config.family, config.out, config.start)
        training = replace(training, steps=config.steps or training.steps, compile=config.compile)
        pretrain_denoiser.train_denoiser(training)
    elif config.part == "export":
        export.export(config.family, config.out)
    elif config.part == "critic-world":
        pretrain_critics.train_world_critic(pretrain_critics.WorldCriticConfig(config.out / config.part))
    else:
        pretrain_critics.train_heldout_critic(pretrain_critics.HeldoutCriticConfig(config.out / config.part))

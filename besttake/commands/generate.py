"""What the commands beside training do: shoot takes, write clips of the world, train its weights."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
import yaml
from torch.nn import functional

from besttake.data.cache import versions
from besttake.data.files import atomic, quick_hash, read_jsonl
from besttake.data.prompts import images_of, read_prompts
from besttake.data.video import contact_sheet, enlargement, read_video, write_video
from besttake.evaluation.before_after import with_adapter
from besttake.models import Quantization, VideoModel, load_model
from besttake.models.policy import weights_hash
from besttake.runtime.configuration import read_yaml, require, to_dict
from besttake.runtime.console import progress
from besttake.runtime.devices import find_device, keep_freed_memory
from besttake.runtime.embedded import WORLD_CLIPS
from besttake.sampling.rollout import RolloutConfig, generate

SHEET = 16
"""Takes on a contact sheet."""


@dataclass(frozen=True)
class GenerateConfig:
    """Shoot takes of prompts: `NNNNN-K.mp4` and `takes.jsonl` in a folder, and the first of them on `takes.png`.

    The same command again goes on with the prompts that are left.
    """

    prompts: str = "world-train"
    """File of prompts, one a line, or an embedded list."""
    model: str = "tiny-cogvideox"
    """Folder or hub id of a diffusers pipeline, or the name of an embedded one."""
    adapter: Path | None = None
    """Folder of what a run has trained: its `adapter/`."""
    out: Path = Path("takes")
    """Folder of the videos."""
    n: int = 4
    """Takes of each prompt."""
    count: int = 0
    """Only the first so many prompts; 0 = all."""
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
        require(self.n >= 1, "n", self.n, "1 take of each prompt, or more")
        require(self.count >= 0, "count", self.count, "1 or more, or 0 for all prompts")


def generate_takes(config: GenerateConfig) -> Path:
    """Shoot, write, and list the takes that are not there yet; the path of `takes.jsonl`.

    Raises:
        ValueError: the folder holds takes of other settings, weights or prompts.
    """
    prompts = read_prompts(config.prompts)
    prompts = prompts[: config.count] if config.count else prompts
    listed, batch = config.out / "takes.jsonl", max(1, config.rollout.batch // config.n)
    model = load_model(config.model, getattr(torch, config.dtype), find_device(config.device), config.quantize)
    model.check_prompts(prompts)
    if config.adapter:
        with_adapter(model, config.adapter)
    policy = f"{config.model}{' + ' + str(config.adapter) if config.adapter else ''}"
    fps = model.fps
    start = _takes_there(config, prompts, {"weights": weights_hash(model.denoiser), **_keys(model, config.adapter)})
    with listed.open("a") as rows:
        for i in progress(range(start, len(prompts), batch), "shooting"):
            part = prompts[i : i + batch]
            videos = generate(model, part, config.rollout, n=config.n, seed=(config.seed,)).videos.cpu()
            for j, (prompt, videos_of_prompt) in enumerate(zip(part, videos.unflatten(0, (-1, config.n)), strict=True)):
                files = [f"{i + j:05d}-{k}.mp4" for k in range(config.n)]
                for file, video in zip(files, videos_of_prompt, strict=True):
                    write_video(config.out / file, video, fps, upscale=enlargement(video))
                size = list(videos.shape[-2:])
                row = {"prompt": prompt, "takes": files, "policy": policy, "size": size, "fps": fps}
                row |= {"shown": hashes} if (hashes := images_of(prompt)) else {}
                rows.write(json.dumps(row) + "\n")
                rows.flush()
    _contact_sheet(config.out)
    print(f"{len(prompts) * config.n} takes of {len(prompts)} prompts: {listed}")
    return listed


def _keys(model: VideoModel, adapter: Path | None) -> dict[str, str]:
    """What decides a take besides settings, prompts and the denoiser's weights."""
    parts = hashlib.sha256(model.identity(*model.parts).encode()).hexdigest()
    return {"parts": parts, "adapter_content": quick_hash(adapter) if adapter else "", **versions()}


def _takes_there(config: GenerateConfig, prompts: list[str], keys: dict[str, str]) -> int:
    """How many prompts an earlier start of the same command has shot; what a kill left half-written is cut off."""
    settings = {key: value for key, value in to_dict(config).items() if key not in ("out", "count", "device")}
    settings |= keys
    listed, about = config.out / "takes.jsonl", config.out / "takes.yaml"
    whole, newline, _ = listed.read_text().rpartition("\n") if listed.exists() else ("", "", "")
    rows = [json.loads(line) for line in whole.splitlines()]
    before = read_yaml(about) if rows and about.exists() else {}
    other = sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key)) if rows else []
    other += [] if _begins(prompts, rows) else ["the prompts' texts, first frames or sources"]
    if other:
        raise ValueError(
            f"{config.out} holds takes of other settings, weights or prompts (see its takes.yaml): what differs is "
            f"{', '.join(other)}; give another --out"
        )
    with atomic(about) as part:
        part.write_text(yaml.safe_dump(settings, sort_keys=False))
    with atomic(listed) as part:
        part.write_text(whole + newline)
    return len(rows)


def _begins(prompts: list[str], rows: list[dict]) -> bool:
    """Whether rows are of the prompts, and of what is shown beside them, in their order, as far as both go."""
    pairs = zip(rows, prompts, strict=False)
    return all(row["prompt"] == prompt and row.get("shown", {}) == images_of(prompt) for row, prompt in pairs)


def _contact_sheet(folder: Path) -> None:
    """`takes.png`: the first takes listed, a row each."""
    rows = [row for _, row in read_jsonl(folder / "takes.jsonl")]
    files = [(folder / file, tuple(row["size"])) for row in rows for file in row["takes"]][:SHEET]
    looks = [_glimpse(read_video(file, size=size)) for file, size in files]
    contact_sheet(looks, folder / "takes.png", upscale=enlargement(looks[0]))


def _glimpse(video: torch.Tensor, frames: int = 16, height: int = 160) -> torch.Tensor:
    """A video `f c h w` as a contact sheet has room for it: at most so many frames, evenly, and so many pixels high."""
    some = video[:: -(-len(video) // frames)].cpu()
    scale = height / some.shape[-2]
    return functional.interpolate(some, scale_factor=scale, mode="area") if scale < 1 else some


@dataclass(frozen=True)
class ClipsConfig:
    """Write clean clips of the world as real data: mp4 files and `metadata.csv`."""

    out: Path = Path("runs/world-clips")
    """Folder of the clips."""
    split: Literal["train", "validation", "test"] = "train"
    """Captions: of which of the world's splits."""
    count: int = 384
    """Number of clips."""
    seed: int = 31
    """Seed of the clips."""


def write_clips(config: ClipsConfig) -> Path:
    """Write the clips, unless they are there; the folder."""
    from besttake.world.clips import make_clip
    from besttake.world.physics import FPS

    config.out.mkdir(parents=True, exist_ok=True)
    table, which = config.out / "metadata.csv", config.out / WORLD_CLIPS
    wanted = json.dumps({"split": config.split, "count": config.count, "seed": config.seed, "versions": versions()})
    if table.exists() and which.exists() and which.read_text() == wanted:
        return config.out
    which.unlink(missing_ok=True)
    with atomic(table) as part, part.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "caption"])
        for i in range(config.count):
            clip = make_clip(config.seed, i, config.split)
            write_video(config.out / f"{i:05d}.mp4", clip.video, FPS, upscale=enlargement(clip.video))
            rows.writerow([f"{i:05d}.mp4", str(clip.caption)])
    which.write_text(wanted)
    print(f"{config.count} clean clips of the world: {config.out}")
    return config.out


def real_data(data: str) -> str:
    """Where a recipe's real clips are; those of the embedded "world" are written when first asked for."""
    return str(write_clips(ClipsConfig())) if data == "world" else data


@dataclass(frozen=True)
class PretrainConfig:
    """Train the embedded weights, part by part; the same command goes on where it stopped."""

    part: Literal["vae", "denoiser", "critic-world", "critic-heldout", "export"]
    """What to train; `export` writes the trained parts of a model into the package."""
    family: Literal["tiny-cogvideox", "tiny-wan"] = "tiny-cogvideox"
    """Model whose parts are trained."""
    out: Path = Path("runs/pretrain")
    """Where state and loss curves are kept."""
    threads: int = 2
    """CPU threads."""
    steps: int | None = None
    """Training steps of the denoiser, all legs together; by default those of `tiny-cogvideox`."""
    start: Path | None = None
    """Pipeline folder to go on training from, with a fresh optimizer: `besttake/world/weights/tiny-cogvideox`."""
    compile: bool = False
    """Compile the denoiser: a quarter off a step, for a minute at the start and a C++ compiler."""


def pretrain(config: PretrainConfig) -> None:
    """Train one part with its default settings."""
    from besttake.world import export, pretrain_critics, pretrain_denoiser, pretrain_vae

    keep_freed_memory()
    torch.set_num_threads(config.threads)
    if config.part == "vae":
        pretrain_vae.make_vae(pretrain_vae.VAEConfig(config.family, config.out))
    elif config.part == "denoiser":
        leg = pretrain_denoiser.DenoiserConfig(config.family, config.out, config.start)
        leg = replace(leg, steps=config.steps or leg.steps, compile=config.compile)
        pretrain_denoiser.train_denoiser(leg)
    elif config.part == "export":
        export.export(config.family, config.out)
    elif config.part == "critic-world":
        pretrain_critics.train_world_critic(pretrain_critics.WorldCriticConfig(config.out / config.part))
    else:
        pretrain_critics.train_heldout_critic(pretrain_critics.HeldoutCriticConfig(config.out / config.part))

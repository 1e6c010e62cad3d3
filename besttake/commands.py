"""What the commands beside training do: shoot takes, score them, write clips of the world, train its weights."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
import yaml
from rich.console import Console
from rich.progress import track
from torch.nn import functional

from besttake.configuration import read_yaml, to_dict
from besttake.data.files import atomic, read_jsonl
from besttake.data.pairs import PreferencePair, write_pairs
from besttake.data.prompts import read_prompts
from besttake.data.video import contact_sheet, enlargement, read_video, write_video
from besttake.devices import find_device, keep_freed_memory
from besttake.embedded import WORLD_CLIPS
from besttake.evaluation.before_after import with_adapter
from besttake.models import Quantization, load_model
from besttake.policy import signature
from besttake.rewards import load_reward
from besttake.rewards.calibrate import Calibration, calibrate, repeats
from besttake.rewards.checks import checked, parse_weights
from besttake.rollout import RolloutConfig, generate

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
    n: int = 4
    """Takes of each prompt."""
    count: int = 0
    """Only the first so many prompts; 0 = all."""
    seed: int = 0
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantize: Quantization = "none"
    """What the weights of the denoiser's blocks are held in instead of `dtype`."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)

    def __post_init__(self):
        if self.n < 1 or self.count < 0:
            raise ValueError(
                f"n is {self.n} and count {self.count}; expected at least 1 take of each, and 0 = all prompts"
            )


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
    fps = config.rollout.rate(model)
    start = _takes_there(config, prompts, signature(model.denoiser))
    with listed.open("a") as rows:
        for i in track(range(start, len(prompts), batch), "shooting", console=Console(stderr=True)):
            part = prompts[i : i + batch]
            videos = generate(model, part, config.rollout, n=config.n, seed=(config.seed,)).videos.cpu()
            for j, (prompt, takes) in enumerate(zip(part, videos.unflatten(0, (-1, config.n)), strict=True)):
                files = [f"{i + j:05d}-{k}.mp4" for k in range(config.n)]
                for file, video in zip(files, takes, strict=True):
                    write_video(config.out / file, video, fps, upscale=enlargement(video))
                size = list(videos.shape[-2:])
                row = {"prompt": prompt, "takes": files, "policy": policy, "size": size, "fps": fps}
                rows.write(json.dumps(row) + "\n")
                rows.flush()
    _contact_sheet(config.out)
    print(f"{len(prompts) * config.n} takes of {len(prompts)} prompts: {listed}")
    return listed


def _takes_there(config: GenerateConfig, prompts: list[str], weights: str) -> int:
    """How many prompts an earlier start of the same command has shot; what a kill left half-written is cut off."""
    settings = {key: value for key, value in to_dict(config).items() if key not in ("out", "count", "device")}
    settings["weights"] = weights
    listed, about = config.out / "takes.jsonl", config.out / "takes.yaml"
    whole, newline, _ = listed.read_text().rpartition("\n") if listed.exists() else ("", "", "")
    rows = [json.loads(line) for line in whole.splitlines()]
    if rows and (not about.exists() or read_yaml(about) != settings or not _begins(prompts, rows)):
        raise ValueError(
            f"{config.out} holds takes of other settings, weights or prompts (see its takes.yaml); give another --out"
        )
    with atomic(about) as part:
        part.write_text(yaml.safe_dump(settings, sort_keys=False))
    with atomic(listed) as part:
        part.write_text(whole + newline)
    return len(rows)


def _begins(prompts: list[str], rows: list[dict]) -> bool:
    """Whether rows are of the prompts, in their order, as far as both go."""
    return all(row["prompt"] == prompt for row, prompt in zip(rows, prompts, strict=False))


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
class ScoreConfig:
    """Score the takes of each prompt; with `--out`, pair the best with the worst."""

    takes: Path
    """The `takes.jsonl` that `besttake generate` wrote."""
    reward: str = "world"
    """A critic's name, a judge's .yaml file, or the URL of a served critic (several with commas between)."""
    path: str | None = None
    """Folder or hub id of its weights; by default those it was published with. Of a judge, the URL of its server."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each dimension that counts; empty = all of them, equally."""
    out: Path | None = None
    """Where to write the preference pairs, a .jsonl."""
    margin: float = 0.0
    """Pairs whose scores differ by no more are dropped."""
    calibrate: int = 0
    """Score every take so many times, each time with other grain, to find the margin below which an order is chance;
    0 = do not."""
    grain: float = 1.0
    """Standard deviation of that grain in grey levels of 255; 0 for a judge that has a temperature."""
    device: str = "auto"

    def __post_init__(self):
        if self.margin < 0:
            raise ValueError(f"margin is {self.margin}; a difference of scores is at least 0")
        if self.calibrate == 1 or self.calibrate < 0 or self.grain < 0:
            raise ValueError(
                f"calibrate is {self.calibrate} and grain {self.grain}; expected 0, or two times or more, and 0 or more"
            )


def calibrate_takes(config: ScoreConfig) -> Calibration:
    """What noise there is in the scores of the takes, and the margin for pairs of as many takes as a prompt has."""
    reward = load_reward(config.reward, find_device(config.device), config.path)
    weights = parse_weights(reward, config.weights)
    scores, most = [], 2
    for _, row in track(_takes(config.takes), "calibrating", console=Console(stderr=True)):
        files, videos = _read_takes(config.takes, row)
        scores.append(
            repeats(
                lambda some, prompts, fps: checked(reward, some, prompts, fps).combine(weights),
                videos,
                [row["prompt"]] * len(files),
                row["fps"],
                config.calibrate,
                config.grain,
            )
        )
        most = max(most, len(files))
    if not scores:
        raise ValueError(f"{config.takes} lists no takes")
    return calibrate(torch.cat(scores, 1), most)


def _takes(path: Path) -> list[tuple[int, dict]]:
    """The rows of a `takes.jsonl`, with their numbers; ValueError if one lacks what `generate` writes."""
    rows = list(read_jsonl(path))
    for number, row in rows:
        if missing := {"prompt", "takes", "size", "policy", "fps"} - row.keys():
            raise ValueError(f"{path}, line {number}: {', '.join(sorted(missing))} missing; is it of `generate`?")
    return rows


def _read_takes(path: Path, row: dict) -> tuple[list[Path], torch.Tensor]:
    files = [path.parent / file for file in row["takes"]]
    return files, torch.stack([read_video(file, size=tuple(row["size"])) for file in files])


def score_takes(config: ScoreConfig) -> dict[str, tuple[float, float, float]]:
    """Score, and write the pairs; mean, lowest and highest score of each dimension."""
    reward = load_reward(config.reward, find_device(config.device), config.path)
    weights = parse_weights(reward, config.weights)
    pairs, values = [], []
    for _, row in track(_takes(config.takes), "scoring", console=Console(stderr=True)):
        files, videos = _read_takes(config.takes, row)
        score = checked(reward, videos, [row["prompt"]] * len(files), row["fps"])
        values.append(score.values)
        total = score.combine(weights)
        best, worst = int(total.argmax()), int(total.argmin())
        margin = float(total[best] - total[worst])
        if margin > config.margin:
            scores = {d: [float(score[d][best]), float(score[d][worst])] for d in score.dimensions}
            pairs.append(
                PreferencePair(row["prompt"], files[best], [files[worst]], margin, "offline", scores, row["policy"], 0)
            )
    if not values:
        raise ValueError(f"{config.takes} lists no takes")
    if config.out:
        write_pairs(config.out, pairs)
        print(f"{len(pairs)} pairs, {len(values) - len(pairs)} dropped as ties: {config.out}")
    table = torch.cat(values)
    columns = zip(reward.dimensions, table.mean(0), table.amin(0), table.amax(0), strict=True)
    return {name: (float(mean), float(low), float(high)) for name, mean, low, high in columns}


@dataclass(frozen=True)
class ClipsConfig:
    """Write clean clips of the world as real data: mp4 files and `metadata.csv`."""

    out: Path = Path("runs/world-clips")
    split: Literal["train", "validation", "test"] = "train"
    count: int = 384
    seed: int = 31


def write_clips(config: ClipsConfig) -> Path:
    """Write the clips, unless they are there; the folder."""
    from besttake.world.clips import make_clip
    from besttake.world.physics import FPS

    config.out.mkdir(parents=True, exist_ok=True)
    table, which = config.out / "metadata.csv", config.out / WORLD_CLIPS
    wanted = json.dumps({"split": config.split, "count": config.count, "seed": config.seed})
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
    """`export` writes the trained parts of a model into the package."""
    family: Literal["tiny-cogvideox", "tiny-wan"] = "tiny-cogvideox"
    out: Path = Path("runs/pretrain")
    """Where state and loss curves are kept."""
    threads: int = 2
    steps: int | None = None
    """Of the denoiser, all legs together; by default those of `tiny-cogvideox`."""
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

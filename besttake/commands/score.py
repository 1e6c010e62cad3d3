"""`besttake score`: critics' scores of videos, and preference pairs made from them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tyro.conf import Positional, UseAppendAction

from besttake.algorithms.pairing import best_pairs
from besttake.data.files import atomic
from besttake.data.pairs import PreferencePair, write_pairs
from besttake.data.samples import Samples, read_folder, read_samples
from besttake.data.video import probe, read_video
from besttake.rewards import load_reward
from besttake.rewards.calibrate import Calibration, calibrate, repeat_scores
from besttake.rewards.checks import parse_weights, score_checked
from besttake.rewards.side_by_side import SideBySide
from besttake.runtime.configuration import require
from besttake.runtime.console import progress
from besttake.runtime.devices import find_device
from besttake.types import Reward, Score, Video

DEFAULT_CRITIC = "world"
"""The critic that is used if none is given."""

BATCH = 32
"""Videos of one size that are scored in one call."""


@dataclass(frozen=True)
class ScoreConfig:
    """Score the videos in folders, or the samples of `besttake generate`; with `--out`, pair the best video of each
    prompt with the worst."""

    folders: Positional[tuple[Path, ...]] = ()
    """Folders of videos to compare."""
    samples: Path | None = None
    """Instead of folders: a `samples.jsonl` written by `besttake generate`."""
    prompts: str | None = None
    """Prompts of the folders' videos: a list, one per line in the order of the videos' names, or a table of path and
    prompt; default: a file found in each folder, or the videos' names."""
    reward: UseAppendAction[tuple[str, ...]] = ()
    """Critic: a name, ./my_critic.py, a folder with its config.json, a judge's .yaml file, or the URL of a served
    critic (several separated by commas); repeat the flag for several critics. Default: `world`."""
    path: str | None = None
    """Folder or hub id of the critic's weights; default: the published ones. For a judge, the URL of its server."""
    weights: dict[str, float] = field(default_factory=dict)
    """Dimension -> weight of the score that ranks pairs, for several critics as `critic/dimension`; empty = all
    dimensions equally."""
    out: Path | None = None
    """Write preference pairs to this .jsonl."""
    scores: Path | None = None
    """Write the scores of every video to this .jsonl."""
    margin: float = 0.0
    """Smallest score difference of a pair; pairs with at most this difference are dropped."""
    calibrate: int = 0
    """Repeats for calibration: score every video so often, each time with new noise, to find the margin below which
    the order of two videos is chance; 0 = no calibration."""
    grain: float = 1.0
    """Standard deviation of that noise in grey levels (of 255); 0 for a judge with a temperature."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps."""

    def __post_init__(self):
        if bool(self.folders) == bool(self.samples):
            raise ValueError("give either folders of videos or --samples FILE")
        if self.prompts and self.samples:
            raise ValueError(
                f"prompts is {self.prompts}, but {self.samples} has its own prompts; leave out one of them"
            )
        if len(set(self.folders)) < len(self.folders):
            raise ValueError(f"folders is {', '.join(map(str, self.folders))}; expected each folder once")
        if len(set(self.reward)) < len(self.reward):
            raise ValueError(f"reward is {', '.join(self.reward)}; expected each critic once")
        if self.path and len(self.reward) > 1:
            raise ValueError(
                f"path is {self.path}, but there are {len(self.reward)} critics; give one critic with path"
            )
        if len(self.reward) > 1 and (self.out or self.calibrate) and not self.weights:
            raise ValueError(
                "weights is empty, but the critics have different scales; weight each dimension, for instance "
                f"--weights '{self.reward[0]}/DIMENSION' 1 '{self.reward[1]}/DIMENSION' 0.5, or use one critic"
            )
        require(self.margin >= 0, "margin", self.margin, "a score difference of 0 or more")
        require(self.calibrate == 0 or self.calibrate >= 2, "calibrate", self.calibrate, "2 or more, or 0")
        require(self.grain >= 0, "grain", self.grain, "0 or more")


@dataclass(frozen=True)
class Summary:
    """Mean, lowest and highest score of a folder's videos in one dimension; `folder` is "" for a samples file."""

    folder: str
    dimension: str
    videos: int
    mean: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class ScoredSamples:
    """The videos of a prompt with their scores, one row per file."""

    samples: Samples
    score: Score

    def rows(self) -> list[dict[str, float]]:
        """Each file's scores by dimension."""
        return [dict(zip(self.score.dimensions, row, strict=True)) for row in self.score.values.tolist()]


def score_videos(config: ScoreConfig) -> list[Summary]:
    """Score the videos, write the requested files, and return a summary for each folder and dimension.

    Raises:
        ValueError: there are no videos, a video's prompt is unknown, a critic fails, or pairs are requested and no
            prompt has two videos.
    """
    samples_of_prompts = find_samples(config)
    if config.out and all(
        len(group) < 2 for group in _comparison_groups(samples_of_prompts, bool(config.folders)).values()
    ):
        raise ValueError("no prompt has two videos to pair; leave out --out, or score more folders")
    reward = load_critics(config)
    weights = parse_weights(reward, config.weights)
    scored = [ScoredSamples(samples, _score(reward, samples)) for samples in progress(samples_of_prompts, "scoring")]
    if config.scores:
        _write_scores(config.scores, scored)
    if config.out:
        _write_pairs(config, scored, weights)
    return _summaries(scored)


def calibrate_videos(config: ScoreConfig) -> Calibration:
    """The noise of the critic's scores of the videos, and the resulting margin for pairs."""
    samples_of_prompts = find_samples(config)
    reward = load_critics(config)
    weights = parse_weights(reward, config.weights)

    def total(videos: Video, prompts: list[str], fps: float) -> Float[Tensor, "b"]:
        return score_checked(reward, videos, prompts, fps).combine(weights)

    scores = [
        repeat_scores(total, videos, [samples.prompt] * len(videos), fps, config.calibrate, config.grain)
        for samples in progress(samples_of_prompts, "calibrating")
        for videos, fps in _read(samples)
    ]
    most = max(len(group) for group in _comparison_groups(samples_of_prompts, bool(config.folders)).values())
    return calibrate(torch.cat(scores, 1), max(2, most))


def find_samples(config: ScoreConfig) -> list[Samples]:
    """The videos to score, by folder and prompt."""
    if config.samples:
        return read_samples(config.samples)
    return [samples for folder in config.folders for samples in read_folder(folder, config.prompts)]


def load_critics(config: ScoreConfig) -> Reward:
    """Load the critic, or several critics as one."""
    names, device = config.reward or (DEFAULT_CRITIC,), find_device(config.device)
    critics = {name: load_reward(name, device, config.path) for name in names}
    return SideBySide(critics) if len(critics) > 1 else critics[names[0]]


def _score(reward: Reward, samples: Samples) -> Score:
    prompts = [samples.prompt] * BATCH
    parts = [score_checked(reward, videos, prompts[: len(videos)], fps).values.cpu() for videos, fps in _read(samples)]
    return Score(torch.cat(parts), reward.dimensions)


def _read(samples: Samples) -> Iterator[tuple[Video, float]]:
    """Yield (videos, fps) of a prompt in order, batching consecutive videos of one shape and rate."""
    batch: list[Tensor] = []
    rate = 0.0
    for file in samples.files:
        video, fps = read_video(file, size=samples.size), samples.fps or probe(file).fps
        if batch and (len(batch) == BATCH or (video.shape, fps) != (batch[0].shape, rate)):
            yield torch.stack(batch), rate
            batch = []
        batch, rate = [*batch, video], fps
    yield torch.stack(batch), rate


def _comparison_groups(samples_of_prompts: Sequence[Samples], by_prompt: bool) -> dict[object, list[tuple[int, int]]]:
    """Groups of videos to compare, as indices (i, j): file j of samples i.

    A group is all videos of one prompt, from any folder; or one line of a samples file.
    """
    groups: dict[object, list[tuple[int, int]]] = {}
    for i, samples in enumerate(samples_of_prompts):
        groups.setdefault(samples.prompt if by_prompt else i, []).extend((i, j) for j in range(len(samples.files)))
    return groups


def _write_pairs(config: ScoreConfig, scored: Sequence[ScoredSamples], weights: dict[str, float]) -> None:
    assert config.out is not None
    totals = [one.score.combine(weights).tolist() for one in scored]
    groups = _comparison_groups([one.samples for one in scored], bool(config.folders))
    pairs = []
    for places in groups.values():
        values = torch.tensor([totals[i][j] for i, j in places], dtype=torch.float64)
        margins, scored_mask = torch.tensor([config.margin], dtype=torch.float64), torch.ones(1, len(places)).bool()
        found = best_pairs(values[None, None], margins, scored_mask)
        for best, worst, margin in zip(found.winner, found.loser, found.margin.tolist(), strict=True):
            best, worst = places[best], places[worst]
            (winner, good), (loser, bad) = ((scored[i], scored[i].rows()[j]) for i, j in (best, worst))
            scores = {dimension: [good[dimension], bad[dimension]] for dimension in good}
            files = winner.samples.files[best[1]], [loser.samples.files[worst[1]]]
            pairs.append(
                PreferencePair(winner.samples.prompt, *files, margin, "offline", scores, winner.samples.policy, 0)
            )
    write_pairs(config.out, pairs)
    print(f"{len(pairs)} pairs, {len(groups) - len(pairs)} dropped as ties: {config.out}")


def _write_scores(path: Path, scored: Sequence[ScoredSamples]) -> None:
    rows = [
        {"video": str(file), "prompt": str(one.samples.prompt), "scores": scores}
        for one in scored
        for file, scores in zip(one.samples.files, one.rows(), strict=True)
    ]
    with atomic(path) as part:
        part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"the scores of {len(rows)} videos: {path}")


def _summaries(scored: Sequence[ScoredSamples]) -> list[Summary]:
    by_folder: dict[str, list[Tensor]] = {}
    for one in scored:
        by_folder.setdefault(one.samples.folder, []).append(one.score.values)
    columns = []
    for folder, values in by_folder.items():
        table = torch.cat(values)
        for dimension, column in zip(scored[0].score.dimensions, table.T, strict=True):
            mean, low, high = (float(number) for number in (column.mean(), column.amin(), column.amax()))
            columns.append(Summary(folder, dimension, len(table), mean, low, high))
    return columns

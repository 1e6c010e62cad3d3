"""`besttake score`: what critics say of videos, and the preference pairs that follow from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tyro.conf import Positional, UseAppendAction

from besttake.data.files import atomic
from besttake.data.pairs import PreferencePair, write_pairs
from besttake.data.samples import Samples, read_folder, read_takes
from besttake.data.video import probe, read_video
from besttake.rewards import load_reward
from besttake.rewards.calibrate import Calibration, calibrate, repeat_scores
from besttake.rewards.checks import parse_weights, score_checked
from besttake.rewards.side_by_side import SideBySide
from besttake.runtime.configuration import require
from besttake.runtime.console import progress
from besttake.runtime.devices import find_device
from besttake.types import Reward, Score, Video

DEFAULT = "world"
"""The critic that is asked where none is named."""

AT_ONCE = 32
"""Videos of one size that are scored together."""


@dataclass(frozen=True)
class ScoreConfig:
    """Score the videos in folders, or the takes that `besttake generate` lists; with `--out`, pair the best take of
    each prompt with the worst."""

    folders: Positional[tuple[Path, ...]] = ()
    """Folders of videos, which are compared with each other."""
    samples: Path | None = None
    """Instead of folders: a `takes.jsonl`, as `besttake generate` writes it."""
    prompts: str | None = None
    """Of the folders' videos: a list, one a line in the order of the videos' names, or a table of path and prompt; by
    default what is found in each folder, or the names themselves."""
    reward: UseAppendAction[tuple[str, ...]] = ()
    """A critic's name, a folder with its config.json, a judge's .yaml file, or the URL of a served critic (several
    with commas between); once for each critic. By default `world`."""
    path: str | None = None
    """Folder or hub id of its weights; by default those it was published with. Of a judge, the URL of its server."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each dimension that counts in a pair, of several critics as `critic/dimension`; empty = all of them,
    equally."""
    out: Path | None = None
    """Where to write the preference pairs, a .jsonl."""
    scores: Path | None = None
    """Where to write the scores of every video, a .jsonl."""
    margin: float = 0.0
    """Pairs whose scores differ by no more are dropped."""
    calibrate: int = 0
    """Score every take so many times, each time with other grain, to find the margin below which an order is chance;
    0 = do not."""
    grain: float = 1.0
    """Standard deviation of that grain in grey levels of 255; 0 for a judge that has a temperature."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps."""

    def __post_init__(self):
        if bool(self.folders) == bool(self.samples):
            raise ValueError("give folders of videos, or --takes FILE; one of the two")
        if self.prompts and self.samples:
            raise ValueError(
                f"prompts is {self.prompts}, and {self.samples} has prompts of its own; leave one of them out"
            )
        if len(set(self.folders)) < len(self.folders):
            raise ValueError(f"folders is {', '.join(map(str, self.folders))}; expected each of them once")
        if len(set(self.reward)) < len(self.reward):
            raise ValueError(f"reward is {', '.join(self.reward)}; expected critics, each of them once")
        if self.path and len(self.reward) > 1:
            raise ValueError(f"path is {self.path}, and there are {len(self.reward)} critics; it is of a single one")
        if len(self.reward) > 1 and (self.out or self.calibrate) and not self.weights:
            raise ValueError(
                "weights is empty; several critics have scales of their own: say what each dimension counts, such as "
                f"--weights '{self.reward[0]}/DIMENSION' 1 '{self.reward[1]}/DIMENSION' 0.5, or pair by one critic"
            )
        require(self.margin >= 0, "margin", self.margin, "a difference of scores, 0 or more")
        require(self.calibrate == 0 or self.calibrate >= 2, "calibrate", self.calibrate, "2 times or more, or 0")
        require(self.grain >= 0, "grain", self.grain, "0 or more")


@dataclass(frozen=True)
class Column:
    """A dimension's mean, lowest and highest score of the videos in a folder; "" for those of a list."""

    folder: str
    dimension: str
    videos: int
    mean: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Scored:
    """The videos of a prompt with their scores: a row a file."""

    samples: Samples
    score: Score

    def rows(self) -> list[dict[str, float]]:
        """Each file's score by dimension."""
        return [dict(zip(self.score.dimensions, row, strict=True)) for row in self.score.values.tolist()]


def score_videos(config: ScoreConfig) -> list[Column]:
    """Score, and write what is asked for; a column for each folder and dimension.

    Raises:
        ValueError: there are no videos, a prompt of one cannot be told, a critic cannot score one, or pairs are asked
            for and no prompt has two videos.
    """
    found = find_samples(config)
    if config.out and all(len(group) < 2 for group in _groups(found, bool(config.folders)).values()):
        raise ValueError("no prompt has two videos, to be made a pair; leave out --out, or score more folders")
    reward = load_critics(config)
    weights = parse_weights(reward, config.weights)
    scored = [Scored(samples, _score(reward, samples)) for samples in progress(found, "scoring")]
    if config.scores:
        _write_scores(config.scores, scored)
    if config.out:
        _write_pairs(config, scored, weights)
    return _columns(scored)


def calibrate_videos(config: ScoreConfig) -> Calibration:
    """What noise there is in the scores of the videos, and the margin for pairs of as many as a prompt has."""
    found = find_samples(config)
    reward = load_critics(config)
    weights = parse_weights(reward, config.weights)

    def total(videos: Video, prompts: list[str], fps: float) -> Float[Tensor, "b"]:
        return score_checked(reward, videos, prompts, fps).combine(weights)

    scores = [
        repeat_scores(total, videos, [samples.prompt] * len(videos), fps, config.calibrate, config.grain)
        for samples in progress(found, "calibrating")
        for videos, fps in _read(samples)
    ]
    most = max(len(group) for group in _groups(found, bool(config.folders)).values())
    return calibrate(torch.cat(scores, 1), max(2, most))


def find_samples(config: ScoreConfig) -> list[Samples]:
    """The videos that are to be scored, by folder and prompt."""
    if config.samples:
        return read_takes(config.samples)
    return [samples for folder in config.folders for samples in read_folder(folder, config.prompts)]


def load_critics(config: ScoreConfig) -> Reward:
    """The critic, or several as one."""
    names, device = config.reward or (DEFAULT,), find_device(config.device)
    critics = {name: load_reward(name, device, config.path) for name in names}
    return SideBySide(critics) if len(critics) > 1 else critics[names[0]]


def _score(reward: Reward, samples: Samples) -> Score:
    prompts = [samples.prompt] * AT_ONCE
    parts = [score_checked(reward, videos, prompts[: len(videos)], fps).values.cpu() for videos, fps in _read(samples)]
    return Score(torch.cat(parts), reward.dimensions)


def _read(samples: Samples) -> Iterator[tuple[Video, float]]:
    """The videos of a prompt in their order, neighbours of one shape and rate together, and that rate."""
    waiting: list[Tensor] = []
    rate = 0.0
    for file in samples.files:
        video, fps = read_video(file, size=samples.size), samples.fps or probe(file).fps
        if waiting and (len(waiting) == AT_ONCE or (video.shape, fps) != (waiting[0].shape, rate)):
            yield torch.stack(waiting), rate
            waiting = []
        waiting, rate = [*waiting, video], fps
    yield torch.stack(waiting), rate


def _groups(found: Sequence[Samples], by_prompt: bool) -> dict[object, list[tuple[int, int]]]:
    """Places (of the samples, of the file in them) of the videos that are compared with each other.

    Those of one prompt are, from whatever folder; in a list, those of one line.
    """
    groups: dict[object, list[tuple[int, int]]] = {}
    for i, samples in enumerate(found):
        groups.setdefault(samples.prompt if by_prompt else i, []).extend((i, j) for j in range(len(samples.files)))
    return groups


def _write_pairs(config: ScoreConfig, scored: Sequence[Scored], weights: dict[str, float]) -> None:
    assert config.out is not None
    totals = [one.score.combine(weights).tolist() for one in scored]
    groups = _groups([one.samples for one in scored], bool(config.folders))
    pairs = []
    for places in groups.values():
        best = max(places, key=lambda place: totals[place[0]][place[1]])
        worst = min(places, key=lambda place: totals[place[0]][place[1]])
        margin = totals[best[0]][best[1]] - totals[worst[0]][worst[1]]
        if margin > config.margin:
            (winner, good), (loser, bad) = ((scored[i], scored[i].rows()[j]) for i, j in (best, worst))
            scores = {dimension: [good[dimension], bad[dimension]] for dimension in good}
            files = winner.samples.files[best[1]], [loser.samples.files[worst[1]]]
            pairs.append(
                PreferencePair(winner.samples.prompt, *files, margin, "offline", scores, winner.samples.policy, 0)
            )
    write_pairs(config.out, pairs)
    print(f"{len(pairs)} pairs, {len(groups) - len(pairs)} dropped as ties: {config.out}")


def _write_scores(path: Path, scored: Sequence[Scored]) -> None:
    rows = [
        {"video": str(file), "prompt": str(one.samples.prompt), "scores": scores}
        for one in scored
        for file, scores in zip(one.samples.files, one.rows(), strict=True)
    ]
    with atomic(path) as part:
        part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"the scores of {len(rows)} videos: {path}")


def _columns(scored: Sequence[Scored]) -> list[Column]:
    by_folder: dict[str, list[Tensor]] = {}
    for one in scored:
        by_folder.setdefault(one.samples.folder, []).append(one.score.values)
    columns = []
    for folder, values in by_folder.items():
        table = torch.cat(values)
        for dimension, column in zip(scored[0].score.dimensions, table.T, strict=True):
            mean, low, high = (float(number) for number in (column.mean(), column.amin(), column.amax()))
            columns.append(Column(folder, dimension, len(table), mean, low, high))
    return columns

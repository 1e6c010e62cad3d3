"""Agreement of critics with human votes: a comparison of critics on a benchmark, like OnlineVPO's Table 2.

Scores are cached: every critic scores every file once, and the same command again resumes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tyro.conf import UseAppendAction

from besttake.data.cache import versions
from besttake.data.faults import read_each
from besttake.data.files import atomic, content_hash
from besttake.data.video import probe, read_video
from besttake.data.votes import Vote, read_votes
from besttake.evaluation import ranking
from besttake.evaluation.ranking import Interval, Statistic
from besttake.rewards import load_reward
from besttake.rewards.cache import identity
from besttake.rewards.checks import parse_weights, score_checked
from besttake.runtime.console import progress
from besttake.runtime.devices import find_device
from besttake.types import Reward

DEFAULT_CRITIC = "world"
"""The critic that is used if none is given."""

CHANCE = "chance"
"""Name of the row for an uninformative critic."""

Scores = dict[str, float]
"""A critic's scores of a video, by dimension."""


@dataclass(frozen=True)
class AgreementConfig:
    """Compare critics with human votes: a table and a plot of how often each finds the preferred video.

    The same command again scores only the remaining files. A critic with new weights is scored anew.
    """

    benchmark: Path
    """Votes file: a .jsonl, a VideoAlign table (.csv), or VideoDPO's pair.json; see `besttake/data/votes.py`."""
    reward: UseAppendAction[tuple[str, ...]] = ()
    """Critic: a name, ./my_critic.py, a folder with its config.json, or a judge's .yaml file; repeat the flag. Default:
    `world`."""
    weights: dict[str, float] = field(default_factory=dict)
    """Dimension -> weight, for critics with several dimensions; empty = all dimensions equally."""
    question: str = ""
    """Column of a VideoAlign table: VQ, MQ, TA or Overall."""
    out: Path = Path("agreement")
    """Folder for the scores, the table and the plot."""
    n_resamples: int = 1000
    """Number of bootstrap samples."""
    seed: int = 0
    """Seed of the bootstrap."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps."""

    def __post_init__(self):
        if len(set(self.reward)) < len(self.reward):
            raise ValueError(f"reward is {', '.join(self.reward)}; expected each critic once")
        if self.n_resamples < 1:
            raise ValueError(f"n_resamples is {self.n_resamples}; expected 1 or more, usually 1000")


@dataclass(frozen=True)
class ScoredVote:
    """A vote with a critic's scores of its candidates (higher is better); `best`: indices of the preferred ones."""

    prompt: str
    scores: Sequence[float]
    best: tuple[int, ...]


@dataclass(frozen=True)
class CriticAgreement:
    """Agreement of one critic with the votes.

    Attributes:
        figures: name -> value with 95 % confidence interval: "recall@1", "MRR", "pairwise accuracy", ...
        against_best: difference of the leading figure to the best critic's (negative = lower), on the same bootstrap
            samples; None for the best critic itself, and for chance.
    """

    critic: str
    figures: dict[str, Interval]
    against_best: Interval | None = None


def measure_agreement(config: AgreementConfig) -> list[CriticAgreement]:
    """Read the votes, score the files that are not cached, and compare; the best critic first, chance last.

    A critic with several dimensions has one row for their weighted sum and one for each dimension.

    Raises:
        ValueError: the votes cannot be read, a critic is unknown, or it cannot score a file.
    """
    votes = read_votes(config.benchmark, config.question)
    device = find_device(config.device)
    scored_votes: dict[str, list[ScoredVote]] = {}
    for name in config.reward or (DEFAULT_CRITIC,):
        reward = load_reward(name, device)
        has_dimensions = len(reward.dimensions) > 1
        weights = parse_weights(reward, config.weights if has_dimensions else {})
        scores_of_votes = score_benchmark(votes, reward, name, config.out / "scores.jsonl")
        scored_votes[name] = [
            _scored_vote(vote, scores, weights) for vote, scores in zip(votes, scores_of_votes, strict=True)
        ]
        for dimension in reward.dimensions if has_dimensions else ():
            single = {dimension: 1.0}
            scored_votes[f"{name}, {dimension}"] = [
                _scored_vote(*row, single) for row in zip(votes, scores_of_votes, strict=True)
            ]
        del reward  # frees memory for the next one
    return compare(scored_votes, config.n_resamples, config.seed)


def _scored_vote(vote: Vote, scores: Sequence[Scores], weights: Mapping[str, float]) -> ScoredVote:
    total = [sum(weight * score[dimension] for dimension, weight in weights.items()) for score in scores]
    return ScoredVote(vote.prompt, total, vote.best)


def score_benchmark(votes: Sequence[Vote], reward: Reward, name: str, cache_file: Path) -> list[list[Scores]]:
    """A critic's scores of the candidates of every vote; missing ones are computed and appended to `cache_file`.

    Scores are keyed by the critic's name and identity, the file's content, the size and the prompt.

    Raises:
        ValueError: lists all files that cannot be read or scored, after the others' scores are stored.
    """
    known = _read_cache(cache_file)
    critic_hash = hashlib.sha256(json.dumps([identity(reward), versions()], sort_keys=True).encode()).hexdigest()[:16]
    files = {
        video_file: content_hash(video_file) if video_file.is_file() else ""
        for video_file in {video_file for vote in votes for video_file in vote.candidates}
    }
    keys = [
        [json.dumps([name, critic_hash, files[video_file], vote.size, vote.prompt]) for video_file in vote.candidates]
        for vote in votes
    ]
    missing = {
        key: (vote, video_file)
        for vote, row in zip(votes, keys, strict=True)
        for video_file, key in zip(vote.candidates, row, strict=True)
        if key not in known
    }
    with cache_file.open("a", encoding="utf-8") as file:

        def score(item: tuple[str, tuple[Vote, Path]]) -> None:
            known[item[0]] = _score(reward, *item[1])
            file.write(json.dumps({"key": item[0], "scores": known[item[0]]}) + "\n")
            file.flush()

        read_each(progress(missing.items(), f"{name} scores"), score, "videos")
    return [[known[key] for key in row] for row in keys]


def _score(reward: Reward, vote: Vote, video_file: Path) -> Scores:
    video = read_video(video_file, size=vote.size)
    try:
        with torch.no_grad():
            score = score_checked(reward, video[None], [vote.prompt], probe(video_file).fps)
    except ValueError as error:
        raise ValueError(f"{video_file}: {error}") from error
    return {dimension: float(score[dimension][0]) for dimension in reward.dimensions}


def _read_cache(cache_file: Path) -> dict[str, Scores]:
    """The scores of earlier runs; an incomplete last line is removed."""
    complete, newline, _ = (
        cache_file.read_text(encoding="utf-8").rpartition("\n") if cache_file.exists() else ("", "", "")
    )
    with atomic(cache_file) as part:
        part.write_text(complete + newline, encoding="utf-8")
    try:
        rows = [json.loads(line) for line in complete.splitlines()]
        return {row["key"]: dict(row["scores"]) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{cache_file} has no scores ({error!r}); remove it, or give another --out") from error


def compare(
    scored_votes: Mapping[str, Sequence[ScoredVote]], n_resamples: int = 1000, seed: int = 0
) -> list[CriticAgreement]:
    """Compare critics on the same votes: sorted by the leading figure, chance last.

    The leading figure is recall@1 for groups of three or more candidates (with recall@3 and MRR), and the pairwise
    accuracy for pairs. Votes in which all candidates are best count only for figures with ties.
    """
    first = next(iter(scored_votes.values()))
    prompts = list(dict.fromkeys(vote.prompt for vote in first))
    known = {name: statistics(votes, prompts) for name, votes in scored_votes.items()}
    leading = next(iter(statistics(first, prompts)))
    rows = {name: _intervals(figures, len(prompts), n_resamples, seed) for name, figures in known.items()}
    order = sorted(rows, key=lambda name: -rows[name][leading].value)
    best = known[order[0]][leading]

    def against_best(name: str) -> Interval | None:
        if name == order[0]:
            return None
        return ranking.paired_bootstrap(known[name][leading], best, len(prompts), n_resamples, seed)

    return [
        *(CriticAgreement(name, rows[name], against_best(name)) for name in order),
        CriticAgreement(CHANCE, _chance_figures(first, prompts)),
    ]


def _intervals(figures: dict[str, Statistic], n: int, n_resamples: int, seed: int) -> dict[str, Interval]:
    return {name: ranking.bootstrap(statistic, n, n_resamples, seed) for name, statistic in figures.items()}


def statistics(scored_votes: Sequence[ScoredVote], prompts: Sequence[str]) -> dict[str, Statistic]:
    """Each figure as a function of the prompts' bootstrap weights."""
    decisive = [vote for vote in scored_votes if len(vote.best) < len(vote.scores)]
    largest = max((len(vote.scores) for vote in decisive), default=2)
    figures: dict[str, Statistic] = {}
    if largest > 2:
        for k in (1, 3)[: 1 + (largest > 3)]:
            values = [ranking.recall(vote.scores, vote.best, k) for vote in decisive]
            figures[f"recall@{k}"] = _mean(values, decisive, prompts)
        figures["MRR"] = _mean([ranking.reciprocal_rank(b.scores, b.best) for b in decisive], decisive, prompts)
        figures["Kendall tau-b"] = _mean(
            [ranking.kendall_tau_b(b.scores, relevance(b)) for b in decisive], decisive, prompts
        )
    pairs, prompt_index = _pairs(scored_votes, prompts)
    figures["pairwise accuracy"] = lambda weights: ranking.accuracy(pairs, weights[prompt_index])
    if (pairs[:, 0] == 0).any():
        figures["accuracy with ties"] = lambda weights: ranking.accuracy_with_ties(pairs, weights[prompt_index])[0]
    return figures


def relevance(vote: ScoredVote) -> list[float]:
    """1 for the preferred candidates, 0 for the others. With few preferred ones of many, tau-b cannot reach 1."""
    return [float(index in vote.best) for index in range(len(vote.scores))]


def _mean(values: Sequence[float], votes: Sequence[ScoredVote], prompts: Sequence[str]) -> Statistic:
    """The mean over votes, as a function of the prompts' bootstrap weights."""
    place, sums, counts = {p: i for i, p in enumerate(prompts)}, np.zeros(len(prompts)), np.zeros(len(prompts))
    for value, vote in zip(values, votes, strict=True):
        sums[place[vote.prompt]] += value
        counts[place[vote.prompt]] += 1
    return ranking.ratio(sums, counts)


def _pairs(scored_votes: Sequence[ScoredVote], prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """All compared pairs (p, 2), and the prompt index of each pair (p,)."""
    place = {prompt: i for i, prompt in enumerate(prompts)}
    parts = [ranking.compared_pairs(vote.scores, vote.best) for vote in scored_votes]
    prompt_index = [np.full(len(part), place[vote.prompt]) for part, vote in zip(parts, scored_votes, strict=True)]
    return np.concatenate(parts), np.concatenate(prompt_index)


def _chance_figures(scored_votes: Sequence[ScoredVote], prompts: Sequence[str]) -> dict[str, Interval]:
    """Chance level of each figure, except the accuracy with ties, for which it is not defined."""
    constant = [ScoredVote(vote.prompt, [0.0] * len(vote.scores), vote.best) for vote in scored_votes]
    known = {name: statistic(np.ones(len(prompts))) for name, statistic in statistics(constant, prompts).items()}
    known |= {"pairwise accuracy": 0.5}
    known.pop("accuracy with ties", None)
    return {name: Interval(value, value, value) for name, value in known.items()}


def markdown(rows: Sequence[CriticAgreement]) -> str:
    """A Markdown table: figures with 95 % intervals, and the difference of the leading one to the best critic's."""
    columns = list(rows[0].figures)
    head = ["critic", *columns, f"{columns[0]}, against the best"]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for row in rows:
        cells = [_cell(row.figures.get(column)) for column in columns]
        lines.append(f"| {row.critic} | {' | '.join(cells)} | {_cell(row.against_best, sign='+')} |")
    return "\n".join(lines) + "\n"


def _cell(interval: Interval | None, sign: str = "") -> str:
    if interval is None or not np.isfinite(interval.value):
        return ""
    value, low, high = (f"{number:{sign}.2f}" for number in (interval.value, interval.low, interval.high))
    return value if interval.low == interval.high else f"{value} ({low} to {high})"

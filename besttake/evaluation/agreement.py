"""Does a critic rank like people? Critics side by side on a benchmark of human votes, as in OnlineVPO's Table 2.

Every file is scored once by every critic, and the scores are kept: the same command again goes on where it stopped.
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

DEFAULT = "world"
"""The critic that is asked where none is named."""

CHANCE = "chance"
"""The row of a critic that says nothing."""

Scores = dict[str, float]
"""What a critic says of a take, by dimension."""


@dataclass(frozen=True)
class AgreementConfig:
    """Compare critics with what people chose: a table of who finds their best take, and a plot of it.

    The same command again goes on with the files that are left. A critic that was trained again since is another one.
    """

    benchmark: Path
    """Votes: a .jsonl, a VideoAlign table (.csv), or VideoDPO's pair.json; see `besttake/data/votes.py`."""
    reward: UseAppendAction[tuple[str, ...]] = ()
    """A critic's name, a folder with its config.json, or a judge's .yaml file; once for each. By default `world`."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each dimension that counts, of critics that have several; empty = all of them, equally."""
    question: str = ""
    """Which column of a VideoAlign table: VQ, MQ, TA or Overall."""
    out: Path = Path("agreement")
    """Folder of the scores, the table and the plot."""
    draws: int = 1000
    """Resamplings of the bootstrap."""
    seed: int = 0
    """Seed of the bootstrap."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps."""

    def __post_init__(self):
        if len(set(self.reward)) < len(self.reward):
            raise ValueError(f"reward is {', '.join(self.reward)}; expected critics, each of them once")
        if self.draws < 1:
            raise ValueError(f"draws is {self.draws}; the bootstrap needs one or more, 1000 are usual")


@dataclass(frozen=True)
class Judged:
    """A ballot beside a critic's scores of its takes: higher is better, `best` are the indices people chose."""

    prompt: str
    scores: Sequence[float]
    best: tuple[int, ...]


@dataclass(frozen=True)
class Agreement:
    """How well one critic agrees with people.

    Attributes:
        figures: name -> value with its 95 % interval: "recall@1", "MRR", "pairwise accuracy", ...
        against_best: how much lower (below 0) the leading figure is than the best critic's, on the same draws of
            prompts; None for the best critic itself, and for chance.
    """

    critic: str
    figures: dict[str, Interval]
    against_best: Interval | None = None


def measure_agreement(config: AgreementConfig) -> list[Agreement]:
    """Read the votes, score what is not scored yet, compare; the best critic first, chance last.

    A critic of several dimensions is there as a whole, weighted, and by each of its dimensions.

    Raises:
        ValueError: the votes cannot be read, there is no such critic, or it cannot score a file.
    """
    ballots = read_votes(config.benchmark, config.question)
    device = find_device(config.device)
    judged: dict[str, list[Judged]] = {}
    for name in config.reward or (DEFAULT,):
        reward = load_reward(name, device)
        several = len(reward.dimensions) > 1
        weights = parse_weights(reward, config.weights if several else {})
        said = score_benchmark(ballots, reward, name, config.out / "scores.jsonl")
        judged[name] = [_judged(ballot, scores, weights) for ballot, scores in zip(ballots, said, strict=True)]
        for dimension in reward.dimensions if several else ():
            alone = {dimension: 1.0}
            judged[f"{name}, {dimension}"] = [_judged(*row, alone) for row in zip(ballots, said, strict=True)]
        del reward  # the next one may need its memory
    return compare(judged, config.draws, config.seed)


def _judged(ballot: Vote, scores: Sequence[Scores], weights: Mapping[str, float]) -> Judged:
    total = [sum(weight * score[dimension] for dimension, weight in weights.items()) for score in scores]
    return Judged(ballot.prompt, total, ballot.best)


def score_benchmark(ballots: Sequence[Vote], reward: Reward, name: str, kept: Path) -> list[list[Scores]]:
    """A critic's scores of the takes of every ballot; those that `kept` (a .jsonl) lacks are added to it one by one.

    A score holds for a critic's name and what decides its scores, a file's content, the size it is looked at, and a
    prompt.

    Raises:
        ValueError: naming all takes that cannot be read or scored, once the others' scores are kept.
    """
    known = _read_kept(kept)
    who = hashlib.sha256(json.dumps([identity(reward), versions()], sort_keys=True).encode()).hexdigest()[:16]
    files = {
        take: content_hash(take) if take.is_file() else ""
        for take in {take for ballot in ballots for take in ballot.candidates}
    }
    keys = [
        [json.dumps([name, who, files[take], ballot.size, ballot.prompt]) for take in ballot.candidates]
        for ballot in ballots
    ]
    todo = {
        key: (ballot, take)
        for ballot, row in zip(ballots, keys, strict=True)
        for take, key in zip(ballot.candidates, row, strict=True)
        if key not in known
    }
    with kept.open("a", encoding="utf-8") as file:

        def score(item: tuple[str, tuple[Vote, Path]]) -> None:
            known[item[0]] = _score(reward, *item[1])
            file.write(json.dumps({"key": item[0], "scores": known[item[0]]}) + "\n")
            file.flush()

        read_each(progress(todo.items(), f"{name} scores"), score, "takes")
    return [[known[key] for key in row] for row in keys]


def _score(reward: Reward, ballot: Vote, take: Path) -> Scores:
    video = read_video(take, size=ballot.size)
    try:
        with torch.no_grad():
            score = score_checked(reward, video[None], [ballot.prompt], probe(take).fps)
    except ValueError as error:
        raise ValueError(f"{take}: {error}") from error
    return {dimension: float(score[dimension][0]) for dimension in reward.dimensions}


def _read_kept(kept: Path) -> dict[str, Scores]:
    """What an earlier start has scored; a line that a kill left half-written is cut off."""
    whole, newline, _ = kept.read_text(encoding="utf-8").rpartition("\n") if kept.exists() else ("", "", "")
    with atomic(kept) as part:
        part.write_text(whole + newline, encoding="utf-8")
    try:
        rows = [json.loads(line) for line in whole.splitlines()]
        return {row["key"]: dict(row["scores"]) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{kept} holds no scores ({error!r}); remove it, or give another --out") from error


def compare(judged: Mapping[str, Sequence[Judged]], draws: int = 1000, seed: int = 0) -> list[Agreement]:
    """Critics, each with the same ballots, side by side: the best by the leading figure first, chance last.

    Groups of three takes or more are led by recall@1, and have recall@3 and the MRR; pairs by the pairwise accuracy.
    Ballots on which all takes are best count only where ties do.
    """
    first = next(iter(judged.values()))
    prompts = list(dict.fromkeys(ballot.prompt for ballot in first))
    known = {name: statistics(ballots, prompts) for name, ballots in judged.items()}
    leading = next(iter(statistics(first, prompts)))
    rows = {name: _intervals(figures, len(prompts), draws, seed) for name, figures in known.items()}
    order = sorted(rows, key=lambda name: -rows[name][leading].value)
    best = known[order[0]][leading]

    def against_best(name: str) -> Interval | None:
        if name == order[0]:
            return None
        return ranking.paired_bootstrap(known[name][leading], best, len(prompts), draws, seed)

    return [
        *(Agreement(name, rows[name], against_best(name)) for name in order),
        Agreement(CHANCE, _chance(first, prompts)),
    ]


def _intervals(figures: dict[str, Statistic], n: int, draws: int, seed: int) -> dict[str, Interval]:
    return {name: ranking.bootstrap(statistic, n, draws, seed) for name, statistic in figures.items()}


def statistics(judged: Sequence[Judged], prompts: Sequence[str]) -> dict[str, Statistic]:
    """Each figure as a function of how often every prompt counts."""
    asked = [ballot for ballot in judged if len(ballot.best) < len(ballot.scores)]
    largest = max((len(ballot.scores) for ballot in asked), default=2)
    figures: dict[str, Statistic] = {}
    if largest > 2:
        for k in (1, 3)[: 1 + (largest > 3)]:
            values = [ranking.recall(ballot.scores, ballot.best, k) for ballot in asked]
            figures[f"recall@{k}"] = _mean(values, asked, prompts)
        figures["MRR"] = _mean([ranking.reciprocal_rank(b.scores, b.best) for b in asked], asked, prompts)
        figures["Kendall tau-b"] = _mean([ranking.kendall_tau_b(b.scores, relevance(b)) for b in asked], asked, prompts)
    pairs, where = _pairs(judged, prompts)
    figures["pairwise accuracy"] = lambda weights: ranking.accuracy(pairs, weights[where])
    if (pairs[:, 0] == 0).any():
        figures["accuracy with ties"] = lambda weights: ranking.accuracy_with_ties(pairs, weights[where])[0]
    return figures


def relevance(ballot: Judged) -> list[float]:
    """1 for the takes that people chose, 0 for the others. With few chosen of many, tau-b cannot reach 1."""
    return [float(take in ballot.best) for take in range(len(ballot.scores))]


def _mean(values: Sequence[float], ballots: Sequence[Judged], prompts: Sequence[str]) -> Statistic:
    """The mean over ballots, as a function of how often each prompt counts."""
    place, sums, counts = {p: i for i, p in enumerate(prompts)}, np.zeros(len(prompts)), np.zeros(len(prompts))
    for value, ballot in zip(values, ballots, strict=True):
        sums[place[ballot.prompt]] += value
        counts[place[ballot.prompt]] += 1
    return ranking.ratio(sums, counts)


def _pairs(judged: Sequence[Judged], prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """All that people compared, (p, 2), and the prompt of each pair, (p,)."""
    place = {prompt: i for i, prompt in enumerate(prompts)}
    parts = [ranking.comparisons(ballot.scores, ballot.best) for ballot in judged]
    where = [np.full(len(part), place[ballot.prompt]) for part, ballot in zip(parts, judged, strict=True)]
    return np.concatenate(parts), np.concatenate(where)


def _chance(judged: Sequence[Judged], prompts: Sequence[str]) -> dict[str, Interval]:
    """What a coin would get; of the accuracy with ties nothing is said: it would depend on the coin's own."""
    silent = [Judged(ballot.prompt, [0.0] * len(ballot.scores), ballot.best) for ballot in judged]
    known = {name: statistic(np.ones(len(prompts))) for name, statistic in statistics(silent, prompts).items()}
    known |= {"pairwise accuracy": 0.5}
    known.pop("accuracy with ties", None)
    return {name: Interval(value, value, value) for name, value in known.items()}


def markdown(rows: Sequence[Agreement]) -> str:
    """The table: figures with their 95 % intervals, and how far each critic's leading one is from the best critic's."""
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

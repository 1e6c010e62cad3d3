"""Image critics against video critics: OnlineVPO's Table 2, on clips with known flaws.

    python benchmarks/critic_agreement.py            # 100 test captions x 13 candidates; five minutes on one core

In the paper, people choose the best of 8 videos of about 100 prompts, and critics have to find it. Here each prompt has
one clean candidate and one with each flaw of random severity, and the clean one is best. Every candidate has its own
track, and all are slightly blurred and noisy, like after an autoencoder. There are three sorts of flaws:
    temporal: single frames look clean (except for brightness with flicker);
    spatial: visible in single frames;
    both: a body that loses its shape or colour, or disappears, over time.

Image critics score single frames and average over them. There are two:
    stills: the world critic's visual quality of still clips, each a repeated frame (8 of each candidate);
    frames: a small network trained here on single frames of training captions, with the same kind of labels as the
        world critic: which of two frames of a prompt has more severe spatial flaws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from besttake.evaluation.agreement import CHANCE, CriticAgreement, ScoredVote, compare, markdown
from besttake.evaluation.ranking import kendall_tau_b
from besttake.report.agreement import dots
from besttake.rewards import load_reward
from besttake.world.captions import sample_caption
from besttake.world.film import make_film, render
from besttake.world.flaws import FLAWS
from besttake.world.pretrain_critics import codec_like, ranking_loss, soften

SORTS = {
    "temporal": ("flicker", "jitter", "teleport", "freeze"),
    "spatial": ("blur", "noise", "tint", "mesh"),
    "both": ("melt", "warp", "vanish", "recolour"),
}
KINDS = tuple(flaw for flaws in SORTS.values() for flaw in flaws)
SPATIAL_FLAWS = ("blur", "noise", "tint", "mesh", "glare", "melt", "warp")
"""Flaws that the image critic is trained on."""

SOFTNESS, GRAIN = 0.4, 0.02
"""Blur in pixels and noise in [-1, 1] of all candidates; the embedded critics were trained with up to 0.6 and 0.03."""

CANDIDATES, FRAMES_PER_CANDIDATE = 8, 4
"""Training candidates per prompt, and frames of each."""

ANALYTIC = ("motion-smoothness", "temporal-flicker", "dynamic-degree")
IMAGES = ("stills (image)", "frames (image)")

LEGEND = """- `world`: the embedded video critic, all five dimensions equally, and two of them alone. It learned from
  films with such flaws, of other captions.
- `heldout`, and the analytic ones: video critics that never saw a flaw; the held-out one learned from clean clips.
- `stills (image)`: the world critic's own visual quality of single frames, each repeated as a clip that stands
  still; the mean over 8 frames of a candidate.
- `frames (image)`: a small network trained for this table, on single frames of training captions, to tell which
  is spoilt more by what a frame shows (blur, noise, tint, mesh, glare, melt, warp); the mean over all frames.

Flawed candidates tie in what is best, so Kendall's tau-b is at most 0.39 of thirteen candidates, and 0.63 of five.
"""

Critic = Callable[[Tensor, list[str]], Tensor]
"""Videos `b f c h w` and prompts to scores (b,)."""


@dataclass(frozen=True)
class CriticAgreementConfig:
    """Number of prompts, training of the image critic, and output."""

    prompts: int = 100
    severity: tuple[float, float] = (0.2, 1.0)
    steps: int = 600
    """Training steps of the image critic, with 16 clips each."""
    n_resamples: int = 2000
    """Number of bootstrap samples."""
    seed: int = 61
    out: Path = Path("docs/critics_table.md")


@dataclass(frozen=True)
class Group:
    """Candidates of a prompt, `n f c h w`: the clean one, then one with each flaw of `KINDS`; and the severities."""

    prompt: str
    videos: Tensor
    severities: list[float]


def main(config: CriticAgreementConfig) -> None:
    """Print the tables, and write them."""
    groups = [group(config, i) for i in range(config.prompts)]
    scores = score_all(groups, config)
    text = "\n".join(tables(groups, scores, config))
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text(text, encoding="utf-8")
    config.out.with_suffix(".svg").write_text(plot(groups, scores, config), encoding="utf-8")
    print(text)


def group(config: CriticAgreementConfig, index: int) -> Group:
    """The candidates of one test caption, independent of other captions."""
    rng = np.random.default_rng([config.seed, index])
    caption = sample_caption(rng, "test")
    severities = [0.0, *rng.uniform(*config.severity, len(KINDS))]
    videos = []
    for flaw, severity in zip((None, *KINDS), severities, strict=True):
        film = make_film(caption, rng)
        if flaw:
            FLAWS[flaw](film, severity, rng)
        videos.append(render(film, rng))
    through = torch.full((len(videos),), SOFTNESS)
    soft = soften(torch.stack(videos), through, GRAIN, torch.Generator().manual_seed(index))
    return Group(str(caption), soft, [float(severity) for severity in severities])


def score_all(groups: Sequence[Group], config: CriticAgreementConfig) -> dict[str, list[list[float]]]:
    """Each critic's scores of all candidates, one row per group; trains the image critic first."""
    torch.set_num_threads(1)
    critics = video_critics() | dict(zip(IMAGES, (stills_critic(), trained_image_critic(config)), strict=True))
    with torch.no_grad():
        return {
            name: [critic(each.videos, [each.prompt] * len(each.videos)).tolist() for each in groups]
            for name, critic in critics.items()
        }


# --- the critics -------------------------------------------------------------------------------------------------


def video_critics() -> dict[str, Critic]:
    """The embedded critics: the world's as a whole (all dimensions equally) and two of its dimensions, and the rest."""
    world = load_reward("world")
    named: dict[str, Critic] = {
        "world": lambda videos, prompts: world(videos, prompts).values.mean(1),
        "world, temporal consistency": lambda videos, prompts: world(videos, prompts)["temporal consistency"],
        "world, visual quality": lambda videos, prompts: world(videos, prompts)["visual quality"],
    }
    return named | {name: _single(name) for name in ("heldout", *ANALYTIC)}


def _single(name: str) -> Critic:
    reward = load_reward(name)
    return lambda videos, prompts: reward(videos, prompts).values[:, 0]


def stills_critic(frames: int = 8) -> Critic:
    """The world critic's mean visual quality of frames, each as a still clip."""
    world = load_reward("world")

    def score(videos: Tensor, prompts: list[str]) -> Tensor:
        some = videos[:, torch.linspace(0, videos.shape[1] - 1, frames).long()]
        still = [frame[:, None].expand(-1, videos.shape[1], -1, -1, -1) for frame in some.unbind(1)]
        return torch.stack([world(clip, prompts)["visual quality"] for clip in still]).mean(0)

    return score


class FrameCritic(nn.Module):
    """A convolutional network from frames `n 3 h w` to scores (n,)."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, width, 3, padding=1), nn.GELU()),
            *(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.GELU()),
            *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.GELU()),
            *(nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1), nn.GELU()),
        )
        self.head = nn.Sequential(nn.Linear(4 * width, 64), nn.GELU(), nn.Linear(64, 1))

    def forward(self, frames: Tensor) -> Tensor:
        x = self.layers(frames)
        return self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))[:, 0]


def trained_image_critic(config: CriticAgreementConfig) -> Critic:
    """Train a `FrameCritic` on frames with known spatial flaws; a candidate's score is the mean over its frames."""
    torch.manual_seed(config.seed)
    network = FrameCritic()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, config.steps, pct_start=0.1)
    for step in range(config.steps):
        frames, quality = frame_batch(config.seed + 1, step)
        loss = ranking_loss(network(frames)[:, None], quality[:, None], candidates=CANDIDATES * FRAMES_PER_CANDIDATE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval().requires_grad_(False)
    return lambda videos, prompts: network(videos.flatten(0, 1)).view(videos.shape[:2]).mean(1)


def frame_batch(seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Frames `n 3 h w` of candidates of two prompts, and their quality from 0 to about -2."""
    rng = np.random.default_rng([seed, step])
    videos, quality = [], []
    for _ in range(2):
        caption = sample_caption(rng, "train")
        for _ in range(CANDIDATES):
            film = make_film(caption, rng)
            chosen = {name: rng.uniform(0.02, 1) for name in SPATIAL_FLAWS if rng.random() < 0.14}
            for name, severity in chosen.items():
                FLAWS[name](film, severity, rng)
            videos.append(render(film, rng)[rng.choice(film.frames, FRAMES_PER_CANDIDATE, replace=False)])
            quality += [-sum(chosen.values())] * FRAMES_PER_CANDIDATE
    return codec_like(torch.stack(videos), step).flatten(0, 1), torch.tensor(quality, dtype=torch.float32)


# --- the tables --------------------------------------------------------------------------------------------------


def tables(groups: Sequence[Group], scores: Mapping[str, list[list[float]]], config) -> Iterator[str]:
    """Markdown tables: all candidates, each sort of flaw against the clean one, and each flaw by itself."""
    low, high = config.severity
    yield "## Video critics and image critics\n"
    yield f"![Which critics find the clean candidate]({config.out.with_suffix('.svg').name})\n"
    different = len({each.prompt for each in groups})
    yield (
        f"`python benchmarks/critic_agreement.py`: {len(groups)} groups of candidates of {different} test captions, "
        f"in each\na clean one and one with each of {len(KINDS)} flaws, of a severity from {low:g} to {high:g}; "
        "every candidate\n"
        "with its own track, all a little soft and grainy. The clean one is best. Figures with 95 % intervals,\n"
        "bootstrapped over captions.\n"
    )
    yield LEGEND
    yield markdown(_compared(groups, scores, KINDS, config))
    for sort, flaws in SORTS.items():
        yield f"The clean candidate among those with {_named(sort)} ({', '.join(flaws)}):\n"
        yield markdown(_compared(groups, scores, flaws, config))
    yield "How often the clean candidate scores higher than the one with the flaw:\n"
    yield by_flaw(groups, scores, config)
    yield "The same by how severe the flaw is; and Kendall's tau-b, within a prompt, of score and severity:\n"
    yield by_severity(groups, scores, config)


def _named(sort: str) -> str:
    return "flaws of both sorts" if sort == "both" else f"{sort} flaws"


def _scored_votes(groups: Sequence[Group], scores: Mapping[str, list[list[float]]], flaws: Sequence[str]):
    """The clean candidate and those with some of the flaws, as votes for every critic."""
    indices = [0, *(1 + KINDS.index(flaw) for flaw in flaws)]
    return {
        name: [ScoredVote(each.prompt, [row[i] for i in indices], (0,)) for each, row in zip(groups, rows, strict=True)]
        for name, rows in scores.items()
    }


def _compared(groups, scores, flaws: Sequence[str], config) -> list[CriticAgreement]:
    return compare(_scored_votes(groups, scores, flaws), config.n_resamples, config.seed)


def plot(groups, scores, config) -> str:
    """Recall@1 by sort of flaw, as an SVG."""
    among = {"all 12 flaws": KINDS, "temporal flaws": SORTS["temporal"], "spatial flaws": SORTS["spatial"]}
    figures = {
        name: {row.critic: row.figures["recall@1"] for row in _compared(groups, scores, flaws, config)}
        for name, flaws in among.items()
    }
    rows = [
        CriticAgreement(critic, {name: column[critic] for name, column in figures.items()})
        for critic in (*scores, CHANCE)
    ]
    return dots(
        "Which critic finds the clean candidate?",
        rows,
        "recall@1 among candidates with flaws, 95 % intervals; dotted: chance",
    )


def by_flaw(groups, scores, config) -> str:
    """Pairwise accuracy, one row per flaw, one column per critic."""
    lines = ["| flaw | sort | " + " | ".join(scores) + " |", "| --- " * (2 + len(scores)) + "|"]
    for sort, flaws in SORTS.items():
        for flaw in flaws:
            figures = {
                row.critic: row.figures["pairwise accuracy"] for row in _compared(groups, scores, [flaw], config)
            }
            cells = [
                f"{figures[name].value:.2f} ({figures[name].low:.2f} to {figures[name].high:.2f})" for name in scores
            ]
            lines.append(f"| {flaw} | {sort} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def by_severity(groups, scores, config) -> str:
    """Pairwise accuracy for the milder and the more severe half of each sort's flaws; tau-b over its candidates."""
    middle = sum(config.severity) / 2
    halves = ((f"below {middle:g}", 0.0, middle), (f"{middle:g} and above", middle, np.inf))
    lines = ["| sort | severity | candidates | " + " | ".join(scores) + " |", "| --- " * (3 + len(scores)) + "|"]
    for sort, flaws in SORTS.items():
        those = [1 + KINDS.index(flaw) for flaw in flaws]
        for words, low, high in halves:
            pairs = [(i, k) for i, each in enumerate(groups) for k in those if low <= each.severities[k] < high]
            right = [np.mean([rows[i][0] > rows[i][k] for i, k in pairs]) for rows in scores.values()]
            lines.append(f"| {sort} | {words} | {len(pairs)} | {' | '.join(f'{share:.2f}' for share in right)} |")
        taus = [
            np.mean([_tau(row, each, [0, *those]) for row, each in zip(rows, groups, strict=True)])
            for rows in scores.values()
        ]
        cells = " | ".join(f"{tau:.2f}" for tau in taus)
        lines.append(f"| {sort} | Kendall's tau-b | {len(groups) * (1 + len(those))} | {cells} |")
    return "\n".join(lines) + "\n"


def _tau(row: Sequence[float], each: Group, those: Sequence[int]) -> float:
    return kendall_tau_b([row[k] for k in those], [-each.severities[k] for k in those])


if __name__ == "__main__":
    main(tyro.cli(CriticAgreementConfig))

"""Training of the two critics, on clips made as they are needed.

The `world` critic learns from synthetic degradations (OnlineVPO, section 3.2): a step sees groups of takes of one
prompt, films of it whose flaws, severities and agreement with the caption are known, and learns to order them. The
`heldout` critic learns to predict clean clips and never sees a flaw. Both see their clips slightly soft and grainy at
random, good and bad alike, so that the traces of an autoencoder are no flaw to them.

    besttake world pretrain --part critic-world
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from besttake.rewards.critics import heldout
from besttake.rewards.critics.world import BODIES, DIMENSIONS, WORDS, QualityNetwork
from besttake.rewards.shipped import EMBEDDED_WEIGHTS, word_ids, write_critic
from besttake.world.captions import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SIZES,
    Body,
    Caption,
    sample_caption,
    vocabulary,
)
from besttake.world.clips import make_batch
from besttake.world.film import Film, make_film, render
from besttake.world.flaws import FLAWS
from besttake.world.physics import WIDTH
from besttake.world.precision import mixed_precision
from besttake.world.training_log import TrainingLog, load_state, save_state


@dataclass(frozen=True)
class WorldCriticConfig:
    """Settings of the training critic; the defaults are the ones of the shipped weights."""

    out: Path = Path("runs/pretrain/critic-world")
    weights: Path = EMBEDDED_WEIGHTS / "critic-world"
    steps: int = 2000
    groups: int = 8
    """Prompts in a step."""
    candidates: int = 4
    """Films of each prompt."""
    lr: float = 2e-3
    calibration: int = 256
    """Clips that the scores are standardised on."""
    seed: int = 21


@dataclass(frozen=True)
class HeldoutCriticConfig:
    """Settings of the held-out critic; the defaults are the ones of the shipped weights."""

    out: Path = Path("runs/pretrain/critic-heldout")
    weights: Path = EMBEDDED_WEIGHTS / "critic-heldout"
    steps: int = 1100
    batch: int = 16
    """Clips in a step."""
    frames: int = 8
    """Frames predicted of each of them."""
    lr: float = 2e-3
    calibration: int = 256
    """Clips that the score is standardised on; four times as many for the features."""
    seed: int = 31


def train_world_critic(config: WorldCriticConfig) -> QualityNetwork:
    """Train (or go on training) the training critic; state and log in `config.out`, weights in `config.weights`."""
    torch.manual_seed(config.seed)
    network = QualityNetwork(len(vocabulary()))

    def loss_of(step: int) -> Tensor:
        batch = graded_batch(config.seed, step, config.groups, config.candidates)
        with mixed_precision():
            found = network.assess(codec_like(batch.videos, step), _ids(batch.asked))
        ranking = ranking_loss(found.scores, batch.qualities, config.candidates)
        seen = 0.5 * words_loss(found.word_logits, _ids(batch.shown))
        return ranking + seen + 10 * places_loss(found.positions, batch.places)

    _train(network, loss_of, config)
    with torch.no_grad():
        clean, mixed = (_world_scores(network, config.calibration, share) for share in (0.0, 0.5))
    facts = {"mean": clean.mean(0).tolist(), "std": mixed.std(0).tolist(), "dimensions": DIMENSIONS}
    _ship(network, "world", facts, config)
    return network


def train_heldout_critic(config: HeldoutCriticConfig) -> heldout.Expectation:
    """Train (or go on training) the held-out critic; state and log in `config.out`, weights in `config.weights`."""
    torch.manual_seed(config.seed)
    network = heldout.Expectation(len(vocabulary()))

    def loss_of(step: int) -> Tensor:
        videos, clips = make_batch(config.seed, step * config.batch, config.batch, "train")
        ids = _ids([clip.caption for clip in clips])
        with mixed_precision():
            return expectation_loss(network, codec_like(videos, step), ids, config.frames, step)

    _train(network, loss_of, config)
    with torch.no_grad():
        fit_features(network, 4 * config.calibration)
        clean, mixed = (_heldout_surprise(network, config.calibration, share) for share in (0.0, 0.5))
    facts = {"mean": clean.mean(0).tolist(), "std": mixed.std(0).tolist(), "dimensions": heldout.DIMENSIONS}
    _ship(network, "heldout", facts, config)
    return network


def _train(network: nn.Module, loss_of: Callable[[int], Tensor], config) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), config.lr, betas=(0.9, 0.98), weight_decay=1e-2)
    start = load_state(config.out, network, optimizer)
    log = TrainingLog(config.out, config.steps, start)
    for step in range(start, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1, (step + 1) / 50) * 0.5 * (1.01 + math.cos(math.pi * step / config.steps))
        loss = loss_of(step)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        log.add(step + 1, loss=loss.item())
        if (step + 1) % 50 == 0 or step + 1 == config.steps:
            log.write(step + 1)
            save_state(config.out, network, optimizer, step + 1)


def _ship(network: nn.Module, critic: str, facts: dict, config) -> None:
    """Weights, config and loss curve into the folder that the package ships."""
    settings = {key: value for key, value in asdict(config).items() if key not in ("out", "weights")}
    write_critic(config.weights, network, {"critic": critic, "words": vocabulary(), **facts, "training": settings})
    rows = [json.loads(line) for line in (config.out / "log.jsonl").read_text().splitlines()]
    (config.weights / "loss_curve.json").write_text(json.dumps(rows) + "\n")


def _ids(captions: list[Caption]) -> Tensor:
    return word_ids([str(caption) for caption in captions], vocabulary(), WORDS)


def codec_like(videos: Tensor, seed: int) -> Tensor:
    """Each video `b f c h w` a little soft (Gaussian, up to 0.6 pixels) and grainy (up to 0.03), two thirds of them."""
    generator, b = torch.Generator().manual_seed(seed), len(videos)
    sigma = 0.6 * torch.rand(b, generator=generator) * (torch.rand(b, generator=generator) < 0.67)
    grain = 0.03 * torch.rand(b, 1, 1, 1, 1, generator=generator) * (sigma > 0).view(-1, 1, 1, 1, 1)
    return soften(videos, sigma, grain, generator)


def soften(videos: Tensor, sigma: Tensor, grain: Tensor | float, generator: torch.Generator) -> Tensor:
    """Videos `b f c h w`, each blurred by its own `sigma` (b,), in pixels, and with noise of deviation `grain`."""
    b, f, c, h, w = videos.shape
    taps = torch.exp(-0.5 * (torch.arange(-2, 3) / sigma.clamp(min=0.05)[:, None]) ** 2)
    taps = (taps / taps.sum(1, keepdim=True)).repeat_interleave(f * c, 0)
    x = F.pad(videos.reshape(1, b * f * c, h, w), (2, 2, 2, 2), mode="replicate")
    x = F.conv2d(x, taps[:, None, :, None], groups=b * f * c)
    x = F.conv2d(x, taps[:, None, None, :], groups=b * f * c).view(videos.shape)
    return (x + grain * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


# --- the training critic -----------------------------------------------------------------------------------------

BLAME = {
    "visual quality": {
        "blur": 1.0,
        "noise": 1.0,
        "melt": 1.0,
        "warp": 1.5,
        "recolour": 0.5,
        "tint": 1.0,
        "mesh": 2.0,
        "glare": 0.7,
    },
    "temporal consistency": {
        "flicker": 1.0,
        "jitter": 1.0,
        "teleport": 1.0,
        "vanish": 1.0,
        "melt": 0.7,
        "warp": 1.0,
        "stray": 1.0,
        "recolour": 0.7,
    },
}
"""How much each flaw, at severity 1, takes from a dimension."""

OFTEN = {"stray": 0.25, "mesh": 0.2}
"""How often a flaw comes, where that is not 0.11."""

FAR = 5.0
"""Pixels; a body farther from its path is no worse."""

SHARPNESS = 8.0
"""A difference of 0.25 in quality is preferred with probability sigmoid(2) = 0.88."""


@dataclass(frozen=True)
class GradedBatch:
    """Videos `b f c h w`, the captions they were asked for and the ones they show, and what is true of them.

    That is their qualities (b, dimensions), and where their bodies are, (b, f, bodies, 2), NaN where one is not.
    """

    videos: Tensor
    asked: list[Caption]
    shown: list[Caption]
    qualities: Tensor
    places: Tensor


def graded_batch(seed: int, step: int, groups: int, takes: int, split: str = "train") -> GradedBatch:
    """Films of known quality, `takes` of each of `groups` prompts side by side."""
    rng = np.random.default_rng([seed, step])
    rows = [row for _ in range(groups) for row in _group(rng, takes, split)]
    videos, asked, shown, graded, where = zip(*rows, strict=True)
    truth = torch.tensor(graded, dtype=torch.float32)
    return GradedBatch(torch.stack(videos), list(asked), list(shown), truth, torch.stack(where))


def _group(rng: np.random.Generator, takes: int, split: str) -> list[tuple]:
    """Takes of one caption; in half of the groups they share one track, so that only flaws tell them apart."""
    caption = sample_caption(rng, split)
    shared = make_film(caption, rng) if rng.random() < 0.5 else None
    rows = []
    for _ in range(takes):
        shown, swaps = _swapped(caption, rng) if rng.random() < 0.25 else (caption, 0)
        film = deepcopy(shared) if shared and shown == caption else make_film(shown, rng)
        true = deepcopy(film)
        severities, moved = spoil_any(film, rng)
        away = distance(film, true)
        if rng.random() < 0.02:
            swaps, moved, away = 4, 0.0, FAR
            for actor in film.actors:
                actor.opacity = 0 * actor.opacity
        if shown.motion != caption.motion:
            away = max(away, FAR / 2)
        rows.append((render(film, rng), caption, shown, qualities(severities, moved, swaps, away), places(film)))
    return rows


def places(film: Film) -> Tensor:
    """Where the bodies are, (f, bodies, 2): the frame is from -1 to 1; one body is there twice, NaN where unseen."""
    actors = (film.actors * BODIES)[:BODIES]
    there = [np.where(actor.opacity[:, None] > 0.5, actor.position, np.nan) for actor in actors]
    return torch.tensor(np.stack(there, 1), dtype=torch.float32) * 2 / WIDTH - 1


def distance(film: Film, true: Film) -> float:
    """Root mean square distance of the worse body to its true path, in pixels; an angle counts at the radius."""
    worst = 0.0
    for one, other in zip(film.actors, true.actors, strict=True):
        turned = SIZES[one.body.size] * (one.angle - other.angle)
        worst = max(worst, float((((one.position - other.position) ** 2).sum(1) + turned**2).mean() ** 0.5))
    return worst


def spoil_any(film: Film, rng: np.random.Generator) -> tuple[dict[str, float], float]:
    """Flaws of any severity, in place; their severities, and the share of motion that is left.

    Each comes or not whatever the others do: otherwise one that is seen would speak against those that are not.
    """
    names = sorted((name for name in FLAWS if rng.random() < OFTEN.get(name, 0.11)), key=lambda name: name != "freeze")
    due, moved, severities = path_length(film), 1.0, {}
    for name in names:
        severities[name] = float(rng.uniform(0.02, 1))
        FLAWS[name](film, severities[name], rng)
        if name == "freeze":  # the first of them: jitter and jumps are no motion that was due
            moved = path_length(film) / max(due, 1e-6)
    return severities, moved


def path_length(film: Film) -> float:
    """How far the bodies travel and turn, in pixels."""
    travel = sum(np.linalg.norm(np.diff(actor.position, axis=0), axis=1).sum() for actor in film.actors)
    turn = sum(SIZES[actor.body.size] * np.abs(np.diff(actor.angle)).sum() for actor in film.actors)
    return float(travel + turn)


def qualities(severities: dict[str, float], moved: float, swaps: int, away: float) -> list[float]:
    """The true quality of a film in each of the critic's dimensions, about 0 (as it should be) to -2.

    From the severity of its flaws, the share of its motion that is left, how many attributes are another caption's,
    and how many pixels it is away from its true path.
    """
    blamed = [-sum(blame.get(name, 0) * s for name, s in severities.items()) for blame in BLAME.values()]
    aligned = -(0.5 * (swaps > 0) + 0.5 * swaps) - 0.5 * (1 - moved)
    return [*blamed, moved - 1, aligned, -2 * min(away, FAR) / FAR]


def _swapped(caption: Caption, rng: np.random.Generator) -> tuple[Caption, int]:
    """A caption that differs in one to three attributes, and in how many."""
    fields = {"size": list(SIZES), "colour": list(COLOURS), "shape": list(SHAPES), "background": list(BACKGROUNDS)}
    if caption.motion != "hits":
        fields["motion"] = [m for m in MOTIONS if m not in ("hits", "spins")]
    names = list(rng.choice(list(fields), int(rng.integers(1, 4)), replace=False))
    now = asdict(caption.body) | {"motion": caption.motion, "background": caption.background}
    for name in names:
        now[name] = str(rng.choice([choice for choice in fields[name] if choice != now[name]]))
    body = Body(now["size"], now["colour"], now["shape"])
    return replace(caption, body=body, motion=now["motion"], background=now["background"]), len(names)


def ranking_loss(scores: Tensor, targets: Tensor, takes: int) -> Tensor:
    """Bradley-Terry with soft labels over all pairs of a batch; pairs within a prompt count as much as all others."""
    preferred = torch.sigmoid(SHARPNESS * (targets[:, None] - targets[None]))
    loss = F.binary_cross_entropy_with_logits(scores[:, None] - scores[None], preferred, reduction="none").mean(-1)
    group = torch.arange(len(scores)) // takes
    within = (group[:, None] == group[None]) & ~torch.eye(len(scores), dtype=torch.bool)
    return loss.mean() + loss[within].mean()


def words_loss(seen: Tensor, ids: Tensor) -> Tensor:
    """Whether each word of the shown caption, and no other, is seen; teaches what the words look like."""
    truth = torch.zeros_like(seen).scatter(1, ids, 1.0)
    return F.binary_cross_entropy_with_logits(seen[:, 2:], truth[:, 2:])


def places_loss(found: Tensor, true: Tensor) -> Tensor:
    """Smooth L1 between positions (b, f, bodies, 2), where there is a body."""
    there = true.isfinite()
    return F.smooth_l1_loss(found[there], true[there], beta=0.1)


def _world_scores(network: QualityNetwork, n: int, flawed_share: float) -> Tensor:
    videos, clips = make_batch(4321, 0, n, "train", flawed_share)
    videos, ids = codec_like(videos, 1), _ids([clip.caption for clip in clips])
    return torch.cat([network(*part) for part in zip(videos.split(32), ids.split(32), strict=True)])


# --- the held-out critic -----------------------------------------------------------------------------------------


def expectation_loss(network: heldout.Expectation, videos: Tensor, ids: Tensor, frames: int, seed: int) -> Tensor:
    """Gaussian negative log-likelihood of frames given earlier ones, and of the clips' statistics given captions."""
    generator = torch.Generator().manual_seed(seed)
    b, f = videos.shape[:2]
    row = torch.arange(b).repeat_interleave(frames)
    horizon = torch.tensor(heldout.HORIZONS)[torch.randint(2, (b * frames,), generator=generator)]
    t = horizon + 1 + (torch.rand(b * frames, generator=generator) * (f - horizon - 1)).long()
    caption = network.condition_features(ids)
    mean, variance, _ = network.frames(*heldout.contexts(videos, row, t, horizon), caption[row])
    target = videos[row, t]
    weight = 0.3 + torch.maximum(heldout.saturation(target), heldout.saturation(videos[row, t - horizon])).clamp(max=1)
    of_frames = (weight * ((target - mean).square().mean(1, keepdim=True) / variance + variance.log())).mean()
    expected, log_variance = network.expected_statistics(caption)
    seen = heldout.statistics(videos.float())
    of_whole = ((seen - expected.float()).square() * torch.exp(-log_variance.float()) + log_variance.float()).mean()
    return of_frames + 0.5 * of_whole


def fit_features(network: heldout.Expectation, n: int) -> None:
    """Set the projection of the bottleneck to its principal directions on clean clips, each of variance 1 there."""
    videos, clips = make_batch(8765, 0, n, "train")
    videos, ids = codec_like(videos, 2), _ids([clip.caption for clip in clips])
    pairs = zip(videos.split(32), ids.split(32), strict=True)
    raw = torch.cat([network.raw_features(*part) for part in pairs]).double()
    _, values, directions = torch.linalg.svd(raw - raw.mean(0), full_matrices=False)
    scale = math.sqrt(n) / values[: heldout.FEATURES]
    network.feature_mean.copy_(raw.mean(0))
    network.feature_projection.copy_(directions[: heldout.FEATURES].T * scale)


def _heldout_surprise(network: heldout.Expectation, n: int, flawed_share: float) -> Tensor:
    videos, clips = make_batch(4321, 0, n, "train", flawed_share)
    videos, ids = codec_like(videos, 3), _ids([clip.caption for clip in clips])
    return torch.cat([network.surprise(*part) for part in zip(videos.split(32), ids.split(32), strict=True)])

"""Training of the two critics on clips that are rendered on the fly.

The `world` critic learns from synthetic degradations (OnlineVPO, section 3.2): each step has groups of candidates of
one prompt with known flaws, severities and agreement with the caption, and the critic learns to rank them. The
`heldout` critic learns to predict clean clips and never sees a flaw. Clips are randomly blurred and noisy for both, so
that the artefacts of an autoencoder do not count as flaws.

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
    """Training settings of the training critic; the defaults are those of the embedded weights."""

    out: Path = Path("runs/pretrain/critic-world")
    weights: Path = EMBEDDED_WEIGHTS / "critic-world"
    steps: int = 2000
    groups: int = 8
    """Prompts per step."""
    candidates: int = 4
    """Films per prompt."""
    lr: float = 2e-3
    calibration: int = 256
    """Clips for standardising the scores."""
    seed: int = 21


@dataclass(frozen=True)
class HeldoutCriticConfig:
    """Training settings of the held-out critic; the defaults are those of the embedded weights."""

    out: Path = Path("runs/pretrain/critic-heldout")
    weights: Path = EMBEDDED_WEIGHTS / "critic-heldout"
    steps: int = 1100
    batch: int = 16
    """Clips per step."""
    frames: int = 8
    """Predicted frames per clip."""
    lr: float = 2e-3
    calibration: int = 256
    """Clips for standardising the score; four times as many for the features."""
    seed: int = 31


def train_world_critic(config: WorldCriticConfig) -> QualityNetwork:
    """Train or resume the training critic; state and log are in `config.out`, weights in `config.weights`."""
    torch.manual_seed(config.seed)
    network = QualityNetwork(len(vocabulary()))

    def loss_of(step: int) -> Tensor:
        batch = graded_batch(config.seed, step, config.groups, config.candidates)
        with mixed_precision():
            output = network.assess(codec_like(batch.videos, step), _ids(batch.prompt_captions))
        ranking = ranking_loss(output.scores, batch.qualities, config.candidates)
        words = 0.5 * words_loss(output.word_logits, _ids(batch.shown_captions))
        return ranking + words + 10 * positions_loss(output.positions, batch.places)

    _train(network, loss_of, config)
    with torch.no_grad():
        clean, mixed = (_world_scores(network, config.calibration, share) for share in (0.0, 0.5))
    facts = {"mean": clean.mean(0).tolist(), "std": mixed.std(0).tolist(), "dimensions": DIMENSIONS}
    _write_weights(network, "world", facts, config)
    return network


def train_heldout_critic(config: HeldoutCriticConfig) -> heldout.HeldoutNetwork:
    """Train or resume the held-out critic; state and log are in `config.out`, weights in `config.weights`."""
    torch.manual_seed(config.seed)
    network = heldout.HeldoutNetwork(len(vocabulary()))

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
    _write_weights(network, "heldout", facts, config)
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


def _write_weights(network: nn.Module, critic: str, facts: dict, config) -> None:
    """Write weights, config and loss curve into the package's folder."""
    settings = {key: value for key, value in asdict(config).items() if key not in ("out", "weights")}
    write_critic(config.weights, network, {"critic": critic, "words": vocabulary(), **facts, "training": settings})
    rows = [json.loads(line) for line in (config.out / "log.jsonl").read_text().splitlines()]
    (config.weights / "loss_curve.json").write_text(json.dumps(rows) + "\n")


def _ids(captions: list[Caption]) -> Tensor:
    return word_ids([str(caption) for caption in captions], vocabulary(), WORDS)


def codec_like(videos: Tensor, seed: int) -> Tensor:
    """Blur (Gaussian, up to 0.6 pixels) and noise (up to 0.03) on two thirds of the videos `b f c h w`."""
    generator, b = torch.Generator().manual_seed(seed), len(videos)
    sigma = 0.6 * torch.rand(b, generator=generator) * (torch.rand(b, generator=generator) < 0.67)
    grain = 0.03 * torch.rand(b, 1, 1, 1, 1, generator=generator) * (sigma > 0).view(-1, 1, 1, 1, 1)
    return soften(videos, sigma, grain, generator)


def soften(videos: Tensor, sigma: Tensor, grain: Tensor | float, generator: torch.Generator) -> Tensor:
    """Blur each of the videos `b f c h w` by its `sigma` (b,) in pixels, and add noise of deviation `grain`."""
    b, f, c, h, w = videos.shape
    taps = torch.exp(-0.5 * (torch.arange(-2, 3) / sigma.clamp(min=0.05)[:, None]) ** 2)
    taps = (taps / taps.sum(1, keepdim=True)).repeat_interleave(f * c, 0)
    x = F.pad(videos.reshape(1, b * f * c, h, w), (2, 2, 2, 2), mode="replicate")
    x = F.conv2d(x, taps[:, None, :, None], groups=b * f * c)
    x = F.conv2d(x, taps[:, None, None, :], groups=b * f * c).view(videos.shape)
    return (x + grain * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


# --- the training critic -----------------------------------------------------------------------------------------

FLAW_PENALTY = {
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
"""Penalty of each flaw at severity 1, by dimension."""

FLAW_PROBABILITY = {"stray": 0.25, "mesh": 0.2}
"""Probability of a flaw, if not 0.11."""

MAX_DISTANCE = 5.0
"""Distance to the true path, in pixels, at which the penalty saturates."""

SHARPNESS = 8.0
"""A difference of 0.25 in quality is preferred with probability sigmoid(2) = 0.88."""


@dataclass(frozen=True)
class GradedBatch:
    """Videos `b f c h w`, their prompts' captions, the captions that they show, and labels.

    Labels are the qualities (b, dimensions), and the bodies' positions (b, f, bodies, 2), NaN if invisible.
    """

    videos: Tensor
    prompt_captions: list[Caption]
    shown_captions: list[Caption]
    qualities: Tensor
    places: Tensor


def graded_batch(seed: int, step: int, groups: int, candidates: int, split: str = "train") -> GradedBatch:
    """Films of known quality: `candidates` consecutive ones for each of `groups` prompts."""
    rng = np.random.default_rng([seed, step])
    rows = [row for _ in range(groups) for row in _group(rng, candidates, split)]
    videos, captions, shown, graded, where = zip(*rows, strict=True)
    truth = torch.tensor(graded, dtype=torch.float32)
    return GradedBatch(torch.stack(videos), list(captions), list(shown), truth, torch.stack(where))


def _group(rng: np.random.Generator, candidates: int, split: str) -> list[tuple]:
    """Candidates of one caption; half of the groups have a common track, so that they differ only in flaws."""
    caption = sample_caption(rng, split)
    common_film = make_film(caption, rng) if rng.random() < 0.5 else None
    rows = []
    for _ in range(candidates):
        shown, swaps = _swapped(caption, rng) if rng.random() < 0.25 else (caption, 0)
        film = deepcopy(common_film) if common_film and shown == caption else make_film(shown, rng)
        true = deepcopy(film)
        severities, motion_left = add_any_flaws(film, rng)
        distance_to_path = distance(film, true)
        if rng.random() < 0.02:
            swaps, motion_left, distance_to_path = 4, 0.0, MAX_DISTANCE
            for actor in film.actors:
                actor.opacity = 0 * actor.opacity
        if shown.motion != caption.motion:
            distance_to_path = max(distance_to_path, MAX_DISTANCE / 2)
        rows.append(
            (
                render(film, rng),
                caption,
                shown,
                qualities(severities, motion_left, swaps, distance_to_path),
                body_positions(film),
            )
        )
    return rows


def body_positions(film: Film) -> Tensor:
    """Positions (f, bodies, 2) in [-1, 1]; a single body is repeated, and positions are NaN if invisible."""
    actors = (film.actors * BODIES)[:BODIES]
    visible = [np.where(actor.opacity[:, None] > 0.5, actor.position, np.nan) for actor in actors]
    return torch.tensor(np.stack(visible, 1), dtype=torch.float32) * 2 / WIDTH - 1


def distance(film: Film, true: Film) -> float:
    """Root mean square distance of the worse body to its true path, in pixels, including rotation at its radius."""
    worst = 0.0
    for one, other in zip(film.actors, true.actors, strict=True):
        turned = SIZES[one.body.size] * (one.angle - other.angle)
        worst = max(worst, float((((one.position - other.position) ** 2).sum(1) + turned**2).mean() ** 0.5))
    return worst


def add_any_flaws(film: Film, rng: np.random.Generator) -> tuple[dict[str, float], float]:
    """Add flaws of any severity in place; returns the severities and the remaining fraction of motion.

    Flaws are sampled independently; otherwise one visible flaw would be evidence against the others.
    """
    names = sorted(
        (name for name in FLAWS if rng.random() < FLAW_PROBABILITY.get(name, 0.11)), key=lambda name: name != "freeze"
    )
    due, motion_left, severities = path_length(film), 1.0, {}
    for name in names:
        severities[name] = float(rng.uniform(0.02, 1))
        FLAWS[name](film, severities[name], rng)
        if name == "freeze":  # the first one: jitter and jumps do not count as motion
            motion_left = path_length(film) / max(due, 1e-6)
    return severities, motion_left


def path_length(film: Film) -> float:
    """Length of the bodies' paths and rotations, in pixels."""
    travel = sum(np.linalg.norm(np.diff(actor.position, axis=0), axis=1).sum() for actor in film.actors)
    turn = sum(SIZES[actor.body.size] * np.abs(np.diff(actor.angle)).sum() for actor in film.actors)
    return float(travel + turn)


def qualities(severities: dict[str, float], motion_left: float, swaps: int, distance_to_path: float) -> list[float]:
    """The true quality of a film in each of the critic's dimensions, from 0 (perfect) to about -2.

    Computed from the severities of its flaws, the remaining fraction of motion, the number of wrong attributes, and the
    distance to the true path.
    """
    blamed = [-sum(blame.get(name, 0) * s for name, s in severities.items()) for blame in FLAW_PENALTY.values()]
    aligned = -(0.5 * (swaps > 0) + 0.5 * swaps) - 0.5 * (1 - motion_left)
    return [*blamed, motion_left - 1, aligned, -2 * min(distance_to_path, MAX_DISTANCE) / MAX_DISTANCE]


def _swapped(caption: Caption, rng: np.random.Generator) -> tuple[Caption, int]:
    """A caption that differs in one to three attributes, and the number of these."""
    fields = {"size": list(SIZES), "colour": list(COLOURS), "shape": list(SHAPES), "background": list(BACKGROUNDS)}
    if caption.motion != "hits":
        fields["motion"] = [m for m in MOTIONS if m not in ("hits", "spins")]
    names = list(rng.choice(list(fields), int(rng.integers(1, 4)), replace=False))
    now = asdict(caption.body) | {"motion": caption.motion, "background": caption.background}
    for name in names:
        now[name] = str(rng.choice([choice for choice in fields[name] if choice != now[name]]))
    body = Body(now["size"], now["colour"], now["shape"])
    return replace(caption, body=body, motion=now["motion"], background=now["background"]), len(names)


def ranking_loss(scores: Tensor, targets: Tensor, candidates: int) -> Tensor:
    """Bradley-Terry loss with soft labels: mean over all pairs of a batch, plus mean over pairs within a prompt."""
    preferred = torch.sigmoid(SHARPNESS * (targets[:, None] - targets[None]))
    loss = F.binary_cross_entropy_with_logits(scores[:, None] - scores[None], preferred, reduction="none").mean(-1)
    group = torch.arange(len(scores)) // candidates
    within = (group[:, None] == group[None]) & ~torch.eye(len(scores), dtype=torch.bool)
    return loss.mean() + loss[within].mean()


def words_loss(word_logits: Tensor, ids: Tensor) -> Tensor:
    """Auxiliary loss: predict which words describe the video."""
    truth = torch.zeros_like(word_logits).scatter(1, ids, 1.0)
    return F.binary_cross_entropy_with_logits(word_logits[:, 2:], truth[:, 2:])


def positions_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """Smooth L1 loss of positions (b, f, bodies, 2) of visible bodies."""
    visible = true.isfinite()
    return F.smooth_l1_loss(predicted[visible], true[visible], beta=0.1)


def _world_scores(network: QualityNetwork, n: int, flawed_share: float) -> Tensor:
    videos, clips = make_batch(4321, 0, n, "train", flawed_share)
    videos, ids = codec_like(videos, 1), _ids([clip.caption for clip in clips])
    return torch.cat([network(*part) for part in zip(videos.split(32), ids.split(32), strict=True)])


# --- the held-out critic -----------------------------------------------------------------------------------------


def expectation_loss(network: heldout.HeldoutNetwork, videos: Tensor, ids: Tensor, frames: int, seed: int) -> Tensor:
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
    observed = heldout.statistics(videos.float())
    of_whole = ((observed - expected.float()).square() * torch.exp(-log_variance.float()) + log_variance.float()).mean()
    return of_frames + 0.5 * of_whole


def fit_features(network: heldout.HeldoutNetwork, n: int) -> None:
    """Set the projection of the bottleneck to the whitened principal components of clean clips."""
    videos, clips = make_batch(8765, 0, n, "train")
    videos, ids = codec_like(videos, 2), _ids([clip.caption for clip in clips])
    pairs = zip(videos.split(32), ids.split(32), strict=True)
    raw = torch.cat([network.raw_features(*part) for part in pairs]).double()
    _, values, directions = torch.linalg.svd(raw - raw.mean(0), full_matrices=False)
    scale = math.sqrt(n) / values[: heldout.FEATURES]
    network.feature_mean.copy_(raw.mean(0))
    network.feature_projection.copy_(directions[: heldout.FEATURES].T * scale)


def _heldout_surprise(network: heldout.HeldoutNetwork, n: int, flawed_share: float) -> Tensor:
    videos, clips = make_batch(4321, 0, n, "train", flawed_share)
    videos, ids = codec_like(videos, 3), _ids([clip.caption for clip in clips])
    return torch.cat([network.surprise(*part) for part in zip(videos.split(32), ids.split(32), strict=True)])

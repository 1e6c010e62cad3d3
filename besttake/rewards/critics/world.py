"""The training critic of the small world: a video quality model trained on synthetic degradations.

OnlineVPO (section 3.2) ranks candidates with a video quality model instead of an image model. This one is tiny and was
trained on clips with known flaws and severities (see `world/pretrain_critics.py`). It is meant for clips of 16 frames
of 32 x 32 pixels of the small world; it accepts any size whose sides are multiples of 8.

Dimensions:
    visual quality: no blur, grain, melted outline or strange colour.
    temporal consistency: no flicker, jitter, jumps, vanishing, melting or drift of colour.
    dynamic degree: amount of motion as a fraction of what the caption requires; more than that is no better.
    text alignment: body, colour, size, motion and background are those of the caption.
    factual consistency: the bodies follow the physically correct paths of the caption's motion.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from besttake.rewards.shipped import EMBEDDED_WEIGHTS, check_videos, read_config, read_weights, word_ids
from besttake.types import FPS, CriticCard, Score, Video

DIMENSIONS = ("visual quality", "temporal consistency", "dynamic degree", "text alignment", "factual consistency")
"""VideoScore's five (He et al. 2024)."""
WORDS = 24
BODIES = 2


def load(path: str | Path | None = None, device: str = "cpu") -> WorldCritic:
    """Load the embedded critic, or one from a folder.

    Raises:
        ValueError: the folder has no such critic, or its weights are broken.
    """
    folder = EMBEDDED_WEIGHTS / "critic-world" if path is None else Path(path)
    config = read_config(folder, "world")
    network = QualityNetwork(len(config["words"]))
    read_weights(folder, network)
    return WorldCritic(network.to(device), config["words"], config["mean"], config["std"])


class WorldCritic:
    """A `Reward`. Scores are standardised: clean clips have mean 0, a mix of clean and flawed ones deviation 1."""

    name = "world"
    dimensions = DIMENSIONS
    differentiable = True
    card = CriticCard("docs/world.md", "Apache-2.0", dict.fromkeys(DIMENSIONS, (-4.0, 1.0)))

    def __init__(self, network: QualityNetwork, words: list[str], mean: list[float], std: list[float]):
        self.network, self.words = network.eval().requires_grad_(False), words
        device = next(network.parameters()).device
        self.mean, self.std = torch.tensor(mean, device=device), torch.tensor(std, device=device)

    def __call__(self, videos: Video, prompts: list[str], fps: float = FPS) -> Score:
        """
        Raises:
            ValueError: the videos are not `b f 3 h w` with h and w multiples of 8, or the prompts are not `b`.
        """
        check_videos(self.name, videos, prompts)
        if videos.shape[-1] % 8 or videos.shape[-2] % 8:
            raise ValueError(f"critic {self.name}: sides are {tuple(videos.shape[-2:])}, expected multiples of 8")
        ids = word_ids(prompts, self.words, WORDS).to(self.mean.device)
        raw = self.network(videos.to(self.mean.device, torch.float32), ids)
        return Score((raw - self.mean) / self.std, DIMENSIONS)


class QualityOutput(NamedTuple):
    """Network outputs for `b` videos of `f` frames: the scores, and auxiliary outputs for training."""

    scores: Tensor
    """(b, dimensions), raw."""
    word_logits: Tensor
    """(b, words + 2): for each word, the logit that the video shows it."""
    positions: Tensor
    """(b, f, bodies, 2): x and y of the bodies in the caption's order, in [-1, 1]."""


class QualityNetwork(nn.Module):
    """3-D convolutions at a quarter and an eighth of the size, modulated by the caption; no temporal downsampling.

    The bodies' paths are encoded separately: convolutions with spatial average pooling cannot distinguish a correct
    path from a smooth wrong one.
    """

    def __init__(self, words: int, width: int = 64, wide: int = 96):
        super().__init__()
        self.text = CaptionEncoder(words, width)
        self.stem = nn.Conv3d(48 + 6, width, 3, padding=1)
        self.near = ResidualBlock(width, (3, 3, 3), (1, 1, 1))
        self.told = nn.Linear(width, 2 * width)
        self.down = nn.Conv3d(width, wide, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
        self.far = ResidualBlock(wide, (1, 3, 3), (3, 1, 1))
        self.frame = nn.Linear(2 * wide, wide)
        self.seen = nn.Linear(3 * wide, words + 2)
        self.find = nn.Conv3d(width, 3 * BODIES, 1)
        self.path = PathEncoder(width)
        known = 3 * wide + width + words + 2 + self.path.out
        self.head = nn.Sequential(
            nn.LayerNorm(known), nn.Linear(known, wide), nn.GELU(), nn.Linear(wide, len(DIMENSIONS))
        )

    def forward(self, videos: Tensor, ids: Tensor) -> Tensor:
        """Raw scores (b, dimensions) of videos `b f c h w` and words (b, n)."""
        return self.assess(videos, ids).scores

    def assess(self, videos: Tensor, ids: Tensor) -> QualityOutput:
        """Scores and auxiliary outputs for videos `b f c h w` and words (b, n)."""
        caption = self.text(ids)
        x = torch.cat([F.pixel_unshuffle(videos, 4), high_frequency(videos)], 2).transpose(1, 2)  # (b, 54, f, h/4, w/4)
        x = self.near(self.stem(x))
        scale, shift = self.told(caption)[:, :, None, None, None].chunk(2, 1)
        x = F.gelu(x * (1 + scale) + shift)
        positions = body_positions(self.find(x).float())
        x = self.far(self.down(x))
        x = torch.cat([x.mean((3, 4)), x.amax((3, 4))], 1).transpose(1, 2)  # (b, f, 2 wide)
        x = over_time(F.gelu(self.frame(x)).float())
        word_logits = self.seen(x).float()
        in_caption = torch.zeros_like(word_logits).scatter(1, ids, 1.0)
        known = torch.cat([x, caption, in_caption * word_logits, self.path(positions, caption)], 1)
        return QualityOutput(self.head(known).float(), word_logits, positions)


def over_time(x: Tensor) -> Tensor:
    """Mean, maximum and deviation over frames: `b f n` to (b, 3 n)."""
    return torch.cat([x.mean(1), x.amax(1), x.std(1)], 1)


def body_positions(features: Tensor) -> Tensor:
    """Soft-argmax positions (b, f, bodies, 2) in [-1, 1] from `b (3 bodies) f h w`: logit, and x and y offset."""
    logit, dx, dy = features.unflatten(1, (3, -1)).unbind(1)
    probability = logit.flatten(-2).softmax(-1).view_as(logit)
    y, x = (torch.linspace(1 / n - 1, 1 - 1 / n, n, device=features.device) for n in features.shape[-2:])
    across, down = (probability * (x + dx)).sum((-1, -2)), (probability * (y[:, None] + dy)).sum((-1, -2))
    return torch.stack([across, down], -1).transpose(1, 2)


class PathEncoder(nn.Module):
    """Dilated convolutions over positions, velocities and accelerations, modulated by the caption."""

    def __init__(self, caption: int, width: int = 64):
        super().__init__()
        self.stem = nn.Conv1d(6 * BODIES, width, 3, padding=1)
        self.told = nn.Linear(caption, 2 * width)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, 3, padding=step, dilation=step) for step in (1, 2, 4))
        self.out = 3 * width

    def forward(self, positions: Tensor, caption: Tensor) -> Tensor:
        """(b, out) of positions (b, f, bodies, 2) and captions (b, caption)."""
        place = positions.flatten(2).transpose(1, 2)  # (b, 2 bodies, f)
        speed = F.pad(place.diff(dim=-1), (1, 0))
        bend = F.pad(place.diff(n=2, dim=-1), (1, 1))
        x = self.stem(torch.cat([place, 5 * speed, 10 * bend], 1))
        scale, shift = self.told(caption)[:, :, None].chunk(2, 1)
        x = F.gelu(x * (1 + scale) + shift)
        for layer in self.layers:
            x = x + F.gelu(layer(x))
        return over_time(x.transpose(1, 2).float())


def high_frequency(videos: Tensor) -> Tensor:
    """Mean and maximum difference of pixels from their neighbourhood in 4 x 4 patches: `b f 6 h/4 w/4`.

    So small a network does not learn to detect faint grain and blur from pixels alone.
    """
    flat = videos.flatten(0, 1)
    change = (flat - F.avg_pool2d(flat, 3, 1, 1, count_include_pad=False)).abs()
    pooled = torch.cat([F.avg_pool2d(change, 4), F.max_pool2d(change, 4)], 1)
    return ((pooled + 0.01).log() + 3).unflatten(0, videos.shape[:2])


class ResidualBlock(nn.Module):
    """A residual block initialised as the identity, so that it needs no normalisation."""

    def __init__(self, width: int, first: tuple[int, int, int], second: tuple[int, int, int]):
        super().__init__()
        self.first = nn.Conv3d(width, width, first, padding="same")
        self.second = nn.Conv3d(width, width, second, padding="same")
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.gelu(self.first(F.gelu(x))))


class CaptionEncoder(nn.Module):
    """Average of convolved word embeddings: ids (b, n) to (b, width)."""

    def __init__(self, words: int, width: int, inner: int = 48):
        super().__init__()
        self.embed = nn.Embedding(words + 2, inner, padding_idx=0)
        self.place = nn.Parameter(0.02 * torch.randn(WORDS, inner))
        self.phrase = nn.Conv1d(inner, width, 3, padding=1)
        self.out = nn.Linear(width, width)

    def forward(self, ids: Tensor) -> Tensor:
        mask = (ids != 0)[:, None]
        x = F.gelu(self.phrase((self.embed(ids) + self.place[: ids.shape[1]]).transpose(1, 2)))
        return self.out((x * mask).sum(-1) / mask.sum(-1).clamp(min=1))

"""The training critic of the small world: a video quality network that learned from synthetic degradations.

OnlineVPO (section 3.2) ranks candidates with a video quality model rather than an image model; this one is tiny and
learned from clips whose flaws, and their severity, are known (see `world/pretrain_critics.py`). It is meant for clips
of 16 frames of 32 x 32 pixels; it takes any size whose sides are multiples of 8, but knows nothing of other pictures.

What its dimensions mean:
    visual quality: no blur, grain, melted outline or strange colour.
    temporal consistency: no flicker, jitter, jumps, vanishing, melting or drift of colour.
    dynamic degree: the share of the motion due in the caption that is there; more motion than due is no better.
    text alignment: body, colour, size, motion and background are those of the caption.
    factual consistency: the bodies keep to the paths that physics gives the motion in the caption.
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
    """The shipped critic, or the one in a folder.

    Raises:
        ValueError: the folder holds no such critic, or its weights are broken.
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


class Judgement(NamedTuple):
    """What the network makes of `b` videos of `f` frames: only the scores are its answer, the rest is how it learns."""

    scores: Tensor
    """(b, dimensions), raw."""
    seen: Tensor
    """(b, words + 2): for each word, as a logit, whether it is to be seen in the video."""
    positions: Tensor
    """(b, f, bodies, 2): x and y of the bodies in the order of the caption; the frame is from -1 to 1."""


class QualityNetwork(nn.Module):
    """3-D convolutions at a quarter and an eighth of the size, told the caption in between; all frames are kept.

    Beside them, the bodies' paths are judged by themselves: convolutions that end in averages over places cannot tell
    a true path from a smooth wrong one.
    """

    def __init__(self, words: int, width: int = 64, wide: int = 96):
        super().__init__()
        self.text = CaptionEncoder(words, width)
        self.stem = nn.Conv3d(48 + 6, width, 3, padding=1)
        self.near = Block(width, (3, 3, 3), (1, 1, 1))
        self.told = nn.Linear(width, 2 * width)
        self.down = nn.Conv3d(width, wide, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
        self.far = Block(wide, (1, 3, 3), (3, 1, 1))
        self.frame = nn.Linear(2 * wide, wide)
        self.seen = nn.Linear(3 * wide, words + 2)
        self.find = nn.Conv3d(width, 3 * BODIES, 1)
        self.path = PathJudge(width)
        known = 3 * wide + width + words + 2 + self.path.out
        self.head = nn.Sequential(
            nn.LayerNorm(known), nn.Linear(known, wide), nn.GELU(), nn.Linear(wide, len(DIMENSIONS))
        )

    def forward(self, videos: Tensor, ids: Tensor) -> Tensor:
        """Raw scores (b, dimensions) of videos `b f c h w` and words (b, n)."""
        return self.judge(videos, ids).scores

    def judge(self, videos: Tensor, ids: Tensor) -> Judgement:
        """Scores of videos `b f c h w` and words (b, n), and what they are made from."""
        caption = self.text(ids)
        x = torch.cat([F.pixel_unshuffle(videos, 4), detail(videos)], 2).transpose(1, 2)  # (b, 54, f, h/4, w/4)
        x = self.near(self.stem(x))
        scale, shift = self.told(caption)[:, :, None, None, None].chunk(2, 1)
        x = F.gelu(x * (1 + scale) + shift)
        positions = places(self.find(x).float())
        x = self.far(self.down(x))
        x = torch.cat([x.mean((3, 4)), x.amax((3, 4))], 1).transpose(1, 2)  # (b, f, 2 wide)
        x = over_time(F.gelu(self.frame(x)).float())
        seen = self.seen(x).float()
        asked = torch.zeros_like(seen).scatter(1, ids, 1.0)
        known = torch.cat([x, caption, asked * seen, self.path(positions, caption)], 1)
        return Judgement(self.head(known).float(), seen, positions)


def over_time(x: Tensor) -> Tensor:
    """Mean, maximum and deviation over frames: `b f n` to (b, 3 n)."""
    return torch.cat([x.mean(1), x.amax(1), x.std(1)], 1)


def places(found: Tensor) -> Tensor:
    """Where each body is, (b, f, bodies, 2) in [-1, 1], of `b (3 bodies) f h w`: a logit, and x and y in the patch."""
    logit, dx, dy = found.unflatten(1, (3, -1)).unbind(1)
    share = logit.flatten(-2).softmax(-1).view_as(logit)
    y, x = (torch.linspace(1 / n - 1, 1 - 1 / n, n, device=found.device) for n in found.shape[-2:])
    across, down = (share * (x + dx)).sum((-1, -2)), (share * (y[:, None] + dy)).sum((-1, -2))
    return torch.stack([across, down], -1).transpose(1, 2)


class PathJudge(nn.Module):
    """Dilated convolutions over positions, velocities and accelerations, told the caption: they see a whole clip."""

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


def detail(videos: Tensor) -> Tensor:
    """How much pixels differ from those around them, on average and at most in patches of 4 x 4: `b f 6 h/4 w/4`.

    Grain and blur are too faint for so small a network to learn this from pixels.
    """
    flat = videos.flatten(0, 1)
    change = (flat - F.avg_pool2d(flat, 3, 1, 1, count_include_pad=False)).abs()
    pooled = torch.cat([F.avg_pool2d(change, 4), F.max_pool2d(change, 4)], 1)
    return ((pooled + 0.01).log() + 3).unflatten(0, videos.shape[:2])


class Block(nn.Module):
    """A residual block that starts as the identity, and so needs no normalisation."""

    def __init__(self, width: int, first: tuple[int, int, int], second: tuple[int, int, int]):
        super().__init__()
        self.first = nn.Conv3d(width, width, first, padding="same")
        self.second = nn.Conv3d(width, width, second, padding="same")
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.gelu(self.first(F.gelu(x))))


class CaptionEncoder(nn.Module):
    """Words and their neighbours, averaged: (b, n) ids to (b, width)."""

    def __init__(self, words: int, width: int, inner: int = 48):
        super().__init__()
        self.embed = nn.Embedding(words + 2, inner, padding_idx=0)
        self.place = nn.Parameter(0.02 * torch.randn(WORDS, inner))
        self.phrase = nn.Conv1d(inner, width, 3, padding=1)
        self.out = nn.Linear(width, width)

    def forward(self, ids: Tensor) -> Tensor:
        there = (ids != 0)[:, None]
        x = F.gelu(self.phrase((self.embed(ids) + self.place[: ids.shape[1]]).transpose(1, 2)))
        return self.out((x * there).sum(-1) / there.sum(-1).clamp(min=1))

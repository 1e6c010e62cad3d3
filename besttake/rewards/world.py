"""The training critic of the small world: a video quality network that learned from synthetic degradations.

OnlineVPO (section 3.2) ranks candidates with a video quality model rather than an image model; this one is tiny and
learned from clips whose flaws, and their severity, are known (see `world/pretrain_critics.py`). It is meant for clips
of 16 frames of 32 x 32 pixels; it takes any size whose sides are multiples of 8, but knows nothing of other pictures.

What its dimensions mean:
    visual quality: no blur, grain, melted outline or strange colour.
    temporal consistency: no flicker, jitter, jumps, vanishing, melting or drift of colour.
    dynamic degree: the share of the motion due in the caption that is there; more motion than due is no better.
    text alignment: body, colour, size, motion and background are those of the caption.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from besttake.rewards.shipped import SHIPPED, check_videos, read_config, read_weights, word_ids
from besttake.types import Score, Video

DIMENSIONS = ("visual quality", "temporal consistency", "dynamic degree", "text alignment")
WORDS = 24


def load(path: str | Path | None = None, device: str = "cpu") -> WorldCritic:
    """The shipped critic, or the one in a folder.

    Raises:
        ValueError: the folder holds no such critic, or its weights are broken.
    """
    folder = SHIPPED / "critic-world" if path is None else Path(path)
    config = read_config(folder, "world")
    network = QualityNetwork(len(config["words"]))
    read_weights(folder, network)
    return WorldCritic(network.to(device), config["words"], config["mean"], config["std"])


class WorldCritic:
    """A `Reward`. Scores are standardised: clean clips have mean 0, a mix of clean and flawed ones deviation 1."""

    name = "world"
    dimensions = DIMENSIONS
    differentiable = True

    def __init__(self, network: QualityNetwork, words: list[str], mean: list[float], std: list[float]):
        self.network, self.words = network.eval().requires_grad_(False), words
        device = next(network.parameters()).device
        self.mean, self.std = torch.tensor(mean, device=device), torch.tensor(std, device=device)

    def __call__(self, videos: Video, prompts: list[str]) -> Score:
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


class QualityNetwork(nn.Module):
    """3-D convolutions at a quarter and an eighth of the size, told the caption in between; all frames are kept."""

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
        known = 3 * wide + width + words + 2
        self.head = nn.Sequential(nn.LayerNorm(known), nn.Linear(known, wide), nn.GELU(), nn.Linear(wide, 4))

    def forward(self, videos: Tensor, ids: Tensor) -> Tensor:
        """Raw scores (b, 4) of videos `b f c h w` and words (b, n)."""
        return self.judge(videos, ids)[0]

    def judge(self, videos: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Raw scores (b, 4); and for each word, as a logit (b, words + 2), whether it is to be seen in the video."""
        caption = self.text(ids)
        x = torch.cat([F.pixel_unshuffle(videos, 4), detail(videos)], 2).transpose(1, 2)  # (b, 54, f, h/4, w/4)
        x = self.near(self.stem(x))
        scale, shift = self.told(caption)[:, :, None, None, None].chunk(2, 1)
        x = self.far(self.down(F.gelu(x * (1 + scale) + shift)))
        x = torch.cat([x.mean((3, 4)), x.amax((3, 4))], 1).transpose(1, 2)  # (b, f, 2 wide)
        x = F.gelu(self.frame(x)).float()
        x = torch.cat([x.mean(1), x.amax(1), x.std(1)], 1)
        seen = self.seen(x).float()
        asked = torch.zeros_like(seen).scatter(1, ids, 1.0)
        return self.head(torch.cat([x, caption, asked * seen], 1)).float(), seen


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

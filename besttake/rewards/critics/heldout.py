"""The held-out critic of the small world: plausibility of a clip under a model trained on clean clips only.

Unlike `world`, which learned from flawed clips, it is a predictor of clean clips with another architecture, so that
the two have different weaknesses. It is for evaluation: never train a policy on it.

Plausibility is the negative surprise at three things, each capped so that no single frame or pixel dominates:
    frames: a 2-D U-Net gets frames 0, t - h - 1 and t - h and predicts mean and variance of each pixel of frame t, for
        horizons h of one and four frames; surprise is the squared error divided by the predicted variance, weighted
        towards the bodies and away from the background.
    clip statistics: from the caption alone, mean and variance of averages over each quarter of the clip: colour,
        amount of coloured matter, its motion, brightness. An empty or frozen clip is surprising here.
    grain: likewise for the difference of neighbouring pixels; too little, beyond a codec's blur, is surprising too.

Neither the normalising term of the likelihood nor a surprise below that of clean clips is rewarded, so that bland clips
gain nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from besttake.rewards.shipped import EMBEDDED_WEIGHTS, check_videos, read_config, read_weights, word_ids
from besttake.types import FPS, CriticCard, Score, Video

DIMENSIONS = ("plausibility",)
WORDS = 24
FEATURES = 64
HORIZONS = (1, 4)
QUARTERS = 4
KINDS = ("red", "green", "blue", "matter", "light", "grain", "motion", "flicker")
PIXEL_CAP, STATISTIC_CAP = 16.0, 12.0
"""Caps of the squared deviations, in units of the predicted variance."""

FLOOR = 0.04
"""Lower bound of a pixel's predicted standard deviation, so that a codec's noise is no surprise."""


def load(path: str | Path | None = None, device: str = "cpu") -> HeldoutCritic:
    """Load the embedded critic, or one from a folder.

    Raises:
        ValueError: the folder has no such critic, or its weights are broken.
    """
    folder = EMBEDDED_WEIGHTS / "critic-heldout" if path is None else Path(path)
    config = read_config(folder, "heldout")
    network = HeldoutNetwork(len(config["words"]))
    read_weights(folder, network)
    return HeldoutCritic(network.to(device), config["words"], config["mean"], config["std"])


class HeldoutCritic:
    """A `Reward` of at most 0, reached by clips that are no more surprising than the average clean clip.

    Attributes:
        mean, std: of the three surprises: mean over clean clips, deviation over a mix of clean and flawed ones.
    """

    name = "heldout"
    dimensions = DIMENSIONS
    differentiable = True
    card = CriticCard("docs/world.md", "Apache-2.0", {"plausibility": (-4.0, 0.0)})

    def __init__(self, network: HeldoutNetwork, words: list[str], mean: list[float], std: list[float]):
        self.network, self.words = network.eval().requires_grad_(False), words
        device = next(network.parameters()).device
        self.mean, self.std = torch.tensor(mean, device=device), torch.tensor(std, device=device)

    def __call__(self, videos: Video, prompts: list[str], fps: float = FPS) -> Score:
        """
        Raises:
            ValueError: the videos are not `b f 3 h w` with 8 frames or more and sides that are multiples of 8, or the
                prompts are not `b`.
        """
        surprise = self.network.surprise(*self._inputs(videos, prompts))
        excess = ((surprise - self.mean) / self.std).clamp(min=0)
        return Score(-excess.mean(1, keepdim=True), DIMENSIONS)

    def features(self, videos: Video, prompts: list[str]) -> Tensor:
        """Bottleneck features of each clip, whitened on clean clips: float32 (b, 64), for the Frechet distance.

        They respond strongly to flicker, melting and jumps, but weakly to shaking, which the plausibility detects.

        Raises:
            ValueError: as for `__call__`.
        """
        return self.network.features(*self._inputs(videos, prompts))

    def _inputs(self, videos: Video, prompts: list[str]) -> tuple[Tensor, Tensor]:
        check_videos(self.name, videos, prompts, least_frames=8)
        if videos.shape[-1] % 8 or videos.shape[-2] % 8:
            raise ValueError(f"critic {self.name}: sides are {tuple(videos.shape[-2:])}, expected multiples of 8")
        device = self.mean.device
        return videos.to(device, torch.float32), word_ids(prompts, self.words, WORDS).to(device)


class HeldoutNetwork(nn.Module):
    """Predicts frames from earlier frames, and statistics of the whole clip from its caption."""

    def __init__(self, words: int, width: int = 64):
        super().__init__()
        self.words = nn.Embedding((words + 2) * WORDS, width)  # one vector per word and position
        self.caption = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.whole = nn.Sequential(nn.Linear(width, 96), nn.GELU(), nn.Linear(96, 2 * len(KINDS) * QUARTERS))
        self.frames = FramePredictor(width)
        self.feature_mean: Tensor
        self.feature_projection: Tensor
        self.register_buffer("feature_mean", torch.zeros(2 * self.frames.deep))
        self.register_buffer("feature_projection", torch.zeros(2 * self.frames.deep, FEATURES))

    def condition_features(self, ids: Tensor) -> Tensor:
        """Embed captions: word ids (b, n) to vectors (b, width)."""
        place = torch.arange(ids.shape[1], device=ids.device) * (self.words.num_embeddings // WORDS)
        mask = (ids != 0)[..., None]
        return self.caption((self.words(ids + place) * mask).sum(1) / 3)

    def surprise(self, videos: Tensor, ids: Tensor) -> Tensor:
        """Surprise at frames, clip statistics and grain: (b, 3), about 1 for clean clips."""
        caption = self.condition_features(ids)
        frames = [self._frame_surprise(videos, caption, horizon) for horizon in HORIZONS]
        mean, log_variance = self.expected_statistics(caption)
        deviation = ((statistics(videos) - mean).square() * torch.exp(-log_variance)).clamp(max=STATISTIC_CAP)
        kinds = dict(zip(KINDS, deviation.unflatten(1, (len(KINDS), QUARTERS)).mean(2).unbind(1), strict=True))
        grain = kinds.pop("grain")
        return torch.stack([torch.stack(frames).mean(0), torch.stack(list(kinds.values())).mean(0), grain], 1)

    def expected_statistics(self, caption: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.whole(caption).chunk(2, 1)
        return mean, log_variance.clamp(-7, 3)

    def _frame_surprise(self, videos: Tensor, caption: Tensor, horizon: int) -> Tensor:
        b, f = videos.shape[:2]
        t = torch.arange(horizon + 1, f, device=videos.device).repeat(b)
        row = torch.arange(b, device=videos.device).repeat_interleave(f - horizon - 1)
        mean, variance, _ = self.frames(*contexts(videos, row, t, horizon), caption[row])
        target = videos[row, t]
        deviation = ((target - mean).square().mean(1, keepdim=True) / variance).clamp(max=PIXEL_CAP)
        weight = 0.15 + torch.maximum(saturation(target), saturation(mean.detach())).clamp(max=1)
        return ((weight * deviation).sum((1, 2, 3)) / weight.sum((1, 2, 3))).view(b, -1).mean(1)

    def features(self, videos: Tensor, ids: Tensor) -> Tensor:
        return (self.raw_features(videos, ids) - self.feature_mean) @ self.feature_projection

    def raw_features(self, videos: Tensor, ids: Tensor) -> Tensor:
        """Mean and deviation over time of the spatially averaged bottleneck: (b, 2 deep)."""
        b, f = videos.shape[:2]
        t = torch.arange(2, f, device=videos.device).repeat(b)
        row = torch.arange(b, device=videos.device).repeat_interleave(f - 2)
        pooled = self.frames(*contexts(videos, row, t, 1), self.condition_features(ids)[row])[2].view(b, f - 2, -1)
        return torch.cat([pooled.mean(1), pooled.std(1)], 1)


def contexts(videos: Tensor, row: Tensor, t: Tensor, horizon: int | Tensor) -> tuple[Tensor, Tensor]:
    """Inputs of the frame predictor: frames 0, t - h - 1 and t - h of videos `row`, (n, 9, h, w); scaled (h, t)."""
    stack = torch.cat([videos[row, 0], videos[row, t - horizon - 1], videos[row, t - horizon]], 1)
    return stack, torch.stack([horizon / 4 * torch.ones_like(t), t / 8], 1)


def saturation(frames: Tensor) -> Tensor:
    """Colourfulness of each pixel of (..., 3, h, w): about 1 on bodies, 0 on the neutral background."""
    chroma = frames - frames.mean(-3, keepdim=True)
    return (chroma.square().sum(-3, keepdim=True) + 1e-6).sqrt()


def statistics(videos: Tensor) -> Tensor:
    """Averages of each of `KINDS` over each quarter of a clip: (b, 32)."""
    b, f = videos.shape[:2]
    chroma = F.avg_pool2d((videos - videos.mean(2, keepdim=True)).flatten(0, 1), 4).unflatten(0, (b, f))
    light = videos.mean((2, 3, 4))
    flat = videos.flatten(0, 1)
    grain = (flat - F.avg_pool2d(flat, 3, 1, 1, count_include_pad=False)).abs().mean((1, 2, 3)).view(b, f)
    matter = (chroma.square().sum(2) + 1e-4).sqrt().mean((2, 3))
    motion = (chroma.diff(dim=1).square().sum(2) + 1e-6).sqrt().mean((2, 3))
    flicker = light.diff(dim=1).abs()
    rows = [*(10 * chroma.mean((3, 4))).unbind(2), (matter + 0.01).log(), light, (grain + 0.01).log()]
    rows += [(motion + 0.003).log(), (flicker + 0.003).log()]
    return torch.cat([F.adaptive_avg_pool1d(row, QUARTERS) for row in rows], 1)


class FramePredictor(nn.Module):
    """A small U-Net that predicts the mean and variance of a frame from three others."""

    def __init__(self, condition_width: int, width: int = 48, wide: int = 96, deep: int = 128):
        super().__init__()
        self.deep = deep
        self.stem, self.fine = _conv(36, width), _conv(width, width)
        self.down, self.middle = _conv(width, wide, 2), _conv(wide, wide)
        self.deeper, self.bottom = _conv(wide, deep, 2), _conv(deep, deep)
        self.up, self.middle_up = _conv(deep, wide), _conv(wide, wide)
        self.upper, self.fine_up = _conv(wide, width), _conv(width, width)
        self.tell = nn.ModuleList([nn.Linear(condition_width + 2, 2 * size) for size in (width, wide, deep)])
        self.out = nn.Conv2d(width, 16, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, stack: Tensor, when: Tensor, caption: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (n, 3, h, w), variance (n, 1, h, w), and the bottleneck averaged over space (n, deep)."""
        condition = torch.cat([caption, when.to(caption)], 1)
        fine = self._modulate(0, self.stem(F.pixel_unshuffle(stack, 2)), condition)
        fine = fine + self.fine(fine)
        middle = self._modulate(1, self.down(fine), condition)
        middle = middle + self.middle(middle)
        deep = self._modulate(2, self.deeper(middle), condition)
        deep = deep + self.bottom(deep)
        middle = middle + self.up(F.interpolate(deep, scale_factor=2.0))
        middle = middle + self.middle_up(middle)
        fine = fine + self.upper(F.interpolate(middle, scale_factor=2.0))
        fine = fine + self.fine_up(fine)
        out = F.pixel_shuffle(self.out(fine), 2).float()
        mean, variance = stack[:, 6:] + out[:, :3], FLOOR**2 + F.softplus(out[:, 3:] - 5)
        return mean, variance, deep.float().mean((2, 3))

    def _modulate(self, level: int, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.tell[level](condition)[:, :, None, None].chunk(2, 1)
        return x * (1 + scale) + shift


def _conv(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, stride, 1), nn.GELU())

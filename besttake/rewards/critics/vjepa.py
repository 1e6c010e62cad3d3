"""V-JEPA 2: whether a clip hangs together, to a network that learned from a million hours of video to fill gaps in it.

V-JEPA 2, arXiv 2506.09985: an encoder of space-time patches, and a predictor of what it would say of hidden ones. The
prompt plays no part. Two scores, both with gradients to the pixels:

    feature consistency: cosine of each moment's features (two frames, averaged over the picture) with the moment
        before it and with the first one, those below 0 taken for 0, averaged: VBench's subject consistency (arXiv
        2311.17982) with V-JEPA's features in DINO's place. A still picture scores highest.
    masked prediction: minus V-JEPA's own training loss, which is what VADER rewards for temporal consistency (arXiv
        2407.08737). Parts of the picture are hidden for the whole clip, their features predicted from the rest, and
        compared by absolute difference with those of the whole clip, normalised. VADER's code for it was never
        published (its issues 10 and 18 ask for it), so the masks are those of V-JEPA 2's training, drawn once with a
        fixed seed: all takes are asked the same.

VADER used V-JEPA 1, of which transformers has no class; the objective is the same.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import VJEPA2Config, VJEPA2Model

from besttake.rewards.frames import evenly, normalised, pixels, shortest_side
from besttake.rewards.networks.image_critic import empty
from besttake.rewards.networks.weights import checkpoint, load_weights, read_json, read_tensors
from besttake.rewards.shipped import check_videos
from besttake.types import FPS, CriticCard, Score, Video

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

HUB_ID = "facebook/vjepa2-vitl-fpc64-256"

MASKS = ((8, 0.15), (2, 0.7))
"""Blocks hidden at once, and the share of the picture in each: the short- and long-range masks of V-JEPA's training."""

ASPECT = (0.75, 1.5)
"""Height over width of the hidden blocks, from and to."""

TRAINED_TOKEN = 0
"""Which of the predictor's tokens stands for what is hidden: training on clips of one length knows only the first."""


def load(path: str | Path | None = None, device: str = "cpu") -> VJepa:
    """The published critic, or any V-JEPA 2 of a folder or hub id.

    Raises:
        ValueError: there are no such files, or they are not of a V-JEPA 2 with its predictor.
    """
    folder = checkpoint("vjepa", path or HUB_ID, "*.safetensors", "config.json")
    config = read_json("vjepa", folder / "config.json")
    if config.get("model_type") != "vjepa2":
        raise ValueError(
            f"critic vjepa: {folder} holds a model of type {config.get('model_type')!r}, expected 'vjepa2'; "
            f"give a V-JEPA 2 in transformers' layout, such as {HUB_ID}"
        )
    network = empty("vjepa", lambda: VJEPA2Model(VJEPA2Config.from_dict(config)))
    load_weights("vjepa", network, read_tensors("vjepa", folder), device=device)
    return VJepa(network)


class VJepa:
    """A `Reward`: feature consistency in [0, 1]; masked prediction at most 0, about -0.8 for guesses of 0."""

    name = "vjepa"
    dimensions = ("feature consistency", "masked prediction")
    differentiable = True
    card = CriticCard(
        "V-JEPA 2 ViT-L, arXiv 2506.09985; hub id facebook/vjepa2-vitl-fpc64-256; as VADER's, arXiv 2407.08737",
        "MIT",
        {"feature consistency": (0.0, 1.0), "masked prediction": (-1.0, 0.0)},
        frames=64,
        resolution="shorter side 292, middle 256 x 256",
        memory=1.3,
    )

    def __init__(self, network: VJEPA2Model):
        self.network = network.eval().requires_grad_(False)
        patch = network.config.patch_size
        assert isinstance(patch, int)  # square patches, as all published ones are
        side = network.config.crop_size // patch
        generator = torch.Generator().manual_seed(0)
        self.masks = [hidden_places(side, blocks, share, generator) for blocks, share in MASKS]

    def __call__(self, videos: Video, prompts: list[str], fps: float = FPS) -> Score:
        """
        Raises:
            ValueError: the videos are not `b f 3 h w` with two moments (four frames) or more, or the prompts are not
                `b`.
        """
        config = self.network.config
        check_videos(self.name, videos, prompts, least_frames=2 * config.tubelet_size)
        clips = shown(videos.to(self.network.device), config.frames_per_clip, config.tubelet_size, config.crop_size)
        patches = self.network.encoder.embeddings(clips)
        features = self.encode(patches)
        moments = features.unflatten(1, (clips.shape[1] // config.tubelet_size, -1)).mean(2)
        scores = [feature_consistency(moments), -self.loss(patches, features)]
        return Score(torch.stack(scores, 1), self.dimensions)

    def chosen(self, frames: int, fps: float) -> list[int]:
        """The frames of a clip that it looks at; of a clip of these alone, all."""
        config = self.network.config
        return sampled(frames, config.frames_per_clip, config.tubelet_size)

    def encode(
        self, patches: Float[Tensor, "b n d"], places: Int[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Features of the patches of whole clips, or of those that lie at `places` alone."""
        for layer in self.network.encoder.layer:
            patches = layer(patches, places)[0]
        return self.network.encoder.layernorm(patches).float()

    def predict(
        self, features: Float[Tensor, "b n d"], seen: Int[Tensor, "b n"], hidden: Int[Tensor, "b m"]
    ) -> Float[Tensor, "b m d"]:
        """The features at the places that are hidden, guessed from those at the places that are seen."""
        predictor = self.network.predictor
        tokens, places = predictor.embeddings(features, [seen], [hidden], mask_index=TRAINED_TOKEN)
        for layer in predictor.layer:
            tokens = layer(tokens, places)[0]
        return predictor.proj(predictor.layernorm(tokens[:, seen.shape[1] :])).float()

    def loss(self, patches: Float[Tensor, "b n d"], features: Float[Tensor, "b n d"]) -> Float[Tensor, "b"]:
        """V-JEPA's training loss of each clip, averaged over the masks."""
        targets = F.layer_norm(features, features.shape[-1:])
        losses = []
        for mask in self.masks:
            hides = mask.flatten().repeat(patches.shape[1] // mask.numel()).to(patches.device)
            seen, hidden = ((~hides).nonzero()[:, 0], hides.nonzero()[:, 0])
            rows = len(patches)
            context = self.encode(patches[:, seen], seen.expand(rows, -1))
            guess = self.predict(context, seen.expand(rows, -1), hidden.expand(rows, -1))
            losses.append((guess - targets[:, hidden]).abs().mean((1, 2)))
        return torch.stack(losses).mean(0)


def feature_consistency(moments: Float[Tensor, "b t d"]) -> Float[Tensor, "b"]:
    """Mean cosine of each moment from the second on with the one before it and with the first; a negative one is 0."""
    before = F.cosine_similarity(moments[:, 1:], moments[:, :-1], dim=-1)
    first = F.cosine_similarity(moments[:, 1:], moments[:, :1], dim=-1)
    return (before.clamp(min=0) + first.clamp(min=0)).mean(1) / 2


def hidden_places(side: int, blocks: int, share: float, generator: torch.Generator) -> Bool[Tensor, "s s"]:
    """Which of `side` x `side` patches V-JEPA hides: blocks of one size and about `share` of the picture each, wherever
    they fall, never all of it."""
    low, high = ASPECT
    aspect = low + float(torch.rand((), generator=generator)) * (high - low)
    area = int(side * side * share)
    height, width = (min(side, max(1, round((area * ratio) ** 0.5))) for ratio in (aspect, 1 / aspect))
    while True:
        hidden = torch.zeros(side, side, dtype=torch.bool)
        for _ in range(blocks):
            top, left = (int(torch.randint(side - size + 1, (), generator=generator)) for size in (height, width))
            hidden[top : top + height, left : left + width] = True
        if not hidden.all():
            return hidden


def sampled(total: int, frames: int, together: int) -> list[int]:
    """All frames of a clip, or `frames` spread evenly over a longer one, but a multiple of `together` of them.

    V-JEPA 2 was trained at 4 frames a second; it is shown every frame all the same, or flaws would pass between two.
    """
    some = list(range(total)) if total <= frames else evenly(total, frames)
    return some[: len(some) // together * together]


def shown(videos: Video, frames: int = 64, together: int = 2, side: int = 256) -> Float[Tensor, "b n 3 s s"]:
    """What the network sees of clips: some frames, the middle of the picture."""
    chosen = sampled(videos.shape[1], frames, together)
    whole = shortest_side(pixels(videos[:, chosen].flatten(0, 1)), int(side * 256 / 224), "bilinear")
    top, left = ((length - side) // 2 for length in whole.shape[-2:])  # as transformers rounds it
    middle = whole[..., top : top + side, left : left + side]
    return normalised(middle, IMAGENET_MEAN, IMAGENET_STD).unflatten(0, (len(videos), len(chosen)))

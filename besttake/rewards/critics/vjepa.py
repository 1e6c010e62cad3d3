"""V-JEPA 2: temporal coherence of a clip, by a model pretrained on masked prediction of a million hours of video.

V-JEPA 2, arXiv 2506.09985: an encoder of space-time patches, and a predictor of the features of masked patches. The
prompt is ignored. There are two scores, both differentiable with respect to the pixels:

    feature consistency: mean cosine of each time step's features (two frames, averaged over space) with those of the
        previous and of the first step, negative values clamped to 0: VBench's subject consistency (arXiv 2311.17982)
        with V-JEPA instead of DINO features. A still picture scores highest.
    masked prediction: the negative of V-JEPA's training loss, VADER's reward for temporal consistency (arXiv
        2407.08737). Parts of the picture are masked in all frames, their features predicted from the rest, and compared
        (L1) with the normalised features of the whole clip. VADER's code for it is not published (its issues 10 and
        18), so the masks are those of V-JEPA 2's training, sampled once with a fixed seed and used for all videos.

VADER used V-JEPA 1, which transformers does not implement; the objective is the same.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import VJEPA2Config, VJEPA2Model

from besttake.rewards.frames import even_frames, normalise, resize_shorter_side, to_pixels
from besttake.rewards.networks.image_critic import empty_network
from besttake.rewards.networks.weights import find_checkpoint, load_weights, read_json, read_tensors
from besttake.rewards.shipped import check_videos
from besttake.types import FPS, CriticCard, Score, Video

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

HUB_ID = "facebook/vjepa2-vitl-fpc64-256"

MASKS = ((8, 0.15), (2, 0.7))
"""(number of blocks, area fraction of each): the short- and long-range masks of V-JEPA's training."""

ASPECT = (0.75, 1.5)
"""Range of the masked blocks' aspect ratio (height over width)."""

TRAINED_TOKEN = 0
"""Index of the predictor's mask token: training on clips of one length uses only the first."""


def load(path: str | Path | None = None, device: str = "cpu") -> VJepa:
    """Load the published critic, or any V-JEPA 2 from a folder or hub id.

    Raises:
        ValueError: a file is missing, or the model is no V-JEPA 2 with a predictor.
    """
    folder = find_checkpoint("vjepa", path or HUB_ID, "*.safetensors", "config.json")
    config = read_json("vjepa", folder / "config.json")
    if config.get("model_type") != "vjepa2":
        raise ValueError(
            f"critic vjepa: {folder} holds a model of type {config.get('model_type')!r}, expected 'vjepa2'; "
            f"give a V-JEPA 2 in transformers' layout, such as {HUB_ID}"
        )
    network = empty_network("vjepa", lambda: VJEPA2Model(VJEPA2Config.from_dict(config)))
    load_weights("vjepa", network, read_tensors("vjepa", folder), device=device)
    return VJepa(network)


class VJepa:
    """A `Reward`: feature consistency in [0, 1]; masked prediction at most 0, about -0.8 for predictions of 0."""

    name = "vjepa"
    dimensions = ("feature consistency", "masked prediction")
    differentiable = True
    card = CriticCard(
        "V-JEPA 2 ViT-L, arXiv 2506.09985; hub id facebook/vjepa2-vitl-fpc64-256; see VADER, arXiv 2407.08737",
        "MIT",
        {"feature consistency": (0.0, 1.0), "masked prediction": (-1.0, 0.0)},
        frames=64,
        resolution="shorter side 292, centre crop 256 x 256",
        memory=1.3,
    )

    def __init__(self, network: VJEPA2Model):
        self.network = network.eval().requires_grad_(False)
        patch = network.config.patch_size
        assert isinstance(patch, int)  # square patches, as all published ones are
        side = network.config.crop_size // patch
        generator = torch.Generator().manual_seed(0)
        self.masks = [sample_mask(side, blocks, share, generator) for blocks, share in MASKS]

    def __call__(self, videos: Video, prompts: list[str], fps: float = FPS) -> Score:
        """
        Raises:
            ValueError: the videos are not `b f 3 h w` with two time steps (four frames) or more, or the prompts are not
                `b`.
        """
        config = self.network.config
        check_videos(self.name, videos, prompts, least_frames=2 * config.tubelet_size)
        clips = preprocess(
            videos.to(self.network.device), config.frames_per_clip, config.tubelet_size, config.crop_size
        )
        patches = self.network.encoder.embeddings(clips)
        features = self.encode(patches)
        moments = features.unflatten(1, (clips.shape[1] // config.tubelet_size, -1)).mean(2)
        scores = [feature_consistency(moments), -self.loss(patches, features)]
        return Score(torch.stack(scores, 1), self.dimensions)

    def chosen(self, frames: int, fps: float) -> list[int]:
        """Indices of the frames it uses; all frames, if only those are passed."""
        config = self.network.config
        return sample_frames(frames, config.frames_per_clip, config.tubelet_size)

    def encode(
        self, patches: Float[Tensor, "b n d"], places: Int[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Features of the patches of whole clips, or only of the patches at `places`."""
        for layer in self.network.encoder.layer:
            patches = layer(patches, places)[0]
        return self.network.encoder.layernorm(patches).float()

    def predict(
        self, features: Float[Tensor, "b n d"], visible: Int[Tensor, "b n"], hidden: Int[Tensor, "b m"]
    ) -> Float[Tensor, "b m d"]:
        """Predict the features of the hidden patches from those of the visible ones."""
        predictor = self.network.predictor
        tokens, places = predictor.embeddings(features, [visible], [hidden], mask_index=TRAINED_TOKEN)
        for layer in predictor.layer:
            tokens = layer(tokens, places)[0]
        return predictor.proj(predictor.layernorm(tokens[:, visible.shape[1] :])).float()

    def loss(self, patches: Float[Tensor, "b n d"], features: Float[Tensor, "b n d"]) -> Float[Tensor, "b"]:
        """V-JEPA's training loss of each clip, averaged over the masks."""
        targets = F.layer_norm(features, features.shape[-1:])
        losses = []
        for mask in self.masks:
            is_hidden = mask.flatten().repeat(patches.shape[1] // mask.numel()).to(patches.device)
            visible, hidden = ((~is_hidden).nonzero()[:, 0], is_hidden.nonzero()[:, 0])
            rows = len(patches)
            context = self.encode(patches[:, visible], visible.expand(rows, -1))
            predicted = self.predict(context, visible.expand(rows, -1), hidden.expand(rows, -1))
            losses.append((predicted - targets[:, hidden]).abs().mean((1, 2)))
        return torch.stack(losses).mean(0)


def feature_consistency(moments: Float[Tensor, "b t d"]) -> Float[Tensor, "b"]:
    """Mean cosine of each time step with the previous and the first one, negative values clamped to 0."""
    before = F.cosine_similarity(moments[:, 1:], moments[:, :-1], dim=-1)
    first = F.cosine_similarity(moments[:, 1:], moments[:, :1], dim=-1)
    return (before.clamp(min=0) + first.clamp(min=0)).mean(1) / 2


def sample_mask(side: int, blocks: int, share: float, generator: torch.Generator) -> Bool[Tensor, "s s"]:
    """A V-JEPA mask of `side` x `side` patches: `blocks` random blocks of about `share` of the area each."""
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


def sample_frames(total: int, frames: int, multiple_of: int) -> list[int]:
    """Indices of all frames, or of `frames` evenly spaced ones of a longer clip, truncated to a multiple.

    V-JEPA 2 was trained at 4 frames a second; every frame is used nevertheless, or short flaws would be missed.
    """
    some = list(range(total)) if total <= frames else even_frames(total, frames)
    return some[: len(some) // multiple_of * multiple_of]


def preprocess(videos: Video, frames: int = 64, multiple_of: int = 2, side: int = 256) -> Float[Tensor, "b n 3 s s"]:
    """The network's input: some frames, centre-cropped."""
    chosen = sample_frames(videos.shape[1], frames, multiple_of)
    whole = resize_shorter_side(to_pixels(videos[:, chosen].flatten(0, 1)), int(side * 256 / 224), "bilinear")
    top, left = ((length - side) // 2 for length in whole.shape[-2:])  # rounded as in transformers
    middle = whole[..., top : top + side, left : left + side]
    return normalise(middle, IMAGENET_MEAN, IMAGENET_STD).unflatten(0, (len(videos), len(chosen)))

"""ViCLIP: agreement of a clip with its prompt, by a CLIP whose vision encoder attends jointly over space and time.

InternVid, arXiv 2307.06942, section 4; it is the video critic of T2V-Turbo (arXiv 2405.18750). The score is the cosine
of the clip's and the prompt's embeddings, without the temperature. Preprocessing follows the authors' code: 8 frames,
the first of each eighth of the clip, resized (not cropped) to 224 x 224 bilinearly without antialiasing, normalised
with ImageNet's mean and deviation. (T2V-Turbo crops at random instead.) Prompts are truncated to 30 tokens.
"""

from __future__ import annotations

import gzip
import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ftfy
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from besttake.rewards.frames import normalise, to_pixels
from besttake.rewards.networks.image_critic import empty_network, read_tokenizer
from besttake.rewards.networks.weights import find_checkpoint, load_weights, read_tensors
from besttake.rewards.shipped import check_videos
from besttake.types import FPS, CriticCard, Score, Video

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

HUB_ID = "OpenGVLab/ViCLIP-L-14-hf"
PICKLE = "ViClip-InternVid-10M-FLT.pth"
"""The same weights in the authors' original format (hub id OpenGVLab/ViCLIP)."""

MERGES = "bpe_simple_vocab_16e6.txt.gz"
"""OpenAI CLIP's vocabulary as BPE merges: a header line, then merges, of which the first `MERGED` are used."""

MERGED = 49152 - 256 - 2
TOKENIZER = "openai/clip-vit-large-patch14"
"""Hub id of the same vocabulary, used if the weights' folder has none."""


def load(path: str | Path | None = None, device: str = "cpu") -> ViCLIP:
    """Load the published critic.

    Args:
        path: a hub id, a folder with `*.safetensors` or the published pickle, or the pickle itself; the vocabulary
            (`bpe_simple_vocab_16e6.txt.gz`, or a CLIP tokenizer's files) is read from the same folder or the hub.

    Raises:
        ValueError: a file is missing, or has other weights or another vocabulary.
    """
    source = find_checkpoint("viclip", path or HUB_ID, "*.safetensors", PICKLE, MERGES)
    folder = source.parent if source.is_file() else source
    pickled = source.is_dir() and not list(source.glob("*.safetensors")) and (source / PICKLE).is_file()
    tensors: dict[str, Any] = dict(read_tensors("viclip", source / PICKLE if pickled else source))
    tensors = tensors.get("model", tensors)  # the pickle nests its weights under "model"
    network = empty_network("viclip", lambda: ViCLIPNetwork(ViCLIPSizes.of(tensors)))
    load_weights("viclip", network, tensors, lambda name: None if name == "temp" else name, device=device)
    return ViCLIP(network, tokenizer_of(folder))


class ViCLIP:
    """A `Reward`, the cosine of video and prompt: in [-1, 1], in practice 0 to 0.36."""

    name = "viclip"
    dimensions = ("text alignment",)
    differentiable = True
    card = CriticCard(
        "ViCLIP-L/14 of InternVid, arXiv 2307.06942; hub id OpenGVLab/ViCLIP-L-14-hf",
        "MIT",
        {"text alignment": (0.0, 0.364)},  # of VBench, which measures overall consistency with it
        frames=8,
        resolution="224 x 224, aspect ratio not kept",
        memory=1.7,
    )

    def __init__(self, network: ViCLIPNetwork, tokenizer: CLIPTokenizer):
        """
        Raises:
            ValueError: the tokenizer has more tokens than the network embeds.
        """
        if len(tokenizer) > network.sizes.vocabulary:
            raise ValueError(
                f"critic viclip: the tokenizer has {len(tokenizer)} tokens, but the network has only "
                f"{network.sizes.vocabulary}; give the vocabulary ({MERGES}) that belongs to the weights"
            )
        self.network, self.tokenizer = network.eval().requires_grad_(False), tokenizer

    def __call__(self, videos: Video, prompts: list[str], fps: float = FPS) -> Score:
        """
        Raises:
            ValueError: the videos are not `b f 3 h w`, or the prompts are not `b`.
        """
        check_videos(self.name, videos, prompts, least_frames=1)
        device, sizes = self.network.device, self.network.sizes
        video_features = self.network.vision_encoder(preprocess(videos.to(device), sizes.frames, sizes.side))
        text_features = self.network.text_encoder(token_ids(self.tokenizer, prompts, sizes.words).to(device))
        return Score(F.cosine_similarity(video_features.float(), text_features.float())[:, None], self.dimensions)

    def chosen(self, frames: int, fps: float) -> list[int]:
        """Indices of the frames it uses; all frames, if only those are passed."""
        return sample_frames(frames, self.network.sizes.frames)


def sample_frames(total: int, frames: int) -> list[int]:
    """Indices of the first frame of each of `frames` equal parts of a clip; short clips repeat frames."""
    return [k * total // frames for k in range(frames)]


def preprocess(videos: Video, frames: int = 8, side: int = 224) -> Float[Tensor, "b n 3 s s"]:
    """The network's input: some frames, resized to a square; the gradient ignores the rounding to whole grey levels."""
    some = to_pixels(videos[:, sample_frames(videos.shape[1], frames)].flatten(0, 1))
    exact = F.interpolate(some, (side, side), mode="bilinear")
    whole = exact + (exact.round() - exact).detach()
    return normalise(whole, IMAGENET_MEAN, IMAGENET_STD).unflatten(0, (len(videos), frames))


def token_ids(tokenizer: CLIPTokenizer, prompts: list[str], words: int) -> Int[Tensor, "b words"]:
    """Prompts as CLIP token ids, padded with 0; longer ones are truncated before the end token."""
    clean = [html.unescape(html.unescape(ftfy.fix_text(prompt))).strip() for prompt in prompts]
    ids = torch.zeros(len(prompts), words, dtype=torch.long)
    for row, ids_of_prompt in enumerate(tokenizer(clean, truncation=True, max_length=words)["input_ids"]):
        ids[row, : len(ids_of_prompt)] = torch.tensor(ids_of_prompt)
    return ids


def tokenizer_of(folder: Path) -> CLIPTokenizer:
    """Load CLIP's tokenizer from a folder's merges or tokenizer files; without either, from the hub.

    Raises:
        ValueError: it is missing or damaged.
    """
    if (folder / MERGES).is_file():
        return _tokenizer_of_merges(folder / MERGES)
    return read_tokenizer("viclip", folder, TOKENIZER)


def _tokenizer_of_merges(file: Path) -> CLIPTokenizer:
    try:
        lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")[1 : MERGED + 1]
        pairs = [tuple(line.split()) for line in lines if line]
        letters = list(bytes_to_unicode().values())
        tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(first + second for first, second in pairs)]
        tokens += ["<|startoftext|>", "<|endoftext|>"]
        return CLIPTokenizer({token: i for i, token in enumerate(tokens)}, pairs)  # type: ignore[arg-type]
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"critic viclip: {file} is damaged, or no list of merges: {error}") from error


@dataclass(frozen=True)
class ViCLIPSizes:
    """Sizes of the network, by default those of ViCLIP-L/14. Attention heads have 64 channels, as in every CLIP."""

    side: int = 224
    patch: int = 14
    frames: int = 8
    width: int = 1024
    layers: int = 24
    words: int = 32
    vocabulary: int = 49408
    text_width: int = 768
    text_layers: int = 12
    embedding_width: int = 768
    """Width of the shared embedding space."""

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> ViCLIPSizes:
        """The sizes, read off published weights.

        Raises:
            ValueError: the weights are not those of a ViCLIP.
        """
        try:
            width, _, _, patch, _ = tensors["vision_encoder.conv1.weight"].shape
            places = len(tensors["vision_encoder.positional_embedding"]) - 1
            vocabulary, text_width = tensors["text_encoder.token_embedding.weight"].shape
            return cls(
                side=round(places**0.5) * patch,
                patch=patch,
                frames=tensors["vision_encoder.temporal_positional_embedding"].shape[1],
                width=width,
                layers=_count(tensors, "vision_encoder.transformer.resblocks."),
                words=len(tensors["text_encoder.positional_embedding"]),
                vocabulary=vocabulary,
                text_width=text_width,
                text_layers=_count(tensors, "text_encoder.transformer.resblocks."),
                embedding_width=tensors["vision_encoder.proj"].shape[1],
            )
        except (KeyError, ValueError) as error:
            raise ValueError(f"critic viclip: the weights are not those of a ViCLIP: {error!r}") from error


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


class ViCLIPNetwork(nn.Module):
    """Both encoders, with the published parameter names."""

    def __init__(self, sizes: ViCLIPSizes | None = None):
        super().__init__()
        self.sizes = sizes or ViCLIPSizes()
        self.vision_encoder, self.text_encoder = VideoEncoder(self.sizes), TextEncoder(self.sizes)

    @property
    def device(self) -> torch.device:
        return self.text_encoder.text_projection.device


class VideoEncoder(nn.Module):
    """A CLIP image encoder over the patches of all frames, with spatial and temporal position embeddings."""

    def __init__(self, sizes: ViCLIPSizes):
        super().__init__()
        width, patch = sizes.width, sizes.patch
        self.conv1 = nn.Conv3d(3, width, (1, patch, patch), (1, patch, patch), bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        places = (sizes.side // patch) ** 2
        self.positional_embedding = nn.Parameter(torch.randn(1 + places, width) * width**-0.5)
        self.temporal_positional_embedding = nn.Parameter(torch.zeros(1, sizes.frames, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, sizes.layers)
        self.proj = nn.Parameter(torch.randn(width, sizes.embedding_width) * width**-0.5)

    def forward(self, frames: Float[Tensor, "b f 3 s s"]) -> Float[Tensor, "b d"]:
        patches = self.conv1(frames.transpose(1, 2)).flatten(3).permute(0, 3, 2, 1)  # (b, place, f, width)
        patches = patches + self.positional_embedding[1:, None] + self.temporal_positional_embedding
        first = (self.class_embedding + self.positional_embedding[0]).expand(len(frames), 1, -1)
        tokens = self.transformer(self.ln_pre(torch.cat([first, patches.flatten(1, 2)], 1)))
        return self.ln_post(tokens[:, 0]) @ self.proj


class TextEncoder(nn.Module):
    """CLIP's text encoder, pooled at the end token, which has the highest id."""

    def __init__(self, sizes: ViCLIPSizes):
        super().__init__()
        width = sizes.text_width
        self.token_embedding = nn.Embedding(sizes.vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.randn(sizes.words, width) * 0.01)
        self.transformer = Transformer(width, sizes.text_layers, causal=True)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, sizes.embedding_width) * width**-0.5)

    def forward(self, ids: Int[Tensor, "b words"]) -> Float[Tensor, "b d"]:
        tokens = self.ln_final(self.transformer(self.token_embedding(ids) + self.positional_embedding))
        return tokens[torch.arange(len(ids)), ids.argmax(1)] @ self.text_projection


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, causal: bool = False):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, causal) for _ in range(layers))

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        for block in self.resblocks:
            tokens = block(tokens)
        return tokens


class Block(nn.Module):
    def __init__(self, width: int, causal: bool):
        super().__init__()
        self.attn, self.ln_1, self.ln_2 = Attention(width, causal), nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        tokens = tokens + self.attn(self.ln_1(tokens))
        inner = self.mlp["c_fc"](self.ln_2(tokens))
        return tokens + self.mlp["c_proj"](inner * torch.sigmoid(1.702 * inner))


class Attention(nn.Module):
    """Attention with heads of 64 channels and the parameter names of `nn.MultiheadAttention`."""

    def __init__(self, width: int, causal: bool):
        super().__init__()
        self.causal, self.heads = causal, width // 64
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        qkv = F.linear(tokens, self.in_proj_weight, self.in_proj_bias)
        query, key, value = qkv.unflatten(-1, (3, self.heads, 64)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

"""ViCLIP: how well a clip fits its prompt, to a CLIP whose picture encoder attends over space and time at once.

InternVid, arXiv 2307.06942, section 4; it is the video critic of T2V-Turbo (arXiv 2405.18750). The score is the cosine
of the clip's and the prompt's embeddings, without the temperature. As the authors' own code shows clips to the network:
8 frames, one from the start of each eighth, squeezed (not cropped) to 224 x 224, bilinearly and without antialiasing,
normalised with ImageNet's mean and deviation. (T2V-Turbo crops at random instead.) A prompt counts up to 30 tokens.
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

from besttake.rewards.frames import normalised, pixels
from besttake.rewards.networks.image_critic import empty, read_tokenizer
from besttake.rewards.networks.weights import checkpoint, load_weights, read_tensors
from besttake.rewards.shipped import check_videos
from besttake.types import FPS, CriticCard, Score, Video

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

HUB_ID = "OpenGVLab/ViCLIP-L-14-hf"
PICKLE = "ViClip-InternVid-10M-FLT.pth"
"""The same weights as the authors first published them (hub id OpenGVLab/ViCLIP)."""

MERGES = "bpe_simple_vocab_16e6.txt.gz"
"""OpenAI CLIP's vocabulary, as its merges; its first line is a header, and of the rest it uses the first `MERGED`."""

MERGED = 49152 - 256 - 2
TOKENIZER = "openai/clip-vit-large-patch14"
"""Where the same vocabulary is found if it does not lie beside the weights."""


def load(path: str | Path | None = None, device: str = "cpu") -> ViCLIP:
    """The published critic.

    Args:
        path: a hub id, a folder with `*.safetensors` or the published pickle, or the pickle itself; the vocabulary
            (`bpe_simple_vocab_16e6.txt.gz`, or a CLIP tokenizer's files) is looked for beside it, then on the hub.

    Raises:
        ValueError: there are no such files, or they hold other weights or another vocabulary.
    """
    found = checkpoint("viclip", path or HUB_ID, "*.safetensors", PICKLE, MERGES)
    folder = found.parent if found.is_file() else found
    pickled = found.is_dir() and not list(found.glob("*.safetensors")) and (found / PICKLE).is_file()
    tensors: dict[str, Any] = dict(read_tensors("viclip", found / PICKLE if pickled else found))
    tensors = tensors.get("model", tensors)  # the pickle's weights lie one level down
    network = empty("viclip", lambda: Network(Sizes.of(tensors)))
    load_weights("viclip", network, tensors, lambda name: None if name == "temp" else name, device=device)
    return ViCLIP(network, tokenizer_of(folder))


class ViCLIP:
    """A `Reward`, the cosine of video and prompt: in [-1, 1], in practice from 0 to 0.36."""

    name = "viclip"
    dimensions = ("text alignment",)
    differentiable = True
    card = CriticCard(
        "ViCLIP-L/14 of InternVid, arXiv 2307.06942; hub id OpenGVLab/ViCLIP-L-14-hf",
        "MIT",
        {"text alignment": (0.0, 0.364)},  # of VBench, which measures overall consistency with it
        frames=8,
        resolution="224 x 224, squeezed",
        memory=1.7,
    )

    def __init__(self, network: Network, tokenizer: CLIPTokenizer):
        """
        Raises:
            ValueError: the tokenizer has more tokens than the network embeds.
        """
        if len(tokenizer) > network.sizes.vocabulary:
            raise ValueError(
                f"critic viclip: the tokenizer has {len(tokenizer)} tokens, but the network knows "
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
        seen = self.network.vision_encoder(shown(videos.to(device), sizes.frames, sizes.side))
        said = self.network.text_encoder(token_ids(self.tokenizer, prompts, sizes.words).to(device))
        return Score(F.cosine_similarity(seen.float(), said.float())[:, None], self.dimensions)

    def chosen(self, frames: int, fps: float) -> list[int]:
        """The frames of a clip that it looks at; of a clip of these alone, all."""
        return sampled(frames, self.network.sizes.frames)


def sampled(total: int, frames: int) -> list[int]:
    """The first frame of each of `frames` equal parts of a clip; frames of shorter clips come more than once."""
    return [k * total // frames for k in range(frames)]


def shown(videos: Video, frames: int = 8, side: int = 224) -> Float[Tensor, "b n 3 s s"]:
    """What the network sees of clips: some frames, squeezed to a square; the gradient ignores the rounding to whole
    levels."""
    some = pixels(videos[:, sampled(videos.shape[1], frames)].flatten(0, 1))
    exact = F.interpolate(some, (side, side), mode="bilinear")
    whole = exact + (exact.round() - exact).detach()
    return normalised(whole, IMAGENET_MEAN, IMAGENET_STD).unflatten(0, (len(videos), frames))


def token_ids(tokenizer: CLIPTokenizer, prompts: list[str], words: int) -> Int[Tensor, "b words"]:
    """Prompts as CLIP's ids, padded with 0; a longer one is cut, and its last id is the closing token's."""
    clean = [html.unescape(html.unescape(ftfy.fix_text(prompt))).strip() for prompt in prompts]
    ids = torch.zeros(len(prompts), words, dtype=torch.long)
    for row, found in enumerate(tokenizer(clean, truncation=True, max_length=words)["input_ids"]):
        ids[row, : len(found)] = torch.tensor(found)
    return ids


def tokenizer_of(folder: Path) -> CLIPTokenizer:
    """CLIP's tokenizer of a folder: from its merges, or a tokenizer's own files; without either, from the hub.

    Raises:
        ValueError: there is none, or its file is damaged.
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
class Sizes:
    """How large the network is; ViCLIP-L/14 unless told otherwise. Attention heads are 64 wide, as in every CLIP."""

    side: int = 224
    patch: int = 14
    frames: int = 8
    width: int = 1024
    layers: int = 24
    words: int = 32
    vocabulary: int = 49408
    text_width: int = 768
    text_layers: int = 12
    shared: int = 768
    """Numbers in an embedding of either."""

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Sizes:
        """The sizes of published weights.

        Raises:
            ValueError: they are not those of a ViCLIP.
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
                shared=tensors["vision_encoder.proj"].shape[1],
            )
        except (KeyError, ValueError) as error:
            raise ValueError(f"critic viclip: the weights are not those of a ViCLIP: {error!r}") from error


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


class Network(nn.Module):
    """Both encoders, with the published names."""

    def __init__(self, sizes: Sizes | None = None):
        super().__init__()
        self.sizes = sizes or Sizes()
        self.vision_encoder, self.text_encoder = VideoEncoder(self.sizes), TextEncoder(self.sizes)

    @property
    def device(self) -> torch.device:
        return self.text_encoder.text_projection.device


class VideoEncoder(nn.Module):
    """A CLIP picture encoder over the patches of all frames at once: each knows its place and its time."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        width, patch = sizes.width, sizes.patch
        self.conv1 = nn.Conv3d(3, width, (1, patch, patch), (1, patch, patch), bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        places = (sizes.side // patch) ** 2
        self.positional_embedding = nn.Parameter(torch.randn(1 + places, width) * width**-0.5)
        self.temporal_positional_embedding = nn.Parameter(torch.zeros(1, sizes.frames, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, sizes.layers)
        self.proj = nn.Parameter(torch.randn(width, sizes.shared) * width**-0.5)

    def forward(self, frames: Float[Tensor, "b f 3 s s"]) -> Float[Tensor, "b d"]:
        patches = self.conv1(frames.transpose(1, 2)).flatten(3).permute(0, 3, 2, 1)  # (b, place, f, width)
        patches = patches + self.positional_embedding[1:, None] + self.temporal_positional_embedding
        first = (self.class_embedding + self.positional_embedding[0]).expand(len(frames), 1, -1)
        tokens = self.transformer(self.ln_pre(torch.cat([first, patches.flatten(1, 2)], 1)))
        return self.ln_post(tokens[:, 0]) @ self.proj


class TextEncoder(nn.Module):
    """CLIP's text encoder; the embedding is read at the closing token, which has the highest id."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        width = sizes.text_width
        self.token_embedding = nn.Embedding(sizes.vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.randn(sizes.words, width) * 0.01)
        self.transformer = Transformer(width, sizes.text_layers, causal=True)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, sizes.shared) * width**-0.5)

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
    """Heads of 64, with the parameter names of `nn.MultiheadAttention`."""

    def __init__(self, width: int, causal: bool):
        super().__init__()
        self.causal, self.heads = causal, width // 64
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        together = F.linear(tokens, self.in_proj_weight, self.in_proj_bias)
        query, key, value = together.unflatten(-1, (3, self.heads, 64)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

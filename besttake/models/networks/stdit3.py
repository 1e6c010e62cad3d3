"""STDiT3, the denoiser of Open-Sora 1.2 (Zheng et al. 2024, arXiv 2412.20404): a DiT of spatial and temporal blocks.

Even blocks attend within a frame, odd ones along time; both read the caption. Parameters have the names of the public
checkpoint `hpcai-tech/OpenSora-STDiT-v3`. The network's input is called x, as in the paper; tokens are
`b f s w`: batch, frames, patches of a frame, width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from jaxtyping import Bool, Float
from torch import Tensor, nn

from besttake.models.networks.checkpoints import PublicCheckpoint

EPS = 1e-6
"""Of every norm."""


class STDiT3(PublicCheckpoint, ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Predicts the velocity x_0 - noise and, beside it, a variance that nobody uses.

    Args: those of the public `config.json`. `input_size`, `class_dropout_prob`, `drop_path`, `enable_*`, `only_*`,
        `freeze_*` and `skip_*` are about how the authors trained; they are read and kept, and change nothing.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("STDiT3Block",)
    _repeated_blocks = ("STDiT3Block",)

    @register_to_config
    def __init__(
        self,
        input_size: Sequence[int | None] = (None, None, None),
        input_sq_size: int = 512,
        in_channels: int = 4,
        patch_size: Sequence[int] = (1, 2, 2),
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        class_dropout_prob: float = 0.1,
        pred_sigma: bool = True,
        drop_path: float = 0.0,
        caption_channels: int = 4096,
        model_max_length: int = 300,
        qk_norm: bool = True,
        enable_flash_attn: bool = False,
        enable_layernorm_kernel: bool = False,
        enable_sequence_parallelism: bool = False,
        only_train_temporal: bool = False,
        freeze_y_embedder: bool = False,
        skip_y_embedder: bool = False,
    ):
        super().__init__()
        self.gradient_checkpointing = False
        self.patch_size, self.input_sq_size = (patch_size[0], patch_size[1], patch_size[2]), input_sq_size
        self.out_channels = in_channels * 2 if pred_sigma else in_channels
        self.rope = Rotary(hidden_size // num_heads)
        self.x_embedder = Patches(in_channels, hidden_size, self.patch_size)
        self.t_embedder = ScalarEmbedding(hidden_size)
        self.fps_embedder = ScalarEmbedding(hidden_size)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))
        self.y_embedder = CaptionEmbedding(caption_channels, hidden_size, model_max_length)
        for name in ("spatial_blocks", "temporal_blocks"):
            blocks = (STDiT3Block(hidden_size, num_heads, mlp_ratio, qk_norm) for _ in range(depth))
            setattr(self, name, nn.ModuleList(blocks))
        self.final_layer = FinalLayer(hidden_size, math.prod(patch_size) * self.out_channels)

    def forward(
        self,
        x: Float[Tensor, "b c f h w"],
        timestep: Float[Tensor, "b"],
        y: Float[Tensor, "b 1 l d"],
        mask: Tensor | None = None,
        x_mask: Bool[Tensor, "b f"] | None = None,
        *,
        fps: Tensor,
        height: Tensor,
        width: Tensor,
    ) -> Float[Tensor, "b o f h w"]:
        """The prediction, float32; its first `c` of `o` channels are the velocity.

        Args:
            x: noised latents; sides that are no multiple of the patch are padded with zeros at their ends.
            timestep: in [0, 1000]; 1000 is noise.
            y: text embeddings.
            mask: (m, l), 1 where `y` holds a token of the caption, at least once in each row; m divides b, and the
                rows are taken in turn: m0 m1 m0 m1. By default all of `y` is read.
            x_mask: False for frames that are clean: they are modulated as at timestep 0.
            fps: (m,) frames a second; 120 of a still.
            height: (m,) of the clips, in pixels; as `width`, only the first counts.
        """
        dtype = self.x_embedder.proj.weight.dtype
        size = x.shape[2:]
        x = self.x_embedder(x.to(dtype))  # (b, f, h, w, width)
        grid = x.shape[2:4]
        scale = math.sqrt(height[0].item() * width[0].item()) / self.input_sq_size
        places = positions(grid, scale, x.shape[-1], x.device)
        x = (x + places.to(dtype)).flatten(2, 3)

        speed = tiled(self.fps_embedder(fps, dtype), len(x))
        t = self.t_embedder(timestep, dtype) + speed
        t_0 = None if x_mask is None else self.t_embedder(torch.zeros_like(timestep), dtype) + speed
        modulation = self.t_block(t)[:, None]
        if x_mask is not None and t_0 is not None:
            modulation = torch.where(x_mask[..., None], modulation, self.t_block(t_0)[:, None])
        modulation = modulation.unflatten(-1, (6, -1))[:, :, None]  # (b, f or 1, 1, 6, width)

        captions, mask = self.y_embedder(y.to(dtype).squeeze(1), mask)
        x = self._through_blocks(x, captions, mask, modulation)
        x = self.final_layer(x, t, x_mask, t_0).unflatten(2, grid)
        return self._pixels(x, size).float()

    def _through_blocks(self, x: Tensor, captions: Tensor, mask: Tensor | None, modulation: Tensor) -> Tensor:
        """A temporal block is a spatial one that sees frames and patches the other way round, and turns its queries."""
        rotation = self.rope(x.shape[1])
        run: Any = (
            self._gradient_checkpointing_func if self.gradient_checkpointing and torch.is_grad_enabled() else call
        )
        for spatial, temporal in zip(self.spatial_blocks, self.temporal_blocks, strict=True):
            x = run(spatial, x, captions, mask, modulation)
            x = run(temporal, x.transpose(1, 2), captions, mask, modulation.transpose(1, 2), rotation).transpose(1, 2)
        return x

    def _pixels(self, x: Float[Tensor, "b f h w o"], size: Sequence[int]) -> Tensor:
        """Patches side by side, without what padding added."""
        x = x.unflatten(-1, (*self.patch_size, self.out_channels))
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        frames, height, width = size
        return x[:, :, :frames, :height, :width]


class STDiT3Block(nn.Module):
    """Attention within each group of tokens, attention to the caption, and an MLP."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, qk_norm: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.attn = SelfAttention(width, heads, qk_norm)
        self.cross_attn = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.mlp = MLP(width, int(width * mlp_ratio), width)
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)

    def forward(
        self,
        x: Float[Tensor, "b groups tokens w"],
        captions: Float[Tensor, "b l w"],
        mask: Bool[Tensor, "b 1 1 l"] | None,
        modulation: Tensor,
        rotation: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """
        Args:
            modulation: (b, groups or 1, tokens or 1, 6, w), what time makes of shift, scale and gate.
            rotation: how queries and keys are turned, if they are.
        """
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (self.scale_shift_table + modulation).unbind(-2)
        x = x + gate * self.attn(modulated(self.norm1(x), shift, scale), rotation)
        x = x + self.cross_attn(x, captions, mask)
        return x + mlp_gate * self.mlp(modulated(self.norm2(x), mlp_shift, mlp_scale))


class SelfAttention(nn.Module):
    """Attention within each group of tokens; queries and keys are normed by head, then turned."""

    _attention_backend = None

    def __init__(self, width: int, heads: int, qk_norm: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = (nn.RMSNorm(width // heads, EPS) if qk_norm else nn.Identity() for _ in "qk")
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b groups tokens w"], rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        qkv = self.qkv(x).flatten(0, 1).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.unbind(2)  # each (b * groups, tokens, heads, width of a head)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = turned(q, rotation), turned(k, rotation)
        seen = dispatch_attention_fn(q, k, v, backend=self._attention_backend)
        return self.proj(seen.flatten(2).unflatten(0, x.shape[:2]))


class CrossAttention(nn.Module):
    """Attention of every token to the caption."""

    _attention_backend = None

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "b groups tokens w"], captions: Float[Tensor, "b l w"], mask: Tensor | None
    ) -> Tensor:
        q = self.q_linear(x).flatten(1, 2).unflatten(-1, (self.heads, -1))
        k, v = self.kv_linear(captions).unflatten(-1, (2, self.heads, -1)).unbind(2)
        read = dispatch_attention_fn(q, k, v, attn_mask=mask, backend=self._attention_backend)
        return self.proj(read.flatten(2).unflatten(1, x.shape[1:3]))


class MLP(nn.Module):
    """Two layers around a GELU in its tanh form."""

    def __init__(self, width: int, hidden: int, out: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Patches(nn.Module):
    """Latents to tokens, one per patch."""

    def __init__(self, channels: int, width: int, size: tuple[int, int, int]):
        super().__init__()
        self.proj = nn.Conv3d(channels, width, kernel_size=size, stride=size)

    def forward(self, x: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b f h w width"]:
        short = (-side % patch for side, patch in zip(x.shape[2:], self.proj.kernel_size, strict=True))
        padding = chain.from_iterable((0, missing) for missing in reversed([*short]))
        return self.proj(F.pad(x, tuple(padding))).movedim(1, -1)


class ScalarEmbedding(nn.Module):
    """A vector for a number, such as the timestep."""

    def __init__(self, width: int, waves: int = 256):
        super().__init__()
        self.waves = waves
        self.mlp = nn.Sequential(nn.Linear(waves, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, numbers: Float[Tensor, "b"], dtype: torch.dtype) -> Float[Tensor, "b w"]:
        return self.mlp(sinusoids(numbers, self.waves).to(dtype))


class CaptionEmbedding(nn.Module):
    """Text embeddings to the width of the network, and the learned embedding `y_embedding` of no caption at all."""

    y_embedding: Tensor

    def __init__(self, channels: int, width: int, longest: int):
        super().__init__()
        self.y_proj = MLP(channels, width, width)
        self.register_buffer("y_embedding", torch.randn(longest, channels) / channels**0.5)

    def forward(self, y: Float[Tensor, "b l d"], mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Captions (b, l', w), cut to the tokens that some row reads, and where each row reads them, (b, 1, 1, l')."""
        if mask is None:
            return self.y_proj(y), None
        reads = tiled(mask.flatten(1) != 0, len(y))
        used = reads.any(0)
        y, reads = y[:, used], reads[:, used]
        return self.y_proj(y), None if reads.all() else reads[:, None, None]


class FinalLayer(nn.Module):
    """Tokens to the pixels of their patches."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.linear = nn.Linear(width, out)
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)

    def forward(
        self, x: Float[Tensor, "b f s w"], t: Float[Tensor, "b w"], x_mask: Tensor | None, t_0: Tensor | None
    ) -> Tensor:
        """Frames that are clean are modulated twice, at `t` and then at `t_0`: so was the checkpoint trained."""
        x = self._modulated(x, t)
        if x_mask is not None and t_0 is not None:
            x = torch.where(x_mask[..., None, None], x, self._modulated(x, t_0))
        return self.linear(x)

    def _modulated(self, x: Tensor, t: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table + t[:, None, None, None]).unbind(-2)
        return modulated(self.norm_final(x), shift, scale)


class Rotary(nn.Module):
    """Rotary positions along time (Su et al. 2021, arXiv 2104.09864): pairs of neighbouring channels turn together."""

    freqs: Tensor

    def __init__(self, width: int, base: float = 10_000.0):
        super().__init__()
        self.register_buffer("freqs", base ** -(torch.arange(0, width, 2).float() / width))

    def forward(self, frames: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of each frame's angles, (f, width / 2)."""
        angles = torch.arange(frames, device=self.freqs.device)[:, None] * self.freqs.float()
        return angles.cos(), angles.sin()


def turned(x: Float[Tensor, "b f heads w"], rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Channels 2i and 2i + 1 of each frame, turned by that frame's i-th angle."""
    cos, sin = (waves.unsqueeze(-2) for waves in rotation)
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2).type_as(x)


def positions(
    grid: Sequence[int], scale: float, channels: int, device: torch.device | None = None
) -> Float[Tensor, "h w c"]:
    """Sines and cosines of where each patch is: the first half of the channels tells its column, the second its row.

    Coordinates are stretched to a square of as many patches, and divided by the clip's `scale`: its side in pixels
    over the side of the clips the network started from.
    """
    height, width = grid
    side = round(math.sqrt(height * width))
    frequencies = 10_000.0 ** -(torch.arange(0, channels // 2, 2, device=device).float() / (channels // 2))
    waves = []
    for patches in grid:
        angles = (torch.arange(patches, device=device) / scale * (side / patches))[:, None] * frequencies
        waves.append(torch.cat([angles.sin(), angles.cos()], -1))
    rows, columns = waves
    halves = columns.expand(height, -1, -1), rows[:, None].expand(-1, width, -1)
    return torch.cat(halves, -1)


def sinusoids(numbers: Float[Tensor, "b"], waves: int) -> Float[Tensor, "b waves"]:
    """Cosines, then sines, of each number at wavelengths from 2 pi to 10,000 times that."""
    half = waves // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=numbers.device) / half)
    angles = numbers[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def tiled(rows: Tensor, b: int) -> Tensor:
    """Rows taken in turn until there are `b`."""
    return rows.repeat(b // len(rows), *[1] * (rows.ndim - 1))


def call(module: nn.Module, *args: Any) -> Tensor:
    return module(*args)

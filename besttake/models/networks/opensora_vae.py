"""The autoencoder of Open-Sora 1.2 (Zheng et al. 2024, arXiv 2412.20404, section 2.2): two stages, space then time.

Each frame is encoded by SDXL's image autoencoder, eight times smaller; chunks of 17 such frames are encoded by a causal
autoencoder, four times shorter. Parameters have the names of the public checkpoint `hpcai-tech/OpenSora-VAE-v1.2`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from jaxtyping import Float
from torch import Tensor, nn

from besttake.models.networks.checkpoints import PublicCheckpoint

IMAGE_SCALE = 0.18215
"""What image latents are multiplied by: Stable Diffusion 1's factor, though the weights are SDXL's."""

IMAGE_AUTOENCODER = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
"""SDXL's, which the public config names ("PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers") and does not spell out."""


class VideoAutoencoderPipeline(PublicCheckpoint, ModelMixin, ConfigMixin):
    """Videos to latents and back. Its name is the public checkpoint's; to diffusers it is a model, no pipeline.

    The denoiser works on (latents - shift) / scale.

    Args: those of the public `config.json`; `from_pretrained`, `freeze_vae_2d` and `cal_loss` change nothing here.
        vae_2d: `micro_batch_size`, the frames encoded at once; and, unless it is SDXL's, the `config` of the
            image autoencoder.
        vae_temporal: settings of `TemporalAutoencoder`, the public ones by default.
        micro_frame_size: frames of a chunk.
        shift: mean of each latent channel.
        scale: standard deviation of each latent channel.
    """

    # They are buffers, which diffusers would hide behind the config's.
    ignore_for_config = ["shift", "scale"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        vae_2d: Mapping[str, Any] | None = None,
        vae_temporal: Mapping[str, Any] | None = None,
        from_pretrained: str | None = None,
        freeze_vae_2d: bool = False,
        cal_loss: bool = False,
        micro_frame_size: int = 17,
        shift: Sequence[float] = (-0.10, 0.34, 0.27, 0.98),
        scale: Sequence[float] = (3.85, 2.32, 2.33, 3.06),
    ):
        super().__init__()
        self.chunk = micro_frame_size
        image, time = dict(vae_2d or {}), dict(vae_temporal or {})
        self.spatial_vae = FramesAutoencoder(image.get("config") or {}, image.get("micro_batch_size") or 4)
        self.temporal_vae = TemporalAutoencoder(
            **{name: value for name, value in time.items() if name not in ("type", "from_pretrained")}
        )
        self.register_buffer("shift", torch.tensor(shift).view(1, -1, 1, 1, 1))
        self.register_buffer("scale", torch.tensor(scale).view(1, -1, 1, 1, 1))

    @property
    def space(self) -> int:
        """Pixels to a latent, along height and width."""
        return 2 ** (len(self.spatial_vae.module.config.block_out_channels) - 1)

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a clip: five for each 17 frames, and one for every four begun of the rest."""
        return sum(-(-chunk // self.temporal_vae.factor) for chunk in self._chunks(frames))

    def most_frames(self, latents: int) -> int:
        """The longest clip that has so many latent frames; one frame for one."""
        chunks, rest = divmod(latents, self.latent_frames(self.chunk))
        return 1 if latents == 1 else chunks * self.chunk + rest * self.temporal_vae.factor

    def encode(self, x: Float[Tensor, "b 3 f h w"]) -> AutoencoderKLOutput:
        """The posterior of videos in [-1, 1], whose `mode()` is latents `b c g i j`, not yet shifted and scaled.

        It is the second stage's; of the first the mode is taken, where the authors draw a sample.
        """
        chunks = self.spatial_vae.encode(x).split(self.chunk, 2)
        moments = torch.cat([self.temporal_vae.encode(chunk) for chunk in chunks], 2)
        return AutoencoderKLOutput(DiagonalGaussianDistribution(moments))

    def decode(
        self, z: Float[Tensor, "b c g i j"], num_frames: int | None = None, return_dict: bool = True
    ) -> DecoderOutput | tuple[Float[Tensor, "b 3 f h w"]]:
        """Videos, in about [-1, 1], of latents as `encode` gives them.

        Args:
            num_frames: of the clip; by default as many as the latents hold.

        Raises:
            ValueError: a clip of `num_frames` has another number of latent frames.
        """
        frames = self.most_frames(z.shape[2]) if num_frames is None else num_frames
        if self.latent_frames(frames) != z.shape[2]:
            raise ValueError(
                f"{frames} frames have {self.latent_frames(frames)} latent frames; {z.shape[2]} are to be decoded"
            )
        chunks = z.split(self.latent_frames(self.chunk), 2)
        images = map(self.temporal_vae.decode, chunks, self._chunks(frames))
        video = self.spatial_vae.decode(torch.cat([*images], 2))
        return DecoderOutput(video) if return_dict else (video,)

    def enable_slicing(self) -> None:
        """Nothing: a few frames are decoded at a time in any case."""

    def enable_tiling(self) -> None:
        """Work on tiles of frames from now on; the second stage, which is small, works on whole frames."""
        self.spatial_vae.module.enable_tiling()

    def _chunks(self, frames: int) -> list[int]:
        """How many frames each chunk of a clip has."""
        return [min(self.chunk, frames - start) for start in range(0, frames, self.chunk)]


class FramesAutoencoder(nn.Module):
    """An image autoencoder, frame by frame; a few frames at once, so that memory does not grow with the clip."""

    def __init__(self, config: Mapping[str, Any], micro_batch: int):
        super().__init__()
        self.module: Any = AutoencoderKL(**{**IMAGE_AUTOENCODER, **config})
        self.micro_batch = micro_batch

    def encode(self, x: Float[Tensor, "b 3 f h w"]) -> Float[Tensor, "b c f i j"]:
        frames = x.transpose(1, 2).flatten(0, 1).split(self.micro_batch)
        latents = torch.cat([self.module.encode(part).latent_dist.mode() for part in frames]) * IMAGE_SCALE
        return latents.unflatten(0, (len(x), -1)).transpose(1, 2)

    def decode(self, z: Float[Tensor, "b c f i j"]) -> Float[Tensor, "b 3 f h w"]:
        frames = (z / IMAGE_SCALE).transpose(1, 2).flatten(0, 1).split(self.micro_batch)
        images = torch.cat([self.module.decode(part).sample for part in frames])
        return images.unflatten(0, (len(z), -1)).transpose(1, 2)


class TemporalAutoencoder(nn.Module):
    """A causal autoencoder along time, after MAGVIT-v2 (Yu et al. 2023, arXiv 2310.05737)."""

    def __init__(
        self,
        in_out_channels: int = 4,
        latent_embed_dim: int = 4,
        embed_dim: int = 4,
        filters: int = 128,
        num_res_blocks: int = 4,
        channel_multipliers: Sequence[int] = (1, 2, 2, 4),
        temporal_downsample: Sequence[bool] = (False, True, True),
        num_groups: int = 32,
        activation_fn: str = "swish",
    ):
        super().__init__()
        if activation_fn != "swish":
            raise ValueError(f"vae_temporal.activation_fn is {activation_fn!r}; besttake knows 'swish' only")
        widths = [filters * multiplier for multiplier in channel_multipliers]
        settings = widths, list(temporal_downsample), num_res_blocks, num_groups
        self.factor = 2 ** sum(temporal_downsample)
        self.encoder = Encoder(in_out_channels, 2 * latent_embed_dim, *settings)
        self.quant_conv = CausalConv(2 * latent_embed_dim, 2 * embed_dim, 1)
        self.post_quant_conv = CausalConv(embed_dim, latent_embed_dim, 1)
        self.decoder = Decoder(latent_embed_dim, in_out_channels, *settings)

    def encode(self, x: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b 2d g h w"]:
        """Mean and log variance of latents; zeros come before the first frame until the frames can be divided."""
        return self.quant_conv(self.encoder(F.pad(x, (0, 0, 0, 0, -x.shape[2] % self.factor, 0))))

    def decode(self, z: Float[Tensor, "b d g h w"], frames: int) -> Float[Tensor, "b c f h w"]:
        return self.decoder(self.post_quant_conv(z))[:, :, -frames % self.factor :]


class Encoder(nn.Module):
    def __init__(self, channels: int, out: int, widths: list[int], halves: list[bool], depth: int, groups: int):
        super().__init__()
        self.conv_in = CausalConv(channels, widths[0], 3, bias=False)
        self.block_res_blocks = nn.ModuleList(
            stack(before, width, depth, groups) for before, width in pairwise([widths[0], *widths])
        )
        self.conv_blocks = nn.ModuleList(
            CausalConv(width, width, 3, stride=2) if half else nn.Identity()
            for width, half in zip(widths[:-1], halves, strict=True)
        )
        self.res_blocks = stack(widths[-1], widths[-1], depth, groups)
        self.norm1 = nn.GroupNorm(groups, widths[-1])
        self.conv2 = CausalConv(widths[-1], out, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for blocks, shorten in zip(self.block_res_blocks, [*self.conv_blocks, nn.Identity()], strict=True):
            x = shorten(blocks(x))
        return self.conv2(F.silu(self.norm1(self.res_blocks(x))))


class Decoder(nn.Module):
    """The encoder backwards; its levels are numbered as the encoder's, the last comes first."""

    def __init__(self, channels: int, out: int, widths: list[int], doubles: list[bool], depth: int, groups: int):
        super().__init__()
        self.conv1 = CausalConv(channels, widths[-1], 3)
        self.res_blocks = stack(widths[-1], widths[-1], depth, groups)
        self.block_res_blocks = nn.ModuleList(
            stack(before, width, depth, groups) for width, before in pairwise([*widths, widths[-1]])
        )
        self.conv_blocks = nn.ModuleList(
            CausalConv(width, 2 * width, 3) if double else nn.Identity()
            for width, double in zip(widths[1:], doubles, strict=True)
        )
        self.norm1 = nn.GroupNorm(groups, widths[0])
        self.conv_out = CausalConv(widths[0], out, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.res_blocks(self.conv1(x))
        for level in reversed(range(len(self.block_res_blocks))):
            x = self.block_res_blocks[level](x)
            if level and isinstance(lengthen := self.conv_blocks[level - 1], CausalConv):
                x = lengthen(x).unflatten(1, (-1, 2)).movedim(2, 3).flatten(2, 3)  # pairs of channels, now in time
        return self.conv_out(F.silu(self.norm1(x)))


class ResBlock(nn.Module):
    def __init__(self, channels: int, out: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = CausalConv(channels, out, 3, bias=False)
        self.norm2 = nn.GroupNorm(groups, out)
        self.conv2 = CausalConv(out, out, 3, bias=False)
        self.conv3 = CausalConv(channels, out, 1, bias=False) if channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        change = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return self.conv3(x) + change


class CausalConv(nn.Module):
    """A convolution that sees no later frame; zeros stand in for what came before the first, and around each frame."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, bias: bool = True):
        super().__init__()
        side = kernel // 2
        self.padding = (side, side, side, side, kernel - stride, 0)
        self.conv = nn.Conv3d(channels, out, kernel, stride=(stride, 1, 1), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding))


def stack(channels: int, out: int, depth: int, groups: int) -> nn.Sequential:
    return nn.Sequential(*(ResBlock(channels if i == 0 else out, out, groups) for i in range(depth)))

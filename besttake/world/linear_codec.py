"""The best linear codec of patches, written into an autoencoder's weights: a start that a network needs hours to reach.

A network with norms and SiLU can hold a linear map exactly: each component enters as a pair of channels with opposite
signs, since silu(u) - silu(-u) = u; one large constant channel keeps the RMS norm at 1; and the residual blocks begin
as identities. Training then only has to add what is not linear.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SMALL = 0.1
"""Scale of the paired channels, next to the constant one: how far the RMS norm may stray from 1."""


@torch.no_grad()
def start_as_linear_codec(vae: Any, videos: Tensor) -> None:
    """Set an `AutoencoderKLLTXVideo` without scaling in its blocks to the principal components of patches.

    Args:
        videos: clips `b f c h w` that the components are taken from.
    """
    patches = as_patches(videos, vae.encoder.patch_size)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    components = vae.config.latent_channels
    basis, spread = vectors[:, -components:].flip(1), values[-components:].flip(0).sqrt()
    scale = (spread * spread.mean()).sqrt()  # halfway to whitening: details count, but less than outlines
    for block in [m for m in vae.modules() if hasattr(m, "conv2")]:
        block.conv2.conv.weight.zero_()
        block.conv2.conv.bias.zero_()
    _write_pairs(
        vae.encoder, (basis / scale).T, -(basis / scale).T @ mean, torch.eye(components), torch.zeros(components)
    )
    _write_pairs(vae.decoder, torch.eye(components), torch.zeros(components), basis * scale, mean)


def _write_pairs(half: Any, inward: Tensor, bias: Tensor, outward: Tensor, out_bias: Tensor) -> None:
    """Make one half of the autoencoder compute outward @ (inward @ x + bias) + out_bias at every position."""
    conv_in, conv_out, n = half.conv_in.conv, half.conv_out.conv, len(inward)
    width = conv_in.weight.shape[0]
    conv_in.weight.zero_()
    conv_in.bias.zero_()
    for first, sign in ((0, SMALL), (1, -SMALL)):
        conv_in.weight[first : 2 * n : 2, :, 1, 1, 1] = sign * inward
        conv_in.bias[first : 2 * n : 2] = sign * bias
    conv_in.bias[width - 1] = width**0.5
    conv_out.weight.zero_()
    conv_out.bias.zero_()
    for first, sign in ((0, SMALL), (1, -SMALL)):
        conv_out.weight[: len(outward), first : 2 * n : 2, 1, 1, 1] = outward / sign
    conv_out.bias[: len(outward)] = out_bias


def as_patches(videos: Tensor, size: int) -> Tensor:
    """Patches (n, c size size) of videos `b f c h w`, in the order of values that the autoencoder has."""
    b, f, c, h, w = videos.shape
    cut = videos.reshape(b, f, c, h // size, size, w // size, size)
    return cut.permute(0, 1, 3, 5, 2, 6, 4).reshape(-1, c * size * size)

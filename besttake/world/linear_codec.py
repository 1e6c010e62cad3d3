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
    """Set an autoencoder that cuts frames into patches, and resizes nothing else, to the patches' principal components.

    Args:
        vae: an `AutoencoderKLLTXVideo`, or an `AutoencoderKLWan` of one stage.
        videos: clips `b f c h w` that the components are taken from.
    """
    patches = as_patches(videos, vae.config.patch_size)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    components = vae.config.get("latent_channels") or vae.config.z_dim
    basis, spread = vectors[:, -components:].flip(1), values[-components:].flip(0).sqrt()
    scale = (spread * spread.mean()).sqrt()  # halfway to whitening: details count, but less than outlines
    for name, module in vae.named_modules():
        last = name.rpartition(".")[2]
        if last in ("conv2", "proj"):  # what a residual block or an attention block adds
            _write(module, torch.zeros(0, 0), torch.zeros(0))
        elif last in ("quant_conv", "post_quant_conv"):
            _write(module, torch.eye(module.out_channels), torch.zeros(module.out_channels))
    inward = (basis / scale).T
    _write_pairs(vae.encoder, inward, -inward @ mean, torch.eye(components), torch.zeros(components))
    _write_pairs(vae.decoder, torch.eye(components), torch.zeros(components), basis * scale, mean)


def _write_pairs(half: Any, inward: Tensor, bias: Tensor, outward: Tensor, out_bias: Tensor) -> None:
    """Make one half of the autoencoder compute outward @ (inward @ x + bias) + out_bias at every position."""
    pairs = torch.stack([inward, -inward], 1).flatten(0, 1)
    _write(half.conv_in, SMALL * pairs, SMALL * torch.stack([bias, -bias], 1).flatten())
    constant = _convolution(half.conv_in).bias
    constant[-1] = len(constant) ** 0.5
    _write(half.conv_out, torch.stack([outward, -outward], 2).flatten(1) / SMALL, out_bias)


def _write(module: Any, weight: Tensor, bias: Tensor) -> None:
    """Make a convolution, in space or in space and time, the matrix `weight` at its own position, and 0 beyond it."""
    convolution = _convolution(module)
    convolution.weight.zero_()
    convolution.bias.zero_()
    here = [size // 2 for size in convolution.kernel_size]
    if len(here) == 3 and convolution is module:  # Wan's own: the last frame it sees is the present one
        here[0] = convolution.kernel_size[0] - 1
    convolution.weight[(slice(len(weight)), slice(weight.shape[1]), *here)] = weight
    convolution.bias[: len(bias)] = bias


def _convolution(module: Any) -> Any:
    """The convolution itself, or the one that LTX's module wraps."""
    return getattr(module, "conv", module)


def as_patches(videos: Tensor, size: int) -> Tensor:
    """Patches (n, c size size) of videos `b f c h w`, in the order of values that the autoencoder has."""
    b, f, c, h, w = videos.shape
    cut = videos.reshape(b, f, c, h // size, size, w // size, size)
    return cut.permute(0, 1, 3, 5, 2, 6, 4).reshape(-1, c * size * size)

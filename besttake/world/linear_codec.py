"""The optimal linear codec of patches (PCA), written into an autoencoder's weights as an initialisation.

A network with norms and SiLU can represent a linear map exactly: each component is a pair of channels with opposite
signs, since silu(u) - silu(-u) = u; one large constant channel keeps the RMS norm at 1; and the residual blocks are
initialised as identities. Training would take hours to get there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SMALL = 0.1
"""Scale of the paired channels relative to the constant one, which bounds the deviation of the RMS norm from 1."""


@torch.no_grad()
def start_as_linear_codec(vae: Any, videos: Tensor) -> None:
    """Initialise a patch autoencoder without further downsampling with the patches' principal components.

    Args:
        vae: an `AutoencoderKLLTXVideo`, or an `AutoencoderKLWan` of one stage.
        videos: clips `b f c h w` to compute the components from.
    """
    patches = as_patches(videos, vae.config.patch_size)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    components = vae.config.get("latent_channels") or vae.config.z_dim
    basis, spread = vectors[:, -components:].flip(1), values[-components:].flip(0).sqrt()
    scale = (spread * spread.mean()).sqrt()  # halfway to whitening: details have weight, but less than outlines
    for name, module in vae.named_modules():
        last = name.rpartition(".")[2]
        if last in ("conv2", "proj"):  # output of a residual or attention block
            _write(module, torch.zeros(0, 0), torch.zeros(0))
        elif last in ("quant_conv", "post_quant_conv"):
            _write(module, torch.eye(module.out_channels), torch.zeros(module.out_channels))
    inward = (basis / scale).T
    _write_pairs(vae.encoder, inward, -inward @ mean, torch.eye(components), torch.zeros(components))
    _write_pairs(vae.decoder, torch.eye(components), torch.zeros(components), basis * scale, mean)


def _write_pairs(half: Any, inward: Tensor, bias: Tensor, outward: Tensor, out_bias: Tensor) -> None:
    """Make the encoder or decoder compute outward @ (inward @ x + bias) + out_bias at every position."""
    pairs = torch.stack([inward, -inward], 1).flatten(0, 1)
    _write(half.conv_in, SMALL * pairs, SMALL * torch.stack([bias, -bias], 1).flatten())
    constant = _convolution(half.conv_in).bias
    constant[-1] = len(constant) ** 0.5
    _write(half.conv_out, torch.stack([outward, -outward], 2).flatten(1) / SMALL, out_bias)


def _write(module: Any, weight: Tensor, bias: Tensor) -> None:
    """Set a 2-D or 3-D convolution to the matrix `weight` at its centre, and 0 elsewhere."""
    convolution = _convolution(module)
    convolution.weight.zero_()
    convolution.bias.zero_()
    centre = [size // 2 for size in convolution.kernel_size]
    if len(centre) == 3 and convolution is module:  # Wan's causal convolution: its last frame is the current one
        centre[0] = convolution.kernel_size[0] - 1
    convolution.weight[(slice(len(weight)), slice(weight.shape[1]), *centre)] = weight
    convolution.bias[: len(bias)] = bias


def _convolution(module: Any) -> Any:
    """The convolution itself, or the one wrapped by LTX's module."""
    return getattr(module, "conv", module)


def as_patches(videos: Tensor, size: int) -> Tensor:
    """Patches (n, c size size) of videos `b f c h w`, with values in the autoencoder's order."""
    b, f, c, h, w = videos.shape
    cut = videos.reshape(b, f, c, h // size, size, w // size, size)
    return cut.permute(0, 1, 3, 5, 2, 6, 4).reshape(-1, c * size * size)

"""Decoding a clip: as it is, in bfloat16, channels last, by cuDNN's own search, and compiled."""

from __future__ import annotations

import time

import torch
from random_models import random_model
from timing import Rows, kernels, tried
from torch import nn


def decoding(source: str, rows: Rows, tiny: bool) -> None:
    """Seconds of each way, the quickest to prepare first."""
    device, dtype = ("cpu", torch.float32) if tiny else ("cuda", torch.bfloat16)
    model = random_model(source, dtype, device)
    size = model.default_size()
    latents = torch.randn(1, *model.latent_shape(*size), device=device)

    def work() -> None:
        model.decode(latents, size[0])

    with torch.no_grad(), model.using("vae"):
        vae = model.pipeline.vae
        rows["held in"] = str(vae.dtype).removeprefix("torch.")
        rows["as it is"] = tried(work, 1)
        if vae.dtype == torch.float32:
            with torch.autocast(device, torch.bfloat16):
                rows["autocast to bfloat16"] = tried(work, 1)
        if not tiny:
            rows["kernels"] = kernels(work)
        put_channels_last(vae)
        rows["channels last"] = tried(work, 1)
        if tiny:
            return
        rows["kernels, channels last"] = kernels(work)
        torch.backends.cudnn.benchmark = True
        began = time.perf_counter()
        rows["channels last, cudnn.benchmark"] = tried(work, 1)
        rows["seconds to search and run it"] = round(time.perf_counter() - began, 1)
        torch.backends.cudnn.benchmark = False
        if not hasattr(vae, "decoder"):  # Open-Sora's is two autoencoders
            return
        began = time.perf_counter()
        vae.decoder.compile()
        rows["channels last, compiled"] = tried(work, 1)
        rows["seconds to compile and run it"] = round(time.perf_counter() - began, 1)


def put_channels_last(network: nn.Module) -> None:
    """Convolutions' weights in the memory format that tensor cores read."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for weight in network.parameters():
        if weight.ndim in formats:
            weight.data = weight.data.to(memory_format=formats[weight.ndim])

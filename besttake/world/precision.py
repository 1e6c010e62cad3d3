"""The fastest floating-point precision of the CPU."""

from __future__ import annotations

import torch


def fastest_dtype() -> torch.dtype:
    """bfloat16 on CPUs with native support; otherwise float32, since bfloat16 would be ten times slower."""
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def mixed_precision() -> torch.autocast:
    """Autocast to bfloat16 if that is fastest."""
    return torch.autocast("cpu", torch.bfloat16, enabled=fastest_dtype() == torch.bfloat16)

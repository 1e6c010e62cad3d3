"""The precision in which a processor computes fastest."""

from __future__ import annotations

import torch


def fastest_dtype() -> torch.dtype:
    """bfloat16 on processors that multiply in it; elsewhere, where it is ten times slower, float32."""
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def mixed_precision() -> torch.autocast:
    """Autocast to bfloat16, where that is fastest."""
    return torch.autocast("cpu", torch.bfloat16, enabled=fastest_dtype() == torch.bfloat16)

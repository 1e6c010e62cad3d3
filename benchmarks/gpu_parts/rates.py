"""Rates of a card: large matrix products, copies, and each of torch's attention kernels."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from timing import Rows, in_one_line, seconds
from torch.nn.attention import SDPBackend, sdpa_kernel

PRODUCTS = ((35552, 1920, 1920), (35552, 1920, 7680), (32760, 1536, 1536), (32760, 1536, 8960))
"""Rows, and the sides of a weight, of CogVideoX-2B's and Wan 1.3B's linear layers."""

ATTENTION = {"cogvideox-2b": (30, 17776, 64), "wan-1.3b": (12, 32760, 128), "cogvideox-5b": (48, 17776, 64)}
"""Heads, tokens and channels a head of one clip at the model's own size."""

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def rates(rows: Rows, tiny: bool) -> None:
    """Matrix products in TFLOP/s; copies in TB/s."""
    side, device = (256, "cpu") if tiny else (8192, "cuda")
    work = 2 * side**3 / 1e12
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    half = a.bfloat16(), b.bfloat16()
    rows["bfloat16"] = round(work / seconds(lambda: half[0] @ half[1], 10), 4)
    rows["float32"] = round(work / seconds(lambda: a @ b, 3), 4)
    if not tiny:
        torch.backends.cuda.matmul.allow_tf32 = True
        rows["tf32"] = round(work / seconds(lambda: a @ b, 3), 4)
        one = torch.ones((), device=device)
        eight = half[0].to(torch.float8_e4m3fn), half[1].to(torch.float8_e4m3fn).t().contiguous().t()
        try:
            product = partial(torch._scaled_mm, *eight, one, one, out_dtype=torch.bfloat16)
            rows["float8"] = round(work / seconds(product, 10), 4)
        except RuntimeError:
            rows["float8"] = None  # a card before Ada
        for m, k, n in PRODUCTS:
            x, w = (torch.randn(*shape, device=device).bfloat16() for shape in ((m, k), (k, n)))
            rows[f"bfloat16 {m} x {k} x {n}"] = round(2 * m * k * n / seconds(partial(torch.mm, x, w), 10) / 1e12, 2)
    big = torch.empty(side * side * 8, device=device)
    rows["copy"] = round(2 * big.nbytes / seconds(big.clone, 5) / 1e12, 4)


def attention(rows: Rows, tiny: bool) -> None:
    """TFLOP/s forward, and with the backward pass; and the largest difference from the first kernel's output."""
    for model, (heads, tokens, channels) in ATTENTION.items():
        tokens, device = (64, "cpu") if tiny else (tokens, "cuda")
        tensors = (torch.randn(1, heads, tokens, channels, device=device, dtype=torch.bfloat16) for _ in range(3))
        q, k, v = (x.requires_grad_() for x in tensors)
        attend, work, reference = partial(F.scaled_dot_product_attention, q, k, v), 4e-12 * heads * tokens**2, None
        for name, backend in BACKENDS.items():
            try:
                with sdpa_kernel(backend):
                    with torch.no_grad():
                        out, forward = attend().float(), seconds(attend, 5)
                    both = seconds(lambda attend=attend, v=v: attend().backward(v.detach()), 3)
            except RuntimeError as error:
                rows[f"{model} {name}"] = {"failed": in_one_line(error)}
                continue
            reference = out if reference is None else reference
            rows[f"{model} {name}"] = {
                "forward": round(work * channels / forward, 2),
                "forward and backward": round(3.5 * work * channels / both, 2),
                "largest difference": round(float((out - reference).abs().max()), 5),
            }

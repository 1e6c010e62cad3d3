"""How much of a card's published rates operations reach, by family, as measured on a card.

The H200's are derived from `benchmarks/results/NVIDIA-H200-2026-11-27.json` (PyTorch 2.11, bfloat16, not compiled).
Where a comment gives a share of kernels, the rate is the family's FLOPs or bytes, as `Meter` counts them, divided by
that share of the kernels' time in a forward pass of Wan 2.1 1.3B with a float32 LoRA (81 x 480 x 832, 741.5 ms), unless
another is named. Convolutions are fitted to the decoding of one model each, so that for those there is no check.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from besttake.plan.cards import Card


@dataclass(frozen=True)
class Rates:
    """Fractions of the published rates that are reached.

    Attributes:
        card: the card they were measured on; "" = assumed.
        date: of the measurement.
        linear: matrix products in 16 bits.
        linear32: matrix products in float32.
        attention: fused attention, by the largest number of channels a head that a fraction holds for.
        attention_backward: its backward pass, likewise.
        convolution: convolutions in 16 bits.
        convolution32: float32 convolutions, in TF32.
        bandwidth: operations that only read and write memory.
        narrow_norm: of these, layer norms of at most `NARROW` channels, such as those of queries and keys.
        gaps: time of a pass divided by that of its kernels.
    """

    card: str
    date: str
    linear: float
    linear32: float
    attention: Mapping[int, float]
    attention_backward: Mapping[int, float]
    convolution: float
    convolution32: float
    bandwidth: float
    narrow_norm: float
    gaps: float


NARROW = 64

H200 = Rates(
    card="H200",
    date="2026-11-27",
    linear=0.80,  # 82.1 TFLOP in 104 ms (the nvjet kernels, 14.0 %) = 790 TFLOP/s; alone 655 to 770, by size
    linear32=0.50,  # 2.33 TFLOP of LoRA in 69.7 ms (the sm80_xmma f32 kernels, 9.4 %) = 33; large squares reach 50
    attention={64: 0.434, 128: 0.64},  # cuDNN's, alone: 429 and 634 TFLOP/s; within the network 635 (42.7 %)
    attention_backward={64: 0.44, 128: 0.53},  # 5 / (7 / forward and backward - 2 / forward): 437 and 522 TFLOP/s
    convolution=0.155,  # CogVideoX-2B decodes 49 x 480 x 720, 315 TFLOP, in 2.416 s, 0.27 of them memory's
    convolution32=0.30,  # Wan 2.1 1.3B decodes 4 x 81 x 480 x 832, 1,096 TFLOP, in 11.1 s, 3.3 of them memory's
    bandwidth=0.77,  # 0.930 TB in 251 ms (33.9 %) = 3.7 TB/s; a copy alone reaches 3.9
    narrow_norm=0.05,  # CogVideoX-2B: half of 16.4 GB in 36 of 40.6 ms (layer norms, 13.6 % of 298.4 ms), at 0.23 TB/s
    gaps=1.04,  # six passes of both models: 1.015 to 1.086
)

MEASURED = {rates.card: rates for rates in (H200,)}
"""By the card's name in `cards`."""


def rates_of(card: Card) -> Rates:
    """The rates measured on a card, or on the H200 if there are none."""
    return MEASURED.get(card.name, H200)


def uniform(efficiency: float) -> Rates:
    """One fraction for all arithmetic; memory at 80 % of its bandwidth."""
    widths = {128: efficiency}
    fractions = efficiency, efficiency, widths, widths, efficiency, efficiency
    return Rates("", "", *fractions, bandwidth=0.8, narrow_norm=0.8, gaps=1.0)


def by_width(fractions: Mapping[int, float], channels: int) -> float:
    """The fraction for heads of so many channels."""
    widths = sorted(fractions)
    return fractions[next((width for width in widths if channels <= width), widths[-1])]

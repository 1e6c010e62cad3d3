"""Graphics cards according to their data sheets: dense TFLOP/s (no sparsity), memory in GiB."""

from __future__ import annotations

from dataclasses import dataclass

RESERVE = 1.5
"""GiB of a card that are not available to tensors: the CUDA context and fragmentation."""


@dataclass(frozen=True)
class Card:
    """Published peak rates of a card.

    Attributes:
        memory: GiB.
        half: TFLOP/s of matrix products in bfloat16 with float32 accumulation.
        tensor32: TFLOP/s of float32 convolutions, which PyTorch runs in TF32.
        single: TFLOP/s of all other float32 operations.
        bandwidth: memory bandwidth in TB/s.
    """

    name: str
    memory: float
    half: float
    tensor32: float
    single: float
    bandwidth: float


CARDS = {
    card.name: card
    for card in (
        Card("H200", 141e9 / 2**30, 989, 495, 67, 4.8),
        Card("H100", 80, 989, 495, 67, 3.35),
        Card("H100-PCIe", 80, 756, 378, 51, 2.0),
        Card("A100-80GB", 80, 312, 156, 19.5, 2.0),
        Card("A100-40GB", 40, 312, 156, 19.5, 1.55),
        Card("L40S", 48, 362, 183, 91.6, 0.864),
        Card("RTX-6000-Ada", 48, 364, 182, 91.1, 0.96),
        Card("A6000", 48, 155, 77.4, 38.7, 0.768),
        Card("RTX-5090", 32, 209.5, 104.8, 104.8, 1.792),
        Card("RTX-4090", 24, 165.2, 82.6, 82.6, 1.008),
        Card("RTX-3090", 24, 71, 35.6, 35.6, 0.936),
        Card("L4", 24, 121, 60, 30.3, 0.3),
        Card("RTX-4080", 16, 97.5, 48.7, 48.7, 0.717),
    )
}


def find_card(name: str) -> Card:
    """A card by its name or an unambiguous part of it, ignoring case and punctuation; ValueError if there is none."""
    wanted = _plain(name)
    matches = [card for card in CARDS.values() if wanted in _plain(card.name)]
    exact = [card for card in matches if wanted == _plain(card.name)]
    if len(exact or matches) == 1:
        return (exact or matches)[0]
    known = ", ".join(card.name for card in matches or CARDS.values())
    raise ValueError(f"there {'are several cards' if matches else 'is no card'} '{name}'; give one of {known}")


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())

"""The aesthetic head as `.pth`, and CLIP in a folder beside it."""

from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from besttake.rewards.critics.aesthetic import CLIP, HEAD
from tests.tiny_critics.clip_parts import clip, write_clip


def write(folder: Path) -> None:
    model = clip("quick_gelu")
    write_clip(folder / CLIP, model)
    widths, places = (model.config.projection_dim, 1024, 128, 64, 16, 1), (0, 2, 4, 6, 7)
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    state = {f"layers.{place}.weight": layer.weight.data for place, layer in zip(places, layers, strict=True)}
    state |= {f"layers.{place}.bias": layer.bias.data for place, layer in zip(places, layers, strict=True)}
    torch.save(state, folder / f"{HEAD}.pth")

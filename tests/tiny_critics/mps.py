"""MPS's weights as they are published, a whole module in a pickle, with CLIP's files since tests have no hub."""

from pathlib import Path

import torch
from torch import nn

from besttake.rewards.critics.mps import FILE, MpsNetwork
from tests.tiny.parts import without_zeros
from tests.tiny_critics.clip_parts import clip, write_config, write_tokenizer


class Forgotten(nn.Module):
    """A module of code that whoever reads the pickle has not got; with a config, and a buffer that is not kept."""

    def __init__(self):
        super().__init__()
        self.config = {"dtype": torch.float16, "layers": torch.nn.GELU()}
        self.register_buffer("mask", torch.ones(2), persistent=False)


def write(folder: Path) -> None:
    model = clip()
    network = without_zeros(MpsNetwork(model.config, width=24, heads=2, head_width=8, inner=32, layers=2))
    network.clip = model
    state = {published(name): tensor.contiguous().clone() for name, tensor in network.state_dict().items()}
    state["model.text_model.embeddings.position_ids"] = torch.arange(16)[None]
    state["cross_model.layers.0.1.fn.rotary_emb.inv_freq"] = torch.ones(4)
    write_config(folder, model)
    write_tokenizer(folder)
    torch.save(as_module(state), folder / f"{FILE}.pth")


def as_module(state: dict[str, torch.Tensor]) -> nn.Module:
    """Modules in modules, whose state dict this is."""
    root = Forgotten()
    for name, tensor in state.items():
        place = root
        *path, last = name.split(".")
        for step in path:
            if step not in place._modules:
                place.add_module(step, Forgotten())
            place = place._modules[step]
        if tensor.is_floating_point():
            place.register_parameter(last, nn.Parameter(tensor))
        else:
            place.register_buffer(last, tensor)
    return root


def published(name: str) -> str:
    """The checkpoint's name of one of ours."""
    half, rest = name.split(".", 1)
    if half == "clip":
        return f"model.{rest}"
    layer, block, part = rest.split(".", 2)
    return f"cross_model.layers.{layer}.{block}.fn.{part}"

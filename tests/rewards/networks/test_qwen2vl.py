import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from besttake.rewards.frames import normalise, resize_like_pillow, to_pixels
from besttake.rewards.networks.qwen2vl import grid_size, network_name, to_patches


@pytest.mark.parametrize("limits", [(100352, 200704), (200704, 200704), (3136, 1003520)])
@pytest.mark.parametrize("size", [(480, 832), (832, 480), (720, 1280), (64, 64), (45, 900), (448, 448), (333, 517)])
def test_sizes_are_those_of_the_published_processor(size, limits):
    assert grid_size("x", *size, *limits) == smart_resize(*size, 28, *limits)


def test_a_strip_is_refused():
    with pytest.raises(ValueError, match=r"critic x: a frame of 2 x 402 is too long"):
        grid_size("x", 2, 402, 3136, 200704)


@pytest.mark.parametrize("size", [(60, 100), (224, 168), (300, 90)])
def test_patches_of_two_frames_are_those_of_the_published_processor(size):
    y, x = torch.meshgrid(torch.linspace(0, 6, size[0]), torch.linspace(0, 9, size[1]), indexing="ij")
    video = torch.stack([torch.stack([torch.sin(x * (c + 1) + y + t) for c in range(3)]) for t in range(2)])
    whole = ((video + 1) * 127.5).round().byte()
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 40000, "longest_edge": 60000})
    pictures = [Image.fromarray(np.ascontiguousarray(frame.permute(1, 2, 0).numpy())) for frame in whole]
    expected = processor(pictures, return_tensors="pt")
    grid = expected["image_grid_thw"]
    chosen = grid_size("x", *size, 40000, 60000)
    pixel_values, found = to_patches(normalise(resize_like_pillow(to_pixels(whole / 127.5 - 1), chosen)))
    assert found.tolist() == grid[:1].tolist()
    each = expected["pixel_values"].view(2, -1, 3, 2, 14, 14)  # frame, patch, channel, the frame twice, y, x
    ours = pixel_values.view(-1, 3, 2, 14, 14)
    step = 1 / 255 / 0.26
    for frame in range(2):
        error = (ours[:, :, frame] - each[frame, :, :, 0]).abs()
        assert error.max() < 2.01 * step, "at most two steps of colour"
        assert error.mean() < 0.05 * step


def test_names_of_transformers_4_and_peft_become_ours():
    layer = "layers.0.self_attn.q_proj"
    assert network_name(f"model.{layer}.weight") == f"model.language_model.{layer}.weight"
    assert (
        network_name(f"base_model.model.model.{layer}.base_layer.bias")
        == f"model.language_model.{layer}.base_layer.bias"
    )
    assert network_name("base_model.model.visual.merger.ln_q.bias") == "model.visual.merger.ln_q.bias"
    assert network_name("model.visual.merger.ln_q.bias") == "model.visual.merger.ln_q.bias"
    assert network_name(f"model.language_model.{layer}.bias") == f"model.language_model.{layer}.bias"
    assert network_name("rm_head.weight") == "rm_head.weight"
    assert network_name("base_model.model.lm_head.weight") is None

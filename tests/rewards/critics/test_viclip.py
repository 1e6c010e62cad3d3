"""ViCLIP against numbers of the original network.

`golden/viclip.safetensors` was written by OpenGVLab/InternVideo's own code (commit 3965eef, Data/InternVid/viclip) with
random weights: `VisionTransformer` of 28 px and `CLIP_TEXT` with a table of 200 tokens, both 64 wide and 2 deep, seeds
0 and 1; `state.*` has its names, `frames`, `ids`, `vision`, `text`, `cosine` and `gradient` (of the summed cosine) are
one pass, and `resize.*` are 8 blurred random pictures before and after its `frames2tensor` (OpenCV 5) at 28 px.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from besttake.rewards.critics.viclip import (
    MERGES,
    PICKLE,
    ViCLIPNetwork,
    ViCLIPSizes,
    load,
    preprocess,
    token_ids,
    tokenizer_of,
)
from besttake.rewards.networks.weights import load_weights
from tests.tiny_critics import viclip as tiny

GOLDEN = load_file(Path(__file__).parents[2] / "golden" / "viclip.safetensors")
STATE = {name.removeprefix("state."): value for name, value in GOLDEN.items() if name.startswith("state.")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("viclip")
    tiny.write(path)
    return path


@pytest.fixture(scope="module")
def original() -> ViCLIPNetwork:
    with torch.device("meta"):
        network = ViCLIPNetwork(ViCLIPSizes.of(STATE))
    load_weights("viclip", network, STATE)
    return network


def test_both_encoders_are_the_original_ones(original):
    assert torch.allclose(original.vision_encoder(GOLDEN["frames"]), GOLDEN["vision"], atol=1e-5)
    assert torch.allclose(original.text_encoder(GOLDEN["ids"]), GOLDEN["text"], atol=1e-5)


def test_the_gradient_is_the_original_one(original):
    frames = GOLDEN["frames"].clone().requires_grad_()
    scores = torch.cosine_similarity(original.vision_encoder(frames), original.text_encoder(GOLDEN["ids"]))
    assert torch.allclose(scores, GOLDEN["cosine"], atol=1e-5)
    (gradient,) = torch.autograd.grad(scores.sum(), frames)
    assert torch.allclose(gradient, GOLDEN["gradient"], atol=1e-6)


def test_frames_are_squeezed_as_by_the_original():
    video = GOLDEN["resize.frames"].permute(0, 3, 1, 2)[None].float() / 127.5 - 1
    difference = (preprocess(video, side=28) - GOLDEN["resize.shown"]).abs()
    one_level = 1 / 255 / 0.224  # OpenCV computes in fixed point
    assert difference.max() < 1.01 * one_level
    assert difference.mean() < one_level / 5


def test_one_frame_of_each_eighth_is_shown():
    brightness = torch.arange(20.0).view(1, 20, 1, 1, 1).expand(-1, -1, 3, 8, 8) / 10 - 1
    seen = preprocess(brightness, side=8)[0, :, 0, 0, 0] * 0.229 + 0.485
    assert torch.allclose((seen * 10 * 2).round(), torch.tensor([0, 2, 5, 7, 10, 12, 15, 17.0]))
    assert torch.equal(preprocess(brightness[:, :4], side=8)[:, ::2], preprocess(brightness[:, :4], side=8)[:, 1::2])


def test_prompts_are_cleaned_cut_and_padded_as_clip_does(folder):
    tokenizer = tokenizer_of(folder)
    closing = len(tokenizer) - 1
    first, second = token_ids(tokenizer, ["A  red <b>ball&lt;", "a " * 50], 16).tolist()
    a, red, ball, less, more = (
        tokenizer.convert_tokens_to_ids(token) for token in ("a</w>", "red</w>", "ball</w>", "<</w>", "></w>")
    )
    b = tokenizer.convert_tokens_to_ids("b</w>")
    assert first == [closing - 1, a, red, less, b, more, ball, less, closing, *[0] * 7]
    assert second == [closing - 1, *[a] * 14, closing]


def test_the_score_is_the_cosine_of_both_encoders(folder):
    critic, videos = load(folder), torch.rand(2, 8, 3, 40, 56) * 2 - 1
    score = critic(videos, ["a red ball", "a"])
    seen = critic.network.vision_encoder(preprocess(videos, side=32))
    said = critic.network.text_encoder(token_ids(critic.tokenizer, ["a red ball", "a"], 16))
    cosine = (seen / seen.norm(dim=1, keepdim=True) * said / said.norm(dim=1, keepdim=True)).sum(1)
    assert torch.allclose(score["text alignment"], cosine, atol=1e-5)
    assert (critic(videos, ["a", "a red ball"]).values - score.values).abs().min() > 1e-3


def test_the_gradient_is_that_of_small_changes(folder):
    critic = load(folder)
    videos = (torch.rand(1, 8, 3, 32, 32) - 0.5).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(videos, ["a red ball"]).values.sum(), videos)
    step = 2 / 127.5 * gradient.sign()  # whole levels, which rounding leaves alone
    with torch.no_grad():
        up, down = (critic(videos + sign * step, ["a red ball"]).values.sum() for sign in (1, -1))
    assert (gradient.flatten(2).abs().amax(2) > 0).all()
    assert torch.allclose((up - down) / 2, (gradient * step).sum(), rtol=0.2)


def test_the_published_pickle_scores_the_same(folder, tmp_path):
    tiny.write_merges(tmp_path)
    torch.save({"model": tiny.random_state()}, tmp_path / PICKLE)
    videos = torch.rand(1, 8, 3, 32, 32) * 2 - 1
    expected = load(folder)(videos, ["a red ball"]).values
    for path in (tmp_path, tmp_path / PICKLE):
        assert torch.equal(load(path)(videos, ["a red ball"]).values, expected)


def test_weights_of_something_else_are_refused(folder, tmp_path):
    tiny.write_merges(tmp_path)
    save_file({"visual.proj": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="critic viclip: the weights are not those of a ViCLIP"):
        load(tmp_path)
    state = tiny.random_state()
    del state["text_encoder.ln_final.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing text_encoder\.ln_final\.bias"):
        load(tmp_path)


def test_a_vocabulary_that_is_none_is_refused(folder, tmp_path):
    tiny.write(tmp_path)
    (tmp_path / MERGES).write_bytes(b"not gzip")
    with pytest.raises(ValueError, match=r"critic viclip: .*is damaged"):
        load(tmp_path)


def test_a_vocabulary_of_another_size_is_refused(folder, tmp_path):
    tiny.write(tmp_path)
    state = tiny.random_state()
    state["text_encoder.token_embedding.weight"] = state["text_encoder.token_embedding.weight"][:500].clone()
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="519 tokens, but the network has only 500"):
        load(tmp_path)


def test_the_published_network_has_428_million_parameters():
    with torch.device("meta"):
        network = ViCLIPNetwork()
    assert round(sum(value.numel() for value in network.parameters()) / 1e6) == 428

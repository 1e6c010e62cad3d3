import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLImageProcessorPil

from besttake.rewards import load_reward
from besttake.rewards.checks import score_checked
from besttake.rewards.critics.hpsv3 import PIXELS, QUESTION, REWARD_TOKEN, WEIGHTS, load
from tests.tiny_critics.hpsv3 import write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hpsv3")
    write(folder)
    return folder


@pytest.fixture(scope="module")
def critic(folder):
    return load_reward("hpsv3", path=folder)


def clips(b=1, frames=2, height=32, width=32):
    y, x = torch.meshgrid(torch.linspace(0, 6, height), torch.linspace(0, 9, width), indexing="ij")
    waves = [torch.stack([torch.sin(x * (c + 1) + y + t) for c in range(3)]) for t in range(b * frames)]
    return ((torch.stack(waves).unflatten(0, (b, frames)) + 1) * 127.5).round() / 127.5 - 1


@pytest.mark.parametrize("size", [(32, 32), (300, 500), (700, 400)])
def test_images_are_those_of_the_published_processor(critic, size):
    images = clips(1, 2, *size)[0]
    whole = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": PIXELS, "longest_edge": PIXELS})
    expected = processor([Image.fromarray(np.ascontiguousarray(image)) for image in whole], return_tensors="pt")
    pixel_values, grid_thw = critic.preprocess(images)
    assert grid_thw.tolist() == expected["image_grid_thw"].tolist()
    error = (pixel_values - expected["pixel_values"]).abs()
    step = 1 / 255 / 0.26
    assert error.max() < 2.01 * step, "at most two steps of colour"
    assert error.mean() < 0.05 * step


def test_score_is_the_first_output_at_the_reward_token(critic, folder):
    """By hand: the chat template, and the head's layers on what the network thinks at that token."""
    video = clips()
    pixel_values, grid_thw = critic.preprocess(video[0])
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>" * 256
        + f"<|vision_end|>{QUESTION.format(prompt='a cat')}<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = critic.tokenizer(text, return_tensors="pt").input_ids
    place = ids[0].tolist().index(critic.tokenizer.convert_tokens_to_ids(REWARD_TOKEN))
    state = load_file(folder / WEIGHTS)
    first = critic.network.hidden(ids, pixel_values[:1024], grid_thw[:1], "image")[0, place]
    layers = [(state[f"rm_head.{n}.weight"], state[f"rm_head.{n}.bias"]) for n in (0, 3, 5)]
    (weight, bias), (inner_weight, inner_bias), (last_weight, last_bias) = layers
    inner = (inner_weight @ (weight @ first + bias).relu() + inner_bias).relu()
    by_hand = (last_weight @ inner + last_bias)[0]
    scores = critic.score(video, ["a cat"])
    torch.testing.assert_close(scores[0, 0], by_hand, atol=1e-4, rtol=0)
    torch.testing.assert_close(critic(video, ["a cat"]).values, scores.mean(1, keepdim=True), atol=1e-5, rtol=0)


def test_tokens_are_counted_on_all_three_axes(critic):
    """Image tokens get no place of their own: the network's own positions would score otherwise."""
    pixel_values, grid_thw = critic.preprocess(clips()[0, :1])
    ids = critic.tokenizer("<|vision_start|>" + "<|image_pad|>" * 256 + "x", return_tensors="pt").input_ids
    ours = critic.network.hidden(ids, pixel_values, grid_thw, "image")
    model = critic.network.model
    embedded = model.get_input_embeddings()(ids)
    shown = model.visual(pixel_values, grid_thw=grid_thw).pooler_output
    embedded = embedded.masked_scatter((ids == model.config.image_token_id)[..., None], shown)
    plain = model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=0)


def test_gradient_reaches_every_frame(critic):
    videos = clips(1, 2).requires_grad_()
    score = score_checked(critic, videos, ["a cat"])
    assert score.values.shape == (1, 1)
    score.values.sum().backward()
    assert (videos.grad.abs().sum((2, 3, 4)) > 0).all()


def test_each_video_is_scored_by_itself_and_by_its_prompt(critic):
    videos, prompts = clips(2, 1), ["a cat asleep on a red sofa", "two boats"]
    together = critic(videos, prompts).values
    torch.testing.assert_close(together[1:], critic(videos[1:], prompts[1:]).values, atol=1e-5, rtol=0)
    assert (together[1:] - critic(videos[1:], prompts[:1]).values).abs().max() > 1e-5


def test_head_stays_float32_where_the_rest_is_bfloat16(critic, tmp_path):
    write(tmp_path, torch_dtype="bfloat16")
    half = load(tmp_path, frames=1)
    assert half.network.rm_head[0].weight.dtype == torch.float32
    assert half.network.model.language_model.norm.weight.dtype == torch.bfloat16
    video = clips(1, 1)
    torch.testing.assert_close(half(video, ["x"]).values, critic(video, ["x"]).values, atol=0.05, rtol=0)


def test_what_it_cannot_judge_is_refused(critic):
    with pytest.raises(ValueError, match=r"critic hpsv3: videos have 0 frames, expected 1"):
        critic(torch.zeros(1, 0, 3, 32, 32), ["x"])
    with pytest.raises(ValueError, match=r"critic hpsv3: '<\|Reward\|>' in the prompt"):
        critic(clips(), ["<|Reward|>"])


def test_weights_must_be_the_networks(tmp_path):
    write(tmp_path)
    path = tmp_path / WEIGHTS
    state = load_file(path)
    for new, message in [
        ({"rm_head.5.bias": None}, "missing rm_head.5.bias"),
        ({"visual.extra": torch.zeros(1)}, "unexpected model.visual.extra"),
        ({"rm_head.5.bias": torch.zeros(3)}, "of another shape rm_head.5.bias"),
        ({"model.embed_tokens.weight": torch.zeros(9, 64)}, "tokenizer has .* tokens but its weights only 9"),
    ]:
        save_file({name: weight for name, weight in (state | new).items() if weight is not None}, path)
        with pytest.raises(ValueError, match=f"critic hpsv3: .*{message}"):
            load(tmp_path)
    path.write_text("no weights")
    with pytest.raises(ValueError, match=r"critic hpsv3: .*HPSv3.safetensors is damaged"):
        load(tmp_path)


def test_folders_without_the_critic_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"critic hpsv3: there is no folder '.*none'"):
        load(tmp_path / "none")
    write(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"critic hpsv3: there are no weights in"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl", "vision_config": 3}')
    with pytest.raises(ValueError, match=r"critic hpsv3: "):
        load(tmp_path)

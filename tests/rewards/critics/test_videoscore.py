import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import Idefics2Config, Idefics2ImageProcessorPil, Idefics2Processor

from besttake.rewards import load_reward
from besttake.rewards.checks import score_checked
from besttake.rewards.critics.videoscore import QUESTION, VideoScoreNetwork, load, sample_frames
from besttake.rewards.networks.image_critic import empty_network
from besttake.rewards.networks.weights import load_weights
from tests.tiny_critics.videoscore import write

GOLDEN = Path(__file__).parents[2] / "golden"
PROMPTS = ["a cat asleep on a red sofa", "two boats at night"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videoscore")
    write(folder)
    return folder


@pytest.fixture(scope="module")
def critic(folder):
    return load_reward("videoscore", path=folder)


@pytest.fixture(scope="module")
def original():
    """The network of the golden numbers, and their case."""
    with safe_open(GOLDEN / "videoscore_tiny_state.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    network = empty_network(
        "videoscore", lambda: VideoScoreNetwork(Idefics2Config.from_dict(config), config["pad_token_id"])
    )
    load_weights("videoscore", network, load_file(GOLDEN / "videoscore_tiny_state.safetensors"))
    case = load_file(GOLDEN / "videoscore_tiny_cases.safetensors")
    return network, {name.removeprefix("b1_2frames_square."): value for name, value in case.items()}


def clip(frames=3, height=40, width=72, seed=0):
    """Blobs that move, with some noise, in whole steps of a file's colours."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(0, 6, height), torch.linspace(0, 9, width), indexing="ij")
    waves = [[torch.sin(x * (c + 1) + y + t / 2) for c in range(3)] for t in range(frames)]
    video = torch.stack([torch.stack(wave) for wave in waves]) * 0.8
    video += 0.1 * torch.randn(video.shape, generator=generator)
    return ((video.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def pictures(video):
    whole = ((video + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(np.ascontiguousarray(frame)) for frame in whole]


def test_scores_and_gradients_are_those_of_the_original(original):
    network, case = original
    seen = case["pixel_values"].clone().requires_grad_()
    scores = network(case["input_ids"], seen, case["attention_mask"], case["pixel_attention_mask"])
    scores.sum().backward()
    torch.testing.assert_close(scores, case["logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.grad, case["grad_pixels_of_sum_logits"], atol=1e-6, rtol=0)


def test_padding_of_text_and_frames_changes_nothing(original):
    network, case = original
    ids, seen = case["input_ids"], case["pixel_values"]
    padded = torch.cat([ids, torch.zeros(1, 5, dtype=ids.dtype)], 1)
    wide = torch.nn.functional.pad(seen, (0, 28, 0, 14))
    scores = network(padded, wide, (padded > 0).long(), (wide != 0).all(2))
    torch.testing.assert_close(scores, case["logits"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(40, 72), (72, 40), (30, 44), (20, 90), (56, 56)])
def test_frames_and_text_are_those_of_the_published_processor(critic, size):
    video = clip(3, *size)
    image_processor = Idefics2ImageProcessorPil(
        do_image_splitting=False, size={"shortest_edge": 28, "longest_edge": 56}
    )
    processor = Idefics2Processor(image_processor, critic.tokenizer, image_seq_len=4)
    text = QUESTION.format(prompt=PROMPTS[0]) + "<image> " * 3
    expected = processor(text=text, images=pictures(video), return_tensors="pt")
    assert critic.ids(PROMPTS[0], 3).tolist() == expected["input_ids"].tolist()
    error = (critic.preprocess(video) - expected["pixel_values"][0]).abs()
    assert error.max() < 2.01 * 2 / 255, "at most two steps of colour"
    assert error.mean() < 0.05 * 2 / 255


def test_text_beside_images_is_cut_as_the_tokenizers_file_says(critic, folder):
    raw = json.loads((folder / "tokenizer.json").read_text())
    tokens = critic.tokenizer.convert_ids_to_tokens(critic.ids("x", 2)[0].tolist())
    first = tokens.index("<fake_token_around_image>")
    assert raw["normalizer"]["normalizers"][0]["type"] == "Prepend"
    assert tokens[first : first + 9] == [*_image(), "▁", "▁", "<fake_token_around_image>"]


def _image():
    return ["<fake_token_around_image>", *["<image>"] * 4, "<fake_token_around_image>"]


def test_gradient_reaches_every_frame(critic):
    videos = torch.stack([clip(4, 32, 32, seed) for seed in (0, 1)]).requires_grad_()
    score = score_checked(critic, videos, PROMPTS)
    assert score.values.shape == (2, 5)
    score.values.sum().backward()
    assert (videos.grad.abs().sum((2, 3, 4)) > 0).all()


def test_each_video_is_scored_by_itself_and_by_its_prompt(critic):
    videos = torch.stack([clip(4, 32, 32, seed) for seed in (0, 1)])
    together = critic(videos, PROMPTS).values
    torch.testing.assert_close(together[1:], critic(videos[1:], PROMPTS[1:]).values, atol=1e-5, rtol=0)
    assert (together[1:] - critic(videos[1:], PROMPTS[:1]).values).abs().max() > 1e-4


def test_frames_are_sampled_as_numpy_does():
    assert sample_frames(3, 16) == [0, 1, 2]
    for frames in (17, 49, 81, 121):
        assert sample_frames(frames, 16) == np.arange(0, frames, frames / 16).astype(int)[:16].tolist()


def test_first_version_sees_16_frames_and_the_next_48(critic, folder, tmp_path):
    write(tmp_path, _name_or_path="TIGER-Lab/VideoScore-v1.1")
    next_one = load(tmp_path)
    assert (critic.name, critic.card.frames) == ("videoscore", 16)
    assert (next_one.name, next_one.card.frames) == ("videoscore-v1.1", 48)
    named = tmp_path / "VideoScore-v1.1"
    write(named)
    assert load(named).card.frames == 48
    videos = clip(17, 16, 16)[None]
    unseen = videos.clone()
    unseen[:, 16] = 0  # int(17 / 16 * k) never is 16
    assert torch.equal(critic(videos, ["x"]).values, critic(unseen, ["x"]).values)
    assert not torch.equal(next_one(videos, ["x"]).values, next_one(unseen, ["x"]).values)


def test_one_frame_is_too_few(critic):
    with pytest.raises(ValueError, match=r"critic videoscore: videos have 1 frames, expected 2"):
        critic(torch.zeros(1, 1, 3, 32, 32), ["x"])


def test_prompt_with_an_image_token_is_refused(critic):
    with pytest.raises(ValueError, match=r"critic videoscore: '<image>' in the prompt 'an <image>'"):
        critic(torch.zeros(1, 2, 3, 32, 32), ["an <image>"])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "config.json cannot be read"),
        ("config.json", '{"model_type": "idefics2", "text_config": 3}', "config.json is not one of Idefics2"),
        ("preprocessor_config.json", '{"size": {"height": 3}}', "expected shortest_edge and longest_edge"),
        ("tokenizer.json", "{", "tokenizer in .* cannot be read"),
        ("model.safetensors", "no weights", "model.safetensors is damaged"),
    ],
)
def test_broken_files_are_refused(tmp_path, file, content, message):
    write(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=f"critic videoscore: .*{message}"):
        load(tmp_path)


def test_weights_must_be_the_networks(tmp_path):
    write(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    for change, message in [
        ({"score.bias": None}, "missing score.bias"),
        ({"model.extra": torch.zeros(1)}, "unexpected model.extra"),
        ({"score.bias": torch.zeros(3)}, r"of another shape score.bias \(\(3,\), not \(5,\)\)"),
    ]:
        save_file({name: weight for name, weight in (state | change).items() if weight is not None}, path)
        with pytest.raises(ValueError, match=message):
            load(tmp_path)


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"critic videoscore: there is no folder '.*none'"):
        load(tmp_path / "none")
    with pytest.raises(ValueError, match=r"critic videoscore: .*config.json cannot be read"):
        load(tmp_path)

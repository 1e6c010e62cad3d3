import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import Qwen2VLConfig

from besttake.rewards import load_reward
from besttake.rewards.checks import score_checked
from besttake.rewards.critics.videoalign import (
    QUESTION,
    VideoAlignNetwork,
    VideoAlignSettings,
    load,
    network_names,
    sample_frames,
)
from besttake.rewards.networks.image_critic import empty_network
from besttake.rewards.networks.qwen2vl import network_name
from besttake.rewards.networks.weights import load_weights
from tests.tiny_critics.videoalign import ALPHA, RANK, write

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videoalign")
    write(folder)
    return folder


@pytest.fixture(scope="module")
def critic(folder):
    return load_reward("videoalign", path=folder)


@pytest.fixture(scope="module")
def golden():
    cases = load_file(GOLDEN / "videoalign_tiny_cases.safetensors")
    with safe_open(GOLDEN / "videoalign_tiny_state.safetensors", "pt") as file:
        return json.loads(file.metadata()["config"]), load_file(GOLDEN / "videoalign_tiny_state.safetensors"), cases


def original(golden, outputs=1, at="special", head=None):
    """The network of the golden numbers, perhaps with another head."""
    config, state, _ = golden
    network = empty_network(
        "videoalign", lambda: VideoAlignNetwork(Qwen2VLConfig.from_dict(config), outputs, at, [160, 161, 162], 0)
    )
    load_weights("videoalign", network, state | ({} if head is None else {"rm_head.weight": head}), network_name)
    return network


def clips(frames=6, side=32):
    generator = torch.Generator().manual_seed(3)
    return torch.rand(2, frames, 3, side, side, generator=generator) * 2 - 1


def change(folder, part, **entries):
    file = folder / "model_config.json"
    raw = json.loads(file.read_text())
    raw[part] |= entries
    file.write_text(json.dumps(raw))


def test_scores_and_gradients_are_those_of_the_original(golden):
    case = {name.removeprefix("b1."): value for name, value in golden[2].items()}
    pixel_values = case["pixel_values_videos"].clone().requires_grad_()
    scores = original(golden)(case["input_ids"], pixel_values, case["video_grid_thw"], case["attention_mask"])
    scores.sum().backward()
    torch.testing.assert_close(scores, case["special_dim1.logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(pixel_values.grad, case["special_dim1.grad_pixels_of_sum"], atol=1e-6, rtol=0)
    contrast = case["contrast_mrope_positions_NOT_official.logits"]
    assert (scores - contrast).abs().max() > 0.01, "these are not multimodal positions"


def test_three_outputs_are_read_one_at_each_token_or_all_at_the_last(golden):
    _, state, cases = golden
    ids, pixel_values, grid = cases["b1.input_ids"], cases["b1.pixel_values_videos"], cases["b1.video_grid_thw"]
    alone = original(golden)(ids, pixel_values, grid)
    head = state["rm_head.weight"] * torch.tensor([[1.0], [-2.0], [0.5]])
    three = original(golden, 3, head=head)(ids, pixel_values, grid)
    torch.testing.assert_close(three, alone * torch.tensor([1.0, -2.0, 0.5]), atol=1e-5, rtol=0)
    padded = torch.cat([ids, torch.zeros(1, 4, dtype=ids.dtype)], 1)
    last = original(golden, 3, "last", head)
    whole = last(ids, pixel_values, grid)
    torch.testing.assert_close(whole[:, 1:] / whole[:, :1], torch.tensor([[-2.0, 0.5]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(last(padded, pixel_values, grid, (padded > 0).long()), whole, atol=1e-5, rtol=0)


def test_padding_on_the_right_changes_nothing(golden):
    cases, network = golden[2], original(golden)
    ids, pixel_values, grid = cases["b1.input_ids"], cases["b1.pixel_values_videos"], cases["b1.video_grid_thw"]
    padded = torch.nn.functional.pad(ids, (0, 5))
    both = network(padded.repeat(2, 1), pixel_values.repeat(2, 1), grid.repeat(2, 1), (padded > 0).long().repeat(2, 1))
    torch.testing.assert_close(both, network(ids, pixel_values, grid).repeat(2, 1), atol=1e-5, rtol=0)


def test_normalised_by_the_checkpoints_constants(golden, critic):
    raw = golden[2]["b1.special_dim1.logits"]
    mean, std = golden[2]["norm.mean_std_VQ_MQ_TA_used_here"].T
    expected = golden[2]["norm.b1_VQ_MQ_TA_Overall"]
    torch.testing.assert_close((raw[0] - mean) / std, expected[:3], atol=1e-5, rtol=0)
    assert (critic.settings.mean, critic.settings.std) == ((0.5, -0.25, 0.0), (2.0, 0.5, 1.0))
    videos = clips()[:1]
    raw = critic._score(videos[0, sample_frames(6, 8, critic.settings)], "a cat")
    score = critic(videos, ["a cat"])
    torch.testing.assert_close(score["visual quality"][0] * 2 + 0.5, raw[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(score["motion quality"][0] * 0.5 - 0.25, raw[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(score["overall"], score.values[:, :3].sum(1), atol=1e-6, rtol=0)


def test_adapters_add_alpha_over_rank_of_their_product(folder, tmp_path, critic):
    """By hand: the adapters put into the weights, and the checkpoint written without any."""
    state = torch.load(folder / "checkpoint-20" / "model.pth")
    merged = {}
    for name, weight in state.items():
        if ".lora_" in name:
            continue
        stem = name.removesuffix(".base_layer.weight")
        if stem != name:
            down, up = (state[f"{stem}.lora_{which}.default.weight"] for which in "AB")
            weight = weight + ALPHA / RANK * up @ down
        merged[name.removeprefix("base_model.model.").replace(".base_layer", "")] = weight
    write(tmp_path, "bare")
    torch.save(merged, tmp_path / "checkpoint-20" / "model.pth")
    videos = clips()[:1]
    expected = critic(videos, ["a cat"]).values
    torch.testing.assert_close(load(tmp_path)(videos, ["a cat"]).values, expected, atol=1e-4, rtol=0)
    change(tmp_path, "peft_lora_config", lora_alpha=0)
    torch.save(state, tmp_path / "checkpoint-20" / "model.pth")
    assert (load(tmp_path)(videos, ["a cat"]).values - expected).abs().max() > 0.01, "they do count"


def test_adapter_beside_its_base_model_scores_as_the_whole(tmp_path, critic):
    write(tmp_path, "adapter")
    videos = clips()[:1]
    torch.testing.assert_close(load(tmp_path)(videos, ["x"]).values, critic(videos, ["x"]).values, atol=1e-5, rtol=0)


def test_later_weights_count_and_names_of_adapters_become_one():
    base = {"model.a.weight": torch.zeros(1), "visual.b.bias": torch.zeros(1), "lm_head.weight": torch.zeros(1)}
    adapter = {"base_model.model.model.a.lora_A.weight": torch.ones(1)}
    rest = {"base_model.model.visual.b.bias": torch.ones(1)}
    assert network_names(base, adapter, rest) == {
        "model.language_model.a.base_layer.weight": 0,
        "model.language_model.a.lora_A.default.weight": 1,
        "model.visual.b.bias": 1,
    }


def settings(**changes):
    """Those of the published checkpoint, changed."""
    return VideoAlignSettings(
        "", 1, "special", torch.float32, 32.0, False, **{"rate": 2.0, "most_pixels": 448 * 448, **changes}
    )


def test_two_frames_a_second_but_four_at_least_and_an_even_number():
    assert sample_frames(48, 24, settings()) == [0, 16, 31, 47]
    assert sample_frames(81, 16, settings()) == [0, 9, 18, 27, 36, 44, 53, 62, 71, 80]  # of 10.1 frames
    assert sample_frames(8, 8, settings()) == [0, 2, 5, 7]
    assert sample_frames(3, 8, settings()) == [0, 2]
    assert len(sample_frames(2000, 1, settings())) == 768
    assert sample_frames(48, 24, settings(rate=4.0)) == [0, 7, 13, 20, 27, 34, 40, 47]


def test_a_number_of_frames_is_taken_evenly_whatever_the_rate():
    eight = settings(frames=8)
    assert sample_frames(49, 8, eight) == sample_frames(49, 24, eight) == [0, 7, 14, 21, 27, 34, 41, 48]
    assert len(sample_frames(49, 8, settings(frames=7))) == 8, "7 / 2 is nearer to 4 than to 3, as Python rounds"
    assert sample_frames(5, 8, eight) == [0, 1, 2, 3, 4, 4], "all there are; the last twice, to be an even number"


def test_four_spots_of_six_frames_at_eight_a_second():
    """By hand: 49 frames at 16 a second are 24 at 8 a second, every second one; spots at the 3rd, 9th, 14th, 20th."""
    spots = sample_frames(49, 16, settings(spots=True))
    assert [spots[i] for i in (0, 5, 6, 12, 18, 23)] == [0, 10, 13, 23, 35, 46]
    assert len(spots) == 24
    with pytest.raises(ValueError, match=r"6 frames at 8 a second is too short for four places.*needs 0.875 seconds"):
        sample_frames(6, 8, settings(spots=True))


def test_authors_settings_can_be_given_in_place_of_the_checkpoints(folder, critic):
    videos = clips(12)[:1]
    other = load_reward("videoalign", path=folder, num_frames=6, max_pixels=224 * 224, use_norm=False)
    assert (other.card.frames, other.card.frame_rate) == (6, None)
    _, grid = other.preprocess(torch.zeros(2, 3, 300, 400))
    assert grid.tolist() == [[1, 12, 18]], "168 x 252 pixels, no more than 224 x 224"
    raw = other(videos, ["a cat"], fps=4.0)
    assert torch.equal(raw.values[0, :3], other._score(videos[0, [0, 2, 4, 7, 9, 11]], "a cat"))
    assert torch.equal(raw.values, other(videos, ["a cat"], fps=24.0).values)
    assert other.identity != critic.identity
    with pytest.raises(ValueError, match="critic videoalign: fps is 2 and num_frames 8; give one of them"):
        load(folder, fps=2, num_frames=8)
    with pytest.raises(ValueError, match=r"critic videoalign: .*1 frames of a clip, expected 2 or more"):
        load(folder, num_frames=1)


def test_question_is_in_the_chat_template_with_a_place_for_each_token(critic):
    videos = clips(4)
    pixel_values, grid = critic.preprocess(videos[0])
    assert grid.tolist() == [[2, 24, 24]], "grown to 100352 pixels or more"
    assert pixel_values.shape == (2 * 24 * 24, 1176)
    calls = []
    network = critic.network
    critic.network = Spy(network, calls)
    critic(videos[:1], ["a cat"])
    critic.network = network
    text = critic.tokenizer.decode(calls[0][0], skip_special_tokens=False)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        + "<|video_pad|>" * (2 * 12 * 12)
        + f"<|vision_end|>{QUESTION.format(prompt='a cat')}<|im_end|>\n<|im_start|>assistant\n"
    )


class Spy:
    def __init__(self, network, calls):
        self.network, self.calls, self.device = network, calls, network.device

    def __call__(self, ids, pixel_values, grid):
        self.calls.append(ids)
        return self.network(ids, pixel_values, grid)


def test_gradient_reaches_the_frames_that_it_sees(critic):
    videos = clips(8)[:1].requires_grad_()
    score = score_checked(critic, videos, ["a cat"], fps=8)
    assert score.values.shape == (1, 4)
    score["overall"].sum().backward()
    moved = videos.grad.abs().sum((0, 2, 3, 4)) > 0
    assert moved.nonzero().flatten().tolist() == [0, 2, 5, 7]


def test_each_video_is_scored_by_itself_and_by_its_prompt(critic):
    videos, prompts = clips(4), ["a cat asleep on a red sofa", "two boats"]
    together = critic(videos, prompts).values
    torch.testing.assert_close(together[1:], critic(videos[1:], prompts[1:]).values, atol=1e-5, rtol=0)
    assert (together[1:] - critic(videos[1:], prompts[:1]).values).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("video", "prompt", "fps", "message"),
    [
        (torch.zeros(1, 1, 3, 32, 32), "x", 8, "videos have 1 frames, expected 2"),
        (torch.zeros(1, 4, 3, 32, 32), "x <|VQ_reward|>", 8, r"'<\|VQ_reward\|>' in the prompt"),
        (torch.zeros(1, 4, 3, 32, 32), "x", 0, "videos of 0 frames a second"),
        (torch.zeros(1, 4, 3, 2, 500), "x", 8, "2 x 500 is too long"),
    ],
)
def test_what_it_cannot_judge_is_refused(critic, video, prompt, fps, message):
    with pytest.raises(ValueError, match=f"critic videoalign: .*{message}"):
        critic(video, [prompt], fps)


@pytest.mark.parametrize(
    ("part", "entries", "message"),
    [
        ("model_config", {"output_dim": 2}, "2 outputs at 'special' tokens"),
        ("model_config", {"use_special_tokens": False, "reward_token": "mean"}, "1 outputs at 'mean' tokens"),
        ("model_config", {"torch_dtype": "int7"}, "dtype 'int7'"),
        ("inference_config", {"TA_std": 0}, "deviations is .*expected numbers above 0"),
        ("inference_config", {"TA_mean": None}, "is not one of VideoAlign's"),
        ("data_config", {"fps": None}, "is not one of VideoAlign's"),
        ("data_config", {"sample_type": "random"}, "sampled by 'random', expected 'uniform' or 'multi_pts'"),
        ("data_config", {"num_frames": 1}, "1 frames of a clip, expected 2"),
        ("data_config", {"prompt_template_type": "simple"}, "prompt_template_type is .simple'"),
    ],
)
def test_settings_it_does_not_know_are_refused(tmp_path, part, entries, message):
    write(tmp_path)
    change(tmp_path, part, **entries)
    with pytest.raises(ValueError, match=f"critic videoalign: .*{message}"):
        load(tmp_path)


def test_weights_must_be_the_networks(tmp_path):
    write(tmp_path)
    path = tmp_path / "checkpoint-20" / "model.pth"
    state, stem = torch.load(path), "base_model.model."
    head = f"{stem}rm_head.weight"
    for new, message in [
        ({head: None}, "missing rm_head.weight"),
        ({f"{stem}model.extra": torch.zeros(1)}, "unexpected model.language_model.extra"),
        ({head: torch.zeros(3, 64)}, "of another shape rm_head.weight"),
        ({f"{stem}model.embed_tokens.weight": torch.zeros(9, 64)}, "tokenizer has .* tokens but its weights only 9"),
    ]:
        torch.save({name: weight for name, weight in (state | new).items() if weight is not None}, path)
        with pytest.raises(ValueError, match=f"critic videoalign: .*{message}"):
            load(tmp_path)
    path.write_text("no weights")
    with pytest.raises(ValueError, match=r"critic videoalign: .*model.pth is damaged"):
        load(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"has neither model.pth, nor adapter_model.safetensors and non_lora_state"):
        load(tmp_path)


def test_folders_without_a_checkpoint_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"critic videoalign: there is no folder '.*none'"):
        load(tmp_path / "none")
    with pytest.raises(ValueError, match=r"critic videoalign: .*model_config.json cannot be read"):
        load(tmp_path)
    write(tmp_path)
    (tmp_path / "checkpoint-20").rename(tmp_path / "weights")
    (tmp_path / "checkpoint-9").rmdir()
    with pytest.raises(ValueError, match=r"critic videoalign: there is no folder checkpoint-STEP in"):
        load(tmp_path)

"""What is Open-Sora's own: noise by the size of a clip, its sampler, cleaned prompts, and where its parts are."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributions import LogisticNormal

from besttake.models import load_model
from besttake.models.families.opensora import LogitNormalFlow, OpenSora
from besttake.models.networks.opensora import HUB, OpenSoraPipeline, RFlowScheduler, noise_ratio, part_of
from besttake.models.networks.opensora_captions import clean
from besttake.sampling.rollout import RolloutConfig, generate
from tests.tiny.opensora import pipeline, write
from tests.tiny.parts import TOKENS

GOLDEN = load_file(Path(__file__).parents[2] / "golden" / "opensora12_rflow.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("opensora") / "OpenSora-STDiT-v3"
    torch.manual_seed(0)
    write(path)
    return path


@pytest.fixture
def model(folder) -> OpenSora:
    return load_model(str(folder))


# Noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in GOLDEN if name.startswith("sampler30.transform.")])
def test_the_samplers_timesteps_are_the_authors(name):
    height, width, frames = (int(part[1:]) for part in name.split(".")[-1].split("_"))
    sampler = RFlowScheduler()
    sampler.set_timesteps(30, noise_ratio(frames, height, width))
    torch.testing.assert_close(sampler.timesteps, GOLDEN[name], atol=1e-3, rtol=1e-6)


def test_without_a_ratio_timesteps_are_even():
    sampler = RFlowScheduler()
    sampler.set_timesteps(30)
    torch.testing.assert_close(sampler.timesteps, GOLDEN["sampler30.plain"], atol=1e-3, rtol=1e-6)


def test_an_euler_step_goes_to_the_next_timestep_and_the_last_to_the_data():
    sampler, x, velocity = RFlowScheduler(), torch.zeros(2, 4), torch.ones(2, 4)
    sampler.set_timesteps(4, 2.0)  # 1000, 857.1, 666.7, 400
    for timestep, moved in zip(sampler.timesteps, (1 - 6 / 7, 6 / 7 - 2 / 3, 2 / 3 - 0.4, 0.4), strict=True):
        stepped = sampler.step(velocity, timestep, x).prev_sample
        torch.testing.assert_close(stepped, torch.full((2, 4), moved), atol=1e-6, rtol=0)


def test_noising_and_loss_are_the_authors():
    t, x_0, noise = GOLDEN["t"], GOLDEN["x0"], GOLDEN["noise"]
    schedule = LogitNormalFlow()
    for noised in (schedule.add_noise(x_0, noise, schedule.time(t)), RFlowScheduler().add_noise(x_0, noise, t)):
        torch.testing.assert_close(noised, GOLDEN["add_noise.out"], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(noised, GOLDEN["train.nomask.x_t"], atol=1e-6, rtol=1e-5)
    weight = GOLDEN["train.W"].clone().requires_grad_()
    bias = GOLDEN["train.b"][:, None] + GOLDEN["train.d"][:, None] * schedule.timestep(schedule.time(t)) / 1000
    prediction = torch.einsum("oc,bcfhw->bofhw", weight, noised) + bias.T[..., None, None, None]
    velocity = prediction.chunk(2, dim=1)[0]
    losses = (velocity - schedule.target(x_0, noise, t)).square().flatten(1).mean(1)
    losses.mean().backward()
    torch.testing.assert_close(losses, GOLDEN["train.nomask.loss_per_sample"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weight.grad, GOLDEN["train.nomask.grad_W"], atol=1e-5, rtol=1e-5)


def test_larger_clips_take_more_noise(model):
    assert noise_ratio(1, 512, 512) == 1
    assert noise_ratio(34, 240, 424) == pytest.approx(math.sqrt(240 * 424 / 512**2 * 10))
    assert model.schedule_for((1, 4, 11, 30, 53)).shift == noise_ratio(35, 240, 424)
    assert model.schedule_for((1, 4, 1, 64, 64)).shift == 1
    sampler = model.make_scheduler(4, (4, 10, 30, 53))
    torch.testing.assert_close(sampler.timesteps[2], torch.tensor(1000 / (1 + 1 / noise_ratio(34, 240, 424))))


def test_training_times_are_logit_normal_then_shifted():
    u = (torch.arange(2000) + 0.5) / 2000
    plain = LogitNormalFlow().times(u)
    samples = LogisticNormal(torch.tensor([0.0]), torch.tensor([1.0])).sample((200_000,))[:, 0]
    quantiles = torch.linspace(0.05, 0.95, 19)
    torch.testing.assert_close(plain.quantile(quantiles), samples.quantile(quantiles), atol=5e-3, rtol=0)
    torch.testing.assert_close(LogitNormalFlow(3.0).times(u), 3 * plain / (1 + 2 * plain))
    bounded = LogitNormalFlow(3.0).times(torch.tensor([0.0, 0.5, 1.0]), 0.2, 0.7)
    assert bounded[[0, 2]].tolist() == pytest.approx([0.2, 0.7])
    assert LogitNormalFlow().times(torch.tensor([0.0, 1.0])).tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"no training time in \[0.5, 0.5\]"):
        LogitNormalFlow().times(u, 0.5, 0.5)


# Clips ------------------------------------------------------------------------------------------------------------


def test_two_to_sixteen_frames_are_refused_for_they_would_have_no_noise(model):
    for frames, nearest in ((2, 1), (8, 1), (9, 17), (16, 17)):
        assert noise_ratio(frames, 240, 424) == 0
        with pytest.raises(
            ValueError, match=f"{frames} frames do not fit .*, which needs 1, or at least 17, such as {nearest}$"
        ):
            model.latent_shape(frames, 240, 424)
    with pytest.raises(ValueError, match=r"width 426 does not fit .*, which needs a multiple of 8, such as 424"):
        model.latent_shape(51, 240, 426)
    assert model.latent_shape(1, 240, 424) == (4, 1, 30, 53)
    assert model.latent_shape(34, 8, 424) == (4, 10, 1, 53)
    assert model.latent_shape(20, 240, 424)[1] == 6


def test_the_default_size_is_the_configs_or_the_papers(model):
    assert model.default_size() == (17, 24, 16)
    model.denoiser.register_to_config(input_size=[None, None, None])
    assert model.default_size() == (51, 240, 424)
    assert model.fps == 24


@pytest.mark.parametrize("frames", [1, 20])
def test_samples_have_the_requested_frames(model, frames):
    rollout = generate(model, ["a red ball"], RolloutConfig(steps=1, frames=frames, guidance=7.0))
    assert rollout.videos.shape[1:] == (frames, 3, 24, 16)


@torch.no_grad()
def test_latents_are_shifted_and_scaled(model):
    video = torch.rand(1, 17, 3, 24, 16) * 2 - 1
    raw = model.pipeline.vae.encode(video.transpose(1, 2)).latent_dist.mode()
    shift, scale = (
        torch.tensor(values).view(4, 1, 1, 1) for values in ((-0.10, 0.34, 0.27, 0.98), (3.85, 2.32, 2.33, 3.06))
    )
    torch.testing.assert_close(model.encode(video), (raw - shift) / scale)


# The inputs of the denoiser ----------------------------------------------------------------------------------------


def test_the_denoiser_gets_frame_rate_and_size_in_pixels(model):
    calls = []

    def denoiser(x, timestep, text, mask, **kwargs):
        calls.append((timestep, kwargs))
        return torch.cat([x, x], 1)

    condition = model.encode_prompts(["a red ball", "a blue ball"])
    x_t = torch.randn(2, 4, 5, 3, 2)
    assert torch.equal(model.predict(denoiser, x_t, torch.tensor([0.5, 1.0]), condition), x_t)
    model.predict(denoiser, x_t[:, :, :1], torch.tensor([0.5, 1.0]), condition)
    model.predict(denoiser, x_t, torch.tensor([0.5, 1.0]), condition | {"fps": torch.tensor([8.0, 8.0])})
    assert calls[0][0].tolist() == [500, 1000]
    kwargs = [{name: value.tolist() for name, value in kwargs.items()} for _, kwargs in calls]
    assert kwargs[0] == {"fps": [24, 24], "height": [24, 24], "width": [16, 16]}
    assert kwargs[1] == {"fps": [120, 120], "height": [24, 24], "width": [16, 16]}
    assert kwargs[2] == {"fps": [8, 8], "height": [24, 24], "width": [16, 16]}


def test_guidance_steers_away_from_the_learned_null_caption_under_the_prompts_own_mask(model):
    away = model.encode_negative(2)
    assert away.keys() == {"text"}
    assert torch.equal(away["text"], model.denoiser.y_embedder.y_embedding.expand(2, -1, -1))
    condition = model.encode_prompts(["a red ball", "a large blue square"])
    assert condition["mask"].sum(1).tolist() == [4, 5]  # </s> is read, padding is not
    assert condition["text"].shape == (2, TOKENS, 32)


def test_a_prompt_is_read_cleaned(model):
    condition, plain = (model.encode_prompts([prompt]) for prompt in ("A <b>RED</b> ball", "a red ball"))
    assert all(torch.equal(condition[name], plain[name]) for name in plain)
    with pytest.raises(ValueError, match="the prompt '红球' is empty after Open-Sora's cleaning"):
        model.encode_prompts(["红球"])


@pytest.mark.parametrize(
    ("prompt", "cleaned"),  # as the authors' `text_preprocessing` has it
    [
        ("A red ball, 3.5 cm; (blue) [x] {y} a/b a\\b", "a red ball, 3.5 cm; blue x y a b a b"),
        ("HELLO <b>World</b> &amp; you &quot;hi&quot; http://foo.com/bar me@there.com", 'hello world you "hi" me'),
        ("a self-driving car - a state-of-the-art look", "a self driving car a state of the art look"),
        ("\u201cQuotes\u201d \u2018and\u2019 \u00abmore\u00bb em\u2014dash", '"quotes" \'and\' "more" em-dash'),
        ("1234567 #12 #12345 10:30 192.168.1.1 image.jpg a.mp4 640x480 12\u04453", "10:30"),
        ("free shipping, page 12 of ab1234 ab12cd 12ab34 a1b2c3", "of"),
        ("a+b%20c  100% sure \\n newline\nreal\ttab", "a b c 100% sure newline real tab"),
        ("R&D and AT&T &bogus; &#65;", "r d and at t bogus a"),
        ("'quoted'", "quoted"),
        ("-dash start and end-", "dash start and end"),
        ("Two cats.Sit,down.", "two cats. sit, down."),
        ("a \u732b \ufb01sh", "a fish"),
    ],
)
def test_prompts_are_cleaned_as_the_authors_do(prompt, cleaned):
    assert clean(prompt) == cleaned


# Where the parts are ----------------------------------------------------------------------------------------------


def test_parts_are_sought_inside_then_beside_then_on_the_hub(folder, tmp_path):
    assert part_of("hpcai-tech/OpenSora-STDiT-v3", "vae") == "hpcai-tech/OpenSora-VAE-v1.2"
    denoiser = tmp_path / "denoiser"
    denoiser.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, denoiser)
    assert {name: part_of(denoiser, name) for name in HUB} == HUB
    with pytest.raises(ValueError, match=f"the model in '{denoiser}' does not load"):  # tests have no network
        load_model(str(denoiser))
    shutil.copytree(folder / "vae", tmp_path / "OpenSora-VAE-v1.2")
    shutil.copytree(folder / "text_encoder", tmp_path / "t5-v1_1-xxl")
    for path in (folder / "tokenizer").iterdir():
        shutil.copy(path, tmp_path / "t5-v1_1-xxl")
    inside, beside = (
        generate(load_model(str(path)), ["a red ball"], RolloutConfig(steps=1)) for path in (folder, denoiser)
    )
    assert torch.equal(inside.videos, beside.videos)


def test_a_whole_folder_is_written_and_read_again(folder, tmp_path):
    whole = OpenSoraPipeline.from_pretrained(folder, torch.bfloat16)
    assert whole.transformer.dtype == whole.vae.dtype == whole.text_encoder.dtype == torch.bfloat16
    OpenSoraPipeline.from_pretrained(folder).save_pretrained(tmp_path)
    for path in folder.rglob("*.safetensors"):
        again = load_file(tmp_path / path.relative_to(folder))
        assert all(torch.equal(again[name], weight) for name, weight in load_file(path).items())


def test_a_part_that_breaks_after_loading_is_named(folder, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    model = load_model(str(copy))
    config = json.loads((copy / "text_encoder" / "config.json").read_text())
    (copy / "text_encoder" / "config.json").write_text(json.dumps(config | {"d_ff": 48}))
    with pytest.raises(ValueError, match=f"the text_encoder of '{copy}' does not load"):
        model.encode_prompts(["a red ball"])


def test_the_pipeline_takes_several_prompts_and_gives_pictures(folder):
    torch.manual_seed(0)
    frames = pipeline()(["a red ball", "a blue ball"], 17, 24, 16, num_inference_steps=2, output_type="np").frames
    assert frames.shape == (2, 17, 24, 16, 3)
    assert 0 <= frames.min() < frames.max() <= 1

"""Samples made over a source video: as the official pipelines make them."""

from dataclasses import replace
from zlib import crc32

import pytest
import torch
from diffusers import WanVideoToVideoPipeline
from PIL import Image

from besttake.data.video import read_video, to_uint8, write_video
from besttake.models import load_model
from besttake.runtime.seeds import keyed_generator
from besttake.sampling.rollout import RolloutConfig, RolloutOverrides, generate
from besttake.sampling.step_cache import CacheConfig
from besttake.types import Prompt
from tests.tiny.cogvideox import TINY as COGVIDEOX
from tests.tiny.wan import SIZE, TINY


@pytest.fixture
def wan(tmp_path):
    TINY["wan-2.1"].build().save_pretrained(tmp_path / "wan")
    return load_model(str(tmp_path / "wan"))


@pytest.fixture
def clip(tmp_path):
    frames, height, width = SIZE
    write_video(tmp_path / "clip.mp4", torch.rand(frames, 3, height, width) * 2 - 1, 16)
    return tmp_path / "clip.mp4"


def config(**settings):
    frames, height, width = SIZE
    return RolloutConfig(**{"steps": 5, "guidance": 1.0, "frames": frames, "height": height, "width": width} | settings)


@pytest.mark.parametrize(
    ("strength", "guidance", "negative"), [(0.4, 1.0, None), (0.8, 1.0, None), (0.4, 3.0, None), (0.8, 3.0, "a cat")]
)
def test_samples_over_a_source_are_the_official_video_to_video_pipelines(wan, clip, strength, guidance, negative):
    settings = {"strength": strength, "guidance": guidance, "negative_prompt": negative}
    ours = generate(wan, [Prompt("a red ball", source=clip)], config(**settings), seed=(7,))
    kept = {name: part for name, part in wan.pipeline.components.items() if name != "transformer_2"}
    frames = read_video(clip, fps=16, frames=SIZE[0], size=SIZE[1:])
    official = WanVideoToVideoPipeline(**kept)(
        video=[Image.fromarray(frame) for frame in to_uint8(frames).numpy()],
        prompt="a red ball",
        negative_prompt=negative,
        height=SIZE[1],
        width=SIZE[2],
        num_inference_steps=5,
        strength=strength,
        guidance_scale=guidance,
        generator=keyed_generator(7, crc32(b"a red ball"), 0),
        max_sequence_length=wan.longest_prompt(),
        output_type="latent",
    ).frames
    torch.testing.assert_close(ours.latents, official, atol=1e-4, rtol=1e-4)


def test_the_negative_prompt_is_the_models_own_or_the_runs(wan, monkeypatch):
    def sample(**settings):
        return generate(wan, ["a red ball"], config(guidance=3.0, **settings), decode=False).latents

    empty, cat = sample(), sample(negative_prompt="a cat")
    assert not torch.equal(empty, cat)
    monkeypatch.setattr(type(wan), "negative_prompt", "a cat")
    assert torch.equal(sample(), cat)
    assert torch.equal(sample(negative_prompt=""), empty)
    assert RolloutOverrides().over(config(negative_prompt="a cat")).negative_prompt == "a cat"


def test_a_negative_prompt_that_cannot_be_is_refused(wan, monkeypatch):
    with pytest.raises(ValueError, match=r"the negative prompt has \d+ tokens, .* shorten it"):
        generate(wan, ["a red ball"], config(guidance=3.0, negative_prompt="a cat " * 500))
    monkeypatch.setattr(type(wan), "embeds_guidance", True)
    with pytest.raises(ValueError, match=r"rollout\.negative_prompt is set, but .* is guidance-distilled"):
        generate(wan, ["a red ball"], config(negative_prompt="a cat"))


def test_the_stronger_the_further_from_the_source(wan, clip):
    source = wan.encode(read_video(clip, fps=16, frames=SIZE[0], size=SIZE[1:])[None])

    def away(strength):
        rollout = generate(wan, [Prompt("a red ball", source=clip)], config(strength=strength), decode=False)
        return (rollout.latents - source).square().mean()

    assert away(0.2) < away(1.0)


def test_a_source_for_some_prompts_only_is_refused(wan, clip):
    with pytest.raises(ValueError, match="1 of 2 prompts have a source video; give one to all of them, or to none"):
        generate(wan, [Prompt("a red ball", source=clip), "a blue ball"], config())


@pytest.mark.parametrize("strength", [0, -1, 1.5])
def test_a_strength_outside_0_1_is_refused(strength):
    with pytest.raises(ValueError, match=f"strength is {strength}"):
        RolloutConfig(strength=strength)


def passes(model, monkeypatch):
    """How many rows the network predicts, in each call."""
    batch_sizes, predict = [], type(model).predict
    monkeypatch.setattr(
        type(model), "predict", lambda self, *seen: batch_sizes.append(len(seen[1])) or predict(self, *seen)
    )
    return batch_sizes


def test_where_memory_runs_out_fewer_candidates_are_sampled_at_once(cogvideox, monkeypatch, caplog):
    prompts, settings = ["a red ball"], RolloutConfig(steps=2, guidance=1.0)
    whole = generate(cogvideox, prompts, settings, n=5, decode=False)
    batch_sizes, predict = [], type(cogvideox).predict

    def short(self, denoiser, x_t, t, condition):
        batch_sizes.append(len(x_t))
        if len(x_t) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, denoiser, x_t, t, condition)

    monkeypatch.setattr(type(cogvideox), "predict", short)
    rollout = generate(cogvideox, prompts, settings, n=5, decode=False)
    torch.testing.assert_close(rollout.latents, whole.latents, rtol=1e-4, atol=1e-4)
    assert batch_sizes == [5, 2, 2, 2, 2, 1, 1]
    assert "out of memory with a sampling batch of 5: reduced to 2" in caplog.text
    batch_sizes.clear()
    generate(cogvideox, prompts, settings, n=5, decode=False)
    assert batch_sizes == [2, 2, 2, 2, 1, 1]  # it is not forgotten


def test_one_candidate_that_does_not_fit_is_not_halved(cogvideox, monkeypatch):
    def short(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(cogvideox), "predict", short)
    with pytest.raises(torch.OutOfMemoryError):
        generate(cogvideox, ["a red ball"], RolloutConfig(steps=2, guidance=1.0), n=3)


@pytest.fixture
def cogvideox_dpm(tmp_path):
    """A sampler that adds noise on the way, and remembers the step before."""
    COGVIDEOX["cogvideox-5b"].build().save_pretrained(tmp_path / "cogvideox")
    return load_model(str(tmp_path / "cogvideox"))


def test_what_validation_does_not_name_is_the_runs_own():
    run = RolloutConfig(steps=8, guidance=2.0, frames=9, height=32, width=48, batch=3, compile="always", strength=0.5)
    assert RolloutOverrides().over(run) == run
    assert RolloutOverrides(steps=16, height=64).over(run) == replace(run, steps=16, height=64)
    named = RolloutOverrides(batch=16, compile="never", strength=0.8)  # what would be the default is named all the same
    assert named.over(run) == replace(run, batch=16, compile="never", strength=0.8)


def test_what_makes_rollouts_cheaper_is_not_taken_over():
    cheap = {"evaluations": 4, "guidance_interval": (0.3, 1.0), "cache": CacheConfig("taylorseer")}
    run = RolloutConfig(steps=8, **cheap)
    assert RolloutOverrides().over(run) == RolloutConfig(steps=8)
    assert RolloutOverrides(**cheap).over(RolloutConfig(steps=8)) == run


def test_overrides_are_checked_as_rollouts_are():
    with pytest.raises(ValueError, match=r"batch is 0"):
        RolloutOverrides(batch=0)

"""Takes made over a source video: as the official pipelines make them."""

from dataclasses import replace
from zlib import crc32

import pytest
import torch
from diffusers import WanVideoToVideoPipeline
from PIL import Image

from besttake.data.video import read_video, to_uint8, write_video
from besttake.models import load_model
from besttake.sampling.rollout import Preview, RolloutConfig, RolloutOverrides, generate, keyed_generator
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


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("strength", [0.4, 0.8])
def test_takes_over_a_source_are_the_official_video_to_video_pipelines(wan, clip, strength, guidance):
    ours = generate(wan, [Prompt("a red ball", source=clip)], config(strength=strength, guidance=guidance), seed=(7,))
    kept = {name: part for name, part in wan.pipeline.components.items() if name != "transformer_2"}
    frames = read_video(clip, fps=16, frames=SIZE[0], size=SIZE[1:])
    official = WanVideoToVideoPipeline(**kept)(
        video=[Image.fromarray(frame) for frame in to_uint8(frames).numpy()],
        prompt="a red ball",
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


def test_the_stronger_the_further_from_the_source(wan, clip):
    source = wan.encode(read_video(clip, fps=16, frames=SIZE[0], size=SIZE[1:])[None])

    def away(strength):
        takes = generate(wan, [Prompt("a red ball", source=clip)], config(strength=strength), decode=False)
        return (takes.latents - source).square().mean()

    assert away(0.2) < away(1.0)


def test_a_source_for_some_prompts_only_is_refused(wan, clip):
    with pytest.raises(ValueError, match="1 of 2 prompts have a source video; expected all of them, or none"):
        generate(wan, [Prompt("a red ball", source=clip), "a blue ball"], config())


@pytest.mark.parametrize("strength", [0, -1, 1.5])
def test_a_strength_outside_0_1_is_refused(strength):
    with pytest.raises(ValueError, match=f"strength is {strength}"):
        RolloutConfig(strength=strength)


def passes(model, monkeypatch):
    """How many rows the network is asked for, in each call."""
    asked, predict = [], type(model).predict
    monkeypatch.setattr(type(model), "predict", lambda self, *seen: asked.append(len(seen[1])) or predict(self, *seen))
    return asked


def test_takes_that_share_their_beginning_cost_it_once_and_part_there(cogvideox, monkeypatch):
    asked = passes(cogvideox, monkeypatch)
    prompts, settings = ["a red ball", "a blue ball"], RolloutConfig(steps=8, guidance=1.0)
    apart = generate(cogvideox, prompts, settings, n=3, decode=False)
    assert sum(asked) == 6 * 8
    asked.clear()
    shared = generate(cogvideox, prompts, replace(settings, shared=0.5), n=3, decode=False)
    assert sum(asked) == 2 * 4 + 6 * 4
    spread = {
        name: takes.latents.view(2, 3, -1).std(1).mean() for name, takes in (("apart", apart), ("shared", shared))
    }
    assert 0.1 * spread["apart"] < spread["shared"] < spread["apart"]  # other takes, and more alike
    again = generate(cogvideox, prompts[1:], replace(settings, shared=0.5), n=3, decode=False)
    torch.testing.assert_close(again.latents, shared.latents[3:], rtol=1e-4, atol=1e-4)  # whatever is shot beside them


def test_a_beginning_that_is_shared_leads_where_the_network_says(wan, monkeypatch):
    """A network that knows the data brings every take there, from a beginning of its own or a common one."""
    data = torch.randn(1, *wan.latent_shape(*SIZE))

    def knows(self, denoiser, x_t, t, condition):
        time = t.view(-1, 1, 1, 1, 1).clamp(min=1e-4)
        return (x_t - data) / time  # noise - x_0

    monkeypatch.setattr(type(wan), "predict", knows)
    takes = generate(wan, ["a red ball"], config(shared=0.4), n=2, decode=False)
    torch.testing.assert_close(takes.latents, data.expand_as(takes.latents), rtol=0, atol=1e-2)


def test_where_memory_runs_out_fewer_takes_are_shot_at_once(cogvideox, monkeypatch, caplog):
    prompts, settings = ["a red ball"], RolloutConfig(steps=2, guidance=1.0)
    whole = generate(cogvideox, prompts, settings, n=5, decode=False)
    asked, predict = [], type(cogvideox).predict

    def short(self, denoiser, x_t, t, condition):
        asked.append(len(x_t))
        if len(x_t) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, denoiser, x_t, t, condition)

    monkeypatch.setattr(type(cogvideox), "predict", short)
    takes = generate(cogvideox, prompts, settings, n=5, decode=False)
    torch.testing.assert_close(takes.latents, whole.latents, rtol=1e-4, atol=1e-4)
    assert asked == [5, 2, 2, 2, 2, 1, 1]
    assert "memory has run out with 5 takes at once: from now on 2" in caplog.text
    asked.clear()
    generate(cogvideox, prompts, settings, n=5, decode=False)
    assert asked == [2, 2, 2, 2, 1, 1]  # it is not forgotten


def test_one_take_that_does_not_fit_is_not_halved(cogvideox, monkeypatch):
    def short(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(cogvideox), "predict", short)
    with pytest.raises(torch.OutOfMemoryError):
        generate(cogvideox, ["a red ball"], RolloutConfig(steps=2, guidance=1.0), n=3)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_shared_part_outside_0_1_is_refused(share):
    with pytest.raises(ValueError, match="shared is"):
        RolloutConfig(shared=share)


@pytest.fixture
def cogvideox_dpm(tmp_path):
    """A sampler that adds noise on the way, and remembers the step before."""
    COGVIDEOX["cogvideox-5b"].build().save_pretrained(tmp_path / "cogvideox")
    return load_model(str(tmp_path / "cogvideox"))


@pytest.mark.parametrize("family", ["cogvideox", "cogvideox_dpm", "wan"])
def test_takes_that_go_on_after_a_preview_are_what_they_would_have_been(request, family):
    model, prompts, shown = request.getfixturevalue(family), ["a red ball", "a blue ball"], []

    def choose(previews, rows):
        shown.append((len(previews), rows))
        return torch.tensor([[3, 0], [1, 2]])

    size = {"wan": SIZE, "cogvideox_dpm": COGVIDEOX["cogvideox-5b"].size}.get(family, (None, None, None))
    settings = RolloutConfig(8, 2.0, *size, batch=3)
    some = generate(model, prompts, settings, n=4, preview=Preview(0.5, choose))
    assert shown == [(8, ["a red ball"] * 4 + ["a blue ball"] * 4)]
    assert (some.n, some.prompts, len(some.videos)) == (2, ["a red ball"] * 2 + ["a blue ball"] * 2, 4)
    every, kept = generate(model, prompts, settings, n=4), [0, 3, 5, 6]
    torch.testing.assert_close(some.latents, every.latents[kept], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(some.videos, every.videos[kept], rtol=1e-3, atol=1e-3)
    for name, value in some.condition.items():
        torch.testing.assert_close(value, every.condition[name][kept])


def test_dropped_takes_cost_nothing_from_then_on(cogvideox, monkeypatch):
    asked = passes(cogvideox, monkeypatch)
    first = Preview(0.5, lambda videos, rows: torch.tensor([[0, 1]]))
    settings = RolloutConfig(steps=8, guidance=1.0, batch=2)
    generate(cogvideox, ["a red ball"], settings, n=4, decode=False, preview=first)
    assert asked == [2] * 12  # two batches up to the middle, one of them to the end
    asked.clear()
    generate(cogvideox, ["a red ball"], replace(settings, evaluations=3), n=4, decode=False, preview=first)
    assert asked == [2] * 7  # a preview is of an answer of the network, and not of a guess


def test_some_frames_are_decoded_and_played_as_slowly(cogvideox):
    frames, settings = cogvideox.default_size()[0], RolloutConfig(steps=1, guidance=1.0, decoded=2)
    assert generate(cogvideox, ["a red ball"], settings).videos.shape[1] == 2
    assert settings.rate(cogvideox) == pytest.approx(cogvideox.fps * 2 / frames)
    assert RolloutConfig(decoded=1000).rate(cogvideox) == RolloutConfig().rate(cogvideox) == cogvideox.fps


def test_what_looks_do_not_name_is_the_runs_own():
    run = RolloutConfig(steps=8, guidance=2.0, frames=9, height=32, width=48, batch=3, compile=True, strength=0.5)
    assert RolloutOverrides().over(run) == run
    assert RolloutOverrides(steps=16, height=64).over(run) == replace(run, steps=16, height=64)
    named = RolloutOverrides(batch=16, compile=False, strength=0.8)  # what would be the default is named all the same
    assert named.over(run) == replace(run, batch=16, compile=False, strength=0.8)


def test_what_makes_rollouts_cheaper_is_not_taken_over():
    cheap = {"asked": 4, "guided": (0.3, 1.0), "cache": CacheConfig("pyramid"), "shared": 0.5, "decoded": 2}
    run = RolloutConfig(steps=8, **cheap)
    assert RolloutOverrides().over(run) == RolloutConfig(steps=8)
    assert RolloutOverrides(**cheap).over(RolloutConfig(steps=8)) == run


def test_overrides_are_checked_as_rollouts_are():
    with pytest.raises(ValueError, match=r"batch is 0"):
        RolloutOverrides(batch=0)

"""What every video model must do: the same numbers as its official pipeline, and clear words for what it cannot do."""

import json
import shutil
from zlib import crc32

import pytest
import torch

from besttake.models import families, load_model
from besttake.models.base import pipeline_class
from besttake.rollout import RolloutConfig, generate, keyed_noise
from besttake.world.build import FAMILIES

SIDE = 16  # of the random models' clips
PROMPTS = ["a red ball", "a large blue square"]
TAKES = 2


def test_every_model_file_has_a_tiny_model_here(model_folder):
    tiny = {pipeline_class(str(model_folder(family))) for family in FAMILIES}
    assert all(tiny & set(family.pipelines) for family in families())


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_generate_gives_the_official_pipelines_latents_and_frames(model, guidance):
    config = RolloutConfig(steps=3, guidance=guidance, batch=3)  # takes of one prompt fall into two batches
    ours = generate(model, PROMPTS, config, n=TAKES, seed=(7,))
    noise = generate_noise(model, 7)
    cogvideox = "CogVideoX" in type(model.pipeline).__name__
    official = model.pipeline(
        prompt=[prompt for prompt in PROMPTS for _ in range(TAKES)],
        num_inference_steps=3,
        guidance_scale=guidance,
        num_frames=model.default_size()[0],
        height=SIDE,
        width=SIDE,
        latents=noise.transpose(1, 2) if cogvideox else noise,
        max_sequence_length=model.longest_prompt(),
        output_type="latent",
    ).frames
    official = official.transpose(1, 2) if cogvideox else official
    assert ours.latents.std() > 0.1
    torch.testing.assert_close(ours.latents, official, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.videos, official_frames(model, official), atol=1e-4, rtol=1e-4)


def generate_noise(model, seed):
    shape = model.latent_shape(*model.default_size())
    return torch.stack([keyed_noise(shape, seed, crc32(p.encode()), k) for p in PROMPTS for k in range(TAKES)])


@torch.no_grad()
def official_frames(model, latents):
    """What the pipeline makes of its latents, as `b f c h w` in [-1, 1]."""
    pipeline, vae = model.pipeline, model.pipeline.vae
    if hasattr(pipeline, "decode_latents"):
        video = pipeline.decode_latents(latents.transpose(1, 2))
    else:
        mean, std = (torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
        video = vae.decode(latents * std + mean, return_dict=False)[0]
    return pipeline.video_processor.postprocess_video(video, output_type="pt") * 2 - 1


def test_guidance_changes_the_takes(model):
    one, three = (generate(model, PROMPTS[:1], RolloutConfig(steps=2, guidance=g), decode=False) for g in (1.0, 3.0))
    assert not torch.allclose(one.latents, three.latents, atol=1e-3)


def test_a_take_is_the_same_in_any_batch_and_any_order(model):
    def shoot(prompts, n, batch):
        return generate(model, prompts, RolloutConfig(steps=2, batch=batch), n=n, seed=(3, 1), decode=False).latents

    together, alone = shoot(PROMPTS, 2, 16), shoot(PROMPTS[::-1], 2, 1)
    torch.testing.assert_close(together[:2], alone[2:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together[2:], alone[:2], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-2)
    torch.testing.assert_close(shoot(PROMPTS[:1], 1, 16)[0], together[0], atol=1e-5, rtol=1e-4)


def test_rows_are_grouped_by_prompt(model):
    takes = generate(model, PROMPTS, RolloutConfig(steps=1), n=2, decode=False)
    assert takes.prompts == [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]
    assert torch.equal(takes.condition["text"], model.encode_prompts(takes.prompts)["text"])
    assert len(takes.videos) == 0


@torch.no_grad()
def test_encode_is_the_official_autoencoders_mode_scaled(model):
    video = torch.rand(2, model.default_size()[0], 3, SIDE, SIDE) * 2 - 1
    latents = model.encode(video)
    assert tuple(latents.shape[1:]) == model.latent_shape(*model.default_size())
    vae = model.pipeline.vae
    official = vae.encode(video.transpose(1, 2)).latent_dist.mode()
    if "scaling_factor" in vae.config:
        official = official * vae.config.scaling_factor
    else:
        mean, std = (torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
        official = (official - mean) / std
    torch.testing.assert_close(latents, official)


@torch.no_grad()
def test_decode_gives_videos_of_the_default_size(model):
    latents = torch.randn(2, *model.latent_shape(*model.default_size()))
    videos = model.decode(latents)
    assert tuple(videos.shape) == (2, model.default_size()[0], 3, SIDE, SIDE)
    torch.testing.assert_close(videos.clamp(-1, 1), official_frames(model, latents), atol=1e-5, rtol=1e-5)


def test_one_row_of_a_prediction_does_not_depend_on_the_others(model):
    x_t = torch.randn(2, *model.latent_shape(*model.default_size()))
    t, told = torch.tensor([0.2, 0.9]), model.encode_prompts(PROMPTS)
    with torch.no_grad():
        both = model.predict(model.denoiser, x_t, t, told)
        second = model.predict(model.denoiser, x_t[1:], t[1:], {k: v[1:] for k, v in told.items()})
    assert both.shape == x_t.shape
    torch.testing.assert_close(both[1:], second, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "size", "wrong", "nearest"),
    [
        ("tiny-cogvideox", (5, 16, 16), "5 frames", 6),  # two latent frames to a token
        ("tiny-cogvideox", (0, 16, 16), "0 frames", 2),
        ("tiny-wan", (8, 16, 16), "8 frames", 9),  # two pixel frames to a latent frame
        ("tiny-wan", (0, 16, 16), "0 frames", 1),
        ("tiny-cogvideox", (4, 17, 16), "height 17", 16),
        ("tiny-wan", (5, 16, 3), "width 3", 8),
    ],
)
def test_a_size_the_model_cannot_take_is_refused_with_the_nearest_it_can(model, size, wrong, nearest):
    with pytest.raises(ValueError, match=rf"{wrong} do(es)? not fit .*say {nearest}$"):
        model.latent_shape(*size)
    frames, height, width = (nearest if name in wrong else s for name, s in zip(("fr", "he", "wi"), size, strict=True))
    model.latent_shape(frames, height, width)


def test_frames_in_groups_of_two_latents_are_counted_as_cogvideox_1_5_does(cogvideox):
    cogvideox.check_size(85, 16, 16, time=4, space=8, group=2)
    with pytest.raises(ValueError, match=r"it takes 5 \+ a multiple of 8, say 77"):
        cogvideox.check_size(80, 16, 16, time=4, space=8, group=2)


def test_learned_positions_take_their_own_size_only(cogvideox):
    cogvideox.denoiser.register_to_config(use_learned_positional_embeddings=True)
    cogvideox.latent_shape(4, 16, 16)
    with pytest.raises(ValueError, match=r"6 frames of 16 x 16 do not fit .*4 frames of 16 x 16 only"):
        cogvideox.latent_shape(6, 16, 16)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("ball " * 10_000, "has 10001 tokens; .* reads 24: shorten it"), (" ", "a prompt is empty")],
)
def test_prompts_the_model_cannot_read_are_refused(model, prompt, message):
    with pytest.raises(ValueError, match=message) as caught:
        generate(model, ["a red ball", prompt], RolloutConfig(steps=1))
    assert len(str(caught.value)) < 400


def test_a_missing_folder_is_named():
    for source in ("/nowhere/model", "no-such-model", "./a/b/c"):
        with pytest.raises(ValueError, match=f"there is no model folder '{source}'"):
            load_model(source)


def test_a_folder_that_is_no_pipeline_is_named(tmp_path):
    for content in (None, "{", "[]", "{}"):
        if content is not None:
            (tmp_path / "model_index.json").write_text(content)
        with pytest.raises(ValueError, match="is not a diffusers pipeline"):
            load_model(str(tmp_path))


def test_a_file_in_place_of_a_folder_is_no_pipeline(tmp_path):
    (tmp_path / "file").write_text("hello")
    with pytest.raises(ValueError, match="is not a diffusers pipeline"):
        load_model(str(tmp_path / "file"))


def test_a_pipeline_no_file_knows_is_named_with_those_known(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ValueError, match=r"is a FluxPipeline; besttake knows CogVideoXPipeline, WanPipeline"):
        load_model(str(tmp_path))


def test_truncated_weights_are_refused(tmp_path, model_folder, family):
    folder = tmp_path / family
    shutil.copytree(model_folder(family), folder)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=f"the model in '{folder}' does not load"):
        load_model(str(folder))


def test_a_missing_part_is_refused(tmp_path, model_folder):
    folder = tmp_path / "model"
    shutil.copytree(model_folder("tiny-wan"), folder)
    shutil.rmtree(folder / "vae")
    with pytest.raises(ValueError, match=f"the model in '{folder}' does not load"):
        load_model(str(folder))


@pytest.mark.parametrize("values", [{"steps": 0}, {"batch": 0}])
def test_rollouts_without_sense_are_refused(values):
    with pytest.raises(ValueError, match=f"rollout.{next(iter(values))} is 0"):
        RolloutConfig(**values)

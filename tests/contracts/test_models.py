"""What every video model must do: the same numbers as its official pipeline, and clear words for what it cannot do."""

import inspect
import json
import shutil
from pathlib import Path
from zlib import crc32

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from besttake.commands.cli import main
from besttake.contracts import model as contract
from besttake.data.cache import TensorCache
from besttake.data.video import probe, write_video
from besttake.evaluation.before_after import with_adapter
from besttake.models import load_model, model_classes
from besttake.models.base import swap_frames_and_channels
from besttake.models.loading import is_empty, pipeline_class
from besttake.models.policy import Policy, PolicyConfig
from besttake.runtime.seeds import keyed_generator
from besttake.sampling.rollout import RolloutConfig, encode_sources, generate
from besttake.types import Prompt
from tests.tiny import tiny_models

SAMPLES, SEED = 2, 7

CHECKS = [check for check in contract.CHECKS if check is not contract.saves_an_adapter_for_the_pipeline]
"""The one left out is weaker than the comparison with the official pipeline below; tests/test_extending.py runs it."""


@pytest.fixture(autouse=True)
def _posterior_modes(monkeypatch):
    """Pipelines draw a first frame's latents from the posterior; to be compared, they take its mode as we do."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())


def config(tiny, **settings):
    frames, height, width = tiny.size
    return RolloutConfig(**{"steps": 3, "guidance": 1.0, "frames": frames, "height": height, "width": width} | settings)


def official(model, tiny, prompts, guidance, output, n):
    """What the official pipeline makes of our noise, prompt by prompt: latents `b c f h w`, or videos in [-1, 1]."""
    with model.using(*(name for name, part in model.pipeline.components.items() if isinstance(part, torch.nn.Module))):
        return sampled_by_pipeline(model, tiny, prompts, guidance, output, n)


def sampled_by_pipeline(model, tiny, prompts, guidance, output, n):
    pipeline, shape, made = model.pipeline, model.latent_shape(*tiny.size), []
    frames, height, width = tiny.size
    for prompt in prompts:
        generators = [keyed_generator(SEED, crc32(prompt.encode()), k) for k in range(n)]
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        shown = {"image": Image.open(prompt.first_frame)} if prompt.first_frame else {}
        for k in range(n):
            made.append(
                pipeline(
                    prompt=prompt,
                    num_inference_steps=3,
                    num_frames=frames,
                    height=height,
                    width=width,
                    latents=tiny.pack(pipeline, noise[k : k + 1]),
                    generator=generators[k],
                    output_type=output,
                    return_dict=False,
                    **shown,
                    **tiny.call(guidance),
                )[0]
            )
    made = torch.cat(made)
    return made * 2 - 1 if output == "pt" else tiny.unpack(pipeline, made, (len(made), *shape))


def test_every_model_file_has_a_tiny_model_here(folder_of):
    tiny = {pipeline_class(str(folder_of(name))) for name in tiny_models()}
    assert {name for family in model_classes() for name in family.pipelines} == tiny


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_generate_gives_the_official_pipelines_latents_and_frames(model, tiny, prompts, guidance):
    sampling = config(tiny, guidance=guidance, batch=3)  # samples of one prompt fall into two batches
    ours = generate(model, prompts, sampling, n=SAMPLES, seed=(SEED,))
    assert ours.latents.std() > 0.1
    assert tuple(ours.videos.shape[1:]) == (tiny.size[0], 3, *tiny.size[1:])
    latents = official(model, tiny, prompts, guidance, "latent", SAMPLES)
    torch.testing.assert_close(ours.latents, latents, atol=1e-4, rtol=1e-4)
    videos = official(model, tiny, prompts[:1], guidance, "pt", 1)
    torch.testing.assert_close(ours.videos[:1], videos, atol=1e-4, rtol=1e-4)


def test_it_samples_as_its_authors_do_unless_set_otherwise(model, name):
    parameters = inspect.signature(model.pipeline.__call__).parameters
    if "num_inference_steps" in parameters:
        assert model.default_steps == parameters["num_inference_steps"].default
    if "guidance_scale" in parameters and name != "hunyuan-video-undistilled":  # its scale is another argument there
        assert model.default_guidance == parameters["guidance_scale"].default
    assert RolloutConfig().scale(model) == model.default_guidance
    assert RolloutConfig(guidance=2.0).scale(model) == 2.0


def test_guidance_changes_the_samples(model, tiny, prompts):
    one, three = (generate(model, prompts[:1], config(tiny, steps=2, guidance=g), decode=False) for g in (1.0, 3.0))
    assert not torch.allclose(one.latents, three.latents, atol=1e-3)


def test_a_sample_is_the_same_in_any_batch_and_any_order(model, tiny, prompts):
    def sample(prompts, n, batch):
        return generate(model, prompts, config(tiny, steps=2, batch=batch), n=n, seed=(3, 1), decode=False).latents

    together, alone = sample(prompts, 2, 16), sample(prompts[::-1], 2, 1)
    torch.testing.assert_close(together[:2], alone[2:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together[2:], alone[:2], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_rows_are_grouped_by_prompt(model, tiny, prompts):
    rollout = generate(model, prompts, config(tiny, steps=1), n=2, decode=False)
    assert rollout.prompts == [prompts[0], prompts[0], prompts[1], prompts[1]]
    condition = model.encode_prompts(rollout.prompts, tiny.size)
    assert all(torch.equal(rollout.condition[key], value) for key, value in condition.items())
    assert len(rollout.videos) == 0


@torch.no_grad()
def test_encode_and_decode_are_the_official_autoencoders(model, tiny):
    """The mode of the posterior, scaled; and back. (What the scale is, `generate`'s frames show.)"""
    frames, height, width = tiny.size
    video = torch.rand(2, frames, 3, height, width) * 2 - 1
    latents = model.encode(video)
    assert tuple(latents.shape[1:]) == model.latent_shape(*tiny.size)
    decoded, vae = model.decode(latents, frames), model.pipeline.vae
    assert decoded.shape == video.shape
    mode = vae.encode(swap_frames_and_channels(video)).latent_dist.mode()
    torch.testing.assert_close(latents[:, :, -mode.shape[2] :].flatten(2).std(-1) > 0, mode.flatten(2).std(-1) > 0)
    mean, scale = model.latents_mean_and_scale()
    torch.testing.assert_close(latents[:, :, -mode.shape[2] :] * scale + mean, mode, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        decoded, swap_frames_and_channels(vae.decode(mode, return_dict=False)[0]), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_does_what_every_model_must(model, folder_of, name, tiny, prompts, tmp_path, check):
    check(model, contract.Subject(lambda: load_model(str(folder_of(name))), tiny.size, prompts, tmp_path))


def test_a_sample_over_a_source_sets_out_from_the_noised_source(model, tiny, prompts, tmp_path, monkeypatch):
    frames, height, width = tiny.size
    write_video(tmp_path / "clip.mp4", torch.rand(frames, 3, height, width) * 2 - 1, model.fps)
    prompt = Prompt(prompts[0], first_frame=getattr(prompts[0], "first_frame", None), source=tmp_path / "clip.mp4")
    sampling, seen = config(tiny, steps=10, strength=0.5), []

    def predict(denoiser, x_t, t, condition):
        seen.append((x_t, t))
        return torch.zeros_like(x_t)

    source = encode_sources(model, [prompt], sampling)
    noise = torch.randn(source.shape[1:], generator=keyed_generator(0, crc32(prompt.encode()), 0))
    monkeypatch.setattr(type(model), "predict", lambda self, *inputs: predict(*inputs))
    generate(model, [prompt], sampling, decode=False)
    assert len(seen) == 5
    x_t, t = seen[0]
    torch.testing.assert_close(x_t, model.schedule.add_noise(source, noise[None], t), atol=5e-3, rtol=5e-3)


@torch.no_grad()
def shaken(policy):
    """The policy, each of its LoRA matrices moved."""
    for weight in policy.trainable.values():
        weight += 0.3 * torch.randn(weight.shape)
    return policy


def test_lora_trained_here_reproduces_our_samples_in_the_official_pipeline(
    model, fresh, tiny, prompts, folder_of, name, tmp_path
):
    before = generate(model, prompts, config(tiny), seed=(SEED,), decode=False).latents
    policy = shaken(Policy(fresh, PolicyConfig(rank=2)))
    ours = generate(policy, prompts, config(tiny), seed=(SEED,), decode=False).latents
    assert not torch.allclose(ours, before, atol=1e-2)
    policy.save(tmp_path)
    adapted = with_adapter(load_model(str(folder_of(name))), tmp_path)  # calls the pipeline's own `load_lora_weights`
    theirs = official(adapted, tiny, prompts, 1.0, "latent", 1)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_full_fine_tune_saved_here_loads_with_from_pretrained(fresh, tmp_path):
    policy = shaken(Policy(fresh, PolicyConfig(train="full")))
    policy.save(tmp_path)
    for part, denoiser in fresh.denoisers.items():
        loaded = type(denoiser).from_pretrained(tmp_path / part)
        for key, weight in denoiser.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], weight), key


def test_parts_are_read_when_needed_and_dropped_when_not(model, fresh, tiny, prompts):
    assert not any(is_empty(part) for part in fresh.denoisers.values())
    assert all(is_empty(getattr(fresh.pipeline, part)) for part in fresh.text_parts)
    kept = generate(model, prompts[:1], config(tiny, steps=1))
    assert not any(is_empty(getattr(model.pipeline, part)) for part in (*model.text_parts, "vae"))
    fresh.parts.low_memory = True
    with fresh.using("vae"):
        fresh.pipeline.vae.to("meta")
    for _ in range(2):  # dropped, and read again
        rollout = generate(fresh, prompts[:1], config(tiny, steps=1))
        assert torch.equal(rollout.videos, kept.videos)
        assert all(is_empty(getattr(fresh.pipeline, part)) for part in fresh.text_parts)
        assert is_empty(fresh.pipeline.vae)


def test_texts_kept_on_disk_are_those_made_anew_and_need_no_text_encoder(
    model, folder_of, name, tiny, prompts, tmp_path
):
    expected = model.encode_prompts(prompts, tiny.size)
    for pass_number in range(2):
        fresh = load_model(str(folder_of(name)))
        fresh.prompts.cache = TensorCache(tmp_path)
        fresh.prompts.prepare(prompts)
        found = fresh.encode_prompts(prompts, tiny.size)
        assert all(is_empty(getattr(fresh.pipeline, part)) == bool(pass_number) for part in fresh.text_parts)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=0)
        fresh.encode_negative(1)
        assert all(is_empty(getattr(fresh.pipeline, part)) == bool(pass_number) for part in fresh.text_parts)


def test_clips_one_by_one_are_the_same_and_tiles_of_clips_smaller_than_a_tile_too(folder_of, name, tiny):
    model = load_model(str(folder_of(name)))
    latents = torch.randn(2, *model.latent_shape(*tiny.size), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model.decode(latents[:1], tiny.size[0])
        model.parts.low_memory = True
        model.parts.tile()
        sliced = model.decode(latents, tiny.size[0])
    assert len(sliced) == 2
    torch.testing.assert_close(sliced[:1], whole, rtol=1e-4, atol=1e-4)


def test_the_requested_dtype_is_what_the_denoiser_gets(folder_of, name, tiny, prompts):
    model = load_model(str(folder_of(name)), torch.bfloat16)
    weights = [weight.dtype for part in model.denoisers.values() for weight in part.parameters()]
    assert weights.count(torch.bfloat16) > len(weights) / 2  # some families keep their norms in float32
    with model.using("vae"):
        assert model.pipeline.vae.dtype == (torch.float32 if "vae" in model.precise else torch.bfloat16)
    rollout = generate(model, prompts[:1], config(tiny, steps=1))
    assert rollout.videos.dtype == torch.float32
    assert rollout.videos.isfinite().all()


def test_the_folder_is_all_that_generate_needs(model, folder_of, name, tiny, prompts, tmp_path, capsys):
    rows = [{"prompt": p} | ({"first_frame": str(p.first_frame)} if p.first_frame else {}) for p in prompts]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    frames, height, width = map(str, tiny.size)
    command = ["generate", "--model", str(folder_of(name)), "--prompts", str(tmp_path / "prompts.jsonl"), "--n", "1"]
    command += ["--rollout.frames", frames, "--rollout.height", height, "--rollout.width", width]
    command += ["--rollout.steps", "1", "--out", str(tmp_path / "samples")]
    assert main(command) == 0, capsys.readouterr().err
    info = probe(tmp_path / "samples" / "00001-0.mp4")
    assert info.frames == tiny.size[0]
    assert info.fps == pytest.approx(model.fps)


def test_a_size_the_model_cannot_take_is_one_plain_line_of_generate(folder_of, tmp_path, capsys):
    command = ["generate", "--model", str(folder_of("wan-2.1")), "--prompts", "everyday-test", "--rollout.frames", "2"]
    assert main([*command, "--out", str(tmp_path / "samples")]) == 2
    assert "2 frames" in (error := capsys.readouterr().err)
    assert "Traceback" not in error


def test_a_size_the_model_cannot_take_is_refused_with_the_nearest_it_can(model, tiny):
    size, nearest = tiny.wrong
    with pytest.raises(ValueError, match=rf"do(es)? not fit .*\b{nearest}\b"):
        model.latent_shape(*size)
    with pytest.raises(ValueError, match=r"0 frames .*do not fit"):
        model.latent_shape(0, *tiny.size[1:])
    model.latent_shape(*tiny.size)


@pytest.mark.parametrize(
    ("text", "message"), [("ball " * 10_000, "tokens, but .* accepts"), (" ", "a prompt is empty")]
)
def test_prompts_the_model_cannot_read_are_refused(model, tiny, prompts, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        generate(model, [prompts[0], text], config(tiny, steps=1))
    assert len(str(caught.value)) < 400


def test_words_that_the_tokenizer_has_not_are_known(model):
    assert model.prompts.unknown_words("a red cat") == ["cat"]


def test_all_prompts_that_cannot_be_read_are_named_and_skipped_on_request(model, prompts):
    several = [prompts[0], "long " * 10_000, " ", prompts[1]]
    with pytest.raises(
        ValueError, match=r"(?s)2 of 4 prompts cannot be used:\n.*'long long .*tokens, but .*\n.*is empty"
    ):
        model.check_prompts(several)
    assert model.check_prompts(several, skip_bad=True) == [prompts[0], prompts[1]]


def test_first_frames_are_required_where_needed_and_refused_where_not(model, tiny, picture):
    if model.needs_first_frame:
        with pytest.raises(ValueError, match="image-to-video model, and the prompt 'a red ball' has no first frame"):
            generate(model, ["a red ball"], config(tiny, steps=1))
        with pytest.raises(ValueError, match="is not a file"):
            generate(model, [Prompt("a red ball", first_frame="/nowhere.png")], config(tiny, steps=1))
        with pytest.raises(ValueError, match=r"test_models.py cannot be read"):
            model.check_prompts([Prompt("a red ball", first_frame=Path(__file__))])
    elif not model.accepts_first_frame:
        with pytest.raises(ValueError, match="accepts no first frame"):
            generate(model, [Prompt("a red ball", first_frame=picture((16, 16)))], config(tiny, steps=1))


def broken(folder, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    return copy


def weights_of(part):
    return sorted(part.glob("*.safetensors"))[0]


def test_truncated_weights_are_refused(tmp_path, folder_of, name):
    folder = broken(folder_of(name), tmp_path)
    parts = [folder / part for part in ("transformer", "vae", "text_encoder") if (folder / part).is_dir()]
    for part in [*parts, folder]:
        if not any(part.glob("*.safetensors")):
            continue
        file = weights_of(part)
        whole = file.read_bytes()
        file.write_bytes(whole[:-100])
        with pytest.raises(ValueError, match=f"the model in '{folder}' does not load"):
            load_model(str(folder))
        file.write_bytes(whole)
    load_model(str(folder))


@pytest.fixture(scope="module")
def foreign(model_folder, tmp_path_factory):
    """The adapter of a model that is none of those here."""
    folder = tmp_path_factory.mktemp("foreign")
    shaken(Policy(load_model(str(model_folder("tiny-cogvideox"))), PolicyConfig(rank=2))).save(folder)
    return folder


def test_an_adapter_of_another_model_is_refused(fresh, foreign):
    with pytest.raises(ValueError, match=f"the adapter in {foreign} does not load into"):
        with_adapter(fresh, foreign)


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
    with pytest.raises(ValueError, match=r"is a FluxPipeline; besttake supports CogVideoXImageToVideoPipeline"):
        load_model(str(tmp_path))


def test_a_missing_part_is_refused(tmp_path, folder_of):
    folder = broken(folder_of("wan-2.1"), tmp_path)
    shutil.rmtree(folder / "vae")
    with pytest.raises(ValueError, match=f"the model in '{folder}' does not load"):
        load_model(str(folder))


@pytest.mark.parametrize("values", [{"steps": 0}, {"batch": 0}, {"strength": 0}])
def test_rollouts_without_sense_are_refused(values):
    with pytest.raises(ValueError, match=f"{next(iter(values))} is 0"):
        RolloutConfig(**values)

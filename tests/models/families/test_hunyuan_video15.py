"""HunyuanVideo 1.5: its second reader, of what is in quotation marks, and its sizes."""

from zlib import crc32

import pytest
import torch

from besttake.models import load_model
from besttake.runtime.seeds import keyed_generator
from besttake.sampling.rollout import RolloutConfig, generate
from tests.tiny import hunyuan_video15

PROMPTS = ["a red ball", 'a "red" ball']


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hunyuan-video-1.5")
    hunyuan_video15.pipeline().save_pretrained(folder)
    return load_model(str(folder))


def test_quoted_text_is_read_beside_prompts_without_any(model):
    frames, height, width = hunyuan_video15.SIZE
    ours = generate(model, PROMPTS, RolloutConfig(2, 3.0, frames, height, width), seed=(7,), decode=False).latents
    model.pipeline.guider.guidance_scale = 3.0
    for prompt, latents in zip(PROMPTS, ours, strict=True):
        generator = keyed_generator(7, crc32(prompt.encode()), 0)
        theirs = model.pipeline(
            prompt=prompt,
            latents=torch.randn((1, *latents.shape), generator=generator),
            num_frames=frames,
            height=height,
            width=width,
            num_inference_steps=2,
            output_type="latent",
        ).frames
        torch.testing.assert_close(latents[None], theirs, atol=1e-4, rtol=1e-4)
    condition = model.encode_prompts(PROMPTS)
    assert condition["text_2_mask"].sum(1).tolist() == [0, len('Text "red". ') + 1]


@pytest.mark.parametrize(("side", "size"), [(640, (121, 480, 848)), (960, (121, 720, 1280))])
def test_it_samples_480p_or_720p_by_the_side_it_was_made_for(model, side, size, monkeypatch):
    monkeypatch.setattr(model.pipeline, "target_size", side)
    assert model.default_size() == size

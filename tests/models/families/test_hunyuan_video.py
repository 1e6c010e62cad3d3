"""How long a prompt HunyuanVideo and 1.5 take in their templates, and how large a clip."""

import pytest
import torch

from besttake.models import load_model
from tests.tiny import hunyuan_video, hunyuan_video15


@pytest.fixture(scope="module", params=[hunyuan_video.distilled, hunyuan_video15.pipeline])
def model(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hunyuan")
    request.param().save_pretrained(folder)
    return load_model(str(folder))


def test_a_prompt_as_long_as_can_be_is_read_to_its_last_word(model):
    count = model.longest_prompt() - model.count_tokens("red") + 1
    prompts = ["red " * (count - 1) + last for last in ("ball", "square")]
    ball, square = model.encode_prompts(prompts)["text"]
    assert not torch.allclose(ball, square)
    with pytest.raises(ValueError, match=f"has {model.longest_prompt() + 1} tokens"):
        model.encode_prompts([f"red {prompts[0]}"])


def test_the_default_size_is_one_the_model_takes(model):
    assert model.latent_shape(*model.default_size())[1] in (31, 33)

import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from besttake.rewards.critics.clipscore import load
from tests.rewards.pictures import as_frames, picture
from tests.tiny_critics.clipscore import write

PROMPTS = ["a red ball", "what is this? 42 blue balls, all of them in a row and another one"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clipscore")
    write(path)
    return path


def test_score_is_the_papers_of_transformers_cosine(folder):
    images = [picture(28, 36, seed) for seed in range(2)]  # of CLIP's size, so that nothing is resized
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    seen = processor([Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
    tokens = CLIPTokenizer.from_pretrained(folder)(PROMPTS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        out = CLIPModel.from_pretrained(folder).eval()(pixel_values=seen, **tokens)
    cosine = (out.image_embeds * out.text_embeds).sum(-1)
    score = load(folder)(torch.stack([as_frames(image) for image in images]), PROMPTS)
    torch.testing.assert_close(score["text alignment"], 2.5 * cosine.clamp(min=0), atol=1e-5, rtol=1e-5)
    assert cosine.abs().min() > 1e-3


def test_opposites_score_nothing(folder):
    video, critic = as_frames(picture(40, 40))[None], load(folder)
    score, cosine = critic(video, PROMPTS[:1]).values, critic.cosine(video, PROMPTS[:1])
    with torch.no_grad():
        critic.network.text_projection.weight.neg_()
    assert torch.equal(critic.cosine(video, PROMPTS[:1]), -cosine)
    opposite = critic(video, PROMPTS[:1]).values
    assert min(score.item(), opposite.item()) == 0
    torch.testing.assert_close(score + opposite, 2.5 * cosine.abs())


def test_folder_that_is_no_clip_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"text_config": {"hidden_size": "wide"}}')
    with pytest.raises(ValueError, match=r"critic clipscore: .*config.json is not CLIP's: .*hidden_size"):
        load(tmp_path)

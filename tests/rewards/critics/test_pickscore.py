import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from besttake.rewards.critics.pickscore import load
from tests.rewards.pictures import as_frames, picture
from tests.tiny_critics.pickscore import write

PROMPTS = ["a red ball", "Blue BALLS, all of them"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pickscore")
    write(path)
    return path


def test_score_is_transformers_logit(folder):
    """As its README computes it, with transformers' own processor."""
    images = [picture(28, 47, seed) for seed in range(2)]  # 19 columns too many: an odd number
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    seen = processor([Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
    tokens = CLIPTokenizer.from_pretrained(folder)(PROMPTS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = CLIPModel.from_pretrained(folder).eval()(pixel_values=seen, **tokens).logits_per_text.diagonal()
    score = load(folder)(torch.stack([as_frames(image) for image in images]), PROMPTS)
    torch.testing.assert_close(score["preference"], logits, atol=1e-4, rtol=0)


def test_worst_frame_and_mean_are_of_the_same_frames(folder):
    video = torch.cat([as_frames(picture(40, 56, seed)) for seed in range(3)])[None]
    each = torch.stack([load(folder)(video[:, k : k + 1], PROMPTS[:1]).values[0, 0] for k in range(3)])
    torch.testing.assert_close(load(folder)(video, PROMPTS[:1]).values[0, 0], each.mean())
    torch.testing.assert_close(load(folder, aggregate="min")(video, PROMPTS[:1]).values[0, 0], each.min())


def test_gradient_reaches_the_pixels(folder):
    video = as_frames(picture(40, 56))[None].requires_grad_()
    load(folder)(video, PROMPTS[:1]).values.sum().backward()
    assert video.grad.isfinite().all()
    assert video.grad.abs().sum() > 0


def test_weights_that_lack_something_are_refused(folder, tmp_path):
    state = CLIPModel.from_pretrained(folder).state_dict()
    state.pop("logit_scale")
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").symlink_to(folder / "config.json")
    with pytest.raises(ValueError, match=r"critic pickscore: the weights are not .*: missing logit_scale"):
        load(tmp_path)

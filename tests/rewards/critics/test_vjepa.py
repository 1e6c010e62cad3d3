"""V-JEPA 2: its features and predictions against plain transformers, its two scores by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import VJEPA2Model

from besttake.rewards.critics.vjepa import ASPECT, MASKS, feature_consistency, load, preprocess, sample_mask
from tests.tiny_critics import vjepa as tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("vjepa")
    tiny.write(path)
    return path


@pytest.fixture(scope="module")
def critic(folder):
    return load(folder)


@pytest.fixture(scope="module")
def plain(folder) -> VJEPA2Model:
    return VJEPA2Model.from_pretrained(folder).eval()


def test_features_are_those_of_transformers(critic, plain):
    clips = torch.randn(2, 8, 3, 32, 32)
    features = critic.encode(critic.network.encoder.embeddings(clips))
    assert torch.allclose(features, plain(clips, skip_predictor=True).last_hidden_state, atol=1e-5)


def test_predictions_are_those_of_transformers(critic, plain):
    clips, places = torch.randn(2, 8, 3, 32, 32), torch.randperm(64).expand(2, -1)
    seen, hidden = places[:, :40], places[:, 40:]
    with torch.no_grad():  # transformers always takes the token that training left alone
        plain.predictor.embeddings.mask_tokens[1] = plain.predictor.embeddings.mask_tokens[0]
    output = plain(clips, context_mask=[seen], target_mask=[hidden])
    features = torch.gather(output.last_hidden_state, 1, seen[..., None].expand(-1, -1, 48))
    expected = output.predictor_output.last_hidden_state
    assert torch.allclose(critic.predict(features, seen, hidden), expected, atol=1e-5)


def test_what_is_hidden_is_not_seen(critic):
    patches = torch.randn(1, 64, 48)
    seen = torch.arange(16, 32)[None]
    other = patches.clone()
    other[:, :16] += 1
    assert torch.equal(critic.encode(patches[:, 16:32], seen), critic.encode(other[:, 16:32], seen))
    first, moved = critic.encode(patches[:, :16]), critic.encode(patches[:, :16], torch.arange(16)[None])
    assert torch.allclose(first, moved, atol=1e-5)  # places in order are what it takes without being told
    assert not torch.allclose(first, critic.encode(patches[:, :16], torch.arange(15, -1, -1)[None]), atol=1e-2)


def test_feature_consistency_by_hand():
    moments = torch.tensor([[[1.0, 0], [3, 4], [0, -2]]])  # cosines before: .6, -.8; with the first: .6, 0
    assert feature_consistency(moments).item() == pytest.approx((0.6 + 0 + 0.6 + 0) / 4)


def test_feature_consistency_is_vbenchs_subject_consistency():
    golden = load_file(
        Path(__file__).parents[2] / "golden" / "vbench.safetensors"
    )  # of features of which some cosines are negative
    for i, expected in enumerate(golden["per_video"]):
        found = feature_consistency(golden[f"frame_features.video{i}"][None])
        assert found.item() == pytest.approx(expected.item(), abs=1e-6)


def test_masked_prediction_by_hand(critic):
    clips = torch.randn(1, 4, 3, 32, 32)
    patches = critic.network.encoder.embeddings(clips)
    features = critic.encode(patches)
    normal = (features - features.mean(-1, keepdim=True)) / (
        features.var(-1, unbiased=False, keepdim=True) + 1e-5
    ).sqrt()
    losses = []
    for mask in critic.masks:
        hides = torch.cat([mask.flatten(), mask.flatten()])
        seen, hidden = hides.logical_not().nonzero().T, hides.nonzero().T
        guess = critic.predict(critic.encode(patches[:, ~hides], seen), seen, hidden)
        losses.append((guess - normal[:, hides]).abs().mean())
    assert torch.allclose(critic.loss(patches, features), torch.stack(losses).mean())


def test_masks_are_v_jepas_blocks_and_leave_something():
    for blocks, share in MASKS:
        for seed in range(20):
            one = sample_mask(16, 1, share, torch.Generator().manual_seed(seed))
            height, width = (int(one.any(axis).sum()) for axis in (1, 0))
            assert height * width == one.sum()
            assert abs(float(one.float().mean()) - share) < 0.06
            assert ASPECT[0] * 0.85 < height / width < ASPECT[1] * 1.15
            all_of_them = sample_mask(16, blocks, share, torch.Generator().manual_seed(seed))
            assert one.sum() <= all_of_them.sum() < 256


def test_all_videos_get_the_same_inputs(folder, critic):
    again = load(folder)
    videos = torch.rand(2, 8, 3, 40, 56) * 2 - 1
    score = critic(videos, ["", ""]).values
    assert torch.equal(score, again(videos, ["", ""]).values)
    assert torch.allclose(score[1:], critic(videos[1:], [""]).values, atol=1e-5)


def test_a_still_picture_is_more_consistent_than_noise(critic):
    noise = torch.rand(1, 8, 3, 32, 32) * 2 - 1
    still = noise[:, :1].expand(-1, 8, -1, -1, -1)
    still, noise = (critic(videos, [""])["feature consistency"].item() for videos in (still, noise))
    assert still > noise


def test_frames_are_shown_as_pillow_would():
    frame = torch.rand(3, 12, 17, generator=torch.Generator().manual_seed(3))
    frame = torch.nn.functional.interpolate(frame[None], (360, 499), mode="bilinear")[0]
    image = Image.fromarray((frame * 255).round().byte().permute(1, 2, 0).numpy())
    small = image.resize((int(292 * 499 / 360), 292), Image.Resampling.BILINEAR)
    left, top = (small.width - 256) // 2, 18
    pixels = np.asarray(small.crop((left, top, left + 256, top + 256)), dtype=np.float32) / 255
    expected = torch.from_numpy((pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).permute(2, 0, 1)
    video = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()[None, None].expand(-1, 2, -1, -1, -1) / 127.5 - 1
    difference = (preprocess(video)[0, 1] - expected).abs()
    assert difference.max() < 1.01 / 255 / 0.224
    assert difference.mean() < 0.25 / 255 / 0.224


def test_long_clips_are_thinned_and_odd_frames_left_out():
    brightness = (torch.arange(131.0) / 127.5 - 1).view(1, -1, 1, 1, 1).expand(-1, -1, 3, 8, 8)
    seen = ((preprocess(brightness, side=8)[0, :, 0, 0, 0] * 0.229 + 0.485) * 255).round()
    assert seen.tolist() == [int(k * 130 / 63) for k in range(64)]
    assert preprocess(brightness[:, :7], side=8).shape[1] == 6


def test_the_gradient_reaches_every_frame(critic):
    videos = (torch.rand(1, 8, 3, 32, 32) - 0.5).requires_grad_()
    for dimension in critic.dimensions:
        (gradient,) = torch.autograd.grad(critic(videos, [""])[dimension].sum(), videos)
        assert (gradient.flatten(2).abs().amax(2) > 0).all(), dimension


def test_mistakes_are_named(folder, tmp_path, critic):
    with pytest.raises(ValueError, match="critic vjepa: videos have 3 frames, expected 4 or more"):
        critic(torch.zeros(1, 3, 3, 32, 32), [""])
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match=r"critic vjepa: .* of type 'vit', expected 'vjepa2'"):
        load(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match="critic vjepa: there are no weights"):
        load(tmp_path)

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from besttake.data.prompts import read_prompts
from besttake.models import load_model
from besttake.runtime.embedded import FOLDER, embedded_model, embedded_prompts
from besttake.sampling.rollout import RolloutConfig, generate
from besttake.world.build import build
from besttake.world.captions import Caption
from besttake.world.measure import measure_all


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_lists_of_prompts_are_shipped(split):
    prompts = read_prompts(f"world-{split}")
    assert len(prompts) >= 100
    assert {Caption.parse(prompt).split for prompt in prompts} == {split}


def test_the_shipped_text_encoder_is_the_random_one_that_build_makes(family):
    """It is trained by nobody: another one at the next export would make the shipped denoiser deaf."""
    model = load_model(family)
    with model.using("text_encoder"):
        shipped = model.pipeline.text_encoder.state_dict()
    made = build(family).text_encoder.state_dict()
    assert all(torch.equal(shipped[name], made[name].half().float()) for name in made)  # shipped in half precision


def test_shipped_models_show_what_the_prompts_say(family):
    prompts = [f"a large {colour} ball slides to the right on a dark background" for colour in ("red", "blue", "green")]
    rollout = generate(load_model(family), prompts, RolloutConfig(steps=8), n=4, seed=(1,))
    seen = measure_all(rollout.videos, rollout.prompts)
    assert np.mean(seen["colour_right"]) > 0.9
    assert np.mean(seen["background_right"]) > 0.9
    assert np.mean(seen["shape_iou"]) > 0.6


def test_shipped_folders_sample_in_diffusers_as_they_are(family):
    """`DiffusionPipeline.from_pretrained(folder)` and nothing more: every part in one precision."""
    pipe = DiffusionPipeline.from_pretrained(embedded_model(family))
    pipe.set_progress_bar_config(disable=True)
    frames, height, width = load_model(family).default_size()
    size = {"num_frames": frames, "height": height, "width": width, "max_sequence_length": 24}
    video = pipe("a small red ball falls to the ground on a dark background", num_inference_steps=1, **size).frames
    assert np.isfinite(np.asarray(video[0], dtype=float)).all()


def test_the_weights_are_small():
    assert sum(file.stat().st_size for file in (FOLDER / "weights").rglob("*") if file.is_file()) < 30e6


def test_no_prompt_is_in_two_lists():
    train, validation, test = (set(read_prompts(f"world-{split}")) for split in ("train", "validation", "test"))
    assert not train & test
    assert not train & validation
    assert not validation & test


def test_a_name_stands_for_its_folder_and_a_path_for_itself(tmp_path, monkeypatch):
    monkeypatch.setattr("besttake.runtime.embedded.FOLDER", tmp_path)
    folder = tmp_path / "weights" / "tiny"
    folder.mkdir(parents=True)
    assert embedded_model("tiny") == "tiny"  # no model yet
    (folder / "model_index.json").write_text("{}")
    assert Path(embedded_model("tiny")) == folder
    assert embedded_model("./tiny") == "./tiny"
    assert embedded_model("owner/tiny") == "owner/tiny"
    assert embedded_prompts("prompts.txt") == "prompts.txt"

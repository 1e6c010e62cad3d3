"""Prompts that a model cannot be given."""

import json

import pytest

from besttake.algorithms.onlinevpo import Config, train
from besttake.sampling.rollout import RolloutConfig
from besttake.training.validation import ValidationConfig


def test_prompts_that_are_too_long_are_all_named_and_skipped_on_request(model_folder, tmp_path, caplog):
    prompts = ["a red ball", "long " * 500, "a blue box", "far " * 500, ""]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts[:4]))
    config = {
        "model": str(model_folder("tiny-cogvideox")),
        "data": str(path),
        "steps": 1,
        "prompts_per_step": 2,
        "candidates": 2,
        "validation": ValidationConfig(every=0),
        "rollout": RolloutConfig(steps=1, guidance=1.0),
    }
    with pytest.raises(ValueError, match=r"(?s)2 of 4 prompts cannot .*'long .*'far .*set skip_bad to go on without"):
        train(Config(out=tmp_path / "a", **config))
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    run = train(Config(out=tmp_path / "b", skip_bad=True, **config))
    assert run.step == 1
    assert sum("skipped" in record.getMessage() for record in caplog.records) == 2  # of the file, and of the model

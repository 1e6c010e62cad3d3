import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from besttake.data.video import probe
from besttake.evaluation.before_after import (
    CriticMeasures,
    EvaluateConfig,
    base_model,
    concat_measurements,
    sample_videos,
    trained_model,
    with_adapter,
    write_examples,
    write_summary,
)
from besttake.models import load_model
from besttake.models.policy import Policy, PolicyConfig
from besttake.runtime.configuration import write_config
from besttake.sampling.rollout import RolloutConfig, generate
from besttake.training.run import TrainConfig

PROMPTS = ["a red ball", "a blue ball"]


@pytest.fixture(params=["lora", "full"])
def run(request, tmp_path, model_folder):
    """The folder of a run whose weights have moved, and what its policy then generated."""
    source = str(model_folder("tiny-cogvideox"))
    policy = Policy(load_model(source), PolicyConfig(train=request.param, rank=2))
    for weight in policy.trainable.values():
        weight.data += 0.02
    policy.save(tmp_path / "adapter")
    write_config(TrainConfig(model=source), tmp_path / "config.yaml")
    return tmp_path, generate(policy, PROMPTS, RolloutConfig(steps=1), seed=(777,))


def test_before_is_the_base_and_after_the_trained_model_from_the_same_noise(run, model_folder):
    folder, trained = run
    config = replace(EvaluateConfig(), rollout=RolloutConfig(steps=1))
    before = sample_videos(base_model(folder), PROMPTS, config)
    after = sample_videos(trained_model(folder), PROMPTS, config)
    base = generate(load_model(str(model_folder("tiny-cogvideox"))), PROMPTS, config.rollout, seed=(777,))
    torch.testing.assert_close(before, base.videos)
    torch.testing.assert_close(after, trained.videos, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(after, before, atol=1e-3)


def test_a_run_in_tiles_is_evaluated_in_tiles(run, model_folder):
    folder, _ = run
    assert not base_model(folder).parts.tiled
    write_config(TrainConfig(model=str(model_folder("tiny-cogvideox")), tiling=True), folder / "config.yaml")
    assert base_model(folder).parts.tiled
    assert trained_model(folder).parts.tiled


def test_one_clip_is_no_evaluation():
    with pytest.raises(ValueError, match="count is 1"):
        EvaluateConfig(count=1)


def test_an_unfinished_run_has_no_trained_model(run):
    folder, _ = run
    (folder / "adapter").rename(folder / "elsewhere")
    with pytest.raises(ValueError, match="has the run finished"):
        trained_model(folder)


def test_a_damaged_adapter_or_one_of_another_model_is_refused(run, model_folder):
    folder, _ = run
    with pytest.raises(ValueError, match=r"does not load into .*tiny-wan"):
        with_adapter(load_model(str(model_folder("tiny-wan"))), folder / "adapter")
    weights = next((folder / "adapter").rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match="does not load into"):
        trained_model(folder)


def test_an_adapter_of_something_else_is_no_adapter(model_folder, tmp_path):
    save_file({"text_encoder.q.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(ValueError, match="does not load into"):
        with_adapter(load_model(str(model_folder("tiny-cogvideox"))), tmp_path)


def test_critics_say_the_mean_of_each_dimension():
    critics = CriticMeasures(("temporal-flicker", "dynamic-degree"), 8.0)
    still = critics.measure(torch.zeros(2, 5, 3, 16, 16), PROMPTS)
    assert critics.means(still) == {
        "reward/temporal-flicker/temporal flicker": 1.0,
        "reward/dynamic-degree/dynamic degree": 0.0,
    }
    both = concat_measurements([still, critics.measure(torch.rand(1, 5, 3, 16, 16), PROMPTS[:1])])
    flicker = critics.columns(both)["reward/temporal-flicker/temporal flicker"]
    assert flicker.shape == (3,)
    assert flicker[0] == flicker[1] == 1 > flicker[2]


def test_clips_that_a_critic_abstains_on_are_left_out():
    critics = CriticMeasures(("temporal-flicker",), 8.0)
    name = "reward/temporal-flicker/temporal flicker"
    assert critics.means({"temporal-flicker": torch.tensor([[1.0], [torch.nan], [3.0]])}) == {name: 2.0}
    assert critics.means({"temporal-flicker": torch.tensor([[torch.nan]])}) == {}


def test_what_was_found_of_batches_is_put_together_row_by_row():
    parts = [
        {"a": torch.zeros(1), "b": {"c": np.zeros(1), "d": [("x",)]}},
        {"a": torch.ones(2), "b": {"c": np.ones(2), "d": [(), ()]}},
    ]
    whole = concat_measurements(parts)
    assert whole["a"].tolist() == whole["b"]["c"].tolist() == [0, 1, 1]
    assert whole["b"]["d"] == [("x",), (), ()]


def test_the_first_clips_are_written_large_enough_to_be_seen(tmp_path):
    write_examples(tmp_path / "after", [1, 2], torch.zeros(2, 5, 3, 16, 16), shown=2, fps=8)
    assert [path.name for path in (tmp_path / "after").iterdir()] == ["01.mp4"]
    assert probe(tmp_path / "after" / "01.mp4").width == 256


def test_a_summary_is_written(tmp_path):
    write_summary(tmp_path, {"before": {"flawed_share": 0.5}})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"before": {"flawed_share": 0.5}}

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from besttake.configuration import write_config
from besttake.data.video import probe
from besttake.evaluation.before_after import (
    EvaluateConfig,
    base_model,
    check_evaluation,
    critics_say,
    evaluation_prompts,
    shoot,
    trained_model,
    with_adapter,
    write_evaluation,
    write_summary,
)
from besttake.models import load_model
from besttake.policy import Policy, PolicyConfig
from besttake.rollout import RolloutConfig, generate
from besttake.run import TrainConfig

PROMPTS = ["a red ball", "a blue ball"]


@pytest.fixture(params=["lora", "full"])
def run(request, tmp_path, model_folder):
    """The folder of a run whose weights have moved, and what its policy then shot."""
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
    before = shoot(base_model(folder), PROMPTS, config)
    after = shoot(trained_model(folder), PROMPTS, config)
    base = generate(load_model(str(model_folder("tiny-cogvideox"))), PROMPTS, config.rollout, seed=(777,))
    torch.testing.assert_close(before, base.videos)
    torch.testing.assert_close(after, trained.videos, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(after, before, atol=1e-3)


def test_a_run_in_tiles_is_evaluated_in_tiles(run, model_folder):
    folder, _ = run
    assert not base_model(folder).tiled
    write_config(TrainConfig(model=str(model_folder("tiny-cogvideox")), tiling=True), folder / "config.yaml")
    assert base_model(folder).tiled
    assert trained_model(folder).tiled


def test_an_evaluation_measures_whole_clips(cogvideox):
    with pytest.raises(ValueError, match=r"evaluation\.rollout\.decoded is 2; whole clips are measured"):
        check_evaluation(EvaluateConfig(rollout=RolloutConfig(decoded=2)), cogvideox)


def test_no_prompt_is_shot_twice(tmp_path):
    (tmp_path / "prompts.txt").write_text("a\nb\na\nc\n")
    config = EvaluateConfig(str(tmp_path / "prompts.txt"), count=100)
    assert evaluation_prompts(config) == ["a", "b", "c"]
    assert evaluation_prompts(replace(config, count=2)) == ["a", "b"]
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
    still = torch.zeros(2, 5, 3, 16, 16)
    said = critics_say(("temporal-flicker", "dynamic-degree"), still, PROMPTS, 8.0)
    assert said == {"reward/temporal-flicker/temporal flicker": 1.0, "reward/dynamic-degree/dynamic degree": 0.0}


def test_what_the_report_reads_is_written(tmp_path):
    videos = {"before": torch.zeros(3, 5, 3, 16, 16), "after": torch.ones(3, 5, 3, 16, 16)}
    write_evaluation(tmp_path, videos, ["a", "b", "c"], shown=2, fps=8)
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.mp4"))
    assert written == [f"evaluation/{side}/0{i}.mp4" for side in ("after", "before") for i in (0, 1)]
    assert probe(tmp_path / written[0]).width == 256
    assert json.loads((tmp_path / "evaluation" / "prompts.json").read_text()) == ["a", "b"]
    write_evaluation(tmp_path, {"before": videos["before"]}, ["d", "e", "f"], shown=1, fps=8)
    assert [path.parent.name for path in tmp_path.rglob("*.mp4")] == ["before"]  # the others were of other prompts
    write_summary(tmp_path, {"before": {"flawed_share": 0.5}})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"before": {"flawed_share": 0.5}}

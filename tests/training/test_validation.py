from dataclasses import replace

import pytest
import torch

from besttake.data.prompts import read_prompts
from besttake.data.video import probe
from besttake.models.policy import Policy, PolicyConfig
from besttake.sampling.rollout import RolloutConfig
from besttake.training.validation import ValidationConfig, Validator


@pytest.fixture
def policy(cogvideox):
    return Policy(cogvideox, PolicyConfig(rank=2, ema_decay=0.5))


@pytest.fixture
def config(material):
    rewards = ("dynamic-degree", "temporal-flicker")
    return ValidationConfig(5, str(material / "prompts.txt"), 3, rewards, 2, RolloutConfig(steps=1))


def test_a_validation_pass_keeps_samples_and_logs_every_critics_scores(tmp_path, config, policy):
    row = Validator(config, policy, tmp_path, 0, "cpu").validate(15)
    assert set(row) == {"eval/dynamic-degree/dynamic degree", "eval/temporal-flicker/temporal flicker"}
    samples = sorted((tmp_path / "samples" / "step-00000015").iterdir())
    assert [path.name for path in samples] == ["00.mp4", "01.mp4"]
    assert probe(samples[0]).frames == 4


def test_validation_passes_of_one_policy_agree_and_use_the_average(tmp_path, config, policy):
    validator = Validator(config, policy, tmp_path, 0, "cpu")
    first = validator.validate(0)
    assert validator.validate(5) == first
    for weight in policy.trainable.values():
        weight.data += torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    assert validator.validate(10) == first  # the average has not moved yet
    policy.update_ema(1)
    assert validator.validate(15) != first


def test_no_validation_needs_no_prompts_and_no_critics(tmp_path, policy):
    Validator(ValidationConfig(every=0, prompts="nowhere", rewards=("nobody",)), policy, tmp_path, 0, "cpu")


def test_validation_is_on_the_runs_own_prompts_where_none_are_named(tmp_path, policy):
    config = ValidationConfig(count=2, rollout=RolloutConfig(steps=1))
    validator = Validator(config, policy, tmp_path, 0, "cpu", None, ["a dog", "a cat", "a cow"])
    assert validator.prompts == ["a dog", "a cat"]
    assert [reward.name for reward in validator.rewards] == ["dynamic-degree", "temporal-flicker", "motion-smoothness"]
    assert "eval/motion-smoothness/motion smoothness" in validator.validate(0)
    world = Validator(config, policy, tmp_path, 0, "cpu", "world", ["a dog"])
    assert world.prompts == read_prompts("world-validation")[:2]
    assert [reward.name for reward in world.rewards] == ["world", "heldout", "dynamic-degree"]
    assert config.critics("everyday") == ("dynamic-degree", "temporal-flicker", "motion-smoothness")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompts": "nowhere.txt"}, r"nowhere\.txt"),
        ({"rewards": ("nobody",)}, "unknown critic 'nobody'"),
        ({"rollout": RolloutConfig(height=33)}, "33"),
    ],
)
def test_what_cannot_be_validated_is_refused_at_once(tmp_path, config, policy, values, message):
    with pytest.raises(ValueError, match=message):
        Validator(ValidationConfig(**{**vars(config), **values}), policy, tmp_path, 0, "cpu")


def test_videos_of_the_first_and_the_newest_validation_passes_are_kept(tmp_path, config, policy, caplog):
    for old in range(0, 60, 10):
        (tmp_path / "samples" / f"step-{old:08d}").mkdir(parents=True)
        (tmp_path / "samples" / f"step-{old:08d}" / "00.mp4").write_bytes(bytes(5000))
    validator = Validator(replace(config, keep=3, rewards=()), policy, tmp_path, 0, "cpu")
    with caplog.at_level("INFO"):
        validator.validate(35)  # of a run that went back: the validation passes of later steps will come again
    assert [int(path.name[5:]) for path in sorted(validator.folder.iterdir())] == [0, 30, 35, 40, 50]
    assert "deleted the videos of 2 old validation passes, 10 kB (validation.keep is 3)" in caplog.text
    Validator(replace(config, keep=0, rewards=()), policy, tmp_path, 0, "cpu").validate(60)
    assert len(list(validator.folder.iterdir())) == 6


@pytest.mark.parametrize("keep", [-1, 1])
def test_fewer_than_the_first_and_the_last_validation_pass_cannot_be_kept(keep):
    with pytest.raises(ValueError, match=f"keep is {keep}; expected 2 or more"):
        ValidationConfig(keep=keep)

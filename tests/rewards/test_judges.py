"""Judges with a name, and how the plan treats them."""

from types import SimpleNamespace

import pytest

from besttake.plan.critics import card_of, uncounted_critics
from besttake.rewards import critic_names, load_reward
from besttake.rewards.judges import judge_names, load_judge
from besttake.rewards.panel import RewardConfig


def test_each_file_is_a_critic_with_its_name():
    assert {"unifiedreward", "videoscore2"} <= set(judge_names()) <= set(critic_names())
    for name in judge_names():
        judge = load_judge(name)
        assert judge.name == name
        assert card_of(name) == judge.card
        assert judge.card.ranges == dict.fromkeys(judge.dimensions, (1.0, 5.0))
        assert "{prompt}" in judge.config.rubric


def test_its_path_is_the_url_of_its_server():
    assert load_reward("videoscore2").config.url == "http://localhost:8000/v1"
    assert load_reward("videoscore2", path="http://there:1/v1").config.url == "http://there:1/v1"
    with pytest.raises(ValueError, match="expected http"):
        load_reward("videoscore2", path="there")


def test_settings_that_a_judge_lacks_are_refused():
    with pytest.raises(ValueError, match="videoscore2 has no setting num_frames"):
        load_reward("videoscore2", num_frames=3)


def test_the_plan_counts_no_memory_for_a_judge():
    config = SimpleNamespace(
        reward=RewardConfig("videoscore2"), validation=SimpleNamespace(every=0), data="world-train"
    )
    assert uncounted_critics(config) == []

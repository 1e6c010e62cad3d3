import math

import pytest
import torch

from besttake.rewards import load_reward
from besttake.rewards.checks import score_checked
from besttake.rewards.panel import Panel, PanelScores, RewardConfig, load_panel
from besttake.rewards.partial import PartialScore
from besttake.runtime.configuration import from_dict, to_dict
from besttake.types import CriticCard, Score

VIDEOS = torch.rand(6, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
PROMPTS = ["a ball"] * 3 + ["a ring"] * 3


class Fixed:
    """A critic that returns the given scores."""

    differentiable = False

    def __init__(self, name, abstains=(), **columns):
        self.name, self.dimensions = name, tuple(columns)
        self.card = CriticCard("", "", dict.fromkeys(columns, (0.0, 1.0)))
        self.values = torch.tensor(list(columns.values()), dtype=torch.float32).T
        self.scored = torch.tensor([row not in abstains for row in range(len(self.values))])

    def __call__(self, videos, prompts, fps=8.0):
        values = self.values * self.scored[:, None]
        return (
            Score(values, self.dimensions) if self.scored.all() else PartialScore(values, self.dimensions, self.scored)
        )


SHARP = Fixed("sharp", sharpness=[0.1, 0.2, 0.3, 0.4, 0.5, 0.9], grain=[1.0, 1, 1, 1, 1, 1])
SMOOTH = Fixed("smooth", smoothness=[10.0, 30, 20, 5, 15, 40])


def votes(combine="sum", normalise="none", **critics):
    return Panel({c.name: (c, w) for c, w in critics.values()}, combine, normalise)(VIDEOS, PROMPTS)


def test_a_single_critic_scores_as_it_does_alone():
    weights = {"temporal consistency": 1.0, "visual quality": 1.5, "dynamic degree": 2.0}
    videos = torch.rand(3, 16, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scores = load_panel(RewardConfig("world", weights))(videos, PROMPTS[:3])
    alone = score_checked(load_reward("world"), videos, PROMPTS[:3]).combine(weights)
    assert torch.equal(scores.values[:, 0], alone)
    assert scores.metrics == {"reward/mean": alone.mean().item()}


def test_sums_and_products_by_hand():
    both = {"a": (SHARP, {"sharpness": 2.0, "grain": 1.0}), "b": (SMOOTH, {"smoothness": 0.1})}
    assert votes(**both).values[:, 0].tolist() == pytest.approx([2.2, 4.4, 3.6, 2.3, 3.5, 6.8])
    product = votes("product", **both).values[:, 0]
    sharp, smooth = SHARP.values[:, 0], SMOOTH.values[:, 0]
    torch.testing.assert_close(product, sharp**2 * smooth**0.1)


def test_each_critic_logs_its_mean_and_the_reward_is_logged_before_it_is_normalised():
    both = {"a": (SHARP, {"sharpness": 1.0}), "b": (SMOOTH, {})}
    for normalise in ("none", "prompt", "batch"):
        said = votes("sum", normalise, **both).metrics
        assert said == pytest.approx({"reward/mean": 20.4, "reward/sharp": 0.4, "reward/smooth": 20.0})


def test_within_a_prompt_scales_and_levels_do_not_count():
    one = votes("sum", "prompt", a=(SHARP, {"sharpness": 1.0}), b=(SMOOTH, {})).values
    far = Fixed("smooth", smoothness=(1000 * SMOOTH.values[:, 0] - 5e4 * torch.tensor([0, 0, 0, 1, 1, 1])).tolist())
    other = votes("sum", "prompt", a=(SHARP, {"sharpness": 1.0}), b=(far, {})).values
    torch.testing.assert_close(one, other, atol=2e-3, rtol=0)
    torch.testing.assert_close(one.view(2, 3).mean(1), torch.zeros(2), atol=1e-5, rtol=0)


def test_a_product_of_normalised_scores_rewards_videos_good_at_both():
    one, other = Fixed("one", x=[-2.0, 0, 2]), Fixed("other", y=[2.0, 0, -2])
    panel = Panel({"one": (one, {}), "other": (other, {})}, "product", "prompt")
    table = panel(VIDEOS[:3], PROMPTS[:3]).values[:, 0]
    bell = [0.5 * math.erfc(-z / math.sqrt(2)) for z in (-math.sqrt(1.5), 0, math.sqrt(1.5))]
    assert table.tolist() == pytest.approx([bell[0] * bell[2], 0.25, bell[0] * bell[2]], abs=1e-3)
    assert table.argmax() == 1


def test_a_product_of_what_is_not_positive_is_refused():
    with pytest.raises(
        ValueError, match=r"critic cold returned the score -1; combine: product needs scores above 0: set reward.norm"
    ):
        Panel({"cold": (Fixed("cold", warmth=[1.0, -1.0]), {})}, "product")(VIDEOS[:2], PROMPTS[:2])


def test_a_panel_goes_on_from_its_checkpoint():
    critics = {"sharp": (SHARP, {}), "smooth": (SMOOTH, {})}
    panel, resumed = Panel(critics, "sum", "batch"), Panel(critics, "sum", "batch")
    panel(VIDEOS, PROMPTS)
    assert set(panel.state()) == {f"{name}/{what}" for name in critics for what in ("count", "mean", "square")}
    resumed.load_state(panel.state())
    assert torch.equal(resumed(VIDEOS, PROMPTS).values, panel(VIDEOS, PROMPTS).values)
    assert Panel(critics, "sum", "prompt").state() == {}


@pytest.mark.parametrize("normalise", ["none", "prompt", "batch"])
@pytest.mark.parametrize("combine", ["sum", "product", "vote"])
def test_an_abstention_is_no_number_and_moves_no_other(combine, normalise):
    values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    silent = Fixed("silent", abstains=(1,), x=values)
    scores = Panel({"silent": (silent, {}), "smooth": (SMOOTH, {})}, combine, normalise)(VIDEOS, PROMPTS)
    assert scores.scored.tolist() == [True, False, True, True, True, True]
    wild = Fixed("silent", abstains=(1,), x=[0.1, 1e6, *values[2:]])
    again = Panel({"silent": (wild, {}), "smooth": (SMOOTH, {})}, combine, normalise)(VIDEOS, PROMPTS)
    assert torch.equal(again.values, scores.values)
    assert again.metrics == scores.metrics


def test_a_critic_that_never_answers_leaves_no_reward_to_log():
    panel = Panel({"silent": (Fixed("silent", abstains=(0, 1), x=[1.0, 2.0]), {})}, "sum", "batch")
    assert panel(VIDEOS[:2], PROMPTS[:2]).metrics == {"reward/abstained": 2.0}


def test_gradients_flow_through_a_panel():
    critics = {name: (load_reward(name), {}) for name in ("temporal-flicker", "motion-smoothness")}
    for normalise in ("none", "prompt", "batch"):
        videos = VIDEOS.clone().requires_grad_(True)
        Panel(critics, "sum", normalise)(videos, PROMPTS).values.square().sum().backward()
        assert videos.grad.isfinite().all()
        assert videos.grad.any()


def test_a_vote_has_a_column_and_a_margin_for_each_critic():
    panel = Panel({"sharp": (SHARP, {"sharpness": 1.0}), "smooth": (SMOOTH, {})}, "vote", margins={"smooth": 2.0})
    scores = panel(VIDEOS, PROMPTS)
    assert torch.equal(scores.values, torch.stack([SHARP.values[:, 0], SMOOTH.values[:, 0]], 1))
    assert scores.margins.tolist() == [0, 2]


def test_plain_scores_are_those_of_one_critic():
    scores = PanelScores.of(torch.tensor([1.0, 3.0]))
    assert scores.values.tolist() == [[1], [3]]
    assert scores.scored.all()
    assert scores.metrics == {"reward/mean": 2.0}


RECIPE = {
    "critics": {"seer": {"visual quality": 1}, "motion-smoothness": {}},
    "combine": "vote",
    "normalise": "prompt",
    "margins": {"seer": 0.5},
    "judges": {"seer": {"model": "m", "rubric": "visual quality: <1-5>", "dimensions": {"visual quality": [1, 5]}}},
}


def test_a_recipe_is_read_and_written_and_loaded(tmp_path):
    config = from_dict(RewardConfig, RECIPE)
    assert from_dict(RewardConfig, to_dict(config)) == config
    panel = load_panel(from_dict(RewardConfig, {**RECIPE, "cache": str(tmp_path)}))
    assert [reward.name for reward, _ in panel.critics.values()] == ["seer", "motion-smoothness"]
    assert list(config.chosen) == ["seer", "motion-smoothness"]


def test_todays_recipes_mean_what_they_meant():
    config = from_dict(RewardConfig, {"name": "world", "weights": {"visual quality": 1}})
    assert config == RewardConfig("world", {"visual quality": 1.0})
    assert config.chosen == {"world": {"visual quality": 1.0}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": {"x": 1}}, "put the weights under each critic"),
        ({"combine": "sum"}, "margins need combine: vote"),
        ({"margins": {"nobody": 1}}, "margins names nobody; the critics are seer, motion-smoothness"),
        ({"critics": {"motion-smoothness": {}}, "margins": {}}, "judges names seer"),
        ({"combine": "mean"}, "'combine' is 'mean'"),
    ],
)
def test_recipes_that_cannot_be_meant_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        from_dict(RewardConfig, {**RECIPE, **change})


def test_unknown_dimensions_are_refused():
    with pytest.raises(ValueError, match="has no dimension 'smell'"):
        load_panel(RewardConfig(critics={"motion-smoothness": {"smell": 1.0}}))

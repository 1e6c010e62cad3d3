"""What is trained within so many hours."""

from dataclasses import replace

import pytest

from besttake.algorithms.onlinevpo import Config
from besttake.evaluation.before_after import EvaluateConfig
from besttake.plan import Plan, hours
from besttake.plan.cards import CARDS
from besttake.plan.meter import Phase
from besttake.plan.rates import uniform
from besttake.replication.budget import FEWEST_UPDATES, fewest_steps, reductions, total, within_budget
from besttake.sampling.rollout import RolloutConfig
from besttake.training.config import OptimConfig
from besttake.training.validation import ValidationConfig

CONFIG = Config(
    steps=400,
    rollout=RolloutConfig(steps=50, evaluations=16, frames=8, height=64, width=64),
    validation=ValidationConfig(every=0),
    evaluation=EvaluateConfig(prompts="nowhere.txt", count=64),
)


def plan(config) -> Plan:
    """A step takes 36 seconds, and a clip of the evaluation as long, less for smaller clips and fewer evaluations."""
    rollout = config.rollout
    share = rollout.frames / 8 * rollout.height / 64 * rollout.width / 64
    seconds = {"sample": 36 * share * rollout.evaluations / 16, "evaluate": 36 * 16 * share}
    phases = {name: Phase(name, 0.0, value) for name, value in seconds.items()}
    return Plan(CARDS["H100"], uniform(0.5), 1, 1.0, phases, hours(config, phases, 1))


def chosen(choices) -> dict:
    return {choice.setting: choice.value for choice in choices}


def test_the_whole_recipe_is_kept_where_it_fits(cogvideox):
    config, planned, choices = within_budget(CONFIG, 6.0, plan, cogvideox)  # 4 h of steps, 1.28 h of evaluation
    assert chosen(choices) == {"minutes": pytest.approx(60 * (6 - 1.28), abs=0.05)}
    assert replace(config, minutes=0.0) == CONFIG
    assert planned.hours == {"sampling": pytest.approx(4.0), "evaluation": pytest.approx(1.28)}


def test_steps_come_first(cogvideox):
    config, planned, choices = within_budget(CONFIG, 3.2801, plan, cogvideox)
    assert chosen(choices) == {"steps": 200, "minutes": 120.0}
    assert config.steps == 200
    assert sum(planned.hours.values()) == pytest.approx(3.28)


@pytest.mark.parametrize(
    ("budget", "settings"),
    [
        (2.0, {"evaluation.count"}),
        (1.3, {"evaluation.count", "rollout.frames"}),
        (0.5, {"evaluation.count", "rollout.frames", "rollout.height", "rollout.width"}),
        (0.12, {"evaluation.count", "rollout.frames", "rollout.height", "rollout.width", "rollout.evaluations"}),
    ],
)
def test_then_evaluation_frames_size_and_sampling_in_this_order(cogvideox, budget, settings):
    config, planned, choices = within_budget(CONFIG, budget, plan, cogvideox)
    assert chosen(choices).keys() - {"steps", "minutes"} == settings
    assert config.steps >= FEWEST_UPDATES
    assert total(config, planned) <= budget
    cogvideox.latent_shape(*config.rollout.size(cogvideox))


def test_given_settings_are_left_alone(cogvideox):
    config, _, choices = within_budget(CONFIG, 1.3, plan, cogvideox, {"evaluation.count", "rollout.frames", "minutes"})
    assert chosen(choices).keys() == {"rollout.height", "rollout.width", "steps"}
    with pytest.raises(ValueError, match="400 steps take"):
        within_budget(CONFIG, 0.2, plan, cogvideox, {"steps"})
    assert (config.evaluation.count, config.rollout.frames) == (64, 8)


def test_too_small_a_budget_names_the_smallest(cogvideox):
    with pytest.raises(
        ValueError, match=r"budget is 0.01 hours, but 100 steps take .* give [\d.]+ hours or more"
    ) as error:
        within_budget(CONFIG, 0.01, plan, cogvideox)
    named = float(str(error.value).partition("give ")[2].split()[0])
    assert within_budget(CONFIG, named, plan, cogvideox)[0].steps >= 100


def test_a_size_that_the_network_does_not_take_is_left_out(cogvideox):
    def rigid(config) -> Plan:
        if config.rollout.frames < 8:
            raise RuntimeError("sizes must match")
        return plan(config)

    config, _, choices = within_budget(CONFIG, 1.3, rigid, cogvideox)
    assert chosen(choices).keys() == {"evaluation.count", "rollout.height", "rollout.width", "minutes"}
    assert config.rollout.frames == 8


def test_the_fewest_steps_are_a_hundred_updates():
    accumulated = replace(CONFIG, steps=1000, optim=OptimConfig(gradient_accumulation_steps=4))
    assert [fewest_steps(config) for config in (CONFIG, accumulated, replace(CONFIG, steps=30))] == [100, 400, 30]
    assert fewest_steps(CONFIG, fixed=True) == 400


def test_reductions_are_sizes_that_the_model_samples(model):
    own = replace(CONFIG, rollout=RolloutConfig())
    for values in reductions(own, model):
        frames, height, width = model.default_size()
        model.latent_shape(
            values.get("rollout.frames", frames),
            values.get("rollout.height", height),
            values.get("rollout.width", width),
        )
        assert values.get("rollout.frames", frames - 1) < frames

"""The card at hand, and what fits on it."""

from dataclasses import replace

import pytest
import torch

from besttake.algorithms.onlinevpo import Config
from besttake.plan import plan_on
from besttake.plan.advice import with_setting
from besttake.plan.cards import CARDS, Card
from besttake.replication.cards import card_at_hand, check_fit, known_card
from besttake.rewards.panel import RewardConfig
from besttake.sampling.rollout import RolloutConfig
from besttake.training.validation import ValidationConfig


@pytest.mark.parametrize(
    ("driver_name", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-40GB"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("NVIDIA GeForce RTX 4080 SUPER", "RTX-4080"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX-6000-Ada"),
        ("NVIDIA RTX A6000", "A6000"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
    ],
)
def test_a_card_is_known_by_the_name_of_its_driver(driver_name, card):
    assert known_card(driver_name) == CARDS[card]


def test_an_unknown_card_has_to_be_named():
    with pytest.raises(ValueError, match=r"Tesla T4 is not among the cards .* give --card .*H100"):
        known_card("Tesla T4")


def test_a_processor_has_no_card_unless_one_is_named():
    assert card_at_hand("cpu") is None
    assert card_at_hand("cpu", "4090") == CARDS["RTX-4090"]
    with pytest.raises(ValueError, match="there are several cards '40'"):
        card_at_hand("cpu", "40")


def test_the_memory_is_that_of_this_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA GeForce RTX 4090")
    properties = type("Properties", (), {"total_memory": 20 * 2**30})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert card_at_hand("cuda") == replace(CARDS["RTX-4090"], memory=20)
    assert card_at_hand("cuda", "H100") == replace(CARDS["H100"], memory=20)


@pytest.fixture
def config(model_folder):
    return Config(
        model=str(model_folder("tiny-wan")),
        prompts_per_step=2,
        candidates=4,
        reward=RewardConfig("temporal-flicker"),
        rollout=RolloutConfig(steps=2, frames=5, height=64, width=64),
        validation=ValidationConfig(every=0),
    )


def of(gib: float) -> Card:
    return Card("small", gib, 1, 1, 1, 1)


def test_what_does_not_fit_is_refused_with_settings_with_which_it_does(config):
    plan = plan_on(config, of(80))
    check_fit(config, plan)
    fullest = max(phase.peak for phase in plan.phases.values()) / 2**30
    small = of(1.5 + 0.7 * fullest)
    with pytest.raises(ValueError, match=r"does not fit on small: .* add --") as refused:
        check_fit(config, plan_on(config, small))
    added = str(refused.value).partition("add ")[2].partition(" (then")[0]
    for flag in added.removeprefix("--").split(" --"):
        name, _, value = flag.replace("-", "_").partition(" ")
        config = with_setting(config, name, int(value) if value.isdigit() else value or True)
    check_fit(config, plan_on(config, small))

"""`policy.gradient_checkpointing: auto`: the fastest way that fits."""

from dataclasses import replace

import pytest

from besttake.commands.cli import read_recipe
from besttake.models.policy import PolicyConfig
from besttake.plan import automatic
from besttake.plan.automatic import ROOM, THROUGHPUT, WAYS, resolve, resolve_here
from besttake.plan.steps import measure, training_peaks

PEAKS = dict(zip(WAYS, (100, 70, 60, 50, 25, 20), strict=True))


@pytest.fixture
def config():
    return replace(read_recipe("onlinevpo-tiny"), policy=PolicyConfig(rank=4, gradient_checkpointing="auto"))


@pytest.fixture
def peaks(monkeypatch):
    """Made-up peaks, instead of a plan's; the ways that were asked for."""
    asked = []

    def training_peaks(config, throughput, gpus, ways):
        for way in ways:
            asked.append(way)
            yield PEAKS.get(way, float("inf"))

    monkeypatch.setattr(automatic, "training_peaks", training_peaks)
    return asked


def chosen(config):
    return config.policy.gradient_checkpointing, config.policy.micro_batch_size


@pytest.mark.parametrize("way", WAYS)
def test_the_first_that_fits_is_taken_and_no_more_are_tried(config, peaks, way):
    found = resolve(config, PEAKS[way] / ROOM)
    assert chosen(found) == way
    assert replace(found, policy=config.policy) == config  # nothing else is changed
    assert peaks == list(WAYS[: WAYS.index(way) + 1])[:5]  # the last one needs no plan


def test_if_none_fits_it_is_the_one_of_least_memory(config, peaks):
    assert chosen(resolve(config, 1.0)) == ("full", 1)


def test_a_micro_batch_that_is_set_stays(config, peaks):
    found = resolve(replace(config, policy=replace(config.policy, micro_batch_size=2)), 1.0)
    assert chosen(found) == ("full", 2)
    assert peaks == [("none", 2), ("selective", 2)]


def test_by_a_real_plan_each_way_has_its_own_peak(config):
    """The same as that of a plan of its own."""
    config = replace(config, steps=1, prompts_per_step=1, candidates=2)
    ways = [("none", 0), ("none", 1), ("full", 1)]
    found = dict(zip(ways, training_peaks(config, THROUGHPUT, 1, ways), strict=True))
    assert found["none", 0] > found["none", 1] > found["full", 1]
    policy = replace(config.policy, gradient_checkpointing="full", micro_batch_size=1)
    alone = measure(replace(config, policy=policy), THROUGHPUT, parts=["step"])
    assert found["full", 1] == pytest.approx(alone["train"].peak, rel=0.01)


def test_on_a_cpu_nothing_is_recomputed(config):
    assert resolve_here(config).policy.gradient_checkpointing == "none"
    assert resolve_here(read_recipe("onlinevpo-tiny")) == read_recipe("onlinevpo-tiny")

"""`policy.gradient_checkpointing: auto`: the fastest way that fits."""

from dataclasses import replace

import pytest

from besttake.commands.cli import read_recipe
from besttake.models.policy import PolicyConfig
from besttake.plan import automatic
from besttake.plan.automatic import ROOM, WAYS, resolve, resolve_here

PEAKS = {
    ("none", 0): 100,
    ("none", 1): 60,
    ("selective", 0): 40,
    ("full", 0): 30,
    ("selective", 1): 25,
    ("full", 1): 20,
}


@pytest.fixture
def config():
    return replace(read_recipe("onlinevpo-tiny"), policy=PolicyConfig(rank=4, gradient_checkpointing="auto"))


@pytest.mark.parametrize("way", WAYS)
def test_the_first_that_fits_is_taken(config, monkeypatch, way):
    monkeypatch.setattr(
        automatic,
        "_train_peak",
        lambda tried, gpus: PEAKS[tried.policy.gradient_checkpointing, tried.policy.micro_batch_size],
    )
    found = resolve(config, PEAKS[way] / ROOM)
    assert (found.policy.gradient_checkpointing, found.policy.micro_batch_size) == way
    assert replace(found, policy=config.policy) == config  # nothing else is changed


def test_if_none_fits_it_is_the_one_of_least_memory(config, monkeypatch):
    monkeypatch.setattr(automatic, "_train_peak", lambda *_: float("inf"))
    found = resolve(config, 1.0)
    assert (found.policy.gradient_checkpointing, found.policy.micro_batch_size) == ("full", 1)


def test_a_micro_batch_that_is_set_stays(config, monkeypatch):
    seen = []

    def peak(tried, gpus):
        seen.append((tried.policy.gradient_checkpointing, tried.policy.micro_batch_size))
        return float("inf")

    monkeypatch.setattr(automatic, "_train_peak", peak)
    resolve(replace(config, policy=replace(config.policy, micro_batch_size=2)), 1.0)
    assert seen == [("none", 2), ("selective", 2)]  # and full needs no plan: it is taken if nothing else fits


def test_by_a_real_plan_less_memory_means_more_recomputation(config):
    """On a longer clip, whose activations count."""
    config = replace(config, steps=1, prompts_per_step=1, candidates=2)
    peaks = [
        automatic._train_peak(replace(config, policy=replace(config.policy, gradient_checkpointing=level)), 1)
        for level in ("none", "selective", "full")
    ]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] > peaks[1] > peaks[2]
    assert resolve(config, 1.001 * peaks[0] / ROOM).policy.gradient_checkpointing == "none"


def test_on_a_cpu_nothing_is_recomputed(config):
    assert resolve_here(config).policy.gradient_checkpointing == "none"
    assert resolve_here(read_recipe("onlinevpo-tiny")) == read_recipe("onlinevpo-tiny")

"""One block run for all that are alike costs what all of them cost."""

from collections import Counter
from dataclasses import replace

import pytest

from besttake.plan import alike, steps
from besttake.plan.steps import measure
from tests.plan.test_steps import PACE, recipe

LORA = {"gradient_checkpointing": True, "clips_at_once": 1}


def small(model: str, **policy):
    return replace(recipe(model, **policy), dtype="bfloat16", prompts_per_step=1, draws=1)


@pytest.mark.parametrize(
    ("model", "policy"),
    [
        ("tiny-cogvideox", LORA),
        ("tiny-wan", LORA),
        ("tiny-cogvideox", LORA | {"train": "full"}),
        ("tiny-wan", LORA | {"offload": True}),
    ],
    ids=str,
)
def test_as_if_every_block_were_run(model, policy, monkeypatch):
    one = measure(small(model, **policy), PACE, parts=("sample", "train"))
    monkeypatch.setattr(steps, "run_one_of_each", lambda *_: None)
    every = measure(small(model, **policy), PACE, parts=("sample", "train"))
    for name, phase in one.items():
        assert phase.flops == pytest.approx(every[name].flops, rel=1e-4)
        assert phase.seconds == pytest.approx(every[name].seconds, rel=2e-3)
        assert phase.peak == pytest.approx(every[name].peak, rel=0.01)


def test_one_block_of_a_kind_is_run(monkeypatch):
    runs = Counter()

    def counted(block, *args, **kwargs):
        runs[repr(block)] += 1
        return block._run(*args, **kwargs)

    monkeypatch.setattr(alike.Block, "__call__", counted)
    measure(small("tiny-cogvideox", **LORA), PACE, parts=("train",))
    # the reference's; the policy's, and again going backward: the first block and the others
    assert sorted(runs.values()) == [1, 3]

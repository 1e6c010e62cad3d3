"""One block run for all that are alike costs what all of them cost."""

from collections import Counter
from dataclasses import replace

import pytest

from besttake.models.split_backward import recompute
from besttake.plan import block_cache, steps
from besttake.plan.steps import measure
from tests.plan.test_steps import SHORT, THROUGHPUT, recipe

LORA = {"gradient_checkpointing": "full", "micro_batch_size": 1}


def small(model: str, rows: int = 1, **policy):
    return replace(
        recipe(model, **policy), dtype="bfloat16", prompts_per_step=rows, timesteps_per_pair=1, rollout=SHORT
    )


@pytest.mark.parametrize(
    ("model", "rows", "policy"),
    [
        ("tiny-cogvideox", 2, {}),
        ("tiny-cogvideox", 1, {"gradient_checkpointing": "selective"}),
        ("tiny-wan", 1, {"train": "full"}),
    ],
    ids=str,
)
def test_as_if_every_block_were_run(model, rows, policy, small_model, monkeypatch):
    if model == "tiny-wan":  # a small CogVideoX has so small blocks that their memory is not most of it
        model = small_model(model, layers=3)
    one = measure(small(model, rows, **LORA | policy), THROUGHPUT, parts=("step",))
    monkeypatch.setattr(steps, "reuse_equal_blocks", lambda *_: lambda level: None)
    monkeypatch.setattr(steps, "cached_recompute", lambda *_: recompute)
    every = measure(small(model, rows, **LORA | policy), THROUGHPUT, parts=("step",))
    for name, phase in one.items():
        assert phase.flops == pytest.approx(every[name].flops, rel=1e-4)
        assert phase.seconds == pytest.approx(every[name].seconds, rel=2e-3)
        assert phase.peak == pytest.approx(every[name].peak, rel=0.01)


def test_one_block_of_a_kind_is_run(small_model, monkeypatch):
    runs = Counter()

    def counted(block, *args, **kwargs):
        runs[repr(block)] += 1
        return block._run(*args, **kwargs)

    monkeypatch.setattr(block_cache.Block, "__call__", counted)
    measure(small(small_model("tiny-cogvideox", layers=3), 2, **LORA), THROUGHPUT, parts=("step",))
    # without the adapter, in two sizes of sampling batches, whose LoRA is merged (the smaller is also the reference's);
    # with it, in the first and in the last part of the loss; and going backward the first block's and the others'
    assert sorted(runs.values()) == [2, 4]

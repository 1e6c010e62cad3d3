"""When memory runs out, fewer clips at once: there and then, going forward and going backward."""

import gc
import json
import logging
import os
import subprocess
import sys
from itertools import count

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.utils._pytree import tree_leaves

from besttake.algorithms import sft
from besttake.algorithms.errors import sft_error
from besttake.commands import cli
from besttake.models import load_model, split_backward
from besttake.models.policy import Policy, PolicyConfig
from besttake.models.quantization import blocks
from besttake.models.sharding import is_sharded
from besttake.runtime.memory import ADVICE, free_memory, out_of_memory
from tests.peak import Peak
from tests.runs import rows
from tests.shortage import MALLOC

SAID = "CUDA out of memory. Tried to allocate 2.00 GiB"


@pytest.fixture
def train(tmp_path, model_folder, material, monkeypatch):
    """Runs `besttake train` with some flags, short of the report; its exit status and the folder of the run."""
    monkeypatch.setattr(cli, "_report", lambda *_: None)
    path, numbers = tmp_path / "recipe.yaml", count()
    values = {
        "algorithm": "sft",
        "model": str(model_folder("tiny-cogvideox")),
        "data": str(material / "clips"),
        "steps": 3,
        "save_every": 1000,
        "clips_per_step": 4,
        "policy": {"rank": 2},
        "optim": {"lr": 1e-2, "warmup_steps": 1},
        "validation": {"every": 0},
    }
    path.write_text(yaml.safe_dump(values))

    def run(*flags):
        out = tmp_path / f"run{next(numbers)}"
        return cli.main(["train", str(path), "--out", str(out), *flags]), out

    return run


@pytest.fixture
def room(monkeypatch):
    """Room for so many clips half-way through the policy's forward pass, and its backward pass; no limit at first.

    Going forward it is the second block that has too little. Going backward it is the first: the others' weights have
    their gradients by then.
    """
    limit, predict = {"forward": 99, "backward": 99}, Policy.predict

    def fit(clips, where):
        if clips > limit[where]:
            raise torch.OutOfMemoryError(SAID)

    def checked_predict(policy, x_t, t, condition):
        if not torch.is_grad_enabled():
            return predict(policy, x_t, t, condition)

        def record(block, inputs, output):
            for tensor in tree_leaves(output):
                tensor.register_hook(lambda _: fit(len(x_t), "backward"))

        first, second = blocks(policy.model.denoiser)[:2]
        hooks = [first.register_forward_hook(record)]
        hooks += [second.register_forward_pre_hook(lambda *_: fit(len(x_t), "forward"))]
        try:
            return predict(policy, x_t, t, condition)
        finally:
            for hook in hooks:
                hook.remove()

    monkeypatch.setattr(Policy, "predict", checked_predict)
    return limit


def same_run(first, second):
    """Whether two runs took the same steps, each once, to the same weights."""
    numbers = ("step", "train/loss", "train/grad_norm")
    metrics = [[{name: row[name] for name in numbers if name in row} for row in rows(run)] for run in (first, second)]
    assert [row["step"] for row in metrics[0]] == list(range(len(metrics[0])))
    for one, other in zip(*metrics, strict=True):
        assert other == pytest.approx(one, rel=1e-4)
    one, other = (load_file(next((run / "adapter").glob("*.safetensors"))) for run in (first, second))
    assert any(weight.any() for weight in one.values())
    torch.testing.assert_close(other, one, rtol=1e-2, atol=1e-4)


def halvings(caplog):
    """What was said of fewer clips: so many before, so many after."""
    messages = [message.split() for message in caplog.messages if "micro_batch_size is now" in message]
    return [(int(said[7]), int(said[-1])) for said in messages]


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_half_as_many_clips_are_taken_until_they_fit_and_the_run_is_the_same(train, room, where, caplog):
    _, whole = train()
    room[where] = 1
    with caplog.at_level(logging.WARNING):
        status, halved = train()
    assert status == 0
    assert halvings(caplog) == [(4, 2), (2, 1)]
    same_run(whole, halved)


def test_gradients_of_earlier_steps_are_not_lost_nor_counted_twice(train, room, monkeypatch, caplog):
    flags, calls = ("--optim.gradient_accumulation_steps", "2", "--steps", "4"), count()
    _, whole = train(*flags)

    def error(*args):
        if next(calls) == 1:  # the second step adds to the first one's gradients
            room["backward"] = 2
        return sft_error(*args)

    monkeypatch.setattr(sft, "sft_error", error)
    with caplog.at_level(logging.WARNING):
        status, halved = train(*flags)
    assert status == 0
    assert halvings(caplog) == [(4, 2)]
    same_run(whole, halved)


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize(
    ("flags", "clips"), [(["--policy.micro_batch_size", "1"], 0), (["--policy.no-halve-on-oom"], 1)]
)
def test_it_is_not_done_unasked_and_one_clip_is_not_halved(train, room, where, flags, clips, capsys, caplog):
    room[where] = clips
    assert train(*flags)[0] == 1
    said = capsys.readouterr().err
    assert SAID in said
    assert ADVICE in said
    assert not halvings(caplog)


def clips_of(policy, rows, seed=0):
    """Clips, condition, times and noise, for a policy that has moved."""
    generator, model = torch.Generator().manual_seed(seed), policy.model
    with torch.no_grad():
        for weight in policy.trainable.values():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    x_0, noise = torch.randn(2, rows, *model.latent_shape(*model.default_size()), generator=generator)
    condition = model.encode_prompts(["a red ball", "a blue ball", "a ball", "a box"][:rows])
    return x_0, condition, torch.rand(rows, generator=generator), noise


@pytest.mark.parametrize(
    "how",
    [
        {"gradient_checkpointing": "full"},
        {"train": "full"},
        {"offload": True},
        {"offload": True, "gradient_checkpointing": "full"},
    ],
    ids=str,
)
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_the_gradients_are_those_of_enough_memory(model_folder, how, room, where):
    """From the first pass on, and in the next one, when earlier gradients wait. What the CPU keeps is there again."""
    model = load_model(str(model_folder("tiny-cogvideox")), offload=how.get("offload", False))
    policy = Policy(model, PolicyConfig(rank=2, **how))
    inputs, found, sharded = clips_of(policy, 4), [], [is_sharded(weight) for weight in model.denoiser.parameters()]
    for policy.micro_batch_size, limit in ((4, 1), (4, 2), (4, 99)):
        room[where] = limit
        for _ in range(2):
            sft_error(policy, *inputs).sum().backward()
            assert [is_sharded(weight) for weight in model.denoiser.parameters()] == sharded
        assert policy.micro_batch_size == min(limit, 4)
        found.append([weight.grad for weight in policy.trainable.values()])
        for weight in policy.trainable.values():
            weight.grad = None
    *halved, whole = found
    for some in halved:
        for gradient, expected in zip(some, whole, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_blocks_that_the_cpu_keeps_can_be_short_of_memory_before_they_were_ever_run(model_folder, monkeypatch):
    policy = Policy(load_model(str(model_folder("tiny-cogvideox")), offload=True), PolicyConfig(rank=2, offload=True))
    inputs, kind = clips_of(policy, 2), type(policy.model)
    predict = kind.predict

    def short(model, denoiser, x_t, *condition):
        if len(x_t) > 1:
            raise torch.OutOfMemoryError(SAID)
        return predict(model, denoiser, x_t, *condition)

    monkeypatch.setattr(kind, "predict", short)
    sft_error(policy, *inputs).sum().backward()
    assert policy.micro_batch_size == 1


@pytest.mark.parametrize("enough", ["selective", "full"])
def test_after_one_clip_blocks_are_checkpointed(model_folder, monkeypatch, caplog, enough):
    policy = Policy(load_model(str(model_folder("tiny-cogvideox"))), PolicyConfig(rank=2))
    inputs, kind = clips_of(policy, 2), type(policy.model)
    predict = kind.predict
    sft_error(policy, *inputs).sum().backward()
    plain = [weight.grad.clone() for weight in policy.trainable.values()]
    policy.model.denoiser.zero_grad()

    def short(model, denoiser, x_t, *condition):
        if len(x_t) > 1 or (torch.is_grad_enabled() and policy.gradient_checkpointing not in (enough, "full")):
            raise torch.OutOfMemoryError(SAID)
        return predict(model, denoiser, x_t, *condition)

    monkeypatch.setattr(kind, "predict", short)
    with caplog.at_level(logging.WARNING):
        sft_error(policy, *inputs).sum().backward()
    assert policy.gradient_checkpointing == enough
    assert f"with a micro-batch of 1 clip: policy.gradient_checkpointing is now {enough}" in caplog.text
    for weight, expected in zip(policy.trainable.values(), plain, strict=True):
        torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_nothing_is_kept_of_the_clips_that_were_too_many(cogvideox, room, monkeypatch):
    policy = Policy(cogvideox, PolicyConfig(rank=2))
    inputs, room["backward"], held, replay = clips_of(policy, 4), 2, [], split_backward.recompute

    def checked_recompute(*args):
        held.append(peak.bytes)
        replay(*args)

    monkeypatch.setattr(split_backward, "recompute", checked_recompute)
    gc.collect()
    gc.disable()  # memory comes back when it is given back, not when somebody looks for it
    try:
        with Peak() as peak:
            loss = sft_error(policy, *inputs).sum()
            forward = peak.bytes
            loss.backward()
    finally:
        gc.enable()
    assert len(held) == 2
    assert max(held) < forward / 10


@pytest.mark.skipif(sys.platform != "linux", reason="no limit on a process's memory elsewhere")
def test_a_real_shortage_going_backward(model_folder):
    command = [sys.executable, "-m", "tests.shortage", str(model_folder("tiny-wan"))]
    done = subprocess.run(command, env=os.environ | MALLOC, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["micro_batch_size"] in (1, 2)
    assert found["far"] < 1e-4


def test_users_get_advice_on_what_to_do(monkeypatch, capsys):
    def short(_):
        raise torch.OutOfMemoryError(f"{SAID}\nlong words of the allocator")

    monkeypatch.setitem(cli.COMMANDS, "train", short)
    assert cli.main(["train", "sft-tiny"]) == 1
    said = capsys.readouterr().err
    assert "Tried to allocate 2.00 GiB" in said
    assert "--policy.micro_batch_size 1" in said
    assert "long words" not in said


def test_what_is_out_of_memory():
    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("x"))
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_real_shortage_is_recognised_and_forgotten():
    with pytest.raises(RuntimeError) as found:
        torch.empty(1 << 60)
    assert out_of_memory(found.value)
    free_memory(found.value)
    assert found.value.__traceback__ is None

"""When memory runs out, fewer clips at once: in the forward pass there and then, else from the last checkpoint."""

import json
import logging
from dataclasses import replace

import pytest
import torch

from besttake import cli
from besttake.algorithms import sft
from besttake.memory import TooManyClipsError, forget, out_of_memory
from besttake.monitor import MonitorConfig
from besttake.policy import Policy, PolicyConfig
from besttake.run import OptimConfig


@pytest.fixture
def config(tmp_path, model_folder, material):
    return sft.Config(
        model=str(model_folder("tiny-cogvideox")),
        data=str(material / "clips"),
        out=tmp_path / "run",
        steps=3,
        save_every=1,
        clips_per_step=4,
        policy=PolicyConfig(rank=2),
        optim=OptimConfig(lr=1e-2, warmup=1),
        monitor=MonitorConfig(every=0),
    )


@pytest.fixture
def room(monkeypatch):
    """Room for so many clips in the policy's forward pass, and in its backward pass; no limit at first."""
    limit = {"forward": 99, "backward": 99}
    predict = Policy.predict

    def short(policy, x_t, t, condition):
        if torch.is_grad_enabled() and len(x_t) > limit["forward"]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        prediction = predict(policy, x_t, t, condition)
        if prediction.requires_grad:
            prediction.register_hook(lambda grad: full(len(grad)))
        return prediction

    def full(clips):
        if clips > limit["backward"]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Policy, "predict", short)
    return limit


def losses(folder):
    return [
        row["loss"]
        for line in (folder / "metrics.jsonl").read_text().splitlines()
        if "loss" in (row := json.loads(line))
    ]


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_half_as_many_clips_are_taken_until_they_fit_and_the_run_is_the_same(config, tmp_path, room, where, caplog):
    whole = sft.train(replace(config, out=tmp_path / "whole"))
    room[where] = 1
    with caplog.at_level(logging.WARNING):
        run = cli.train_in_memory(config)
    assert run.policy.clips_at_once == 1
    assert [message.split(":")[0] for message in caplog.messages if "memory has run out" in message] == [
        f"memory has run out with {clips} clips of the loss at once" for clips in (4, 2)
    ]
    assert losses(run.folder) == pytest.approx(losses(whole.folder), rel=1e-4)
    for name, weight in whole.policy.trainable.items():
        torch.testing.assert_close(run.policy.trainable[name], weight, rtol=1e-2, atol=1e-4)


def test_a_run_goes_on_from_its_checkpoint_with_fewer_clips_at_once(config, room):
    sft.train(replace(config, steps=2))
    room["backward"] = 2
    assert cli.train_in_memory(config).policy.clips_at_once == 2
    assert len(losses(config.out)) == 3


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_it_is_not_done_unasked_and_one_clip_is_not_halved(config, room, where):
    room[where] = 0
    with pytest.raises(torch.OutOfMemoryError):
        cli.train_in_memory(replace(config, policy=PolicyConfig(rank=2, clips_at_once=1)))
    room[where] = 1
    with pytest.raises(torch.OutOfMemoryError):
        cli.train_in_memory(replace(config, policy=PolicyConfig(rank=2, halve=False)))


def test_users_are_told_what_to_do(monkeypatch, capsys):
    def short(_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nlong words of the allocator")

    monkeypatch.setitem(cli.COMMANDS, "train", short)
    assert cli.main(["train"]) == 1
    said = capsys.readouterr().err
    assert "Tried to allocate 2.00 GiB" in said
    assert "--policy.clips-at-once 1" in said
    assert "long words" not in said


def test_what_is_out_of_memory():
    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("x"))
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    assert out_of_memory(TooManyClipsError(4))
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_real_shortage_is_recognised_and_forgotten():
    with pytest.raises(RuntimeError) as found:
        torch.empty(1 << 60)
    assert out_of_memory(found.value)
    forget(found.value)
    assert found.value.__traceback__ is None

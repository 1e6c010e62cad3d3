"""The machine, with a tiny SFT as the algorithm; tests/contracts/test_algorithms.py runs every algorithm through it."""

import errno
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from safetensors.torch import load_file, save_file

from besttake.algorithms.sft import Config, train
from besttake.evaluation.before_after import EvaluateConfig
from besttake.models import load_model
from besttake.models.attention import attention_of
from besttake.models.parts import PipelineParts
from besttake.models.policy import PolicyConfig, legacy_weights_hash
from besttake.sampling.rollout import RolloutConfig, RolloutOverrides, decode_latents
from besttake.training import checkpoint_files
from besttake.training.run import OptimConfig, Run, TrainConfig
from besttake.training.trackers import TensorBoard
from besttake.training.validation import ValidationConfig
from tests.processes import launch
from tests.runs import rows


@pytest.fixture
def config(tmp_path, model_folder, material):
    return Config(
        model=str(model_folder("tiny-cogvideox")),
        data=str(material / "clips"),
        out=tmp_path / "run",
        steps=3,
        save_every=1,
        clips_per_step=2,
        policy=PolicyConfig(rank=2),
        optim=OptimConfig(lr=1e-2, warmup_steps=4),
        validation=ValidationConfig(every=0),
    )


def test_the_rate_warms_up_and_the_gradient_is_clipped(config):
    seen = []

    def step(optimizer, step=torch.optim.AdamW.step):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        seen.append(torch.cat([p.grad.flatten() for p in parameters]).norm().item())
        return step(optimizer)

    run = Run(replace(config, optim=OptimConfig(lr=1.0, warmup_steps=2, max_grad_norm=0.5)))
    optimizer = run.optimization.optimizer
    optimizer.step = step.__get__(optimizer)
    for _ in run.steps([0], 1):
        run.update(100 * torch.stack([weight.sum() for weight in run.policy.trainable.values()]).sum())
    assert [row["train/lr"] for row in rows(run.folder)] == [0.5, 1.0, 1.0]
    assert seen == [pytest.approx(0.5, rel=1e-3)] * 3
    assert all(row["train/grad_norm"] > 100 for row in rows(run.folder))


@pytest.mark.parametrize("where", ["rollout", "evaluation"])
def test_a_negative_prompt_that_is_too_long_is_refused_before_any_work(config, where):
    rollout = RolloutConfig(negative_prompt="blurred " * 60)
    wrong = rollout if where == "rollout" else EvaluateConfig(rollout=rollout)
    with pytest.raises(ValueError, match="the negative prompt has 61 tokens"):
        Run(replace(config, **{where: wrong}))


def test_an_attention_backend_is_set_or_refused_before_any_work(config):
    assert attention_of(Run(replace(config, attention="_native_math")).model.denoiser) == "_native_math"
    other = replace(config, out=config.out.with_name("other"))
    with pytest.raises(ValueError, match="attention is '_native_cudnn', which cannot be used here"):
        Run(replace(other, attention="_native_cudnn"))  # float32
    with pytest.raises(ValueError, match="there is no attention backend 'fast'"):
        Run(replace(other, validation=ValidationConfig(every=1, rollout=RolloutOverrides(attention="fast"))))
    with pytest.raises(ValueError, match="'sage' is approximate"):
        Run(replace(other, attention="sage"))


@pytest.mark.parametrize("low_memory", [False, True])
def test_where_text_encoders_are_freed_after_use_texts_are_cached(config, monkeypatch, low_memory):
    initialise = PipelineParts.__init__

    def parts(self, *args):
        initialise(self, *args)
        self.low_memory = low_memory  # as on a GPU

    monkeypatch.setattr(PipelineParts, "__init__", parts)
    cache = Run(config).model.prompts.cache
    assert (cache is not None) == low_memory
    if cache:
        train(replace(config, steps=1))
        assert list((config.out / "cache").iterdir())


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_the_autoencoder_may_have_another_precision(config, dtype):
    model = Run(replace(config, vae_dtype=dtype)).model
    assert model.pipeline.vae.dtype == (torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    assert model.denoiser.dtype == torch.float32
    latents = torch.randn(1, *model.latent_shape(*model.default_size()))
    video = decode_latents(model, [latents], RolloutConfig())
    assert video.dtype == torch.float32
    exact = decode_latents(load_model(config.model), [latents], RolloutConfig())
    assert torch.equal(video, exact) if dtype == "auto" else 1e-6 < (video - exact).square().mean() < 1e-3


def test_fp8_rollouts_of_a_float32_base_are_refused(config):
    with pytest.raises(ValueError, match=r"rollout.fp8 needs plain weights in bfloat16 .* with dtype: float32"):
        replace(config, validation=ValidationConfig(every=1, rollout=RolloutOverrides(fp8=True)))


def test_a_validation_pass_goes_to_the_trackers(config, monkeypatch):
    seen = []
    monkeypatch.setattr(TensorBoard, "write_videos", lambda _, *arguments: seen.append(arguments))
    validation = ValidationConfig(every=2, count=2, samples=1, rewards=("dynamic-degree",))
    train(replace(config, validation=validation, rollout=RolloutConfig(steps=1)))
    assert [(step, [file.name for file in files], len(prompts)) for files, prompts, step in seen] == [
        (0, ["00.mp4"], 1),
        (2, ["00.mp4"], 1),
        (3, ["00.mp4"], 1),
    ]


def test_without_trackers_there_is_metrics_jsonl(config):
    folder = train(replace(config, log=())).folder
    assert len(rows(folder)) == 3
    assert not (folder / "tensorboard").exists()


def test_the_rate_falls_to_zero_over_the_last_share_of_the_steps(config):
    run = Run(replace(config, steps=5, optim=OptimConfig(lr=1.0, warmup_steps=0, decay=0.8)))
    for _ in run.steps([0], 1):
        run.update(next(iter(run.policy.trainable.values())).sum())
    assert [row["train/lr"] for row in rows(run.folder)] == [1.0, 1.0, 0.75, 0.5, 0.25]


def test_the_rate_falls_to_zero_before_the_minutes_end(config):
    run = Run(replace(config, minutes=1, optim=OptimConfig(lr=1.0, warmup_steps=0, decay=0.5)))
    for _ in run.steps([0], 1):
        run.seconds = 45.0
        run.update(next(iter(run.policy.trainable.values())).sum())
    assert rows(run.folder)[0]["train/lr"] == 0.5


def test_accumulated_steps_are_one_update_of_their_mean(config):
    def gradient(accumulate, losses):
        run = Run(
            replace(
                config,
                out=config.out / str(accumulate),
                optim=OptimConfig(max_grad_norm=1e9, gradient_accumulation_steps=accumulate),
            )
        )
        weight = next(iter(run.policy.trainable.values()))
        steps = run.steps([0], 1)
        for scale in losses:
            next(steps)
            before = weight.detach().clone()
            changed = run.update((scale * weight).sum())
            assert changed == (not torch.equal(weight, before))
        return rows(run.folder)[-1]["train/grad_norm"]

    assert gradient(2, [1.0, 3.0]) == pytest.approx(gradient(1, [2.0]))


@pytest.mark.parametrize(("steps", "updates", "last"), [(3, 1, [0, 1, 2]), (10, 3, [8, 9]), (8, 2, [4, 5, 6, 7])])
def test_the_last_shorter_group_is_stepped_and_averaged_over_its_own_number(config, steps, updates, last):
    config = replace(
        config,
        steps=steps,
        optim=OptimConfig(lr=1e-2, warmup_steps=0, decay=0.5, max_grad_norm=1e9, gradient_accumulation_steps=4),
    )
    for _ in range(2):  # the same command on a finished run finds the same
        run = Run(config)
        weight = next(iter(run.policy.trainable.values()))
        for step, _ in run.steps([0], 1):
            run.update(((step + 1) * weight).sum())
        updated = [row for row in rows(run.folder) if "train/grad_norm" in row]
        assert run.updates == len(updated) == updates
        mean = sum(step + 1 for step in last) / len(last)
        assert updated[-1]["train/grad_norm"] == pytest.approx(mean * weight.numel() ** 0.5)
        # the rate of the group's last step
        assert updated[-1]["train/lr"] == pytest.approx(1e-2 * min(1, (steps - last[-1]) / (0.5 * steps)))
        assert not any(weight.grad is not None for weight in run.policy.trainable.values())
    assert checkpoint_files.shapes(checkpoint_files.newest_checkpoint(run.folder / "checkpoints")[0]).keys() >= (
        {f"gradient/{name}" for name in list(run.policy.trainable)[:1]} if steps % 4 else set()
    )


def test_an_untrained_step_or_none_leaves_no_last_update(config):
    run = Run(replace(config, optim=OptimConfig(gradient_accumulation_steps=2)))
    for _ in run.steps([0], 1):
        assert not run.update(None)
    assert run.updates == 0
    assert all("train/grad_norm" not in row for row in rows(run.folder))


def test_a_step_without_a_loss_is_counted_as_skipped(config):
    run = Run(config)
    for _ in run.steps([0], 1):
        assert not run.update(None, {"pairs/ties": 1.0})
    assert [row["train/skipped"] for row in rows(run.folder)] == [1, 1, 1]
    assert run.updates == 0


def test_intervals_are_counted_in_updates(config):
    run = Run(config)
    run.optimization.updates = 6
    assert run.every(3)
    assert not run.every(4)
    assert not run.every(0)


@pytest.mark.parametrize("worth", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_with_advice(config, worth):
    run = Run(config)
    weight = next(iter(run.policy.trainable.values()))

    def train_with(factors):
        for step, _ in run.steps([0], 1):
            run.update(weight.sum() * factors[step])

    with pytest.raises(FloatingPointError, match=r"loss of step 1 is (nan|-?inf); lower optim.lr"), run:
        train_with([1.0, worth, 1.0])
    assert checkpoint_files.newest_checkpoint(run.folder / "checkpoints")[1]["step"] == 1


def test_a_gradient_that_is_no_number_stops_the_run_before_it_spoils_the_weights(config):
    run = Run(config)
    weight = next(iter(run.policy.trainable.values()))
    next(run.steps([0], 1))
    zero = (weight - weight.detach()).sqrt().sum()  # a number with an infinite gradient
    with pytest.raises(FloatingPointError, match="gradient of step 0 has norm"):
        run.update(zero)
    assert weight.isfinite().all()


def train_on_a_weight(run, spoil=lambda step: None):
    """All steps, with the sum of the first weight for a loss; after each, before it is saved, something is spoilt."""
    weight = next(iter(run.policy.trainable.values()))
    for step, _ in run.steps([0], 1):
        run.update(weight.sum())
        spoil(step)


@pytest.mark.parametrize("worth", [float("nan"), float("-inf")])
@pytest.mark.parametrize("group", ["policy", "reference", "average"])
def test_weights_that_are_no_numbers_are_not_saved(config, group, worth):
    run = Run(replace(config, policy=PolicyConfig(rank=2, ema_decay=0.5)))
    _, second, third, *_ = run.policy.trainable

    def spoil(step):
        for name in (third, second) if step == 1 else ():
            run.checkpointer._weights()[group][name].data[-1, -1] = worth

    with pytest.raises(FloatingPointError) as refusal:
        train_on_a_weight(run, spoil)
    advice = "so nothing is saved; lower optim.lr and give another --out"
    assert str(refusal.value).startswith(f"{group}/{second} is not finite at step 2, {advice}")
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["step-00000001"]
    assert not (run.folder / "adapter").exists()


def test_a_step_that_fails_leaves_no_weights_that_are_no_numbers(config):
    run = Run(replace(config, save_every=9))

    def fail():
        weight = next(iter(run.policy.trainable.values()))
        for step, _ in run.steps([0], 1):
            if step == 1:
                weight.data[0] = float("nan")
                raise ConnectionError("the critic is gone")
            run.update(weight.sum())

    with pytest.raises(ConnectionError, match="the critic is gone") as failed, run:
        fail()
    (said,) = failed.value.__notes__
    assert said.startswith("policy/")
    assert "is not finite at step 1, so nothing is saved" in said
    assert said.endswith("no step is saved")
    assert checkpoint_files.checkpoints(config.out / "checkpoints") == []


def test_half_an_update_that_is_no_number_is_not_saved(config):
    run = Run(replace(config, optim=OptimConfig(gradient_accumulation_steps=3)))
    weight = next(iter(run.policy.trainable.values()))
    with pytest.raises(FloatingPointError, match=r"^gradient/.* is not finite at step 2"):
        train_on_a_weight(run, lambda step: weight.register_hook(lambda gradient: gradient * float("nan")))
    assert checkpoint_files.newest_checkpoint(run.folder / "checkpoints")[1]["step"] == 1


class Seen:
    """What a critic has seen, of which one number is none."""

    def state(self):
        return {"mean": torch.tensor([0.0, float("nan")])}


def test_running_means_that_are_no_numbers_are_not_saved(config):
    with pytest.raises(FloatingPointError, match=r"^kept.critic/mean is not finite at step 1"):
        train_on_a_weight(Run(config, critic=Seen()))
    assert not list((config.out / "checkpoints").glob("*"))


def test_a_checkpoint_of_what_is_no_number_becomes_no_adapter(config):
    """As older versions wrote them."""
    train(config)
    adapter = config.out / "adapter" / "pytorch_lora_weights.safetensors"
    before = adapter.read_bytes()
    newest = checkpoint_files.checkpoints(config.out / "checkpoints")[-1] / checkpoint_files.TENSORS
    tensors = load_file(newest)
    next(tensor for name, tensor in tensors.items() if name.startswith("policy/"))[0] = float("nan")
    save_file(tensors, newest)
    with pytest.raises(FloatingPointError, match=r"^policy/.* is not finite at step 3"):
        train(config)
    assert adapter.read_bytes() == before


def test_a_time_limit_ends_the_run_in_good_order(config):
    run = Run(replace(config, minutes=1e-9))
    list(run.steps([0], 1))
    assert run.step == 1
    assert (run.folder / "adapter").is_dir()
    assert checkpoint_files.newest_checkpoint(run.folder / "checkpoints")[1]["step"] == 1


def test_a_damaged_newest_checkpoint_costs_one_interval(config, caplog):
    whole = train(config)
    expected = load_file(whole.folder / "adapter" / "pytorch_lora_weights.safetensors")
    newest = checkpoint_files.checkpoints(whole.folder / "checkpoints")[-1] / checkpoint_files.TENSORS
    newest.write_bytes(newest.read_bytes()[:100])
    again = Run(config)
    assert again.step == 2
    assert "is damaged" in caplog.text
    shutil.rmtree(whole.folder / "adapter")
    train(config)
    found = load_file(whole.folder / "adapter" / "pytorch_lora_weights.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_full_disk_is_reported_and_the_run_goes_on_when_there_is_room(config, monkeypatch):
    def full(tensors, path, save_file=checkpoint_files.save_file):
        if "step-00000002" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "save_file", full)
        with pytest.raises(OSError, match="No space left on device"):
            train(config)
    assert Run(config).step == 1
    assert train(config).step == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_logs_that_cannot_be_written_do_not_keep_what_is_saved_from_being_reported(config):
    run = Run(replace(config, save_every=9))

    def fail():
        for step, _ in run.steps([0], 1):
            if step == 2:
                os.dup2(os.open("/dev/full", os.O_WRONLY), run.log._file.fileno())
            run.update(next(iter(run.policy.trainable.values())).sum())

    with pytest.raises(OSError, match="No space left") as failed, run:
        fail()
    (said,) = failed.value.__notes__
    assert "resumes from step 2, in" in said


def test_whatever_keeps_a_run_from_saving_is_not_reported_instead_of_what_ended_it(config, monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA error")

    run = Run(replace(config, save_every=9))

    def train_a_step():
        for step, _ in run.steps([0], 1):
            if step == 1:
                raise ConnectionError("the critic is gone")
            run.update(next(iter(run.policy.trainable.values())).sum())

    monkeypatch.setattr("besttake.training.checkpointer.save_checkpoint", fail)
    with pytest.raises(ConnectionError, match="the critic is gone") as failed, run:
        train_a_step()
    assert failed.value.__notes__ == ["CUDA error; no step is saved"]


def killed_while_it_saves(config):
    """Half of a checkpoint is written when the process is killed."""
    save = checkpoint_files.save_file

    def die(tensors, path):
        save(tensors, path)
        if "step-00000003" in str(path):
            os.truncate(path, 100)
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint_files.save_file = die
    train(config)


def test_a_run_killed_while_it_saves_loses_one_interval_and_no_bit(config, tmp_path):
    config = replace(config, steps=5)
    whole, cut = train(config), replace(config, out=tmp_path / "killed")
    (ending,) = launch(1, killed_while_it_saves, cut)
    assert ending.code == -signal.SIGKILL
    with (cut.out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9')  # a line cut short
    assert Run(cut).step == 2
    train(cut)
    a, b = (load_file(out / "adapter" / "pytorch_lora_weights.safetensors") for out in (whole.folder, cut.out))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [row["train/loss"] for row in rows(cut.out)] == [row["train/loss"] for row in rows(whole.folder)]


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"clips_per_step": 1}, {"policy": PolicyConfig(rank=4)}, {"optim": OptimConfig(lr=1e-3)}],
    ids=str,
)
def test_other_settings_in_the_same_folder_are_refused(config, other):
    train(replace(config, steps=1))
    kept = (config.out / "config.yaml").read_text()
    with pytest.raises(ValueError, match="contains a run with other settings"):
        Run(replace(config, **other))
    assert (config.out / "config.yaml").read_text() == kept


def test_how_long_and_how_validated_a_run_is_may_change(config):
    train(replace(config, steps=1))
    changed = replace(
        config, steps=9, minutes=3.0, save_every=7, validation=ValidationConfig(every=0, count=1), device="cpu"
    )
    assert Run(changed).step == 1


def test_a_checkpoint_of_another_model_is_refused(config, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(config.model, folder)
    config = replace(config, model=str(folder), steps=1)
    train(config)
    transformer = folder / "transformer"
    deeper = {**CogVideoXTransformer3DModel.load_config(transformer), "num_layers": 3}
    CogVideoXTransformer3DModel.from_config(deeper).save_pretrained(transformer)
    with pytest.raises(ValueError, match=r"does not match .*transformer_blocks.2.*; give another --out"):
        Run(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"steps": 0}, "^steps is 0"), ({"save_every": 0}, "^save_every is 0"), ({"seed": -1}, "seed is -1")],
)
def test_settings_without_sense_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**values)


@pytest.mark.parametrize("values", [{"lr": 0.0}, {"max_grad_norm": 0.0}, {"gradient_accumulation_steps": 0}])
def test_optimizer_settings_without_sense_are_refused(values):
    with pytest.raises(ValueError, match=f"^{next(iter(values))} is 0"):
        OptimConfig(**values)


def test_a_run_whose_signature_is_of_two_ends_goes_on_with_it(config):
    train(replace(config, steps=2))
    base = legacy_weights_hash(load_model(config.model).denoiser)
    for path in (config.out / "checkpoints").glob("*/state.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base": base}))
    train(config)
    states = [json.loads(path.read_text()) for path in (config.out / "checkpoints").glob("*/state.json")]
    assert [state["base"] for state in states] == [base, base]
    for path in (config.out / "checkpoints").glob("*/state.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base": "0123456789abcdef"}))
    with pytest.raises(ValueError, match="was started from other weights"):
        Run(config)


def test_a_checkpoint_of_a_run_from_other_weights_is_refused(config, tmp_path):
    config = replace(config, model=str(shutil.copytree(config.model, tmp_path / "model")))
    train(config)
    path = tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights[next(name for name in weights if "ff.net" in name)][3] += 1e-3
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"was started from other weights than .* has now; give another --out"):
        Run(config)


def test_a_cache_without_room_is_refused(config):
    with pytest.raises(ValueError, match=r"cache_limit is 0; expected a positive number"):
        replace(config, cache_limit=0)

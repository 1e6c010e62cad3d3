"""Several processes on a CPU, over gloo: they are as one, and where one fails none waits for ever."""

import os
import pickle
import resource
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from besttake.algorithms import offline_dpo, onlinevpo, realdpo, sft
from besttake.algorithms.errors import denoising_errors
from besttake.algorithms.negatives import NegativeSamples
from besttake.algorithms.real_clips import encode_clips
from besttake.commands import cli
from besttake.data.real import find_clips
from besttake.models import load_model
from besttake.models.policy import Policy, PolicyConfig
from besttake.models.sharding import check_tokens, find_non_finite, is_sharded
from besttake.rewards.panel import RewardConfig
from besttake.runtime.configuration import to_yaml
from besttake.runtime.distributed import ParallelConfig, backward, bit_checksum, init_processes
from besttake.sampling.rollout import RolloutConfig, generate
from besttake.training import checkpointer, optimization, run, setup, validation
from besttake.training.run import OptimConfig, Run
from besttake.training.validation import ValidationConfig
from tests.processes import launch, results
from tests.runs import adapter, rows
from tests.tiny.wan import TINY

LAYOUTS = [(2, 1), (2, 2), (4, 2)]
"""Processes, and how many of them hold one copy of the weights: replicas, FSDP2, HSDP."""


@pytest.fixture(scope="module")
def common(model_folder, material):
    return {
        "model": str(model_folder("tiny-cogvideox", layers=1)),
        "steps": 4,
        "save_every": 3,
        "beta": 50.0,
        # so short a gradient that AdamW's epsilon is far above it: a step is in proportion to it, not of one size
        # whatever it is, which for a gradient of 0 but for rounding would be a step in any direction
        "optim": OptimConfig(lr=0.5, max_grad_norm=1e-8, warmup_steps=0, gradient_accumulation_steps=2),
        "validation": ValidationConfig(
            2, str(material / "prompts.txt"), 3, ("dynamic-degree",), 2, RolloutConfig(steps=1)
        ),
        "rollout": RolloutConfig(steps=2, batch=1),
    }


@pytest.fixture(scope="module")
def online(config, tmp_path_factory):
    """OnlineVPO on a LoRA, by the number of processes and the size of a shard: its folder, and its samples."""
    made = {}

    def trained(size, shard):
        if (size, shard) not in made:
            out = tmp_path_factory.mktemp("online")
            own = replace(config, out=out, parallel=ParallelConfig(shard))
            made[size, shard] = out, results(launch(size, train_online, own))
        return made[size, shard]

    return trained


@pytest.fixture(scope="module")
def config(common, material, tmp_path_factory):
    """OnlineVPO on a LoRA."""
    return onlinevpo.Config(
        **common,
        out=tmp_path_factory.mktemp("online"),
        data=str(material / "prompts.txt"),
        policy=PolicyConfig(rank=2, ema_decay=0.5, micro_batch_size=1),
        prompts_per_step=2,
        candidates=2,
        refresh_every=2,
        reward=RewardConfig("temporal-flicker", normalise="batch"),
    )


def train_online(config):
    """Every rollout's latents and votes, as this process saw them."""
    seen, pair = [], onlinevpo.best_against_worst

    def recording_pairing(rollout, scores, margin):
        seen.append((rollout.latents.tolist(), scores.values.tolist(), rollout.prompts))
        return pair(rollout, scores, margin)

    onlinevpo.best_against_worst = recording_pairing
    onlinevpo.train(config)
    return seen


@pytest.mark.parametrize(("size", "shard"), LAYOUTS)
def test_samples_and_votes_are_those_of_one_process_to_the_bit(online, size, shard):
    (alone,), together = online(1, 1)[1], online(size, shard)[1]
    assert all(seen == together[0] for seen in together)
    assert together[0][0] == alone[0]  # later ones come from weights that differ in their last bits


@pytest.mark.parametrize(("size", "shard"), LAYOUTS)
def test_the_curves_are_those_of_one_process(online, size, shard):
    expected, found = rows(online(1, 1)[0]), rows(online(size, shard)[0])
    assert [row.keys() for row in found] == [row.keys() for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("size", "shard"), LAYOUTS)
def test_the_adapter_is_that_of_one_process(online, size, shard):
    expected, found = adapter(online(1, 1)[0]), adapter(online(size, shard)[0])
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_all_samples_are_written_once(online):
    for step in (0, 2, 4):
        samples = online(4, 2)[0] / "samples" / f"step-{step:08d}"
        assert sorted(path.name for path in samples.iterdir()) == ["00.mp4", "01.mp4"]


@pytest.fixture(scope="module")
def full(common, material, model_folder, tmp_path_factory):
    """RealDPO on all weights, stopped in the middle of an update or not at all: its config."""
    made = {}

    def trained(size, shard, steps, layers=1):
        if (size, shard, steps, layers) not in made:
            config = realdpo.Config(
                **common | {"steps": steps, "model": str(model_folder("tiny-cogvideox", layers))},
                out=tmp_path_factory.mktemp("full"),
                data=str(material / "clips"),
                policy=PolicyConfig("full", ema_decay=0.5),
                clips_per_step=2,
                negatives=2,
                regenerate_every=2,
                reference_every=1,
                parallel=ParallelConfig(shard),
            )
            results(launch(size, train_full, config))
            made[size, shard, steps, layers] = config
        return made[size, shard, steps, layers]

    return trained


def train_full(config):
    realdpo.train(config)


def whole(folder):
    return load_file(folder / "adapter" / "transformer" / "diffusion_pytorch_model.safetensors")


def is_the_run_of_one_process(found, expected):
    for row, wanted in zip(rows(found.out), rows(expected.out), strict=True):
        assert row == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    weights, wanted = whole(found.out), whole(expected.out)
    assert weights.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(weights[name], wanted[name], rtol=1e-4, atol=1e-5)


def test_sharded_weights_are_those_of_one_process(full):
    is_the_run_of_one_process(full(2, 2, 4, layers=2), full(1, 1, 4, layers=2))


@pytest.mark.parametrize(("size", "shard"), [(1, 1), (2, 1), (2, 2)])
def test_a_sharded_checkpoint_is_resumed_by_another_number_of_processes(full, tmp_path, size, shard):
    cut = full(4, 2, 3)
    (saved,) = (cut.out / "checkpoints").iterdir()
    assert len([path for path in saved.iterdir() if path.suffix == ".safetensors"]) == 4
    shutil.copytree(cut.out, tmp_path / "again")
    again = replace(cut, steps=4, out=tmp_path / "again", parallel=ParallelConfig(shard))
    results(launch(size, train_full, again))
    is_the_run_of_one_process(again, full(1, 1, 4))


@pytest.fixture
def short(config, tmp_path):
    """Two steps, saved after each."""
    return replace(config, out=tmp_path / "run", steps=2, save_every=1, validation=ValidationConfig(every=0))


def rank():
    return int(os.environ["RANK"])


def started(config):
    """`besttake train` without the report; its exit status."""
    recipe = config.out.parent / f"recipe-{rank()}.yaml"
    recipe.write_text(to_yaml(config, algorithm="onlinevpo"))
    cli._report = lambda *_: None
    return cli.main(["train", str(recipe)])


def saved(config):
    return sorted(path.name for path in (config.out / "checkpoints").iterdir())


def struck(config, deadly):
    """A run whose second process gets a signal at its second rollout."""
    generate, calls = onlinevpo.generate, []

    def fatal(*arguments, **named):
        calls.append(1)
        if rank() == 1 and len(calls) == 2:
            os.kill(os.getpid(), deadly)
        return generate(*arguments, **named)

    onlinevpo.generate = fatal
    return started(config)


def test_when_a_process_is_killed_the_others_stop_and_the_run_goes_on_from_its_checkpoint(short, online):
    first, second = launch(2, struck, short, signal.SIGKILL)
    assert second.code == -signal.SIGKILL
    assert first.returned == 1
    assert "process 0 lost the connection to the others" in first.said
    assert "the same command resumes from step 1, in" in first.said
    assert saved(short) == ["step-00000001"]
    assert results(launch(1, started, short)) == [0]
    found, expected = rows(short.out), [row for row in rows(online(1, 1)[0]) if "reward/mean" in row]
    assert found == [pytest.approx(row, rel=1e-4, abs=1e-5) for row in expected[:2]]


def test_a_process_that_falls_silent_is_waited_for_no_longer_than_was_said(short):
    first, _ = launch(2, struck, replace(short, parallel=ParallelConfig(timeout=0.1)), signal.SIGSTOP, silent=1)
    assert first.returned == 1
    assert "did not respond for 0.1 minutes" in first.said


def with_own_settings(config):
    return started(replace(config, optim=OptimConfig(lr=0.25)) if rank() == 1 else config)


def with_own_weights(config):
    load_model = setup.load_model

    def changed(*arguments):
        model = load_model(*arguments)
        if rank() == 1:
            next(model.denoiser.parameters()).data += 1
        return model

    setup.load_model = changed
    return started(config)


def with_own_prompts(config):
    other = config.out.parent / f"prompts-{rank()}.txt"
    other.write_text(f"a red ball\na ball of process {rank()}\n")
    read = onlinevpo.read_prompts
    onlinevpo.read_prompts = lambda *_: read(str(other))
    return started(config)


def with_own_gradients(config):
    backward = optimization.backward

    def spoilt(loss, weights):
        backward(loss, weights)
        if rank() == 1:
            next(weight for weight in weights if weight.grad is not None).grad += 1e-3

    optimization.backward = spoilt
    return started(config)


@pytest.mark.parametrize(
    ("disagreeing", "message"),
    [
        (with_own_settings, "do not agree on optim.lr: it is 0.5 on process 0, 0.25 on 1"),
        (with_own_weights, "do not agree on the model's weights"),
        (with_own_prompts, "do not agree on the training data"),
        (with_own_gradients, "do not agree on the gradients"),
    ],
)
def test_processes_that_disagree_are_refused(short, disagreeing, message):
    for ending in launch(2, disagreeing, short):
        assert ending.returned == 2
        assert message in ending.said.replace("\n", " ")


def after_an_update(config, change, compare_every=50):
    """A run in which the second process's weights are changed after the first update."""
    update = Policy.update_ema

    def changed(policy, updates):
        update(policy, updates)
        if rank() == 1 and updates == 1:
            weight = list(policy.trainable.values())[-1]
            change((weight.to_local() if is_sharded(weight) else weight).detach())

    Policy.update_ema, run.COMPARE_EVERY = changed, compare_every
    return started(config)


def by_a_hair(weight):
    weight[-1, -1] = weight[-1, -1].nextafter(torch.tensor(torch.inf))


def for_good(weight):
    """By more than the next update may round away."""
    weight[-1, -1] += 1e-3


def beyond_all_numbers(weight):
    weight[-1] = torch.inf


def test_weights_that_become_different_are_refused_every_so_many_updates(short):
    own = replace(short, steps=6, save_every=9)
    message = "do not agree on the trained weights"
    for compare_every, updates, change in ((1, 1, by_a_hair), (2, 2, for_good)):
        out = short.out.with_name(f"every-{compare_every}")
        for ending in launch(2, after_an_update, replace(own, out=out), change, compare_every):
            assert ending.returned == 2
            assert message in ending.said.replace("\n", " ")
            assert "on process 0" in ending.said
        assert [row["step"] for row in rows(out)] == list(range(2 * updates))
        assert not (out / "checkpoints").exists()
        assert not (out / "adapter").exists()


@pytest.mark.parametrize("shard", [1, 2])  # where the base alone is sharded, every process has the whole adapter
def test_weights_that_have_become_different_are_not_saved(short, shard):
    for ending in launch(2, after_an_update, replace(short, parallel=ParallelConfig(shard)), by_a_hair):
        assert ending.returned == 2
        assert "do not agree on the trained weights" in ending.said.replace("\n", " ")
    assert saved(short) == ["step-00000001"]
    assert not (short.out / "adapter").exists()


def test_a_part_of_the_weights_that_is_no_number_is_not_saved(short):
    own = replace(short, policy=PolicyConfig("full"), parallel=ParallelConfig(2))
    first, second = launch(2, after_an_update, own, beyond_all_numbers)
    assert first.returned == second.returned == 1
    said = second.said.replace("\n", " ")
    assert "error: policy/" in said
    assert "is not finite at step 2, so nothing is saved; lower optim.lr" in said
    assert "process 1 failed: FloatingPointError: policy/" in first.said.replace("\n", " ")
    assert saved(short) == ["step-00000001"]
    assert not (short.out / "adapter").exists()


def with_a_gradient_that_is_none(config, processes):
    """That of some processes is NaN, before gradients are summed or, of one that computes wrongly, afterwards."""
    backward = optimization.backward

    def spoilt(loss, weights):
        backward(loss, weights)
        if rank() in processes:
            gradient = next(weight.grad for weight in weights if weight.grad is not None)
            (gradient.to_local() if is_sharded(gradient) else gradient)[0] = torch.nan

    optimization.backward = spoilt
    return started(config)


@pytest.mark.parametrize("processes", [(0, 1), (1,)], ids=["all", "one"])
@pytest.mark.parametrize("policy", [PolicyConfig(rank=2), PolicyConfig("full")], ids=["lora", "full"])
def test_a_gradient_that_is_no_number_is_called_so(short, policy, processes):
    own = replace(short, policy=policy, parallel=ParallelConfig(2 if policy.train == "full" else 1))
    for ending in launch(2, with_a_gradient_that_is_none, own, processes):
        assert ending.returned == 1
        assert "the gradient of step 0 has norm nan; lower optim.lr" in ending.said.replace("\n", " ")
        assert "do not agree" not in ending.said


def test_a_digest_sees_one_bit_and_takes_nan_for_itself():
    weights = torch.randn(1000, 100, generator=torch.Generator().manual_seed(0))
    other = weights.clone()
    assert bit_checksum([other]) == bit_checksum([weights])
    by_a_hair(other)
    assert bit_checksum([other]) != bit_checksum([weights])
    assert bit_checksum([torch.tensor([torch.nan, 1.0])]) == bit_checksum([torch.tensor([torch.nan, 1.0])])


def test_the_first_tensor_that_is_not_finite_is_named():
    fine = {
        "none": torch.empty(0),
        "whole": torch.tensor(3),
        "large": torch.full((20,), 3e38),
        "half": torch.ones(2).bfloat16(),
    }
    assert find_non_finite({}) is None
    assert find_non_finite(fine) is None
    wrong = {"second": torch.tensor([[1.0, -torch.inf]]), "third": torch.tensor(torch.nan)}
    assert find_non_finite(fine | wrong) == "second"
    assert find_non_finite({"double": torch.tensor([0.0, torch.nan]).double()} | fine) == "double"


def read_otherwise(monkeypatch, where, name, change):
    """What the second process reads is not what the first does."""
    read = getattr(where, name)
    monkeypatch.setattr(where, name, lambda *given, **named: change(read(*given, **named)) if rank() else read(*given))


def caption(clips):
    return [*clips[:2], replace(clips[2], caption="a black ball"), *clips[3:]]


def clip(clips):
    other = clips[1].path.with_name("other") / clips[1].path.name
    return [clips[0], replace(clips[1], path=other), *clips[2:]]


def loser(pairs):
    return [pairs[0], replace(pairs[1], losers=[pairs[1].losers[0].with_name("3.mp4")]), *pairs[2:]]


def text_encoder(model):
    model.parts.folder = str(Path(model.parts.folder).with_name("other"))
    return model


def weight(panel):
    with torch.no_grad():
        panel.critics["heldout"][0].network.frames.stem[0].weight[3] += 0.01
    return panel


OTHERWISE = {
    "caption": (sft, sft, "find_clips", caption, "on the clips: number 3 is"),
    "clip": (realdpo, realdpo, "find_clips", clip, "on the clips: number 2 is"),
    "loser": (offline_dpo, offline_dpo, "read_pairs", loser, "on the pairs: number 2 is"),
    "text encoder": (sft, setup, "load_model", text_encoder, "on the model's other parts: it is"),
    "critic": (onlinevpo, onlinevpo, "load_panel", weight, "on the critic heldout: it is"),
    "validation": (
        sft,
        validation,
        "read_prompts",
        lambda prompts: prompts[1:],
        "on validation.prompts: number 1 is 'a red",
    ),
}
"""A run's algorithm; what its second process reads otherwise, and how; and what is said of it."""


def compared(configs):
    """What this process says of each."""
    said = {}
    for case, (algorithm, where, name, change, _) in OTHERWISE.items():
        with pytest.MonkeyPatch.context() as patch:
            read_otherwise(patch, where, name, change)
            with pytest.raises(ValueError, match="the processes do not agree") as refusal:
                algorithm.train(configs[case])
            said[case] = str(refusal.value)
    return said


def test_what_only_some_processes_have_read_is_refused_by_name(common, material, tmp_path):
    for name in ("model", "other"):
        shutil.copytree(common["model"], tmp_path / name)
    weights = load_file(tmp_path / "other" / "text_encoder" / "model.safetensors")
    weights["shared.weight"][3] += 0.01
    save_file(weights, tmp_path / "other" / "text_encoder" / "model.safetensors", {"format": "pt"})
    shutil.copytree(material / "clips", tmp_path / "clips")
    (tmp_path / "clips" / "other").mkdir()
    shutil.copy(tmp_path / "clips" / "2.mp4", tmp_path / "clips" / "other" / "1.mp4")
    data = {offline_dpo: material / "pairs.jsonl", onlinevpo: material / "prompts.txt"}
    configs = {}
    for case, (algorithm, *_) in OTHERWISE.items():
        own = {"reward": RewardConfig("heldout")} if algorithm is onlinevpo else {}
        validation = replace(common["validation"], every=2 * (case == "validation"), rewards=())
        configs[case] = algorithm.Config(
            model=str(tmp_path / "model"),
            data=str(data.get(algorithm, tmp_path / "clips")),
            out=tmp_path / case,
            steps=1,
            validation=validation,
            rollout=RolloutConfig(steps=1),
            **own,
        )
    for said in results(launch(2, compared, configs)):
        wrong = {case for case, output in said.items() if f"do not agree {OTHERWISE[case][-1]}" not in output}
        assert wrong == set(), said
    assert "'a black ball', 2.mp4 of" in said["caption"]
    assert "on process 0" in said["caption"]


def with_a_critic_that_dies(config):
    """At its second rollout, of the second process."""
    critic, calls = onlinevpo.load_panel(config.reward).critics["temporal-flicker"][0], []
    call = type(critic).__call__

    def dead(*arguments):
        calls.append(1)
        if (
            rank() == 1 and len(calls) == 4
        ):  # before the rollouts it is shown noise, as what is to measure and as what is to rank
            raise ConnectionError("the critic is gone")
        return call(*arguments)

    type(critic).__call__ = dead
    return started(config)


@pytest.mark.parametrize("policy", [PolicyConfig(rank=2), PolicyConfig("full")], ids=["lora", "full"])
def test_a_critic_that_dies_on_one_process_stops_all_and_no_step_is_lost(short, policy):
    own = replace(short, save_every=9, policy=policy, parallel=ParallelConfig(2))
    first, second = launch(2, with_a_critic_that_dies, own)
    assert first.returned == second.returned == 1
    assert "process 1 failed: ConnectionError: the critic is gone" in first.said
    assert "the critic is gone" in second.said
    assert saved(own) == ["step-00000001"]


def with_a_full_disk(config):
    """The second process can write no large file once a checkpoint is there."""
    save = checkpointer.save_checkpoint

    def full(folder, step, *arguments):
        if rank() == 1 and step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        save(folder, step, *arguments)

    checkpointer.save_checkpoint = full
    return started(config)


def test_a_disk_that_is_full_for_one_process_leaves_the_checkpoint_that_was_there(short):
    own = replace(short, policy=PolicyConfig("full"), parallel=ParallelConfig(2))
    for ending in launch(2, with_a_full_disk, own):
        assert ending.returned == 1
    assert "the checkpoint of step 2 could not be written" in ending.said
    assert saved(own) == ["step-00000001"]


@pytest.mark.parametrize("name", ["shard", "context"])
def test_what_processes_have_together_must_divide_them(monkeypatch, name):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=f"parallel.{name} is 3, but there are 2 processes: start a multiple of 3"):
        init_processes(ParallelConfig(**{name: 3}), "cpu")
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(ValueError, match=f"parallel.{name} is 2, but there is 1 process"):
        init_processes(ParallelConfig(**{name: 2}), "cpu")


def test_what_does_not_go_with_shards_is_refused(short):
    with pytest.raises(ValueError, match=r"parallel.shard is 2, which does not work with policy.offload"):
        replace(short, parallel=ParallelConfig(2), policy=PolicyConfig(offload=True))
    full = PolicyConfig("full", reference_device="cpu")
    with pytest.raises(ValueError, match=r"does not work with policy.reference_device: cpu, optim.use_8bit_adam"):
        replace(short, parallel=ParallelConfig(2), policy=full, optim=OptimConfig(use_8bit_adam=True))


def one_step(folder, parallel, size):
    """Samples of a policy on a tiny model, errors and gradients: of two clips, one with little noise, one with much."""
    torch.accelerator.device_count = lambda: 1  # or diffusers divides by their number, none
    init_processes(parallel, "cpu")
    model = load_model(str(folder))
    check_tokens(model, [size])
    policy, generator = Policy(model, PolicyConfig(rank=2)), torch.Generator().manual_seed(0)
    for weight in policy.trainable.values():
        weight.data = torch.randn(weight.shape, generator=generator) / 10
    frames, height, width = size
    rollout = RolloutConfig(steps=2, guidance=2.0, frames=frames, height=height, width=width, batch=1)
    samples = generate(policy, ["a red ball", "a blue ball"], rollout, decode=False)
    noise, t = torch.randn(1, *samples.latents.shape[1:], generator=generator), torch.tensor([0.1, 0.95])
    condition, noise = rollout.condition(model, samples.prompts), noise.expand_as(samples.latents)
    errors = denoising_errors(policy, samples.latents[:, None], condition, t, noise)
    weights = list(policy.trainable.values())
    backward((errors.policy - errors.reference).square().mean(), weights)
    gradients = [weight.grad for weight in weights]
    assert all(gradient.any() for gradient in gradients[1::2])
    return pickle.dumps((samples.latents, errors.policy.detach(), gradients))


@pytest.mark.parametrize(
    ("name", "size", "parallel"),
    [
        ("wan-2.1", 2, ParallelConfig(context=2)),
        ("wan-2.2-5b", 4, ParallelConfig(shard=2, context=2)),
        ("wan-2.2-a14b", 2, ParallelConfig(shard=2)),
    ],
)
def test_tokens_and_experts_are_shared_without_a_difference(tmp_path, name, size, parallel):
    torch.manual_seed(0)
    TINY[name].build().save_pretrained(tmp_path)
    (alone,) = results(launch(1, one_step, tmp_path, ParallelConfig(), TINY[name].size))
    for found in results(launch(size, one_step, tmp_path, parallel, TINY[name].size)):
        torch.testing.assert_close(pickle.loads(found), pickle.loads(alone), rtol=1e-4, atol=1e-6)


def encoded(config, clips):
    """Which texts and how many clips this process encodes for a run."""
    init_processes(ParallelConfig(), "cpu")
    online = Run(config)
    seen, embed, encode = [], online.model.embed, online.encode
    online.model.embed = lambda prompts: seen.extend(prompts) or embed(prompts)
    online.encode = lambda video: seen.append("clip") or encode(video)
    batch = encode_clips(online, find_clips(clips), config.rollout)
    online.model.encode_prompts(batch.captions)
    return seen, batch.clips.tolist()


def test_a_text_or_clip_that_is_kept_on_disk_is_encoded_by_one_process(config, material, tmp_path):
    own = replace(config, validation=ValidationConfig(every=0), cache=tmp_path / "cache")
    (all_seen, latents), *_ = results(
        launch(1, encoded, replace(own, cache="", out=tmp_path / "a"), material / "clips")
    )
    (one, first), (two, second) = results(launch(2, encoded, replace(own, out=tmp_path / "b"), material / "clips"))
    assert first == second == latents
    assert all(one.count(text) + two.count(text) == all_seen.count(text) for text in set(all_seen) - {""})
    assert (one.count("clip"), two.count("clip")) == (2, 2)


def on_a_disk_of_its_own(model, folder):
    """Negatives where each process sees no files but those that it has written itself."""
    init_processes(ParallelConfig(), "cpu")
    rank = int(os.environ.get("RANK", "0"))
    captions = ["a red ball", "a blue ball", "a green ball"]
    policy = Policy(load_model(model), PolicyConfig(rank=2))
    negatives = NegativeSamples(policy, captions, RolloutConfig(steps=1, batch=1), 1, 5, folder / str(rank))
    found = [negatives.of([0, 1], 0, 50), negatives.of([1, 2], 1, 50)]
    for path in negatives.folder.glob(f"{negatives.names[0]}*"):
        path.write_bytes(b"damaged")
    found.append(negatives.of([0, 1], 2, 50))
    negatives.delete(1)
    return [latents.tolist() for latents in found], sorted(map(str, negatives.folder.glob("*")))


def test_process_0_reads_the_disk_and_all_have_what_it_found(model_folder, tmp_path):
    model = str(model_folder("tiny-cogvideox"))
    alone, kept = on_a_disk_of_its_own(model, tmp_path / "alone")
    (first, there), (second, nothing) = results(launch(2, on_a_disk_of_its_own, model, tmp_path / "two"))
    assert first == second == alone
    assert len(there) == len(kept) == 2
    assert nothing == []


def test_a_model_whose_tokens_cannot_be_split_is_refused(short):
    for ending in launch(2, with_a_gpu, replace(short, parallel=ParallelConfig(context=2))):
        assert ending.returned == 2
        assert "does not support it (Wan models do)" in ending.said.replace("\n", " ")


def with_a_gpu(config):
    torch.accelerator.device_count = lambda: 1
    return started(config)

"""What every algorithm must do: train the right weights, leave what a run leaves, and resume as if nothing had been."""

import json
import math
import stat
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from besttake.algorithms import algorithms, onlinevpo
from besttake.contracts import algorithm as contract
from besttake.contracts.algorithm import train
from besttake.data.video import probe
from besttake.models import load_model
from besttake.models.policy import PolicyConfig
from besttake.models.schedules import VPrediction
from besttake.rewards.guard import Alarm, GuardConfig, RewardHackingGuard
from besttake.rewards.panel import Panel, PanelScores, RewardConfig
from besttake.runtime import interruption
from besttake.sampling.rollout import RolloutConfig, RolloutOverrides
from besttake.training.run import OptimConfig, Run
from besttake.training.validation import ValidationConfig
from tests.runs import adapter, rows

DATA = {"onlinevpo": "prompts.txt", "offline_dpo": "pairs.jsonl"}
"""What of the test material an algorithm trains on, if not on the clips."""

OWN = {
    "onlinevpo": {
        "prompts_per_step": 2,
        "candidates": 2,
        "refresh_every": 2,
        "reward": RewardConfig("temporal-flicker"),
    },
    "realdpo": {"clips_per_step": 2, "negatives": 2, "regenerate_every": 2, "reference_every": 1, "sft_weight": 1.0},
    "offline_dpo": {"pairs_per_step": 2, "refresh_every": 2},
    "sft": {"clips_per_step": 2},
}
DECIDED = RewardConfig("temporal-flicker", normalise="batch")
STEPS, SAVED, KILLED = 5, 3, 4

one_family = pytest.mark.parametrize("family", ["tiny-cogvideox"])  # for what does not depend on it


@pytest.fixture(params=algorithms())
def algorithm(request):
    return request.param


@pytest.fixture
def config(tmp_path, model_folder, material, family, algorithm):
    """A run of five steps, two to an update: the checkpoint after the third holds half an update."""
    monitor = ValidationConfig(2, str(material / "prompts.txt"), 2, ("dynamic-degree",), 1, RolloutOverrides(steps=1))
    return algorithms()[algorithm].Config(
        model=str(model_folder(family, layers=1)),
        data=str(material / DATA.get(algorithm, "clips")),
        out=tmp_path / "run",
        steps=STEPS,
        save_every=SAVED,
        policy=PolicyConfig(rank=2, ema_decay=0.5),
        optim=OptimConfig(lr=1e-2, warmup_steps=2, gradient_accumulation_steps=2),
        validation=monitor,
        rollout=RolloutConfig(steps=2),
        **OWN.get(algorithm, {}),
    )


@pytest.fixture(scope="module")
def whole_of(tmp_path_factory):
    """The run of a config that nothing interrupts, made once; do not change it."""
    made = {}

    def whole(config):
        key = repr(replace(config, out=""))
        if key not in made:
            made[key] = train(replace(config, out=tmp_path_factory.mktemp("whole") / "run"))
        return made[key]

    return whole


def test_a_run_trains_the_policy_alone_and_leaves_what_a_run_leaves(config, whole_of, tmp_path):
    run = whole_of(config)
    for check in (contract.trains_the_policy_alone, contract.leaves_a_run_folder, contract.plans_a_step):
        check(run, tmp_path)
    moved = [name for name, weight in run.policy.trainable.items() if "lora_B" in name and weight.any()]
    assert len(moved) == sum("lora_B" in name for name in run.policy.trainable)
    leaves_a_run_folder(run.folder, replace(config, out=run.folder))


def leaves_a_run_folder(folder, config):
    steps = [row["step"] for row in rows(folder)]
    assert steps == [0, 0, 1, 2, 2, 3, 4, 4, 5, 5]  # validated at 0, 2, 4 and the end; the fifth step's own update
    one_of = {"train/loss", "train/skipped", "eval/dynamic-degree/dynamic degree", "train/grad_norm"}
    assert all(one_of & row.keys() for row in rows(folder))
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("eval/dynamic-degree/dynamic degree")] == [0, 2, 4, 5]
    for step in (0, 2, 4, 5):
        info = probe(folder / "samples" / f"step-{step:08d}" / "00.mp4")
        assert (info.frames, info.fps) == (5 if config.model.endswith("wan") else 4, 8)
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["step-00000003", "step-00000005"]
    plain = folder.with_name("plain")
    plain.touch()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
    assert modes == dict.fromkeys(modes, stat.S_IMODE(plain.stat().st_mode))


def train_until_killed(config, monkeypatch):
    """Train, and be interrupted in the middle of an update, when nothing can be saved."""
    update = Run.update

    def killed(run, loss, metrics):
        if run.step == KILLED:
            interruption.block_signals()
            run.optimization.updating = True
            raise KeyboardInterrupt
        return update(run, loss, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config)


@one_family
def test_an_interrupted_run_goes_on_bit_by_bit(config, whole_of, monkeypatch, tmp_path):
    whole = whole_of(config)
    assert any("train/loss" in row for row in rows(whole.folder))
    cut = replace(config, out=tmp_path / "cut")
    train_until_killed(cut, monkeypatch)
    assert [path.name for path in (cut.out / "checkpoints").iterdir()] == ["step-00000003"]
    resumed = train(cut)
    assert rows(resumed.folder) == rows(whole.folder)
    whole_weights, weights = adapter(whole.folder), adapter(resumed.folder)
    assert whole_weights.keys() == weights.keys()
    assert all(torch.equal(weights[name], whole_weights[name]) for name in weights)
    reference, expected = resumed.policy.reference.weights, whole.policy.reference.weights
    assert all(torch.equal(reference[name], expected[name]) for name in expected)


@one_family
def test_it_resumes_as_every_algorithm_must(config, whole_of, tmp_path):
    contract.resumes_exactly(whole_of(config), tmp_path)
    contract.leaves_a_finished_run_alone(whole_of(config), tmp_path)


@one_family
def test_a_full_fine_tune_goes_on_bit_by_bit(config, tmp_path):
    config = replace(config, policy=PolicyConfig(train="full", ema_decay=0.5), optim=replace(config.optim, lr=1e-4))
    whole, cut = train(config), replace(config, out=tmp_path / "cut")
    train(replace(cut, steps=SAVED))
    train(cut)
    assert rows(cut.out) == rows(whole.folder)
    file = "adapter/transformer/diffusion_pytorch_model.safetensors"
    a, b = load_file(whole.folder / file), load_file(cut.out / file)
    assert all(torch.equal(a[name], b[name]) for name in a)
    base = dict(load_model(config.model).denoiser.named_parameters())
    assert not torch.equal(a["proj_out.weight"], base["proj_out.weight"])


@one_family
@pytest.mark.parametrize("algorithm", ["onlinevpo", "offline_dpo"])
def test_the_loss_is_ln_2_until_the_first_update_and_again_after_a_refresh(config):
    *found, last = rows(train(replace(config, validation=ValidationConfig(every=0))).folder)
    assert last.keys() == {"step", "train/grad_norm", "train/lr"}  # the update of the fifth step by itself
    # updates follow steps 1 and 3; the second completes refresh_every
    assert [row["dpo/reference_distance"] > 0 for row in found] == [False, False, True, True, False]
    assert [row["train/loss"] for row in found if not row["dpo/reference_distance"]] == pytest.approx([math.log(2)] * 3)


@one_family
@pytest.mark.parametrize("algorithm", ["realdpo"])
@pytest.mark.parametrize(
    ("kind", "expected"), [("refresh", (True, False)), ("fixed", (False, True)), ("ema", (False, False))]
)
def test_realdpos_reference_follows_stays_or_lags(config, kind, expected):
    policy = train(replace(config, steps=4, reference=kind)).policy
    ups = [name for name in policy.trainable if "lora_B" in name]
    same = all(torch.equal(policy.reference.weights[name], policy.trainable[name]) for name in ups)
    assert (same, not any(policy.reference.weights[name].any() for name in ups)) == expected


@one_family
@pytest.mark.parametrize("algorithm", ["realdpo"])
@pytest.mark.parametrize(("warmup", "parts"), [(True, (0, 2 / 11, 9 / 11)), (False, (0.81, 0.09, 0.1))])
def test_realdpos_averaged_reference_is_so_much_of_each_update(config, monkeypatch, warmup, parts):
    seen, update = [], Run.update

    def recording_update(run, *arguments):
        weights = [] if seen else [{name: weight.detach().clone() for name, weight in run.policy.trainable.items()}]
        changed = update(run, *arguments)
        if changed:
            weights.append({name: weight.detach().clone() for name, weight in run.policy.trainable.items()})
        seen.extend(weights)
        return changed

    monkeypatch.setattr(Run, "update", recording_update)
    policy = train(replace(config, reference_decay=0.9, reference_warmup=warmup)).policy
    assert len(seen) == len(parts)  # as at the start, and after each of the two updates
    for name, weight in policy.reference.weights.items():
        expected = sum(part * weights[name] for part, weights in zip(parts, seen, strict=True))
        torch.testing.assert_close(weight, expected)


@one_family
@pytest.mark.parametrize("algorithm", ["realdpo"])
def test_realdpo_trains_in_its_range_of_times(config, monkeypatch):
    bounds, times = set(), VPrediction.times
    monkeypatch.setattr(VPrediction, "times", lambda *a: bounds.add(a[2:]) or times(*a))
    train(replace(config, steps=1, t_high=0.5, timesteps_per_pair=2))
    assert bounds == {(0.0, 0.5)}


@one_family
@pytest.mark.parametrize("algorithm", ["onlinevpo"])
def test_the_candidate_that_scores_best_is_the_winner(config, monkeypatch):
    seen, errors = [], onlinevpo.sampled_errors

    def spy(policy, clips, *rest, **named):
        for k in (0, 1):
            seen.append(policy.model.decode(clips[:, k]).detach().clamp(-1, 1).mean((1, 2, 3, 4)))
        return errors(policy, clips, *rest, **named)

    class Light(Panel):
        def __call__(self, videos, *_):
            return PanelScores.of(videos.mean((1, 2, 3, 4)))

    monkeypatch.setattr(onlinevpo, "load_panel", lambda *_: Light({}))
    monkeypatch.setattr(onlinevpo, "sampled_errors", spy)
    train(replace(config, steps=1))
    assert len(seen) == 2
    assert (seen[0] > seen[1]).all()


@one_family
def test_an_over_long_prompt_stops_before_training(config, tmp_path, material, algorithm):
    long = "ball " * 10_000
    data = tmp_path / "data"
    data.mkdir()
    for file in (material / "clips").iterdir():
        (data / file.name).write_bytes(file.read_bytes())
    if algorithm == "onlinevpo":
        (data / "prompts.txt").write_text(f"a ball\n{long}\n")
        source = data / "prompts.txt"
    elif algorithm == "offline_dpo":
        row = {"winner": "0.mp4", "losers": ["1.mp4"], "margin": 1.0}
        (data / "pairs.jsonl").write_text("".join(json.dumps({"prompt": p, **row}) + "\n" for p in ("a ball", long)))
        source = data / "pairs.jsonl"
    else:
        (data / "3.txt").write_text(long)
        source = data
    with pytest.raises(ValueError, match="10001 tokens"):
        train(replace(config, data=str(source)))
    assert not rows(config.out)


def test_numbers_below_their_least_are_refused(algorithm):
    kind = algorithms()[algorithm].Config
    least_one = ("prompts_per_step", "clips_per_step", "pairs_per_step", "negatives", "candidates", "beta", "steps")
    for name in set(least_one) & set(kind.__dataclass_fields__):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            kind(**{name: 0})


@one_family
@pytest.mark.parametrize("algorithm", ["onlinevpo", "realdpo", "offline_dpo"])
def test_a_guard_reaches_the_loss(config, whole_of, tmp_path):
    plain, guarded = whole_of(config), train(replace(config, dpop_weight=1e4, out=tmp_path / "guarded"))
    losses = [[row["train/loss"] for row in rows(run.folder) if "train/loss" in row] for run in (plain, guarded)]
    assert losses[0][0] == losses[1][0]  # policy and reference are still equal
    assert losses[0] != losses[1]


@pytest.mark.parametrize("algorithm", ["onlinevpo"])
@one_family
def test_a_run_stopped_by_its_guard_says_so_and_goes_on_without_it(config, monkeypatch):
    alarm = Alarm("eval/dynamic-degree/dynamic degree", 2, 0, 1.0, 0.5, 0.001)
    monkeypatch.setattr(
        RewardHackingGuard, "observe", lambda self, row: [alarm] if row["step"] == 2 and "eval/" in str(row) else []
    )
    guarded = replace(config, validation=replace(config.validation, guard=GuardConfig(stop=True)))
    run = train(guarded)
    assert run.step == 2
    assert (run.folder / "checkpoints" / "step-00000002").is_dir()
    (said,) = [row["alarms"] for row in rows(run.folder) if "alarms" in row]
    assert "dynamic degree fell by 0.5" in said[0]
    monkeypatch.undo()
    assert train(config).step == STEPS


@pytest.mark.parametrize("algorithm", ["onlinevpo"])
@one_family
def test_a_panel_that_normalises_by_what_it_has_seen_goes_on_bit_by_bit(config, monkeypatch, tmp_path):
    both = RewardConfig(critics={"temporal-flicker": {}, "motion-smoothness": {}}, normalise="batch")
    whole = train(replace(config, reward=both))
    cut = replace(config, reward=both, out=tmp_path / "cut")
    train_until_killed(cut, monkeypatch)
    resumed = train(cut)
    assert rows(resumed.folder) == rows(whole.folder)
    assert "reward/motion-smoothness" in rows(whole.folder)[1]


@pytest.mark.parametrize("algorithm", ["onlinevpo"])
@one_family
def test_a_run_whose_critic_dies_keeps_every_step_before(config, whole_of, monkeypatch, tmp_path):
    whole, calls, call = whole_of(config), [], Panel.__call__

    def dies(panel, *arguments):
        calls.append(arguments)
        if len(calls) == 6:  # the first is the trial with noise
            raise ConnectionError("critic temporal-flicker is gone")
        return call(panel, *arguments)

    monkeypatch.setattr(Panel, "__call__", dies)
    cut = replace(config, out=tmp_path / "cut")
    with pytest.raises(ConnectionError, match="is gone"):
        train(cut)
    assert (cut.out / "checkpoints" / "step-00000004").is_dir()
    monkeypatch.setattr(Panel, "__call__", call)
    assert rows(train(cut).folder) == rows(whole.folder)

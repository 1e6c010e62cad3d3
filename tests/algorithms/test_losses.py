import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from besttake.algorithms.errors import denoising_errors, draw_noise, sampled_errors, sft_error
from besttake.algorithms.losses import Errors, check_dpo, dpo
from besttake.models import load_model
from besttake.models.policy import Policy, PolicyConfig
from besttake.models.schedules import RectifiedFlow
from besttake.models.split_backward import predict_both
from tests.peak import Peak

GOLDEN = load_file(Path(__file__).parent.parent / "golden" / "dpo.safetensors")
"""Numbers of the public Diffusion-DPO and Flow-DPO code; the first half of a batch are the winners."""


def pairs(rows):
    """(2b, ...) with the winners first -> (b, 2, ...)."""
    return torch.stack(rows.chunk(2), 1)


def mean_square(x):
    return pairs(x.square().flatten(1).mean(1))


def errors(policy, reference):
    policy, reference = torch.tensor(policy), torch.tensor(reference)
    return Errors(policy, reference, torch.zeros_like(policy))


@pytest.mark.parametrize("beta", [500, 2000, 5000])
def test_loss_margin_and_gradient_are_those_of_the_public_diffusion_dpo(beta):
    case = {name.removeprefix("diffusion_dpo."): tensor for name, tensor in GOLDEN.items()}
    prediction = case["model_pred"].clone().requires_grad_()
    policy, reference = mean_square(prediction - case["target"]), mean_square(case["ref_pred"] - case["target"])
    loss, metrics = dpo(Errors(policy, reference, torch.zeros_like(policy)), beta)
    loss.mean().backward()
    expected = {name.removeprefix(f"beta{beta}."): tensor for name, tensor in case.items()}
    close(loss.mean(), expected["loss"])
    close(metrics["dpo/margin"], expected["inside_term"].mean())
    close(metrics["dpo/implicit_accuracy"], expected["implicit_acc"])
    close(prediction.grad, expected["grad_model_pred"])


@pytest.mark.parametrize("beta", [100, 2000, 5000])
def test_the_whole_way_from_latents_to_gradient_is_that_of_the_public_flow_dpo(beta):
    case = {name.removeprefix("flowdpo."): tensor for name, tensor in GOLDEN.items()}
    prediction = case["model_pred"].clone().requires_grad_()
    order = pairs(torch.arange(8)).flatten()  # winner and loser of a pair stand side by side
    policy = SimpleNamespace(
        micro_batch=lambda clips: clips,
        model=SimpleNamespace(schedule=RectifiedFlow(), parts=SimpleNamespace(to_device=lambda: None)),
        predict=lambda *_: prediction[order],
        can_save_memory=False,
        reference=SimpleNamespace(predict=lambda *_: case["ref_pred"][order]),
    )
    found = denoising_errors(policy, pairs(case["x0"]), {}, torch.full((4,), 0.5), case["noise"][:4])
    close(found.policy, pairs(case["theta_mse"]))
    close(found.reference, pairs(case["ref_mse"]))
    loss, _ = dpo(found, beta)
    loss.mean().backward()
    close(loss.mean(), case[f"beta{beta}.loss"])
    close(prediction.grad, case[f"beta{beta}.grad_model_pred"])


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_two_losers_by_hand():
    # w = -.1, v = (+.2, -.3); beta 4: margins -2 (-.1 -.2) = .6 and -2 (-.1 + .3) = -.4
    loss, metrics = dpo(errors([[0.9, 1.2, 0.7]], [[1.0, 1.0, 1.0]]), beta=4)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.6)) + math.log(1 + math.exp(0.4)), rel=1e-5)
    assert metrics["dpo/margin"].item() == pytest.approx(0.1, abs=1e-6)
    assert metrics["dpo/implicit_accuracy"].item() == 0.5
    assert metrics["dpo/winner_gain"].item() == pytest.approx(0.1, abs=1e-6)
    assert metrics["dpo/loser_gain"].item() == pytest.approx(0.05, abs=1e-6)
    assert metrics["dpo/winner_error"].item() == pytest.approx(0.9)
    assert metrics["dpo/loser_error"].item() == pytest.approx(0.95)


def test_dpop_counts_only_a_winner_that_gets_worse():
    worse, better = errors([[1.1, 1.4]], [[1.0, 1.0]]), errors([[0.9, 1.2]], [[1.0, 1.0]])
    # beta 4: the margin of w = .1, v = .4 is .6; a dpop_weight of 2 takes 2 * 2 * .1 off it
    assert dpo(worse, 4, dpop_weight=2)[0].item() == pytest.approx(math.log(1 + math.exp(-0.2)), rel=1e-5)
    assert dpo(worse, 4, dpop_weight=2)[1]["dpo/margin"].item() == pytest.approx(0.6, abs=1e-6)
    assert torch.equal(dpo(better, 4, dpop_weight=2)[0], dpo(better, 4)[0])


@pytest.mark.parametrize("setting", [{"beta": 0}, {"dpop_weight": -0.1}, {"timesteps_per_pair": 0}])
def test_settings_that_mean_nothing_are_refused(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}( is)? {next(iter(setting.values()))}"):
        check_dpo(**({"beta": 1.0, "dpop_weight": 0.0, "timesteps_per_pair": 1} | setting))


def test_rows_are_not_mixed():
    rows = errors([[0.9, 1.2], [1.5, 0.1]], [[1.0, 1.0], [1.0, 1.0]])
    alone = [dpo(errors([p.tolist()], [r.tolist()]), 3)[0] for p, r in zip(rows.policy, rows.reference, strict=True)]
    torch.testing.assert_close(dpo(rows, 3)[0], torch.cat(alone))


def test_extreme_margins_stay_finite():
    loss, _ = dpo(errors([[0.0, 9.0], [9.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]), beta=1e5)
    assert loss.isfinite().all()
    assert loss[0] == 0


@pytest.fixture
def setting(model):
    """A policy of a random model; a winner and two losers of each of two prompts; condition, times and noise."""
    policy = Policy(model, PolicyConfig(rank=4))
    clips = torch.randn(2, 3, *model.latent_shape(*model.default_size()))
    condition = model.encode_prompts(["a red ball", "a blue ball"])
    noise = draw_noise(clips[:, 0].shape, torch.Generator().manual_seed(1), like=clips)
    return policy, clips, condition, torch.tensor([0.3, 0.8]), noise


def test_the_loss_starts_at_ln_2_for_each_loser(setting):
    found = denoising_errors(*setting)
    assert found.policy.min() > 0.1  # a network that predicts something, and wrongly
    assert torch.equal(found.policy, found.reference)
    assert not found.distance.any()
    for losers in (1, 2):
        rows = Errors(found.policy[:, : 1 + losers], found.reference[:, : 1 + losers], found.distance)
        torch.testing.assert_close(dpo(rows, 5000.0)[0], torch.full((2,), losers * math.log(2)))


def test_descending_the_loss_sets_the_winner_apart_from_the_losers(setting):
    policy = setting[0]
    optimizer = torch.optim.SGD(policy.trainable.values(), lr=0.05)
    before = denoising_errors(*setting)
    dpo(before, 100.0)[0].mean().backward()
    optimizer.step()
    after, metrics = (found := denoising_errors(*setting)), dpo(found, 100.0)[1]
    gain = (before.policy - after.policy).detach()
    assert (gain[:, 0] > gain[:, 1:].mean(1)).all()
    assert metrics["dpo/margin"] > 0
    assert metrics["dpo/reference_distance"] > 0
    torch.testing.assert_close(after.reference, before.reference)


def test_the_reference_and_the_base_carry_no_gradient(setting):
    policy = setting[0]
    found = denoising_errors(*setting)
    assert found.policy.requires_grad
    assert not found.reference.requires_grad
    assert not found.distance.requires_grad
    dpo(found, 100.0)[0].sum().backward()
    with_gradient = {id(p) for p in policy.model.denoiser.parameters() if p.grad is not None}
    assert with_gradient == {id(p) for p in policy.trainable.values()}


def test_winner_and_losers_share_their_time_and_their_noise(setting):
    policy, clips, condition, t, noise = setting
    same = clips[:, :1].expand_as(clips)
    found = denoising_errors(policy, same, condition, t, noise)
    torch.testing.assert_close(found.policy, found.policy[:, :1].expand(2, 3))
    assert found.policy[0, 0] != found.policy[1, 0]


def test_each_rows_errors_are_those_of_its_own_prompt_time_and_noise(setting):
    policy, clips, condition, t, noise = setting
    together = denoising_errors(policy, clips, condition, t, noise).policy
    own_condition = {name: value[1:] for name, value in condition.items()}
    alone = sft_error(policy, clips[1:, 2], own_condition, t[1:], noise[1:])
    torch.testing.assert_close(alone, together[1:, 2], atol=1e-5, rtol=1e-5)


def test_sft_error_is_the_mean_square_distance_to_the_target(model):
    x_0 = torch.randn(1, *model.latent_shape(*model.default_size()))
    noise, t, condition = torch.randn_like(x_0), torch.tensor([0.4]), model.encode_prompts(["a red ball"])
    policy = Policy(model, PolicyConfig(rank=2))
    prediction = policy.predict(model.schedule.add_noise(x_0, noise, t), t, condition)
    expected = ((prediction - model.schedule.target(x_0, noise, t)) ** 2).mean()
    assert sft_error(policy, x_0, condition, t, noise).item() == pytest.approx(expected.item(), rel=1e-5)


def test_several_timesteps_per_pair_are_each_of_a_part_of_the_times_and_averaged_row_by_row(setting, monkeypatch):
    policy, clips, condition, _, _ = setting
    calls, schedule = [], policy.model.schedule
    times = schedule.times
    monkeypatch.setattr(schedule, "times", lambda u, *range: calls.append((u, *range)) or times(u, *range))
    found = sampled_errors(policy, clips, condition, torch.Generator().manual_seed(3), 0.2, 0.8, timesteps_per_pair=2)
    ((u, *bounds),) = calls
    assert bounds == [0.2, 0.8]
    assert (u.view(2, 2) * 2).long().tolist() == [[0, 0], [1, 1]]  # a half for each timestep
    again = torch.Generator().manual_seed(3)
    torch.rand(4, generator=again)
    noise = draw_noise((4, *clips.shape[2:]), again, like=clips)
    parts = zip(times(u, *bounds).split(2), noise.split(2), strict=True)
    each = [denoising_errors(policy, clips, condition, t, n).policy for t, n in parts]
    torch.testing.assert_close(found.policy, torch.stack(each).mean(0), atol=1e-5, rtol=1e-5)


def test_more_timesteps_per_pair_leave_less_to_chance(setting):
    policy, clips, condition, _, _ = setting
    found = {
        timesteps_per_pair: torch.stack(
            [
                sampled_errors(
                    policy, clips, condition, torch.Generator().manual_seed(i), timesteps_per_pair=timesteps_per_pair
                ).policy.detach()
                for i in range(8)
            ]
        )
        for timesteps_per_pair in (1, 8)
    }
    assert found[8].std(0).mean() < 0.6 * found[1].std(0).mean()


def test_a_winner_and_n_losers_take_2_plus_2n_forwards(setting, monkeypatch):
    rows, kind = [], type(setting[0].model)
    predict = kind.predict
    monkeypatch.setattr(kind, "predict", lambda *a: rows.append(len(a[2])) or predict(*a))
    denoising_errors(*setting)
    assert sum(rows) == 2 * (2 + 2 * 2)  # two prompts, N = 2


@pytest.mark.parametrize("train", ["lora", "full"])
def test_the_loss_starts_at_ln_2_in_half_precision_too(model_folder, train):
    model = load_model(str(model_folder("tiny-wan")), dtype=torch.bfloat16)
    policy = Policy(model, PolicyConfig(train=train, rank=4))
    clips = torch.randn(1, 2, *model.latent_shape(*model.default_size()))
    condition, noise = model.encode_prompts(["a red ball"]), torch.randn_like(clips[:, 0])
    found = denoising_errors(policy, clips, condition, torch.tensor([0.5]), noise)
    assert found.policy.dtype == torch.float32
    assert torch.equal(found.policy, found.reference)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_the_split_backward_gives_the_gradients_of_the_whole(model, at_once, checkpointing):
    """Three clips a row: with two at once a part holds clips of both rows, with four the last part is smaller."""
    policy = Policy(model, PolicyConfig(rank=4, gradient_checkpointing=checkpointing))
    clips, *inputs = two_rows(policy)
    found = {}
    for policy.micro_batch_size in (0, at_once):
        errors = denoising_errors(policy, clips, *inputs)
        loss, _ = dpo(errors, beta=5, dpop_weight=0.3)  # a large one magnifies the rounding of other batch sizes
        (loss.mean() + errors.policy[:, 0].mean()).backward()
        found[policy.micro_batch_size] = [errors.policy.detach(), errors.reference]
        found[policy.micro_batch_size] += [weight.grad for weight in policy.trainable.values()]
        for weight in policy.trainable.values():
            weight.grad = None
    for whole, split in zip(found[0], found[at_once], strict=True):
        torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))


def test_all_clips_at_once_have_the_gradients_of_the_plain_network_to_the_bit(model):
    policy = Policy(model, PolicyConfig(rank=4))
    clips, condition, t, noise = two_rows(policy)
    inputs = policy.model.schedule.add_noise(clips[:, 0], noise, t), t, condition
    found = []
    for predict in (policy.predict, lambda *inputs: predict_both(policy, *inputs)[0]):
        prediction = predict(*inputs)
        prediction.square().mean().backward()
        found.append([prediction.detach(), *(weight.grad for weight in policy.trainable.values())])
        policy.model.denoiser.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("at_once", [0, 1])
def test_a_loss_of_several_predictions_of_which_it_uses_some(model, at_once):
    """The loss is of some clips of the first set and all of the third; the second is predicted for nothing."""
    policy = Policy(model, PolicyConfig(rank=4, micro_batch_size=at_once))
    clips, *inputs = two_rows(policy)
    alone = [denoising_errors(policy, clips[:, [place]], *inputs).policy.sum() for place in (0, 2)]
    expected = torch.autograd.grad(sum(plain(policy, clips[:, place], *inputs) for place in (0, 2)), weights(policy))
    first, _, third = (denoising_errors(policy, clips[:, some], *inputs).policy for some in ([0, 1], [1, 2], [2]))
    (first[:, 0].sum() + third.sum()).backward()
    torch.testing.assert_close(first[:, 0].sum() + third.sum(), sum(alone))
    for weight, gradient in zip(weights(policy), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("at_once", [0, 1])
def test_a_second_backward_pass_adds_as_much_again(model, at_once):
    policy = Policy(model, PolicyConfig(rank=4, micro_batch_size=at_once))
    clips, *inputs = two_rows(policy)
    loss = denoising_errors(policy, clips, *inputs).policy.sum()
    loss.backward(retain_graph=True)
    once = [weight.grad.clone() for weight in weights(policy)]
    loss.backward()
    for weight, gradient in zip(weights(policy), once, strict=True):
        torch.testing.assert_close(weight.grad, 2 * gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("at_once", [0, 1])
def test_without_gradients_nothing_is_held(cogvideox, at_once):
    policy = Policy(cogvideox, PolicyConfig(rank=4, micro_batch_size=at_once))
    clips, *inputs = two_rows(policy)
    expected = denoising_errors(policy, clips, *inputs).policy
    with torch.no_grad():
        found = denoising_errors(policy, clips, *inputs).policy
    assert torch.equal(found, expected.detach())
    assert not found.requires_grad


def plain(policy, x_0, condition, t, noise):
    """The sum of the errors that a plain pass of the network makes."""
    schedule = policy.model.schedule
    prediction = policy.predict(schedule.add_noise(x_0, noise, t), t, condition).float()
    return (prediction - schedule.target(x_0, noise, t)).square().flatten(1).mean(1).sum()


def weights(policy):
    return list(policy.trainable.values())


def test_the_split_backward_needs_the_memory_of_one_clip(cogvideox):
    policy = Policy(cogvideox, PolicyConfig(rank=4))
    clips, *inputs = two_rows(policy)
    needed = {}
    for rows, policy.micro_batch_size in ((2, 0), (2, 1), (1, 1)):
        with Peak() as peak:
            some = {name: value[:rows] for name, value in inputs[0].items()}
            errors = denoising_errors(policy, clips[:rows], some, *(value[:rows] for value in inputs[1:]))
            dpo(errors, beta=500)[0].mean().backward()
            needed[rows, policy.micro_batch_size] = peak.peak
    assert needed[2, 1] < needed[2, 0] / 3  # of six clips
    assert needed[2, 1] < needed[1, 1] * 1.1  # hardly more than of three


def two_rows(policy):
    """A moved policy's clips (2, 3, ...), condition, times and noise."""
    generator, model = torch.Generator().manual_seed(1), policy.model
    with torch.no_grad():
        for weight in policy.trainable.values():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    clips = torch.randn(2, 3, *model.latent_shape(*model.default_size()), generator=generator)
    condition = model.encode_prompts(["a red ball", "a blue ball"])
    return clips, condition, torch.tensor([0.2, 0.7]), torch.randn(clips[:, 0].shape, generator=generator)

"""What stands in for the network between two of its answers."""

from dataclasses import replace

import pytest
import torch

from besttake.models.schedules import RectifiedFlow, VPrediction
from besttake.sampling.denoise import Guidance, X0Extrapolation, evaluation_steps, predict_with_guidance
from besttake.sampling.rollout import RolloutConfig, generate

SCHEDULES = [RectifiedFlow(), RectifiedFlow(to_data=True), VPrediction(torch.linspace(0.99, 0.0, 100))]


@pytest.mark.parametrize(("evaluations", "steps"), [(2, 50), (5, 8), (14, 50), (49, 50), (50, 50), (60, 50)])
def test_as_many_steps_evaluate_the_network_as_are_set_the_first_and_the_last_among_them(evaluations, steps):
    places = evaluation_steps(evaluations, steps)
    assert len(places) == min(evaluations, steps)
    assert {0, steps - 1} <= places <= set(range(steps))


def test_more_steps_evaluate_the_network_near_the_noise_than_near_the_data():
    gaps = torch.tensor(sorted(evaluation_steps(14, 50))).diff()
    assert gaps[0] == 1
    assert gaps[-1] > 4
    assert (gaps[1:] >= gaps[:-1]).float().mean() > 0.8


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_on_a_straight_trajectory_nothing_is_lost(schedule):
    start, slope, noise = torch.randn(3, 2, 4, 3, 2, 2)

    def at(t):
        times = torch.full((2,), t)
        x_0 = start + t * slope
        return schedule.target(x_0, noise, times), schedule.add_noise(x_0, noise, times), times

    extrapolation = X0Extrapolation(schedule)
    for t in (0.9, 0.8, 0.7):
        extrapolation.add(*at(t))
    prediction, x_t, times = at(0.4)
    torch.testing.assert_close(extrapolation(x_t, times), prediction, atol=1e-4, rtol=1e-4)


def test_after_one_evaluation_the_sample_is_where_that_one_predicted_it():
    schedule, t = RectifiedFlow(), torch.tensor([0.5])
    x_0, noise = torch.randn(2, 1, 4, 3, 2, 2)
    extrapolation = X0Extrapolation(schedule)
    extrapolation.add(schedule.target(x_0, noise, t), schedule.add_noise(x_0, noise, t), t)
    later = torch.tensor([0.25])
    torch.testing.assert_close(
        extrapolation(schedule.add_noise(x_0, noise, later), later), schedule.target(x_0, noise, later)
    )


def test_guidance_is_the_same_in_one_pass_and_in_two():
    passes = []

    def predict(which, x_t, t, condition):
        passes.append((which, len(x_t)))
        return x_t * t.view(-1, 1, 1, 1, 1) + condition["text"].view(-1, 1, 1, 1, 1)

    x_t, t = torch.randn(3, 4, 2, 2, 2), torch.tensor([0.1, 0.2, 0.3])
    guidance = Guidance({"text": torch.tensor([1.0, 2.0, 3.0])}, {"text": torch.tensor([-1.0])}, 5.0, one_pass=False)
    apart = predict_with_guidance(predict, x_t, t, guidance)
    together = predict_with_guidance(predict, x_t, t, replace(guidance, one_pass=True))
    torch.testing.assert_close(apart, together)
    by_hand = x_t * t.view(-1, 1, 1, 1, 1) + (-1 + 5 * (torch.tensor([1.0, 2.0, 3.0]) + 1)).view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(apart, by_hand)
    assert passes == [("conditional", 3), ("unconditional", 3), ("both", 6)]


def counted(model, monkeypatch):
    rows, predict = [], model.predict
    monkeypatch.setattr(
        model, "predict", lambda denoiser, x_t, *rest: rows.append(len(x_t)) or predict(denoiser, x_t, *rest)
    )
    return rows


def test_the_network_is_evaluated_no_more_often_than_set(model, monkeypatch):
    rows = counted(model, monkeypatch)
    generate(model, ["a red ball"], RolloutConfig(steps=12, evaluations=5, guidance=1.0), n=2, decode=False)
    assert rows == [2] * 5


def test_the_more_evaluations_the_nearer_to_the_full_sample(model):
    def sample(evaluations):
        config = RolloutConfig(steps=24, evaluations=evaluations, guidance=2.0)
        return generate(model, ["a red ball", "a blue ball"], config, n=2, decode=False).latents

    full = sample(None)
    away = [(sample(evaluations) - full).square().mean().item() for evaluations in (3, 6, 12, 24)]
    assert away == sorted(away, reverse=True)
    assert away[-1] == 0
    assert away[2] < 0.01 * full.var()


def test_outside_its_times_guidance_costs_nothing(model, monkeypatch):
    rows = counted(model, monkeypatch)
    generate(
        model, ["a red ball"], RolloutConfig(steps=6, guidance=3.0, guidance_interval=(0.5, 1.0), batch=1), decode=False
    )
    times = [
        model.schedule.time(t).item()
        for t in model.make_scheduler(6, model.latent_shape(*model.default_size())).timesteps
    ]
    assert len(rows) == 6 + sum(t >= 0.5 for t in times) < 12


def test_guidance_at_all_times_is_guidance_and_at_none_is_none(model):
    def sample(**settings):
        return generate(model, ["a red ball"], RolloutConfig(steps=4, **settings), decode=False).latents

    assert torch.equal(sample(guidance=3.0), sample(guidance=3.0, guidance_interval=(0.0, 1.0)))
    assert torch.equal(sample(guidance=3.0, guidance_interval=(0.0, 0.0)), sample(guidance=1.0))


@pytest.mark.parametrize(
    "settings", [{"evaluations": 1}, {"guidance_interval": (0.6, 0.4)}, {"guidance_interval": (0.0, 1.5)}]
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} is"):
        RolloutConfig(**settings)

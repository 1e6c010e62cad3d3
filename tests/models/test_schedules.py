import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler

from besttake.models.schedules import RectifiedFlow, VPrediction

OFFICIAL = CogVideoXDDIMScheduler(
    prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=3.0, timestep_spacing="trailing"
)
V = VPrediction(OFFICIAL.alphas_cumprod)
FLOW = RectifiedFlow(shift=3.0)


@pytest.fixture(params=[V, FLOW], ids=["v-prediction", "flow"])
def schedule(request):
    return request.param


def data(n=6):
    return torch.randn(n, 4, 2, 3, 3), torch.randn(n, 4, 2, 3, 3)


def sample_times(schedule, n=2000, **bounds):
    return schedule.sample_times(n, torch.Generator().manual_seed(0), **bounds)


def test_the_target_splits_back_into_data_and_noise(schedule):
    x_0, noise = data()
    t = torch.tensor([0.0, 0.001, 0.3, 0.5, 0.999, 1.0])
    found_x_0, found_noise = schedule.split(schedule.target(x_0, noise, t), schedule.add_noise(x_0, noise, t), t)
    torch.testing.assert_close(found_x_0, x_0, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found_noise, noise, atol=1e-5, rtol=1e-5)


def test_time_zero_is_data_and_time_one_is_noise_without_a_trace_of_data(schedule):
    x_0, noise = data(2)
    x_t = schedule.add_noise(x_0, noise, torch.tensor([0.0, 1.0]))
    assert torch.equal(x_t[0], x_0[0])
    assert torch.equal(x_t[1], noise[1])


def test_there_is_more_noise_at_later_times(schedule):
    alpha, sigma = schedule.alpha_sigma(torch.linspace(0, 1, 101))
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()


def test_noise_and_velocity_are_those_of_diffusers():
    x_0, noise = data()
    timestep = torch.tensor([0, 1, 200, 500, 998, 999])
    t = V.time(timestep)
    torch.testing.assert_close(V.add_noise(x_0, noise, t), OFFICIAL.add_noise(x_0, noise, timestep))
    # diffusers' CogVideoX get_velocity(v, x_t) gives x_0
    x_t, v = V.add_noise(x_0, noise, t), V.target(x_0, noise, t)
    torch.testing.assert_close(OFFICIAL.get_velocity(v, x_t, timestep), x_0, atol=1e-5, rtol=1e-5)


def test_the_samplers_timesteps_and_times_are_inverses(schedule):
    sampler = OFFICIAL if schedule is V else FlowMatchEulerDiscreteScheduler(shift=3.0)
    sampler.set_timesteps(16)
    times = schedule.time(sampler.timesteps)
    assert times[0] == 1  # sampling starts from pure noise
    assert (times.diff() < 0).all()
    torch.testing.assert_close(schedule.timestep(times).float(), sampler.timesteps.float())


def test_the_sigmas_of_the_flow_sampler_are_its_times():
    sampler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    sampler.set_timesteps(16)
    torch.testing.assert_close(FLOW.time(sampler.timesteps), sampler.sigmas[:-1])


def test_numbers_rounded_up_to_one_give_the_last_time(schedule):
    assert schedule.times(torch.ones(1)) == 1


def test_times_are_sampled_over_the_whole_range(schedule):
    t = sample_times(schedule)
    assert t.shape == (2000,)
    assert t.dtype == torch.float32
    assert 0 <= t.min() < 0.05
    assert 0.95 < t.max() <= 1


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.5), (0.25, 0.75), (0.57, 0.58)])
def test_times_stay_within_their_bounds_and_fill_them(schedule, low, high):
    t = sample_times(schedule, low=low, high=high)
    assert low - 1e-6 <= t.min() < low + 0.02 * (high - low) + 0.0011
    assert high - 0.02 * (high - low) - 0.0011 < t.max() <= high + 1e-6


def test_v_prediction_samples_every_discrete_time_of_its_range_and_no_other():
    coarse = VPrediction(torch.linspace(0.9, 0, 100))
    times = {round(float(t) * 100) for t in sample_times(coarse, low=0.57, high=0.6)}
    assert times == {58, 59, 60}


def test_uniform_times_are_uniform():
    for schedule in (V, RectifiedFlow(shift=1.0)):
        assert sample_times(schedule).mean() == pytest.approx(0.5, abs=0.03)


def test_shift_moves_times_towards_noise_as_the_formula_says():
    uniform, shifted = sample_times(RectifiedFlow(shift=1.0)), sample_times(FLOW)
    torch.testing.assert_close(shifted, 3 * uniform / (1 + 2 * uniform))
    assert shifted.median() == pytest.approx(0.75, abs=0.03)


def test_the_same_generator_gives_the_same_times(schedule):
    assert torch.equal(sample_times(schedule, 5), sample_times(schedule, 5))


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (0.6, 0.4), (-0.1, 0.5), (0.5, 1.1)])
def test_a_range_without_times_is_refused(schedule, low, high):
    with pytest.raises(ValueError, match="no training time in"):
        sample_times(schedule, low=low, high=high)


def test_a_range_between_two_discrete_times_is_refused():
    with pytest.raises(ValueError, match="1/1000"):
        sample_times(V, low=0.5002, high=0.5008)

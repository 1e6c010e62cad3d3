import itertools
import math

import numpy as np
import pytest

from besttake.rewards import load_reward
from besttake.rewards.guard import GuardConfig, RewardHackingGuard, detect_hacking, guarded_metrics, thinned, trend

EVERY, PASSES = 10, 40
RANGES = {"eval/heldout/plausibility": (-4.0, 0.0), "eval/dynamic-degree/dynamic degree": (0.0, 2.0)}
NAMES = tuple(RANGES)


def series(values, every=1):
    return [(float(every * i), float(value)) for i, value in enumerate(values)]


def noise(n, seed, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal(n)


def exact(values):
    """The chance that a random order of the values has so many rising pairs more than falling ones, or more."""

    def s(order):
        return sum(np.sign(b - a) for a, b in itertools.combinations(order, 2))

    orders = list(itertools.permutations(values))
    return sum(s(order) >= s(values) for order in orders) / len(orders)


@pytest.mark.parametrize("values", [(1, 2, 3, 4, 5, 6), (1, 3, 2, 4, 6, 5), (2, 1, 3, 2, 5, 5), (3, 1, 2, 6, 4, 5)])
def test_the_chance_is_about_that_of_all_orders(values, monkeypatch):
    monkeypatch.setattr("besttake.rewards.guard._autocorrelation", lambda _: 0.0)
    assert trend(series(values)).rising == pytest.approx(exact(values), abs=0.02)
    assert trend(series([-value for value in values])).falling == trend(series(values)).rising


def test_the_slope_is_per_step_and_an_outlier_does_not_turn_it():
    values = [0.5 * i for i in range(12)]
    assert trend(series(values, every=5)).slope == pytest.approx(0.1)
    values[4] = -1e6
    assert trend(series(values, every=5)).slope == pytest.approx(0.1)
    assert trend(series(values)).rising < 0.01


def test_nothing_is_to_be_said_of_a_constant():
    assert trend(series([1.0] * 10)) == trend(series([1.0] * 4)).__class__(0.0, 1.0, 1.0)


def test_neighbours_that_resemble_each_other_are_less_of_a_proof(monkeypatch):
    wave = series(math.sin(i / 2.5) - 0.08 * i for i in range(20))
    taken_alike = trend(wave).falling
    monkeypatch.setattr("besttake.rewards.guard._autocorrelation", lambda _: 0.0)
    assert taken_alike > 3 * trend(wave).falling


def rewards(rising, seed=0, n=PASSES * EVERY):
    return series(np.linspace(0, 3 * rising, n) + noise(n, seed))


def falling(start=20, by=0.1, seed=1):
    return [-by * max(0, i - start) for i in range(PASSES)] + noise(PASSES, seed, 0.1)


def test_a_reward_that_rises_while_a_critic_falls_raises_an_alarm():
    metrics = {NAMES[0]: series(falling(), EVERY), NAMES[1]: series(noise(PASSES, 2, 0.1), EVERY)}
    (alarm,) = detect_hacking(rewards(1.0), metrics, GuardConfig(), RANGES)
    assert alarm.name == NAMES[0]
    assert alarm.step == (PASSES - 1) * EVERY
    assert alarm.since in [(PASSES - window) * EVERY for window in (GuardConfig().window, GuardConfig().window // 2)]
    assert alarm.fall == pytest.approx(0.1 * (alarm.step - alarm.since) / EVERY, rel=0.3)
    assert alarm.rise > 0
    assert "the training reward rose by" in str(alarm)
    assert f"while {NAMES[0]} fell by" in str(alarm)


@pytest.mark.parametrize(
    ("reward", "values"),
    [
        (rewards(1.0), -falling()),  # all get better
        (rewards(-1.0), falling()),  # all get worse
        (rewards(0.0), falling()),  # the reward knows nothing of it
        (rewards(1.0), noise(PASSES, 3, 0.1)),  # nothing but noise
        (rewards(1.0), falling(by=0.001) / 100),  # too little to matter
        (rewards(1.0), [0.0] * PASSES),
    ],
)
def test_other_runs_raise_none(reward, values):
    assert detect_hacking(reward, {NAMES[0]: series(values, EVERY)}, GuardConfig(), RANGES) == []


def test_one_bad_validation_pass_is_no_trend():
    values = noise(PASSES, 4, 0.02)
    values[-1] = -3.5
    assert detect_hacking(rewards(1.0), {NAMES[0]: series(values, EVERY)}, GuardConfig(), RANGES) == []


def test_too_few_validation_passes_say_nothing():
    for n in range(6):
        metrics = {NAMES[0]: series(-np.arange(n), EVERY)}
        assert detect_hacking(rewards(1.0), metrics, GuardConfig(), RANGES) == []


def alarms_in_run(seed, fall=0.0, alike=0.0):
    """The step of the first alarm of a run whose reward rises, or None; two held-out critics, one of which may fall."""
    guard, random = RewardHackingGuard(GuardConfig(least=0.0), RANGES), np.random.default_rng(seed)
    state = random.standard_normal(2)
    for step in range(PASSES * EVERY):
        if step % EVERY == 0:
            state = alike * state + math.sqrt(1 - alike**2) * random.standard_normal(2)
            fallen = fall * max(0, step // EVERY - PASSES // 2)
            if guard.observe({"step": step, NAMES[0]: state[0] - fallen, NAMES[1]: state[1]}):
                return step
        guard.observe({"step": step, "reward/mean": 3 * step / (PASSES * EVERY) + random.standard_normal()})
    return None


def test_noise_seldom_raises_an_alarm_in_a_whole_run():
    assert sum(alarms_in_run(seed) is not None for seed in range(60)) <= 5


def test_a_fall_is_seen_in_most_runs_and_not_before_it_begins():
    seen = [alarms_in_run(seed, fall=0.5) for seed in range(12)]
    assert sum(step is not None for step in seen) >= 10
    assert sum(step < EVERY * PASSES // 2 for step in seen if step is not None) <= 1


def logged():
    rows = []
    for step, value in rewards(1.0):
        if step % EVERY == 0:
            rows.append({"step": step, NAMES[0]: falling()[int(step) // EVERY], NAMES[1]: 0.3})
        rows.append({"step": step, "reward/mean": value, "train/loss": 0.7})
    return rows


def test_a_fall_rings_once_and_a_new_one_rings_again():
    guard = RewardHackingGuard(GuardConfig(), RANGES)
    rung = [row["step"] for row in logged() if row["step"] < 330 and guard.observe(row)]
    assert len(rung) == 1
    assert rung[0] > 22 * EVERY

    def go_on(start, values):
        rows = [
            {"step": start + 10.0 * i, "reward/mean": start / 10 + i, NAMES[0]: v, NAMES[1]: 0.3}
            for i, v in enumerate(values)
        ]
        return sum(bool(guard.observe(row)) for row in rows)

    assert go_on(330, [-1.3 + 0.1 * i for i in range(20)]) == 0
    assert go_on(530, [0.7 - 0.3 * i for i in range(8)]) == 1


def test_a_resumed_run_observes_the_old_rows_and_goes_on_alike():
    rows, guard, resumed = (
        logged(),
        RewardHackingGuard(GuardConfig(), RANGES),
        RewardHackingGuard(GuardConfig(), RANGES),
    )
    whole = [guard.observe(row) for row in rows]
    for row in rows[:200]:
        resumed.observe(row)
    assert [resumed.observe(row) for row in rows[200:]] == whole[200:]


def test_critics_that_are_not_trained_on_are_monitored():
    critics = [load_reward(name) for name in ("motion-smoothness", "dynamic-degree", "temporal-flicker")]
    columns = guarded_metrics(critics, ["motion-smoothness"], GuardConfig())
    assert columns == {
        "eval/dynamic-degree/dynamic degree": (0.0, 2.0),
        "eval/temporal-flicker/temporal flicker": (0.0, 1.0),
    }
    only = GuardConfig(critics=("dynamic-degree",))
    assert list(guarded_metrics(critics, ["motion-smoothness"], only)) == ["eval/dynamic-degree/dynamic degree"]
    for name in ("motion-smoothness", "nobody"):
        with pytest.raises(
            ValueError, match=f"guard.critics names '{name}'; expected .*dynamic-degree, temporal-flicker"
        ):
            guarded_metrics(critics, ["motion-smoothness"], GuardConfig(critics=(name,)))


def test_many_points_become_means_of_stretches():
    points = thinned(series(range(1000)), 10)
    assert len(points) == 10
    assert points[0] == (49.5, 49.5)
    assert thinned(series(range(5)), 10) == series(range(5))


@pytest.mark.parametrize(
    ("values", "message"),
    [({"window": 3}, "window is 3"), ({"chance": 0.0}, "chance is 0"), ({"least": 1.5}, "least is 1.5")],
)
def test_settings_that_cannot_be_meant_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        GuardConfig(**values)

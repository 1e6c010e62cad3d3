import numpy as np
import pytest

from besttake.evaluation.paired import LEVEL, adjusted_p_values, p_value_of_means, p_value_of_sets, swaps


def higher(before, after):
    return after - before


def test_every_way_to_swap_is_tried_where_they_are_few():
    found = swaps(3)
    assert found.shape == (7, 3)
    assert len({tuple(row) for row in found.tolist()}) == 7
    assert found.any(1).all()  # none swapped is what was found
    assert swaps(200).shape == (9999, 200)
    np.testing.assert_array_equal(swaps(200), swaps(200))


@pytest.mark.parametrize(
    ("after", "p"),
    [
        ([1, 1, 1, 1], 2 / 16),  # as extreme only where all or none are swapped
        ([3, 1, 1, -1], 1 / 2),  # a gain of 4 of at most 6: 8 of the 16 sums of +-3, +-1, +-1, +-1 are as large
        ([0, 0, 0, 0], 1.0),
        ([1, -1, 1, -1], 1.0),
    ],
)
def test_p_of_a_mean_by_hand(after, p):
    before = np.zeros(4)
    assert p_value_of_means(before, np.array(after, float), higher) == pytest.approx(p)
    assert p_value_of_means(np.array(after, float), before, higher) == pytest.approx(p)


def test_pairs_see_what_two_crowds_would_not():
    """Prompts differ much more than training does: a shift of .1 of every clip, in noise of 1 between prompts."""
    generator = np.random.default_rng(0)
    before = generator.normal(size=40)
    after = before + 0.1 + generator.normal(scale=0.1, size=40)
    assert p_value_of_means(before, after, higher) < 0.001
    assert p_value_of_means(before, generator.permutation(after), higher) > 0.1


def test_chance_is_called_a_change_as_often_as_is_said():
    generator = np.random.default_rng(1)
    found = [p_value_of_means(*generator.normal(size=(2, 12)), higher) for _ in range(200)]
    assert 0.01 < np.mean(np.array(found) <= LEVEL) < 0.1


def test_any_statistic_of_two_sets():
    before, after = np.zeros((5, 2)), np.ones((5, 2))
    assert p_value_of_sets(before, after, lambda was, now: float(now.sum() - was.sum())) == pytest.approx(2 / 32)
    assert p_value_of_sets(before, before, lambda was, now: float(now.sum() - was.sum())) == 1.0


def test_q_values_by_hand():
    """Benjamini and Hochberg's: each p times how many there are, by its rank, and no larger than the next one's."""
    found = adjusted_p_values({"d": 0.5, "a": 0.01, "b": 0.02, "c": 0.03})
    assert found == pytest.approx({"d": 0.5, "a": 0.04, "b": 0.04, "c": 0.04})
    assert list(found) == ["d", "a", "b", "c"]
    assert adjusted_p_values({}) == {}

from itertools import permutations

import numpy as np
import pytest

from besttake.evaluation.ranking import (
    accuracy,
    accuracy_with_ties,
    bootstrap,
    compared_pairs,
    kendall_tau_b,
    paired_bootstrap,
    rank_probabilities,
    ratio,
    recall,
    reciprocal_rank,
    resamples,
)


def test_the_best_candidate_is_found_where_its_score_puts_it():
    scores = [0.1, 0.9, 0.5, 0.7]  # the order is 1, 3, 2, 0
    assert [recall(scores, [2], k) for k in (1, 2, 3, 4)] == [0, 0, 1, 1]
    assert reciprocal_rank(scores, [2]) == pytest.approx(1 / 3)


def test_of_several_best_candidates_the_first_counts():
    assert reciprocal_rank([3, 2, 1], [1, 2]) == 0.5
    assert recall([3, 2, 1], [1, 2], 2) == 1


def test_a_critic_that_says_nothing_is_at_chance():
    assert [recall([0, 0, 0, 0], [2], k) for k in (1, 2, 4)] == [0.25, 0.5, 1]
    assert reciprocal_rank([0, 0, 0, 0], [2]) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_equal_scores_give_the_mean_over_all_their_orders():
    scores, best = [1, 2, 1, 1, 0], [0, 3]
    found = []
    for order in permutations(range(5)):
        descending = sorted(order, key=lambda i: -scores[i])  # stable: equals keep the order of the permutation
        found.append(1 + min(descending.index(i) for i in best))
    expected = {place: found.count(place) / len(found) for place in set(found)}
    assert dict(rank_probabilities(scores, best)) == pytest.approx(expected)
    assert reciprocal_rank(scores, best) == pytest.approx(np.mean([1 / place for place in found]))


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="expected finite numbers"):
        recall([0.0, float("nan")], [0])


def test_the_best_is_compared_with_the_rest_and_ties_with_other_bests():
    assert compared_pairs([5, 2, 7], [0]).tolist() == [[1, 3], [1, -2]]
    assert compared_pairs([5, 2, 7], [0, 2]).tolist() == [[1, 3], [1, 5], [0, -2]]
    assert compared_pairs([5, 2], [0, 1]).tolist() == [[0, 3]]


def test_without_ties_only_preferences_count_and_equal_scores_are_wrong():
    pairs = np.array([[1, 2.0], [1, -1.0], [1, 0.0], [0, 0.0], [0, 9.0]])
    assert accuracy(pairs) == pytest.approx(1 / 3)
    assert accuracy(pairs, np.array([3, 1, 0, 5, 5])) == 0.75
    assert np.isnan(accuracy(pairs[3:]))


def test_with_ties_the_threshold_agrees_best():
    # thresholds 0: right 1.0, -2 wrong, 3.0 right, no ties called: 2 of 5; .2: both ties found: 4 of 5; 1: loses one
    pairs = np.array([[1, 1.0], [1, -2.0], [1, 3.0], [0, 0.1], [0, -0.2]])
    assert accuracy_with_ties(pairs) == (0.8, 0.2)


def test_with_ties_equal_differences_tie_together():
    # at .5 the preference is lost with the tie: 1 of 2, as at 0
    assert accuracy_with_ties(np.array([[1, 0.5], [0, 0.5]])) == (0.5, 0.0)
    assert accuracy_with_ties(np.array([[1, 0.0], [0, 0.0]])) == (0.5, 0.0)


def test_the_threshold_is_the_best_of_all():
    rng = np.random.default_rng(0)
    pairs = np.column_stack([rng.integers(0, 2, 60), rng.integers(-4, 9, 60)]).astype(float)
    weights = rng.integers(0, 3, 60).astype(float)

    def agreed(threshold):
        called = np.where(np.abs(pairs[:, 1]) <= threshold, 0, np.sign(pairs[:, 1]))
        return (weights * (called == pairs[:, 0])).sum() / weights.sum()

    assert accuracy_with_ties(pairs, weights)[0] == pytest.approx(max(agreed(threshold) for threshold in range(10)))


def test_kendall_tau_b_by_hand():
    assert kendall_tau_b([1, 2, 3], [1, 2, 3]) == 1
    assert kendall_tau_b([1, 2, 3, 4], [4, 3, 2, 1]) == -1
    # of 6 pairs one ties in a and one in b; 3 of the others agree, 1 does not: (3 - 1) / sqrt(5 * 5)
    assert kendall_tau_b([1, 1, 2, 3], [2, 1, 1, 3]) == pytest.approx(0.4)
    assert kendall_tau_b([1, 1, 1], [1, 2, 3]) == 0


def test_the_bootstrap_knows_the_mean_and_its_error():
    values = np.random.default_rng(1).normal(size=400)
    found = bootstrap(ratio(values, np.ones(400)), 400, n_resamples=2000)
    error = values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_the_bootstrap_resamples_alike_from_the_same_seed():
    assert (resamples(5, 3, 7) == resamples(5, 3, 7)).all()
    assert (resamples(5, 3, 7) != resamples(5, 3, 8)).any()
    assert (resamples(5, 30, 7).sum(1) == 5).all()
    with pytest.raises(ValueError, match="n is 0"):
        resamples(0, 3, 7)


def test_resamples_without_a_single_vote_do_not_count():
    found = bootstrap(ratio(np.array([1.0, 0.0]), np.array([1.0, 0.0])), 2)
    assert (found.value, found.low, found.high) == (1, 1, 1)


def test_paired_resamples_tell_apart_what_single_intervals_do_not():
    difficulty = np.random.default_rng(2).normal(size=100)
    one, other = ratio(difficulty + 0.1, np.ones(100)), ratio(difficulty, np.ones(100))
    assert bootstrap(one, 100).low < bootstrap(other, 100).high
    apart = paired_bootstrap(one, other, 100)
    assert apart.low == pytest.approx(0.1)
    assert apart.high == pytest.approx(0.1)

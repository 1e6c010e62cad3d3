from dataclasses import replace

import pytest
import torch

from besttake.algorithms.pairing import best_against_worst, extremes
from besttake.rewards.panel import PanelScores
from besttake.sampling.rollout import Rollout

N = 3


def takes(prompts):
    """`N` takes of each prompt; every latent is filled with the number of its row, every condition likewise."""
    rows = torch.arange(prompts * N, dtype=torch.float32)
    latents = rows.view(-1, 1, 1, 1, 1).expand(-1, 2, 1, 1, 1)
    return Rollout(latents, torch.empty(0), [f"p{int(r) // N}" for r in rows], {"text": rows[:, None] // N}, N)


def test_the_best_stands_before_the_worst_of_the_same_prompt():
    pairs, counts = best_against_worst(takes(2), torch.tensor([0.1, 0.9, 0.5, 7.0, 6.0, 5.0]))
    assert pairs.clips[:, :, 0, 0, 0, 0].tolist() == [[1, 0], [3, 5]]
    assert pairs.condition["text"][:, 0].tolist() == [0, 1]
    torch.testing.assert_close(pairs.margin, torch.tensor([0.8, 2.0]))
    assert counts == {"pairs/ties": 0, "pairs/below_margin": 0, "pairs/score_spread": pytest.approx(1.4)}


def test_ties_are_dropped_and_counted_never_paired_with_themselves():
    pairs, counts = best_against_worst(takes(2), torch.tensor([0.5, 0.5, 0.5, 0.2, 0.1, 0.3]))
    assert pairs.clips[:, :, 0, 0, 0, 0].tolist() == [[5, 4]]
    assert pairs.condition["text"][:, 0].tolist() == [1]
    assert counts["pairs/ties"] == 1


def test_what_differs_by_no_more_than_the_margin_is_dropped_and_counted_apart_from_ties():
    scores = torch.tensor([0.0, 0.5, 0.25, 1.0, 1.0, 1.0, 0.0, 0.75, 0.5])
    pairs, counts = best_against_worst(takes(3), scores, margin=0.5)
    assert pairs.clips[:, :, 0, 0, 0, 0].tolist() == [[7, 6]]
    assert (counts["pairs/ties"], counts["pairs/below_margin"]) == (1, 1)


def test_nothing_left_is_no_error():
    pairs, counts = best_against_worst(takes(1), torch.zeros(N))
    assert len(pairs) == 0
    assert counts["pairs/ties"] == 1


def test_the_extremes_are_the_best_and_the_worst_and_what_has_no_score_is_neither():
    scores = torch.tensor([0.3, 0.1, 0.5, 0.9, 0.2, 0.8, 0.4, 0.6, 0.1, 0.5])
    assert extremes(PanelScores.of(scores), 5, 2).sort(1).values.tolist() == [[1, 3], [0, 3]]
    assert extremes(PanelScores.of(scores), 5, 3).sort(1).values.tolist() == [[1, 2, 3], [0, 2, 3]]
    assert extremes(PanelScores.of(scores), 5, 5).sort(1).values.tolist() == [[0, 1, 2, 3, 4]] * 2
    silent = replace(PanelScores.of(scores), scored=torch.arange(10) != 3)
    assert extremes(silent, 5, 2).sort(1).values.tolist() == [[1, 2], [0, 3]]


def test_where_critics_vote_the_extremes_are_those_of_their_mean_rank():
    votes = torch.tensor([[0.0, 40.0], [1.0, 10.0], [2.0, 30.0], [3.0, 35.0]])
    ballots = PanelScores(votes, torch.ones(4, dtype=torch.bool), torch.zeros(2))
    assert extremes(ballots, 4, 2).tolist() == [[1, 3]]  # mean ranks 1.5, .5, 1.5 and 2.5

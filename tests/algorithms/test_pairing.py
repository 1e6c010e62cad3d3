import pytest
import torch

from besttake.algorithms.pairing import best_against_worst, best_pairs
from besttake.sampling.rollout import Rollout

N = 3


def rollout(prompts):
    """`N` candidates of each prompt; every latent is filled with the number of its row, every condition likewise."""
    rows = torch.arange(prompts * N, dtype=torch.float32)
    latents = rows.view(-1, 1, 1, 1, 1).expand(-1, 2, 1, 1, 1)
    return Rollout(latents, torch.empty(0), [f"p{int(r) // N}" for r in rows], {"text": rows[:, None] // N}, N)


def test_the_best_stands_before_the_worst_of_the_same_prompt():
    pairs, counts = best_against_worst(rollout(2), torch.tensor([0.1, 0.9, 0.5, 7.0, 6.0, 5.0]))
    assert pairs.clips[:, :, 0, 0, 0, 0].tolist() == [[1, 0], [3, 5]]
    assert pairs.condition["text"][:, 0].tolist() == [0, 1]
    torch.testing.assert_close(pairs.margin, torch.tensor([0.8, 2.0]))
    assert counts == {"pairs/ties": 0, "pairs/below_margin": 0, "pairs/score_spread": pytest.approx(1.4)}


def test_ties_are_dropped_and_counted_never_paired_with_themselves():
    pairs, counts = best_against_worst(rollout(2), torch.tensor([0.5, 0.5, 0.5, 0.2, 0.1, 0.3]))
    assert pairs.clips[:, :, 0, 0, 0, 0].tolist() == [[5, 4]]
    assert pairs.condition["text"][:, 0].tolist() == [1]
    assert counts["pairs/ties"] == 1


def test_what_differs_by_no_more_than_the_margin_is_dropped_and_counted_apart_from_ties():
    scores = torch.tensor([0.0, 0.5, 0.25, 1.0, 1.0, 1.0, 0.0, 0.75, 0.5])
    pairs, counts = best_against_worst(rollout(3), scores, margin=0.5)
    assert pairs.clips[:, :, 0, 0, 0, 0].tolist() == [[7, 6]]
    assert (counts["pairs/ties"], counts["pairs/below_margin"]) == (1, 1)


def test_nothing_left_is_no_error():
    pairs, counts = best_against_worst(rollout(1), torch.zeros(N))
    assert len(pairs) == 0
    assert counts["pairs/ties"] == 1


def table(*rows):
    return torch.tensor(rows, dtype=torch.float32)[:, None]


ALL = torch.ones(1, 4, dtype=torch.bool)


def test_a_single_voter_pairs_the_best_with_the_worst():
    found = best_pairs(table([3, 9, 1, 5]), torch.zeros(1), ALL)
    assert (found.winner.item(), found.loser.item(), found.margin.item()) == (1, 2, 8)
    assert best_pairs(table([3, 9, 1, 5]), torch.tensor([8.0]), ALL).kept.tolist() == []
    assert best_pairs(table([3, 3, 3, 3]), torch.zeros(1), ALL).tied.tolist() == [True]


def test_the_pair_of_a_vote_is_one_that_all_agree_on():
    found = best_pairs(table([0, 1, 2, 3], [0, 3, 2, 1]), torch.zeros(2), ALL)
    assert (found.winner.item(), found.loser.item()) == (1, 0)
    found = best_pairs(table([0, 1, 2, 3], [0, 300, 200, 100]), torch.zeros(2), ALL)  # of any scale
    assert (found.winner.item(), found.loser.item()) == (1, 0)


def test_critics_that_contradict_each_other_keep_no_pair():
    found = best_pairs(table([0, 1, 2, 3], [3, 2, 1, 0]), torch.zeros(2), ALL)
    assert found.kept.tolist() == []
    assert found.tied.tolist() == [False]


def test_a_preference_within_a_voters_margin_is_no_vote():
    tables = table([0, 1, 2, 3], [0, 0.1, 0.2, 0.3])
    assert best_pairs(tables, torch.tensor([0.0, 0.25]), ALL).winner.tolist() == [3]
    assert best_pairs(tables, torch.tensor([0.0, 0.31]), ALL).kept.tolist() == []


def test_a_candidate_without_a_score_is_never_paired():
    scored = torch.tensor([[True, False, True, False], [True, False, False, False], [False] * 4])
    tables = torch.tensor([[3.0, 0, 1, 0], [-5, 0, 0, 0], [0, 0, 0, 0]])[None]
    found = best_pairs(tables, torch.zeros(1), scored)
    assert (found.kept.tolist(), found.winner.tolist(), found.loser.tolist()) == ([0], [0], [2])
    assert found.tied.tolist() == [False, True, True]
    assert found.spread.tolist() == [2, 0, 0]


def test_every_kept_pair_of_random_votes_is_agreed_on_and_none_is_missed():
    generator = torch.Generator().manual_seed(0)
    tables = torch.randn(3, 200, 4, generator=generator)
    scored = torch.rand(200, 4, generator=generator) > 0.2
    margins = torch.tensor([0.1, 0.2, 0.3])
    found = best_pairs(tables, margins, scored)
    for p in range(200):
        good = {
            (i, j)
            for i in range(4)
            for j in range(4)
            if scored[p, i] and scored[p, j] and (tables[:, p, i] - tables[:, p, j] > margins).all()
        }
        assert (p in found.kept.tolist()) == bool(good)
        if good:
            k = found.kept.tolist().index(p)
            assert (found.winner[k].item(), found.loser[k].item()) in good

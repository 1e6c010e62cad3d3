"""Which pairs of a file are trained on."""

from dataclasses import replace
from pathlib import Path

import pytest

from besttake.algorithms.offline_dpo import Config, usable
from besttake.data.pairs import PreferencePair


def test_pairs_below_the_margin_are_left_out():
    low, high = (PreferencePair("a", Path("a"), [Path("b")], margin) for margin in (0.1, 0.5))
    assert usable([low, high], Config(margin=0.5)) == [high]
    with pytest.raises(ValueError, match="none of the 2 pairs"):
        usable([low, high], Config(margin=1.0))


def test_pairs_whose_margin_nobody_knows_are_trained_on():
    pair = PreferencePair("a", Path("a"), [Path("b")])
    assert usable([pair], Config()) == [pair]


def test_pairs_of_several_sizes_are_refused():
    one = PreferencePair("a", Path("a"), [Path("b")])
    with pytest.raises(ValueError, match="different numbers of losers"):
        usable([one, replace(one, losers=[Path("b"), Path("c")])], Config())

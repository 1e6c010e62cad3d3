import json

import pytest
import torch
from torch import nn

from besttake.rewards.shipped import read_config, read_weights, word_ids, write_critic


def test_words_are_numbered_from_two_and_unknown_ones_are_one():
    ids = word_ids(["A red ball.", "blue"], ["a", "red", "ball"], 4)
    assert ids.tolist() == [[2, 3, 4, 0], [1, 0, 0, 0]]


def test_long_prompt_is_cut():
    assert word_ids(["a " * 10_000], ["a"], 5).tolist() == [[2] * 5]


def test_what_is_written_is_read(tmp_path):
    written, read = nn.Linear(3, 2), nn.Linear(3, 2)
    write_critic(tmp_path, written, {"critic": "me", "words": ["a"]})
    assert read_config(tmp_path, "me")["words"] == ["a"]
    read_weights(tmp_path, read)
    assert torch.equal(read.weight, written.weight.half().float())


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), (json.dumps({"critic": "you"}), "is of critic 'you', expected 'me'"), ("[]", "critic None")],
)
def test_config_of_another_kind_is_refused(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path, "me")


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no critic in .*nowhere"):
        read_config(tmp_path / "nowhere", "me")

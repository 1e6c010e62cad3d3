"""Prompts of a model: checks and warnings."""

import logging
from types import SimpleNamespace

import pytest

from besttake.data.prompts import read_prompts
from besttake.models import load_model


@pytest.fixture
def model(model_folder):
    return load_model(str(model_folder("tiny-cogvideox")))


def test_words_without_a_token_are_named_once(model, caplog):
    prompts = ["a cat plays piano", "a small red ball falls to the ground", "a Red cat"]
    with caplog.at_level(logging.WARNING):
        model.check_prompts(prompts)
        model.check_prompts(prompts)
        model.encode_prompts(prompts[:1])
        model.check_prompts(["a cat falls"])
    (said,) = caplog.messages
    assert "has no tokens for the words Red, cat, piano, plays, in 2 of 3 prompts" in said
    caplog.clear()
    model.check_prompts(["a dog falls"])
    assert "has no tokens for the words dog, in 1 of 1" in caplog.text
    caplog.clear()
    model.check_prompts([" ".join(f"w{chr(97 + i)}" for i in range(22))])
    assert "and 2 others" in caplog.text


def test_the_words_of_the_world_are_all_known(model, caplog):
    for split in ("train", "validation", "test"):
        model.check_prompts(read_prompts(f"world-{split}"))
    assert not caplog.messages


@pytest.mark.parametrize("unknown", [1, None])
def test_a_tokenizer_that_spells_every_word_knows_all(model, unknown):
    """CLIP's unknown token is its last one, of which every prompt has one; Qwen's has none."""
    spells = SimpleNamespace(unk_token_id=unknown, eos_token_id=1)
    model.prompts.model = SimpleNamespace(pipeline=SimpleNamespace(tokenizer=spells))
    assert model.prompts.unknown_words("a cat") == []

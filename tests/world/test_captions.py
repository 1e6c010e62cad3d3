import numpy as np
import pytest

from besttake.world.captions import MOTIONS, SPLITS, Caption, every_caption, prompts, sample_caption, vocabulary


def test_every_caption_parses_back_into_its_parts():
    for caption in every_caption():
        assert Caption.parse(str(caption)) == caption


def test_captions_of_two_bodies_parse_back():
    rng = np.random.default_rng(0)
    captions = [sample_caption(rng) for _ in range(300)]
    collisions = [caption for caption in captions if caption.motion == "hits"]
    assert len(collisions) > 10
    assert all(Caption.parse(str(caption)) == caption for caption in collisions)
    assert all(c.other and c.other.colour != c.body.colour for c in collisions)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a small red ball",
        "a small pink ball bounces on a dark background",
        "a small red ball explodes on a dark background",
        "a small red ball hits on a dark background",
        "a small red ball bounces a large blue ring on a dark background",
        "a small red ball bounces on a tartan background",
    ],
)
def test_a_sentence_of_another_grammar_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="expected one like 'a small red ball"):
        Caption.parse(text)


def test_splits_hold_out_whole_combinations_and_cover_all_motions():
    split_of = {}
    for caption in every_caption():
        key = (caption.body.colour, caption.body.shape, caption.motion)
        assert split_of.setdefault(key, caption.split) == caption.split
    shares = {split: list(split_of.values()).count(split) / len(split_of) for split in SPLITS}
    assert 0.7 < shares["train"] < 0.9
    assert shares["validation"] > 0.05
    assert shares["test"] > 0.05
    trained = {motion for (_, _, motion), split in split_of.items() if split == "train"}
    assert trained == set(MOTIONS) - {"hits"}


def test_prompts_are_of_their_split_different_and_deterministic():
    lists = {split: prompts(split, 60) for split in SPLITS}
    for split, texts in lists.items():
        assert len(set(texts)) == 60
        assert {Caption.parse(text).split for text in texts} == {split}
    assert prompts("test", 60) == lists["test"]
    assert prompts("test", 60, seed=1) != lists["test"]


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="expected one of train, validation, test"):
        sample_caption(np.random.default_rng(0), "training")


def test_the_vocabulary_covers_every_caption():
    words = {word for caption in every_caption() for word in str(caption).split()}
    assert words | {"hits"} == set(vocabulary())  # captions of two bodies are not listed

import pytest
import torch

from besttake.world.build import FAMILIES, WORDS, build, tokenizer
from besttake.world.captions import every_caption, prompts


def test_the_same_seed_builds_the_same_weights():
    first, second = (build("tiny-wan", seed=3).transformer.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_caption_fits_the_text_encoder_without_unknown_words():
    text_tokenizer = tokenizer()
    texts = [str(caption) for caption in every_caption()] + prompts("train", 200)
    ids = text_tokenizer(texts).input_ids
    assert max(len(row) for row in ids) <= WORDS
    assert not any(text_tokenizer.unk_token_id in row for row in ids)
    assert len({tuple(row) for row in ids}) == len(set(texts))


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match=", ".join(FAMILIES)):
        build("tiny-sora")

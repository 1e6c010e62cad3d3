import torch

from besttake.runtime.seeds import keyed_generator


def _draw(*key: int) -> list[float]:
    return torch.randn(4, generator=keyed_generator(*key)).tolist()


def test_the_numbers_depend_on_the_key_alone():
    first = _draw(0, 1)
    torch.manual_seed(5)
    _draw(3)
    assert _draw(0, 1) == first


def test_every_part_of_the_key_matters():
    draws = [_draw(*key) for key in ((0, 1), (1, 0), (0, 2), (0, 1, 7), (0, 1, 7, 1), (1_000_003, 0), (0, 1_000_003))]
    assert len({tuple(draw) for draw in draws}) == len(draws)


def test_known_numbers():
    """The same on every machine and in every version: a resumed run draws what it would have drawn."""
    assert keyed_generator(0, 0).initial_seed() == 7896617691693857887
    assert keyed_generator(7, 123, 1).initial_seed() == 8216639538911712585

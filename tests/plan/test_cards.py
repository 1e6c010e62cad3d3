import pytest

from besttake.plan.cards import find_card


@pytest.mark.parametrize(("name", "card"), [("h100", "H100"), ("4090", "RTX-4090"), ("a100 80gb", "A100-80GB")])
def test_cards_are_found_however_they_are_spelt(name, card):
    assert find_card(name).name == card


@pytest.mark.parametrize(("name", "message"), [("A100", "several cards.*A100-80GB, A100-40GB"), ("voodoo", "no card")])
def test_a_name_of_no_card_or_of_several(name, message):
    with pytest.raises(ValueError, match=message):
        find_card(name)

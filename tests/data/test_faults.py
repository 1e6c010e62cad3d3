import logging

import pytest

from besttake.data.faults import MAX_LISTED, read_each


def positive(number):
    if number < 1:
        raise ValueError(f"{number} is below 1")
    return 2 * number


def test_what_is_read_comes_in_order():
    assert read_each([3, 1, 2], positive, "numbers") == [6, 2, 4]
    assert read_each([], positive, "numbers") == []


def test_all_faults_are_reported_at_once():
    with pytest.raises(ValueError, match="of numbers") as caught:
        read_each([1, 0, 2, -1], positive, "of numbers", skip_bad=False, advice="Raise them")
    assert str(caught.value) == (
        "2 of 4 of numbers cannot be used:\n  0 is below 1\n  -1 is below 1\n"
        "Raise them, or set skip_bad to go on without them."
    )


def test_without_a_setting_none_is_advised_and_one_fault_stands_alone():
    with pytest.raises(ValueError, match=r"remove them\.$"):
        read_each([0, 1, -1], positive, "numbers")
    with pytest.raises(ValueError, match=r"^0 is below 1$"):
        read_each([1, 0], positive, "numbers")


def test_a_place_is_named_before_the_fault():
    with pytest.raises(ValueError, match=r"^line 0: 0 is below 1$"):
        read_each([1, 0], positive, "numbers", place=lambda number: f"line {number}")


def test_many_faults_are_counted():
    with pytest.raises(ValueError, match=rf"{MAX_LISTED + 5} of {MAX_LISTED + 6} numbers") as caught:
        read_each([1, *range(0, -MAX_LISTED - 5, -1)], positive, "numbers")
    assert str(caught.value).count("is below") == MAX_LISTED
    assert "\n  and 5 more\n" in str(caught.value)


def test_they_are_skipped_with_one_warning_on_request(caplog):
    with caplog.at_level(logging.WARNING):
        assert read_each([0, 1, -1, 2], positive, "numbers", skip_bad=True) == [2, 4]
    assert [record.getMessage() for record in caplog.records] == [
        "skipped: 2 of 4 numbers cannot be used:\n  0 is below 1\n  -1 is below 1"
    ]


def test_something_must_be_left():
    with pytest.raises(ValueError, match=r"0 is below 1\nNone is left\.$"):
        read_each([0], positive, "numbers", skip_bad=True)

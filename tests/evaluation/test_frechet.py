from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from besttake.evaluation.frechet import frechet_distance

GOLDEN = load_file(Path(__file__).parent.parent / "golden" / "frechet.safetensors")


def test_public_implementation_agrees():
    found = frechet_distance(GOLDEN["feat_a"], GOLDEN["feat_b"])
    assert found == pytest.approx(float(GOLDEN["cdfvd.real_a_fake_b"]), rel=1e-6)


def test_itself_is_at_distance_zero():
    assert abs(frechet_distance(GOLDEN["feat_a"], GOLDEN["feat_a"])) < 1e-9


def test_one_dimension_by_hand():
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [10.0]])  # means 1 and 7, deviations 1 and 3
    assert frechet_distance(a, b) == pytest.approx(6**2 + (3 - 1) ** 2)


def test_order_of_the_sets_does_not_count():
    a, b = torch.randn(40, 5), 2 * torch.randn(30, 5) + 1
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_fewer_samples_than_dimensions():
    a, b = torch.randn(8, 64), torch.randn(9, 64)
    assert frechet_distance(a, b) > 0


def test_shifted_set_is_as_far_as_the_shift():
    a = torch.randn(50, 3)
    assert frechet_distance(a, a + torch.tensor([3.0, 0.0, 4.0])) == pytest.approx(25, rel=1e-4)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(1, 4), torch.zeros(9, 4), "2 samples or more"),
        (torch.zeros(9, 4), torch.zeros(9), r"expected \(n, d\)"),
        (torch.zeros(9, 4), torch.zeros(9, 5), "4 dimensions and b 5"),
        (
            torch.zeros(9, 4),
            torch.tensor([[0.0] * 4, [0, float("nan"), 0, 0]]),
            "features b are not finite, the first in sample 1",
        ),
    ],
)
def test_unusable_features_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)

import pytest
import torch
import torch.nn.functional as F

from besttake.plan.cards import CARDS, find_card
from besttake.plan.fake_device import CARD, fake_device
from besttake.plan.meter import Meter, Throughput
from besttake.plan.rates import H200, MEASURED, by_width, rates_of


def test_a_card_without_measurements_takes_the_h200s():
    assert MEASURED.keys() <= CARDS.keys()
    assert rates_of(find_card("L4")) is rates_of(find_card("H200")) is H200


def test_the_fraction_of_attention_is_by_the_width_of_its_heads():
    assert by_width({64: 0.4, 128: 0.6}, 64) == 0.4
    assert by_width({64: 0.4, 128: 0.6}, 96) == 0.6
    assert by_width({64: 0.4, 128: 0.6}, 256) == 0.6


def seconds(amount, rate):
    return pytest.approx(H200.gaps * amount / (rate * 1e12))


def test_families_have_rates_of_their_own():
    card = CARDS["H200"]
    with fake_device(), Meter(CARD, Throughput(card)) as meter:
        large = torch.empty(8192, 8192, device=CARD)
        rounded = large.bfloat16()
        with meter.phase("half") as half:
            rounded @ rounded
        with meter.phase("single") as single:
            large @ large
        q = torch.empty(1, 12, 32768, 128, device=CARD, dtype=torch.bfloat16)
        with meter.phase("attention") as attention:
            F.scaled_dot_product_attention(q, q, q)
        clip, kernel = torch.empty(1, 256, 8, 256, 256, device=CARD), torch.empty(256, 256, 3, 3, 3, device=CARD)
        with meter.phase("convolution") as convolution:
            F.conv3d(clip, kernel)
        with meter.phase("sum") as added:
            large + large
        with meter.phase("narrow") as narrow:
            F.layer_norm(q, (128,))
            F.layer_norm(q.view(1, 24, 32768, 64), (64,))
    assert half.seconds == seconds(half.flops, card.half * H200.linear)
    assert single.seconds == seconds(single.flops, card.single * H200.linear32)
    assert attention.seconds == seconds(attention.flops, card.half * H200.attention[128])
    assert convolution.seconds == seconds(convolution.flops, card.tensor32 * H200.convolution32)
    assert added.seconds == seconds(3 * 4 * 8192**2, card.bandwidth * H200.bandwidth)
    wide = narrow.seconds * H200.narrow_norm / (H200.bandwidth + H200.narrow_norm)
    assert wide == pytest.approx(seconds(2 * q.nbytes, card.bandwidth * H200.bandwidth).expected, rel=0.1)

import torch
import torch.nn.functional as F

from besttake.plan.cards import CARDS
from besttake.plan.fake_device import CARD, fake_device
from besttake.plan.meter import Meter, Throughput

THROUGHPUT = Throughput(CARDS["H100"], efficiency=0.5)
B, HEADS, Q, K, WIDTH = 2, 3, 500, 700, 64


def test_products_and_convolutions_by_hand():
    with fake_device(), Meter(CARD, THROUGHPUT) as meter, meter.phase("work") as work:
        torch.empty(2, 3, device=CARD) @ torch.empty(3, 5, device=CARD)
        F.conv3d(torch.empty(1, 4, 6, 8, 8, device=CARD), torch.empty(16, 4, 3, 3, 3, device=CARD))
    assert work.flops == 2 * 2 * 3 * 5 + 2 * (4 * 6 * 6) * 16 * 4 * 27


def test_attention_by_hand():
    """Two products forward, 4 b h q k d; five backward, in which the scores are computed again."""
    with fake_device(), Meter(CARD, THROUGHPUT) as meter:
        shapes = ((B, HEADS, tokens, WIDTH) for tokens in (Q, K, K))
        q, k, v = (torch.empty(s, device=CARD, dtype=torch.bfloat16, requires_grad=True) for s in shapes)
        with meter.phase("forward") as forward:
            seen = F.scaled_dot_product_attention(q, k, v)
        with meter.phase("masked") as masked:
            F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(Q, K, device=CARD, dtype=torch.bool))
        with meter.phase("backward") as backward:
            seen.sum().backward()
    once = 2 * B * HEADS * Q * K * WIDTH
    assert (forward.flops, masked.flops, backward.flops) == (2 * once, 2 * once, 5 * once)
    scores = B * HEADS * Q * K * 2
    assert forward.peak - sum(t.nbytes for t in (q, k, v)) < scores / 2, "fused attention keeps no scores"


def test_memory_is_what_is_alive_and_belongs_to_whoever_claims_it():
    with fake_device(), Meter(CARD, THROUGHPUT) as meter:
        weight = torch.empty(1000, device=CARD)
        meter.claim("weights", [weight, weight[:10], torch.empty(7)])  # a view and the host's memory do not count
        with meter.phase("work") as work:
            for _ in range(3):
                made = weight * 2
            del made
        assert meter.live["weights"] == 4000
        assert meter.live.total() == 4000
    assert work.peak == 4000 + 2 * 4000  # the old product is there until the new one is
    assert work.owners == {"weights": 4000, "activations": 8000}


def test_time_is_that_of_arithmetic_or_of_reading_and_writing():
    with fake_device(), Meter(CARD, THROUGHPUT) as meter:
        large = torch.empty(8192, 8192, device=CARD, dtype=torch.bfloat16)
        with meter.phase("product") as product:
            large @ large
        with meter.phase("sum") as added:
            large + large
    assert product.seconds == 2 * 8192**3 / (989e12 * 0.5)
    assert added.seconds == 3 * 2 * 8192**2 / (3.35e12 * 0.8)


@torch.no_grad()
def test_once_costs_as_much_as_every_time():
    def work(x):
        between = torch.cat([x, x])
        return (between @ between.T)[:, :1]

    found = []
    for wrapped in (False, True):
        with fake_device(), Meter(CARD, THROUGHPUT) as meter:
            memoized = meter.memoize(work) if wrapped else work
            with meter.phase("work") as phase:
                kept = [memoized(torch.empty(rows, 300, device=CARD)).clone() for rows in (400, 400, 200, 400)]
            found.append((phase.flops, phase.seconds, phase.peak, meter.live.total(), [k.shape for k in kept]))
    assert found[0] == found[1]


def test_calls_with_gradients_are_all_run():
    calls = []
    with fake_device(), Meter(CARD, THROUGHPUT) as meter:
        memoized = meter.memoize(lambda x: calls.append(x.shape) or 2 * x)
        for _ in range(2):
            memoized(torch.empty(3, device=CARD, requires_grad=True)).sum().backward()
    assert len(calls) == 2


def test_a_real_machine_is_measured_alike():
    with Meter(torch.device("cpu"), THROUGHPUT) as meter, meter.phase("work") as work:
        torch.ones(2, 3) @ torch.ones(3, 5)
    assert (work.flops, work.peak) == (60, 4 * (6 + 15 + 10))

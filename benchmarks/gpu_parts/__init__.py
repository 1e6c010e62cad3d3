"""The parts of `benchmarks/gpu.py`: each writes its figures, by name, into the `Rows` that it is given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from timing import Rows, in_one_line

from gpu_parts.agreement import agreement
from gpu_parts.decoding import decoding
from gpu_parts.network import compiled, network
from gpu_parts.others import critic, memory_figure, plan_accuracy, speed
from gpu_parts.rates import attention, rates

Part = Callable[[Rows, bool], None]
"""Called with the rows and with whether all is tiny, on a CPU."""

MODELS = {
    "cogvideox-2b": "THUDM/CogVideoX-2b",
    "wan-1.3b": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "cogvideox-5b": "THUDM/CogVideoX-5b",
    "opensora": "hpcai-tech/OpenSora-STDiT-v3",
}

PARTS: dict[str, Part] = {
    "rates": rates,
    "attention": attention,
    "speed-cogvideox-2b": partial(speed, MODELS["cogvideox-2b"]),
    "speed-wan-1.3b": partial(speed, MODELS["wan-1.3b"]),
    "plan_accuracy": partial(plan_accuracy, "onlinevpo-wan-1.3b"),
    "agreement-tiny-cogvideox": partial(agreement, "tiny-cogvideox"),
    "decode-cogvideox-2b": partial(decoding, MODELS["cogvideox-2b"]),
    "decode-wan-1.3b": partial(decoding, MODELS["wan-1.3b"]),
    "speed-opensora": partial(speed, MODELS["opensora"]),
    "speed-cogvideox-5b": partial(speed, MODELS["cogvideox-5b"]),
    "critic-videoalign": partial(critic, "videoalign"),
    "critic-videoscore": partial(critic, "videoscore"),
    "memory_figure": memory_figure,
    "agreement-tiny-wan": partial(agreement, "tiny-wan"),
    **{f"network-{name}": partial(network, source) for name, source in MODELS.items()},
    **{f"compiled-{name}": partial(compiled, source) for name, source in MODELS.items()},
    **{f"decode-{name}": partial(decoding, MODELS[name]) for name in ("opensora", "cogvideox-5b")},
}
"""By priority: what is measured first if time is short."""

TINY: dict[str, Part] = {
    "rates": rates,
    "attention": attention,
    "speed-tiny-cogvideox": partial(speed, "tiny-cogvideox"),
    "speed-tiny-wan": partial(speed, "tiny-wan"),
    "decode-tiny-wan": partial(decoding, "tiny-wan"),
    "plan_accuracy": partial(plan_accuracy, "onlinevpo-tiny"),
    "agreement-tiny-cogvideox": partial(agreement, "tiny-cogvideox"),
    "critic-videoalign": partial(critic, "videoalign"),
    "memory_figure": memory_figure,
    "network-tiny-cogvideox": partial(network, "tiny-cogvideox"),
    "compiled-tiny-cogvideox": partial(compiled, "tiny-cogvideox"),
}
"""The same kinds, tiny on a CPU, to show that they run."""


def measure(name: str, rows: Rows, tiny: bool) -> None:
    """Run one part in this process; if it fails, its rows say why.

    Raises:
        ValueError: there is no part of this name.
    """
    parts = TINY if tiny else PARTS
    if name not in parts:
        raise ValueError(f"there is no part '{name}'; there are {', '.join(parts)}")
    try:
        parts[name](rows, tiny)
    except Exception as error:  # the other parts can still be measured
        rows["failed"] = in_one_line(error)

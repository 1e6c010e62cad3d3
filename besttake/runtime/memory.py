"""Memory that runs out: told from other faults, and what to do about it."""

from __future__ import annotations

import sys

ADVICE = (
    "lower the batch sizes (--policy.micro_batch_size 1, --rollout.batch 1), or turn on policy.gradient_checkpointing, "
    "tiling, quantize, optim.use_8bit_adam or policy.offload; `besttake plan` tells what each of them brings"
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory, of a GPU or of the machine."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's own
    return named or "DefaultCPUAllocator" in str(error)


def forget(error: BaseException) -> None:
    """Give back what a failed computation holds: the tensors in its frames, and what PyTorch has set aside."""
    error.__traceback__ = None
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        torch.cuda.empty_cache()

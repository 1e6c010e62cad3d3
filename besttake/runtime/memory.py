"""Out-of-memory errors: detection, advice, and cleaning up after them."""

from __future__ import annotations

import sys

ADVICE = (
    "lower the batch sizes (--policy.micro_batch_size 1, --rollout.batch 1), or turn on policy.gradient_checkpointing, "
    "tiling, quantize, optim.use_8bit_adam or policy.offload; `besttake plan` shows what each of them saves"
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a GPU or the machine is out of memory."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's own
    return named or "DefaultCPUAllocator" in str(error)


def free_memory(error: BaseException) -> None:
    """Free the memory of a failed computation: the tensors in its stack frames, and PyTorch's cache."""
    error.__traceback__ = None
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        torch.cuda.empty_cache()

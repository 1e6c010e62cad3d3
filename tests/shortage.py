"""A backward pass that truly runs out of memory, in a process of its own: `python -m tests.shortage MODEL`, on Linux.

Tensors are given to the system and back one by one (`MALLOC`), so that a limit on the process is one on them. The
backward pass has 14 MB more than the forward pass holds; four clips at once take some 67 MB there, one clip takes 3.
"""

import json
import resource
import sys
from pathlib import Path

import torch

from besttake.algorithms.errors import sft_error
from besttake.models import load_model
from besttake.models.policy import Policy, PolicyConfig

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""Variables of the environment, for glibc."""

ROOM = 14 << 20


def main() -> None:
    """Print how many clips are at once in the end, and how far gradients are from those of enough memory."""
    policy = Policy(load_model(sys.argv[1]), PolicyConfig(rank=2, gradient_checkpointing="full"))
    generator, model = torch.Generator().manual_seed(0), policy.model
    x_0, noise = torch.randn(2, 4, *model.latent_shape(17, 64, 64), generator=generator)
    inputs = x_0, model.encode_prompts(["a red ball"] * 4), torch.rand(4, generator=generator), noise
    whole, halved = gradients(policy, inputs, short=False), gradients(policy, inputs, short=True)
    far = max(
        float((one - other).abs().max() / one.abs().max().clamp(min=1e-12))
        for one, other in zip(whole, halved, strict=True)
    )
    print(json.dumps({"micro_batch_size": policy.micro_batch_size, "far": far}))


def gradients(policy: Policy, inputs: tuple, short: bool) -> list[torch.Tensor]:
    loss = sft_error(policy, *inputs).sum()
    assert policy.micro_batch_size == 0  # there was room for the forward pass
    if short:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, resource.RLIM_INFINITY))
    loss.backward()
    found = [weight.grad.clone() for weight in policy.trainable.values()]
    policy.model.denoiser.zero_grad()
    return found


if __name__ == "__main__":
    main()

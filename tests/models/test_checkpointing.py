"""Checkpointed blocks have the gradients of plain ones, and recompute what their level says."""

from contextlib import nullcontext

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.utils._python_dispatch import TorchDispatchMode

from besttake.models import load_model
from besttake.models.checkpointing import LEVELS, is_attention
from besttake.models.compiled import compile_blocks
from besttake.models.policy import Policy, PolicyConfig
from tests.fixtures import random_pipeline


class Attentions(TorchDispatchMode):
    """Counts forward calls of attention kernels."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += is_attention(func)
        return func(*args, **kwargs or {})


def gradients(policy, attentions=None):
    model = policy.model
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(2, *model.latent_shape(*model.default_size()), generator=generator)
    condition = model.encode_prompts(["a red ball", "a blue ball"])
    with attentions or nullcontext():
        prediction = policy.predict(x_t, torch.full((2,), 0.5), condition)
        prediction.float().square().mean().backward()
    found = {name: weight.grad for name, weight in policy.trainable.items()}
    for weight in policy.trainable.values():
        weight.grad = None
    return found


def made(folder):
    policy = Policy(load_model(str(folder)), PolicyConfig(rank=2))
    for weight in policy.trainable.values():
        weight.data += 0.05 * torch.randn_like(weight)
    return policy


def test_selective_recomputes_all_but_attention_and_full_everything(model_folder, family):
    policy = made(model_folder(family))
    found, counts = {}, {}
    for level in LEVELS:
        policy.set_gradient_checkpointing(level)
        found[level] = gradients(policy, attentions := Attentions())
        counts[level] = attentions.count
    assert counts["none"] > 0
    assert counts == {"none": counts["none"], "selective": counts["none"], "full": 2 * counts["none"]}
    for level in LEVELS:
        torch.testing.assert_close(found[level], found["none"])


@pytest.mark.parametrize("level", ["selective", "full"])
def test_compiled_blocks_recompute_the_same(tmp_path, level):
    """The backward graphs that PyTorch makes of compiled and checkpointed blocks recompute attention, or do not."""
    random_pipeline("tiny-cogvideox", layers=1).save_pretrained(tmp_path)  # a graph takes seconds
    policy, backward = made(tmp_path), []
    plain = gradients(policy)

    def note(graph, inputs):
        backward.extend(str(item) for node in graph.graph.nodes for item in (node.target, *node.args))
        return graph.forward

    torch._dynamo.reset()
    backend = aot_autograd(
        fw_compiler=lambda graph, _: graph.forward, bw_compiler=note, partition_fn=min_cut_rematerialization_partition
    )
    policy.set_gradient_checkpointing(level)
    compile_blocks(policy.model.denoiser, backend=backend)
    torch.testing.assert_close(gradients(policy), plain)
    assert any("attention" in name for name in backward)
    assert any(map(is_attention, backward)) == (level == "full")

"""Gradients of a run's losses, and the optimizer steps that they make."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from besttake.models.policy import Policy
from besttake.models.sharding import full_tensor, is_sharded
from besttake.runtime import interruption
from besttake.runtime.distributed import (
    backward,
    bit_checksum,
    check_equal,
    is_single_process,
    raise_on_all,
    weight_shard,
)
from besttake.training.config import LOWER_LR, OptimConfig, adamw


class Optimization:
    """AdamW on a policy: gradient accumulation, clipping, a learning-rate schedule, and the weights' EMA.

    Attributes:
        updates: number of optimizer steps.
        rate: learning rate of the last step.
        updating: whether an optimizer step is in progress, so that the weights belong to no completed step.
    """

    def __init__(self, config: OptimConfig, policy: Policy):
        self.config, self.policy = config, policy
        self.optimizer = adamw(config, policy.trainable.values())
        self.updates, self.rate, self.updating = 0, config.lr, False
        self._gradients_compared = False

    def backward(self, loss: Tensor, step: int) -> None:
        """Add the gradient of a step's loss to those of the update.

        Raises:
            FloatingPointError: the loss is not finite; or, at the first call, its gradient.
            ValueError: at the first call, the processes have different gradients.
        """
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss of step {step} is {loss.item()}; {LOWER_LR}")
        weights = list(self.policy.trainable.values())
        backward(loss / self.config.gradient_accumulation_steps, weights)
        if not self._gradients_compared:
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            _finite_norm(nn.utils.get_total_norm(gradients), step)
            self.compare("the gradients", gradients)
            self._gradients_compared = True

    def schedule(self, step: int, steps: int, elapsed: float) -> None:
        """Set the learning rate of a step: warm-up, then constant, then linear decay to 0 in the last steps or minutes.

        Args:
            elapsed: fraction of the run's time limit that has passed; 0 without a limit.
        """
        config = self.config
        factors = [1.0, (self.updates + 1) / max(1, config.warmup_steps)]
        if config.decay:
            factors += [(steps - step) / (config.decay * steps), (1 - elapsed) / config.decay]
        self.rate = config.lr * min(factors)

    def completes(self, step: int) -> bool:
        """Whether an update's gradients are complete after a step."""
        return (step + 1) % self.config.gradient_accumulation_steps == 0

    def rescale(self, step: int) -> None:
        """Average the gradients of the last steps over their number, where they are too few for a whole update."""
        steps = self.config.gradient_accumulation_steps
        for weight in self.policy.trainable.values():
            if weight.grad is not None:  # was divided by `steps`, but fewer were summed
                weight.grad *= steps / (step % steps)

    def clip(self, step: int) -> dict[str, float]:
        """Clip the gradient; its norm and the learning rate, to log. Empty if there is no gradient.

        Raises:
            FloatingPointError: the gradient is not finite; on every process if it is so on one.
        """
        parameters = [p for p in self.policy.trainable.values() if p.grad is not None]
        if not parameters:
            return {}
        norm = _finite_norm(nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm), step)
        return {"train/grad_norm": norm, "train/lr": self.rate}

    def apply(self) -> None:
        """Take the optimizer step and update the EMA. Signals are blocked until `finish`, when the step is complete."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        interruption.block_signals()
        self.updating = True
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1
        self.policy.update_ema(self.updates)

    def finish(self) -> bool:
        """Unblock signals after an optimizer step; whether there was one."""
        if not self.updating:
            return False
        self.updating = False
        interruption.unblock_signals()
        return True

    def compare(self, what: str, tensors: Sequence[Tensor]) -> None:
        """ValueError on every process unless all processes with the same shard have equal tensors."""
        if not is_single_process():
            check_equal({what: bit_checksum(tensors)}, weight_shard() if self.is_sharded else 0)

    @property
    def is_sharded(self) -> bool:
        """Whether the trained weights are sharded, so that every process writes a part of each checkpoint."""
        return any(is_sharded(weight) for weight in self.policy.trainable.values())


def _finite_norm(norm: Tensor, step: int) -> float:
    """The gradient's norm as a float; FloatingPointError on every process if it is not finite on one."""
    number = float(full_tensor(norm))
    with raise_on_all():
        if not math.isfinite(number):
            raise FloatingPointError(f"the gradient of step {step} has norm {number}; {LOWER_LR}")
    return number

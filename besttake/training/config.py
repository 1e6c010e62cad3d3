"""Settings of a training run that are common to all algorithms."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from besttake.evaluation.before_after import EvaluateConfig
from besttake.models import Quantization
from besttake.models.policy import PolicyConfig
from besttake.runtime.configuration import require
from besttake.runtime.distributed import ParallelConfig
from besttake.sampling.rollout import RolloutConfig
from besttake.training.trackers import TrackerName
from besttake.training.validation import ValidationConfig

LOWER_LR = "lower optim.lr and give another --out (checkpoints only resume with the same settings)"
"""Advice for losses, gradients and weights that are not finite."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, learning-rate schedule, gradient clipping and accumulation."""

    lr: float = 1e-4
    """Learning rate of AdamW."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    warmup_steps: int = 10
    """Learning-rate warm-up, in updates."""
    decay: float = 0.0
    """Learning-rate decay: final fraction of the steps (or minutes) over which it falls linearly to zero."""
    max_grad_norm: float = 1.0
    """Gradient clipping: maximum norm of the gradient."""
    gradient_accumulation_steps: int = 1
    """Gradient accumulation: steps per update, whose gradients are averaged."""
    use_8bit_adam: bool = False
    """8-bit AdamW (Dettmers et al. 2022, arXiv 2110.02861): a quarter of the moments' memory."""

    def __post_init__(self):
        require(self.lr > 0, "lr", self.lr, "a number above 0")
        require(self.max_grad_norm > 0, "max_grad_norm", self.max_grad_norm, "a number above 0")
        require(
            self.gradient_accumulation_steps >= 1,
            "gradient_accumulation_steps",
            self.gradient_accumulation_steps,
            "1 or more",
        )
        require(0 <= self.decay <= 1, "decay", self.decay, "a fraction of the steps, in [0, 1]")


@dataclass(frozen=True)
class TrainConfig:
    """Settings common to all algorithms."""

    model: str = "tiny-cogvideox"
    """Model: a diffusers pipeline (folder or hub id), tiny-cogvideox, tiny-wan, or ./my_family.py:FOLDER."""
    out: Path = Path("runs/run")
    """Run folder; the same command resumes the run in it."""
    steps: int = 100
    """Training steps."""
    seed: int = 0
    """Seed of all random numbers."""
    minutes: float = 0.0
    """Time limit in minutes of training; 0 = none."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the frozen base, and of a full fine-tune's forward passes. Trained weights are float32."""
    quantize: Quantization = "none"
    """Quantization of the frozen base below a LoRA."""
    vae_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the autoencoder; auto: the family's own, which is float32 for some (Wan)."""
    attention: str = "auto"
    """Attention backend of diffusers (native, _native_cudnn, _flash_3, flash, xformers, ...); auto, on a GPU: the
    fastest of the exact ones that are installed."""
    tiling: bool = False
    """VAE tiling: less memory, but seams may be faintly visible."""
    offload_idle: bool = False
    """Offload idle networks to the CPU: the denoiser while decoding and scoring, critics while training."""
    cache: Path | None = None
    """Cache folder for text embeddings and latents of real clips; runs may share it. On a GPU, by default OUT/cache."""
    cache_limit: float = 50.0
    """Maximum size of the cache in GB; the least recently used files are deleted."""
    save_every: int = 50
    """Steps between checkpoints."""
    log: tuple[TrackerName, ...] = ("tensorboard",)
    """Trackers: tensorboard, wandb, trackio; metrics.jsonl is always written."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """Trained weights, and memory use."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer (AdamW) and learning-rate schedule."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Distributed training."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Validation passes during training."""
    evaluation: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Evaluation after training, which compares the model before and after."""

    def __post_init__(self):
        require(self.steps >= 1, "steps", self.steps, "1 or more")
        require(self.save_every >= 1, "save_every", self.save_every, "1 or more")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        require(self.minutes >= 0, "minutes", self.minutes, "0 or more")
        require(len(set(self.log)) == len(self.log), "log", self.log, "each tracker once")
        require(self.cache_limit > 0, "cache_limit", self.cache_limit, "a positive number of GB")
        if self.offload_idle and self.policy.offload:
            raise ValueError(
                "offload_idle and policy.offload are both set; the first moves whole networks, the second "
                "single blocks: leave out one of them"
            )
        if self.quantize != "none" and self.policy.offload:
            raise ValueError(
                f"quantize is {self.quantize} and policy.offload is set; quantized weights cannot be offloaded: "
                "leave out one of them"
            )
        if self.quantize != "none" and self.policy.train == "full":
            raise ValueError(
                f"quantize is {self.quantize} and policy.train is full; quantized weights cannot be trained: "
                "set policy.train to lora, or leave out quantize"
            )
        self._check_fp8()
        self._check_parallel()

    @property
    def rollout_config(self) -> RolloutConfig:
        """The run's `rollout` settings, or the defaults if its algorithm has none."""
        return getattr(self, "rollout", RolloutConfig())

    @property
    def validation_config(self) -> ValidationConfig:
        """The validation settings, with those missing from its `rollout` taken from the run's."""
        return replace(self.validation, rollout=self.validation.rollout.over(self.rollout_config))

    @property
    def evaluation_config(self) -> EvaluateConfig:
        """The evaluation settings, with those missing from its `rollout` taken from the run's."""
        return replace(self.evaluation, rollout=self.evaluation.rollout.over(self.rollout_config))

    def _check_fp8(self) -> None:
        """ValueError if rollouts in float8 are asked for without plain weights in bfloat16."""
        rollouts = (self.rollout_config, self.validation_config.rollout, self.evaluation_config.rollout)
        other = {
            "dtype: float32": self.dtype != "bfloat16",
            "quantize": self.quantize != "none",
            "policy.offload": self.policy.offload,
            "policy.train: full": self.policy.train == "full",
            "parallel.shard": self.parallel.shard > 1,
        }
        if any(rollout.fp8 for rollout in rollouts) and (conflicts := [name for name, given in other.items() if given]):
            raise ValueError(
                f"rollout.fp8 needs plain weights in bfloat16 and does not work with {', '.join(conflicts)}"
            )

    def _check_parallel(self) -> None:
        """ValueError if a setting is not supported with sharded weights."""
        shard, full = self.parallel.shard, self.policy.train == "full"
        sharded = {
            "quantize": self.quantize != "none",
            "offload_idle": self.offload_idle,
            "policy.offload": self.policy.offload,
            "policy.reference_device: cpu": full and self.policy.reference_device == "cpu",
            "optim.use_8bit_adam": full and self.optim.use_8bit_adam,
        }
        if shard > 1 and (conflicts := [setting for setting, chosen in sharded.items() if chosen]):
            raise ValueError(
                f"parallel.shard is {shard}, which does not work with {', '.join(conflicts)}; leave out one of them"
            )


def adamw(config: OptimConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer; ValueError if `use_8bit_adam` is set and bitsandbytes is not installed."""
    kind: Any = torch.optim.AdamW
    if config.use_8bit_adam:
        try:
            kind = importlib.import_module("bitsandbytes.optim").AdamW8bit
        except ImportError as error:
            raise ValueError("optim.use_8bit_adam needs bitsandbytes: pip install 'besttake[quantize]'") from error
    return kind(parameters, config.lr, betas=config.betas, weight_decay=config.weight_decay)

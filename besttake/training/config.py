"""What every training recipe has, whatever its algorithm."""

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

LOWER = "lower optim.lr, and give another --out: the checkpoints are of these settings"
"""What to do where numbers are no longer finite."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and what surrounds it."""

    lr: float = 1e-4
    """Learning rate of AdamW."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    warmup_steps: int = 10
    """Learning-rate warm-up: updates over which it rises."""
    decay: float = 0.0
    """Learning-rate decay: the last share of the steps (or minutes), over which it falls to zero."""
    max_grad_norm: float = 1.0
    """Gradient clipping: largest norm of the gradient."""
    gradient_accumulation_steps: int = 1
    """Steps per update; their gradients are averaged."""
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
        require(0 <= self.decay <= 1, "decay", self.decay, "a share of the steps, in [0, 1]")


@dataclass(frozen=True)
class TrainConfig:
    """What every training recipe has."""

    model: str = "tiny-cogvideox"
    """Model: a diffusers pipeline (folder or hub id), tiny-cogvideox, tiny-wan, or ./my_family.py:FOLDER."""
    out: Path = Path("runs/run")
    """Run folder; the same command on the same folder resumes."""
    steps: int = 100
    """Training steps."""
    seed: int = 0
    """Seed of all random numbers."""
    minutes: float = 0.0
    """Time limit in minutes of training; 0 = none."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the frozen base and of a full fine-tune's passes. Trained weights and losses are float32."""
    quantize: Quantization = "none"
    """Quantization of the denoiser's blocks below a LoRA."""
    tiling: bool = False
    """VAE tiling: less memory, for faint seams."""
    offload_idle: bool = False
    """Offload idle networks to the CPU. The denoiser while decoding and scoring, critics while training."""
    cache: Path | None = None
    """Cache folder, for text embeddings and latents of real clips. Several runs may share it."""
    cache_limit: float = 50.0
    """Size limit of the cache in GB; least recently used files are deleted."""
    save_every: int = 50
    """Steps between checkpoints."""
    log: tuple[TrackerName, ...] = ("tensorboard",)
    """Trackers: tensorboard, wandb, trackio; metrics.jsonl is always written."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """What is trained of the model, and in how much memory."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizer, AdamW, and the learning rate's course."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How several processes share the work."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Validation passes while the run trains."""
    evaluation: EvaluateConfig = field(default_factory=EvaluateConfig)
    """The evaluation after training, before against after."""

    def __post_init__(self):
        require(self.steps >= 1, "steps", self.steps, "1 or more")
        require(self.save_every >= 1, "save_every", self.save_every, "1 or more")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        require(self.minutes >= 0, "minutes", self.minutes, "0 or more")
        require(len(set(self.log)) == len(self.log), "log", self.log, "each tracker once")
        require(self.cache_limit > 0, "cache_limit", self.cache_limit, "a positive number of GB")
        if self.offload_idle and self.policy.offload:
            raise ValueError("offload_idle moves whole networks; leave it out where policy.offload splits them")
        if self.quantize != "none" and self.policy.offload:
            raise ValueError(
                f"quantize is {self.quantize}: weights in few bits are not kept on the CPU; leave out "
                "policy.offload, or quantize"
            )
        if self.quantize != "none" and self.policy.train == "full":
            raise ValueError(
                f"quantize is {self.quantize}, and policy.train full; weights in few bits cannot be trained"
            )
        self._check_parallel()

    @property
    def rollout_config(self) -> RolloutConfig:
        """How the run samples, or the size of its clips."""
        return getattr(self, "rollout", RolloutConfig())

    @property
    def validation_config(self) -> ValidationConfig:
        """How the run is validated, with what is left out of its `rollout` filled in."""
        return replace(self.validation, rollout=self.validation.rollout.over(self.rollout_config))

    @property
    def evaluation_config(self) -> EvaluateConfig:
        """How the run is evaluated, with what is left out of its `rollout` filled in."""
        return replace(self.evaluation, rollout=self.evaluation.rollout.over(self.rollout_config))

    def _check_parallel(self) -> None:
        """Refuse what does not go with sharded weights."""
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
                f"parallel.shard is {shard}, which does not go with {', '.join(conflicts)}; leave out one or the other"
            )


def adamw(config: OptimConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer; ValueError if eight bits are asked for and bitsandbytes is not installed."""
    kind: Any = torch.optim.AdamW
    if config.use_8bit_adam:
        try:
            kind = importlib.import_module("bitsandbytes.optim").AdamW8bit
        except ImportError as error:
            raise ValueError("optim.use_8bit_adam needs bitsandbytes: pip install 'besttake[quantize]'") from error
    return kind(parameters, config.lr, betas=config.betas, weight_decay=config.weight_decay)

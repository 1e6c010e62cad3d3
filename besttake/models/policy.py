"""The policy (a model and its trained weights) and its reference model.

With LoRA, policy and reference are two adapters on one base model, of which one is active at a time. With full
fine-tuning the reference is a frozen copy of the denoiser.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.hooks import apply_group_offloading
from peft import get_peft_model_state_dict
from torch import Tensor, nn

from besttake.data.files import normalise_files
from besttake.models import VideoModel
from besttake.models.checkpointing import LEVELS, GradientCheckpointing, set_gradient_checkpointing
from besttake.models.compiled import compile_blocks, stop_compiling
from besttake.models.lora import activate, adapter_layers, add_adapters
from besttake.models.quantization import blocks, plain_tensors
from besttake.models.sharding import experts_of, gather_weights, is_sharded, offload_blocks, shard, split_tokens
from besttake.runtime.distributed import is_main, is_single_process
from besttake.runtime.memory import free_memory, out_of_memory
from besttake.runtime.renamed import new_value
from besttake.types import Condition, Latent, Time

HASH_PREFIX = "all-"
"""Prefix of `weights_hash`, which covers all weights; `legacy_weights_hash` has none."""

CHUNK = 1 << 20
"""Bytes that are summed at once, so that they fit into a CPU's cache."""


def weights_hash(module: nn.Module) -> str:
    """A hash of all weights of a network, the same on every device. Hashes 3 GB per second and core."""
    sums = [(name, checksum(weight)) for name, weight in module.state_dict().items()]
    return HASH_PREFIX + hashlib.sha256(repr(sums).encode()).hexdigest()[:16]


def legacy_weights_hash(module: nn.Module) -> str:
    """The hash in older checkpoints, which covers only the first and last element of every tensor."""
    ends = [
        (name, part.flatten()[[0, -1]].float().tolist())
        for name, weight in module.state_dict().items()
        for part in plain_tensors(weight)
    ]
    return hashlib.sha256(repr(ends).encode()).hexdigest()[:16]


def checksum(tensor: Tensor) -> str:
    """Fletcher's checksum modulo 2**64 of a tensor's bits, with its dtype and shape.

    Its two sums, of the 64-bit words and of the words times their positions, are exact in any order on any device.
    """
    sums = []
    for part in plain_tensors(tensor.detach()):
        # a single element counts as contiguous with any stride, but can be viewed as bytes only with stride 1
        raw = part.contiguous().as_strided((part.numel(),), (1,)).view(torch.uint8)
        places = torch.arange(1, CHUNK // 8 + 1, device=part.device)
        first, second = torch.zeros(2, dtype=torch.int64, device=part.device)
        for start in range(0, len(raw), CHUNK):
            chunk = raw[start : start + CHUNK]
            words = nn.functional.pad(chunk, (0, -len(chunk) % 8)).view(torch.int64)
            first += (total := words.sum())
            second += (words * places[: len(words)]).sum() + total * start
        sums.append((str(part.dtype), tuple(part.shape), first.item(), second.item()))
    return repr(sums)


@dataclass(frozen=True)
class PolicyConfig:
    """Trained weights, and memory use."""

    train: Literal["lora", "full"] = "lora"
    """Trained weights: LoRA matrices, or all weights (full)."""
    rank: int = 32
    """Rank of the LoRA matrices."""
    alpha: float | None = None
    """Alpha of LoRA, whose scale is alpha / rank; by default the rank."""
    ema_decay: float = 0.0
    """EMA decay of the policy; the EMA weights are saved and evaluated; 0 = no EMA. The decay warms up: after n updates
    it is at most (1 + n) / (10 + n)."""
    gradient_checkpointing: GradientCheckpointing = "none"
    """Gradient checkpointing: full recomputes blocks in the backward pass (a third more compute), selective all but
    their attention, none nothing; auto takes the fastest that fits the card according to `besttake plan`."""
    micro_batch_size: int = 0
    """Clips per micro-batch of the loss; 0 = all of a step. All micro-batches but the last are predicted twice."""
    halve_on_oom: bool = True
    """When memory runs out, halve micro_batch_size, then checkpoint more, with a warning."""
    offload: bool = False
    """Offload the frozen base below a LoRA to the CPU; each block is moved to the device when it is run."""
    reference_device: Literal["device", "cpu"] = "device"
    """Where a full fine-tune's reference is kept. With cpu, each block is moved to the device when it is run."""

    def __post_init__(self):
        level = new_value("policy.gradient_checkpointing", self.gradient_checkpointing)
        object.__setattr__(self, "gradient_checkpointing", level)
        if level not in (*LEVELS, "auto"):
            raise ValueError(f"gradient_checkpointing is {level!r}; expected {', '.join(LEVELS)} or auto")
        if self.train == "full" and self.offload:
            raise ValueError("offload is for LoRA; a full fine-tune has policy.reference_device and parallel.shard")
        if self.train == "lora" and self.reference_device == "cpu":
            raise ValueError(
                "reference_device is cpu and train is lora; with LoRA the reference is only an adapter, so leave "
                "reference_device out"
            )
        if self.micro_batch_size < 0:
            raise ValueError(f"micro_batch_size is {self.micro_batch_size}; expected 1 or more, or 0 for all clips")
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}; expected 1 or more")
        if self.alpha is not None and self.alpha <= 0:
            raise ValueError(f"alpha is {self.alpha}; expected a positive number, or leave it out")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; expected a decay in [0, 1)")


def ema_decay_at(decay: float, count: int) -> float:
    """The EMA decay at the `count`-th update (from 1), with the warm-up of diffusers' `EMAModel`.

    The first update copies the weights. The decay then rises towards `decay`: after n updates it is at most
    (1 + n) / (10 + n), so that the EMA averages about the last tenth of the updates.
    """
    return min(decay, count / (9 + count)) if count > 1 else 0.0


class Policy:
    """The model being trained.

    Attributes:
        trainable: name -> parameter, all float32.
        micro_batch_size: clips per micro-batch of the loss; 0 = all.
        gradient_checkpointing: what blocks keep for the backward pass.
        reference: the reference model; equal to the policy until the first update.
        on_predict: called with the inputs of each prediction of the policy, if set.
    """

    def __init__(self, model: VideoModel, config: PolicyConfig = PolicyConfig(), seed: int = 0):
        """
        Args:
            model: modified in place: a LoRA is added to it, or its weights are trained.
            config: by default a LoRA.
            seed: for the initial LoRA weights.
        """
        self.model, self.config, self.micro_batch_size, self._clips = model, config, config.micro_batch_size, 0
        denoiser, self.dtype = model.denoiser, model.pipeline.transformer.dtype
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapters = add_adapters(model, config.rank, config.alpha or config.rank) if config.train == "lora" else None
        if adapters is None:
            reference = copy.deepcopy(denoiser)  # before sharding, since sharded modules cannot be copied
            for part in (reference, denoiser):
                split_tokens(part)
                shard(part)
                part.float()
            denoiser.requires_grad_(True)
            self.trainable = dict(denoiser.named_parameters())
            self.reference: Reference = ModelReference(self, reference)
        else:
            self.trainable, reference_weights = adapters
            weights = [*self.trainable.values(), *reference_weights.values()]
            split_tokens(denoiser)
            offload_blocks(denoiser, str(model.device), weights) if config.offload else shard(denoiser, weights)
            self.reference = AdapterReference(self, reference_weights)
        self.gradient_checkpointing: GradientCheckpointing = "none"
        if config.gradient_checkpointing != "none":
            self.set_gradient_checkpointing(config.gradient_checkpointing)
        self.on_predict: Callable[[Latent, Time, Condition], None] | None = None
        self.ema = {n: p.detach().clone() for n, p in self.trainable.items()} if config.ema_decay else {}
        self._trained_weights: dict[str, Tensor] = {}

    def predict(self, x_t: Latent, t: Time, condition: Condition) -> Latent:
        """The policy's prediction at `x_t`."""
        if self.on_predict:
            self.on_predict(x_t, t, condition)
        return self.predict_by(self.model.denoiser, x_t, t, condition)

    def predict_by(self, denoiser: nn.Module, x_t: Latent, t: Time, condition: Condition) -> Latent:
        """A denoiser's prediction; float32 weights of a full fine-tune are autocast to the model's dtype."""
        mixed = self.config.train == "full" and self.dtype != torch.float32
        with torch.autocast(x_t.device.type, self.dtype) if mixed else nullcontext():
            return self.model.predict(denoiser, x_t, t, condition)

    def micro_batch(self, clips: int) -> int:
        """The size of a micro-batch for a loss of so many clips."""
        self._clips = min(self.micro_batch_size or clips, clips)
        return self._clips

    def set_gradient_checkpointing(self, level: GradientCheckpointing) -> None:
        """Set what blocks keep for the backward pass."""
        self.gradient_checkpointing = "full" if level == "auto" else level
        for part in self.model.denoisers.values():
            options = stop_compiling(part)
            set_gradient_checkpointing(part, self.gradient_checkpointing)
            if options is not None:
                compile_blocks(part, **options)

    @property
    def can_save_memory(self) -> bool:
        """Whether `save_memory` has something left to do."""
        more = self._clips > 1 or self.gradient_checkpointing != "full"
        return self.config.halve_on_oom and more and is_single_process()

    def save_memory(self) -> str:
        """Halve the micro-batch or, if it is one clip, recompute more in the backward pass; says what was done."""
        if self._clips > 1:
            clips, self.micro_batch_size = self._clips, self._clips // 2
            return f"with a micro-batch of {clips} clips: policy.micro_batch_size is now {self.micro_batch_size}"
        self.set_gradient_checkpointing(LEVELS[LEVELS.index(self.gradient_checkpointing) + 1])
        return f"with a micro-batch of 1 clip: policy.gradient_checkpointing is now {self.gradient_checkpointing}"

    @torch.no_grad()
    def update_ema(self, updates: int) -> None:
        """Update the EMA weights, in float32, after the `updates`-th update."""
        decay = ema_decay_at(self.config.ema_decay, updates)
        for name, kept in self.ema.items():
            kept.lerp_(self.trainable[name].detach(), 1 - decay)

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Context in which the policy has its EMA weights, if there are any."""
        self._trained_weights = {
            name: parameter.detach().clone() for name, parameter in self.trainable.items() if self.ema
        }
        try:
            _copy(self.ema, self.trainable)
            yield
        finally:
            _copy(self._trained_weights, self.trainable)
            self._trained_weights = {}

    @property
    def current(self) -> Mapping[str, Tensor]:
        """The trained weights, also within `ema_weights`."""
        return self._trained_weights or self.trainable

    @contextmanager
    @torch.no_grad()
    def merged(self) -> Iterator[None]:
        """Context in which the LoRA is merged into the base weights, so that sampling is as fast as the base model.

        The sum is rounded once to the base's dtype, which in bfloat16 is as close as computing the adapter beside it
        (docs/speed.md). Afterwards the weights are restored, to the bit. A quantized or sharded base is not merged.
        """
        layers: list[Any] = list(adapter_layers(self.model.denoiser)) if self.config.train == "lora" else []
        weights = [layer.get_base_layer().weight for layer in layers]
        if any(hasattr(weight, "__tensor_flatten__") for weight in weights):
            layers = weights = []
        try:
            kept = [weight.clone() for weight in weights]
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            layers = weights = kept = []  # computed beside the base, which takes no copies
            free_memory(error)
        try:
            for layer, weight in zip(layers, weights, strict=True):
                weight.copy_(weight.float() + layer.get_delta_weight("policy"))
                layer._disable_adapters = True
            yield
        finally:
            for layer, weight, before in zip(layers, weights, kept, strict=True):
                weight.copy_(before)
                layer._disable_adapters = False

    def save(self, folder: Path) -> None:
        """Save the trained weights: for `pipe.load_lora_weights(folder)`, or in full as `folder/transformer`."""
        with self.ema_weights():
            if self.config.train == "full":
                for name, denoiser in self.model.denoisers.items():
                    whole = gather_weights(denoiser)
                    if is_main():
                        whole.save_pretrained(folder / name)
                        normalise_files(folder / name)
                return
            if not is_main():
                return
            layers, configs = {}, {}
            for name, denoiser in self.model.denoisers.items():
                weights = get_peft_model_state_dict(denoiser, adapter_name="policy")
                layers[name] = {key: tensor.detach().clone() for key, tensor in weights.items()}
                config = denoiser.peft_config["policy"].to_dict()
                configs[name] = {key: sorted(x) if isinstance(x, set) else x for key, x in config.items()}
            self.model.save_lora(folder, layers, configs)
            normalise_files(folder)


@dataclass(frozen=True)
class UntrainedPolicy:
    """A model without training, with the sampling interface of `Policy`."""

    model: VideoModel

    def predict(self, x_t: Latent, t: Time, condition: Condition) -> Latent:
        """The model's prediction at `x_t`."""
        return self.model.predict(self.model.denoiser, x_t, t, condition)

    def merged(self) -> AbstractContextManager:
        """There is no LoRA to merge."""
        return nullcontext()


class Reference(ABC):
    """The reference model of DPO.

    Attributes:
        weights: weights saved in checkpoints, by the names of `Policy.trainable`.
        networks: networks of its own on the device.
    """

    policy: Policy
    weights: Mapping[str, Tensor]
    networks: Sequence[nn.Module] = ()

    @abstractmethod
    def predict(self, x_t: Latent, t: Time, condition: Condition) -> Latent:
        """The reference's prediction at `x_t`, without gradient."""

    def refresh(self) -> None:
        """Copy the current policy: OnlineVPO's curriculum preference update (section 3.3)."""
        _copy(self.policy.trainable, self.weights)
        self.weights_changed()

    @torch.no_grad()
    def ema(self, decay: float) -> None:
        """theta_ref <- decay theta_ref + (1 - decay) theta (RealDPO), in float32: in bfloat16 .999 rounds to 1."""
        for name, weight in self.weights.items():
            weight.lerp_(self.policy.trainable[name].detach().to(weight.device), 1 - decay)
        self.weights_changed()

    @abstractmethod
    def weights_changed(self) -> None:
        """Must be called after `weights` have changed."""


class AdapterReference(Reference):
    """The reference of a LoRA: a second adapter on the same base or, until its first change, the base alone."""

    def __init__(self, policy: Policy, weights: Mapping[str, Tensor]):
        self.policy, self.weights, self._adapter = policy, weights, ""

    @torch.no_grad()
    def predict(self, x_t: Latent, t: Time, condition: Condition) -> Latent:
        denoiser = self.policy.model.denoiser
        activate(denoiser, self._adapter)
        try:
            return self.policy.predict(x_t, t, condition)
        finally:
            activate(denoiser, "policy")

    def weights_changed(self) -> None:
        self._adapter = "reference"


class ModelReference(Reference):
    """The reference of a full fine-tune: a frozen copy, the linear layers of its blocks in the compute dtype.

    Autocast rounds the policy's float32 weights to that dtype, so equal weights give bit-identical predictions, and the
    copy takes half the memory. `weights` are then a float32 copy on the CPU, which the EMA needs.
    """

    def __init__(self, policy: Policy, denoiser: Any):
        self.policy, self.denoiser = policy, denoiser.requires_grad_(False).eval()
        self._held = dict(denoiser.named_parameters())
        self.weights = self._held
        if policy.dtype != torch.float32 and not any(map(is_sharded, self._held.values())):
            self.weights = {name: weight.detach().cpu().clone() for name, weight in self._held.items()}
            for module in (
                module for part in experts_of(denoiser) for block in blocks(part) for module in block.modules()
            ):
                if isinstance(module, nn.Linear):
                    module.to(policy.dtype)  # as autocast does; layers outside the blocks depend on their own dtype
        if policy.config.reference_device == "cpu":
            self._offload_to_cpu()
        else:
            self.networks = experts_of(denoiser)

    @torch.no_grad()
    def predict(self, x_t: Latent, t: Time, condition: Condition) -> Latent:
        return self.policy.predict_by(self.denoiser, x_t, t, condition)

    def weights_changed(self) -> None:
        if self.weights is not self._held:
            _copy(self.weights, self._held)

    def _offload_to_cpu(self) -> None:
        device = self.policy.model.device
        for part in experts_of(self.denoiser):
            apply_group_offloading(part, device, num_blocks_per_group=1, use_stream=device.type == "cuda")


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, tensor in source.items():
        target[name].copy_(tensor)

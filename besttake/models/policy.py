"""A model plus what is trained of it, and the reference it is held against.

With LoRA the base model exists once: policy and reference are two adapters on it, and predicting only changes which
one is active. With full fine-tuning the reference is a frozen copy of the denoiser.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.hooks import apply_group_offloading
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from besttake.data.files import set_file_mode
from besttake.models import VideoModel
from besttake.models.quantization import blocks, plain_tensors
from besttake.models.sharding import experts_of, gather_weights, is_sharded, offload_blocks, shard, split_tokens
from besttake.runtime.distributed import is_main, is_single_process
from besttake.runtime.memory import out_of_memory
from besttake.types import Condition, Latent, Time

HASH_PREFIX = "all-"
"""What a signature begins with that has seen all of the weights."""

CHUNK = 1 << 20
"""Bytes that are summed at once: few enough for the nearest memory of a CPU."""


def weights_hash(module: nn.Module) -> str:
    """A hash of a network's weights, all of them, the same on every device: 3 GB of them a second and core."""
    sums = [(name, checksum(weight)) for name, weight in module.state_dict().items()]
    return HASH_PREFIX + hashlib.sha256(repr(sums).encode()).hexdigest()[:16]


def legacy_weights_hash(module: nn.Module) -> str:
    """The `signature` of checkpoints that were written before it saw all of the weights: of every tensor's two ends."""
    ends = [
        (name, part.flatten()[[0, -1]].float().tolist())
        for name, weight in module.state_dict().items()
        for part in plain_tensors(weight)
    ]
    return hashlib.sha256(repr(ends).encode()).hexdigest()[:16]


def checksum(tensor: Tensor) -> str:
    """Type, shape, and two sums of all bits of a tensor: that of its 64-bit words, and that of each times its place.

    They are Fletcher's, modulo 2**64. Whole numbers are summed exactly, in any order, on any device.
    """
    sums = []
    for part in plain_tensors(tensor.detach()):
        # a single number is contiguous whatever its stride, and seen as bytes only with a stride of 1
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
    """What of the model is trained."""

    train: Literal["lora", "full"] = "lora"
    """What is trained: LoRA matrices, or all weights (full)."""
    rank: int = 32
    """Rank of the LoRA matrices."""
    alpha: float | None = None
    """Alpha of LoRA, whose scale is alpha / rank; by default the rank."""
    ema_decay: float = 0.0
    """EMA of the policy, which is saved and evaluated; 0 = none. The decay rises from 0: after n updates it is at most
    (1 + n) / (10 + n)."""
    gradient_checkpointing: bool = False
    """Gradient checkpointing: less memory, a third more compute. Of each block only the input is kept."""
    micro_batch_size: int = 0
    """Clips of the loss in memory at once; 0 = all of a step's. More than these are predicted twice."""
    halve_on_oom: bool = True
    """Halve micro_batch_size when memory runs out, with a warning."""
    offload: bool = False
    """Offload the frozen base below a LoRA: each block comes to the device when it is run."""
    reference_device: Literal["device", "cpu"] = "device"
    """Where a full fine-tune's reference is kept. From the CPU, each block comes to the device when it is run."""

    def __post_init__(self):
        if self.train == "full" and self.offload:
            raise ValueError("offload is for LoRA; a full fine-tune has policy.reference_device and parallel.shard")
        if self.train == "lora" and self.reference_device == "cpu":
            raise ValueError("reference_on is for full fine-tuning; with LoRA the reference is an adapter")
        if self.micro_batch_size < 0:
            raise ValueError(f"micro_batch_size is {self.micro_batch_size}; expected 1 or more, or 0 for all clips")
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}; a LoRA needs a rank of at least 1")
        if self.alpha is not None and self.alpha <= 0:
            raise ValueError(f"alpha is {self.alpha}; it must be positive, or left out")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; a decay lies in [0, 1)")


def ema_decay_at(decay: float, count: int) -> float:
    """The decay of a moving average at its `count`-th update, from 1: that of diffusers' `EMAModel`.

    The first update takes the weights as they are, and the decay then rises towards `decay`: after n updates it is at
    most (1 + n) / (10 + n), so that the average is over about the last tenth of them.
    """
    return min(decay, count / (9 + count)) if count > 1 else 0.0


class Policy:
    """The model being trained.

    Attributes:
        trainable: name -> parameter, all float32.
        micro_batch_size: clips whose activations a loss may hold together; 0 = all.
        reference: what the policy is held against; equal to the policy until the first update.
    """

    def __init__(self, model: VideoModel, config: PolicyConfig = PolicyConfig(), seed: int = 0):
        """
        Args:
            model: which is changed: it gets the LoRA, or its weights are trained.
            config: by default a LoRA.
            seed: of the LoRA's first weights.
        """
        self.model, self.config, self.micro_batch_size, self._clips = model, config, config.micro_batch_size, 0
        denoiser, self.dtype = model.denoiser, model.pipeline.transformer.dtype
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            twin = _add_adapters(model, config) if config.train == "lora" else None
        if twin is None:
            reference = copy.deepcopy(denoiser)  # before it is sharded, which nothing can copy
            for part in (reference, denoiser):
                split_tokens(part)
                shard(part)
                part.float()
            denoiser.requires_grad_(True)
            self.trainable = dict(denoiser.named_parameters())
            self.reference: Reference = ModelReference(self, reference)
        else:
            self.trainable = {n.replace(".policy.", "."): p for n, p in denoiser.named_parameters() if ".policy." in n}
            adapters = [*self.trainable.values(), *twin.values()]
            split_tokens(denoiser)
            offload_blocks(denoiser, str(model.device), adapters) if config.offload else shard(denoiser, adapters)
            self.reference = AdapterReference(self, twin)
        if config.gradient_checkpointing:
            for part in model.denoisers.values():
                part.enable_gradient_checkpointing()
        self.ema = {n: p.detach().clone() for n, p in self.trainable.items()} if config.ema_decay else {}
        self._aside: dict[str, Tensor] = {}

    def predict(self, x_t: Latent, t: Time, condition: Condition) -> Latent:
        """What the policy predicts at `x_t`."""
        return self.predict_by(self.model.denoiser, x_t, t, condition)

    def predict_by(self, denoiser: nn.Module, x_t: Latent, t: Time, condition: Condition) -> Latent:
        """What a denoiser predicts; the float32 weights of a full fine-tune compute in what the model was read in."""
        mixed = self.config.train == "full" and self.dtype != torch.float32
        with torch.autocast(x_t.device.type, self.dtype) if mixed else nullcontext():
            return self.model.predict(denoiser, x_t, t, condition)

    def micro_batch(self, clips: int) -> int:
        """How many of a loss's clips have their activations in memory together."""
        self._clips = min(self.micro_batch_size or clips, clips)
        return self._clips

    @property
    def can_halve(self) -> bool:
        """Whether fewer clips at once can and may be tried, should memory run out."""
        return self.config.halve_on_oom and self._clips > 1 and is_single_process()

    def oom_micro_batch(self, error: BaseException) -> int:
        """How many clips were at once, if memory has run out, and fewer can and may be tried; else 0."""
        return self._clips if self.can_halve and out_of_memory(error) else 0

    @torch.no_grad()
    def update_ema(self, updates: int) -> None:
        """One step of the moving average, in float32, after so many updates of the weights."""
        decay = ema_decay_at(self.config.ema_decay, updates)
        for name, kept in self.ema.items():
            kept.lerp_(self.trainable[name].detach(), 1 - decay)

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Within this context the policy's weights are their moving average, if one is kept."""
        self._aside = {name: parameter.detach().clone() for name, parameter in self.trainable.items() if self.ema}
        try:
            _copy(self.ema, self.trainable)
            yield
        finally:
            _copy(self._aside, self.trainable)
            self._aside = {}

    @property
    def current(self) -> Mapping[str, Tensor]:
        """The weights as training has left them, while they are `averaged`, too."""
        return self._aside or self.trainable

    @contextmanager
    @torch.no_grad()
    def merged(self) -> Iterator[None]:
        """Within this context a LoRA is part of the base's own weights: to sample then costs what the base model does.

        Afterwards the weights are what they were, to the bit. A base in fewer bits would round the sum, and a sharded
        one is nowhere whole: they are left as they are.
        """
        layers: list[Any] = list(_adapter_layers(self.model.denoiser)) if self.config.train == "lora" else []
        weights = [layer.get_base_layer().weight for layer in layers]
        if any(hasattr(weight, "__tensor_flatten__") or weight.dtype != torch.float32 for weight in weights):
            layers = weights = []
        kept = [weight.clone() for weight in weights]
        try:
            for layer, weight in zip(layers, weights, strict=True):
                weight += layer.get_delta_weight("policy")
                layer._disable_adapters = True
            yield
        finally:
            for layer, weight, before in zip(layers, weights, kept, strict=True):
                weight.copy_(before)
                layer._disable_adapters = False

    def save(self, folder: Path) -> None:
        """Write what was trained as users load it: for `pipe.load_lora_weights(folder)`, or `folder/transformer`."""
        with self.ema_weights():
            if self.config.train == "full":
                for name, denoiser in self.model.denoisers.items():
                    whole = gather_weights(denoiser)
                    if is_main():
                        whole.save_pretrained(folder / name)
                        set_file_mode(folder / name)
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
            set_file_mode(folder)


@dataclass(frozen=True)
class UntrainedPolicy:
    """A model as it is, where a policy is sampled from."""

    model: VideoModel

    def predict(self, x_t: Latent, t: Time, condition: Condition) -> Latent:
        """What the model predicts at `x_t`."""
        return self.model.predict(self.model.denoiser, x_t, t, condition)

    def merged(self) -> AbstractContextManager:
        """There is no LoRA to merge."""
        return nullcontext()


class Reference(ABC):
    """The frozen side of DPO.

    Attributes:
        weights: what a checkpoint keeps of it, by the names of `trainable`.
        networks: those that are its own, and on the device.
    """

    policy: Policy
    weights: Mapping[str, Tensor]
    networks: Sequence[nn.Module] = ()

    @abstractmethod
    def predict(self, x_t: Latent, t: Time, condition: Condition) -> Latent:
        """What the reference predicts at `x_t`; never carries a gradient."""

    def refresh(self) -> None:
        """Become the current policy: OnlineVPO's curriculum preference update (section 3.3)."""
        _copy(self.policy.trainable, self.weights)
        self.weights_changed()

    @torch.no_grad()
    def ema(self, decay: float) -> None:
        """theta_ref <- decay theta_ref + (1 - decay) theta (RealDPO), in float32: in bfloat16 .999 rounds away."""
        for name, weight in self.weights.items():
            weight.lerp_(self.policy.trainable[name].detach().to(weight.device), 1 - decay)
        self.weights_changed()

    @abstractmethod
    def weights_changed(self) -> None:
        """Take notice that `weights` have changed."""


class AdapterReference(Reference):
    """The reference of a LoRA: a second adapter on the same base or, until it first moves, the base alone."""

    def __init__(self, policy: Policy, weights: Mapping[str, Tensor]):
        self.policy, self.weights, self._adapter = policy, weights, ""

    @torch.no_grad()
    def predict(self, x_t: Latent, t: Time, condition: Condition) -> Latent:
        denoiser = self.policy.model.denoiser
        _activate(denoiser, self._adapter)
        try:
            return self.policy.predict(x_t, t, condition)
        finally:
            _activate(denoiser, "policy")

    def weights_changed(self) -> None:
        self._adapter = "reference"


class ModelReference(Reference):
    """The reference of a full fine-tune: a frozen copy, its blocks' matrices in the dtype that is computed in.

    The policy's float32 weights are rounded to that dtype in every pass, so the two predict alike to the bit, and the
    copy takes half the memory. `weights` are then a float32 copy on the CPU, where a moving average can be kept.
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
                    module.to(policy.dtype)  # as autocast does; what stands before the blocks looks at its own dtype
        if policy.config.reference_device == "cpu":
            self._keep_on_cpu()
        else:
            self.networks = experts_of(denoiser)

    @torch.no_grad()
    def predict(self, x_t: Latent, t: Time, condition: Condition) -> Latent:
        return self.policy.predict_by(self.denoiser, x_t, t, condition)

    def weights_changed(self) -> None:
        if self.weights is not self._held:
            _copy(self.weights, self._held)

    def _keep_on_cpu(self) -> None:
        device = self.policy.model.device
        for part in experts_of(self.denoiser):
            apply_group_offloading(part, device, num_blocks_per_group=1, use_stream=device.type == "cuda")


def _add_adapters(model: VideoModel, config: PolicyConfig) -> dict[str, nn.Parameter]:
    """Add the adapters `policy` and `reference` to the denoiser, equal and without effect; the reference's weights."""
    denoiser = model.denoiser
    alpha: Any = config.alpha or config.rank  # PEFT takes fractions, though its annotation does not
    lora = LoraConfig(r=config.rank, lora_alpha=alpha, target_modules=list(model.lora_targets))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")  # two adapters are what we want
        warnings.filterwarnings("ignore", "TorchaoLoraLinear was instantiated")  # it could not be merged, and is not
        for adapter, part in itertools.product(("reference", "policy"), model.denoisers.values()):
            part.add_adapter(copy.deepcopy(lora), adapter_name=adapter)
    named = dict(denoiser.named_parameters())
    twin = {n.replace(".reference.", "."): p for n, p in named.items() if ".reference." in n}
    if not twin:
        raise ValueError(f"{model.source} has no module named like {', '.join(model.lora_targets)} to adapt")
    for name, parameter in named.items():
        if ".policy." in name or ".reference." in name:
            parameter.data = parameter.data.to(model.device, torch.float32)
        parameter.requires_grad_(".policy." in name)
    _copy({n.replace(".policy.", "."): p for n, p in named.items() if ".policy." in n}, twin)
    _activate(denoiser, "policy")
    return twin


def _adapter_layers(denoiser: nn.Module) -> list[BaseTunerLayer]:
    return [module for module in denoiser.modules() if isinstance(module, BaseTunerLayer)]


def _activate(denoiser: nn.Module, adapter: str) -> None:
    """Make one adapter, or "" for none, the active one and no more: PEFT's own `set_adapter` also toggles gradients."""
    for layer in _adapter_layers(denoiser):
        layer._active_adapter, layer._disable_adapters = [adapter or "policy"], not adapter


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, tensor in source.items():
        target[name].copy_(tensor)

"""Models made from their configurations alone, without checkpoints.

`architectures/` has the configurations of the recipes' models as published; other models' are read from a folder or the
hub. Latent statistics, which do not affect the cost, may be left at 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download
from torch import nn
from transformers import BatchEncoding, PreTrainedModel, T5EncoderModel

from besttake.models import Quantization, VideoModel, model_classes, users_family
from besttake.models.families.opensora import OpenSora
from besttake.models.loading import FAULTS, class_of, empty_part, move_without_blocks
from besttake.models.networks.opensora import OpenSoraPipeline, RFlowScheduler, part_of
from besttake.models.networks.opensora_vae import VideoAutoencoderPipeline
from besttake.models.networks.stdit3 import STDiT3
from besttake.models.quantization import quantize
from besttake.plan.fake_device import CARD, real_device
from besttake.runtime.embedded import embedded_model

ARCHITECTURES = Path(__file__).parent / "architectures"

Claim = Callable[[str, nn.Module], None]


def skeleton(
    source: str,
    dtype: torch.dtype,
    claim: Claim = lambda name, part: None,
    bits: Quantization = "none",
    offload: bool = False,
    device: torch.device = CARD,
) -> VideoModel:
    """The model as `load_model` gives it, with uninitialised weights.

    Args:
        source: folder or hub id with the configurations, or the name of an embedded model.
        claim: called with each part and its name when its weights are allocated.
        bits: quantization of the denoiser's blocks.
        offload: leave these blocks on the CPU.
        device: CARD, on which tensors take no memory, or a real device.

    Raises:
        ValueError: there are no such configurations, or they are broken.
    """
    own, source = users_family(source)
    folder = configurations(source)
    family = next((family for family in own or model_classes() if family.serves(folder)), None)
    if family is None:
        raise ValueError(f"no model family knows the pipeline of '{source}'")
    dtypes = {"": dtype} | dict.fromkeys(family.precise, torch.float32)

    def read(name: str, cls: type, dtype: torch.dtype) -> nn.Module:
        part = getattr(pipeline, name)
        claim(name, allocated(part, dtype, device))
        return model.parts.configure_vae(part) if name == "vae" else part

    try:
        with real_device():
            pipeline: Any = _open_sora(folder) if issubclass(family, OpenSora) else _pipeline(folder)
        for name, part in pipeline.components.items():
            if name.startswith("transformer") and part is not None:
                allocated(part, dtypes.get(name, dtype), device)
                if offload:
                    move_without_blocks(part.to("cpu"), str(device))
                elif bits != "none":  # on the CPU, since torchao does not keep the index of a CPU device
                    quantize(part.to("cpu"), bits, "cpu").to(device)
                claim(name, part)
        model: Any = family(pipeline, folder)
    except FAULTS as error:
        raise ValueError(f"no model can be built from the configurations of '{source}': {error}") from error
    model.source = model.parts.source = source
    model.parts.dtypes, model.parts.low_memory, model.parts.read = dtypes, True, read
    return model


def configurations(source: str) -> str:
    """The folder of a model's configurations (of a hub id, downloaded without weights); ValueError if there is none."""
    source = embedded_model(source)
    if Path(source).is_dir():
        return source
    shipped = ARCHITECTURES / source.replace("/", "--")
    if shipped.is_dir():
        return str(shipped)
    known = ", ".join(sorted(folder.name.replace("--", "/") for folder in ARCHITECTURES.iterdir()))
    try:
        return snapshot_download(source, allow_patterns=["*.json", "*.model"])
    except FAULTS as error:
        raise ValueError(
            f"'{source}' is not a folder, and its configurations cannot be downloaded from the hub ({error}); give a "
            f"folder with them (weights are not needed), or one of {known}"
        ) from error


def allocated(part: Any, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Allocate an empty part's weights, uninitialised, in the dtypes that loading a checkpoint gives."""
    kept = "_keep_in_fp32_modules" if isinstance(part, diffusers.ModelMixin) else "_keep_in_fp32_modules_strict"
    exact = set(getattr(part, kept, None) or ())
    if isinstance(part, PreTrainedModel):
        part.tie_weights()  # shared weights are counted once
    made: dict[nn.Parameter, nn.Parameter] = {}
    for path, module in part.named_modules():
        for name, weight in module._parameters.items():
            if weight is not None and weight not in made:
                held = torch.float32 if exact & {*path.split("."), name} else dtype
                unset = torch.empty(weight.shape, dtype=held, device=device)
                made[weight] = nn.Parameter(unset, requires_grad=False)
            module._parameters[name] = weight if weight is None else made[weight]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                read = buffer.is_floating_point() and name not in module._non_persistent_buffers_set
                held = dtype if read else buffer.dtype
                known = buffer if not buffer.is_meta else torch.empty(buffer.shape, device="cpu")
                module._buffers[name] = known.to(device, held)
    return part


class WordTokenizer:
    """Replaces a tokenizer whose files are not available: one token per word, and one for the end."""

    model_max_length = 512

    def __call__(
        self, text: Any, padding: Any = False, max_length: int | None = None, return_tensors: Any = None, **_: Any
    ) -> BatchEncoding:
        texts = [text] if isinstance(text, str) else list(text)
        longest = max_length if padding == "max_length" and max_length else max(map(_tokens, texts))
        masks = [[int(place < _tokens(text)) for place in range(longest)] for text in texts]
        rows: dict[str, Any] = {"input_ids": masks, "attention_mask": masks}
        if isinstance(text, str) and return_tensors is None:
            rows = {name: values[0] for name, values in rows.items()}
        return BatchEncoding(rows, tensor_type=return_tensors)


def _tokens(text: str) -> int:
    return len(text.split()) + 1


def _pipeline(folder: str) -> Any:
    """A diffusers pipeline, its networks empty."""
    index: Any = DiffusionPipeline.load_config(folder)
    parts: dict[str, Any] = {}
    for name, entry in index.items():
        if name.startswith("_"):
            continue
        if not isinstance(entry, (list, tuple)) or entry[0] is None:
            parts[name] = entry if not isinstance(entry, (list, tuple)) else None
        elif issubclass(cls := class_of(*entry), nn.Module):
            parts[name] = empty_part(folder, name, cls)
        elif name.startswith("tokenizer") and not list(Path(folder, name).glob("*token*")):
            parts[name] = WordTokenizer()
        else:
            parts[name] = cls.from_pretrained(folder, subfolder=name)
    return getattr(diffusers, index["_class_name"])(**parts)


def _open_sora(folder: str) -> OpenSoraPipeline:
    tokenizer: Any = WordTokenizer()
    encoder = _empty(folder, "text_encoder", T5EncoderModel)
    vae = _empty(folder, "vae", VideoAutoencoderPipeline)
    return OpenSoraPipeline(tokenizer, encoder, vae, STDiT3.empty(folder), RFlowScheduler())


def _empty(folder: str, name: str, cls: Any) -> Any:
    if issubclass(cls, VideoAutoencoderPipeline):
        return cls.empty(part_of(folder, name)).requires_grad_(False)
    return empty_part(folder, name, cls).requires_grad_(False)

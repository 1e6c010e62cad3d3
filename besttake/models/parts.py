"""Parts of a pipeline: their weights are loaded when used, and freed afterwards if memory is scarce."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from besttake.data.files import content_hash, quick_hash
from besttake.models.loading import is_empty, read_part


class PipelineParts:
    """Loads and frees the weights of a pipeline's parts.

    Attributes:
        folder: folder with the files of the parts.
        device: device that the parts are used on.
        dtypes: dtype by part; "" stands for all others.
        low_memory: whether parts are freed after each use, and videos are encoded and decoded one by one. By default
            on every device but the CPU.
        offload_idle: networks that are moved to the CPU when another part is loaded.
        tiled: whether the autoencoder works in overlapping tiles.
    """

    def __init__(self, pipeline: Any, source: str):
        self.pipeline, self.source, self.folder = pipeline, source, source
        self.device: torch.device = pipeline.transformer.device
        self.dtypes: dict[str, torch.dtype] = {"": pipeline.transformer.dtype}
        self.low_memory = self.device.type != "cpu"
        self.offload_idle: list[Any] = []
        self.tiled = False

    @property
    def denoisers(self) -> dict[str, Any]:
        """The denoising networks, by their names in the pipeline."""
        found = (name for name in ("transformer", "transformer_2") if getattr(self.pipeline, name, None) is not None)
        return {name: getattr(self.pipeline, name) for name in found}

    @property
    def names(self) -> list[str]:
        """The parts besides the denoisers: encoders, tokenizers, autoencoder, scheduler."""
        present = [name for name, part in self.pipeline.components.items() if part is not None]
        return sorted(set(present) - self.denoisers.keys())

    @contextmanager
    def using(self, *names: str) -> Iterator[None]:
        """Context in which these parts have their weights in memory."""
        empty = [name for name in names if is_empty(getattr(self.pipeline, name))]
        if empty:
            self.to_cpu()
        for name in empty:
            cls, dtype = type(getattr(self.pipeline, name)), self.dtypes.get(name, self.dtypes[""])
            setattr(self.pipeline, name, self.read(name, cls, dtype))
        try:
            yield
        finally:
            for name in empty if self.low_memory else ():
                getattr(self.pipeline, name).to("meta")

    def to_device(self) -> None:
        """Move the networks in `offload_idle` to the device."""
        for network in self.offload_idle:
            network.to(self.device)

    def to_cpu(self) -> None:
        """Move the networks in `offload_idle` to the CPU."""
        for network in self.offload_idle:
            network.to("cpu")

    def read(self, name: str, cls: type, dtype: torch.dtype) -> nn.Module:
        """A part with its weights; ValueError if its files are broken."""
        try:
            part = read_part(self.folder, name, cls, dtype, str(self.device))
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"the {name} of '{self.source}' does not load: {error}") from error
        return self.configure_vae(part) if name == "vae" else part

    def configure_vae(self, vae: Any) -> nn.Module:
        """The autoencoder with slicing and tiling enabled if configured."""
        if self.low_memory:
            vae.enable_slicing()
        if self.tiled:
            vae.enable_tiling()
        return vae

    def set_up_vae(self, dtype: str, tiling: bool) -> None:
        """Use the autoencoder in another dtype ("auto" = its family's), and in tiles, from a run's settings."""
        if dtype != "auto":
            self.dtypes["vae"] = getattr(torch, dtype)
            if not is_empty(self.pipeline.vae):
                self.pipeline.vae.to(self.dtypes["vae"])
        if tiling:
            self.tile()

    def tile(self) -> None:
        """Enable VAE tiling: far less memory, but seams may be faintly visible."""
        self.tiled = True
        self.configure_vae(self.pipeline.vae)

    def identity(self, *names: str) -> tuple[object, ...]:
        """A key of these parts: it changes with their weights, dtypes and settings."""
        parts = [
            (name, self.dtypes.get(name, self.dtypes[""]), quick_hash(self.component_folder(name))) for name in names
        ]
        index = Path(self.folder, "model_index.json")
        settings = content_hash(index) if index.is_file() else ""
        return self.tiled and "vae" in names, settings, parts

    def component_folder(self, name: str) -> Path:
        """The folder with a part's files."""
        return Path(self.folder, name)

"""Wan 2.1 and 2.2 (arXiv 2503.20314), text- and image-to-video: rectified flow.

A first frame is given in one of three ways: 2.1's and 2.2's image-to-video models have its latents and a mask as extra
channels (2.1's also its CLIP features); 2.2's 5B model has it as the first latent frame, with timestep 0. 2.2's larger
models have two experts, one for high and one for low noise.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from besttake.data.video import to_uint8
from besttake.models.base import Size, VideoModel
from besttake.models.schedules import RectifiedFlow
from besttake.runtime.distributed import any_process
from besttake.types import Condition, Latent, Time


class Wan(VideoModel):
    pipelines = ("WanPipeline", "WanImageToVideoPipeline")
    guidance = 5.0
    precise = ("vae",)

    def __init__(self, pipeline: Any, source: str):
        super().__init__(pipeline, source)
        config = pipeline.scheduler.config
        self.schedule = RectifiedFlow(config.get("flow_shift") or config.get("shift") or 1.0)
        self.in_place = bool(pipeline.config.get("expand_timesteps"))
        """Whether a first frame takes the place of the first latent frame (2.2's 5B)."""
        self.needs_first_frame = "ImageToVideo" in type(pipeline).__name__ and not self.in_place
        self.accepts_first_frame = self.needs_first_frame or self.in_place
        self.frame_rate = 24.0 if self.in_place else 16.0

    def default_size(self) -> Size:
        own = self.pipeline.vae.config.get
        frames, height, width = (121, 704, 1280) if self.in_place else (81, 480, 832)
        return own("sample_frames", frames), own("sample_height", height), own("sample_width", width)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        # The autoencoder encodes the first frame, then four at a time, and drops the remainder.
        time, space = self.pipeline.vae_scale_factor_temporal, self.pipeline.vae_scale_factor_spatial
        self.check_size(frames, height, width, max(time, 4), space * self._config.patch_size[1])
        return self.pipeline.vae.config.z_dim, (frames - 1) // time + 1, height // space, width // space

    def tokens(self, frames: int, height: int, width: int) -> int:
        _, *sides = self.latent_shape(frames, height, width)
        return math.prod(side // patch for side, patch in zip(sides, self._config.patch_size, strict=True))

    @property
    def _config(self) -> Any:
        return self.pipeline.transformer.config

    def longest_prompt(self) -> int:
        return min(512, self.pipeline.tokenizer.model_max_length)

    def first_frame_condition(self, first_frames: Tensor, frames: int, generator: torch.Generator | None) -> Condition:
        """The first frame's latents; or a mask with the latents of a clip that is grey after it, and CLIP features."""
        if self.in_place:
            return {"first_frame": self.encode(first_frames[:, None])}
        grey = torch.zeros_like(first_frames)[:, None].expand(-1, frames - 1, -1, -1, -1)
        latents = self.encode(torch.cat([first_frames[:, None], grey], 1))
        b, _, f, h, w = latents.shape
        mask = latents.new_zeros(b, self.pipeline.vae_scale_factor_temporal, f, h, w)
        mask[:, :, 0] = 1
        condition = {"first_frame": torch.cat([mask, latents], 1)}
        if self._config.image_dim is not None:
            pictures = [Image.fromarray(picture) for picture in to_uint8(first_frames).cpu().numpy()]
            with self.using("image_encoder"):
                condition["picture"] = self.pipeline.encode_image(pictures, self.device)
        return condition

    def latents_mean_and_scale(self) -> tuple[Tensor, Tensor]:
        config = self.pipeline.vae.config
        return self.per_channel(config.latents_mean), self.per_channel(config.latents_std)

    def predict(self, denoiser: Any, x_t: Latent, t: Time, condition: Condition) -> Latent:
        if not isinstance(denoiser, nn.ModuleDict):
            return self._predict(denoiser, x_t, t, condition)
        early = t >= self.pipeline.config.boundary_ratio
        prediction, first = torch.zeros_like(x_t), torch.arange(len(t), device=t.device) < 1
        for expert, rows in ((denoiser["transformer"], early), (denoiser["transformer_2"], ~early)):
            if any_process(rows.any()):
                # a sharded expert must be run by all processes; those without rows for it run a dummy row
                chosen = rows if rows.any() else first
                conditions = {name: value[chosen] for name, value in condition.items()}
                found = self._predict(expert, x_t[chosen], t[chosen], conditions).to(prediction)
                prediction[chosen] = torch.where(rows[chosen].view(-1, 1, 1, 1, 1), found, prediction[chosen])
        return prediction

    def _predict(self, denoiser: Any, x_t: Latent, t: Time, condition: Condition) -> Latent:
        timestep, first = self.schedule.timestep(t), condition.get("first_frame")
        if self.in_place:
            x_t, timestep = self.with_known_frames(x_t, condition), self._timestep_of_tokens(x_t, timestep, first)
        elif first is not None:
            x_t = torch.cat([x_t, first.to(x_t)], 1)
        picture, dtype = condition.get("picture"), denoiser.dtype  # diffusers walks through all modules for the dtype
        prediction = denoiser(
            hidden_states=x_t.to(dtype),
            encoder_hidden_states=condition["text"].to(dtype),
            encoder_hidden_states_image=None if picture is None else picture.to(dtype),
            timestep=timestep,
            return_dict=False,
        )[0]
        if self.in_place and first is not None:  # the prediction of a known frame must not enter the loss
            prediction = torch.cat([torch.zeros_like(prediction[:, :, :1]), prediction[:, :, 1:]], 2)
        return prediction

    def _timestep_of_tokens(self, x_t: Latent, timestep: Tensor, first: Tensor | None) -> Tensor:
        """(b, tokens): the timestep, and 0 for the tokens of a known first frame."""
        _, height, width = self._config.patch_size
        frames, per_frame = x_t.shape[2], (x_t.shape[3] // height) * (x_t.shape[4] // width)
        table = timestep.view(-1, 1, 1).repeat(1, frames, per_frame)
        if first is not None:
            table[:, 0] = 0
        return table.flatten(1)

    def with_known_frames(self, latents: Latent, condition: Condition) -> Latent:
        if not self.in_place or "first_frame" not in condition:
            return latents
        return torch.cat([condition["first_frame"].to(latents), latents[:, :, 1:]], 2)

    def save_lora(self, folder: Path, layers: Any, configs: Any) -> None:
        """The second expert's is in `transformer_2_lora/`, for `load_lora_weights` with `load_into_transformer_2`."""
        for name, path in self._lora_folders(folder).items():
            super().save_lora(path, {"transformer": layers[name]}, {"transformer": configs[name]})

    def load_lora(self, folder: Path) -> None:
        for name, path in self._lora_folders(folder).items():
            self.pipeline.load_lora_weights(str(path), load_into_transformer_2=name == "transformer_2")

    def _lora_folders(self, folder: Path) -> dict[str, Path]:
        return {name: folder if name == "transformer" else folder / f"{name}_lora" for name in self.denoisers}

"""Open-Sora 1.2's pipeline (Zheng et al. 2024, arXiv 2412.20404) and its sampler: rectified flow in Euler steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, DiffusionPipeline, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import CogVideoXLoraLoaderMixin
from diffusers.pipelines.cogvideo.pipeline_output import CogVideoXPipelineOutput
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5EncoderModel

from besttake.models.networks.opensora_captions import clean
from besttake.models.networks.opensora_vae import VideoAutoencoderPipeline
from besttake.models.networks.stdit3 import STDiT3

HUB = {
    "vae": "hpcai-tech/OpenSora-VAE-v1.2",
    "text_encoder": "DeepFloyd/t5-v1_1-xxl",
    "tokenizer": "DeepFloyd/t5-v1_1-xxl",
}
"""Where the parts are that the public checkpoint of the denoiser comes without."""

FPS, FPS_OF_STILLS = 24.0, 120.0
"""The denoiser's input `fps` for clips, and for clips of one frame."""


class OpenSoraPipeline(DiffusionPipeline, CogVideoXLoraLoaderMixin):
    """Text to video, and a home for LoRA weights (`load_lora_weights`)."""

    tokenizer: Any
    text_encoder: Any
    vae: Any
    transformer: Any
    scheduler: Any
    register_modules: Callable[..., None]
    progress_bar: Callable[[Tensor], Iterable[Tensor]]

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: T5EncoderModel,
        vae: VideoAutoencoderPipeline,
        transformer: STDiT3,
        scheduler: RFlowScheduler,
    ):
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, transformer=transformer, scheduler=scheduler
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        *,
        transformer: Any = None,
        text_encoder: Any = None,
        vae: Any = None,
    ) -> OpenSoraPipeline:
        """The pipeline around a public checkpoint of the denoiser; `part_of` tells where its other parts are sought.

        Args:
            transformer, text_encoder, vae: instead of those of the checkpoint.
        """
        encoder: Any = T5EncoderModel
        return cls(
            tokenizer=AutoTokenizer.from_pretrained(part_of(source, "tokenizer")),
            text_encoder=text_encoder
            or encoder.from_pretrained(part_of(source, "text_encoder"), dtype=dtype).to(device),
            vae=vae or VideoAutoencoderPipeline.from_pretrained(part_of(source, "vae"), dtype, device),
            transformer=transformer or STDiT3.from_pretrained(source, dtype, device),
            scheduler=RFlowScheduler(),
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the public layout: the denoiser's files, and `vae/`, `text_encoder/` and `tokenizer/` beside them."""
        self.transformer.save_pretrained(folder)
        for name in HUB:
            getattr(self, name).save_pretrained(Path(folder) / name)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        num_frames: int = 51,
        height: int = 240,
        width: int = 424,
        num_inference_steps: int = 30,
        guidance_scale: float = 7.0,
        fps: float = FPS,
        latents: Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> CogVideoXPipelineOutput | tuple[Any]:
        """Videos of prompts.

        Args:
            num_frames: 1, or at least 17.
            guidance_scale: of classifier-free guidance; 1 = none.
            fps: the denoiser's input for clips of more than one frame.
            latents: the noise to start from, `b c f h w`.
            output_type: "pil", "np", "pt" (in [0, 1]) or "latent".
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        text, mask = self.encode_prompt(prompts)
        if latents is None:
            channels, space = self.transformer.config.in_channels, self.vae.space
            shape = len(prompts), channels, self.vae.latent_frames(num_frames), height // space, width // space
            latents = randn_tensor(shape, generator, text.device, torch.float32)
        sizes = {"fps": fps if num_frames > 1 else FPS_OF_STILLS, "height": height, "width": width}
        size = {name: torch.tensor([float(value)], device=text.device) for name, value in sizes.items()}
        do_classifier_free_guidance, x = guidance_scale != 1, latents
        if do_classifier_free_guidance:
            text = torch.cat([text, self.transformer.y_embedder.y_embedding.to(text).expand_as(text)])
        self.scheduler.set_timesteps(num_inference_steps, noise_ratio(num_frames, height, width), text.device)
        for timestep in self.progress_bar(self.scheduler.timesteps):
            seen = torch.cat([x, x]) if do_classifier_free_guidance else x
            output = self.transformer(seen, timestep.expand(len(seen)), text[:, None], mask, **size)
            velocity = output[:, : x.shape[1]]
            if do_classifier_free_guidance:
                with_caption, without = velocity.chunk(2)
                velocity = without + guidance_scale * (with_caption - without)
            x = self.scheduler.step(velocity, timestep, x, return_dict=False)[0]
        frames: Any = x
        if output_type != "latent":
            raw = x.to(self.vae.dtype) * self.vae.scale + self.vae.shift
            frames = VideoProcessor().postprocess_video(self.vae.decode(raw, num_frames).sample, output_type)
        return CogVideoXPipelineOutput(frames) if return_dict else (frames,)

    def encode_prompt(self, prompts: list[str]) -> tuple[Float[Tensor, "b l d"], Int[Tensor, "b l"]]:
        """Text embeddings of cleaned prompts, and where they hold tokens of the prompt."""
        tokens = self.tokenizer(
            [clean(prompt) for prompt in prompts],
            max_length=self.transformer.config.model_max_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).to(self.text_encoder.device)
        states = self.text_encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return states.last_hidden_state, tokens.attention_mask


class RFlowScheduler(SchedulerMixin, ConfigMixin):
    """Euler steps along x_0 - noise, the velocity that Open-Sora's denoiser predicts."""

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000):
        self.scale = num_train_timesteps
        self.timesteps = torch.arange(num_train_timesteps, 0, -1).float()

    def set_timesteps(
        self, num_inference_steps: int, ratio: float = 1.0, device: torch.device | str | None = None
    ) -> None:
        """Timesteps from 1000 down, more of them at much noise where `ratio` (of `noise_ratio`) is larger."""
        t = 1 - torch.arange(num_inference_steps, device=device) / num_inference_steps
        self.timesteps = self.scale * (ratio * t / (1 + (ratio - 1) * t))

    def step(
        self, model_output: Tensor, timestep: Tensor | float, sample: Tensor, return_dict: bool = True
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Any]:
        """Latents at the timestep after this one."""
        following = torch.where(self.timesteps < timestep, self.timesteps, 0).max()
        moved: Any = sample + (timestep - following) / self.scale * model_output
        return FlowMatchEulerDiscreteSchedulerOutput(moved) if return_dict else (moved,)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Float[Tensor, "b"]) -> Tensor:
        t = (timesteps / self.scale).view(-1, *[1] * (original_samples.ndim - 1))
        return (1 - t) * original_samples + t * noise


def noise_ratio(frames: int, height: int, width: int) -> float:
    """r of t -> r t / (1 + (r - 1) t): how much more noise a clip of this many pixels takes than one of 512 x 512.

    The authors count five latent frames for each whole 17 frames and nothing for the rest, so that 2 to 16 frames would
    have no noise at all.
    """
    return math.sqrt(height * width) / 512 * math.sqrt(1 if frames == 1 else frames // 17 * 5)


def part_of(source: str | Path, name: str) -> str:
    """The folder or hub id of a part: inside the denoiser's folder, beside it, or else where the authors have it."""
    inside, beside = Path(source) / name, Path(source).resolve().parent / HUB[name].split("/")[1]
    return next((str(folder) for folder in (inside, beside) if Path(source).is_dir() and folder.is_dir()), HUB[name])

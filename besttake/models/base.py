"""What the library asks of a video diffusion model. One file per family beside this one implements it."""

from __future__ import annotations

import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from besttake.data.cache import TensorCache
from besttake.data.faults import read_each
from besttake.data.files import content_hash, quick_hash
from besttake.data.video import read_frame
from besttake.models.loading import is_empty, pipeline_class, pipeline_folder, read_part, read_pipeline
from besttake.models.quantization import Quantization
from besttake.models.schedules import Schedule
from besttake.runtime.distributed import raise_on_all, shard_items
from besttake.types import Condition, Latent, Prompt, Time, Video

log = logging.getLogger(__name__)

NAMED = 20
"""Unknown words that a warning names."""

REMEMBERED = 512
"""Prompts whose text embeddings a model keeps in the CPU's memory."""

Size = tuple[int, int, int]
"""Frames, height and width of a clip, in pixels."""


class VideoModel(ABC):
    """A video diffusion model: its noise process, its denoiser, and the way from and to text and pixels.

    Subclasses wrap a diffusers pipeline, whose numerics they reproduce: `generate` on this interface gives the
    pipeline's own latents from the same noise.

    Attributes:
        pipelines: class names of the diffusers pipelines this file serves (how a folder finds its file).
        lora_targets: the modules LoRA adapts, by name.
        text_parts: the pipeline's parts that `embed` uses.
        precise: parts that are held in float32 whatever the rest is held in.
        frame_rate: frames a second the family shoots at.
        steps, guidance: sampling steps and guidance scale that its authors shoot with.
        embeds_guidance: the guidance scale is one of the denoiser's inputs (a guidance-distilled model).
    """

    pipelines: ClassVar[tuple[str, ...]]
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    text_parts: ClassVar[tuple[str, ...]] = ("text_encoder",)
    precise: ClassVar[tuple[str, ...]] = ()
    frame_rate: float
    steps: int = 50
    guidance: float = 6.0
    schedule: Schedule
    embeds_guidance: bool = False

    def __init__(self, pipeline: Any, source: str):
        self.pipeline = pipeline
        self.device: torch.device = pipeline.transformer.device
        self.max_batch = sys.maxsize
        """Takes that can be denoised at once, as far as it is known."""
        self.offload_idle: list[Any] = []
        """Networks that go to the CPU when another part is read, and come back when they are next run."""
        self.source = self.folder = source
        self.dtypes: dict[str, torch.dtype] = {"": pipeline.transformer.dtype}
        self.low_memory = self.device.type != "cpu"
        """Whether parts are dropped again after each use; on a CPU, whose memory is the cheaper one, they are kept."""
        self.cache: TensorCache | None = None
        """Where text embeddings are kept from run to run."""
        self.tiled = False
        self._texts: dict[str, Condition] = {}
        self._text_identity = ""
        self._looked_at: set[Path] = set()
        self._read: set[str] = set()
        self._unknown: set[str] = set()
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def serves(cls, source: str) -> bool:
        """Whether the checkpoint in a folder or on the hub is of this family."""
        return pipeline_class(source) in cls.pipelines

    @classmethod
    def load(
        cls, source: str, dtype: torch.dtype, device: str, bits: Quantization = "none", offload: bool = False
    ) -> VideoModel:
        """The model in a folder or on the hub; ValueError if a part of it is missing or broken."""
        dtypes = {"": dtype} | dict.fromkeys(cls.precise, torch.float32)
        folder = pipeline_folder(source)
        model = cls(read_pipeline(folder, dtypes, device, bits, offload), source)
        model.folder, model.dtypes = folder, dtypes
        with model.using("vae"):  # small, and first needed after a long while: a broken one is found out now
            return model

    @property
    def denoisers(self) -> dict[str, Any]:
        """The networks that are trained, by their names in the pipeline."""
        found = (name for name in ("transformer", "transformer_2") if getattr(self.pipeline, name, None) is not None)
        return {name: getattr(self.pipeline, name) for name in found}

    @property
    def denoiser(self) -> Any:
        """The network that is trained; of two experts (Wan 2.2), both."""
        parts = self.denoisers
        return nn.ModuleDict(parts) if len(parts) > 1 else next(iter(parts.values()))

    @property
    def fps(self) -> float:
        """Frames a second the model shoots at: the family's, unless the autoencoder's config has a `sample_fps`."""
        return float(self.pipeline.vae.config.get("sample_fps") or self.frame_rate)

    @property
    def default_steps(self) -> int:
        """Sampling steps: the family's, unless the autoencoder's config has `sample_steps`."""
        return int(self.pipeline.vae.config.get("sample_steps") or self.steps)

    @property
    def default_guidance(self) -> float:
        """Guidance scale: the family's, unless the autoencoder's config has `sample_guidance`."""
        return float(self.pipeline.vae.config.get("sample_guidance") or self.guidance)

    @contextmanager
    def using(self, *names: str) -> Iterator[None]:
        """Within this context these parts of the pipeline have their weights; a frugal model then drops them again."""
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
        """Bring what waits on the CPU to the device."""
        for network in self.offload_idle:
            network.to(self.device)

    def to_cpu(self) -> None:
        """Let what takes turns wait on the CPU, until it is woken."""
        for network in self.offload_idle:
            network.to("cpu")

    def read(self, name: str, cls: type, dtype: torch.dtype) -> nn.Module:
        """A part of the pipeline, with its weights."""
        try:
            part = read_part(self.folder, name, cls, dtype, str(self.device))
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"the {name} of '{self.source}' does not load: {error}") from error
        return self.configure_vae(part) if name == "vae" else part

    def configure_vae(self, vae: Any) -> nn.Module:
        """The autoencoder, made to take clips one by one where memory is dear, and in tiles where that is asked for."""
        if self.low_memory:
            vae.enable_slicing()
        if self.tiled:
            vae.enable_tiling()
        return vae

    def tile(self) -> None:
        """From now on encode and decode in tiles that overlap: a fraction of the memory, for faint seams."""
        self.tiled = True
        self.configure_vae(self.pipeline.vae)

    @property
    def parts(self) -> list[str]:
        """What has files of its own beside the denoisers: encoders, tokenizers, the autoencoder, the scheduler."""
        there = [name for name, part in self.pipeline.components.items() if part is not None]
        return sorted(set(there) - self.denoisers.keys())

    def identity(self, *names: str) -> str:
        """What tells parts of the pipeline, and what they are held in, from those of another model."""
        parts = [(name, self.dtypes.get(name, self.dtypes[""]), quick_hash(self.folder_of(name))) for name in names]
        return repr((type(self).__name__, self.tiled and "vae" in names, self.settings(), parts))

    def settings(self) -> str:
        """What the pipeline is told beside its parts."""
        index = Path(self.folder, "model_index.json")
        return content_hash(index) if index.is_file() else ""

    def folder_of(self, name: str) -> Path:
        """Where a part's files are."""
        return Path(self.folder, name)

    # What a clip is -------------------------------------------------------------------------------------------------

    @abstractmethod
    def default_size(self) -> Size:
        """Frames, height and width the model was made for."""

    @abstractmethod
    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """`c f h w` of the latents of a clip; ValueError for a size the model cannot take."""

    def check_size(self, frames: int, height: int, width: int, time: int, space: int) -> None:
        """ValueError unless the model can take a clip of this size.

        Args:
            time: pixel frames to a latent frame, the first of which is one pixel frame alone.
            space: the sides are multiples of it.
        """
        if frames < 1 or (frames - 1) % time:
            nearest = 1 + max(0, round((frames - 1) / time)) * time
            raise ValueError(
                f"{frames} frames do not fit {self.source}: it takes 1 + a multiple of {time}, say {nearest}"
            )
        for name, side in (("height", height), ("width", width)):
            if side < space or side % space:
                nearest = max(space, round(side / space) * space)
                raise ValueError(
                    f"{name} {side} does not fit {self.source}: it takes multiples of {space}, say {nearest}"
                )

    def tokens(self, frames: int, height: int, width: int) -> int | None:
        """Tokens of a clip, if a denoiser of this family can be run on a part of them; else None."""
        return None

    # What the model is told -----------------------------------------------------------------------------------------

    needs_first_frame: bool = False
    takes_first_frame: bool = False

    @abstractmethod
    def longest_prompt(self) -> int:
        """Tokens the text encoder reads."""

    @abstractmethod
    def embed(self, prompts: list[str]) -> Condition:
        """Text embeddings, one row per prompt, cut at the longest prompt the encoder reads."""

    def first_frame_condition(
        self, first_frames: Float[Tensor, "b 3 h w"], frames: int, generator: torch.Generator | None
    ) -> Condition:
        """The condition that first frames in [-1, 1] are, for takes of so many frames.

        Args:
            generator: given in training, where some models see the first frame with a little noise.
        """
        raise NotImplementedError

    def encode_prompts(
        self, prompts: Sequence[str], size: Size | None = None, generator: torch.Generator | None = None
    ) -> Condition:
        """What the denoiser is told of each prompt: its text and, for a `Prompt` that has one, its first frame.

        Args:
            size: of the takes; by default the model's own.
            generator: given in training, where some models see the first frame with a little noise.

        Raises:
            ValueError: a prompt is empty or longer than the encoder reads, a first frame is missing, unreadable, or
                given to a model that takes none.
        """
        self.check_prompts(prompts)
        with torch.no_grad():
            told = _joined(self._text_of(prompts))
            shown = [prompt.first_frame for prompt in prompts if isinstance(prompt, Prompt) and prompt.first_frame]
            if shown:
                frames, height, width = size or self.default_size()
                pictures = torch.stack([read_frame(path, (height, width)) for path in shown]).to(self.device)
                told |= self.first_frame_condition(pictures, frames, generator)
        return told

    negative_prompt: str = ""
    """Negative prompt that the family is deployed with."""

    @property
    def default_negative_prompt(self) -> str:
        """Negative prompt: the family's, unless the autoencoder's config has a `sample_negative_prompt`."""
        return str(self.pipeline.vae.config.get("sample_negative_prompt") or self.negative_prompt)

    def encode_negative(self, n: int, prompt: str | None = None) -> Condition:
        """What classifier-free guidance steers away from, `n` times.

        Args:
            prompt: by default the model's own; "" is the empty prompt, the unconditional model.

        Raises:
            ValueError: it has more tokens than the text encoder reads.
        """
        if prompt and (tokens := self.count_tokens(prompt)) > self.longest_prompt():
            raise ValueError(
                f"the negative prompt has {tokens} tokens; {self.source} reads {self.longest_prompt()}: shorten it"
            )
        text = self.default_negative_prompt if prompt is None else prompt
        with torch.no_grad():
            return {name: value.repeat_interleave(n, 0) for name, value in _joined(self._text_of([text])).items()}

    def _text_of(self, prompts: Sequence[str]) -> list[Condition]:
        """Embeddings of each prompt, encoded one by one, so that none depends on its neighbours; the last are kept."""
        texts = {str(prompt): self._texts.get(str(prompt)) or self._kept(str(prompt)) for prompt in prompts}
        if not all(texts.values()):
            with self.using(*self.text_parts):
                texts = {prompt: told or self._embedded(prompt) for prompt, told in texts.items()}
        for prompt, told in texts.items():
            self._texts.pop(prompt, None)
            self._texts[prompt] = {name: value.cpu() for name, value in told.items()}
        for prompt in list(self._texts)[:-REMEMBERED]:
            del self._texts[prompt]
        return [{name: value.to(self.device) for name, value in texts[str(p)].items()} for p in prompts]

    def _kept(self, prompt: str) -> Condition:
        return (self.cache.read(*self._key(prompt)) if self.cache else None) or {}

    def _embedded(self, prompt: str) -> Condition:
        told = self.embed([prompt])
        if self.cache:
            self.cache.write(told, *self._key(prompt))
        return told

    def _key(self, prompt: str) -> tuple[object, ...]:
        if not self._text_identity:
            tokenizers = [name for name in self.parts if name.startswith("tokenizer")]
            self._text_identity = self.identity(*self.text_parts, *tokenizers)
        return "text", self._text_identity, self.longest_prompt(), prompt

    def prepare(self, prompts: Sequence[str]) -> None:
        """`check_prompts`; and, if there is a cache, embed them all, so that the text encoder is read but once."""
        with raise_on_all():
            self.check_prompts(prompts)
        for some in (shard_items(prompts), prompts) if self.cache else ():
            with raise_on_all(), torch.no_grad():
                for start in range(0, len(some), REMEMBERED):
                    self._text_of(["", *some[start : start + REMEMBERED]])

    def check_prompts(self, prompts: Sequence[str], skip_bad: bool | None = None) -> list[str]:
        """The prompts that the model can be given.

        Raises:
            ValueError: naming, unless `skip_bad` (see `read_each`), every prompt that is empty, has more tokens than
                the text encoder reads, or lacks its first frame.
        """

        def check(prompt: str) -> str:
            self.check_prompt(prompt)
            return prompt

        fine = read_each(prompts, check, "prompts", skip_bad=skip_bad)
        self._warn_of_unknown_words(fine)
        return fine

    def check_prompt(self, prompt: str) -> None:
        """ValueError if a prompt is empty, has more tokens than the text encoder reads, or lacks its first frame."""
        longest = self.longest_prompt()
        if not prompt.strip():
            raise ValueError("a prompt is empty; every prompt needs at least one word")
        tokens = self.count_tokens(prompt)
        if tokens > longest:
            raise ValueError(
                f"the prompt '{prompt[:60]}...' has {tokens} tokens; {self.source} reads {longest}: shorten it"
            )
        self._check_first_frame(prompt)

    def _warn_of_unknown_words(self, prompts: Sequence[str]) -> None:
        """Say once which words of the prompts have no token: a model that knows few words has never seen them."""
        new = [str(prompt) for prompt in dict.fromkeys(prompts) if str(prompt) not in self._read]
        self._read.update(new)
        told = {prompt: words for prompt in new if (words := self.unknown_words(prompt))}
        if words := sorted({word for some in told.values() for word in some} - self._unknown):
            self._unknown.update(words)
            log.warning(
                "%s has never seen the words %s%s, in %d of %d prompts: to it they are all the same",
                self.source,
                ", ".join(words[:NAMED]),
                f" and {len(words) - NAMED} others" if len(words) > NAMED else "",
                len(told),
                len(new),
            )

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of a prompt that the tokenizer has no token for."""
        tokenizer = self.pipeline.tokenizer
        unknown = getattr(tokenizer, "unk_token_id", None)
        if unknown is None or unknown == tokenizer.eos_token_id:  # as CLIP has it, whose tokens spell every word
            return []
        return [word for word in prompt.split() if unknown in tokenizer(word).input_ids]

    def count_tokens(self, prompt: str) -> int:
        return len(self.pipeline.tokenizer(prompt, truncation=False, verbose=False).input_ids)

    def _check_first_frame(self, prompt: str) -> None:
        frame = prompt.first_frame if isinstance(prompt, Prompt) else None
        if frame is None and self.needs_first_frame:
            raise ValueError(
                f"{self.source} is an image-to-video model, and the prompt '{prompt[:60]}' has no first frame; give "
                'prompts as a .jsonl of {"prompt": ..., "first_frame": "image.png"}'
            )
        if frame is not None and not self.takes_first_frame:
            raise ValueError(f"{self.source} takes no first frame; the prompt '{prompt[:60]}' has {frame}")
        if frame is not None and frame not in self._looked_at:
            if not Path(frame).is_file():
                raise ValueError(f"the first frame {frame} of the prompt '{prompt[:60]}' is not a file")
            read_frame(frame, (8, 8))  # an unreadable one is found out now, not in the middle of a run
            self._looked_at.add(frame)

    # Pixels and latents ---------------------------------------------------------------------------------------------

    @abstractmethod
    def statistics(self) -> tuple[Tensor | float, Tensor | float]:
        """Mean and scale of the autoencoder's latents: the denoiser works on (latents - mean) / scale."""

    def encode(self, video: Video) -> Latent:
        """Latents of videos: the mode of the posterior, scaled as the denoiser expects."""
        with self.using("vae"):
            vae = self.pipeline.vae
            latents = vae.encode(folded(video).to(vae.device, vae.dtype)).latent_dist.mode()
            mean, scale = self.statistics()
            return (latents - mean) / scale

    def decode(self, latents: Latent, frames: int | None = None) -> Video:
        """Videos, in about [-1, 1], of latents.

        Args:
            frames: of the clip, where the latents may hold some in front for padding (CogVideoX 1.5).
        """
        with self.using("vae"):
            vae = self.pipeline.vae
            mean, scale = self.statistics()
            return folded(self.decode_latents(latents.to(vae.device, vae.dtype) * scale + mean))

    def decode_latents(self, latents: Latent) -> Float[Tensor, "b c f h w"]:
        """The autoencoder's own decoder."""
        return self.pipeline.vae.decode(latents, return_dict=False)[0]

    def per_channel(self, values: Sequence[float] | Tensor) -> Tensor:
        """One number per latent channel, to multiply latents with."""
        vae = self.pipeline.vae
        return torch.as_tensor(values).view(1, -1, 1, 1, 1).to(vae.device, vae.dtype)

    # The network ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def predict(self, denoiser: Any, x_t: Latent, t: Time, condition: Condition) -> Latent:
        """What `denoiser` (the policy's or the reference's) predicts at `x_t`."""

    def schedule_for(self, shape: Sequence[int]) -> Schedule:
        """The noise process in training on latents `... c f h w`; some models take more noise for larger clips."""
        return self.schedule

    def sampler(self, steps: int, shape: Sequence[int]) -> Any:
        """A fresh diffusers scheduler, the one users deploy with, set to `steps` steps for latents `... c f h w`."""
        scheduler = type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config)
        scheduler.set_timesteps(**self.sampling(steps, shape), device=self.device)
        return scheduler

    def sampling(self, steps: int, shape: Sequence[int]) -> dict[str, Any]:
        """What the family's pipeline tells its scheduler."""
        return {"num_inference_steps": steps}

    def with_known(self, latents: Latent, condition: Condition) -> Latent:
        """Sampled latents with what was known beforehand put in its place; most models know nothing."""
        return latents

    # What was trained -----------------------------------------------------------------------------------------------

    def save_lora(self, folder: Path, layers: Mapping[str, dict[str, Tensor]], configs: Mapping[str, dict]) -> None:
        """Write LoRA weights of each denoiser as `pipe.load_lora_weights` takes them."""
        named = {f"{name}_lora_layers": weights for name, weights in layers.items()}
        named |= {f"{name}_lora_adapter_metadata": config for name, config in configs.items()}
        self.pipeline.save_lora_weights(folder, **named)

    def load_lora(self, folder: Path) -> None:
        """Read what `save_lora` wrote."""
        self.pipeline.load_lora_weights(str(folder))


def folded(frames: Tensor) -> Tensor:
    """`b f c h w` <-> `b c f h w`: swap the second and third axis."""
    return frames.transpose(1, 2)


def _joined(rows: Sequence[Condition]) -> Condition:
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

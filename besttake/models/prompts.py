"""Prompts of a model: checks, text embeddings, and their cache in memory and on disk."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from besttake.data.cache import TensorCache
from besttake.data.faults import read_each
from besttake.data.video import read_frame
from besttake.runtime.distributed import raise_on_all, shard_items
from besttake.types import Condition, Prompt

if TYPE_CHECKING:
    from besttake.models.base import Size, VideoModel

log = logging.getLogger(__name__)

MOST_NAMED = 20
"""Unknown words that a warning lists at most."""

IN_MEMORY = 512
"""Number of prompts whose text embeddings are kept in RAM."""


class PromptEncoder:
    """Turns prompts into conditions of a model.

    Attributes:
        cache: on-disk cache of text embeddings; None = no cache.
    """

    def __init__(self, model: VideoModel):
        self.model = model
        self.cache: TensorCache | None = None
        self._texts: dict[str, Condition] = {}
        self._text_identity = ""
        self._readable_frames: set[Path] = set()
        self._checked: set[str] = set()
        self._unknown: set[str] = set()

    def encode(
        self, prompts: Sequence[str], size: Size | None = None, generator: torch.Generator | None = None
    ) -> Condition:
        """See `VideoModel.encode_prompts`."""
        self.check_all(prompts)
        with torch.no_grad():
            condition = self.text(prompts)
            files = [prompt.first_frame for prompt in prompts if isinstance(prompt, Prompt) and prompt.first_frame]
            if files:
                frames, height, width = size or self.model.default_size()
                pictures = torch.stack([read_frame(file, (height, width)) for file in files]).to(self.model.device)
                condition |= self.model.first_frame_condition(pictures, frames, generator)
        return condition

    def text(self, prompts: Sequence[str]) -> Condition:
        """Text embeddings. Prompts are encoded one by one, so that none depends on the others."""
        texts = {str(prompt): self._texts.get(str(prompt)) or self._cached(str(prompt)) for prompt in prompts}
        if not all(texts.values()):
            with self.model.using(*self.model.text_parts):
                texts = {prompt: text or self._embed(prompt) for prompt, text in texts.items()}
        for prompt, text in texts.items():
            self._texts.pop(prompt, None)
            self._texts[prompt] = {name: value.cpu() for name, value in text.items()}
        for prompt in list(self._texts)[:-IN_MEMORY]:
            del self._texts[prompt]
        rows = [texts[str(prompt)] for prompt in prompts]
        return {name: torch.cat([row[name].to(self.model.device) for row in rows]) for name in rows[0]}

    def prepare(self, prompts: Sequence[str]) -> None:
        """Check prompts and, if there is a cache, embed them all, so that the text encoder is loaded only once.

        All processes must call this.
        """
        with raise_on_all():
            self.check_all(prompts)
        for part in (shard_items(prompts), prompts) if self.cache else ():
            with raise_on_all(), torch.no_grad():
                for start in range(0, len(part), IN_MEMORY):
                    self.text(["", *part[start : start + IN_MEMORY]])

    def check_all(self, prompts: Sequence[str], skip_bad: bool | None = None) -> list[str]:
        """See `VideoModel.check_prompts`."""

        def checked(prompt: str) -> str:
            self.check(prompt)
            return prompt

        fine = read_each(prompts, checked, "prompts", skip_bad=skip_bad)
        self._warn_of_unknown_words(fine)
        return fine

    def check(self, prompt: str) -> None:
        """ValueError if a prompt is empty, has more tokens than the text encoder accepts, or lacks its first frame."""
        longest = self.model.longest_prompt()
        if not prompt.strip():
            raise ValueError("a prompt is empty; every prompt needs at least one word")
        tokens = self.model.count_tokens(prompt)
        if tokens > longest:
            raise ValueError(
                f"the prompt '{prompt[:60]}...' has {tokens} tokens, but {self.model.source} accepts {longest}: "
                "shorten it"
            )
        self._check_first_frame(prompt)

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of a prompt that the tokenizer has no token for."""
        tokenizer = self.model.pipeline.tokenizer
        unknown = getattr(tokenizer, "unk_token_id", None)
        if unknown is None or unknown == tokenizer.eos_token_id:  # CLIP, whose tokens cover every word
            return []
        return [word for word in prompt.split() if unknown in tokenizer(word).input_ids]

    def _cached(self, prompt: str) -> Condition:
        return (self.cache.read(*self._key(prompt)) if self.cache else None) or {}

    def _embed(self, prompt: str) -> Condition:
        text = self.model.embed([prompt])
        if self.cache:
            self.cache.write(text, *self._key(prompt))
        return text

    def _key(self, prompt: str) -> tuple[object, ...]:
        if not self._text_identity:
            tokenizers = [name for name in self.model.parts.names if name.startswith("tokenizer")]
            self._text_identity = self.model.identity(*self.model.text_parts, *tokenizers)
        return "text", self._text_identity, self.model.text_outputs, self.model.longest_prompt(), prompt

    def _warn_of_unknown_words(self, prompts: Sequence[str]) -> None:
        """Warn once of words without a token."""
        new = [str(prompt) for prompt in dict.fromkeys(prompts) if str(prompt) not in self._checked]
        self._checked.update(new)
        found = {prompt: words for prompt in new if (words := self.unknown_words(prompt))}
        if words := sorted({word for unknown in found.values() for word in unknown} - self._unknown):
            self._unknown.update(words)
            log.warning(
                "%s has no tokens for the words %s%s, in %d of %d prompts, and cannot tell them apart",
                self.model.source,
                ", ".join(words[:MOST_NAMED]),
                f" and {len(words) - MOST_NAMED} others" if len(words) > MOST_NAMED else "",
                len(found),
                len(new),
            )

    def _check_first_frame(self, prompt: str) -> None:
        model, frame = self.model, prompt.first_frame if isinstance(prompt, Prompt) else None
        if frame is None and model.needs_first_frame:
            raise ValueError(
                f"{model.source} is an image-to-video model, and the prompt '{prompt[:60]}' has no first frame; give "
                'prompts as a .jsonl of {"prompt": ..., "first_frame": "image.png"}'
            )
        if frame is not None and not model.accepts_first_frame:
            raise ValueError(f"{model.source} accepts no first frame, but the prompt '{prompt[:60]}' has {frame}")
        if frame is not None and frame not in self._readable_frames:
            if not Path(frame).is_file():
                raise ValueError(f"the first frame {frame} of the prompt '{prompt[:60]}' is not a file")
            read_frame(frame, (8, 8))  # fails now, not in the middle of a run
            self._readable_frames.add(frame)

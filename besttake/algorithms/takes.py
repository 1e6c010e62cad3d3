"""The model's own takes of the real clips' captions: RealDPO's losers, kept on disk and renewed as the policy moves.

A file's name says of which caption it is and at which step it was made, so that a resumed run finds exactly the takes
it had: takes made later than the step it resumes from are the very ones it would make again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from besttake.data.files import atomic
from besttake.distributed import leads, led, meet, together
from besttake.policy import Policy
from besttake.rollout import RolloutConfig, generate
from besttake.types import Latent, Prompt

log = logging.getLogger(__name__)


class Takes:
    """`n` takes of each caption, as latents under `folder`, which no run of other settings may share."""

    def __init__(self, policy: Policy, captions: list[str], config: RolloutConfig, n: int, seed: int, folder: Path):
        self.policy, self.captions, self.config, self.n, self.seed = policy, captions, config, n, seed
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def of(self, clips: list[int], step: int, renew_every: int) -> Tensor:
        """Latents (b, n, c, f, h, w) of some clips' takes, none made before the last multiple of `renew_every`.

        With `renew_every` 0 all takes are made at once by the policy as it is when first asked, at step 0.
        """
        oldest = step - step % renew_every if renew_every else 0
        wanted = [self.captions[i] for i in clips] if renew_every else self.captions
        unique = {_name(caption): caption for caption in wanted}.values()
        missing = [caption for caption in unique if self._made(caption, oldest, step - 1) is None]
        if missing and step and not renew_every:
            log.warning(
                "%d takes made before training are lost: they are made again by the policy of now", len(missing)
            )
        batch = max(1, self.config.batch // self.n)
        for start in range(0, len(missing), batch):
            part = missing[start : start + batch]
            if any(self._made(caption, oldest, step) is None for caption in part):
                self._make(part, step)  # whole, whatever a kill left of it: a batch's size shows in the last bits
        return torch.stack([self._read(self.captions[i], oldest, step) for i in clips])

    def with_winner(self, real: Latent, losers: Tensor) -> Tensor:
        """Rows (b, 1 + n, c, f, h, w): the real clip, then its takes."""
        return torch.cat([real[:, None], losers.to(real)], 1)

    def forget(self, before: int) -> None:
        """Delete takes made before a step from which no run will resume any more."""
        for path in self.folder.glob("[!.]*.safetensors"):  # hidden ones are what a kill left half-written
            if leads() and _step_of(path) < before:
                path.unlink()

    def _made(self, caption: str, oldest: int, newest: int) -> Path | None:
        """The youngest file of a caption's takes made in [oldest, newest]."""
        found = sorted(self.folder.glob(f"{_name(caption)}-*.safetensors"))
        return next((path for path in reversed(found) if oldest <= _step_of(path) <= newest), None)

    def _make(self, captions: Sequence[str], step: int) -> None:
        shot = generate(self.policy, list(captions), self.config, n=self.n, seed=(self.seed, step), decode=False)
        with together():
            for caption, latents in zip(captions, shot.latents.unflatten(0, (len(captions), self.n)), strict=True):
                if leads():
                    with atomic(self.folder / f"{_name(caption)}-{step:08d}.safetensors") as part:
                        save_file({"latents": latents.contiguous().cpu()}, part)

    def _read(self, caption: str, oldest: int, step: int) -> Tensor:
        path = self._made(caption, oldest, step)
        if path is None:
            raise FileNotFoundError(f"the takes of '{caption}' have vanished from {self.folder}")
        try:
            return load_file(path)["latents"]
        except (SafetensorError, KeyError):
            log.warning("the takes %s are damaged: they are made again by the policy of now", path)
            meet()  # all have seen it
            led(path.unlink)
            self._make([caption], step)
            return self._read(caption, oldest, step)


def _name(caption: str) -> str:
    """A file name for a caption and, if it has one, its first frame."""
    shown = f"\n{caption.first_frame}" if isinstance(caption, Prompt) and caption.first_frame else ""
    return hashlib.sha256((caption + shown).encode()).hexdigest()[:16]


def _step_of(path: Path) -> int:
    return int(path.stem.split("-")[1])

"""The model's own takes of the real clips' captions: RealDPO's losers, kept on disk and renewed as the policy moves.

A file's name says at which step it was made, so that a resumed run finds exactly the takes it had: takes made later
than the step it resumes from are the very ones it would make again.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from besttake.policy import Policy
from besttake.rollout import RolloutConfig, generate
from besttake.types import Latent


class Takes:
    """`n` takes of each caption, as latents under `folder`."""

    def __init__(self, policy: Policy, captions: list[str], config: RolloutConfig, n: int, seed: int, folder: Path):
        self.policy, self.captions, self.config, self.n, self.seed = policy, captions, config, n, seed
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def of(self, clips: list[int], step: int, renew_every: int) -> Tensor:
        """Latents (b, n, c, f, h, w) of some clips' takes, none made before the last multiple of `renew_every`.

        With `renew_every` 0 all takes are made at once by the policy as it is when first asked, at step 0.
        """
        oldest = step - step % renew_every if renew_every else 0
        wanted = clips if renew_every else range(len(self.captions))
        missing = [i for i in dict.fromkeys(wanted) if self._made(i, oldest, step) is None]
        for start in range(0, len(missing), max(1, self.config.batch // self.n)):
            self._make(missing[start : start + max(1, self.config.batch // self.n)], step)
        return torch.stack([self._read(i, oldest, step) for i in clips])

    def with_winner(self, real: Latent, losers: Tensor) -> Tensor:
        """Rows (b, 1 + n, c, f, h, w): the real clip, then its takes."""
        return torch.cat([real[:, None], losers.to(real)], 1)

    def _made(self, clip: int, oldest: int, newest: int) -> Path | None:
        """The youngest file of a clip's takes made in [oldest, newest]."""
        steps = {int(path.stem.split("-")[1]): path for path in self.folder.glob(f"{clip:06d}-*.safetensors")}
        usable = [step for step in steps if oldest <= step <= newest]
        return steps[max(usable)] if usable else None

    def _make(self, clips: list[int], step: int) -> None:
        shot = generate(
            self.policy, [self.captions[i] for i in clips], self.config, n=self.n, seed=(self.seed, step), decode=False
        )
        files = [self.folder / f"{clip:06d}-{step:08d}.safetensors" for clip in clips]
        for file, latents in zip(files, shot.latents.unflatten(0, (len(clips), self.n)), strict=True):
            save_file({"latents": latents.contiguous().cpu()}, file.with_suffix(".part"))
        for file in files:  # all at once: shot again in a smaller batch, their last bits could differ
            os.replace(file.with_suffix(".part"), file)

    def _read(self, clip: int, oldest: int, step: int) -> Tensor:
        path = self._made(clip, oldest, step)
        if path is None:
            raise FileNotFoundError(f"the takes of clip {clip} have vanished from {self.folder}")
        try:
            return load_file(path)["latents"]
        except (SafetensorError, KeyError):
            path.unlink()  # cut short by a full disk or a kill: made anew
            self._make([clip], step)
            return self._read(clip, oldest, step)

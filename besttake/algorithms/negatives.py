"""The policy's own samples of the real clips' captions, RealDPO's losers, kept on disk and renewed as the policy moves.

A file's name says of which caption it is and at which step it was made, so that a resumed run finds exactly the samples
it had: those made later than the step it resumes from are the very ones it would make again. Process 0 alone looks at
the disk, and tells the others what it has found: a shared one may show a file to some of them later than to others.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from besttake.data.files import save_tensors
from besttake.data.prompts import image_hashes
from besttake.models.policy import HASH_PREFIX, Policy
from besttake.runtime.configuration import fingerprint
from besttake.runtime.distributed import broadcast_from_main, broadcast_tensor_from_main, is_main, raise_on_all
from besttake.sampling.rollout import RolloutConfig, generate
from besttake.training.run import Run

log = logging.getLogger(__name__)


class NegativeSamples:
    """`n` samples of each caption, as latents under `folder`, which no run of other settings may share."""

    def __init__(self, policy: Policy, captions: list[str], config: RolloutConfig, n: int, seed: int, folder: Path):
        self.policy, self.captions, self.config, self.n, self.seed = policy, captions, config, n, seed
        self.folder = folder
        self.names = broadcast_from_main(lambda: [_name(caption) for caption in captions])
        if is_main():
            folder.mkdir(parents=True, exist_ok=True)
            for part in folder.glob(".*.tmp"):  # which a kill has left half-written
                part.unlink()

    def of(self, clips: list[int], step: int, regenerate_every: int) -> Tensor:
        """Latents (b, n, c, f, h, w) of some clips' samples, none made before the last multiple of `regenerate_every`.

        With `regenerate_every` 0 all samples are made at once by the policy as it is when first asked, at step 0.
        """
        oldest = step - step % regenerate_every if regenerate_every else 0
        captions = {self.names[i]: self.captions[i] for i in (clips if regenerate_every else range(len(self.captions)))}
        made = broadcast_from_main(lambda: self._made(captions, oldest, step))
        missing = [name for name in captions if min(made[name], default=step) == step]
        if missing and step and not regenerate_every:
            log.warning(
                "%d samples made before training are lost: they are made again by the policy of now", len(missing)
            )
        batch = max(1, self.config.batch // self.n)
        for start in range(0, len(missing), batch):
            part = {name: captions[name] for name in missing[start : start + batch]}
            if not all(made[name] for name in part):
                self._make(part, step)  # whole, whatever a kill left of it: a batch's size shows in the last bits
                made |= {name: [step] for name in part}
        names = [self.names[i] for i in clips]
        found = {name: self._read(name, captions[name], made[name], step) for name in dict.fromkeys(names)}
        return torch.stack([found[name] for name in names])

    def forget(self, before: int) -> None:
        """Delete samples made before a step from which no run will resume any more."""
        for path in self.folder.glob("[!.]*.safetensors") if is_main() else ():
            if _step_of(path) < before:
                path.unlink(missing_ok=True)

    def _made(self, names: Collection[str], oldest: int, newest: int) -> dict[str, list[int]]:
        """The steps in [oldest, newest] of each caption's samples that there are files of."""
        made: dict[str, list[int]] = {name: [] for name in names}
        for path in self.folder.glob("[!.]*.safetensors"):
            name, step = path.stem.split("-")[0], _step_of(path)
            if name in made and oldest <= step <= newest:
                made[name].append(step)
        return made

    def _make(self, captions: dict[str, str], step: int) -> None:
        texts = list(captions.values())
        rollout = generate(self.policy, texts, self.config, n=self.n, seed=(self.seed, step), decode=False)
        with raise_on_all():
            for name, latents in zip(captions, rollout.latents.unflatten(0, (len(texts), self.n)), strict=True):
                if is_main():
                    save_tensors(self._path(name, step), {"latents": latents.contiguous().cpu()})

    def _read(self, name: str, caption: str, made: Sequence[int], step: int) -> Tensor:
        """The youngest of a caption's samples."""
        latents = broadcast_tensor_from_main(lambda: self._load(self._path(name, max(made))))
        if latents is not None:
            return latents
        self._make({name: caption}, step)
        return self._read(name, caption, [step], step)

    def _load(self, path: Path) -> Tensor | None:
        try:
            return load(path.read_bytes())["latents"]
        except (FileNotFoundError, SafetensorError, KeyError):
            log.warning("the samples %s are damaged: they are made again by the policy of now", path)
            path.unlink(missing_ok=True)
            return None

    def _path(self, name: str, step: int) -> Path:
        return self.folder / f"{name}-{step:08d}.safetensors"


def negatives_folder(run: Run) -> Path:
    """Where a run's samples lie: they are of its settings, of the weights that it began from, and of its model's parts.

    A run that an older version began, whose base has a signature of that time, goes on in the folder of that time.
    """
    model = run.model
    parts = [name for name in model.parts.names if name != "vae" or model.accepts_first_frame]
    key = f"{fingerprint(run.config)}-{run.base}"
    if run.base.startswith(HASH_PREFIX):
        key += "-" + broadcast_from_main(lambda: hashlib.sha256(model.identity(*parts).encode()).hexdigest()[:16])
    return run.folder / "negatives" / key


def _name(caption: str) -> str:
    """A file name for a caption and, if it has one, its first frame, by what is to be seen in it."""
    frame = image_hashes(caption).get("first_frame")
    return hashlib.sha256((caption + (f"\n{frame}" if frame else "")).encode()).hexdigest()[:16]


def _step_of(path: Path) -> int:
    return int(path.stem.split("-")[1])

"""RealDPO's negative samples: the policy's samples of the real clips' captions, kept on disk.

A file is named after its caption and the step it was sampled at, so that a resumed run finds exactly the samples it
had; samples of later steps are those that it would sample again. Only process 0 reads the folder and broadcasts the
result, since on a shared disk new files may appear to other processes with a delay.
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
    """`n` samples of each caption, as latents in `folder`, which must not be shared by runs with other settings."""

    def __init__(self, policy: Policy, captions: list[str], config: RolloutConfig, n: int, seed: int, folder: Path):
        self.policy, self.captions, self.config, self.n, self.seed = policy, captions, config, n, seed
        self.folder = folder
        self.names = broadcast_from_main(lambda: [_name(caption) for caption in captions])
        if is_main():
            folder.mkdir(parents=True, exist_ok=True)
            for part in folder.glob(".*.tmp"):  # incomplete, of a process that was killed
                part.unlink()

    def of(self, clips: list[int], step: int, regenerate_every: int) -> Tensor:
        """Latents (b, n, c, f, h, w) of the samples for some clips, from the last multiple of `regenerate_every` on.

        With `regenerate_every` = 0 the samples of all clips are generated once, at the first call, at step 0.
        """
        oldest = step - step % regenerate_every if regenerate_every else 0
        captions = {self.names[i]: self.captions[i] for i in (clips if regenerate_every else range(len(self.captions)))}
        made = broadcast_from_main(lambda: self._made(captions, oldest, step))
        missing = [name for name in captions if min(made[name], default=step) == step]
        if missing and step and not regenerate_every:
            log.warning(
                "%d samples from before training are missing; regenerating them with the current policy", len(missing)
            )
        batch = max(1, self.config.batch // self.n)
        for start in range(0, len(missing), batch):
            part = {name: captions[name] for name in missing[start : start + batch]}
            if not all(made[name] for name in part):
                self._make(part, step)  # the whole batch, since the last bits depend on its size
                made |= {name: [step] for name in part}
        names = [self.names[i] for i in clips]
        found = {name: self._read(name, captions[name], made[name], step) for name in dict.fromkeys(names)}
        return torch.stack([found[name] for name in names])

    def delete(self, before: int) -> None:
        """Delete samples from before a step, which no resumed run will need."""
        for path in self.folder.glob("[!.]*.safetensors") if is_main() else ():
            if _step_of(path) < before:
                path.unlink(missing_ok=True)

    def _made(self, names: Collection[str], oldest: int, newest: int) -> dict[str, list[int]]:
        """The steps in [oldest, newest] that each caption has files of."""
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
        """The newest samples of a caption."""
        latents = broadcast_tensor_from_main(lambda: self._load(self._path(name, max(made))))
        if latents is not None:
            return latents
        self._make({name: caption}, step)
        return self._read(name, caption, [step], step)

    def _load(self, path: Path) -> Tensor | None:
        try:
            return load(path.read_bytes())["latents"]
        except (FileNotFoundError, SafetensorError, KeyError):
            log.warning("the samples in %s are damaged; regenerating them with the current policy", path)
            path.unlink(missing_ok=True)
            return None

    def _path(self, name: str, step: int) -> Path:
        return self.folder / f"{name}-{step:08d}.safetensors"


def negatives_folder(run: Run) -> Path:
    """The folder of a run's samples, keyed on its settings, the base weights and the model's other parts.

    A run started by an older version, whose base has a hash without prefix, keeps its old folder.
    """
    model = run.model
    parts = [name for name in model.parts.names if name != "vae" or model.accepts_first_frame]
    key = f"{fingerprint(run.config)}-{run.base}"
    if run.base.startswith(HASH_PREFIX):
        key += "-" + broadcast_from_main(lambda: hashlib.sha256(model.identity(*parts).encode()).hexdigest()[:16])
    return run.folder / "negatives" / key


def _name(caption: str) -> str:
    """A file name for a caption, by a hash of its text and the content of its first frame, if any."""
    frame = image_hashes(caption).get("first_frame")
    return hashlib.sha256((caption + (f"\n{frame}" if frame else "")).encode()).hexdigest()[:16]


def _step_of(path: Path) -> int:
    return int(path.stem.split("-")[1])

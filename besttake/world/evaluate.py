"""How much better a run has made its videos: what critics say of them and, for clips of the world, what is measured."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from besttake.data.video import read_video
from besttake.evaluation.before_after import (
    ANALYTIC,
    CriticMeasures,
    EvaluateConfig,
    Measurements,
    base_model,
    batches,
    concat_measurements,
    sample_videos,
    with_adapter,
    write_examples,
    write_summary,
    write_values,
)
from besttake.evaluation.frechet import frechet_distance
from besttake.evaluation.held_out import EvaluationSet
from besttake.evaluation.paired import adjusted_p_values, p_value_of_means, p_value_of_sets
from besttake.models import Size, VideoModel
from besttake.report.folder import trained_on
from besttake.report.measures import gain_of
from besttake.rewards.critics.heldout import load as load_heldout
from besttake.runtime.configuration import read_yaml
from besttake.runtime.distributed import all_gather_dict, broadcast_from_main, own_rows, raise_on_all, single_process
from besttake.sampling.rollout import RolloutConfig
from besttake.world.captions import Caption
from besttake.world.clips import film_clip
from besttake.world.measure import FLAWS, measure_all
from besttake.world.measure import summary as measured
from besttake.world.physics import FPS, FRAMES, WIDTH

log = logging.getLogger(__name__)

REFERENCES = 4
"""Clean clips per prompt that the Frechet distance compares with."""

WORLD = ("world", *ANALYTIC)
"""Critics of the world's clips, besides the held-out one."""

FRECHET = "frechet_distance"

Videos = Callable[[Sequence[int]], Tensor]
"""Clips `b f c h w` by the numbers of their prompts."""


def evaluate(run: Path, config: EvaluateConfig, chosen: EvaluationSet, about: dict[str, Any]) -> dict[str, Any]:
    """Shoot, measure, and write `summary.json` and what the report shows of the clips; the summary.

    Clips of the world's size with captions of its grammar are measured, and compared with clean ones; of others only
    the critics are asked. Several processes share the work out, a batch at a time, and find what one alone would.

    Args:
        config: its `rollout` is whole: the run's own, with what the evaluation has otherwise.

    Raises:
        ValueError: the run is not finished, or something cannot be measured.
    """
    rollout, prompts = config.rollout.over(RolloutConfig()), chosen.prompts
    with raise_on_all():
        if not (run / "adapter").is_dir():
            raise ValueError(f"there is no {run / 'adapter'} to measure; has the run finished?")
        model = base_model(run)
        judge = judge_of(model, config, rollout, prompts)
    folder = broadcast_from_main(lambda: emptied(run / ".evaluation"))

    def look(name: str, videos: Videos) -> Measurements:
        keep = partial(write_examples, folder / name, shown=config.shown, fps=model.fps)
        return evaluate_videos(judge.measure, videos, prompts, rollout.batch, keep)

    def shots(rows: Sequence[int]) -> Tensor:
        return sample_videos(model, [prompts[row] for row in rows], config)

    if isinstance(judge, Evaluator):
        judge.learn(prompts, rollout.batch)
    found = {"before": look("before", shots)}
    if real := real_clips(chosen, model, rollout.size(model), isinstance(judge, Evaluator)):
        found["real"] = look("real", lambda rows: through_autoencoder(model, real(rows)))
    with raise_on_all():
        with_adapter(model, run / "adapter")
    found["after"] = look("after", shots)
    about = {"prompts": chosen.source, **held_out_fields(chosen), "clips": len(prompts), "seed": config.seed, **about}
    return broadcast_from_main(lambda: written(run, folder, judge, found, prompts, config.shown, about))


def written(
    run: Path,
    folder: Path,
    judge: Evaluator | CriticMeasures,
    found: Mapping[str, Measurements],
    prompts: list[str],
    shown: int,
    about: dict[str, Any],
) -> dict[str, Any]:
    """The summary, when it is written, and the folder with what the report shows is in its place."""
    names = [name for name in ("before", "after", "real") if name in found]
    summary: dict[str, Any] = {name: judge.means(found[name]) for name in names}
    columns = {name: judge.columns(found[name]) for name in names}
    critic, real = trained_on(read_yaml(run / "config.yaml")), summary.get("real", {})
    p_values = compared(columns["before"], columns["after"], real, critic)
    if isinstance(judge, Evaluator):
        p_values[FRECHET] = judge.p_of_distance(found["before"], found["after"])
    q_values = adjusted_p_values(p_values)
    changes = {name: {"p": p, "q": q_values[name]} for name, p in p_values.items()}
    summary["about"] = about
    write_values(folder / "values.csv", prompts, columns)
    (folder / "prompts.json").write_text(json.dumps(prompts[:shown], indent=1))
    (folder / "changes.json").write_text(json.dumps(changes, indent=1))
    shutil.rmtree(run / "evaluation", ignore_errors=True)  # of other prompts, or another seed
    folder.rename(run / "evaluation")
    write_summary(run, summary)
    return summary


def compared(
    before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], real: Mapping[str, float], critic: str | None
) -> dict[str, float]:
    """For each measure that can get better or worse, how likely chance changes it as much: a paired test over clips."""
    found = {}
    for name, was in before.items():
        gain, now = gain_of(name, real.get(name), critic), after[name]
        both = np.isfinite(was) & np.isfinite(now)
        if gain and both.any():
            found[name] = p_value_of_means(was[both].astype(float), now[both].astype(float), gain)
    return found


def held_out_fields(chosen: EvaluationSet) -> dict[str, Any]:
    """What a summary says of its prompts: whether they were held out of training, or how many of them were not."""
    if chosen.trained_on is None:
        return {}
    return {"held_out": chosen.trained_on == 0, "trained_on": chosen.trained_on}


def judge_of(
    model: VideoModel, config: EvaluateConfig, rollout: RolloutConfig, prompts: list[str]
) -> Evaluator | CriticMeasures:
    """What measures clips of this size and these prompts."""
    frames, height, width = rollout.size(model)
    if of_the_world((frames, height, width), prompts):
        return Evaluator(config.rewards or WORLD, frames)
    return CriticMeasures(config.rewards or ANALYTIC, model.fps, str(model.device))


def of_the_world(size: Size, prompts: list[str]) -> bool:
    """Whether clips of so many frames, this height and width are of the world's size, and prompts of its grammar."""
    if size[0] < FRAMES or size[1:] != (WIDTH, WIDTH):
        return False
    try:
        return all(Caption.parse(prompt) for prompt in prompts)
    except ValueError:
        return False


def evaluate_videos(
    look: Callable[[Tensor, list[str]], Measurements],
    videos: Videos,
    prompts: Sequence[str],
    batch: int,
    keep: Callable[[Sequence[int], Tensor], None] = lambda *_: None,
) -> Measurements:
    """What there is to find of a clip of each prompt, where every process looks at its share, `batch` clips at once.

    A batch is never divided: arithmetic on fewer clips differs in its last bits.
    """
    parts = batches(list(range(len(prompts))), batch)
    own, found = own_rows(len(parts)), {}
    with raise_on_all(), single_process():
        for number in own:
            clips = videos(parts[number])
            keep(parts[number], clips)
            found[number] = look(clips, [prompts[row] for row in parts[number]])
    everything = all_gather_dict(found)
    return concat_measurements([everything[number] for number in range(len(parts))])


class Evaluator:
    """Everything that is measured of the world's clips."""

    def __init__(self, rewards: Sequence[str] = WORLD, frames: int = FRAMES):
        self.critics, self.heldout, self.frames = CriticMeasures(rewards, FPS), load_heldout(), frames

    def learn(self, prompts: list[str], batch: int = 32) -> None:
        """The features of clean clips of the prompts, which the Frechet distance compares with."""

        def features(videos: Tensor, some: list[str]) -> Measurements:
            return {"features": self.heldout.features(videos, some)}

        clips = [partial(clean_clips, prompts, seed, self.frames) for seed in range(REFERENCES)]
        clean = [evaluate_videos(features, of_one_seed, prompts, batch) for of_one_seed in clips]
        self.reference = concat_measurements(clean)["features"]

    def measure(self, videos: Tensor, prompts: list[str]) -> Measurements:
        return {
            "measures": measure_all(videos, prompts),
            "critics": self.critics.measure(videos, prompts),
            "plausibility": self.heldout(videos, prompts).values,
            "features": self.heldout.features(videos, prompts),
        }

    def means(self, found: Measurements) -> dict[str, float]:
        seen = measured(found["measures"])
        first = {name: seen.pop(name) for name in ("flawed_share", "dynamic_degree", "object_area")}
        first["heldout_reward"] = found["plausibility"].mean().item()
        first[FRECHET] = frechet_distance(found["features"], self.reference)
        return {**first, **seen, **self.critics.means(found["critics"])}

    def columns(self, found: Measurements) -> dict[str, np.ndarray]:
        """What was measured of each clip, by the name of its mean; a flaw is there, 1, or not."""
        table = dict(found["measures"])
        flaws, flawed = table.pop("flaws"), table.pop("flawed")
        shares = {f"share/{flaw}": np.array([float(flaw in seen) for seen in flaws]) for flaw in FLAWS}
        first = {"flawed_share": flawed.astype(float), "heldout_reward": found["plausibility"][:, 0].numpy()}
        return {**first, **table, **shares, **self.critics.columns(found["critics"])}

    def p_of_distance(self, before: Measurements, after: Measurements) -> float:
        """How likely chance changes the Frechet distance as much."""

        def gain(was: np.ndarray, now: np.ndarray) -> float:
            distances = [frechet_distance(torch.from_numpy(features), self.reference) for features in (was, now)]
            return distances[0] - distances[1]

        return p_value_of_sets(before["features"].numpy(), after["features"].numpy(), gain)


def real_clips(chosen: EvaluationSet, model: VideoModel, size: Size, of_world: bool) -> Videos | None:
    """Where real clips of the prompts come from: the user's own files, or clean clips of the world; None if nowhere."""
    if chosen.clips:
        if missing := [clip for clip in chosen.clips if not clip.is_file()]:
            log.warning("without real clips to compare with: %s is gone", missing[0])
            return None
        frames, height, width = size

        def read(rows: Sequence[int]) -> Tensor:
            files = (chosen.clips[row] for row in rows)
            return torch.stack([read_video(file, fps=model.fps, frames=frames, size=(height, width)) for file in files])

        return read
    return partial(clean_clips, chosen.prompts, 99, size[0]) if of_world else None


def clean_clips(prompts: list[str], seed: int, frames: int, rows: Sequence[int]) -> Tensor:
    """One clean clip of each of the prompts with these numbers, `b f c h w`."""
    clips = [
        film_clip(Caption.parse(prompts[row]), np.random.default_rng([1000 + seed, row]), frames=frames) for row in rows
    ]
    return torch.stack([clip.video for clip in clips])


@torch.no_grad()
def through_autoencoder(model: VideoModel, videos: Tensor, batch: int = 16) -> Tensor:
    """Videos encoded and decoded again, on the CPU: the best that the model's could look."""
    frames, parts = videos.shape[1], videos.split(batch)
    with model.using("vae"):
        restored = [model.decode(model.encode(part.to(model.device)), frames).float().cpu() for part in parts]
    return torch.cat(restored).clamp(-1, 1)


def emptied(folder: Path) -> Path:
    """A folder with nothing in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder

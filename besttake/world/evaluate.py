"""Evaluation of a run before and after training: critics' scores and, for clips of the world, exact measures."""

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

REFERENCE_CLIPS = 4
"""Clean reference clips per prompt for the Frechet distance."""

WORLD = ("world", *ANALYTIC)
"""Default critics of the world's clips, besides the held-out one."""

FRECHET = "frechet_distance"

Videos = Callable[[Sequence[int]], Tensor]
"""Returns clips `b f c h w` for the indices of their prompts."""


def evaluate(run: Path, config: EvaluateConfig, chosen: EvaluationSet, about: dict[str, Any]) -> dict[str, Any]:
    """Sample and measure clips before and after training; writes and returns `summary.json`, and the report's clips.

    Clips of the world's size and grammar are measured and compared with clean ones; other clips are only scored by
    critics. Several processes split the work by batches; the results equal those of a single process.

    Args:
        config: with complete `rollout` settings: the run's own with the evaluation's overrides.

    Raises:
        ValueError: the run is not finished, or a measurement fails.
    """
    rollout, prompts = config.rollout.over(RolloutConfig()), chosen.prompts
    with raise_on_all():
        if not (run / "adapter").is_dir():
            raise ValueError(f"there is no {run / 'adapter'} to evaluate; has the run finished?")
        model = base_model(run)
        evaluator = make_evaluator(model, config, rollout, prompts)
    folder = broadcast_from_main(lambda: empty_folder(run / ".evaluation"))

    def measure(name: str, videos: Videos) -> Measurements:
        write = partial(write_examples, folder / name, shown=config.shown, fps=model.fps)
        return evaluate_videos(evaluator.measure, videos, prompts, rollout.batch, write)

    def sample_rows(rows: Sequence[int]) -> Tensor:
        return sample_videos(model, [prompts[row] for row in rows], config)

    if isinstance(evaluator, Evaluator):
        evaluator.fit_reference(prompts, rollout.batch)
    measurements = {"before": measure("before", sample_rows)}
    if real := real_clips(chosen, model, rollout.size(model), isinstance(evaluator, Evaluator)):
        measurements["real"] = measure("real", lambda rows: through_autoencoder(model, real(rows)))
    with raise_on_all():
        with_adapter(model, run / "adapter")
    measurements["after"] = measure("after", sample_rows)
    about = {"prompts": chosen.source, **held_out_fields(chosen), "clips": len(prompts), "seed": config.seed, **about}
    return broadcast_from_main(
        lambda: finish_evaluation(run, folder, evaluator, measurements, prompts, config.shown, about)
    )


def finish_evaluation(
    run: Path,
    folder: Path,
    evaluator: Evaluator | CriticMeasures,
    measurements: Mapping[str, Measurements],
    prompts: list[str],
    shown: int,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Write the summary and the evaluation folder with the report's clips; returns the summary."""
    names = [name for name in ("before", "after", "real") if name in measurements]
    summary: dict[str, Any] = {name: evaluator.means(measurements[name]) for name in names}
    columns = {name: evaluator.columns(measurements[name]) for name in names}
    critic, real = trained_on(read_yaml(run / "config.yaml")), summary.get("real", {})
    p_values = p_values_of(columns["before"], columns["after"], real, critic)
    if isinstance(evaluator, Evaluator):
        p_values[FRECHET] = evaluator.p_value_of_distance(measurements["before"], measurements["after"])
    q_values = adjusted_p_values(p_values)
    changes = {name: {"p": p, "q": q_values[name]} for name, p in p_values.items()}
    summary["about"] = about
    write_values(folder / "values.csv", prompts, columns)
    (folder / "prompts.json").write_text(json.dumps(prompts[:shown], indent=1))
    (folder / "changes.json").write_text(json.dumps(changes, indent=1))
    shutil.rmtree(run / "evaluation", ignore_errors=True)  # of an evaluation with other prompts or another seed
    folder.rename(run / "evaluation")
    write_summary(run, summary)
    return summary


def p_values_of(
    before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], real: Mapping[str, float], critic: str | None
) -> dict[str, float]:
    """p-values of the change of each measure that has a better direction, by a paired test over clips."""
    p_values = {}
    for name, before_values in before.items():
        gain, after_values = gain_of(name, real.get(name), critic), after[name]
        finite = np.isfinite(before_values) & np.isfinite(after_values)
        if gain and finite.any():
            p_values[name] = p_value_of_means(
                before_values[finite].astype(float), after_values[finite].astype(float), gain
            )
    return p_values


def held_out_fields(chosen: EvaluationSet) -> dict[str, Any]:
    """The summary's fields on whether the prompts were held out of training."""
    if chosen.trained_on is None:
        return {}
    return {"held_out": chosen.trained_on == 0, "trained_on": chosen.trained_on}


def make_evaluator(
    model: VideoModel, config: EvaluateConfig, rollout: RolloutConfig, prompts: list[str]
) -> Evaluator | CriticMeasures:
    """The evaluator for clips of this size and these prompts."""
    frames, height, width = rollout.size(model)
    if is_world_size_and_grammar((frames, height, width), prompts):
        return Evaluator(config.rewards or WORLD, frames)
    return CriticMeasures(config.rewards or ANALYTIC, model.fps, str(model.device))


def is_world_size_and_grammar(size: Size, prompts: list[str]) -> bool:
    """Whether a size (frames, height, width) is the world's, and the prompts follow its grammar."""
    if size[0] < FRAMES or size[1:] != (WIDTH, WIDTH):
        return False
    try:
        return all(Caption.parse(prompt) for prompt in prompts)
    except ValueError:
        return False


def evaluate_videos(
    measure: Callable[[Tensor, list[str]], Measurements],
    videos: Videos,
    prompts: Sequence[str],
    batch: int,
    write: Callable[[Sequence[int], Tensor], None] = lambda *_: None,
) -> Measurements:
    """Measure one clip per prompt in batches of `batch`, which are split among the processes.

    Batches are never divided, since results for another batch size differ in the last bits.
    """
    parts = batches(list(range(len(prompts))), batch)
    own, measurements = own_rows(len(parts)), {}
    with raise_on_all(), single_process():
        for number in own:
            clips = videos(parts[number])
            write(parts[number], clips)
            measurements[number] = measure(clips, [prompts[row] for row in parts[number]])
    everything = all_gather_dict(measurements)
    return concat_measurements([everything[number] for number in range(len(parts))])


class Evaluator:
    """All measurements of the world's clips: exact measures, critics, plausibility and features."""

    def __init__(self, rewards: Sequence[str] = WORLD, frames: int = FRAMES):
        self.critics, self.heldout, self.frames = CriticMeasures(rewards, FPS), load_heldout(), frames

    def fit_reference(self, prompts: list[str], batch: int = 32) -> None:
        """Compute the reference features for the Frechet distance, from clean clips of the prompts."""

        def features(videos: Tensor, some: list[str]) -> Measurements:
            return {"features": self.heldout.features(videos, some)}

        clips = [partial(clean_clips, prompts, seed, self.frames) for seed in range(REFERENCE_CLIPS)]
        clean = [evaluate_videos(features, of_one_seed, prompts, batch) for of_one_seed in clips]
        self.reference = concat_measurements(clean)["features"]

    def measure(self, videos: Tensor, prompts: list[str]) -> Measurements:
        return {
            "measures": measure_all(videos, prompts),
            "critics": self.critics.measure(videos, prompts),
            "plausibility": self.heldout(videos, prompts).values,
            "features": self.heldout.features(videos, prompts),
        }

    def means(self, measurements: Measurements) -> dict[str, float]:
        means = measured(measurements["measures"])
        first = {name: means.pop(name) for name in ("flawed_share", "dynamic_degree", "object_area")}
        first["heldout_reward"] = measurements["plausibility"].mean().item()
        first[FRECHET] = frechet_distance(measurements["features"], self.reference)
        return {**first, **means, **self.critics.means(measurements["critics"])}

    def columns(self, measurements: Measurements) -> dict[str, np.ndarray]:
        """Measurements of each clip, by the name of their mean; flaws are 1 or 0."""
        table = dict(measurements["measures"])
        flaws, flawed = table.pop("flaws"), table.pop("flawed")
        shares = {
            f"share/{flaw}": np.array([float(flaw in flaws_of_clip) for flaws_of_clip in flaws]) for flaw in FLAWS
        }
        first = {"flawed_share": flawed.astype(float), "heldout_reward": measurements["plausibility"][:, 0].numpy()}
        return {**first, **table, **shares, **self.critics.columns(measurements["critics"])}

    def p_value_of_distance(self, before: Measurements, after: Measurements) -> float:
        """p-value of the change of the Frechet distance."""

        def gain(before_values: np.ndarray, after_values: np.ndarray) -> float:
            distances = [
                frechet_distance(torch.from_numpy(features), self.reference)
                for features in (before_values, after_values)
            ]
            return distances[0] - distances[1]

        return p_value_of_sets(before["features"].numpy(), after["features"].numpy(), gain)


def real_clips(chosen: EvaluationSet, model: VideoModel, size: Size, of_world: bool) -> Videos | None:
    """The source of real clips of the prompts: the user's files, or clean clips of the world; None if there is none."""
    if chosen.clips:
        if missing := [clip for clip in chosen.clips if not clip.is_file()]:
            log.warning("the real clip %s is missing; evaluating without real clips", missing[0])
            return None
        frames, height, width = size

        def read(rows: Sequence[int]) -> Tensor:
            files = (chosen.clips[row] for row in rows)
            return torch.stack([read_video(file, fps=model.fps, frames=frames, size=(height, width)) for file in files])

        return read
    return partial(clean_clips, chosen.prompts, 99, size[0]) if of_world else None


def clean_clips(prompts: list[str], seed: int, frames: int, rows: Sequence[int]) -> Tensor:
    """One clean clip for each of the prompts with these indices, `b f c h w`."""
    clips = [
        film_clip(Caption.parse(prompts[row]), np.random.default_rng([1000 + seed, row]), frames=frames) for row in rows
    ]
    return torch.stack([clip.video for clip in clips])


@torch.no_grad()
def through_autoencoder(model: VideoModel, videos: Tensor, batch: int = 16) -> Tensor:
    """Encode and decode videos, the upper bound of the model's quality; the result is on the CPU."""
    frames, parts = videos.shape[1], videos.split(batch)
    with model.using("vae"):
        restored = [model.decode(model.encode(part.to(model.device)), frames).float().cpu() for part in parts]
    return torch.cat(restored).clamp(-1, 1)


def empty_folder(folder: Path) -> Path:
    """Create an empty folder, removing an existing one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder

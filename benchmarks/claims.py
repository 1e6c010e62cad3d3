"""The papers' claims on the small world, one table each: equal training time for every arm, several seeds.

    python benchmarks/claims.py                       # every table; resumes; hours on two cores
    python benchmarks/claims.py --tables online beta --minutes 3 --seeds 3

Each run is a recipe trained with one thread. Only training time counts, except that offline DPO's includes making its
pairs. The result of each run is a small file in `results`; existing results are not computed again, unless the recipe
or the embedded weights have changed. Tables are printed as Markdown and written to `results/tables.md`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from besttake.commands.cli import DEMO, read_recipe, with_flags
from besttake.commands.generate import GenerateConfig, generate_samples, real_data
from besttake.commands.score import ScoreConfig, score_videos
from besttake.data.files import atomic
from besttake.data.prompts import read_prompts
from besttake.evaluation.before_after import EvaluateConfig, sample_videos, trained_model
from besttake.models import load_model
from besttake.report.folder import read_run
from besttake.rewards.critics.world import DIMENSIONS
from besttake.runtime.configuration import fingerprint
from besttake.runtime.embedded import FOLDER, embedded_model
from besttake.world.evaluate import Evaluator, clean_clips, evaluate_videos, through_autoencoder
from besttake.world.measure import FLAWS
from besttake.world.physics import FRAMES

COLUMNS = ("flawed_share", "heldout_reward", "frechet_distance", "dynamic_degree", "object_area")
KEPT = (*COLUMNS, *(f"share/{flaw}" for flaw in FLAWS))
EVALUATION = EvaluateConfig("world-test")
PROMPTS = read_prompts("world-test")[: EVALUATION.count]
ONLINE = DEMO
SHORT = ("--prompts-per-step", "2", "--optim.lr", "1e-3")
"""Changes to OnlineVPO's recipe in every arm: half the prompts per step, for twice the steps in a few minutes."""


@dataclass(frozen=True)
class Arm:
    """One row of a table: a recipe and its changed settings."""

    name: str
    recipe: str
    flags: tuple[str, ...] = ()


def _online(name: str, *flags: str) -> Arm:
    return Arm(name, ONLINE, flags)


def _swept(setting: str, values: tuple[int, ...]) -> list[Arm]:
    """An arm for each value; the recipe's own value needs no flag and no separate run."""
    own, flag = getattr(read_recipe(ONLINE), setting), f"--{setting.replace('_', '-')}"
    return [_online(f"{setting.replace('_', ' ')} {v}", *(() if v == own else (flag, str(v)))) for v in values]


TABLES: dict[str, list[Arm]] = {
    "online": [_online("OnlineVPO"), Arm("offline DPO", "dpo-tiny"), Arm("SFT", "sft-tiny")],
    "realdpo": [Arm("RealDPO", "realdpo-tiny"), Arm("SFT", "sft-tiny")],
    "curriculum": [_online("refreshed reference"), _online("fixed reference", "--refresh-every", "0")],
    "candidates": _swept("candidates", (2, 4, 6, 8)),
    "refresh": _swept("refresh_every", (5, 20, 40)),
    "beta": _swept("beta", (100, 500, 2000)),
    "reward": [
        _online("weighted as in the recipe"),
        *(_online(f"{dimension} alone", "--reward.weights", dimension, "1") for dimension in DIMENSIONS),
    ],
}


@dataclass(frozen=True)
class ClaimsConfig:
    """Tables, training time, seeds and folders."""

    tables: tuple[str, ...] = tuple(TABLES)
    minutes: float = 4.0
    seeds: int = 3
    jobs: int = 2
    """Parallel runs, with one thread each."""
    model: str = "tiny-cogvideox"
    out: Path = Path("runs/claims")
    results: Path = Path("docs/claims")
    prompts: int = 40
    """Prompts of offline DPO's pairs."""

    def __post_init__(self):
        unknown = set(self.tables) - set(TABLES)
        if unknown:
            raise ValueError(f"unknown table {', '.join(sorted(unknown))}; expected {', '.join(TABLES)}")


def main(config: ClaimsConfig) -> None:
    """Run what is missing, print and write the tables."""
    config.results.mkdir(parents=True, exist_ok=True)
    config.out.mkdir(parents=True, exist_ok=True)
    real_data("world")  # before two runs would write it
    arms = _distinct(arm for table in config.tables for arm in TABLES[table])
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(config.jobs, spawn, initializer=_log_to_file, initargs=(config.out,)) as pool:
        jobs = [pool.submit(measure_base, config)]
        jobs += [pool.submit(train, arm, seed, config) for seed in range(config.seeds) for arm in arms]
        for job in as_completed(jobs):
            print(job.result(), flush=True)
    text = "\n".join(line for table in config.tables for line in markdown(table, config))
    (config.results / "tables.md").write_text(text + "\n")
    print(text)


def _log_to_file(folder: Path) -> None:
    """Redirect a worker's output to a file; use one thread."""
    torch.set_num_threads(1)
    log = os.open(folder / f"worker-{os.getpid()}.log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _distinct(arms: Iterable[Arm]) -> list[Arm]:
    """Arms with equal settings are run once."""
    return list({(arm.recipe, arm.flags): arm for arm in arms}.values())


def name_of(arm: Arm, seed: int) -> str:
    words = "-".join([arm.recipe, *arm.flags]).replace("--", "").replace(" ", "_")
    return f"{words}-seed{seed}"


def train(arm: Arm, seed: int, config: ClaimsConfig) -> str:
    """One run, unless its result exists; returns its name and figures."""
    name, inputs_hash = name_of(arm, seed), ingredients(arm, config)
    result = config.results / f"{name}.json"
    if result.exists() and json.loads(result.read_text()).get("made_of") == inputs_hash:
        return f"{name}: already there"
    recipe = recipe_of(arm)
    minutes, data = config.minutes, real_data(recipe.data)
    if arm.recipe == "dpo-tiny":
        data, minutes_of_pairs = make_pairs(seed, inputs_hash, config)
        minutes -= minutes_of_pairs
        if minutes <= 0:  # 0 would mean no limit
            raise SystemExit(
                f"making the pairs took {minutes_of_pairs:.1f} of {config.minutes} minutes: raise --minutes, or lower "
                "--prompts"
            )
    no_validation = replace(recipe.validation, every=0)
    out = config.out / f"{name}-{inputs_hash}"
    recipe = replace(recipe, data=str(data), model=config.model, out=out, seed=seed, validation=no_validation)
    importlib.import_module(type(recipe).__module__).train(replace(recipe, steps=100_000, minutes=minutes))
    after = measure_videos(sample_videos(trained_model(out), PROMPTS, EVALUATION))
    write_result(result, {"after": after, "made_of": inputs_hash, "steps": read_run(out).steps_done})
    return f"{name}: {after}"


def recipe_of(arm: Arm) -> Any:
    """The arm's recipe, without seed, time and folder."""
    flags = [*(SHORT if arm.recipe == ONLINE else ()), *arm.flags]
    return with_flags(read_recipe(arm.recipe), flags, arm.name)


def measure_base(config: ClaimsConfig) -> str:
    """Measure the base model's samples and clean clips, which are the same for all runs."""
    result, inputs_hash = config.results / "base.json", weights_of(config).hexdigest()[:8]
    if result.exists() and json.loads(result.read_text()).get("made_of") == inputs_hash:
        return "the base model and real clips: already there"
    model = load_model(config.model)
    real = through_autoencoder(model, clean_clips(PROMPTS, 99, FRAMES, range(len(PROMPTS))))
    before = sample_videos(model, PROMPTS, EVALUATION)
    write_result(result, {"before": measure_videos(before), "real": measure_videos(real), "made_of": inputs_hash})
    return "the base model and real clips: measured"


def write_result(path: Path, values: dict) -> None:
    with atomic(path) as part:
        part.write_text(json.dumps(values, indent=1))


@functools.cache
def evaluator() -> Evaluator:
    made = Evaluator(("dynamic-degree",))  # the tables show no other critic
    made.fit_reference(PROMPTS)
    return made


def measure_videos(videos: Tensor) -> dict[str, float]:
    """The tables' measures of clips of the test prompts."""
    means = evaluator().means(evaluate_videos(evaluator().measure, lambda rows: videos[rows], PROMPTS, 32))
    return {key: means[key] for key in KEPT}


def ingredients(arm: Arm, config: ClaimsConfig) -> str:
    """A hash of a run's inputs except its seed: recipe, minutes, weights."""
    recipes = [
        recipe_of(arm),
        *([read_recipe(ONLINE)] if arm.recipe == "dpo-tiny" else []),
    ]  # which samples like OnlineVPO
    about = f"{[fingerprint(recipe) for recipe in recipes]} {config.minutes} {config.prompts}".encode()
    return weights_of(config, about).hexdigest()[:8]


def weights_of(config: ClaimsConfig, about: bytes = b"") -> Any:
    """The hash of all weights that a run loads, and of `about`."""
    critics = (FOLDER / "weights").glob("critic-*/*.safetensors")
    weights = sorted([*Path(embedded_model(config.model)).rglob("*.safetensors"), *critics])
    return hashlib.sha256(about + b"".join(file.read_bytes() for file in weights))


def make_pairs(seed: int, inputs_hash: str, config: ClaimsConfig) -> tuple[Path, float]:
    """Preference pairs of the base model, sampled and scored like OnlineVPO's; and the minutes that took."""
    online = read_recipe(ONLINE)
    folder = config.out / f"candidates-seed{seed}-{inputs_hash}"
    pairs, clock = folder / "pairs.jsonl", folder / "minutes.json"
    if not clock.exists():
        shutil.rmtree(folder, ignore_errors=True)  # of an interrupted start, whose time is unknown
        began = time.perf_counter()
        sampling = GenerateConfig(online.data, config.model, out=folder, n=online.candidates, count=config.prompts)
        listed = generate_samples(replace(sampling, seed=seed, rollout=online.rollout))
        score_videos(
            ScoreConfig(samples=listed, reward=(online.reward.name,), weights=online.reward.weights, out=pairs)
        )
        clock.write_text(json.dumps((time.perf_counter() - began) / 60))
    return pairs, json.loads(clock.read_text())


def markdown(table: str, config: ClaimsConfig) -> Iterator[str]:
    """A table's lines: mean and standard deviation over the seeds, after training."""
    yield f"\n### {table}\n"
    yield "| | " + " | ".join(name.replace("_", " ") for name in COLUMNS) + " | steps |"
    yield "| --- " * (len(COLUMNS) + 2) + "|"
    base = json.loads((config.results / "base.json").read_text())
    for column in ("before", "real"):
        yield _row(column, [base[column]], "")
    for arm in TABLES[table]:
        runs = [config.results / f"{name_of(arm, seed)}.json" for seed in range(config.seeds)]
        results = [json.loads(run.read_text()) for run in runs]
        steps = statistics.mean(result["steps"] for result in results)
        yield _row(arm.name, [result["after"] for result in results], f"{steps:.0f}")


def _row(name: str, values: list[dict[str, float]], steps: str) -> str:
    cells = []
    for column in COLUMNS:
        column_values = [value[column] for value in values]
        spread = f" ± {statistics.stdev(column_values):.3g}" if len(column_values) > 1 else ""
        cells.append(f"{statistics.mean(column_values):.3g}{spread}")
    return f"| {name} | " + " | ".join(cells) + f" | {steps} |"


if __name__ == "__main__":
    main(tyro.cli(ClaimsConfig))

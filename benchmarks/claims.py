"""The papers' claims on the small world, each as a table: the same minutes for every arm, several seeds, test prompts.

    python benchmarks/claims.py                       # every table; resumes; hours on two cores
    python benchmarks/claims.py --tables online beta --minutes 3 --seeds 3

Each run is a recipe trained by one thread. Time counts training alone, except that offline DPO pays for the making of
its pairs. What a run showed is kept under `results`, one small file each; a run whose file is there is not made again,
unless its recipe or the embedded weights have changed since. Tables are printed as Markdown and written to
`results/tables.md`.
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
TEST = EvaluateConfig("world-test")
PROMPTS = read_prompts("world-test")[: TEST.count]
ONLINE = DEMO
SHORT = ("--prompts-per-step", "2", "--optim.lr", "1e-3")
"""What is changed of OnlineVPO's recipe in every arm: half the prompts a step, for twice the steps in a few minutes."""


@dataclass(frozen=True)
class Arm:
    """One row of a table: a recipe and what is changed of it."""

    name: str
    recipe: str
    flags: tuple[str, ...] = ()


def _online(name: str, *flags: str) -> Arm:
    return Arm(name, ONLINE, flags)


def _swept(setting: str, values: tuple[int, ...]) -> list[Arm]:
    """An arm for each value; the recipe's own needs no flag, and so no run of its own."""
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
    """Which tables, how long, how often, and where."""

    tables: tuple[str, ...] = tuple(TABLES)
    minutes: float = 4.0
    seeds: int = 3
    jobs: int = 2
    """Runs at once, of one thread each."""
    model: str = "tiny-cogvideox"
    out: Path = Path("runs/claims")
    results: Path = Path("docs/claims")
    prompts: int = 40
    """Prompts that offline DPO makes its pairs of, before its time begins to count again."""

    def __post_init__(self):
        unknown = set(self.tables) - set(TABLES)
        if unknown:
            raise ValueError(f"there is no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")


def main(config: ClaimsConfig) -> None:
    """Run what has not been run, print and write the tables."""
    config.results.mkdir(parents=True, exist_ok=True)
    config.out.mkdir(parents=True, exist_ok=True)
    real_data("world")  # before two runs would write it
    arms = _distinct(arm for table in config.tables for arm in TABLES[table])
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(config.jobs, spawn, initializer=_into_a_log, initargs=(config.out,)) as pool:
        jobs = [pool.submit(measure_base, config)]
        jobs += [pool.submit(train, arm, seed, config) for seed in range(config.seeds) for arm in arms]
        for job in as_completed(jobs):
            print(job.result(), flush=True)
    text = "\n".join(line for table in config.tables for line in markdown(table, config))
    (config.results / "tables.md").write_text(text + "\n")
    print(text)


def _into_a_log(folder: Path) -> None:
    """What a worker says goes into a file of its own; it computes with one thread."""
    torch.set_num_threads(1)
    log = os.open(folder / f"worker-{os.getpid()}.log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _distinct(arms: Iterable[Arm]) -> list[Arm]:
    """Arms that do the same are run once, whatever each table calls them."""
    return list({(arm.recipe, arm.flags): arm for arm in arms}.values())


def name_of(arm: Arm, seed: int) -> str:
    words = "-".join([arm.recipe, *arm.flags]).replace("--", "").replace(" ", "_")
    return f"{words}-seed{seed}"


def train(arm: Arm, seed: int, config: ClaimsConfig) -> str:
    """One run, unless its result is there; its name and figures."""
    name, made_of = name_of(arm, seed), ingredients(arm, config)
    result = config.results / f"{name}.json"
    if result.exists() and json.loads(result.read_text()).get("made_of") == made_of:
        return f"{name}: already there"
    recipe = recipe_of(arm)
    minutes, data = config.minutes, real_data(recipe.data)
    if arm.recipe == "dpo-tiny":
        data, spent = make_pairs(seed, made_of, config)
        minutes -= spent
        if minutes <= 0:  # 0 would mean no limit
            raise SystemExit(
                f"making the pairs took {spent:.1f} of {config.minutes} minutes: raise --minutes, or lower --prompts"
            )
    unwatched = replace(recipe.validation, every=0)
    out = config.out / f"{name}-{made_of}"
    recipe = replace(recipe, data=str(data), model=config.model, out=out, seed=seed, validation=unwatched)
    importlib.import_module(type(recipe).__module__).train(replace(recipe, steps=100_000, minutes=minutes))
    after = look(sample_videos(trained_model(out), PROMPTS, TEST))
    write_result(result, {"after": after, "made_of": made_of, "steps": read_run(out).steps_done})
    return f"{name}: {after}"


def recipe_of(arm: Arm) -> Any:
    """The recipe as the arm runs it, but for seed, time and place."""
    flags = [*(SHORT if arm.recipe == ONLINE else ()), *arm.flags]
    return with_flags(read_recipe(arm.recipe), flags, arm.name)


def measure_base(config: ClaimsConfig) -> str:
    """The base model's takes and clean clips, which are the same for every run, unless they are measured."""
    result, made_of = config.results / "base.json", weights_of(config).hexdigest()[:8]
    if result.exists() and json.loads(result.read_text()).get("made_of") == made_of:
        return "the base model and real clips: already there"
    model = load_model(config.model)
    real = through_autoencoder(model, clean_clips(PROMPTS, 99, FRAMES, range(len(PROMPTS))))
    before = sample_videos(model, PROMPTS, TEST)
    write_result(result, {"before": look(before), "real": look(real), "made_of": made_of})
    return "the base model and real clips: measured"


def write_result(path: Path, values: dict) -> None:
    with atomic(path) as part:
        part.write_text(json.dumps(values, indent=1))


@functools.cache
def judge() -> Evaluator:
    made = Evaluator(("dynamic-degree",))  # the tables show no other critic
    made.learn(PROMPTS)
    return made


def look(videos: Tensor) -> dict[str, float]:
    """What the tables show of clips of the test prompts."""
    seen = judge().means(evaluate_videos(judge().measure, lambda rows: videos[rows], PROMPTS, 32))
    return {key: seen[key] for key in KEPT}


def ingredients(arm: Arm, config: ClaimsConfig) -> str:
    """A hash of what a run is made of but for its seed: the recipe, the minutes, the weights it loads."""
    recipes = [recipe_of(arm), *([read_recipe(ONLINE)] if arm.recipe == "dpo-tiny" else [])]  # it shoots as online does
    about = f"{[fingerprint(recipe) for recipe in recipes]} {config.minutes} {config.prompts}".encode()
    return weights_of(config, about).hexdigest()[:8]


def weights_of(config: ClaimsConfig, about: bytes = b"") -> Any:
    """The hash of all that a run loads, begun with what it is about."""
    critics = (FOLDER / "weights").glob("critic-*/*.safetensors")
    weights = sorted([*Path(embedded_model(config.model)).rglob("*.safetensors"), *critics])
    return hashlib.sha256(about + b"".join(file.read_bytes() for file in weights))


def make_pairs(seed: int, made_of: str, config: ClaimsConfig) -> tuple[Path, float]:
    """Preference pairs of the base model's takes, shot and scored as OnlineVPO does; the minutes that took."""
    online = read_recipe(ONLINE)
    takes = config.out / f"takes-seed{seed}-{made_of}"
    pairs, clock = takes / "pairs.jsonl", takes / "minutes.json"
    if not clock.exists():
        shutil.rmtree(takes, ignore_errors=True)  # of a start that was broken off: its time is not known
        began = time.perf_counter()
        shooting = GenerateConfig(online.data, config.model, out=takes, n=online.candidates, count=config.prompts)
        listed = generate_samples(replace(shooting, seed=seed, rollout=online.rollout))
        score_videos(
            ScoreConfig(candidates=listed, reward=(online.reward.name,), weights=online.reward.weights, out=pairs)
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
        found = [value[column] for value in values]
        spread = f" ± {statistics.stdev(found):.3g}" if len(found) > 1 else ""
        cells.append(f"{statistics.mean(found):.3g}{spread}")
    return f"| {name} | " + " | ".join(cells) + f" | {steps} |"


if __name__ == "__main__":
    main(tyro.cli(ClaimsConfig))

"""The papers' claims on the small world, each as a table: the same minutes for every arm, several seeds, test prompts.

    python benchmarks/claims.py                       # every table; resumes; hours on two cores
    python benchmarks/claims.py --tables online beta --minutes 3 --seeds 3

Each run is an ordinary `besttake train` in a process of its own with one thread. Time counts training alone, except
that offline DPO pays for the making of its pairs. What a run showed is kept under `results`, one small file each; a run
whose file is there is not made again, unless its recipe or the embedded weights have changed since. Tables are
printed as Markdown and written to `results/tables.md`.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro

from besttake.cli import read_recipe
from besttake.configuration import fingerprint
from besttake.embedded import FOLDER, embedded_model
from besttake.report.folder import read_run
from besttake.rewards.world import DIMENSIONS
from besttake.world.measure import FLAWS

COLUMNS = ("flawed_share", "heldout_reward", "frechet_distance", "dynamic_degree", "object_area")
KEPT = (*COLUMNS, *(f"share/{flaw}" for flaw in FLAWS))
ONLINE = "demo"


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
    "refresh": _swept("refresh_every", (5, 10, 20, 40)),
    "beta": _swept("beta", (100, 500, 2000)),
    "reward": [
        _online("as in the recipe"),
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
    arms = _distinct(arm for table in config.tables for arm in TABLES[table])
    work = [(arm, seed) for seed in range(config.seeds) for arm in arms]
    besttake("world", "clips", log=config.out / "clips.log")  # the real clips, before two runs would write them
    with ThreadPoolExecutor(config.jobs) as pool:
        list(pool.map(lambda job: train(*job, config), work))
    text = "\n".join(line for table in config.tables for line in markdown(table, config))
    (config.results / "tables.md").write_text(text + "\n")
    print(text)


def _distinct(arms: Iterable[Arm]) -> list[Arm]:
    """Arms that do the same are run once, whatever each table calls them."""
    return list({(arm.recipe, arm.flags): arm for arm in arms}.values())


def name_of(arm: Arm, seed: int) -> str:
    words = "-".join([arm.recipe, *arm.flags]).replace("--", "").replace(" ", "_")
    return f"{words}-seed{seed}"


def train(arm: Arm, seed: int, config: ClaimsConfig) -> None:
    """One run, unless its result is there."""
    name, made_of = name_of(arm, seed), ingredients(arm, config)
    out, result = config.out / f"{name}-{made_of}", config.results / f"{name}.json"
    if result.exists() and json.loads(result.read_text())["made_of"] == made_of:
        return
    minutes, flags = config.minutes, list(arm.flags)
    if arm.recipe == "dpo-tiny":
        pairs, spent = make_pairs(seed, made_of, config)
        minutes, flags = minutes - spent, [*flags, "--data", str(pairs)]
        if minutes <= 0:  # 0 would mean no limit
            raise SystemExit(
                f"making the pairs took {spent:.1f} of {config.minutes} minutes: raise --minutes, or lower --prompts"
            )
    common = ["--model", config.model, "--seed", str(seed), "--steps", "100000", "--minutes", f"{minutes:.2f}"]
    unwatched = ["--monitor.every", "0", "--evaluation.rewards", "dynamic-degree"]  # the tables show no other critic
    besttake("train", arm.recipe, *flags, *common, *unwatched, "--out", str(out), log=config.out / f"{name}.log")
    summary = json.loads((out / "summary.json").read_text())
    kept = {column: {key: summary[column][key] for key in KEPT} for column in ("before", "after", "real")}
    config.results.mkdir(parents=True, exist_ok=True)
    about = {"made_of": made_of, "steps": read_run(out).steps_done}
    result.write_text(json.dumps({**kept, **about}, indent=1))


def ingredients(arm: Arm, config: ClaimsConfig) -> str:
    """A hash of what a run is made of but for its flags and seed: the recipe, the minutes, the weights it loads."""
    critics = (FOLDER / "weights").glob("critic-*/*.safetensors")
    weights = sorted([*Path(embedded_model(config.model)).rglob("*.safetensors"), *critics])
    recipes = [arm.recipe, *([ONLINE] if arm.recipe == "dpo-tiny" else [])]  # its pairs are shot and scored as online's
    about = f"{[fingerprint(read_recipe(recipe)) for recipe in recipes]} {config.minutes} {config.prompts}".encode()
    return hashlib.sha256(about + b"".join(file.read_bytes() for file in weights)).hexdigest()[:8]


def make_pairs(seed: int, made_of: str, config: ClaimsConfig) -> tuple[Path, float]:
    """Preference pairs of the base model's takes, shot and scored as OnlineVPO does; the minutes that took."""
    online = read_recipe(ONLINE)
    takes = config.out / f"takes-seed{seed}-{made_of}"
    clock = takes / "minutes.json"
    if not clock.exists():
        began, log = time.perf_counter(), takes.with_suffix(".log")
        shoot = ["--model", config.model, "--prompts", online.data, "--count", str(config.prompts), "--seed", str(seed)]
        shoot += ["--n", str(online.candidates), "--rollout.steps", str(online.rollout.steps), "--out", str(takes)]
        besttake("generate", *shoot, log=log)
        weights = [str(word) for weight in online.reward.weights.items() for word in weight]
        files = ["--takes", str(takes / "takes.jsonl"), "--out", str(takes / "pairs.jsonl")]
        besttake("score", *files, "--reward", online.reward.name, "--weights", *weights, log=log)
        clock.write_text(json.dumps((time.perf_counter() - began) / 60))
    return takes / "pairs.jsonl", json.loads(clock.read_text())


def besttake(*words: str, log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-m", "besttake", *words], env=environment, stdout=file, stderr=file)
    if done.returncode:
        raise SystemExit(f"besttake {' '.join(words)} failed; see {log}")


def markdown(table: str, config: ClaimsConfig) -> Iterator[str]:
    """A table's lines: mean and standard deviation over the seeds, after training."""
    yield f"\n### {table}\n"
    yield "| | " + " | ".join(name.replace("_", " ") for name in COLUMNS) + " | steps |"
    yield "| --- " * (len(COLUMNS) + 2) + "|"
    for i, arm in enumerate(TABLES[table]):
        runs = [config.results / f"{name_of(arm, seed)}.json" for seed in range(config.seeds)]
        results = [json.loads(run.read_text()) for run in runs]
        if i == 0:
            for column in ("before", "real"):
                yield _row(column, [result[column] for result in results[:1]], "")
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

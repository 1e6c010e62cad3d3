"""Contract of algorithms. The checks are called with a finished run, and a folder for further runs."""

from __future__ import annotations

import importlib
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from besttake.algorithms import find_algorithm
from besttake.contracts import demand
from besttake.models import load_model
from besttake.models.policy import Policy
from besttake.rewards.panel import load_panel
from besttake.runtime.configuration import from_dict, read_yaml
from besttake.runtime.devices import find_device
from besttake.training.run import Run

ADAPTER = "adapter/pytorch_lora_weights.safetensors"


def train(config: Any) -> Run:
    """Train a config with its algorithm."""
    return importlib.import_module(type(config).__module__).train(config)


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl` without their times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "minutes"} for line in lines]


def trains_the_policy_alone(run: Run, folder: Path) -> None:
    """Training changes the policy's weights, keeps them finite, and does not change the base."""
    base = load_model(run.config.model, getattr(torch, run.config.dtype), str(run.model.device), run.config.quantize)
    before = dict(base.denoiser.named_parameters())
    for name, weight in run.model.denoiser.named_parameters():
        if "lora" not in name:
            same = torch.equal(weight, before[name.replace(".base_layer", "")])
            demand(same, f"the base weight {name} has changed; train `policy.trainable` only")
    weights = run.policy.trainable
    demand(all(bool(w.isfinite().all()) for w in weights.values()), "a trained weight is not finite; lower optim.lr")
    moved = any(w.any() for name, w in weights.items() if "lora_B" in name)
    demand(moved, "no weight has changed; pass the loss to run.update, and compute it from policy.predict")


def leaves_a_run_folder(run: Run, folder: Path) -> None:
    """A run writes its config, a row of metrics for each step, and an adapter that diffusers loads."""
    values = read_yaml(run.folder / "config.yaml")
    again = find_algorithm(str(values.pop("algorithm"))).Config
    demand(again is type(run.config), f"config.yaml refers to another Config, of {again.__module__}")
    demand(from_dict(again, values) == run.config, "config.yaml does not give the same config when it is read")
    steps = {row["step"] for row in rows(run.folder) if {"train/loss", "train/skipped"} & row.keys()}
    missing = sorted(set(range(run.config.steps)) - steps)
    demand(not missing, f"steps {missing} have no row of metrics; call run.update exactly once per step")
    pipeline = load_model(run.config.model).pipeline
    pipeline.load_lora_weights(str(run.folder / "adapter"))
    demand(bool(pipeline.get_active_adapters()), "diffusers finds no adapter in adapter/")


def resumes_exactly(run: Run, folder: Path) -> None:
    """A run that is stopped and resumed is bit-identical to an uninterrupted one."""
    cut = replace(run.config, out=folder / "cut")
    train(replace(cut, steps=max(1, run.config.steps // 2)))
    train(cut)
    _same_run(cut.out, run.folder, "key all random numbers on seed and step, and pass stateful objects to Run")


def leaves_a_finished_run_alone(run: Run, folder: Path) -> None:
    """Running a finished run again changes nothing."""
    copy = folder / "finished"
    shutil.copytree(run.folder, copy)
    train(replace(run.config, out=copy))
    _same_run(copy, run.folder, "train and log only inside `for ... in run.steps(...)`")


def plans_a_step(run: Run, folder: Path) -> None:
    """`step` accepts the batch of `plan_batch`, and returns a scalar loss with a gradient (or None) and metrics."""
    config, module = run.config, importlib.import_module(type(run.config).__module__)
    if not hasattr(module, "plan_batch"):
        return
    policy = Policy(load_model(config.model, device=find_device(config.device)), config.policy)
    reward = load_panel(config.reward, find_device(config.device)) if hasattr(config, "reward") else None
    batch = module.plan_batch(policy, config, itertools.cycle(["a red ball", "a large blue square"]))
    loss, metrics = module.step(policy, reward, batch, config, key=(config.seed, 0))
    if loss is not None:
        demand(isinstance(loss, Tensor) and loss.dim() == 0, "the loss of `step` is not a scalar; take its mean()")
        demand(loss.requires_grad, "the loss of `step` has no gradient; compute it from policy.predict")
    for name, value in metrics.items():
        demand(_is_number(value), f"the metric {name} of `step` is {value!r}; expected a number or a scalar tensor")


def _same_run(one: Path, other: Path, advice: str) -> None:
    for a, b in zip(rows(one), rows(other), strict=False):
        different = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
        demand(not different, f"at step {b['step']} {', '.join(different)} differ; {advice}")
    demand(
        len(rows(one)) == len(rows(other)), f"there are {len(rows(one))} rows, expected {len(rows(other))}; {advice}"
    )
    weights, expected = load_file(one / ADAPTER), load_file(other / ADAPTER)
    demand(weights.keys() == expected.keys(), "the adapter has other weights")
    differ = [name for name in weights if not torch.equal(weights[name], expected[name])]
    demand(not differ, f"{len(differ)} weights of the adapter differ; {advice}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)


CHECKS = (
    trains_the_policy_alone,
    leaves_a_run_folder,
    resumes_exactly,
    leaves_a_finished_run_alone,
    plans_a_step,
)

"""`besttake replicate`: plan, download, train, evaluate before and after, and write the result to one folder."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from besttake.commands.flags import names
from besttake.commands.generate import real_data
from besttake.evaluation.before_after import ANALYTIC
from besttake.plan import plan_on
from besttake.plan.advice import with_setting
from besttake.plan.cards import Card
from besttake.plan.skeletons import skeleton
from besttake.plan.table import times
from besttake.replication.budget import within_budget
from besttake.replication.bundle import write_bundle
from besttake.replication.cards import card_at_hand, check_fit
from besttake.replication.downloads import check_data, check_room, load_once, sources
from besttake.replication.environment import environment
from besttake.replication.record import DOWNLOAD, PLAN, RUN, Record, flat, open_record
from besttake.runtime.configuration import fingerprint, require, to_dict
from besttake.runtime.console import status
from besttake.runtime.devices import find_device
from besttake.runtime.embedded import embedded_family

Report = Callable[[Path, Any], None]
"""Evaluates a run, and writes its report."""


@dataclass(frozen=True)
class ReplicateConfig:
    """Replicate a recipe on this machine's card: plan, download, train, evaluate before and after training, and write
    one folder to share. The same command again goes on where it stopped. The recipe's own flags may follow.
    """

    out: Path | None = None
    """Folder of the replication; default: replications/RECIPE."""
    budget: float | None = None
    """Hours: by the plan, as many steps are trained as fit, on smaller clips if need be; default: the recipe's."""
    card: str | None = None
    """Card to plan for; default: that of this machine. `besttake plan` lists them."""

    def __post_init__(self):
        require(self.budget is None or self.budget > 0, "budget", self.budget, "a number of hours above 0")


def replicate(
    recipe: str,
    config: Any,
    flags: Sequence[str],
    settings: ReplicateConfig,
    train_and_report: Callable[[Any, Report], Path],
    report: Report,
) -> Path:
    """Do the stages that are not finished yet; the path of the result's README.md.

    Args:
        config: the recipe's, changed by its flags.
        flags: of the recipe, in the command.

    Raises:
        ValueError: the folder holds something else, the recipe does not fit on the card or into the budget, or
            something that it needs is missing.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("besttake replicate runs on one card; on several, use besttake plan --gpus and besttake train")
    folder = settings.out or Path("replications") / Path(recipe).stem
    config = with_training_critics(replace(config, out=folder / RUN))
    wanted = Record(recipe, _command(recipe, settings, flags), flat(to_dict(config)), settings.budget)
    record = open_record(folder, wanted)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            config, device = planned(record, folder, config, settings, names(flags)), find_device(config.device)
            if not record.is_finished("evaluate") and (here := environment(device)) not in record.environments[-1:]:
                record.environments.append(here)
            if not record.is_finished(DOWNLOAD):
                with record.stage(DOWNLOAD, folder):
                    check_room(config)
                    load_once(config, real_data(config.data), device)
                    record.sources = sources(config)
            if not record.is_finished("evaluate"):
                train_and_evaluate(record, folder, config, train_and_report, report)
            if not record.is_finished("bundle"):
                with record.stage("bundle", folder):
                    write_bundle(folder, record)
    except Timeout as error:
        raise ValueError(f"another process works in {folder}; wait for it, or give another --out") from error
    return folder / "README.md"


def with_training_critics(config: Any) -> Any:
    """A config whose evaluation also scores by the critics it trains on, unless critics are named or it is the world's.

    The report sets them apart from the others.
    """
    reward = getattr(config, "reward", None)
    if not reward or config.evaluation.rewards or embedded_family(str(config.data)) == "world":
        return config
    trained = [name for name in reward.chosen if name not in {*reward.paths, *reward.settings, *reward.judges}]
    return with_setting(config, "evaluation.rewards", tuple(dict.fromkeys([*trained, *ANALYTIC])))


def planned(record: Record, folder: Path, config: Any, settings: ReplicateConfig, given: Sequence[str]) -> Any:
    """The config with what was chosen for the budget: now, or when the replication was begun.

    Args:
        given: dotted names of the settings that are flags of the command.

    Raises:
        ValueError: the data cannot be read, or it does not fit on the card or into the budget.
    """
    card = card_at_hand(find_device(config.device), settings.card)
    if not record.is_finished(PLAN):
        check_data(config, real_data(config.data))
        with record.stage(PLAN, folder):
            make_plan(record, config, card, given)
    for choice in record.choices:
        config = with_setting(config, choice["setting"], choice["value"])
    record.fingerprint = fingerprint(config)
    if card and card.memory < record.plan.get("memory", 0.0) and not record.is_finished("train"):
        check_fit(config, plan_on(config, card))  # it goes on on a smaller card
    return config


def make_plan(record: Record, config: Any, card: Card | None, given: Sequence[str]) -> None:
    """Record the plan for a card and what it changes to keep the budget; for a CPU there is no plan."""
    if card is None:
        if record.budget:
            raise ValueError(
                f"budget is {record.budget:g} hours, and there is no plan for a CPU; give --steps instead, or name a "
                "card with --card"
            )
        print("no card on this machine: memory and hours are not checked")
        return
    with status(f"planning for {card.name}"):
        if record.budget:
            model = skeleton(config.model, torch.float32, device=torch.device("meta"))
            config, plan, choices = within_budget(config, record.budget, lambda c: plan_on(c, card), model, given)
            record.choices = [asdict(choice) for choice in choices]
        else:
            plan = plan_on(config, card)
        check_fit(config, plan)
    peak = {"train": plan.peak.peak, "evaluate": plan.phases["evaluate"].peak}
    record.plan = {"card": card.name, "memory": card.memory, "peak": peak, "hours": plan.hours}
    record.plan |= {"uncounted": plan.uncounted}
    for choice in record.choices:
        print(f"{choice['setting']}: {choice['value']} ({choice['reason']})")
    print(times(plan))


def train_and_evaluate(
    record: Record, folder: Path, config: Any, train_and_report: Callable[[Any, Report], Path], report: Report
) -> None:
    """Train, or go on training, and evaluate before against after; a stage each."""
    with ExitStack() as training:
        training.enter_context(record.stage("train", folder))

        def evaluate(run: Path, config: Any) -> None:
            training.close()
            with record.stage("evaluate", folder):
                report(run, config)

        train_and_report(config, evaluate)


def _command(recipe: str, settings: ReplicateConfig, flags: Sequence[str]) -> str:
    own = [(f"--{name}", value) for name, value in vars(settings).items() if value is not None]
    return shlex.join(["besttake", "replicate", recipe, *(str(word) for pair in own for word in pair), *flags])

"""The `besttake` command line: its commands, their usage, and exit codes for errors."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from rich.logging import RichHandler
from rich.table import Table
from safetensors import SafetensorError

from besttake import __version__
from besttake.commands.flags import from_flags, names, plain_values, with_new_flags
from besttake.commands.listings import RECIPES, card_table, critic_table, recipe_table
from besttake.contracts import ContractError
from besttake.runtime import console
from besttake.runtime.configuration import algorithm_of, from_dict, is_shipped, read_yaml, to_yaml
from besttake.runtime.interruption import save_on_signal
from besttake.runtime.memory import ADVICE, out_of_memory
from besttake.runtime.plugins import ALGORITHMS, offered
from besttake.runtime.renamed import with_new_names

DEMO = "onlinevpo-tiny"
HELP = ("-h", "--help", "--help-all")

C = TypeVar("C")

USAGE = f"""besttake {__version__}: post-train video diffusion models on preferences

  besttake demo                    the main job on an embedded model, in minutes on two CPU cores
  besttake train RECIPE [flags]    train; the same command again resumes
  besttake plan RECIPE [flags]     memory, seconds and hours on a card, and how to make it fit
  besttake replicate RECIPE [flags]   plan, download, train, evaluate: one folder to share
  besttake generate [flags]        sample videos of prompts
  besttake score FOLDER ...        score videos with critics; write preference pairs
  besttake score --benchmark FILE  how well critics agree with human votes
  besttake serve CRITIC            serve a critic over HTTP
  besttake report RUN              measure a finished run and write its report.html
  besttake check critic|algorithm|model FILE   run the contract tests on your own code
  besttake push RUN USER/NAME      upload a run's adapter to the hub, with a model card
  besttake world clips|pretrain    the embedded world: write clean clips, train the shipped weights

  besttake train                   lists recipes; `besttake serve` critics, `besttake plan` cards
  besttake COMMAND --help          the essential settings of a command; --help-all shows all
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0 = success, 1 = failure at run time, 2 = invalid input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=console.err, show_path=False)]
    )
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        print(__version__)
        return 0
    if name not in COMMANDS:
        return _fail(f"there is no command '{name}'; there are {', '.join(COMMANDS)}", 2)
    if listing := _listing(name, rest):
        usage, table = listing
        print(f"usage: {usage}\n")
        console.out.print(table)
        return 0
    try:
        if name in ("train", "plan", "replicate") and not rest[0].startswith("-") and not {*HELP} & {*rest}:
            find_recipe(rest[0])  # before PyTorch and others are imported, which takes seconds
        console.quiet_libraries()
        COMMANDS[name](rest)
    except ContractError as error:
        return _fail(str(error), 1)
    except (ValueError, FileNotFoundError) as error:
        return _fail(_message_of(error), 2)
    except (FloatingPointError, OSError, SafetensorError) as error:
        return _fail(_message_of(error), 1)
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            return _fail(_message_of(error, "".join(str(error).splitlines()[:1]), ADVICE), 1)
        return _fail_of_other_process(error)
    except KeyboardInterrupt as stopped:  # the run has already reported what is saved
        return 130 if stopped.args else _fail("stopped", 130)
    return 0


def _listing(command: str, rest: list[str]) -> tuple[str, Table] | None:
    """Usage and table that a command shows when its argument is missing; None if it is given."""
    if command == "train" and (not rest or rest[0] in HELP):
        return "besttake train RECIPE [flags]      besttake train RECIPE --help shows its settings", recipe_table()
    if command == "replicate" and not rest:
        usage = "besttake replicate RECIPE [--budget HOURS] [--out FOLDER] [flags]"
        return usage, recipe_table()
    if command == "serve" and not rest:
        return "besttake serve CRITIC [flags]      then train with --reward.name http://HOST:PORT", critic_table()
    if command == "plan" and rest in ([], ["--card"]):
        return "besttake plan RECIPE [--card NAME] [--gpus N] [flags]", card_table()
    return None


def _message_of(error: BaseException, *lines: str) -> str:
    """The message of an error and its notes, in which a run says what is saved."""
    return "\n".join([*(lines or [str(error)]), *getattr(error, "__notes__", [])])


def _fail(message: str, status: int) -> int:
    console.err.print("error:", message, style="bold red", soft_wrap=True)
    return status


def _fail_of_other_process(error: BaseException) -> int:
    """Report an error that another process caused; any other error is raised again."""
    from besttake.runtime.distributed import OtherProcessError, describe_lost_process, is_main

    if isinstance(error, OtherProcessError):
        return _fail(_message_of(error), 1) if is_main() else 1  # the one that failed says so itself
    if reason := describe_lost_process(error):
        return _fail(_message_of(error, reason), 1)
    raise error


def train(arguments: list[str]) -> None:
    """besttake train RECIPE [--field value ...] [--print-config]"""
    recipe, *flags = arguments
    if recipe.startswith("-"):
        raise ValueError("give a recipe before the flags: besttake train RECIPE [flags]")
    _train(read_recipe(recipe), flags, f"besttake train {recipe}")


def _train(recipe: Any, flags: list[str], command: str) -> None:
    config = with_flags(recipe, [flag for flag in flags if flag != "--print-config"], command)
    if "--print-config" in flags:
        print(to_yaml(config, algorithm=algorithm_of(config)), end="")
        return
    train_and_report(config)


def with_flags(config: Any, flags: list[str], command: str) -> Any:
    """A recipe's config changed by flags. If they name other critics, the recipe's weights are dropped."""
    flags = with_new_flags(flags, type(config)) if is_shipped(config) else flags
    values, _ = plain_values(type(config), flags, command, config)
    return with_values(config, values, names(flags))


def with_values(config: Any, values: dict[str, Any], changed: Iterable[str]) -> Any:
    """A recipe's config with other values. If other critics are named, the recipe's weights are dropped.

    Args:
        values: of all settings.
        changed: dotted names of the settings that differ from the recipe.
    """
    given = {name.removeprefix("reward.") for name in changed if name.startswith("reward.")}
    if {"name", "critics"} <= given:
        raise ValueError("reward.name is for a single critic, reward.critics for several; give only one of them")
    if "critics" in given or ("name" in given and list(config.reward.chosen) != [values["reward"]["name"]]):
        values["reward"] = _of_other_critics(values["reward"], given, type(config.reward).name)
    return from_dict(type(config), values)


def _of_other_critics(reward: dict[str, Any], given: set[str], unnamed: str) -> dict[str, Any]:
    """Reward settings without the recipe's own settings for critics that are no longer used."""
    chosen: dict[str, Any] = {"name": unnamed} if "critics" in given else {"critics": {}}
    selected = list(reward["critics"]) if "critics" in given else [reward["name"]]
    left: dict[str, Any] = {"weights": {}}
    for key in ("margins", "judges", "paths", "settings"):
        left[key] = {name: value for name, value in reward[key].items() if name in selected}
    return reward | chosen | {key: value for key, value in left.items() if key not in given}


def plan(arguments: list[str]) -> None:
    """besttake plan RECIPE [--card NAME] [--gpus N] [--measure] [--json] [the recipe's flags]"""
    from besttake.plan import PlanConfig, make_plan
    from besttake.plan.table import as_json, assumption, automatic, measured, table, times, verdict

    plan_config, config, _ = _recipe_and_settings(PlanConfig, arguments, "besttake plan")
    with console.status("running one step without weights"):
        made = make_plan(config, plan_config)
    if plan_config.json:
        print(json.dumps(as_json(made), indent=1))
        return
    console.out.print(table(made))
    if made.measured:
        console.out.print(measured(made))
    if made.automatic:
        print(automatic(made))
    print(f"{times(made)}\n{assumption(made)}\n{verdict(made)}")


def replicate(arguments: list[str]) -> None:
    """besttake replicate RECIPE [--budget HOURS] [--out FOLDER] [--card NAME] [the recipe's flags]"""
    from besttake.commands.replicate import ReplicateConfig
    from besttake.commands.replicate import replicate as go_through

    settings, config, flags = _recipe_and_settings(ReplicateConfig, arguments, "besttake replicate")
    page = go_through(arguments[0], config, flags, settings, train_and_report, _report)
    print(f"replication: {page}")


def _recipe_and_settings(kind: type[C], arguments: list[str], command: str) -> tuple[C, Any, list[str]]:
    """A command's own settings, its recipe's config, and the flags of the recipe, which may stand among its own."""
    recipe, *flags = arguments
    if recipe.startswith("-"):
        from_flags(kind, arguments, f"{command} RECIPE")
        raise ValueError(f"give a recipe before the flags: {command} RECIPE [flags]")
    values, rest = plain_values(kind, flags, f"{command} {recipe}", others=True)
    settings = from_dict(kind, values)
    return settings, with_flags(read_recipe(recipe), rest, f"{command} {recipe}"), rest


def _without_auto(config: Any) -> Any:
    """A config with `policy.gradient_checkpointing: auto` replaced by what fits this machine's card."""
    if config.policy.gradient_checkpointing != "auto":
        return config
    from besttake.plan.automatic import resolve_here  # not needed by most runs

    return resolve_here(config)


def train_and_report(config: Any, report: Callable[[Path, Any], None] | None = None) -> Path:
    """Train, on all processes; then evaluate before and after on test prompts, and write the report.

    Args:
        report: evaluates and writes the report; the default also prints the result.

    Returns:
        The run's folder.
    """
    from besttake.commands.generate import real_data
    from besttake.runtime.devices import find_device
    from besttake.runtime.distributed import broadcast_from_main, end_processes, init_processes

    module = importlib.import_module(type(config).__module__)
    with save_on_signal():
        config = _without_auto(config)
        init_processes(config.parallel, find_device(config.device))
        folder = module.train(replace(config, data=broadcast_from_main(lambda: real_data(config.data)))).folder
        message = f"training of {folder} is complete; run the same command again to evaluate it"
        with save_on_signal(lambda: message):
            try:
                (report or _report)(folder, config)
            except Exception as error:
                error.add_note(message)
                raise
    end_processes()
    return folder


def read_recipe(name: str) -> Any:
    """The config of a shipped recipe, a YAML file, or the user's own algorithm (with its defaults).

    Raises:
        ValueError: there is no such recipe or algorithm, a key is unknown, or a value has the wrong type.
    """
    path = find_recipe(name)
    from besttake.algorithms import find_algorithm

    if path is None:
        return find_algorithm(name).Config()
    values = read_yaml(path)
    try:
        algorithm = str(values.pop("algorithm", None))
        beside = path.parent / algorithm
        found = find_algorithm(str(beside) if algorithm.endswith(".py") and beside.is_file() else algorithm)
        return from_dict(found.Config, with_new_names(values, str(path)) if is_shipped(found.Config()) else values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def find_recipe(name: str) -> Path | None:
    """The file of a recipe; None for an algorithm of the user's own. ValueError if there is neither."""
    if name.endswith(".py") or name in offered(ALGORITHMS):
        return None
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
        raise ValueError(f"there is no recipe '{name}'; give one of {known}, a .yaml file, or an algorithm's .py file")
    return path


def demo(arguments: list[str]) -> None:
    """besttake demo [--field value ...]: the recipe `onlinevpo-tiny`, evaluated before and after training."""
    console.err.print(
        "OnlineVPO on an embedded model: it samples candidates, a critic ranks them, and DPO learns from the best "
        "against the worst."
    )
    _train(replace(read_recipe(DEMO), out=Path("runs/demo")), arguments, "besttake demo")


def generate(arguments: list[str]) -> None:
    from besttake.commands.generate import GenerateConfig, generate_samples

    generate_samples(from_flags(GenerateConfig, arguments, "besttake generate"))


def score(arguments: list[str]) -> None:
    """besttake score FOLDER ... | --samples FILE | --benchmark FILE [flags]"""
    if any(argument.partition("=")[0] == "--benchmark" for argument in arguments):
        _score_benchmark(arguments)
        return
    from besttake.commands.score import ScoreConfig, calibrate_videos, score_videos

    config = from_flags(ScoreConfig, arguments, "besttake score")
    if config.calibrate:
        found = calibrate_videos(config)
        print(f"margin {found.margin:.4g}: for 95 % of prompts, equally good videos differ by less than this")
        print(f"noise {found.noise:.4g}, spread of the videos {found.spread:.4g}")
        print(f"pairs that tie {found.ties:.0%}, pairs that flip {found.flips:.0%}")
        return
    table = Table(*(["folder"] if config.folders else []), "dimension", "videos", "mean", "lowest", "highest")
    for row in score_videos(config):
        numbers = (f"{value:.3f}" for value in (row.mean, row.lowest, row.highest))
        table.add_row(*([row.folder] if config.folders else []), row.dimension, str(row.videos), *numbers)
    console.out.print(table)


def _score_benchmark(arguments: list[str]) -> None:
    """Critics side by side on human votes."""
    from besttake.evaluation.agreement import AgreementConfig
    from besttake.report.agreement import report_agreement

    config = from_flags(AgreementConfig, arguments, "besttake score")
    print(report_agreement(config))
    print(f"table and plot: {config.out / 'agreement.md'}, {config.out / 'agreement.svg'}")


def serve(arguments: list[str]) -> None:
    """besttake serve CRITIC [--port N] [flags]"""
    from besttake.rewards.remote.serving import ServeConfig, serve_critic

    serve_critic(from_flags(ServeConfig, arguments, "besttake serve"))


def report(arguments: list[str]) -> None:
    """besttake report RUN [--field value ...]"""
    from besttake.evaluation.before_after import EvaluateConfig

    if not arguments or arguments[0].startswith("-"):
        from_flags(EvaluateConfig, arguments or ["--help"], "besttake report RUN")
        raise ValueError("give a run before the flags: besttake report RUN [flags]")
    from besttake.report.folder import read_run
    from besttake.runtime.distributed import end_processes

    folder, *flags = arguments
    config = read_recipe(str(read_run(Path(folder)).path / "config.yaml"))
    evaluation = from_flags(type(config.evaluation), flags, f"besttake report {folder}", config.evaluation)
    _report(Path(folder), replace(config, evaluation=evaluation))
    end_processes()


def _report(folder: Path, config: Any) -> None:
    """Evaluate a run, on all processes; write its report and print the verdict."""
    from besttake.commands.report import measure_run
    from besttake.report import write_report
    from besttake.report.folder import read_run
    from besttake.report.verdict import verdict
    from besttake.runtime.distributed import is_main

    summary = measure_run(folder, config)
    if not is_main():
        return
    page, said = write_report(folder), verdict(read_run(folder))
    columns = [column for column in ("before", "after", "real") if column in summary]
    table = Table(f"on {summary['about']['prompts']}", *columns)
    for key in list(summary["before"])[:5]:
        table.add_row(key.replace("_", " "), *(f"{summary[column][key]:.3f}" for column in columns))
    console.out.print(table)
    print(f"{said.label}: {said.sentence}")
    print(f"report: {page}")


def push(arguments: list[str]) -> None:
    """besttake push RUN USER/NAME [--private] [--dry-run FOLDER]"""
    from besttake.commands.push import PushConfig
    from besttake.commands.push import push as upload

    print(upload(from_flags(PushConfig, arguments or ["--help"], "besttake push")))


def world(arguments: list[str]) -> None:
    """besttake world clips|pretrain ..."""
    from besttake.commands.generate import ClipsConfig, PretrainConfig, pretrain, write_clips

    parts: dict[str, tuple[Any, Callable]] = {
        "clips": (ClipsConfig, write_clips),
        "pretrain": (PretrainConfig, pretrain),
    }
    if not arguments or arguments[0] not in parts:
        print("usage: besttake world clips|pretrain [flags]")
        return
    config, command = parts[arguments[0]]
    command(from_flags(config, arguments[1:], f"besttake world {arguments[0]}"))


def check(arguments: list[str]) -> None:
    """besttake check critic|algorithm|model FILE [flags]"""
    from besttake.commands.check import CriticCheck, ModelCheck, check_algorithm, check_critic, check_model

    kind, *rest = arguments or [""]
    command = f"besttake check {kind}"
    if kind == "critic":
        found = check_critic(from_flags(CriticCheck, rest, command))
    elif kind == "model":
        found = check_model(from_flags(ModelCheck, rest, command))
    elif kind == "algorithm" and rest and not rest[0].startswith("-"):
        found = check_algorithm(with_flags(read_recipe(rest[0]), rest[1:], f"{command} {rest[0]}"))
    else:
        usage = "besttake check critic FILE | algorithm FILE | model FILE:CHECKPOINT [flags]"
        if kind and kind not in (*HELP, "algorithm"):
            raise ValueError(f"there is no check of '{kind}': {usage}")
        print(f"usage: {usage}")
        return
    failed = 0
    for result in found:
        failed += bool(result.problem)
        console.out.print("failed" if result.problem else "ok    ", result.demand, soft_wrap=True)
        if result.problem:
            console.out.print("      ", result.problem, style="bold red", soft_wrap=True)
    if failed:
        raise ContractError(f"{failed} of the checks failed")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "demo": demo,
    "train": train,
    "plan": plan,
    "replicate": replicate,
    "generate": generate,
    "score": score,
    "report": report,
    "push": push,
    "serve": serve,
    "check": check,
    "world": world,
}

if __name__ == "__main__":
    sys.exit(main())

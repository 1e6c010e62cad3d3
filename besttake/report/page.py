"""`report.html`: a run's report as one self-contained page."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from besttake import __version__
from besttake.algorithms import shipped_algorithms
from besttake.data.files import atomic
from besttake.report.card import write_card
from besttake.report.clips import clip_cards
from besttake.report.critics import trained_critic
from besttake.report.curves import reward_charts, training_charts
from besttake.report.folder import RunFolder, read_run
from besttake.report.measures import sentence_case
from besttake.report.rows import brief_rows, grouped_rows
from besttake.report.verdict import clip_count, verdict
from besttake.runtime.configuration import flattened

TEMPLATES = Path(__file__).parent / "templates"

LARGE = 25_000_000
"""Bytes above which the page warns of its size: many mail servers refuse larger files."""


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into a run folder, finished or not. Sections without data say so.

    If there is an adapter, its model card `adapter/README.md` is written too.

    Args:
        run_folder: has `config.yaml` and, as far as the run has come, `metrics.jsonl`, `summary.json` (numbers by
            `before`, `after`, `real`; `about`), and in `evaluation/` `{before,after,real}/NN.mp4`, `prompts.json` and
            `changes.json` (the `q` value of each measure's change).

    Returns:
        The path of the page. It needs no other file and no network.

    Raises:
        ValueError: the folder holds no run, or one of its files is broken.
    """
    run = read_run(Path(run_folder))
    page = _page(run)
    size = len(page.encode())
    if size > LARGE:
        page = _page(run, megabytes=f"{size / 1e6:.0f}")
    if (run.path / "adapter").is_dir():
        write_card(run.path)
    target = run.path / "report.html"
    with atomic(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def _page(run: RunFolder, megabytes: str = "") -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sentence_case"] = sentence_case
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    cards, remarks = clip_cards(run)
    groups, others = grouped_rows(run)
    return environment.get_template("page.html").render(
        version=__version__,
        style=Markup(style),
        script=Markup(script),
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
        megabytes=megabytes,
        algorithm=_name_of(str(run.config["algorithm"])),
        model=str(run.config.get("model", "an unnamed model")),
        verdict=verdict(run),
        about=list(_about(run)),
        brief=brief_rows(run),
        cards=cards,
        remarks=remarks,
        clips_lead=_clips_lead(run, bool(cards)),
        alarms=run.alarms,
        trained=bool(run.rows),
        reward_charts=reward_charts(run),
        reward_lead=_reward_lead(run),
        training_charts=training_charts(run),
        measured_lead=_measured_lead(run),
        groups=groups if run.summary is not None else [],
        others=others,
        worse=sum(row.change == "worse" for row in others),
        settings=[(name, _plain(value)) for name, value in flattened(run.config).items()],
        command=f"besttake train {shlex.quote(f'{run.path}/config.yaml')} --out {shlex.quote(f'{run.path}-again')}",
    )


def _about(run: RunFolder) -> Iterator[str]:
    """How long the run was trained, and how it was evaluated."""
    about, known = run.about, ("prompts", "clips", "seed", "minutes", "hardware", "held_out", "trained_on")
    if run.rows and "steps" in run.config:
        yield f"{run.steps_done} of {run.config['steps']} steps"
    if isinstance(about.get("minutes"), (int, float)):
        yield f"{about['minutes']:.3g} minutes of training"
    if "hardware" in about:
        yield str(about["hardware"])
    if "clips" in about:
        yield f"evaluated on {about['clips']} clips"
    if "prompts" in about:
        yield f"prompts: {about['prompts']}{_trained_on(about)}"
    if "seed" in about:
        yield f"seed {about['seed']}"
    yield from (f"{name} {value}" for name, value in about.items() if name not in known)


def _trained_on(about: dict[str, Any]) -> str:
    """How many of the evaluation's prompts the run was also trained on."""
    count, clips = about.get("trained_on"), about.get("clips")
    if not isinstance(count, int):
        return ""
    return f", {'none' if not count else 'all' if count == clips else count} of them used in training"


def _clips_lead(run: RunFolder, cards: bool) -> str:
    if not cards:
        return "The run folder has no evaluation clips."
    real = " The real clip is a reference for the prompt." if run.clips["real"] else ""
    return f"The same prompt and the same seed before and after training.{real}"


def _reward_lead(run: RunFolder) -> str:
    lead = "By step. Every validation pass samples the same prompts with the same seeds."
    if trained_critic(run):
        lead += " If the training critic rises while the held-out critic falls, the policy is hacking the reward."
    return lead


def _name_of(algorithm: str) -> str:
    """Display name of an algorithm: the docstring of its config."""
    known = shipped_algorithms().get(algorithm)
    return str(known.Config.__doc__).rstrip(".") if known else Path(algorithm).stem


def _measured_lead(run: RunFolder) -> str:
    if run.summary is None:
        return "Not evaluated yet: the run folder has no summary.json."
    lead = "The same prompts and seeds before and after training."
    if run.q_values:
        lead += (
            f" A change counts as better or worse if it is significant in a paired permutation test over "
            f"{clip_count(run)} prompts. {len(run.q_values)} measures are tested; the false discovery rate is 5 % "
            "(Benjamini-Hochberg)."
        )
    elif clips := clip_count(run):
        lead += f" With {clips} clips, a share counts as changed only if the change is unlikely to be chance."
    return lead


def _plain(value: Any) -> str:
    if value is None or value == {} or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

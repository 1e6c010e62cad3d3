"""`report.html`: one self-contained page on a run, to read, to send, to print."""

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
"""Bytes above which a page says how large it is: many mail servers refuse more."""


def write_report(run_folder: Path) -> Path:
    """Writes `report.html` into a run folder, finished or not; what the folder lacks is left out, with a word.

    Beside an adapter it writes the model card, `adapter/README.md`.

    Args:
        run_folder: holds `config.yaml`, and as far as the run has come `metrics.jsonl`, `summary.json` (numbers by
            `before`, `after`, `real`; `about`), in `evaluation/` `{before,after,real}/NN.mp4`, `prompts.json` and
            `changes.json` (by measure the `q` of its change).

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
    """How it was measured, and for how long it was trained."""
    about, known = run.about, ("prompts", "clips", "seed", "minutes", "hardware", "held_out", "trained_on")
    if run.rows and "steps" in run.config:
        yield f"{run.steps_done} of {run.config['steps']} steps"
    if isinstance(about.get("minutes"), (int, float)):
        yield f"{about['minutes']:.3g} minutes of training"
    if "hardware" in about:
        yield str(about["hardware"])
    if "clips" in about:
        yield f"measured on {about['clips']} clips"
    if "prompts" in about:
        yield f"prompts of {about['prompts']}{_trained_on(about)}"
    if "seed" in about:
        yield f"seed {about['seed']}"
    yield from (f"{name} {value}" for name, value in about.items() if name not in known)


def _trained_on(about: dict[str, Any]) -> str:
    """Whether it was trained on the prompts that it was measured on."""
    count, clips = about.get("trained_on"), about.get("clips")
    if not isinstance(count, int):
        return ""
    return f", {'none' if not count else 'all' if count == clips else count} of which it was trained on"


def _clips_lead(run: RunFolder, cards: bool) -> str:
    if not cards:
        return "There are no evaluation clips in the run folder."
    real = " The real clip shows what the prompt asks for." if run.clips["real"] else ""
    return f"The same prompt and the same seed before and after.{real}"


def _reward_lead(run: RunFolder) -> str:
    lead = "By step. Each validation pass samples the same fixed prompts and seeds."
    if trained_critic(run):
        lead += " Where the training critic rises and the held-out one falls, the reward is being gamed."
    return lead


def _name_of(algorithm: str) -> str:
    """What an algorithm's config calls it."""
    known = shipped_algorithms().get(algorithm)
    return str(known.Config.__doc__).rstrip(".") if known else Path(algorithm).stem


def _measured_lead(run: RunFolder) -> str:
    if run.summary is None:
        return "Nothing yet: the run folder has no summary.json."
    lead = "The same prompts and seeds before and after."
    if run.q_values:
        lead += (
            f" A change is called one where swapping the clips of some prompts would rarely make as much: a paired "
            f"permutation test over {clip_count(run)} prompts. {len(run.q_values)} measures are tested, and of those "
            "that are called better or worse about one in twenty may be chance (Benjamini-Hochberg)."
        )
    elif clips := clip_count(run):
        lead += f" With {clips} clips, a share counts as changed only when chance would rarely change it as much."
    return lead


def _plain(value: Any) -> str:
    if value is None or value == {} or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

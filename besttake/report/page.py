"""`report.html`: one self-contained page on a run, to read, to send, to print."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from besttake import __version__
from besttake.algorithms import algorithms
from besttake.data.files import atomic
from besttake.report.card import write_card
from besttake.report.clips import clip_cards
from besttake.report.critics import trained_critic
from besttake.report.curves import reward_charts, training_charts
from besttake.report.folder import COLUMNS, RunFolder, read_run
from besttake.report.measures import ASKED, FLAWS, GUARDS, MAIN, TRAINED, Change, aim_of, difference, measure_of, shown
from besttake.report.verdict import changed, clip_count, measures, values, verdict

HERE = Path(__file__).parent
TILES = 5
"""Measures in brief, where those that say whether the videos got better are not among them."""

LARGE = 25_000_000
"""Bytes above which a page says how large it is: many mail servers refuse more."""

MARKS: dict[Change, str] = {"better": "✓ better", "worse": "✗ worse", "same": "≈ same", "unknown": ""}


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
    page = _page(run, "")
    size = len(page.encode())
    if size > LARGE:
        page = _page(run, f'<p class="warning">This page is large: {size / 1e6:.0f} MB, most of it video.</p>')
    if (run.path / "adapter").is_dir():
        write_card(run.path)
    target = run.path / "report.html"
    with atomic(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def _page(run: RunFolder, warning: str) -> str:
    said = verdict(run)
    algorithm = _name_of(str(run.config["algorithm"]))
    model = str(run.config.get("model", "an unnamed model"))
    script = (HERE / "page.js").read_text(encoding="utf-8")
    return Template((HERE / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"{algorithm} on {model}"),
        heading=f"{escape(algorithm)} <em>on</em> {escape(model)}",
        kind=said.kind,
        word=escape(said.word),
        sentence=escape(said.sentence),
        about=escape(" · ".join(_about(run))),
        warning=warning,
        sections="\n".join(filter(None, (_headline(run), _clips(run), _curves(run), _table(run), _config(run)))),
        footer=_footer(run),
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
    )


def _section(title: str, lead: str, body: str) -> str:
    name = title.lower().replace(" ", "-")
    intro = f"<p>{escape(lead)}</p>" if lead else ""
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(title)}</h2>{intro}{body}</section>'


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


def _headline(run: RunFolder) -> str:
    names = [name for name in (*MAIN, *GUARDS) if any(value is not None for value in values(run, name)[:2])]
    tiles = [_tile(run, name) for name in names or measures(run)[:TILES]]
    if not tiles:
        return ""
    key = "".join(
        f'<li><span class="track" aria-hidden="true"><i class="{column}"></i></span>{words}</li>'
        for column, words in zip(COLUMNS, ("before training", "after training", "real clips"), strict=True)
    )
    return _section("In brief", "", f'<dl class="tiles">{"".join(tiles)}</dl><ul class="key">{key}</ul>')


def _tile(run: RunFolder, name: str) -> str:
    before, after, real = values(run, name)
    aims = {"lower": "lower is better", "higher": "higher is better", "real": "as real clips is best", None: ""}
    measure = measure_of(name)
    foot = f"Real clips: {shown(name, real)}; " if real is not None else ""
    return (
        f'<div class="tile"><dt>{escape(_capital(measure.label))}</dt>'
        f"<dd><small>{shown(name, before)} →</small> <span>{shown(name, after)}</span></dd>"
        f"{_mark(run, name)}"
        f'{_track(before, after, real)}<span class="foot">{foot}{aims[aim_of(name, real)]}</span></div>'
    )


def _mark(run: RunFolder, name: str, text: str = "") -> str:
    before, after, _ = values(run, name)
    kind = changed(run, name)
    unclear = kind == "same" and shown(name, before) != shown(name, after) and measure_of(name).share
    parts = [f"<span>{part}</span>" for part in (text, "≈ unclear" if unclear else MARKS[kind]) if part]
    return f'<span class="mark {kind}">{"".join(parts)}</span>'


def _track(before: float | None, after: float | None, real: float | None) -> str:
    """The three values as marks on a line; it starts at 0 unless one of them is negative."""
    there = [value for value in (before, after, real) if value is not None]
    low, high = min(0.0, *there, 0.0), max(0.0, *there, 0.0)
    if low == high:
        return '<div class="track" aria-hidden="true"></div>'

    def at(value: float) -> float:
        return 100 * (value - low) / (high - low)

    named = zip(COLUMNS[::-1], (real, after, before), strict=True)
    marks = [f'<i class="{name}" style="left:{at(value):.1f}%"></i>' for name, value in named if value is not None]
    if before is not None and after is not None:
        left, right = sorted((at(before), at(after)))
        marks.insert(0, f'<i class="bar" style="left:{left:.1f}%;width:{right - left:.1f}%"></i>')
    return f'<div class="track" aria-hidden="true">{"".join(marks)}</div>'


def _clips(run: RunFolder) -> str:
    cards, remarks = clip_cards(run)
    notes = "".join(f'<p class="note">{escape(remark)}</p>' for remark in remarks)
    if not cards:
        return _section("Before and after", "There are no evaluation clips in the run folder.", notes)
    lead = "The same prompt and the same seed before and after."
    if run.clips["real"]:
        lead += " The real clip shows what the prompt asks for."
    controls = (
        '<div class="bar-controls" hidden><button id="play" type="button">Pause all</button>'
        '<button id="slow" type="button" aria-pressed="false">Slow motion &frac14;&times;</button></div>'
    )
    return _section("Before and after", lead, f'{controls}<div class="grid">{"".join(cards)}</div>{notes}')


def _curves(run: RunFolder) -> str:
    if not run.rows:
        return _section("Training", "No step has been logged yet.", "")
    parts = []
    if run.alarms:
        items = "".join(f"<li>Step {step}: {escape(said)}.</li>" for step, said in run.alarms)
        lead = "Critics that only watch fell while the trained reward rose; look at the clips of those steps."
        parts.append(_section("Alarms", lead, f'<ul class="warning">{items}</ul>'))
    if rewards := reward_charts(run):
        lead = "By step. At each look the same fixed prompts and seeds are shot."
        if trained_critic(run):
            lead += " Where the training critic rises and the held-out one falls, the reward is being gamed."
        parts.append(_section("Reward", lead, f'<div class="charts large">{"".join(rewards)}</div>'))
    if others := training_charts(run):
        lead = "By step; dots are single steps, lines their smoothed course."
        parts.append(_section("Training", lead, f'<div class="charts">{"".join(others)}</div>'))
    return "\n".join(parts)


def _name_of(algorithm: str) -> str:
    """What an algorithm's config calls it."""
    known = algorithms().get(algorithm)
    return str(known.Config.__doc__).rstrip(".") if known else algorithm


def _table(run: RunFolder) -> str:
    if run.summary is None:
        return _section("What was measured", "Nothing yet: the run folder has no summary.json.", "")
    names = list(dict.fromkeys(name for column in COLUMNS for name in run.summary[column]))
    flaws = [name for name in names if name.startswith(FLAWS)]
    main = [name for name in (*MAIN, *GUARDS) if name in names]
    trained = [name for name in names if name.startswith(TRAINED)]
    asked = [] if main else [name for name in names if name.startswith(ASKED)]
    others = [name for name in names if name not in (*flaws, *main, *trained, *asked)]
    groups = [("", main), ("Share of clips with this flaw", flaws), ("The training critic", trained)]
    groups.append(("Other critics", asked))
    lead = "The same prompts and seeds before and after."
    if run.q_values:
        lead += (
            f" A change is called one where swapping the clips of some prompts would rarely make as much: a paired "
            f"permutation test over {clip_count(run)} prompts. {len(run.q_values)} measures are tested, and of those "
            "that are called better or worse about one in twenty may be chance (Benjamini-Hochberg)."
        )
    elif clips := clip_count(run):
        lead += f" With {clips} clips, a share counts as changed only when chance would rarely change it as much."
    body = _measures(run, groups)
    if others:
        worse = sum(changed(run, name) == "worse" for name in others)
        title = "All else that was measured" + (f", {worse} of it worse" if worse else "")
        body += (
            f"<details{' open' if worse else ''}><summary>{title}</summary>{_measures(run, [('', others)])}</details>"
        )
    return _section("What was measured", lead, body)


def _measures(run: RunFolder, groups: Sequence[tuple[str, list[str]]]) -> str:
    rows = []
    for title, names in groups:
        if names and title:
            rows.append(f'<tr class="group"><th colspan="6" scope="rowgroup">{escape(title)}</th></tr>')
        rows += [_row(run, name) for name in names]
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Before", "After", "Real"))
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Measures"><table><thead><tr>'
        f'<th scope="col">Measure</th>{head}<th class="dots" scope="col"></th><th scope="col">Change</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(run: RunFolder, name: str) -> str:
    before, after, real = values(run, name)
    cells = "".join(f"<td>{shown(name, value)}</td>" for value in (before, after, real))
    return (
        f'<tr><th scope="row">{escape(measure_of(name).label)}</th>{cells}'
        f'<td class="dots">{_track(before, after, real)}</td>'
        f"<td>{_mark(run, name, difference(name, before, after))}</td></tr>"
    )


def _config(run: RunFolder) -> str:
    rows = "".join(
        f'<tr><th scope="row"><code>{escape(key)}</code></th><td>{escape(value)}</td></tr>'
        for key, value in _flat(run.config)
    )
    table = f'<div class="scroll"><table class="config"><tbody>{rows}</tbody></table></div>'
    lead = "Every key but the algorithm is also a flag of besttake train, with two dashes before it."
    return _section("Settings", lead, f'<details class="config"><summary>All settings</summary>{table}</details>')


def _flat(values_of: dict[str, Any], head: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values_of.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{head}{key}.")
        else:
            yield f"{head}{key}", _plain(value)


def _plain(value: Any) -> str:
    if value is None or value == {} or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _footer(run: RunFolder) -> str:
    folder = str(run.path)
    command = f"besttake train {shlex.quote(f'{folder}/config.yaml')} --out {shlex.quote(f'{folder}-again')}"
    return (
        f"<div>To run it again:<code>{escape(command)}</code>"
        "Without <i>--out</i>, the same command goes on with this run. "
        f"Made by besttake {__version__}.</div>"
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]

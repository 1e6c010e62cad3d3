"""The result of a replication: what its folder holds besides the run itself, to be shared."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from markupsafe import Markup

from besttake.data.files import atomic
from besttake.data.video import contact_sheet, read_video, thumbnail
from besttake.replication.budget import BESIDE_TRAINING
from besttake.replication.environment import text_of
from besttake.replication.record import FILE, RUN, Record
from besttake.report.card import model_card
from besttake.report.curves import reward_charts, training_charts
from besttake.report.folder import RunFolder, read_run, shared_settings
from besttake.report.page import TEMPLATES

GIB = 2**30

SHEET_PROMPTS, SHEET_FRAMES = 4, 8
"""Prompts on the contact sheet, and frames of each clip."""

CHART_WIDTH, CHART_HEIGHT = 640, 340
"""Pixels of a chart in a file of its own."""

SVG = 'xmlns="http://www.w3.org/2000/svg"'

SEND = "https://github.com/besttake/besttake/blob/main/docs/replication.md#send-it-in"


def write_bundle(folder: Path, record: Record) -> Path:
    """Write the result beside the run, in place of an earlier one; the path of its README.md.

    `README.md` (the model card with what was planned and found), `report.html`, `figures/`, `samples.png`,
    `evaluation/`, `adapter/`, `config.yaml`, `metrics.jsonl`, `summary.json` and `environment.txt`.

    Raises:
        ValueError: the run is not finished, or one of its files is broken.
    """
    run = read_run(folder / RUN)
    for name in ("adapter", "evaluation"):
        shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(run.path / name, folder / name, ignore=shutil.ignore_patterns("README.md"))
    for name in ("report.html", "metrics.jsonl", "summary.json"):
        shutil.copy(run.path / name, folder)
    _write(folder / "config.yaml", shared_settings(run))
    _write(folder / "environment.txt", text_of(record.environments[-1]))
    write_sheet(run, folder / "samples.png")
    figures = write_figures(run, folder / "figures")
    text = model_card(run, "adapter", f"{Path(record.recipe).stem}: a replication") + "\n" + about(run, record, figures)
    _write(folder / "README.md", text)
    return folder / "README.md"


def write_sheet(run: RunFolder, path: Path) -> None:
    """A contact sheet of the first prompts: a row before training, and below it one after."""
    numbers = sorted(run.clips["before"].keys() & run.clips["after"].keys())[:SHEET_PROMPTS]
    files = [run.clips[column][number] for number in numbers for column in ("before", "after")]
    contact_sheet([thumbnail(read_video(file), SHEET_FRAMES) for file in files], path)


def write_figures(run: RunFolder, folder: Path) -> list[Path]:
    """Write the page's charts as SVG files; their paths."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files = []
    for number, chart in enumerate([*reward_charts(run), *training_charts(run)], start=1):
        files.append(folder / f"{number:02d}.svg")
        _write(files[-1], as_svg(chart))
    return files


def as_svg(chart: Markup) -> str:
    """A chart of the page as an SVG image, which browsers show."""
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    style += f".chart {{ height: {CHART_HEIGHT}px; }} .chart .plot {{ height: 200px; }}"
    figure = str(chart).replace("<svg ", f"<svg {SVG} ")
    return (
        f'<svg {SVG} width="{CHART_WIDTH}" height="{CHART_HEIGHT}"><style><![CDATA[{style}]]></style>'
        f'<foreignObject width="100%" height="100%"><div xmlns="http://www.w3.org/1999/xhtml">{figure}</div>'
        "</foreignObject></svg>"
    )


def about(run: RunFolder, record: Record, figures: list[Path]) -> str:
    """The README's part on the replication, as Markdown."""
    prompts = [f"{number}. {prompt}" for number, prompt in enumerate(run.prompts[:SHEET_PROMPTS], start=1)]
    uncounted, facts = record.plan.get("uncounted"), {**record.environments[-1], "packages": "in environment.txt"}
    parts = [
        "## Samples",
        "![Frames of clips before and after training](samples.png)",
        "Of each of the first prompts a row before training and, from the same noise, a row after:",
        "\n".join(prompts),
        "## Replication",
        f"```sh\n{record.command}\n```",
        _chosen(record),
        _table(("", "planned", "found"), planned_and_found(run, record)),
        f"The plan does not count the compute of {', '.join(uncounted)}." if uncounted else "",
        "## Environment",
        _table(("", ""), [(name, str(value)) for name, value in facts.items()]),
        f"It was begun in another environment: see `{FILE}`." if len(record.environments) > 1 else "",
        _table(("loaded", "revision"), record.sources.items()),
        "## Files",
        _table(("file", "contents"), FILES.items()),
        "## Curves",
        "\n".join(f"![Curve {file.stem}](figures/{file.name})" for file in figures),
        f"[How to send it in]({SEND})",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


FILES = {
    "`report.html`": "the result as a page, with the clips",
    "`samples.png`, `evaluation/`": "clips before and after training, and each clip's measurements",
    "`figures/`": "curves of the training and of its validation",
    "`adapter/`": "the trained weights, for diffusers",
    "`config.yaml`": "all settings: `besttake train config.yaml` trains with them",
    "`metrics.jsonl`, `summary.json`": "the numbers behind the curves and the table",
    "`environment.txt`": "the machine, and every package with its version",
    f"`{FILE}`": "what was asked for, planned and found",
    f"`{RUN}/`": "the run with its checkpoints; not needed any more",
}


def planned_and_found(run: RunFolder, record: Record) -> Iterator[tuple[str, str, str]]:
    """Rows of steps, hours and memory; "" where nothing was planned."""
    hours, stages = record.plan.get("hours", {}), record.stages
    training = sum(value for name, value in hours.items() if name not in BESIDE_TRAINING)
    seconds = sum(stage["seconds"] for stage in stages.values())
    yield "steps", str(run.config["steps"]), str(run.steps_done)
    for name, planned, found in (
        ("hours of training", training, run.minutes / 60),
        ("hours of evaluation", hours.get("evaluation", 0.0), stages["evaluate"]["seconds"] / 3600),
        ("hours in all, with downloads", sum(hours.values()), seconds / 3600),
    ):
        yield name, f"{planned:.3g}" if hours else "", f"{found:.3g}"
    memory = "GiB" if "device memory" in record.environments[-1] else "GiB of the process"
    for name, stage in (("training", "train"), ("evaluation", "evaluate")):
        planned = f"{record.plan['peak'][stage] / GIB:.1f}" if record.plan else ""
        yield f"{memory} at the peak of {name}", planned, f"{stages[stage]['peak'] / GIB:.1f}"


def _chosen(record: Record) -> str:
    """What the budget changed, and why."""
    if not record.choices:
        return ""
    choices = [f"- `{choice['setting']}` {choice['value']}: {choice['reason']}" for choice in record.choices]
    return "\n".join([f"Chosen for a budget of {record.budget:g} hours on {record.plan['card']}:\n", *choices])


def _table(head: tuple[str, ...], rows: Iterable[Iterable[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _write(path: Path, text: str) -> None:
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")

"""Markdown tables of what `benchmarks/gpu.py` measured, and the section of docs/benchmarks.md that is made of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN = "<!-- what follows is written by: python benchmarks/gpu.py --report --write -->"
END = "<!-- what gpu.py writes ends here -->"

SPECIAL = ("rates", "attention", "network", "compiled", "decode", "speed")
"""Kinds of parts with a table of their own; the others' figures are shown as they are."""

Found = dict[str, Any]
"""A results file: what names the machine, then the figures of each part."""


def newest(folder: Path = RESULTS) -> list[Path]:
    """The newest results file of each card."""
    files = {}
    for file in sorted(folder.glob("*.json"), key=lambda file: json.loads(file.read_text())["date"]):
        files[json.loads(file.read_text())["card"]] = file
    return sorted(files.values())


def with_section(page: str, text: str) -> str:
    """A page with another text between its two marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}"


def report(files: Iterable[Path]) -> str:
    """The tables of some results files, a heading for each."""
    return "\n\n".join(machine(json.loads(file.read_text())) for file in files)


def machine(found: Found) -> str:
    """One machine's tables."""
    names = ("torch", "cuda", "driver", "diffusers", "transformers", "peft", "commit")
    about = ", ".join(f"{name} {found[name]}" for name in names if found.get(name))
    heading = f"### {found['card']}, {found['date']}\n\nWith {about}; random weights, bfloat16."
    tables = (rates, attention, passes, kernels, speed, decoding, others, not_measured)
    return "\n\n".join([heading, *filter(None, (table(found) for table in tables))])


# Tables --------------------------------------------------------------------------------------------------------------


def rates(found: Found) -> str:
    """What the card reaches."""
    row = measured(found.get("rates", {}))
    lines = [["copies, TB/s" if name == "copy" else name, number(rate)] for name, rate in row.items()]
    return table(["matrix products, TFLOP/s", ""], lines)


def attention(found: Found) -> str:
    """Kernels by models: TFLOP/s forward, and forward and backward."""
    cells: dict[str, dict[str, str]] = {}
    for name, row in measured(found.get("attention", {})).items():
        model, kernel = name.split()
        shown = (row.get("forward"), row.get("forward and backward"))
        cells.setdefault(kernel, {})[model] = "-" if None in shown else ", ".join(map(number, shown))
    return grid("attention, TFLOP/s forward, forward and backward", cells)


def passes(found: Found) -> str:
    """Passes through the denoiser by models: seconds and GiB."""
    cells: dict[str, dict[str, str]] = {}
    for kind, before in (("network", ""), ("compiled", "compiled: ")):
        for model, rows in of_kind(found, kind).items():
            for name, row in rows.items():
                if not name.startswith("kernels"):
                    cells.setdefault(before + name, {})[model] = seconds(row)
    return grid("one clip through the denoiser, seconds (GiB)", cells)


def kernels(found: Found) -> str:
    """Where the time goes."""
    kinds, lines = ("attention", "matrix products", "convolutions", "memory"), []
    for part in ("network", "compiled", "decode"):
        for model, rows in of_kind(found, part).items():
            for name, row in rows.items():
                if name.startswith("kernels") and row:
                    shares = [f"{row['shares'].get(kind, 0):.0%}" for kind in kinds]
                    lines.append([f"{model}, {part}: {name}", *shares])
    return table(["share of the time", *kinds[:-1], "reads and writes"], lines)


def speed(found: Found) -> str:
    """Sampling and a DPO step by models, relative to the card and to public code."""
    lines = []
    for model, rows in of_kind(found, "speed").items():
        setting = rows.get("setting", {})
        rate = found.get("rates", {}).get(setting.get("dtype", "bfloat16"))
        lines.append([f"**{model}**, {setting.get('clip', '')}", "", "", "", ""])
        for name, row in rows.items():
            if not isinstance(row, dict) or name == "setting":
                continue
            theirs = rows.get("sampling, pipeline" if name.startswith("sampling") else "DPO step, public", {})
            compares = not name.startswith("decoding") and "seconds" in row and "seconds" in theirs
            ratio = f"{theirs['seconds'] / row['seconds']:.2f} x" if compares and theirs is not row else ""
            share = f"{row['tflop'] / row['seconds'] / rate:.0%}" if rate and row.get("tflop") else "-"
            gib = number(row["gib"]) if "gib" in row else "-"
            lines.append([name, number(row["seconds"]) if "seconds" in row else row["failed"], share, gib, ratio])
        if "pairs an hour" in rows:
            lines.append(["pairs an hour, without the critic", number(rows["pairs an hour"]), "", "", ""])
    head = ["a step of sampling a clip; a DPO step on a pair", "seconds", "of the matrix rate", "GiB"]
    return table([*head, "as fast as theirs"], lines)


def decoding(found: Found) -> str:
    """Ways to decode a clip by models: seconds and GiB."""
    cells: dict[str, dict[str, str]] = {}
    for model, rows in of_kind(found, "decode").items():
        for name, row in rows.items():
            if not name.startswith("kernels"):
                cells.setdefault(name, {})[model] = seconds(row)
    return grid("decoding a clip, seconds (GiB)", cells)


def others(found: Found) -> str:
    """The plan's accuracy, memory, critics and agreement, as they are."""
    tables = []
    for name, rows in parts(found).items():
        if name.split("-")[0] in SPECIAL or not (rows := measured(rows)):
            continue
        columns = list(dict.fromkeys(key for row in rows.values() for key in row if key != "failed"))
        lines = [
            [label, *(number(row[column]) if column in row else row.get("failed", "-") for column in columns)]
            for label, row in rows.items()
        ]
        tables.append(table([name.replace("_", " "), *(column.replace("_", " ") for column in columns)], lines))
    return "\n\n".join(tables)


def not_measured(found: Found) -> str:
    """Parts that failed or were stopped, and why."""
    why = {name: row.get("failed") or row.get("stopped") for name, row in parts(found).items()}
    named = ", ".join(f"{name} ({reason})" for name, reason in why.items() if reason)
    return f"Not measured, or not wholly: {named}." if named else ""


# Their pieces --------------------------------------------------------------------------------------------------------


def parts(found: Found) -> Found:
    """The figures of each part."""
    return {name: rows for name, rows in found.items() if isinstance(rows, dict)}


def of_kind(found: Found, kind: str) -> dict[str, Found]:
    """What was measured of each model by one kind of part."""
    named = {name.removeprefix(f"{kind}-"): rows for name, rows in parts(found).items() if name.startswith(f"{kind}-")}
    return {model: rows for model, all_rows in named.items() if (rows := measured(all_rows))}


def measured(rows: Found) -> Found:
    """Rows without why there are no more."""
    return {name: row for name, row in rows.items() if name not in ("failed", "stopped")}


def seconds(row: Any) -> str:
    """A figure, with its memory if that was measured."""
    if not isinstance(row, dict):
        return number(row)
    if "failed" in row:
        return row["failed"]
    return number(row["seconds"]) + (f" ({number(row['gib'])})" if "gib" in row else "")


def number(value: Any) -> str:
    """Three digits, or more before the point; a text as it is."""
    if value is None or isinstance(value, str):
        return value or "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def grid(corner: str, cells: dict[str, dict[str, str]]) -> str:
    """A table of rows by columns, in the order in which they came."""
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    return table([corner, *columns], [[name, *(row.get(c, "-") for c in columns)] for name, row in cells.items()])


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown, or nothing if there are no lines."""
    if not lines:
        return ""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)

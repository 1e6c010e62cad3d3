"""Parsing of the scores in a generative critic's answer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

MARKDOWN = " \t*_`#>"
"""Characters that may surround a name or a number."""


def read_answer(
    text: str, dimensions: Mapping[str, tuple[float, float]], form: Literal["lines", "json"]
) -> dict[str, float]:
    """Scores in an answer, by dimension. Reasoning before `</think>` is ignored.

    In "lines", `dimension: number` is on a line of its own, or separated by semicolons or commas (VideoScore2);
    numbering, Markdown, and a remark after the name (behind a dash or in parentheses) are allowed. A "json" object may
    be fenced, and have text under other names. Every dimension must occur once, with a number in its range.

    Raises:
        ValueError: a dimension is missing, occurs twice or is out of range, or there is a number of another name.
    """
    text = text.rpartition("</think>")[2].strip()
    wanted = {name.lower(): name for name in dimensions}
    found = _once(_from_json(text) if form == "json" else _from_lines(text, list(wanted)))
    missing, wrong = [name for name in wanted if name not in found], [name for name in found if name not in wanted]
    if missing or wrong:
        raise ValueError(f"missing: {', '.join(missing) or 'nothing'}; unexpected: {', '.join(wrong) or 'nothing'}")
    for name, (low, high) in dimensions.items():
        if not low <= found[name.lower()] <= high:
            raise ValueError(f"{name!r} is {found[name.lower()]:g}, outside its range [{low:g}, {high:g}]")
    return {name: found[key] for key, name in wanted.items()}


def _from_lines(text: str, names: Sequence[str]) -> list[tuple[str, Any]]:
    """Numbers in lines, and in parts of lines, that begin with one of the names."""
    listed, either = r"(?:\(?\d+[.)]\s*)?", "|".join(re.escape(name) for name in names)  # "2. ", "(2) "
    found = []
    for part in re.split(rf"[\n;]|,\s+(?={listed}(?:{either})\W)", text, flags=re.IGNORECASE):
        head, _, number = (side.strip(MARKDOWN) for side in part.rpartition(":"))
        name = re.sub(f"^{listed}", "", head).strip(MARKDOWN).lower()
        if name not in names:  # "light (1-5)", "light - its beauty", with a dash of any length
            name = re.split(r"\s(?:[-\u2013\u2014]\s|\()", name)[0].strip(MARKDOWN)
        match = re.fullmatch(r"([-+]?\d+(?:\.\d+)?)\.?", number)
        if match and name in names:
            found.append((name, match[1]))
    return found


def _from_json(text: str) -> list[tuple[str, Any]]:
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", text, re.DOTALL)
    pairs = json.loads(fenced[1] if fenced else text, object_pairs_hook=_Pairs)
    if not isinstance(pairs, _Pairs):
        raise ValueError(f"it is a JSON {type(pairs).__name__}; expected an object")
    return [(name.lower(), value) for name, value in pairs if not isinstance(value, str)]


class _Pairs(list):
    """Keys and values of a JSON object, duplicates included."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in pairs:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(f"{name!r} is not a number")
        if name in found:
            raise ValueError(f"{name!r} occurs twice")
        found[name] = float(value)
    return found

"""The numbers in the text that a generative critic answers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

MARKDOWN = " \t*_`#>"
"""What may stand around a name or a number."""


def read_answer(
    text: str, dimensions: Mapping[str, tuple[float, float]], form: Literal["lines", "json"]
) -> dict[str, float]:
    """The numbers in an answer; what a model thinks aloud before `</think>` is no part of it.

    `dimension: number` stands on a line of its own, or between semicolons or commas (VideoScore2); numbering and
    Markdown may surround it, and a remark behind a dash or in parentheses may follow the name. A JSON object may be
    fenced, and give reasons as text under other names. Each dimension must be there, once, with a number in its range.

    Raises:
        ValueError: one is missing, is there twice or is out of its range, or the object holds another number.
    """
    text = text.rpartition("</think>")[2].strip()
    wanted = {name.lower(): name for name in dimensions}
    found = _once(_from_json(text) if form == "json" else _from_lines(text, list(wanted)))
    missing, wrong = [name for name in wanted if name not in found], [name for name in found if name not in wanted]
    if missing or wrong:
        raise ValueError(
            f"{', '.join(missing) or 'nothing'} is missing, {', '.join(wrong) or 'nothing'} was not asked for"
        )
    for name, (low, high) in dimensions.items():
        if not low <= found[name.lower()] <= high:
            raise ValueError(f"{name!r} is {found[name.lower()]:g}, out of its range [{low:g}, {high:g}]")
    return {name: found[key] for key, name in wanted.items()}


def _from_lines(text: str, names: Sequence[str]) -> list[tuple[str, Any]]:
    """The numbers of lines, and of parts of lines, that begin with one of the names."""
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
        raise ValueError(f"it is JSON, but {type(pairs).__name__} where an object was asked for")
    return [(name.lower(), value) for name, value in pairs if not isinstance(value, str)]


class _Pairs(list):
    """Keys and values of a JSON object as they stand there: a dict would keep the last of two."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in pairs:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(f"{name!r} is no number")
        if name in found:
            raise ValueError(f"{name!r} is answered twice")
        found[name] = float(value)
    return found

"""Terminal output without markup, so that names with [brackets] or :colons: are printed unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.text import Text

Item = TypeVar("Item")

out = Console(markup=False, emoji=False, highlight=False)
err = Console(markup=False, emoji=False, highlight=False, stderr=True)


def progress(items: Iterable[Item], doing: str) -> Iterator[Item]:
    """Iterate over the items with a progress bar on standard error."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err) as bar:
        yield from bar.track(items, description=doing)


def status(doing: str) -> Status:
    """Context that shows a status line on standard error."""
    return err.status(Text(doing))

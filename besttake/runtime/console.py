"""What commands say on the terminal, letter by letter: a name with [brackets] or :colons: is no markup."""

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
    """The items, with a bar on standard error."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err) as bar:
        yield from bar.track(items, description=doing)


def status(doing: str) -> Status:
    """Within this context standard error says what is being done."""
    return err.status(Text(doing))

"""Terminal output without markup, so that names with [brackets] or :colons: are printed unchanged."""

from __future__ import annotations

import logging
import os
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


def quiet_libraries() -> None:
    """No notes of the libraries below, and no bars for loading a file: those of the work are enough."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for chatty in (
        "httpx",
        "httpx2",
        "diffusers",
        "transformers",
        "peft",
        "torchao",
        "bitsandbytes",
        "torch.utils._pytree",
    ):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
        library.set_verbosity_error()

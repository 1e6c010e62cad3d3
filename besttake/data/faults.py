"""Validation of a set of items (clips, prompts, pairs, votes): one error that lists all invalid ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Read = TypeVar("Read")

MAX_LISTED = 50
"""Largest number of faults that an error lists; of the rest it gives the number."""


def read_each(
    items: Iterable[Item],
    read: Callable[[Item], Read],
    what: str,
    *,
    place: Callable[[Item], object] | None = None,
    skip_bad: bool | None = None,
    advice: str = "Mend or remove them",
) -> list[Read]:
    """Apply `read` to every item, in order, and collect all errors.

    Args:
        read: raises ValueError for an invalid item.
        what: the items in the plural and their source, such as "clips of my_folder".
        place: names an item in front of its error message; None: the message already names it.
        skip_bad: leave out invalid items with one warning; None: the caller has no such setting.
        advice: how to mend the items.

    Raises:
        ValueError: lists the invalid items, unless `skip_bad`; or no item is left.
    """
    made, faults, total = [], [], 0
    for item in items:
        total += 1
        try:
            made.append(read(item))
        except ValueError as error:
            faults.append(f"{place(item)}: {error}" if place else str(error))
    if len(faults) == 1 and skip_bad is None:
        raise ValueError(faults[0])
    if not faults:
        return made
    more = [f"and {len(faults) - MAX_LISTED} more"] if len(faults) > MAX_LISTED else []
    listing = "\n  ".join([f"{len(faults)} of {total} {what} cannot be used:", *faults[:MAX_LISTED], *more])
    if skip_bad and made:
        log.warning("skipped: %s", listing)
        return made
    if skip_bad:
        advice = "None is left"
    elif skip_bad is not None:
        advice += ", or set skip_bad to go on without them"
    raise ValueError(f"{listing}\n{advice}.")

"""What is wrong with the items of a set (clips, prompts, pairs, votes), told of all of them at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Read = TypeVar("Read")

NAMED = 50
"""Faults that are told one by one; of the others their number."""


def read_each(
    items: Iterable[Item],
    read: Callable[[Item], Read],
    what: str,
    *,
    place: Callable[[Item], object] | None = None,
    skip_bad: bool | None = None,
    advice: str = "Mend or remove them",
) -> list[Read]:
    """What `read` makes of every item, in their order.

    Args:
        read: raises ValueError where an item is no good.
        what: the items, in the plural, and where they are from: "clips of my_folder".
        place: what stands before an item's complaint; None: `read` names the item itself.
        skip_bad: leave out items that are no good, with one warning of all; None: there is no such setting.
        advice: how to mend them.

    Raises:
        ValueError: naming the items that are no good, unless `skip_bad`; or none is left.
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
    more = [f"and {len(faults) - NAMED} more"] if len(faults) > NAMED else []
    listing = "\n  ".join([f"{len(faults)} of {total} {what} cannot be used:", *faults[:NAMED], *more])
    if skip_bad and made:
        log.warning("skipped: %s", listing)
        return made
    if skip_bad:
        advice = "None is left"
    elif skip_bad is not None:
        advice += ", or set skip_bad to go on without them"
    raise ValueError(f"{listing}\n{advice}.")

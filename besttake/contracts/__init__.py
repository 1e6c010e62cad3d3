"""What a critic, an algorithm and a model family must do, as functions to be called on anybody's.

`besttake check` runs them on a user's file, and our own tests run them on everything that is shipped. The first line of
a function's docstring is what it demands; where that is not met it raises a `ContractError`, which says how to mend it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

Check = Callable[..., None]


class ContractError(ValueError):
    """Something does not do what its contract demands."""


@dataclass(frozen=True)
class Result:
    """What a contract demands, and what is wrong, "" = nothing."""

    demand: str
    problem: str = ""


def demand(met: bool, otherwise: str) -> None:
    """ContractError with what is wrong and how to mend it, unless it is met."""
    if not met:
        raise ContractError(otherwise)


def results(checks: Sequence[Check], *what: object) -> Iterator[Result]:
    """The result of each check, one after the other; whatever else one raises is a problem too."""
    for check in checks:
        title = (check.__doc__ or check.__name__).splitlines()[0].rstrip(".")
        try:
            check(*what)
            yield Result(title)
        except ContractError as error:
            yield Result(title, str(error))
        except Exception as error:  # of the user's code
            yield Result(title, f"it raises {type(error).__name__}: {error}")

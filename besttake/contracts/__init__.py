"""Contract tests for critics, algorithms and model families.

`besttake check` runs them on a user's code, and our own tests run them on everything that is shipped. The first line of
a check's docstring is the requirement; if it is not met, the check raises a `ContractError` that says how to fix it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

Check = Callable[..., None]


class ContractError(ValueError):
    """A requirement of a contract is not met."""


@dataclass(frozen=True)
class Result:
    """A requirement, and how it is not met; "" = it is met."""

    demand: str
    problem: str = ""


def demand(met: bool, otherwise: str) -> None:
    """ContractError with the message `otherwise`, unless the requirement is met."""
    if not met:
        raise ContractError(otherwise)


def results(checks: Sequence[Check], *what: object) -> Iterator[Result]:
    """The result of each check, one by one. Any exception counts as a failure."""
    for check in checks:
        title = (check.__doc__ or check.__name__).splitlines()[0].rstrip(".")
        try:
            check(*what)
            yield Result(title)
        except ContractError as error:
            yield Result(title, str(error))
        except Exception as error:  # of the user's code
            yield Result(title, f"it raises {type(error).__name__}: {error}")

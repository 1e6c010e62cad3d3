"""Settings from the command line: the same dataclasses as in files, parsed by tyro, validated by `configuration`."""

from __future__ import annotations

import dataclasses
import logging
import re
import typing
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro
from tyro.conf import UseAppendAction
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo, StructTypeInfo

from besttake.runtime.configuration import from_dict, parse_yaml
from besttake.runtime.renamed import RENAMED_FLAGS, new_name, new_value

log = logging.getLogger(__name__)

C = TypeVar("C")


def from_flags(kind: type[C], arguments: Sequence[str], command: str, default: C | None = None) -> C:
    """A dataclass from the arguments of a command; missing ones are taken from `default`.

    Raises:
        ValueError: a flag is given twice, or `from_dict` rejects a value.
        SystemExit: with status 2 and a message if an argument is unknown or invalid; with 0 after
            `--help` or `--help-all`.
    """
    return from_dict(kind, plain_values(kind, with_new_flags(arguments, kind), command, default)[0])


def plain_values(
    kind: type, arguments: Sequence[str], command: str, default: Any = None, others: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """The arguments as nested plain values, completed from `default`; and the remaining arguments.

    Args:
        others: return unknown arguments instead of rejecting them.
    """
    if help_flags := {"-h", "--help", "--help-all"} & set(arguments):
        from besttake.commands.help import help_text  # which imports PyTorch

        print(help_text(kind, command, default, everything="--help-all" in help_flags), end="")
        raise SystemExit(0)
    refuse_repeated(kind, arguments)
    settings: dict[str, Any] = {"prog": command, "registry": _rules(), "return_unknown_args": others}
    settings |= {} if default is None else {"default": default}
    read: Any = tyro.cli(kind, args=list(arguments), **settings)
    return read if others else (read, [])


def names(arguments: Sequence[str]) -> list[str]:
    """The names of the settings that the flags set: both `--no-tiling` and `--tiling` are `tiling`."""
    return [name for name, _ in _named(arguments)]


def with_new_flags(arguments: Sequence[str], kind: Any) -> list[str]:
    """Arguments with former names of flags replaced by the current ones, with a warning.

    Args:
        kind: the dataclass that the flags set; names of its own fields are not replaced.
    """
    own = {field.name for field in dataclasses.fields(kind)}
    found: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=False):  # nothing, if there are none
        flag, equals, value = argument.partition("=")
        ((name, _),) = _named([argument]) or [("", "")]
        renamed_flag = RENAMED_FLAGS.get(name)
        today = name if name in own else renamed_flag if renamed_flag in own else new_name(name)
        if today is None:
            raise ValueError(f"{flag} was removed; leave it out")
        if today != name:
            section, dot, last = today.rpartition(".")
            off = "no-" if re.search(r"(^--|\.)no[-_]", flag) else ""
            former, flag = flag, f"--{section}{dot}{off}{last}".replace("_", "-")
            log.warning("%s was renamed to %s", former, flag)
        found += _with_new_value(f"{flag}{equals}{value}", today, following)
    return found


def _with_new_value(argument: str, name: str, following: str) -> list[str]:
    """A flag that was a switch with its value: `--policy.gradient-checkpointing` with `full` after it."""
    flag, equals, value = argument.partition("=")
    bare = flag.startswith("--") and not equals and following.startswith("--")
    off = re.search(r"(^--|\.)no-", flag) is not None
    given = {"true": True, "false": False}.get(value.lower()) if equals else not off
    today = new_value(name, given)
    if not isinstance(today, str) or not (bare or off or equals):
        return [argument]
    log.warning("%s is now %s %s", argument, flag := re.sub(r"(^--|\.)no-", r"\1", flag), today)
    return [flag, today]


def refuse_repeated(kind: type, arguments: Sequence[str]) -> None:
    """ValueError if a flag is given twice, in any spelling, unless it is one that accumulates values."""
    hints = typing.get_type_hints(kind, include_extras=True)
    given: dict[str, list[str]] = {}
    for name, flag in _named(arguments):
        given.setdefault(name, []).append(flag)
    for name, flags in given.items():
        if len(flags) > 1 and UseAppendAction not in getattr(hints.get(name), "__metadata__", ()):
            raise ValueError(
                f"{name} is given {len(flags)} times ({', '.join(flags)}); give it once, followed by all its values"
            )


def _named(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """(name of the setting, flag) of every argument that is a flag."""
    flags = [argument.partition("=")[0] for argument in arguments if re.match("--[A-Za-z]", argument)]
    return [(re.sub(r"(^|\.)no_", r"\1", flag.removeprefix("--").replace("-", "_")), flag) for flag in flags]


def _rules() -> ConstructorRegistry:
    registry = ConstructorRegistry()
    enclosing: list[StructTypeInfo] = []

    @registry.struct_rule
    def plain(info: StructTypeInfo) -> Any:
        """Parse a dataclass into a dict, so that it is built and validated like one from a file."""
        if enclosing or not dataclasses.is_dataclass(info.type):
            return None
        enclosing.append(info)
        try:
            return dataclasses.replace(ConstructorRegistry.get_struct_spec(info), instantiate=dict)  # type: ignore
        finally:
            enclosing.pop()

    @registry.primitive_rule
    def mapping(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        if typing.get_origin(info.type) is not dict:
            return None
        _, value = typing.get_args(info.type)
        nested = value not in (str, float)
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="NAME ... or '{NAME: {KEY: VALUE}}'" if nested else f"NAME {value.__name__.upper()} ...",
            instance_from_str=lambda words: _mapping(words, value),
            is_instance=lambda given: isinstance(given, dict),
            str_from_instance=lambda given: (
                [str(given)] if nested else [str(x) for pair in given.items() for x in pair]
            ),
        )

    return registry


def _mapping(words: list[str], kind: Any) -> Any:
    """A mapping from `NAME VALUE` pairs, from names alone (each an empty mapping), or from one YAML mapping."""
    if len(words) == 1 and words[0].lstrip().startswith("{"):
        return parse_yaml(words[0])
    if kind not in (str, float):
        return _unique(words, words)
    if len(words) % 2:
        raise ValueError(
            f"{' '.join(words)} are no pairs; expected a {'number' if kind is float else 'text'} after each name"
        )
    return {name: _value(name, word, kind) for name, word in zip(_unique(words[::2], words), words[1::2], strict=True)}


def _value(name: str, word: str, kind: Any) -> Any:
    try:
        return kind(word)
    except ValueError as error:
        raise ValueError(f"{name!r} is {word!r}; expected a number") from error


def _unique(found: list[str], words: list[str]) -> list[str]:
    for name, count in Counter(found).items():
        if count > 1:
            raise ValueError(f"{name!r} is given {count} times in {' '.join(words)}; give it once")
    return found

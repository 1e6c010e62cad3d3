"""Help of a command: the essential settings, or all of them, with current values and descriptions.

A setting's description is the string under its field in a config dataclass.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tyro.conf import Positional

from besttake.sampling.rollout import RolloutOverrides
from besttake.training.config import TrainConfig

WIDTH = 100
"""Columns of the printed help."""
COLUMN = 42
"""Column at which texts begin."""

ESSENTIAL = {
    "run": (
        "model",
        "out",
        "steps",
        "seed",
        "device",
        "dtype",
        "quantize",
        "tiling",
        "offload_idle",
        "save_every",
        "log",
    ),
    "rollout": ("steps", "guidance", "frames", "height", "width"),
    "reward": ("name", "critics", "weights"),
    "policy": ("train", "rank", "ema_decay", "gradient_checkpointing", "micro_batch_size"),
    "optim": ("lr", "warmup_steps", "gradient_accumulation_steps"),
    "validation": ("every", "prompts", "rewards"),
    "evaluation": ("prompts", "count"),
}
"""Settings that `--help` shows of each group. Other groups, such as an algorithm's own, are shown whole."""


@dataclass(frozen=True)
class Setting:
    """A setting as it is shown in the help.

    Attributes:
        section: dotted name of the dataclass that holds it; "" for the command's own.
        group: heading in the help: the section; "method" for an algorithm's own settings, "run" for those of all.
    """

    section: str
    group: str
    name: str
    value: Any
    text: str
    options: tuple[Any, ...] = ()
    positional: bool = False

    @property
    def usage(self) -> str:
        """The flag with its current value; values in parentheses are descriptions, not to be typed."""
        if self.positional:
            return self.name.upper()
        flag = f"--{self.section}.{self.name}" if self.section else f"--{self.name}"
        return f"{flag.replace('_', '-')} {_shown(self.value)}"


def help_text(kind: type, command: str, default: Any = None, everything: bool = False) -> str:
    """The help of a command whose settings are a dataclass.

    Args:
        default: an instance with the current values; by default the class's defaults.
        everything: show all settings with full descriptions, instead of the essential ones in one line each.
    """
    found = list(settings(kind, default))
    shown = found if everything else [setting for setting in found if _is_essential(setting)]
    lines = [f"usage: {command} [--setting value ...]", "", *textwrap.wrap(_summary(kind), WIDTH), ""]
    for group in dict.fromkeys(setting.group for setting in shown):
        lines += [f"{group}:"]
        for setting in (setting for setting in shown if setting.group == group):
            lines += _whole(setting) if everything else [_line(setting)]
    lines += ["", "Switches are shown as (off) or (on): --flag turns one on, --no-flag off."]
    if everything and (overridden := _overridden(kind)):
        lines += [f"{' and '.join(overridden)} have the settings of --rollout; those you set override it."]
    if len(shown) < len(found):
        lines += [f"--help-all shows all {len(found)} settings."]
    return "\n".join(lines) + "\n"


def settings(kind: type, default: Any = None, section: str = "") -> Iterator[Setting]:
    """Every setting of a config dataclass and its nested dataclasses, except overrides of its own rollout."""
    hints, texts = typing.get_type_hints(kind, include_extras=True), field_texts(kind)
    overridden = tuple(_overridden(kind))
    nested = [field for field in dataclasses.fields(kind) if dataclasses.is_dataclass(hints[field.name])]
    flat = [field for field in dataclasses.fields(kind) if field not in nested]
    for field in sorted(flat, key=lambda field: _group(kind, field.name, section) == "run"):
        hint, value = hints[field.name], _value(field, default)
        options = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
        positional = Positional in getattr(hint, "__metadata__", ())
        group, text = _group(kind, field.name, section), texts.get(field.name, "")
        yield Setting(section, group, field.name, value, text, options, positional)
    for field in nested:
        inner = settings(hints[field.name], _value(field, default), f"{section}.{field.name}".lstrip("."))
        yield from (setting for setting in inner if not f"--{setting.section}".startswith(overridden))


def field_texts(kind: type) -> dict[str, str]:
    """Description of each field of a dataclass, in one line; a subclass's replaces its base's."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            texts |= dict(_texts_in(typing.cast(ast.ClassDef, node).body))
    return texts


def _texts_in(body: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, below in pairwise(body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, " ".join(text.split())


def _summary(kind: type) -> str:
    """The first paragraph of a class's docstring."""
    return " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())


def _overridden(kind: type) -> list[str]:
    """The flags of the sections that override a config's own rollout."""
    hints = typing.get_type_hints(kind)
    inner = {name: typing.get_type_hints(hint) for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    overriding = [f"--{name}.rollout" for name, parts in inner.items() if parts.get("rollout") is RolloutOverrides]
    return overriding if "rollout" in hints else []


def _is_essential(setting: Setting) -> bool:
    return setting.name in ESSENTIAL.get(setting.group, () if setting.section else (setting.name,))


def _group(kind: type, name: str, section: str) -> str:
    if section or not issubclass(kind, TrainConfig):
        return section or "settings"
    return "method" if name in vars(kind).get("__annotations__", {}) else "run"


def _line(setting: Setting) -> str:
    """A setting in one line, with as many clauses of its description as fit."""
    usage = textwrap.shorten(setting.usage, COLUMN - 4, placeholder="...")
    clauses = re.split(r"(?<=[;:.,])\s", setting.text)
    lengths = [len(" ".join(clauses[:count])) for count in range(1, len(clauses) + 1)]
    fitting = sum(length <= WIDTH - COLUMN for length in lengths)
    text = " ".join(clauses[:fitting]).rstrip(";:.,") or textwrap.shorten(clauses[0], WIDTH - COLUMN, placeholder="...")
    return f"  {usage:<{COLUMN - 2}}{text}".rstrip()


def _whole(setting: Setting) -> list[str]:
    """A setting with its full description."""
    text = setting.text + (f" One of {', '.join(map(str, setting.options))}." if setting.options else "")
    lines = textwrap.wrap(text, WIDTH, initial_indent=" " * COLUMN, subsequent_indent=" " * COLUMN) or [""]
    head = f"  {setting.usage} "
    return [head.ljust(COLUMN) + lines[0].lstrip(), *lines[1:]] if len(head) <= COLUMN else [head.rstrip(), *lines]


def _value(field: dataclasses.Field, default: Any) -> Any:
    if default is not None:
        return getattr(default, field.name)
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _shown(value: Any) -> str:
    """A value as typed after a flag; a description in parentheses where nothing is typed."""
    if value is dataclasses.MISSING:
        return "(required)"
    if isinstance(value, bool):
        return "(on)" if value else "(off)"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return " ".join(f"{_shown(key)} {_shown(of)}" for key, of in value.items()) or "(none)"
    if isinstance(value, (tuple, list)):
        return " ".join(map(_shown, value)) or "(none)"
    text = "" if value is None else str(value)
    return f"'{text}'" if " " in text else text or "(none)"

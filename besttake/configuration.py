"""Configuration: frozen dataclasses beside the code that uses them, YAML in files, checked before any work starts."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

C = TypeVar("C")

NOT_IDENTITY = (
    *(
        "steps",
        "minutes",
        "out",
        "save_every",
        "device",
        "cache",
        "tiling",
        "by_turns",
        "parallel",
        "monitor",
        "evaluation",
    ),
    *("policy.gradient_checkpointing", "policy.clips_at_once", "policy.halve", "policy.offload", "policy.reference_on"),
    *("rollout.batch", "rollout.compile"),
)
"""Fields in which a resumed run may differ from the one it resumes: how long, where and in how much memory it runs."""


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; ValueError if there is none."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, expected 'key: value' lines")
    return content


def from_dict(kind: type[C], values: dict[str, Any], where: str = "") -> C:
    """A dataclass from plain values, nested ones included.

    Raises:
        ValueError: a key is unknown (the nearest known one is named) or a value has the wrong type.
    """
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            advice = f"; did you mean '{near[0]}'?" if near else f"; there are {', '.join(known)}"
            raise ValueError(f"unknown key '{where}{key}'{advice}")
    return kind(**{key: _convert(hints[key], value, f"{where}{key}") for key, value in values.items()})


def _convert(hint: Any, value: Any, key: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise _wrong(key, value, "a mapping")
        return from_dict(hint, value, f"{key}.")  # type: ignore[arg-type]
    if origin is typing.Literal:
        if value not in arguments:
            raise _wrong(key, value, "one of " + ", ".join(map(str, arguments)))
        return value
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _convert(next(a for a in arguments if a is not type(None)), value, key)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise _wrong(key, value, "a list")
        kinds = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        if len(kinds) != len(value):
            raise _wrong(key, value, f"a list of {len(kinds)}")
        return tuple(
            _convert(kind, item, f"{key}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(key, value, "a mapping")
        return {_convert(arguments[0], k, key): _convert(arguments[1], v, f"{key}.{k}") for k, v in value.items()}
    return _plain(hint, value, key)


def _plain(hint: type, value: Any, key: str) -> Any:
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if hint is float and isinstance(value, str) and re.fullmatch(r"[-+]?\d+e[-+]?\d+", value):
        return float(value)  # YAML takes 1e-4 for text and 1.0e-4 for a number
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise _wrong(key, value, {int: "a whole number", float: "a number", bool: "true or false"}.get(hint, "text"))


def _wrong(key: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"'{key}' is {value!r} ({type(value).__name__}), expected {expected}")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain values, as YAML and JSON hold them."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return plain(dataclasses.asdict(config))


def to_yaml(config: Any, **first: Any) -> str:
    """A dataclass as YAML, keys in their order, behind the keys in `first`."""
    return yaml.safe_dump({**first, **to_dict(config)}, sort_keys=False, allow_unicode=True)


def algorithm_of(config: Any) -> str:
    """The algorithm a config belongs to: the last part of its module's name."""
    return type(config).__module__.rpartition(".")[2]


def write_config(config: Any, path: Path) -> None:
    """Write `config.yaml`, which `besttake train` takes as a recipe."""
    part = path.with_suffix(".part")
    part.write_text(to_yaml(config, algorithm=algorithm_of(config)))
    part.replace(path)


def fingerprint(config: Any) -> str:
    """A hash of what makes a run the run it is: everything but how it is carried out and watched."""
    values = to_dict(config)
    for key in NOT_IDENTITY:
        section, _, name = key.rpartition(".")
        (values.get(section, {}) if section else values).pop(name, None)
    if algorithm_of(config) in ("onlinevpo", "offline_dpo") and values.get("skip_bad") is False:
        del values["skip_bad"]  # which these had not at first: their older checkpoints resume
    text = json.dumps([algorithm_of(config), values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

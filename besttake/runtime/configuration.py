"""Configuration: frozen dataclasses next to the code that uses them, read from YAML and validated before any work."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from besttake.runtime.plugins import place_of
from besttake.runtime.renamed import with_old_names

ConfigT = TypeVar("ConfigT")

NOT_IDENTITY = (
    *("steps", "minutes", "out", "save_every", "device", "cache", "cache_limit", "tiling", "offload_idle", "parallel"),
    *("validation", "evaluation", "log", "attention"),
    *("policy.gradient_checkpointing", "policy.micro_batch_size", "policy.halve_on_oom", "policy.offload"),
    *("policy.reference_device", "rollout.batch", "rollout.compile", "reward.cache_limit"),
)
"""Settings in which a resumed run may differ from the original: duration, location, memory use."""


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; ValueError if it has none, or a value is ambiguous in YAML 1.1."""
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} contains {type(content).__name__}, expected 'key: value' lines")
    return content


def parse_yaml(text: str) -> Any:
    """Parse YAML text.

    Raises:
        ValueError: invalid YAML, a duplicate key, or a value that is ambiguous in YAML 1.1: `1:30` is 90, `010` is 8,
            and `no` is false.
    """
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_ambiguous(node, "")
        return loader.construct_document(node)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error) or "invalid YAML") from error


def _refuse_ambiguous(node: yaml.Node, key: str) -> None:
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for name, value in node.value:
            inner, line = f"{key}.{name.value}".lstrip("."), name.start_mark.line + 1
            if inner in lines:
                raise ValueError(f"'{inner}' is given twice, in lines {lines[inner]} and {line}; keep one")
            lines[inner] = line
            _refuse_ambiguous(name, inner)
            _refuse_ambiguous(value, inner)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            _refuse_ambiguous(item, f"{key}[{i}]")
    elif (
        isinstance(node, yaml.ScalarNode)
        and not node.style
        and (reading := _other_reading(node.tag.rpartition(":")[2], node.value))
    ):
        line = node.start_mark.line + 1
        raise ValueError(f"'{key}' in line {line} is {node.value}, which YAML reads as {reading}, or quote it as text")


def _other_reading(kind: str, text: str) -> str:
    """The surprising YAML 1.1 reading of a plain value, and what to write instead; "" if there is none."""
    if kind in ("int", "float") and ":" in text:
        return "a base-60 number; write a plain number"
    if kind == "int" and re.fullmatch(r"[-+]?0[0-9_]+", text):
        return "an octal number; leave out the leading 0"
    if kind == "bool" and text.lower() not in ("true", "false"):
        return "true or false; write one of these"
    return ""


def from_dict(kind: type[ConfigT], values: dict[str, Any], where: str = "") -> ConfigT:
    """Build a dataclass, with nested ones, from plain values.

    Args:
        where: prefix of its keys in error messages, such as "validation.rollout.".

    Raises:
        ValueError: names a key that is unknown (with the nearest known one), has the wrong type, is not finite, or is
            rejected by the dataclass.
    """
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            advice = f"; did you mean '{near[0]}'?" if near else f"; known keys: {', '.join(known)}"
            raise ValueError(f"unknown key '{where}{key}'{advice}")
    given = {key: _convert(hints[key], value, f"{where}{key}") for key, value in values.items()}
    try:
        config = kind(**given)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error
    check_finite(config, where.rstrip("."))
    return config


def require(valid: bool, name: str, value: Any, expected: str) -> None:
    """ValueError with a setting's name, its value and what was expected, unless it is valid."""
    if not valid:
        raise ValueError(f"{name} is {value!r}; expected {expected}")


def check_finite(config: Any, where: str = "") -> None:
    """ValueError if a setting anywhere in a dataclass is infinite or NaN."""
    if dataclasses.is_dataclass(config):
        for f in dataclasses.fields(config):
            check_finite(getattr(config, f.name), f"{where}.{f.name}".lstrip("."))
    elif isinstance(config, (dict, list, tuple)):
        for key, value in config.items() if isinstance(config, dict) else enumerate(config):
            check_finite(value, f"{where}.{key}")
    elif isinstance(config, float):
        require(math.isfinite(config), where, config, "a finite number")


def _convert(hint: Any, value: Any, key: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise _type_error(key, value, "a mapping")
        return from_dict(hint, value, f"{key}.")  # type: ignore[arg-type]
    if origin is typing.Literal:
        if value not in arguments:
            raise _type_error(key, value, "one of " + ", ".join(map(str, arguments)))
        return value
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _convert(next(a for a in arguments if a is not type(None)), value, key)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise _type_error(key, value, "a list")
        kinds = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        if len(kinds) != len(value):
            raise _type_error(key, value, f"a list of {len(kinds)}")
        return tuple(
            _convert(kind, item, f"{key}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is dict:
        if isinstance(value, list) and typing.get_origin(arguments[1]) is dict:
            value = {name: {} for name in value}  # critics without weights: all their dimensions
        if not isinstance(value, dict):
            raise _type_error(key, value, "a mapping")
        return {_convert(arguments[0], k, key): _convert(arguments[1], v, f"{key}.{k}") for k, v in value.items()}
    return _plain(hint, value, key)


def _plain(hint: type, value: Any, key: str) -> Any:
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if hint is float and isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value):
        value = float(value)  # YAML reads 1e-4 as text and 1.0e-4 as a number
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise _type_error(key, value, "a finite number") from error
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise _type_error(key, value, {int: "a whole number", float: "a number", bool: "true or false"}.get(hint, "text"))


def _type_error(key: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"'{key}' is {value!r} ({type(value).__name__}), expected {expected}")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain values for YAML and JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return plain(dataclasses.asdict(config))


def flattened(values: Mapping[str, Any], head: str = "") -> dict[str, Any]:
    """A nested mapping as a flat one with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flattened(value, f"{head}{name}.") if isinstance(value, dict) and value else {head + name: value}
    return flat


def to_yaml(config: Any, **first: Any) -> str:
    """A dataclass as YAML with its keys in order, after the keys in `first`."""
    return yaml.safe_dump({**first, **to_dict(config)}, sort_keys=False, allow_unicode=True)


def algorithm_of(config: Any) -> str:
    """The algorithm a config belongs to: the last part of its module's name; of a user's own, its file or full name."""
    module = type(config).__module__
    return module.rpartition(".")[2] if is_shipped(config) else place_of(module)


def is_shipped(config: Any) -> bool:
    """Whether a config's algorithm is of this package, not a user's."""
    return type(config).__module__.startswith(f"{__package__.partition('.')[0]}.")


def write_config(config: Any, path: Path) -> None:
    """Write `config.yaml`, which `besttake train` accepts as a recipe."""
    part = path.with_suffix(".part")
    part.write_text(to_yaml(config, algorithm=algorithm_of(config)), encoding="utf-8")
    part.replace(path)


def fingerprint(config: Any) -> str:
    """A hash of what makes a run the run it is: everything but how it is carried out, validated and logged.

    A user's algorithm counts by the name of its file, wherever that lies, and not by its content.
    """
    values = to_dict(config)
    for key in NOT_IDENTITY:
        section, _, name = key.rpartition(".")
        (values.get(section, {}) if section else values).pop(name, None)
    if not is_shipped(config):
        text = json.dumps([Path(algorithm_of(config)).name, values], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
    values = with_old_names(values, algorithm_of(config))
    if algorithm_of(config) in ("onlinevpo", "offline_dpo") and values.get("skip_bad") is False:
        del values["skip_bad"]  # did not exist at first: older checkpoints resume
    if not values.get("caption_dropout"):
        values.pop("caption_dropout", None)  # did not exist at first, as `rollout.negative_prompt`
    if values.get("vae_dtype") == "auto":
        values.pop("vae_dtype")
    for name in ("negative_prompt", "attention", "fp8"):
        if not values.get("rollout", {}).get(name):
            values.get("rollout", {}).pop(name, None)
    if values.get("reference_warmup") is False or values.get("reference") != "ema":
        values.pop("reference_warmup", None)  # did not exist at first
    text = json.dumps([algorithm_of(config), values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

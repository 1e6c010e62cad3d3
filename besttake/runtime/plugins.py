"""Code of users, found without editing the package: a file, a module, or what an installed package offers.

A file is named by its path, `./my_critic.py`; one thing in it by `./my_critic.py:make`. A module that can be imported
is named by its dotted name, `my_package.critic`, and a thing in it by `my_package.critic:make`. Relative paths are from
the current folder.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

CRITICS, MODELS, ALGORITHMS = "besttake.critics", "besttake.models", "besttake.algorithms"
"""Groups of entry points."""

FILE = re.compile(r"(?P<place>.+\.py)(:(?P<name>.+))?")
MODULE = re.compile(r"(?P<place>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)")

_files: dict[str, tuple[Path, str]] = {}
"""Path and content of each file that was loaded, by the name of its module."""


def split_name(name: str) -> tuple[str, str] | None:
    """File or module, and the name of what is meant in it ("" for none); None if `name` is neither's."""
    found = FILE.fullmatch(name) or MODULE.fullmatch(name)
    return (found["place"], found["name"] or "") if found else None


def load_module(place: str) -> ModuleType:
    """The module of a file, `./my_algorithm.py`, or of a dotted name; a file that has changed is read again.

    Raises:
        ValueError: there is no such file or module, or its own code fails; the message names the line.
    """
    try:
        return _module_of_file(Path(place)) if place.endswith(".py") else _module_of_name(place)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise ValueError(f"{place} cannot be loaded: {_where(error)}{type(error).__name__}: {error}") from error


def load_named(name: str, defaults: Sequence[str]) -> Any:
    """What `FILE.py:NAME` or `package.module:NAME` names; without a NAME, the first of `defaults` that is there.

    Raises:
        ValueError: there is no such file, module or name, or its code fails.
    """
    found = split_name(name)
    if not found:
        raise ValueError(f"{name!r} names no code; expected FILE.py, FILE.py:NAME or package.module:NAME")
    place, wanted = found
    return named_in(load_module(place), [wanted] if wanted else defaults, place)


def named_in(module: ModuleType, names: Sequence[str], place: str) -> Any:
    """The first of some names that is in a module; ValueError if none is."""
    for name in names:
        if hasattr(module, name):
            return getattr(module, name)
    raise ValueError(f"{place} has no {' or '.join(names)}; add it, or name another: {place}:NAME")


def offered(group: str) -> dict[str, EntryPoint]:
    """What installed packages offer as entry points of a group, by name."""
    folders = [folder or os.getcwd() for folder in sys.path]
    changed = [os.stat(folder).st_mtime_ns for folder in folders if os.path.exists(folder)]
    return dict(_offered(group, (*folders, *changed)))


@functools.lru_cache(maxsize=3)
def _offered(group: str, installed: tuple) -> dict[str, EntryPoint]:
    """`offered`, read anew when `installed` changes: the folders of packages, and when each was last changed."""
    return {point.name: point for point in entry_points(group=group)}


def load_offered(point: EntryPoint) -> Any:
    """What an entry point names; ValueError if it cannot be imported."""
    try:
        return point.load()
    except (Exception, SystemExit) as error:  # whatever the package's code raises
        raise ValueError(
            f"{point.name} of the package {point.dist.name if point.dist else point.value} cannot be loaded: "
            f"{_where(error)}{type(error).__name__}: {error}; update the package, or uninstall it"
        ) from error


def place_of(module: str) -> str:
    """What `load_module` finds a loaded module by again: the path of its file, or its dotted name."""
    return str(_files[module][0]) if module in _files else module


def _module_of_file(file: Path) -> ModuleType:
    path = file.expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError("there is no such file")
    text = path.read_text(encoding="utf-8")
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"  # two files may have one name
    if name in sys.modules and _files[name][1] == text:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    _can_import_from(path.parent)  # what lies beside it
    module, before = importlib.util.module_from_spec(spec), sys.modules.get(name)
    sys.modules[name] = module  # as dataclasses and pickle expect
    try:
        exec(compile(text, str(path), "exec"), vars(module))  # not a stale .pyc of a file just edited
    except BaseException:
        sys.modules.pop(name)
        if before:
            sys.modules[name] = before
        raise
    _files[name] = path, text
    return module


def _module_of_name(name: str) -> ModuleType:
    _can_import_from(Path.cwd())  # the command does not look there by itself, as `python -m` does
    return importlib.import_module(name)


def _can_import_from(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last, so that it hides nothing


def _where(error: BaseException) -> str:
    """The line of a user's code that an error comes from, if it is of any."""
    if isinstance(error, SyntaxError):
        return ""  # which says so itself
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not re.search("importlib|<frozen", frame.filename)
    ]
    last = frames[-1]
    return "" if last.filename == __file__ else f"line {last.lineno} of {Path(last.filename).name}: "

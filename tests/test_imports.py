"""A package imports only the packages below it, and each has its place in the order."""

import ast
import builtins
import dis
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

import besttake

PACKAGES = (  # from the ground up; a package may import itself and what stands before it
    "types",
    "runtime",
    "data",
    "models",
    "sampling",
    "rewards",
    "evaluation",
    "training",
    "algorithms",
    "plan",
    "report",
    "world",
    "recipes",
    "contracts",
    "replication",
    "commands",
    "api",
    "__init__",
    "__main__",
)


def test_imports_go_downwards():
    found = violations(Path(besttake.__file__).parent)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "import besttake.world.clips",
        "from besttake.world import clips",
        "from besttake import types, world",
        "from ..world.clips import clip",
        "from .. import world",
        "def later():\n    from besttake.world import clips",
        "import_module('besttake.world.clips')",
        "importlib.import_module(f'besttake.world.{name}')",
    ],
)
def test_upward_import_is_found(tmp_path, line):
    package = write_package(tmp_path, {"types.py": "", "world/clips.py": "", "rewards/flicker.py": line})
    (found,) = violations(package)
    assert "rewards/flicker.py" in found
    assert "imports besttake.world" in found


@pytest.mark.parametrize(
    "line",
    [
        "import torch, numpy.random",
        "from besttake import types, __version__",
        "from besttake.data import video",
        "from . import motion",
        "from .world import Star",
        "from ..types import Video",
        "from worlds import besttake",
        "import_module(f'besttake.rewards.{name}')",
    ],
)
def test_other_imports_pass(tmp_path, line):
    package = write_package(tmp_path, {"types.py": "", "data/video.py": "", "rewards/flicker.py": line})
    assert violations(package) == []


def test_an_init_file_counts_as_its_package(tmp_path):
    package = write_package(tmp_path, {"data/__init__.py": "from ..rewards import flicker", "rewards/flicker.py": ""})
    assert len(violations(package)) == 1


def test_a_package_without_a_place_is_found(tmp_path):
    package = write_package(tmp_path, {"types.py": "", "attic/box.py": ""})
    (found,) = violations(package)
    assert "attic" in found
    assert "PACKAGES in tests/test_imports.py" in found


def test_empty_package_is_no_success(tmp_path):
    with pytest.raises(ValueError, match="no Python file"):
        violations(write_package(tmp_path, {}))


def violations(package: Path) -> list[str]:
    """One sentence for each upward import, and for each top-level module that has no place in the order."""
    files = sorted(package.rglob("*.py"))
    if not files:
        raise ValueError(f"no Python file in {package}: nothing to check")
    found = []
    for file in files:
        path = file.relative_to(package)
        part = path.parts[0].removesuffix(".py")
        if part not in PACKAGES:
            found.append(
                f"{path} has no place in the order: add {part!r} at its height in PACKAGES in tests/test_imports.py"
            )
            continue
        for line, target in imports(file, package):
            if target in PACKAGES and PACKAGES.index(target) > PACKAGES.index(part):
                found.append(f"{path}:{line} imports besttake.{target}, which stands above {part}")
    return found


def imports(file: Path, package: Path) -> Iterator[tuple[int, str]]:
    """(line, package) of everything of the package that a file imports, at its top or inside a function."""
    here = [package.name, *file.relative_to(package).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        for name in imported_names(node, here):
            top, *rest = name.split(".")
            if top == package.name and rest:
                yield node.lineno, rest[0]


def imported_names(node: ast.AST, here: list[str]) -> list[str]:
    """The dotted names that one node of the syntax tree imports; `here` is the package that holds its file."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=module, names=names, level=level):
            base = here[: len(here) - level + 1] if level else []
            start = ".".join([*base, *([module] if module else [])])
            return [f"{start}.{alias.name}" for alias in names]
        case ast.Call(func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"), args=[first, *_]):
            return [literal_start(first)]
    return []


def literal_start(argument: ast.expr) -> str:
    """The text an argument is known to start with: all of a string, or an f-string up to its first brace."""
    match argument:
        case ast.Constant(value=str(text)) | ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]):
            return text
    return ""


def write_package(folder: Path, files: dict[str, str]) -> Path:
    package = folder / "besttake"
    package.mkdir()
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return package


def test_every_name_is_known_where_it_is_used():
    """Neither ruff nor mypy can look for unknown names: axes in jaxtyping's annotations are some to them."""
    folder = Path(besttake.__file__).parent
    for path in folder.rglob("*.py"):
        if "isolated_critics" in path.parts or path.stem == "__main__":  # of another environment; it runs
            continue
        names = path.relative_to(folder.parent).with_suffix("").parts
        module = importlib.import_module(".".join(names).removesuffix(".__init__"))
        code = [compile(path.read_text(encoding="utf-8"), str(path), "exec")]
        for block in code:
            code += [part for part in block.co_consts if isinstance(part, CodeType)]
            used = {step.argval for step in dis.get_instructions(block) if step.opname == "LOAD_GLOBAL"}
            unknown = sorted(name for name in used if not hasattr(module, name) and not hasattr(builtins, name))
            assert not unknown, f"{path} does not define {unknown}"

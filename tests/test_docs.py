"""The pages: relative links and anchors lead somewhere, each page is in the site's menu, and commands parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from besttake.commands.cli import RECIPES, read_recipe, with_flags
from besttake.commands.flags import plain_values
from besttake.commands.replicate import ReplicateConfig
from besttake.plan import PlanConfig

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/besttake/besttake/blob/main/"
RAW = "https://raw.githubusercontent.com/besttake/besttake/main/"
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert not broken_links(page, page.read_text())


def test_broken_links_are_found():
    text = "[a](nowhere.md) [b](onlinevpo.md#no-such-heading) [c](#here) [d](index.md)\n\n## Here\n"
    assert broken_links(ROOT / "docs" / "index.md", text) == ["nowhere.md", "onlinevpo.md#no-such-heading"]


def test_readme_links_work_on_a_package_index():
    relative = [link for link in links((ROOT / "README.md").read_text()) if not link.startswith(("https://", "#"))]
    assert not relative, "a package index has no files beside the README: write the whole URL"


def test_every_page_is_in_the_menu():
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(pages_of(menu)) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_every_metric_is_explained():
    code = "\n".join(path.read_text() for path in (ROOT / "besttake").rglob("*.py") if path.name != "renamed.py")
    logged = set(re.findall(r'"((?:train|reward|pairs|dpo)/\w+)"', code))
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert "dpo/margin" in logged
    assert not [name for name in sorted(logged) if f"`{name}`" not in page]


def commands() -> list[str]:
    """The commands of all pages that take a recipe, without comments."""
    found = set()
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                arguments = shlex.split(line, comments=True)
                start = arguments.index("besttake") if "besttake" in arguments else len(arguments)
                if arguments[start + 1 : start + 2] in (["train"], ["plan"], ["replicate"]) and arguments[start + 2 :]:
                    found.add(shlex.join(arguments[start + 1 :]))
    return sorted(found)


@pytest.mark.parametrize("command", commands())
def test_commands_parse(command):
    name, recipe, *flags = shlex.split(command)
    if "--help" in flags or not (RECIPES / f"{recipe}.yaml").exists():
        return
    if own := {"plan": PlanConfig, "replicate": ReplicateConfig}.get(name):
        _, flags = plain_values(own, flags, f"besttake {name}", others=True)
    with_flags(read_recipe(recipe), flags, "besttake train")


def broken_links(page: Path, text: str) -> list[str]:
    """Links of a page to files of the repository, or to headings, that do not exist."""
    broken = []
    for link in links(text):
        for own in (REPOSITORY, RAW):
            if link.startswith(own):
                link, page = link.removeprefix(own), ROOT / "README.md"
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        there = text if target == page else target.read_text() if target.suffix == ".md" and target.is_file() else ""
        if not target.exists() or (anchor and anchor not in anchors(there)):
            broken.append(link)
    return broken


def links(text: str) -> list[str]:
    """The targets of all links and pictures outside code."""
    text = re.sub(r"`[^`\n]*`", lambda code: code[0].replace("(", ""), FENCE.sub("", text))
    return [a or b for a, b in LINK.findall(text)]


def anchors(text: str) -> set[str]:
    """The headings of a page, spelt as GitHub and mkdocs spell their anchors."""
    headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def pages_of(menu: object) -> list[str]:
    """The files of a menu."""
    if isinstance(menu, str):
        return [menu]
    parts = menu.values() if isinstance(menu, dict) else menu
    return [page for part in parts for page in pages_of(part)]

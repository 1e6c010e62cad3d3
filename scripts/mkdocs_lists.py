"""A hook of mkdocs: a list may follow a line of text without a blank line, on pages and in docstrings, as on GitHub."""

from __future__ import annotations

import re
from typing import Any

from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor

ITEM = re.compile(r"([-*]|\d+\.) \S")


class BlankLineBeforeLists(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        found: list[str] = []
        for line in lines:
            before = found[-1] if found else ""
            if (
                ITEM.match(line)
                and before.strip()
                and not ITEM.match(before)
                and not before.startswith((" ", "|", "#"))
            ):
                found.append("")
            found.append(line)
        return found


class Lists(Extension):
    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 (the name that Markdown calls)
        md.preprocessors.register(BlankLineBeforeLists(md), "blank-line-before-lists", 15)


def on_config(config: Any) -> Any:
    """Called by mkdocs."""
    config.markdown_extensions.append(Lists())
    return config

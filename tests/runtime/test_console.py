"""What is printed is what was said: no bracket or colon of a name is taken for markup."""

import logging

import pytest
from rich.logging import RichHandler
from rich.progress import Progress
from rich.table import Table

from besttake.runtime import console

NAME = "o[v2] [bold]x[/bold] [/] :cat: http://[::1]:8000"


def test_text_tables_and_logs_are_printed_letter_by_letter(capsys):
    table = Table(NAME)
    table.add_row(NAME)
    console.out.print(table)
    console.out.print(NAME, soft_wrap=True)
    console.err.print("error:", NAME, style="bold red", soft_wrap=True)
    log = logging.getLogger("o[v2]")
    log.addHandler(handler := RichHandler(console=console.err, show_path=False))
    log.warning("%s", NAME)
    log.removeHandler(handler)
    said = capsys.readouterr()
    assert said.out.count(NAME) == 3
    assert f"error: {NAME}" in said.err
    assert " ".join(said.err.split()).count(NAME) == 2


def test_what_is_being_done_is_said_letter_by_letter(monkeypatch, capsys):
    bars = []
    monkeypatch.setattr(Progress, "stop", lambda self: bars.append(self))
    assert list(console.progress([1, 2], NAME)) == [1, 2]
    console.err.print(bars[0].get_renderable())
    console.err.print(console.status(NAME).renderable)
    assert capsys.readouterr().err.count(NAME) >= 2


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

"""Judges with a name: one YAML file each, a `JudgeConfig`. A new one is one new file beside these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from besttake.rewards.remote.judge import Judge, judge_config

FOLDER = Path(__file__).parent


def judge_names() -> list[str]:
    """The names of the files in this folder."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def load_judge(name: str, url: str | Path | None = None) -> Judge:
    """The judge of that name.

    Args:
        url: of its server, up to and with `/v1`; by default the one in its file, or vLLM's on this machine.
    """
    config = judge_config(FOLDER / f"{name}.yaml")
    return Judge(replace(config, url=str(url)) if url else config, name)


def judge_loader(name: str) -> Callable[..., Judge]:
    """The `load` of a judge, as the module of any other critic has one."""

    def load(path: str | Path | None = None, device: str = "cpu") -> Judge:
        return load_judge(name, path)

    return load

"""Reading of a run folder for the report: missing files give empty values, broken files errors."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from besttake.data.files import read_text
from besttake.report.measures import shown_name
from besttake.runtime.configuration import read_yaml
from besttake.runtime.renamed import with_new_metrics

COLUMNS = ("before", "after", "real")

PRIVATE = ("out", "cache")
"""Settings that are not shared: paths on this machine."""

Numbers = dict[str, float]
Points = list[tuple[float, float]]
"""(step, value) pairs in the order of the steps."""


@dataclass(frozen=True)
class RunFolder:
    """The contents of a run folder.

    Attributes:
        config: `config.yaml`, with the key `algorithm`.
        rows: rows of `metrics.jsonl`.
        summary: finite numbers by column (`before`, `after`, `real`) and name; None if the run is not evaluated.
        about: how the summary was measured.
        prompts: prompts of the evaluation's clips.
        clips: column -> index -> mp4.
        q_values: q-value of each measure's change; empty if not tested.
    """

    path: Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    summary: dict[str, Numbers] | None
    about: dict[str, Any]
    prompts: list[str]
    clips: dict[str, dict[int, Path]]
    q_values: Numbers = field(default_factory=dict)

    def points(self, name: str) -> Points:
        """The logged values of a metric."""
        return sorted((row["step"], row[name]) for row in self.rows if _is_number(row.get(name)))

    @property
    def names(self) -> list[str]:
        """The names of the logged metrics, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    @property
    def steps_done(self) -> int:
        """Finished training steps; validation rows are written before their step, training rows after it."""
        return max((int(row["step"]) + ("train/loss" in row or "train/skipped" in row) for row in self.rows), default=0)

    @property
    def minutes(self) -> float:
        """Training time up to the last row."""
        return max((row["minutes"] for row in self.rows if _is_number(row.get("minutes"))), default=0.0)

    @property
    def critic(self) -> dict[str, Any] | None:
        """The config section of the training critic, if there is a single one."""
        section = self.config.get("reward")
        return section if isinstance(section, dict) and "name" in section and not section.get("critics") else None

    @property
    def alarms(self) -> list[tuple[int, str]]:
        """Alarms of the reward-hacking guard, with their steps."""
        return [(int(row["step"]), str(alarm)) for row in self.rows for alarm in row.get("alarms", [])]


def read_run(path: Path) -> RunFolder:
    """
    Raises:
        ValueError: the folder holds no run, or one of its files is broken.
    """
    path = Path(path)
    if not (path / "config.yaml").is_file():
        what = "has no config.yaml" if path.is_dir() else "is no folder"
        raise ValueError(f"{path} {what}; expected a run folder of `besttake train ... --out`")
    config = read_yaml(path / "config.yaml")
    if "algorithm" not in config:
        raise ValueError(f"{path / 'config.yaml'} has no key 'algorithm'; expected the config of a training run")
    summary = _read_json(path / "summary.json", dict)
    critic = trained_on(config)
    prompts = _read_json(path / "evaluation" / "prompts.json", list) or []
    return RunFolder(
        path,
        config,
        _read_metrics(path / "metrics.jsonl"),
        None if summary is None else {column: _numbers(summary.get(column), critic) for column in COLUMNS},
        _about(summary),
        [str(prompt) for prompt in prompts],
        {column: _clips(path / "evaluation" / column) for column in COLUMNS},
        _q_values(_read_json(path / "evaluation" / "changes.json", dict), critic),
    )


def shared_settings(run: RunFolder) -> str:
    """The run's settings as YAML, without those that are not shared."""
    settings = {name: value for name, value in run.config.items() if name not in PRIVATE}
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def trained_on(config: dict[str, Any]) -> str | None:
    """The name of the training critic in a `config.yaml`."""
    section = config.get("reward")
    return section.get("name") if isinstance(section, dict) else None


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows with a step; an incomplete last line (of a running or killed run) is ignored."""
    lines = [line for line in read_text(path).split("\n") if line.strip()] if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: not JSON ({error}); mend or remove the line") from error
        if isinstance(row, dict) and _is_number(row.get("step")):
            rows.append(with_new_metrics(row))
    return rows


def _read_json(path: Path, kind: type) -> Any:
    """The content of a JSON file; None if there is no file."""
    if not path.exists():
        return None
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); evaluate the run again") from error
    if not isinstance(content, kind):
        raise ValueError(
            f"{path} contains a {type(content).__name__}, expected a {kind.__name__}; evaluate the run again"
        )
    return content


def _about(summary: dict[str, Any] | None) -> dict[str, Any]:
    about = (summary or {}).get("about")
    return about if isinstance(about, dict) else {}


def _numbers(column: Any, critic: str | None) -> Numbers:
    """The finite numbers of a column; the training critic's scores are renamed to `training_reward/`."""
    values = column if isinstance(column, dict) else {}
    return {shown_name(name, critic): float(value) for name, value in values.items() if _is_number(value)}


def _q_values(changes: Any, critic: str | None) -> Numbers:
    values = changes if isinstance(changes, dict) else {}
    return _numbers({name: test.get("q") for name, test in values.items() if isinstance(test, dict)}, critic)


def _clips(folder: Path) -> dict[int, Path]:
    return {int(file.stem): file for file in sorted(folder.glob("*.mp4")) if file.stem.isdecimal()}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

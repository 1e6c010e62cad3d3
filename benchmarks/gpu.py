"""Profile of a GPU: its rates, the speed of our code and of public code on it, memory, and where the time goes.

Parts run by priority, each in a process of its own with a time limit, and are printed when they are done. All figures
are written to `benchmarks/results/<card>-<date>.json`; partial ones are kept. Weights are random, which does not affect
times. It runs from a source checkout, with torch 2.11 or newer.

    python benchmarks/gpu.py --minutes 8                      # all parts, as far as time allows
    python benchmarks/gpu.py --parts attention decode-cogvideox-2b
    python benchmarks/gpu.py --report                         # tables of the newest results of each card
    python benchmarks/gpu.py --report --write                 # the same, into docs/benchmarks.md
    python benchmarks/gpu.py --tiny                           # on a CPU, in two minutes, to test that it runs
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
os.environ.setdefault("TQDM_DISABLE", "1")  # no progress bars between the figures
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # a source checkout, not installed

import torch  # noqa: E402
import tyro  # noqa: E402
from gpu_parts import PARTS, TINY, measure  # noqa: E402
from gpu_report import PAGE, RESULTS, newest, report, with_section  # noqa: E402
from timing import Rows  # noqa: E402


@dataclass(frozen=True)
class GpuConfig:
    """Measure a GPU, or show what was measured."""

    files: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Results to report; by default the newest of each card."""
    report: bool = False
    """Print the tables of results, and measure nothing."""
    write: bool = False
    """Write the report into docs/benchmarks.md."""
    parts: tuple[str, ...] = ()
    """By default all, by priority."""
    minutes: float = 8.0
    """For all parts; those that are left then are not run."""
    limit: float = 120.0
    """Seconds for one part."""
    tiny: bool = False
    """The smallest models, on a CPU, in this process."""
    out: Path | None = None
    """Where to write the figures; by default benchmarks/results/<card>-<date>.json, or runs/gpu.json if tiny."""
    part: str = ""
    """Run one part in this process, and write only its figures to `out`."""


def main(config: GpuConfig) -> None:
    """Measure or report.

    Raises:
        ValueError: there is no part of this name.
    """
    logging.disable(logging.WARNING)  # such as of words without a token
    if config.report:
        text = report(config.files or newest())
        print(text)
        if config.write:
            PAGE.write_text(with_section(PAGE.read_text(), text))
    elif config.part:
        rows = Rows(config.out)
        measure(config.part, rows, config.tiny)
        print_rows(rows)
    else:
        profile(config)


def profile(config: GpuConfig) -> None:
    """Run parts as far as time allows, and write all figures after each."""
    parts = TINY if config.tiny else PARTS
    if unknown := set(config.parts) - parts.keys():
        raise ValueError(f"there is no part '{min(unknown)}'; there are {', '.join(parts)}")
    if not (config.tiny or torch.cuda.is_available()):
        raise ValueError("there is no GPU here; --tiny tries the parts on a CPU, --report shows what was measured")
    about = environment()
    name = f"{about['card'].replace(' ', '-')}-{about['date']}.json"
    out = config.out or (ROOT / "runs" / "gpu.json" if config.tiny else RESULTS / name)
    out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {**(json.loads(out.read_text()) if out.exists() else {}), **about}
    until = time.monotonic() + 60 * config.minutes
    for name in config.parts or parts:
        began = time.monotonic()
        if (left := min(config.limit, until - began)) < 10:
            print(f"## {name}: no time left")
            continue
        found[name] = Rows()
        if config.tiny:
            measure(name, found[name], tiny=True)
        else:
            found[name] = run([sys.executable, __file__, "--part", name], left)
        print(f"## {name}, {time.monotonic() - began:.0f} s", flush=True)
        print_rows(found[name])
        out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written to {out}")


def run(command: list[str], limit: float) -> dict[str, Any]:
    """What a command writes to its `--out`; in a process of its own, so that one that hangs costs no other."""
    variables = {**os.environ, "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder, "figures.json"), Path(folder, "log.txt")
        with log.open("w") as file:
            process = subprocess.Popen(
                [*command, "--out", str(out)], stdout=file, stderr=file, env=variables, start_new_session=True
            )
        why = {}
        try:
            if code := process.wait(limit):
                last = (log.read_text().strip().splitlines() or [""])[-1]
                why = {"failed": f"exit status {code}: {last[:200]}"}
        except subprocess.TimeoutExpired:
            why = {"stopped": f"after {limit:.0f} s"}
        finally:
            end(process)
        return {**(json.loads(out.read_text()) if out.exists() else {}), **why}


def end(process: subprocess.Popen) -> None:
    """End a process and those that it started, such as compilers."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def print_rows(rows: dict[str, Any]) -> None:
    """One figure a line; the names of kernels are in the file."""
    for name, row in rows.items():
        shown = {key: value for key, value in row.items() if key != "longest"} if isinstance(row, dict) else row
        print(f"   {name}: {json.dumps(shown)}", flush=True)


def environment() -> dict[str, Any]:
    """What names the machine and the code."""
    gpu = torch.cuda.is_available()
    return {
        "card": torch.cuda.get_device_name() if gpu else "cpu",
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if gpu else None,
        **{name: importlib.metadata.version(name) for name in ("diffusers", "transformers", "peft")},
        "commit": output("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
    }


def output(*command: str) -> str | None:
    """The first line that a command prints; None if it fails."""
    try:
        done = subprocess.run(command, text=True, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return (done.stdout.splitlines() or [None])[0]


if __name__ == "__main__":
    main(tyro.cli(GpuConfig))

"""The environment that a replication ran in: machine, card, driver, and the version of everything installed."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from besttake import __version__
from besttake.runtime.devices import describe_device

ROOT = Path(__file__).parents[2]


def environment(device: str) -> dict[str, Any]:
    """Facts by name; those that this machine does not have are left out.

    Args:
        device: as `find_device` gives it.
    """
    cuda = device.startswith("cuda")
    memory = torch.cuda.get_device_properties(device).total_memory if cuda else 0
    facts = {
        "device": describe_device(device),
        "device memory": f"{memory / 2**30:.1f} GiB" if cuda else "",
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if cuda else "",
        "cuda": torch.version.cuda or "",
        "cudnn": str(torch.backends.cudnn.version() or "") if cuda else "",
        "cpu cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "besttake": __version__,
        "commit": commit(),
        "packages": packages(),
    }
    return {name: value for name, value in facts.items() if value}


def packages() -> list[str]:
    """Everything installed, as `pip freeze` writes it: `name==version`, or `name @ URL@commit` of a repository."""
    return sorted({_pinned(dist) for dist in distributions() if dist.metadata["Name"]}, key=str.lower)


def commit(root: Path = ROOT) -> str:
    """The git commit of a checkout, and whether its files differ from it; "" for an installed package."""
    if not (root / ".git").exists():
        return ""
    changed = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return _output("git", "-C", str(root), "rev-parse", "HEAD") + (" with changes" if changed else "")


def text_of(facts: Mapping[str, Any]) -> str:
    """The facts, one a line, then the packages as a requirements file."""
    about = [f"# {name}: {value}" for name, value in facts.items() if name != "packages"]
    return "\n".join([*about, "", *facts["packages"]]) + "\n"


def _pinned(dist: Any) -> str:
    source = json.loads(dist.read_text("direct_url.json") or "{}")
    if vcs := source.get("vcs_info"):
        return f"{dist.metadata['Name']} @ {vcs['vcs']}+{source['url']}@{vcs['commit_id']}"
    return f"{dist.metadata['Name']}=={dist.version}"


def _output(*command: str) -> str:
    """The first line that a command prints; "" if it is not installed or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return ""
    return next(iter(done.stdout.splitlines()), "").strip()

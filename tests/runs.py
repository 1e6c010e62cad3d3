"""What a run has left in its folder."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor


def rows(folder: Path) -> list[dict[str, Any]]:
    """`metrics.jsonl` without the wall clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "minutes"} for line in lines]


def adapter(folder: Path) -> dict[str, Tensor]:
    """The weights of the LoRA that was saved last."""
    return load_file(folder / "adapter" / "pytorch_lora_weights.safetensors")

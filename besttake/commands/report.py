"""Measuring a finished run: before and after, on prompts that it was not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from besttake.evaluation.held_out import evaluation_set_of_run
from besttake.report.folder import read_run
from besttake.runtime.console import status
from besttake.runtime.devices import describe_device, find_device
from besttake.runtime.distributed import EVALUATION_PARALLEL, broadcast_from_main, init_processes
from besttake.world.evaluate import evaluate


def measure_run(folder: Path, config: Any) -> dict[str, Any]:
    """Measure a run by its config, on as many processes as there are, and write its `summary.json`.

    Returns:
        The summary: "before", "after" and, where there are real clips, "real", each name -> number; and "about".

    Raises:
        ValueError: the run is not finished, or something cannot be measured.
    """
    device = find_device(config.device)
    init_processes(EVALUATION_PARALLEL, device)
    run = broadcast_from_main(lambda: read_run(folder))
    about = {"minutes": run.minutes, "hardware": describe_device(device)}
    evaluation, data = config.evaluation_config, str(run.config.get("data", getattr(config, "data", "")))
    chosen = broadcast_from_main(lambda: evaluation_set_of_run(folder, evaluation.prompts, data, evaluation.count))
    with status(f"measuring before and after on prompts of {chosen.source}"):
        return evaluate(folder, evaluation, chosen, about)

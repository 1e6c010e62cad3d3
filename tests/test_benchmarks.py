"""The scripts beside the package: they import what they use, and `gpu.py` measures, keeps and reports what it can."""

import importlib
import json
import runpy
import sys
import time
from pathlib import Path

import pytest
import torch

from besttake.models import load_model
from tests.tiny import tiny_models

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted([*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "scripts").glob("*.py")])

QUICK = ("rates", "attention", "speed-tiny-cogvideox", "decode-tiny-wan", "agreement-tiny-cogvideox", "memory_figure")
"""The others take more seconds; `python benchmarks/gpu.py --tiny` runs all."""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_can_be_imported(script, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(script.parent), *sys.path])
    runpy.run_path(str(script), run_name="imported")


@pytest.fixture
def script(monkeypatch):
    """Imports one of the benchmarks by name."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    return importlib.import_module


def test_tiny_parts_are_measured_and_reported(script, tmp_path, capsys):
    gpu, out = script("gpu"), tmp_path / "results.json"
    gpu.profile(gpu.GpuConfig(tiny=True, parts=QUICK, out=out))
    found = json.loads(out.read_text())
    assert not {name for name in QUICK if not found[name] or {"failed", "stopped"} & found[name].keys()}
    assert all(found[name] for name in ("card", "date", "torch", "diffusers", "transformers", "peft"))
    text = script("gpu_report").report([out])
    for line in (
        "| matrix products, TFLOP/s |",
        "| flash |",
        "| **tiny-cogvideox**, 16 x 32 x 32 |",
        "| DPO step, both clips at once |",
        "| channels last |",
        "| bfloat16, merged | 1.00 |",
        "| dpo, lora, 16 x 32 x 32 |",
    ):
        assert line in text
    assert "Not measured" not in text
    assert "## rates, " in capsys.readouterr().out


def test_speed_is_relative_to_theirs_and_to_the_card(script):
    ours = {"seconds": 2.0, "tflop": 8.0, "gib": 3.0}
    theirs = {"seconds": 3.0, "tflop": 9.0, "gib": 5.0}
    rows = {"setting": {"clip": "c"}, "DPO step": ours, "DPO step, public": theirs, "decoding": {"failed": "no"}}
    text = script("gpu_report").speed({"rates": {"bfloat16": 16.0}, "speed-m": rows})
    assert "| DPO step | 2.00 | 25% | 3.00 | 1.50 x |" in text
    assert "| DPO step, public | 3.00 | 19% | 5.00 |  |" in text
    assert "| decoding | no | - | - |  |" in text


def test_what_a_failing_part_measured_is_kept(script, monkeypatch, tmp_path):
    parts, timing = script("gpu_parts"), script("timing")

    def breaks(rows, tiny):
        rows["first"] = 1
        raise RuntimeError("too\nlate")

    monkeypatch.setitem(parts.TINY, "breaks", breaks)
    parts.measure("breaks", timing.Rows(tmp_path / "rows.json"), tiny=True)
    found = {"first": 1, "failed": "RuntimeError: too"}
    assert json.loads((tmp_path / "rows.json").read_text()) == found
    assert script("gpu_report").not_measured({"breaks": found}).endswith("breaks (RuntimeError: too).")
    with pytest.raises(ValueError, match="no part 'other'; there are rates, "):
        parts.measure("other", timing.Rows(), tiny=True)


@pytest.mark.parametrize(
    ("then", "why"),
    [
        ("time.sleep(60)", {"stopped": "after 2 s"}),
        ("sys.exit('lost')", {"failed": "exit status 1: lost"}),
        ("None", {}),
    ],
)
def test_what_a_stopped_process_measured_is_kept(script, then, why):
    write = "import sys, time; open(sys.argv[-1], 'w').write('{\"first\": 1}'); "
    began = time.monotonic()
    assert script("gpu").run([sys.executable, "-c", write + then], limit=2) == {"first": 1, **why}
    assert time.monotonic() - began < 30


def test_the_newest_results_of_each_card_are_reported(script, tmp_path):
    for name, card, date in (("b", "B", "2026-01-02"), ("a-old", "A", "2026-01-01"), ("a-new", "A", "2026-02-01")):
        (tmp_path / f"{name}.json").write_text(json.dumps({"card": card, "date": date}))
    assert [file.stem for file in script("gpu_report").newest(tmp_path)] == ["a-new", "b"]


def test_the_page_has_the_report_of_the_shipped_results(script):
    gpu_report = script("gpu_report")
    page, text = gpu_report.PAGE.read_text(), gpu_report.report(gpu_report.newest())
    assert "NVIDIA H200" in text
    assert page == gpu_report.with_section(page, text), "run: python benchmarks/gpu.py --report --write"


@pytest.mark.parametrize("name", ["cogvideox-2b", "wan-2.1", "opensora-1.2"])
def test_random_text_has_the_shape_of_real_text(script, tmp_path, name):
    random_models, tiny = script("random_models"), tiny_models()[name]
    (tiny.write or tiny.build().save_pretrained)(tmp_path)
    model = load_model(str(tmp_path))
    prompts = ["0 1", "a longer one"]
    real = model.encode_prompts(prompts)
    random = random_models.without_text_encoder(load_model(str(tmp_path))).encode_prompts(prompts)
    assert {name: value.shape for name, value in random.items()} == {name: v.shape for name, v in real.items()}
    assert not torch.equal(random["text"], real["text"])
    if "mask" in real:
        assert torch.equal(random["mask"], real["mask"])


def test_a_device_is_found_in_the_table_of_cards(script):
    card_of = script("gpu_parts.others").card_of
    names = {"NVIDIA H200": "H200", "NVIDIA H100 PCIe": "H100-PCIe", "NVIDIA A100-SXM4-80GB": "A100-80GB"}
    assert {name: card_of(name) for name in names} == names
    with pytest.raises(ValueError, match=r"cards.py has no 'NVIDIA T4'"):
        card_of("NVIDIA T4")

"""The notebooks, cell by cell at tiny size; in the repository they have no outputs."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
TINY = {"STEPS": 1, "CANDIDATES": 2, "CLIPS": 2, "PROMPTS_PER_STEP": 2, "REFRESH_EVERY": 1}


def cells_of(name):
    return json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def run(name):
    """What the cells have defined."""
    scope = {"__name__": "__main__"}
    for number, cell in enumerate(cells_of(name)):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), scope)
        if "parameters" in cell["metadata"].get("tags", ()):
            scope |= {key: value for key, value in TINY.items() if key in scope}
    return scope


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_there_are_three_without_outputs():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == {"first_run", "own_critic", "own_loop"}
    for path in NOTEBOOKS.glob("*.ipynb"):
        for cell in cells_of(path.stem):
            assert not cell.get("outputs")
            assert cell.get("execution_count") is None


def test_first_run():
    scope = run("first_run")
    assert scope["run"].steps_done == 1
    assert Path("before.png").stat().st_size
    assert Path("after.png").stat().st_size


def test_own_critic(capsys):
    scope = run("own_critic")
    assert "failed" not in capsys.readouterr().out
    assert scope["run"].config["reward"]["name"] == scope["CRITIC"]


def test_own_loop():
    scope = run("own_loop")
    assert scope["after"].values.shape == scope["before"].values.shape == (2, len(scope["held_out"].dimensions))
    assert any(weight.any() for name, weight in scope["policy"].trainable.items() if "lora_B" in name)
    assert list(Path("own-loop-adapter").glob("*.safetensors"))

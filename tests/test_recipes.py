"""Every recipe of a real model, started: with a tiny random checkpoint of its model in place of the real one."""

import json
import re

import pytest
import torch
from PIL import Image

from besttake.commands.cli import RECIPES, main, read_recipe
from besttake.data.prompts import read_prompts
from besttake.data.video import write_video
from tests.tiny import tiny_models
from tests.tiny_critics import videoscore

MODELS = {
    "onlinevpo-opensora": "opensora-1.2",
    "onlinevpo-cogvideox-2b": "cogvideox-2b",
    "realdpo-cogvideox-5b-i2v": "cogvideox-5b-i2v",
    "onlinevpo-wan-1.3b": "wan-2.1",
    "onlinevpo-wan-5b": "wan-2.2-5b",
    "realdpo-wan-1.3b": "wan-2.1",
}
"""The tiny model that stands in for each recipe's."""

CAPTION = "a woman walks"


def test_every_recipe_of_a_real_model_is_started_here():
    names = {path.stem for path in RECIPES.glob("*.yaml") if "/" in read_recipe(str(path)).model}
    assert names == set(MODELS)


@pytest.fixture
def material(tmp_path):
    """Real clips, and prompts with first frames."""
    for i in range(2):
        write_video(tmp_path / "clips" / f"{i}.mp4", torch.rand(40, 3, 32, 64) * 2 - 1, 24)
        (tmp_path / "clips" / f"{i}.txt").write_text(CAPTION)
    Image.new("RGB", (64, 32), "red").save(tmp_path / "frame.png")
    rows = [{"prompt": f"{CAPTION} {colour}", "first_frame": "frame.png"} for colour in ("red", "blue")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def checkpoint(recipe, tmp_path):
    torch.manual_seed(0)
    tiny, folder = tiny_models()[MODELS[recipe]], tmp_path / "model"
    if tiny.write:
        tiny.write(folder)
    else:
        tiny.build().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def critic(tmp_path_factory):
    """A tiny VideoScore, on which all OnlineVPO recipes train."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("critic") / "videoscore"
    videoscore.write(folder)
    return folder


@pytest.mark.parametrize("recipe", MODELS)
def test_a_recipe_trains_measures_and_reports(recipe, checkpoint, critic, material, tmp_path, capsys, monkeypatch):
    config, tiny = read_recipe(recipe), tiny_models()[MODELS[recipe]]
    size = dict(zip(("frames", "height", "width"), map(str, tiny.size), strict=True))
    flags = {"model": str(checkpoint), "out": str(tmp_path / "run"), "steps": "1", "dtype": "float32"}
    flags["cache"] = str(tmp_path / "cache")
    rollouts = ("rollout", "validation.rollout", "evaluation.rollout")
    flags |= {f"{rollout}.{key}": value for rollout in rollouts for key, value in (size | {"steps": "2"}).items()}
    flags |= {"validation.count": "2", "evaluation.count": "2", "evaluation.shown": "1"}
    if tiny.first_frame:
        flags["evaluation.prompts"] = str(material / "prompts.jsonl")
    if config.data == "real-clips":
        flags["data"] = str(material / "clips")
    else:
        assert len(read_prompts(config.data)) >= config.prompts_per_step
        flags |= {"prompts-per-step": "2", "candidates": "2"}
    arguments = [argument for key, value in flags.items() for argument in (f"--{key}", value)]
    if hasattr(config, "reward"):
        assert config.reward.chosen == {"videoscore": {"temporal consistency": 1.0}}, "as in the paper"
        arguments += ["--reward.paths", "videoscore", str(critic)]
    status = main(["train", recipe, *arguments])
    assert status == 0, capsys.readouterr().err
    assert (tmp_path / "run" / "report.html").exists()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["before"].keys() == summary["after"].keys()
    if "Wan" not in config.model:
        return  # a tiny stand-in that its own pipeline does not sample without more settings than the card's
    monkeypatch.chdir(tmp_path)
    made = []
    monkeypatch.setattr("diffusers.utils.export_to_video", lambda video, *_, **__: made.append(video))
    exec(re.search(r"```python\n(.*?)```", (tmp_path / "run" / "adapter" / "README.md").read_text(), re.DOTALL)[1], {})
    assert [len(video) for video in made] == [tiny.size[0]], "by the model card"


@pytest.mark.parametrize("recipe", MODELS)
def test_a_recipe_says_what_it_takes(recipe):
    header = (RECIPES / f"{recipe}.yaml").read_text()
    for part in ("# Paper:", "# Not as in the paper:", "# Hardware:", "# Cost:"):
        assert part in header


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_everyday_prompts_are_all_different(split):
    prompts = read_prompts(f"everyday-{split}")
    others = [read_prompts(f"everyday-{other}") for other in {"train", "validation", "test"} - {split}]
    assert len(set(prompts)) == len(prompts)
    assert not {prompt for other in others for prompt in other} & set(prompts)

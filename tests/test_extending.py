"""The examples of docs/extending.md, run as they stand there: with the commands, from Python, and with the checks."""

import json
import re
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from diffusers import SkyReelsV2Pipeline, SkyReelsV2Transformer3DModel

from besttake.algorithms import algorithms
from besttake.commands.cli import main, read_recipe
from besttake.data.video import write_video
from besttake.models import load_model
from besttake.rewards import critic_names, load_reward
from besttake.rewards.cache import identity
from besttake.rewards.remote.server import CriticServer, Limits, find_factory
from besttake.rewards.remote.serving import Served
from besttake.runtime import plugins
from besttake.runtime.configuration import fingerprint, read_yaml
from tests.processes import launch, results
from tests.tiny import wan
from tests.tiny.parts import without_zeros

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
EXAMPLES = dict(re.findall(r'```python title="(.+?)"\n(.*?)```', PAGE.read_text(encoding="utf-8"), re.DOTALL))
SIZE = ("--frames", "5", "--height", "16", "--width", "32")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the examples in it, from which commands are run."""
    for name, code in EXAMPLES.items():
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture
def quick(model_folder, material):
    """Flags of a run that takes a moment."""
    flags = {"model": model_folder("tiny-cogvideox"), "data": material / "prompts.txt", "rollout.steps": 2}
    flags |= {"prompts-per-step": 2, "candidates": 2, "policy.rank": 2}
    return [argument for name, value in flags.items() for argument in (f"--{name}", str(value))]


@pytest.fixture
def short(quick, material):
    """Flags of such a run that is also measured in a moment."""
    flags = {"steps": 2, "out": "run", "validation.every": 0, "evaluation.count": 2, "evaluation.shown": 1}
    flags |= {"evaluation.prompts": material / "prompts.txt", "evaluation.rewards": "dynamic-degree"}
    return [*quick, *(argument for name, value in flags.items() for argument in (f"--{name}", str(value)))]


@pytest.fixture
def skyreels(here):
    """A tiny random checkpoint of the family in the page."""
    denoiser = SkyReelsV2Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    SkyReelsV2Pipeline(**wan.parts(), transformer=without_zeros(denoiser)).save_pretrained("checkpoint")
    return "./my_family.py:checkpoint"


def test_the_page_has_one_example_of_each():
    assert set(EXAMPLES) == {"my_critic.py", "my_algorithm.py", "my_family.py"}


def test_a_critic_passes_its_checks(here, capsys):
    assert main(["check", "critic", "./my_critic.py"]) == 0, capsys.readouterr()
    assert capsys.readouterr().out.count("ok  ") == 8


def test_a_critic_scores_by_its_file_and_by_its_function(here, capsys, monkeypatch):
    write_video(here / "clips" / "a red ball.mp4", torch.rand(4, 3, 16, 16) * 2 - 1, 8)
    for name in ("./my_critic.py", "my_critic.py:load", "my_critic:load"):
        assert main(["score", "clips", "--reward", name]) == 0, capsys.readouterr().err
        assert "colourfulness" in capsys.readouterr().out
    video = torch.rand(1, 2, 3, 8, 8)
    weak, strong = (load_reward("./my_critic.py", strength=s)(video, ["x"]).values for s in (0.0, 2.0))
    assert weak < strong
    assert identity(load_reward("./my_critic.py")) != identity(load_reward("./my_critic.py", strength=2.0))


def test_a_critic_is_served(here):
    served = Served(load_reward("./my_critic.py"))
    server = CriticServer(lambda: served, port=0, limits=Limits())
    videos = torch.rand(2, 2, 3, 8, 8).mul(255).round() / 127.5 - 1
    try:
        there, ours = load_reward(server.start().url), load_reward("./my_critic.py")
        assert there.name == "colourfulness"
        torch.testing.assert_close(there(videos, ["a", "b"], 8.0).values, ours(videos, ["a", "b"], 8.0).values)
    finally:
        server.stop()


def test_the_one_file_server_reads_a_bare_file_alike(here):
    (here / "made.py").write_text("def make(): return 1")
    assert find_factory("./made.py")() == 1
    assert find_factory("./my_critic.py").__name__ == "load"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere.py", r"nowhere\.py cannot be loaded: .*no such file"),
        ("./my_critic.py:best", r"my_critic\.py has no best; add it"),
        ("./my_family.py", r"my_family\.py has no load or make"),
        ("no_such_module.critic:make", r"no_such_module\.critic cannot be loaded: ModuleNotFoundError"),
        ("./broken.py", r"broken\.py cannot be loaded: line 2 of broken\.py: ZeroDivisionError"),
        ("./exits.py", r"exits\.py cannot be loaded: .*SystemExit: 3"),
        ("./bare.py:number", r"number is 3; expected a function"),
        ("./bare.py", r"critic \./bare\.py is a object without name, dimensions, differentiable, card, __call__"),
    ],
)
def test_a_critic_that_is_none_is_one_plain_line(here, capsys, name, message):
    (here / "broken.py").write_text("\n1 / 0\n")
    (here / "bare.py").write_text("load = lambda: object()\nnumber = 3\n")
    (here / "exits.py").write_text("raise SystemExit(3)\n")
    (here / "clips").mkdir()
    write_video(here / "clips" / "a red ball.mp4", torch.zeros(2, 3, 16, 16), 8)
    assert main(["score", "clips", "--reward", name]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert "Traceback" not in error


def test_a_path_or_a_setting_that_a_critic_does_not_take_is_refused(here):
    with pytest.raises(ValueError, match=r"my_critic\.py has no setting power; its settings: strength"):
        load_reward("./my_critic.py", power=2)
    with pytest.raises(ValueError, match=r"my_critic\.py takes no path"):
        load_reward("./my_critic.py", path="weights")


def test_an_algorithm_trains_is_measured_reported_and_resumed(here, short, capsys):
    assert main(["train", "./my_algorithm.py", *short, "--tau", "2", "--reward.name", "./my_critic.py"]) == 0, (
        capsys.readouterr().err
    )
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["ipo/margin"] for row in rows[:1]] == [0.0]
    assert rows[0]["train/loss"] == pytest.approx(1 / 16)  # (1 / (2 tau))^2, until the first update
    assert read_yaml(Path("run/config.yaml"))["algorithm"] == str(here / "my_algorithm.py")
    assert "my_algorithm" in Path("run/report.html").read_text()
    assert main(["report", "run"]) == 0, capsys.readouterr().err
    (here / "elsewhere").mkdir()
    Path("my_algorithm.py").rename("elsewhere/my_algorithm.py")
    assert main(["train", "elsewhere/my_algorithm.py", *short, "--tau", "2", "--reward.name", "./my_critic.py"]) == 0
    capsys.readouterr()
    assert main(["train", "elsewhere/my_algorithm.py", *short, "--tau", "3"]) == 2
    assert "give another --out" in capsys.readouterr().err


def test_a_recipe_finds_the_algorithm_beside_it_and_its_config_is_one(here, tmp_path, monkeypatch):
    (here / "mine.yaml").write_text("algorithm: ./my_algorithm.py\ntau: 2\nsteps: 7\n")
    config = read_recipe("mine.yaml")
    assert (config.tau, config.steps, type(config).__doc__) == (2.0, 7, "Online IPO.")
    (here / "below").mkdir()
    monkeypatch.chdir(here / "below")
    assert read_recipe("../mine.yaml") == config
    assert fingerprint(replace(config, tau=1.0)) != fingerprint(config) == fingerprint(replace(config, steps=8))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("def step", "def stride", "has no function step"),
        ("class Config(TrainConfig)", "class Config", "has no Config"),
        ("@dataclass(frozen=True)\n", "", "is not a frozen dataclass"),
        ("tau: float = 5.0", "tau: float", "tau"),
        ('data: str = "world-train"', 'prompts: str = "world-train"', "has no data in Config"),
    ],
)
def test_an_algorithm_that_lacks_something_says_what(here, old, new, message):
    (here / "my_algorithm.py").write_text(EXAMPLES["my_algorithm.py"].replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_recipe("./my_algorithm.py")


def test_an_algorithm_without_a_batch_to_plan_says_so(here, quick, capsys):
    (here / "my_algorithm.py").write_text(EXAMPLES["my_algorithm.py"].partition("def plan_batch")[0])
    assert main(["plan", "./my_algorithm.py", *quick]) == 2
    assert "has no function plan_batch" in capsys.readouterr().err


def test_an_edited_file_is_read_again_and_an_unchanged_one_is_not(here):
    one, two = read_recipe("./my_algorithm.py"), read_recipe("my_algorithm.py")
    assert type(one) is type(two)
    (here / "my_algorithm.py").write_text(EXAMPLES["my_algorithm.py"].replace("tau: float = 5.0", "tau: float = 6.0"))
    assert read_recipe("./my_algorithm.py").tau == 6.0


def test_an_algorithm_passes_its_checks(here, quick, capsys):
    assert main(["check", "algorithm", "./my_algorithm.py", *quick]) == 0, capsys.readouterr()
    assert capsys.readouterr().out.count("ok  ") == 5


def test_an_algorithm_whose_random_numbers_follow_nothing_is_found_out(here, quick, capsys):
    code = EXAMPLES["my_algorithm.py"].replace("keyed_generator(*key)", "torch.Generator().manual_seed(next(NUMBERS))")
    (here / "my_algorithm.py").write_text("import itertools\nimport torch\nNUMBERS = itertools.count()\n" + code)
    assert main(["check", "algorithm", "./my_algorithm.py", *quick]) == 1
    captured = capsys.readouterr()
    assert "key all random numbers on seed and step" in captured.out
    assert "of the checks failed" in captured.err


def train_from(folder, arguments):
    import os

    from besttake.commands import cli

    os.chdir(folder)
    cli._report = lambda *_: None
    return cli.main(["train", "./my_algorithm.py", *arguments])


def test_an_algorithm_is_trained_by_two_processes_as_by_one(here, short):
    short[short.index("run")] = "by-1"
    flags = [*short, "--reward.name", "./my_critic.py"]
    assert results(launch(1, train_from, here, flags)) == [0]
    assert results(launch(2, train_from, here, [argument.replace("by-1", "by-2") for argument in flags])) == [0, 0]
    losses = [
        [json.loads(line).get("train/loss") for line in Path(f"by-{n}/metrics.jsonl").read_text().splitlines()]
        for n in (1, 2)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_family_passes_its_checks_and_gives_the_pipelines_latents(skyreels, capsys):
    assert main(["check", "model", skyreels, *SIZE]) == 0, capsys.readouterr()
    assert capsys.readouterr().out.count("ok  ") == 6


def test_a_family_generates_and_names_its_checkpoint(skyreels, capsys, material):
    flags = ["--prompts", str(material / "prompts.txt"), "--count", "1", "--n", "1", "--out", "videos"]
    flags += ["--rollout.steps", "1", *(f"--rollout.{x[2:]}" if x.startswith("--") else x for x in SIZE)]
    assert main(["generate", "--model", skyreels, *flags]) == 0, capsys.readouterr().err
    assert Path("videos/00000-0.mp4").exists()
    with pytest.raises(ValueError, match=r"is a model family; name its checkpoint too"):
        load_model("./my_family.py")
    with pytest.raises(ValueError, match=r"my_critic\.py has no model family"):
        load_model("./my_critic.py:checkpoint")
    with pytest.raises(ValueError, match=r"besttake supports .*docs/extending\.md"):
        load_model("checkpoint")
    with pytest.raises(ValueError, match=r"my_family\.py supports SkyReelsV2Pipeline"):
        load_model("./my_family.py:tiny-wan")


def test_what_packages_offer_is_known_by_name(here, skyreels, monkeypatch):
    monkeypatch.syspath_prepend(str(here))
    points = [
        EntryPoint("colour-fulness", "my_critic:load", plugins.CRITICS),
        EntryPoint("online-ipo", "my_algorithm", plugins.ALGORITHMS),
        EntryPoint("skyreels", "my_family:SkyReels", plugins.MODELS),
        EntryPoint("gone", "no_such_package", "other"),
    ]
    monkeypatch.setattr(plugins, "_offered", lambda group, _: {p.name: p for p in points if p.group == group})
    assert load_reward("colour-fulness").name == "colourfulness"
    assert "colour_fulness" in critic_names()
    assert "online-ipo" in algorithms()
    config = read_recipe("online-ipo")
    assert type(config).__module__ == "my_algorithm"
    Path("config.yaml").write_text("algorithm: my_algorithm\ntau: 5.0\n")
    assert read_recipe("config.yaml") == config
    assert type(load_model("checkpoint")).__name__ == "SkyReels"
    points.append(EntryPoint("broken", "no_such_package", plugins.ALGORITHMS))
    points.append(EntryPoint("sft", "no_such_package", plugins.ALGORITHMS))
    assert type(read_recipe("sft-tiny")).__module__ == "besttake.algorithms.sft"
    with pytest.raises(ValueError, match=r"broken of the package no_such_package cannot be loaded"):
        read_recipe("broken")
    points.append(EntryPoint("broken", "no_such_package", plugins.CRITICS))
    with pytest.raises(ValueError, match=r"broken of the package no_such_package cannot be loaded"):
        load_reward("broken")

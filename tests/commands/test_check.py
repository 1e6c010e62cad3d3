"""`besttake check`: what is wrong with a file, and how to mend it. What is right: tests/test_extending.py."""

import re

import pytest

from besttake.commands.cli import main

CRITIC = """
import torch
from besttake.rewards.shipped import check_videos
from besttake.types import CriticCard, Score

class Mine:
    name = "mine"
    dimensions = ("light",)
    differentiable = True
    card = CriticCard("mine", "mine", {"light": (0.0, 1.0)})
    def __call__(self, videos, prompts, fps=8.0):
        check_videos(self.name, videos, prompts)
        light = videos.float().mean((1, 2, 3, 4))
        return Score(light[:, None], self.dimensions)

make = Mine
"""


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("", "", ""),
        ("light = videos.float()", "light = 1e9 * videos.half()", r"returned .*(float16|inf)"),
        ("light[:, None]", "light", r"returned scores of shape \(2,\), expected \(2, 1\)"),
        ("light[:, None]", "(light - light.mean())[:, None]", "do not normalise over the batch"),
        (
            "light[:, None]",
            "(light + torch.rand(1))[:, None]",
            "use a seeded generator",
        ),
        ("light[:, None]", "(0 * light)[:, None]", "two videos of noise both score"),
        ("light[:, None]", "light.detach()[:, None]", "differentiable is True, and the scores lack a gradient"),
        ("        check_videos(self.name, videos, prompts)\n", "", "call besttake.rewards.shipped.check_videos first"),
        ('{"light": (0.0, 1.0)}', '{"dark": (0.0, 1.0)}', r"card\.ranges has dark; expected .*light"),
        ("(0.0, 1.0)", "(1.0, 0.0)", r"expected \(low, high\) with low < high"),
        ("(0.0, 1.0)}", "(0.0, 1.0)}, frames=4", "there is no method `chosen`"),
    ],
)
def test_a_critic_s_fault_is_named_with_its_remedy(tmp_path, capsys, right, wrong, message):
    (tmp_path / "mine.py").write_text(CRITIC.replace(right, wrong) if right else CRITIC)
    status = main(["check", "critic", str(tmp_path / "mine.py"), "--frames", "4", "--height", "8", "--width", "8"])
    captured = capsys.readouterr()
    assert status == bool(message), captured
    assert re.search(message, captured.out), captured.out
    assert ("of the checks failed" in captured.err) == bool(message)
    assert "Traceback" not in captured.out + captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["novel", "x.py"], "there is no check of 'novel'"),
        (["critic", "./nowhere.py"], "cannot be loaded"),
        (["critic", "no-such-critic"], "unknown critic"),
        (["model", "./nowhere.py:checkpoint"], "cannot be loaded"),
        (["algorithm", "./nowhere.py"], "cannot be loaded"),
        (["critic", "world", "--frames", "0"], "frames is 0"),
    ],
)
def test_what_cannot_be_checked_is_one_plain_line(capsys, arguments, message):
    assert main(["check", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["algorithm"]])
def test_without_a_file_it_says_how(capsys, arguments):
    assert main(["check", *arguments]) == 0
    assert "usage: besttake check" in capsys.readouterr().out

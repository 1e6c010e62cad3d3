import json
from xml.etree import ElementTree

import torch

from besttake.data.video import write_video
from besttake.evaluation.agreement import CHANCE, AgreementConfig, CriticAgreement
from besttake.evaluation.ranking import Interval
from besttake.report.agreement import dots, report_agreement

SVG = "{http://www.w3.org/2000/svg}"


def row(critic, recall, mrr):
    return CriticAgreement(critic, {"recall@1": recall, "MRR": mrr})


ROWS = [
    row("world & co", Interval(0.9, 0.8, 1.0), Interval(0.95, 0.9, 1.0)),
    row("<image>", Interval(0.2, 0.1, 0.3), Interval(float("nan"), 0.0, 0.0)),
    row(CHANCE, Interval(0.25, 0.25, 0.25), Interval(0.5, 0.5, 0.5)),
]


def test_every_critic_has_a_dot_in_every_panel_but_where_nothing_is_known():
    svg = ElementTree.fromstring(dots("Who finds it?", ROWS))
    assert len(svg.findall(f"{SVG}circle")) == 3
    assert len([line for line in svg.findall(f"{SVG}line") if line.get("class") == "level"]) == 2
    texts = [text.text for text in svg.findall(f"{SVG}text")]
    assert {"Who finds it?", "world & co", "<image>", "recall@1", "MRR"} <= set(texts)
    assert CHANCE not in texts


def test_dots_stand_where_their_values_are():
    svg = ElementTree.fromstring(dots("", ROWS))
    first, second = [float(dot.get("cx")) for dot in svg.findall(f"{SVG}circle") if dot.get("cy")][:2]
    grid = sorted({float(line.get("x1")) for line in svg.findall(f"{SVG}line") if line.get("class") == "grid"})[:5]
    assert abs((first - grid[0]) / (grid[4] - grid[0]) - 0.9) < 0.01
    assert abs((second - grid[0]) / (grid[4] - grid[0]) - 0.2) < 0.01


def test_the_plot_is_described_in_words_too():
    said = ElementTree.fromstring(dots("Who finds it?", ROWS)).get("aria-label")
    assert said == "Who finds it?: world & co recall@1 0.90, MRR 0.95; <image> recall@1 0.20, MRR nan."


def test_votes_become_a_table_and_a_plot_of_every_critic(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for name, shake in (("calm", 0.0), ("wild", 0.5)):
        write_video(tmp_path / f"{name}.mp4", shake * torch.randn(6, 3, 32, 32, generator=generator), 8)
    vote = {"prompt": "a cat", "a": "wild.mp4", "b": "calm.mp4", "winner": "b"}
    (tmp_path / "votes.jsonl").write_text(json.dumps(vote))
    critics = ("motion-smoothness", "dynamic-degree")
    config = AgreementConfig(tmp_path / "votes.jsonl", critics, out=tmp_path / "out", n_resamples=5, device="cpu")
    table = report_agreement(config)
    assert (tmp_path / "out" / "agreement.md").read_text() == table
    assert [line.split("|")[1:3] for line in table.splitlines()[2:]] == [
        [" motion-smoothness ", " 1.00 "],
        [" dynamic-degree ", " 0.00 "],
        [" chance ", " 0.50 "],
    ]
    svg = ElementTree.fromstring((tmp_path / "out" / "agreement.svg").read_text())
    assert "Agreement with human votes in votes.jsonl" in [text.text for text in svg.findall(f"{SVG}text")]

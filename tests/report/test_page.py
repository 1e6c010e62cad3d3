"""The page of a run: what it holds, what it leaves out, and that it needs nothing but itself."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch

from besttake.data.video import write_video
from besttake.report import clips, page, write_report
from besttake.report.measures import MINUS

CONFIG = """algorithm: onlinevpo
model: tiny-cogvideox
steps: 40
seed: 0
policy:
  train: lora
  alpha: null
optim:
  betas: [0.9, 0.999]
reward:
  name: world
  weights: {}
"""
BEFORE = {"flawed_share": 0.6, "heldout_reward": -1.3, "frechet_distance": 40.0, "share/flicker": 0.2, "odd": None}
AFTER = {"flawed_share": 0.2, "heldout_reward": -0.2, "frechet_distance": 10.0, "share/flicker": 0.05, "odd": 3}
REAL = {"flawed_share": 0.02, "heldout_reward": 0.0, "share/flicker": 0.0}
NASTY = 'a ball <script>alert(1)</script> & "falls" $title'


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def whole(folder):
    write_metrics(folder, 40)
    summary = {"before": BEFORE, "after": AFTER, "real": REAL, "about": {"clips": 64, "hardware": "<b>2 cores</b>"}}
    (folder / "summary.json").write_text(json.dumps(summary))
    write_clips(folder, 2, ("before", "after", "real"))
    (folder / "evaluation" / "prompts.json").write_text(json.dumps(["a red ball bounces", NASTY]))
    return folder


def test_whole_run(whole):
    path = write_report(whole)
    assert path == whole / "report.html"
    text = path.read_text(encoding="utf-8")
    read = parse(text)
    assert read.count("video") == 6
    assert read.headings == ["In brief", "Before and after", "Reward", "Training", "Measurements", "Settings"]
    assert "<em>on</em> tiny-cogvideox" in text
    assert re.search(r"60% →</small> <span>20%</span>", text)
    assert "flicker" in text
    assert f"{MINUS}15 points" in text
    assert "policy.train" in text
    assert f"besttake train {whole}/config.yaml" in text
    assert text.count('aria-label="after, clip') == 2
    assert "Training critic: world" in text
    assert "Held-out critic" in text
    for title in ("Winner and loser error", "Margin", "Implicit accuracy", "Drift", "Ties"):
        assert f"<b>{title}</b>" in text


def test_needs_nothing_but_itself(whole):
    read = parse(write_report(whole).read_text(encoding="utf-8"))
    assert read.addresses
    assert all(address.startswith("data:") for address in read.addresses)
    assert "link" not in {name for name, attributes in read.tags if attributes.get("rel") == "stylesheet"}
    assert not re.search(
        r"url\(|@import|fetch\(", (page.TEMPLATES / "page.css").read_text() + (page.TEMPLATES / "page.js").read_text()
    )


def test_texts_of_files_do_not_run(whole):
    text = write_report(whole).read_text(encoding="utf-8")
    read = parse(text)
    assert read.count("script") == 1  # our own
    assert read.count("b") == text.count("<figcaption><b>")  # none from `about`
    assert NASTY in read.text
    (policy,) = [a["content"] for name, a in read.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert re.search(r"script-src 'sha256-[\w+/]{43}='", policy)


def test_names_of_measures_and_alarms_are_escaped(whole):
    row = {"step": 41, "eval/<u>critic/<u>score": 1.0, "alarms": ["<u>fell</u>"]}
    with (whole / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    summary = json.loads((whole / "summary.json").read_text())
    summary["before"]["<u>odd"] = summary["after"]["<u>odd"] = 1.0
    (whole / "summary.json").write_text(json.dumps(summary))
    read = parse(write_report(whole).read_text(encoding="utf-8"))
    assert read.count("u") == 0
    assert "Step 41: <u>fell</u>." in read.text
    assert "Critic: <u>critic" in read.text
    assert "<u>odd" in read.text


def test_config_is_escaped(folder):
    (folder / "config.yaml").write_text(
        "algorithm: <i>x</i>\nmodel: '\"><img src=x onerror=alert(1)>'\n'<u>key': '<u>'\n"
    )
    read = parse(write_report(folder).read_text(encoding="utf-8"))
    assert read.count("img") == read.count("u") == 0
    assert "<u>key" in read.text


def test_unfinished_run_says_so(folder):
    write_metrics(folder, 7)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # a kill
    text = write_report(folder).read_text(encoding="utf-8")
    assert "Not evaluated" in text
    assert "7 of 40 steps" in text
    assert "no summary.json" in text
    assert "The run folder has no evaluation clips" in text
    assert "<video" not in text


@pytest.mark.parametrize("steps", [0, 1])
def test_hardly_any_steps(folder, steps):
    write_metrics(folder, steps)
    text = write_report(folder).read_text(encoding="utf-8")
    assert ("No step has been logged yet." in text) == (steps == 0)
    assert text.count('<figure class="chart') == (0 if steps == 0 else 10)
    assert "nan" not in re.sub(r"<script>.*</script>", "", text, flags=re.DOTALL).lower()


def test_values_that_are_no_numbers_are_left_out(folder):
    rows = [
        {"step": 0, "train/loss": float("nan")},
        {"step": 1, "train/loss": "x"},
        {"step": 2, "train/loss": 0.5},
        {"minutes": 1},
        [1],
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = write_report(folder).read_text(encoding="utf-8")
    assert "loss from 0.5 at step 2 to 0.5 at step 2" in text


def test_missing_columns_and_broken_clips_are_named(folder):
    write_clips(folder, 1, ("after",))
    (folder / "evaluation" / "after" / "01.mp4").write_bytes(b"no video")
    text = write_report(folder).read_text(encoding="utf-8")
    assert text.count("<video") == 1
    assert "01.mp4" in text
    assert "no clips from before training" in text
    assert "clip 0" in text  # there is no prompts.json


def test_at_most_so_many_clips(folder, monkeypatch):
    monkeypatch.setattr(clips, "MOST_CLIPS", 2)
    write_clips(folder, 3, ("before", "after"))
    text = write_report(folder).read_text(encoding="utf-8")
    assert text.count("<video") == 4
    assert "The first 2 of 3 prompts are shown" in text


def test_large_page_says_so(whole, monkeypatch):
    small = write_report(whole)
    assert "This page is large" not in small.read_text(encoding="utf-8")
    assert small.stat().st_size < 200_000  # six clips of two kilobytes, and the page around them
    monkeypatch.setattr(page, "LARGE", 1000)
    assert "This page is large: 0 MB" in write_report(whole).read_text(encoding="utf-8")


def test_no_run(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.yaml"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="is no folder"):
        write_report(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("config.yaml", "model: x\n", "no key 'algorithm'"),
        ("summary.json", "{", "is not JSON"),
        ("summary.json", "[]", "contains a list, expected a dict"),
        ("evaluation/prompts.json", "{}", "contains a dict, expected a list"),
        ("metrics.jsonl", "{oh\n{}\n", "line 1: not JSON"),
    ],
)
def test_broken_files_are_named(folder, name, content, complaint):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(name.rpartition("/")[2])) as caught:
        write_report(folder)
    assert complaint in str(caught.value)
    assert not (folder / "report.html").exists()


def write_metrics(folder, steps):
    names = ("loss", "reward", "winner_error", "loser_error", "margin", "implicit_accuracy", "drift", "ties", "lr")
    rows = []
    for step in range(steps):
        rows.append({"step": step, "minutes": step / 60, **dict.fromkeys(names, 0.1 + 0.01 * (step % 7))})
        if step % 10 == 0:
            validation = {"eval/world/a": step / 9, "eval/world/b": -1.0, "eval/heldout/plausibility": -step / 40}
            rows.append({"step": step, "minutes": 0, **validation, "eval/dynamic-degree/dynamic degree": 0.02})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_clips(folder, count, columns):
    for column in columns:
        for i in range(count):
            write_video(folder / "evaluation" / column / f"{i:02d}.mp4", torch.zeros(2, 3, 16, 16), 8)


class parse(HTMLParser):  # noqa: N801 - reads as a function
    """The tags, the headings, the addresses and the visible text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.headings, self.addresses, self.text, self.inside = [], [], [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.inside = tag
        self.tags.append((tag, attributes))
        self.addresses += [attributes[name] for name in ("src", "href", "poster", "action") if name in attributes]

    def handle_data(self, data):
        self.text += data
        if self.inside == "h2" and data.strip():
            self.headings.append(data)
        self.inside = ""

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)

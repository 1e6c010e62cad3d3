from collections import Counter

import pytest

from besttake.data.prompts import describe_prompt, prompt_batches, read_prompts
from besttake.types import Prompt


def test_reads_lines_and_json_lines(tmp_path):
    (tmp_path / "a.txt").write_text("\n a red ball \r\n\na blue box\n")
    (tmp_path / "a.jsonl").write_text('{"prompt": "a red ball", "id": 3}\n\n{"prompt": "a blue box"}\n')
    assert read_prompts(tmp_path / "a.txt") == ["a red ball", "a blue box"]
    assert read_prompts(tmp_path / "a.jsonl") == ["a red ball", "a blue box"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", " \n\n", r"a\.txt holds no prompts"),
        ("a.jsonl", "", r"a\.jsonl holds no prompts"),
        ("a.jsonl", '{"prompt": "x"}\n{"text": "y"}', r'a\.jsonl, line 2: expected text under "prompt", got None'),
        ("a.jsonl", '{"prompt": " "}', r"line 1: expected text"),
        ("a.md", "x", r"a\.md: expected a \.txt"),
    ],
)
def test_bad_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)


def test_all_bad_lines_are_named_at_once_and_skipped_on_request(tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "x"}\n{"prompt": ""}\n{"prompt": "y", "first_frame": "gone.png"}\n{"prompt": 3}\n')
    with pytest.raises(ValueError, match=r"3 of 4 prompts of .*a\.jsonl cannot be used") as caught:
        read_prompts(path)
    for message in ("line 2: expected text", 'line 3: "first_frame" is', "line 4: expected text"):
        assert message in str(caught.value)
    assert read_prompts(path, skip_bad=True) == ["x"]
    assert len(caplog.records) == 1


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.txt is not a file"):
        read_prompts(tmp_path / "gone.txt")


PROMPTS = [f"prompt {i}" for i in range(10)]


def deal(batch, steps, seed=0, prompts=PROMPTS):
    return [prompt_batches(prompts, batch, seed, step) for step in range(steps)]


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 7, 10, 13])
def test_every_epoch_deals_every_prompt_once(batch):
    indices = [index for chosen in deal(batch, 40) for index, _ in chosen]
    for start in range(0, len(indices) - 9, 10):
        assert sorted(indices[start : start + 10]) == list(range(10))


@pytest.mark.parametrize("batch", [2, 3, 4, 5])
def test_no_batch_holds_a_prompt_twice(batch):
    for seed in range(20):
        assert all(len(dict(chosen)) == batch for chosen in deal(batch, 40, seed))


def test_a_batch_larger_than_the_list_deals_evenly():
    counts = Counter(index for index, _ in prompt_batches(PROMPTS[:3], 7, 0, 0))
    assert sorted(counts.values()) == [2, 2, 3]


def test_only_seed_and_step_count():
    ahead = prompt_batches(PROMPTS, 3, 7, 25)
    assert ahead == deal(3, 26, seed=7)[25]
    assert all(PROMPTS[index] == prompt for index, prompt in ahead)
    assert deal(5, 2, seed=0) != deal(5, 2, seed=1)
    assert deal(5, 4)[:2] != deal(5, 4)[2:]  # the next epoch has an order of its own


@pytest.mark.parametrize(("prompts", "batch"), [([], 2), (PROMPTS, 0)])
def test_nothing_to_deal(prompts, batch):
    with pytest.raises(ValueError, match=r"is .*; expected (one|1) or more"):
        prompt_batches(prompts, batch, 0, 0)


def test_a_prompt_is_described_by_its_text_and_what_is_shown_beside_it(tmp_path):
    for name in "abc":
        (tmp_path / name).write_text("c" if name == "c" else "ab")
    first = describe_prompt(Prompt("a ball", first_frame=tmp_path / "a"))
    assert describe_prompt(Prompt("a ball", first_frame=tmp_path / "b")) == first
    others = [Prompt("a ball", tmp_path / "c"), Prompt("a ball", None, tmp_path / "a"), "a ball", "a ring", 3]
    assert len({first, *map(describe_prompt, others)}) == 6

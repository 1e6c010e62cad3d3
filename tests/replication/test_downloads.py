"""What a recipe needs from the hub. The tests have no network: a folder in the cache's layout stands for it."""

from dataclasses import replace

import pytest

from besttake.algorithms import onlinevpo, sft
from besttake.replication.downloads import (
    check_data,
    check_room,
    load_once,
    missing_bytes,
    refuse_small_disk,
    revisions,
    sources,
)
from besttake.rewards.panel import RewardConfig
from besttake.sampling.rollout import RolloutConfig
from besttake.training.validation import ValidationConfig
from besttake.world.build import build

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's cache; makes the folder of a repository in it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def snapshot(repository):
        folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(COMMIT)
        (folder / "snapshots" / COMMIT).mkdir(parents=True)
        return folder / "snapshots" / COMMIT

    return snapshot


def config(model, **changes):
    settings = {
        "data": "everyday-train",
        "reward": RewardConfig("temporal-flicker"),
        "rollout": RolloutConfig(steps=1),
        "validation": ValidationConfig(every=0),
    }
    return onlinevpo.Config(model=str(model), **{**settings, **changes})


def test_too_small_a_disk_is_refused_with_what_is_missing(tmp_path):
    refuse_small_disk({"someone/model": 1000}, tmp_path / "not" / "there")
    with pytest.raises(
        ValueError, match=r"3e\+09 GB are to be downloaded \(someone/model 2e\+09 GB, critic c 1e\+09 GB\)"
    ):
        refuse_small_disk({"someone/model": 2 * 10**18, "critic c": 10**18, "here": 0}, tmp_path / "not" / "there")


def test_a_model_that_is_nowhere_is_refused_without_internet(hub):
    with pytest.raises(ValueError, match=r"someone/model is not on this machine, .* connect to the internet"):
        check_room(config("someone/model"))


def test_what_is_in_the_cache_needs_neither_room_nor_internet(hub):
    hub("someone/model")
    assert missing_bytes("someone/model") == 0
    check_room(config("someone/model"))


def test_the_room_of_critics_is_counted_until_they_are_there(hub, monkeypatch, tmp_path):
    counted = []
    monkeypatch.setattr("besttake.replication.downloads.refuse_small_disk", lambda missing, _: counted.append(missing))
    asked = config(tmp_path, reward=RewardConfig("videoscore"))
    check_room(asked)
    hub("TIGER-Lab/VideoScore")
    check_room(asked)
    check_room(config(tmp_path, reward=RewardConfig("videoscore", paths={"videoscore": "mine"})))
    assert counted == [{"critic videoscore": 16_500_000_000}, {}, {}]


def test_revisions_are_those_of_the_cache(hub):
    hub("someone/model")
    assert revisions(["someone/model", "someone/other", "no id", "docs/page.md"]) == {"someone/model": COMMIT}


def test_sources_name_the_model_and_its_critics(hub, model_folder):
    hub("TIGER-Lab/VideoScore")
    folder = str(model_folder("tiny-cogvideox"))
    found = sources(config(folder, reward=RewardConfig("videoscore")))
    assert found.keys() == {folder, "TIGER-Lab/VideoScore"}
    assert found["TIGER-Lab/VideoScore"] == COMMIT
    assert found[folder].startswith("content ")
    assert sources(config(model_folder("tiny-wan")))[str(model_folder("tiny-wan"))] != found[folder]


def test_sources_of_a_model_on_the_hub(hub, model_folder):
    build("tiny-wan").save_pretrained(hub("someone/model"))
    assert sources(config("someone/model")) == {"someone/model": COMMIT}


def test_everything_is_loaded_once(model_folder, material):
    asked = config(model_folder("tiny-cogvideox"), data=str(material / "prompts.txt"))
    load_once(asked, asked.data, "cpu")
    with pytest.raises(ValueError, match="critic videoscore: there is no folder"):
        load_once(replace(asked, reward=RewardConfig("videoscore")), asked.data, "cpu")
    with pytest.raises(ValueError, match="'nowhere'"):
        load_once(replace(asked, model="nowhere"), asked.data, "cpu")


def test_data_are_checked_at_the_start(material, tmp_path):
    check_data(config("x"), str(material / "prompts.txt"))
    check_data(sft.Config(), str(material / "clips"))
    check_data(sft.Config(), "hf:someone/clips")
    for asked, data in ((config("x"), "gone.txt"), (sft.Config(), str(tmp_path / "real-clips"))):
        with pytest.raises(ValueError, match=r"gone\.txt|real-clips"):
            check_data(asked, data)

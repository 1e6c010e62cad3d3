"""The record of a replication: its stages, and when it goes on."""

import json
from dataclasses import asdict

import pytest

from besttake.algorithms.onlinevpo import Config
from besttake.replication.record import DOWNLOAD, FILE, PLAN, Record, flat, open_record, read_record
from besttake.runtime.configuration import to_dict


def record(**changes) -> Record:
    return Record("tiny", "besttake replicate tiny", flat(to_dict(Config(**changes))))


def planned(folder) -> Record:
    folder.mkdir(exist_ok=True)
    made = record()
    with made.stage(PLAN, folder):
        pass
    return made


def test_a_stage_is_finished_unless_it_fails_and_its_attempts_add_up(tmp_path):
    made = planned(tmp_path)
    with pytest.raises(KeyboardInterrupt), made.stage("train", tmp_path):
        raise KeyboardInterrupt
    read = read_record(tmp_path)
    assert not read.is_finished("train")
    read.stages["train"]["seconds"] = 100.0
    with read.stage("train", tmp_path):
        pass
    again = read_record(tmp_path)
    assert again.is_finished("train")
    assert again.stages["train"]["seconds"] >= 100
    assert again.stages["train"]["peak"] > 2**20
    assert asdict(again) == asdict(read)


def test_a_refused_plan_leaves_the_folder_free(tmp_path):
    with pytest.raises(ValueError, match="does not fit"), record().stage(PLAN, tmp_path):
        raise ValueError("does not fit")
    assert open_record(tmp_path, record(candidates=7)).request["candidates"] == 7


def test_the_same_command_goes_on_and_memory_settings_may_change(tmp_path):
    made = planned(tmp_path)
    assert asdict(open_record(tmp_path, record())) == asdict(made)
    assert asdict(open_record(tmp_path, record(tiling=True, offload_idle=True, device="cpu"))) == asdict(made)


def test_another_replication_is_refused(tmp_path):
    made = planned(tmp_path)
    assert open_record(tmp_path, record(candidates=7)).request["candidates"] == 7, "nothing but a plan is lost"
    with made.stage(DOWNLOAD, tmp_path):
        pass
    with pytest.raises(
        ValueError, match=r"holds another replication: besttake replicate tiny \(different: candidates, steps\)"
    ):
        open_record(tmp_path, record(candidates=7, steps=3))
    for name, value in (("recipe", "large"), ("budget", 3.0)):
        other = record()
        setattr(other, name, value)
        with pytest.raises(ValueError, match=f"different: {name}"):
            open_record(tmp_path, other)


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="is not empty, and holds no replication"):
        open_record(tmp_path, record())
    with pytest.raises(ValueError, match="is not empty, and holds no replication"):
        open_record(tmp_path / "notes.txt", record())


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"recipe": "tiny", "steps": 3})])
def test_a_broken_record_is_refused(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ValueError, match=r"replication\.json is broken"):
        open_record(tmp_path, record())

"""The model card: metadata that the hub reads, and a snippet that loads the weights."""

import json
import re
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard

from besttake.algorithms.sft import Config, train
from besttake.commands.cli import main
from besttake.models.policy import PolicyConfig
from besttake.report import write_report
from besttake.report.card import _fenced, licence_of, model_card
from besttake.report.folder import read_run
from besttake.runtime.configuration import write_config
from besttake.sampling.rollout import RolloutConfig
from besttake.training.validation import ValidationConfig


@pytest.fixture(scope="module")
def trained(tmp_path_factory, material):
    """A run of one step on an embedded model."""
    config = Config(
        data=str(material / "clips"),
        out=tmp_path_factory.mktemp("runs") / "mine",
        steps=1,
        clips_per_step=1,
        rollout=RolloutConfig(steps=1, guidance=1.0, frames=4),
        policy=PolicyConfig(rank=2),
        validation=ValidationConfig(every=0),
    )
    folder = train(config).folder
    summary = {"before": {"flawed_share": 0.8}, "after": {"flawed_share": 0.4}, "about": {"clips": 128}}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def code_of(card: str) -> str:
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]


def test_the_card_is_written_beside_the_adapter_and_its_snippet_runs(trained, monkeypatch):
    write_report(trained)
    text = (trained / "adapter" / "README.md").read_text()
    made = []
    monkeypatch.setattr("diffusers.utils.export_to_video", lambda video, *_, **__: made.append(video))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    exec(code_of(text), {})
    assert len(made[0]) == 4
    assert "| 80% | 40% |" in text
    assert "On 128 videos of held-out prompts." in text


def test_metadata_are_of_the_base_and_the_method(trained, tmp_path):
    card = ModelCard(model_card(read_run(trained), "me/mine"))
    assert card.data.to_dict() == {
        "library_name": "diffusers",
        "license": "apache-2.0",
        "pipeline_tag": "text-to-video",
        "tags": ["besttake", "lora", "sft"],
    }
    assert 'pipe.load_lora_weights("me/mine")' in card.content
    assert card.content.partition("\n# ")[2].startswith("mine\n")


def test_names_and_prompts_do_not_break_the_markdown(trained):
    run = read_run(trained)
    config = run.config | {"algorithm": "/home/me/my_algorithm.py", "data": "a|b"}
    run = replace(run, config=config, rows=run.rows)
    card = ModelCard(model_card(run, "me/mine"))
    assert card.data.tags == ["besttake", "lora", "my_algorithm"]
    assert "/home/me" not in card.content
    assert r"| data | a\|b |" in card.content


def test_a_prompt_with_a_fence_stays_code():
    assert _fenced("prompt='```'\n") == "````python\nprompt='```'\n````"


def test_a_base_on_the_hub_is_named(trained, tmp_path):
    run = read_run(trained)
    run.config.update(model="THUDM/CogVideoX-5b-I2V", algorithm="realdpo", dtype="bfloat16")
    data = ModelCard(model_card(run, "me/mine")).data
    assert (data.base_model, data.base_model_relation) == ("THUDM/CogVideoX-5b-I2V", "adapter")
    assert "arxiv:2510.14955" in data.tags
    assert data.license is None, "no copy of its card is here"


def test_the_licence_is_read_from_the_bases_folder(tmp_path):
    assert licence_of(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: other\n---\nA model.")
    assert licence_of(str(tmp_path)) == "other"


def test_a_dry_run_of_push_writes_what_would_be_uploaded(trained, tmp_path, capsys):
    arguments = ["push", str(trained), "me/mine", "--dry-run", str(tmp_path / "upload")]
    assert main(arguments) == 0
    names = {file.name for file in (tmp_path / "upload").iterdir()}
    assert names == {"README.md", "config.yaml", "summary.json", "pytorch_lora_weights.safetensors"}
    assert "out" not in yaml.safe_load((tmp_path / "upload" / "config.yaml").read_text())
    assert main(arguments) == 2
    assert "a file or not empty" in capsys.readouterr().err


def test_push_creates_the_repository_and_uploads_the_folder(trained, monkeypatch, capsys):
    calls = []

    class Api:
        def create_repo(self, repo, private, exist_ok):
            calls.append((repo, private))
            return f"https://hub/{repo}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            calls.append((repo_id, sorted(file.name for file in trained.__class__(folder_path).iterdir())))

    monkeypatch.setattr("besttake.commands.push.HfApi", Api)
    assert main(["push", str(trained), "me/mine", "--private"]) == 0
    assert capsys.readouterr().out == "https://hub/me/mine\n"
    assert calls[0] == ("me/mine", True)
    assert "pytorch_lora_weights.safetensors" in calls[1][1]


def test_push_of_a_run_without_an_adapter_is_refused(tmp_path, capsys):
    write_config(Config(out=tmp_path), tmp_path / "config.yaml")
    assert main(["push", str(tmp_path), "me/mine"]) == 2
    assert "has no adapter; has the run finished?" in capsys.readouterr().err
    assert main(["push", str(tmp_path), "mine"]) == 2
    assert "expected USER/NAME" in capsys.readouterr().err

import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from besttake.commands import generate
from besttake.commands.generate import GenerateConfig, generate_samples
from besttake.models.policy import Policy, PolicyConfig
from besttake.sampling.rollout import RolloutConfig
from tests.tiny import tiny_models

REFUSED = "has samples of other settings, weights or prompts"


@pytest.fixture
def config(model_folder, tmp_path):
    """Two samples of one prompt with an adapter, by a model in a folder of its own."""
    shutil.copytree(model_folder("tiny-cogvideox"), tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a red ball\n")
    with torch.random.fork_rng():
        policy = Policy(generate.load_model(str(tmp_path / "model")), PolicyConfig(rank=2, alpha=2))
    for weight in policy.trainable.values():
        weight.data += 0.1
    policy.save(tmp_path / "adapter")
    prompts, adapter = str(tmp_path / "prompts.txt"), tmp_path / "adapter"
    return GenerateConfig(
        prompts, str(tmp_path / "model"), adapter, tmp_path / "samples", 2, rollout=RolloutConfig(steps=1, guidance=1.0)
    )


def refuses(config, what):
    with pytest.raises(ValueError, match=f"{REFUSED}.*different: {what}; give another --out"):
        generate_samples(config)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def nudge(path, name):
    """Move one weight of a file of them, its ends excepted."""
    tensors = load_file(path)
    weight = tensors[next(key for key in tensors if name in key)]
    weight.flatten()[weight.numel() // 2] += 0.01
    save_file(tensors, path, {"format": "pt"})


def test_samples_are_of_the_content_of_all_that_they_are_made_of(config, tmp_path, monkeypatch):
    generate_samples(config)
    written = (config.out / "00000-0.mp4").stat().st_mtime_ns
    generate_samples(config)
    assert (config.out / "00000-0.mp4").stat().st_mtime_ns == written
    monkeypatch.setattr(generate, "versions", lambda: {**before, "torch": "0.1"})
    before = generate.read_yaml(config.out / "samples.yaml")
    refuses(config, "torch")
    monkeypatch.undo()
    (tmp_path / "prompts.txt").write_text("a blue ball\n")
    refuses(config, "the prompts' texts, first frames or sources")
    (tmp_path / "prompts.txt").write_text("a red ball\n")
    edit(tmp_path / "model" / "scheduler" / "scheduler_config.json", beta_end=0.02)
    refuses(config, "parts")
    refuses(replace(config, rollout=RolloutConfig(steps=1)), "parts, rollout")


@pytest.mark.parametrize(
    ("file", "weight", "what"),
    [
        ("model/transformer/diffusion_pytorch_model.safetensors", "ff.net", "weights"),
        ("model/text_encoder/model.safetensors", "shared", "parts"),
        ("model/vae/diffusion_pytorch_model.safetensors", "decoder", "parts"),
        ("adapter/pytorch_lora_weights.safetensors", "lora_B", "adapter_content, weights"),
    ],
)
def test_one_weight_in_the_middle_makes_other_samples(config, tmp_path, file, weight, what, monkeypatch):
    monkeypatch.setattr(generate, "generate", generated)
    generate_samples(config)
    nudge(tmp_path / file, weight)
    refuses(config, what)


class FakeRollout:
    """A rollout that cost nothing."""

    def __init__(self, rows):
        self.videos = torch.zeros(rows, 2, 3, 16, 16)


def generated(model, prompts, config, n, seed):
    return FakeRollout(len(prompts) * n)


def test_an_adapter_of_another_scale_makes_other_samples(config, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "generate", generated)
    generate_samples(config)
    file = tmp_path / "adapter" / "pytorch_lora_weights.safetensors"
    whole = file.read_bytes()
    assert whole.count(b'lora_alpha\\": 2') == 1
    file.write_bytes(whole.replace(b'lora_alpha\\": 2', b'lora_alpha\\": 4'))
    refuses(config, "adapter_content")


@pytest.mark.parametrize("kind", ["first_frame", "source"])
def test_what_is_shown_beside_a_prompt_is_known_by_its_content(config, tmp_path, monkeypatch, kind):
    if kind == "first_frame":
        folder = tmp_path / "i2v"
        tiny_models()["wan-2.1-i2v"].build().save_pretrained(folder)
        config = replace(config, model=str(folder))
    monkeypatch.setattr(generate, "generate", generated)
    monkeypatch.setattr(generate, "with_adapter", lambda *_: None)
    rows = [{"prompt": f"a ball {i}", kind: f"{i}.png"} for i in range(2)]
    for i in range(2):
        Image.new("RGB", (16, 16), (i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = replace(config, prompts=str(tmp_path / "p.jsonl"))
    generate_samples(replace(config, count=1))
    Image.new("RGB", (16, 16), (9, 0, 0)).save(tmp_path / "1.png")  # of a prompt that was not sampled yet
    generate_samples(config)
    (tmp_path / "0.png").rename(tmp_path / "same.png")
    rows[0][kind] = "same.png"
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    generate_samples(config)
    Image.new("RGB", (16, 16), (8, 0, 0)).save(tmp_path / "1.png")
    refuses(config, "the prompts' texts, first frames or sources")

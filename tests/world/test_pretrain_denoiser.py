"""The training of the base models runs on both families, resumes where it stopped, and what it exports loads."""

import json
from dataclasses import replace

import torch

from besttake.models import load_model
from besttake.rollout import RolloutConfig, generate
from besttake.world import export as exporting
from besttake.world.pretrain_denoiser import DenoiserConfig, learning_rate, train_denoiser
from besttake.world.pretrain_vae import VAEConfig, make_vae


def test_train_resume_and_export(family, tmp_path, monkeypatch):
    make_vae(VAEConfig(family, tmp_path, clips=8))
    config = DenoiserConfig(family, tmp_path, steps=1, batch=2, first_clips=16, save_every=1)
    train_denoiser(config)
    train_denoiser(replace(config, steps=2))
    state = torch.load(tmp_path / family / "denoiser" / "state.pt", weights_only=True)
    assert state["step"] == 2
    assert any(not torch.equal(state["average"][name], state["module"][name]) for name in state["average"])
    monkeypatch.setattr(exporting, "FOLDER", tmp_path / "package")
    folder = exporting.export(family, tmp_path)
    rows = json.loads((folder / "training-denoiser.json").read_text())
    assert [row["step"] for row in rows] == [1, 2]
    model = load_model(str(folder))
    shot = generate(model, ["a small red ball bounces on a dark background"], RolloutConfig(steps=1))
    train_denoiser(replace(config, out=tmp_path / "second", start=folder, steps=3))
    state = torch.load(tmp_path / "second" / family / "denoiser" / "state.pt", weights_only=True)
    assert state["step"] == 3
    assert shot.videos.shape[1:] == (model.default_size()[0], 3, 32, 32)


def test_the_learning_rate_rises_stays_and_falls_to_zero():
    config = DenoiserConfig(steps=1000, decay=0.4)
    assert learning_rate(0, config) < 0.01
    assert learning_rate(400, config) == 1
    assert 0 < learning_rate(999, config) < 0.01

"""The training of the base models runs on both families, resumes where it stopped, and what it exports loads."""

import json
from dataclasses import replace

import pytest
import torch

from besttake.models import load_model
from besttake.models.schedules import RectifiedFlow
from besttake.sampling.rollout import RolloutConfig, generate
from besttake.world import export as exporting
from besttake.world import pretrain_denoiser
from besttake.world.pretrain_denoiser import (
    ClipBuffer,
    DenoiserConfig,
    learning_rate,
    load_parts,
    train_denoiser,
    training_times,
)
from besttake.world.pretrain_vae import VAEConfig, make_vae


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    monkeypatch.setattr(pretrain_denoiser, "SCALE_CLIPS", 4)


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
    rollout = generate(model, ["a small red ball bounces on a dark background"], RolloutConfig(steps=1))
    train_denoiser(replace(config, out=tmp_path / "second", start=folder, steps=3))
    state = torch.load(tmp_path / "second" / family / "denoiser" / "state.pt", weights_only=True)
    assert state["step"] == 3
    assert rollout.videos.shape[1:] == (model.default_size()[0], 3, 32, 32)


def test_training_times_are_in_strata_of_the_schedules_own_distribution():
    schedule, generator = RectifiedFlow(shift=3.0), torch.Generator().manual_seed(0)
    t = torch.stack([training_times(schedule, 4, generator) for _ in range(200)])
    assert (t.diff(dim=1) > 0).all()
    assert t.median() == pytest.approx(0.75, abs=0.02)  # shifted, where uniform times have 0.5
    inner, outer = t[:, 1:3], schedule.times(torch.tensor([0.25, 0.75]))
    assert ((outer[0] < inner) & (inner < outer[1])).all()  # narrower than quarters in the middle


def test_the_bank_holds_the_newest_clips_and_samples_hard_motions_more_often(tmp_path):
    make_vae(VAEConfig("tiny-cogvideox", tmp_path, clips=8))
    config = DenoiserConfig(out=tmp_path, bank=48, batch=2000)
    model = load_parts("tiny-cogvideox", tmp_path)
    grown, fresh = ClipBuffer(model, config), ClipBuffer(model, config)
    for n in (32, 64, 96):
        grown.grow_to(n)
    fresh.grow_to(96)  # as after a resume
    assert len(grown) == len(fresh) == 48
    assert all(torch.allclose(a, b, atol=0.02) for a, b in zip(grown.latents, fresh.latents, strict=True))
    assert grown.weights == fresh.weights
    sampled, _ = grown.sample(config, torch.Generator().manual_seed(0))
    heaviest, lightest = max(grown.weights), min(grown.weights)
    often = [sum(torch.equal(x, clip.float()) for x in sampled) for clip in grown.latents]
    mean = {
        w: sum(o for o, v in zip(often, grown.weights, strict=True) if v == w) / grown.weights.count(w)
        for w in (heaviest, lightest)
    }
    assert mean[heaviest] / mean[lightest] == pytest.approx(heaviest / lightest, rel=0.35)


def test_the_learning_rate_rises_stays_and_falls_to_zero():
    config = DenoiserConfig(steps=1000, decay=0.4)
    assert learning_rate(0, config) < 0.01
    assert learning_rate(400, config) == 1
    assert 0 < learning_rate(999, config) < 0.01

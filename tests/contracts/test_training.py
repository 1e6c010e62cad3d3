"""OnlineVPO and RealDPO, unchanged, on every video model: two steps each, and only the right weights move."""

import json

import pytest
import torch
from PIL import Image

from besttake.algorithms import onlinevpo, realdpo
from besttake.data.video import write_video
from besttake.evaluation.before_after import EvaluateConfig
from besttake.models import load_model
from besttake.models.policy import Policy, PolicyConfig
from besttake.rewards.panel import RewardConfig
from besttake.sampling.rollout import RolloutConfig
from besttake.training.run import OptimConfig
from besttake.training.validation import ValidationConfig
from besttake.types import Prompt
from tests.contracts.conftest import PROMPTS


@pytest.fixture
def clips(tmp_path, tiny):
    """Two captioned clips of a second and a half, and the same captions as prompts with first frames."""
    folder = tmp_path / "clips"
    for i, caption in enumerate(PROMPTS):
        video = torch.rand(36, 3, *tiny.size[1:], generator=torch.Generator().manual_seed(i)) * 2 - 1
        write_video(folder / f"{i}.mp4", video, 24)
        (folder / f"{i}.txt").write_text(caption)
    rows = [{"prompt": caption, "first_frame": f"clips/{i}.mp4"} for i, caption in enumerate(PROMPTS)]
    with (tmp_path / "prompts.jsonl").open("w") as file:
        file.writelines(json.dumps(row if tiny.first_frame else {"prompt": row["prompt"]}) + "\n" for row in rows)
    return folder


@pytest.fixture
def settings(tmp_path, clips, tiny, folder_of, name):
    frames, height, width = tiny.size
    return {
        "model": str(folder_of(name)),
        "out": tmp_path / "run",
        "steps": 2,
        "policy": PolicyConfig(rank=2, gradient_checkpointing="full"),
        "optim": OptimConfig(lr=1e-2),
        "validation": ValidationConfig(every=0),
        "rollout": RolloutConfig(steps=2, guidance=1.0, frames=frames, height=height, width=width),
        "evaluation": EvaluateConfig(prompts=str(tmp_path / "prompts.jsonl")),
        "timesteps_per_pair": 2,
    }


def moves_the_right_weights_only(train, config, model):
    before = {
        (part, key): weight for part, denoiser in model.denoisers.items() for key, weight in denoiser.named_parameters()
    }
    run = train(config)
    for part, denoiser in run.model.denoisers.items():
        for key, weight in denoiser.named_parameters():
            if "lora" not in key:
                assert torch.equal(weight, before[part, key.replace(".base_layer", "")].to(weight.dtype)), key
    assert all(weight.isfinite().all() for weight in run.policy.trainable.values())
    still = [key for key, weight in run.policy.trainable.items() if "lora_B" in key and not weight.any()]
    assert not still
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["dpo/reference_distance"] == 0 < rows[1]["dpo/reference_distance"]  # the reference is left behind


def test_onlinevpo(settings, clips, model):
    config = onlinevpo.Config(
        **settings,
        data=str(clips.parent / "prompts.jsonl"),
        prompts_per_step=2,
        candidates=2,
        refresh_every=2,
        reward=RewardConfig("temporal-flicker"),
    )
    moves_the_right_weights_only(onlinevpo.train, config, model)


def test_realdpo_on_a_base_in_half_precision(settings, clips, model):
    config = realdpo.Config(
        **settings,
        dtype="bfloat16",
        data=str(clips),
        clips_per_step=2,
        negatives=2,
        regenerate_every=1,
        reference_every=1,
        reference_warmup=False,  # with it, the reference is the policy after the first update, as after a refresh
    )
    moves_the_right_weights_only(realdpo.train, config, model)


def test_a_full_fine_tune_starts_as_its_reference_to_the_bit(tiny, folder_of, name):
    """In bfloat16, where the policy's weights are float32, and the reference's matrices are not."""
    model = load_model(str(folder_of(name)), torch.bfloat16)
    policy = Policy(model, PolicyConfig(train="full"))
    rollout = RolloutConfig(**dict(zip(("frames", "height", "width"), tiny.size, strict=True)))
    frame = folder_of(name) / "first.png"
    Image.new("RGB", (32, 32), "orange").save(frame)
    condition = rollout.condition(model, [Prompt("a red ball", frame if tiny.first_frame else None)])
    x_t = torch.randn(1, *model.latent_shape(*tiny.size), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for t in (0.2, 0.95):
            inputs = x_t, torch.tensor([t]), condition
            assert torch.equal(policy.predict(*inputs), policy.reference.predict(*inputs))

import json

import pytest
import torch
from torch import nn

from besttake.algorithms import onlinevpo
from besttake.models import load_model
from besttake.models.policy import PolicyConfig
from besttake.rewards.cache import CachedReward
from besttake.rewards.checks import score_shard
from besttake.rewards.offloading import offload_reward, on_device
from besttake.rewards.panel import RewardConfig
from besttake.sampling.rollout import RolloutConfig
from besttake.training.validation import ValidationConfig
from besttake.types import CriticCard, Score


class Traveller(nn.Linear):
    """A network that tells where it is sent; its home is the "gpu"."""

    def __init__(self, trips, name):
        super().__init__(1, 1)
        self.trips, self.name = trips, name

    def to(self, place):
        self.trips.append((self.name, str(place)))
        return self


class Critic:
    name, dimensions, differentiable = "critic", ("quality",), False
    card = CriticCard("nobody's", "none", {"quality": (0, 1)})

    def __init__(self, trips, fails=False):
        self.trips, self.network, self.fails = trips, Traveller(trips, "critic"), fails

    def __call__(self, videos, prompts, fps=8.0):
        self.trips.append(("critic", "scores"))
        if self.fails:
            raise ConnectionError("gone")
        return Score(videos.flatten(1).mean(1, keepdim=True).float(), self.dimensions)


VIDEOS = torch.zeros(2, 3, 3, 4, 4)


@pytest.mark.parametrize("cached", [False, True])
def test_a_critic_sent_away_is_called_back_for_each_question(tmp_path, cached):
    trips = []
    critic = Critic(trips)
    reward = CachedReward(critic, tmp_path, critic_identity="it") if cached else critic
    offload_reward(reward)
    offload_reward(reward)  # the monitor's, too: its home is still the first one
    score_shard(reward, VIDEOS, ["a", "b"], 8)
    assert trips == [("critic", "cpu")] * 2 + [("critic", "cpu"), ("critic", "scores"), ("critic", "cpu")]


def test_a_critic_that_was_not_sent_away_stays(tmp_path):
    trips = []
    score_shard(Critic(trips), VIDEOS, ["a", "b"], 8)
    assert trips == [("critic", "scores")]


def test_one_that_fails_goes_back_all_the_same():
    trips = []
    critic = Critic(trips, fails=True)
    offload_reward(critic)
    with pytest.raises(ConnectionError), on_device(critic):
        critic(VIDEOS, ["a", "b"])
    assert trips[-1] == ("critic", "cpu")


def test_the_denoiser_goes_when_a_part_is_read_and_comes_back_to_be_run(model_folder):
    trips = []
    model = load_model(str(model_folder("tiny-wan")))
    model.parts.offload_idle = [Traveller(trips, "denoiser")]
    model.encode_prompts(["a red ball"])
    assert trips == [("denoiser", "cpu")]
    model.parts.to_device()
    model.encode_prompts(["a red ball"])  # known: nothing is read
    assert trips == [("denoiser", "cpu"), ("denoiser", "cpu")]


def test_a_run_by_turns_is_the_run_it_would_have_been(tmp_path, model_folder, material):
    rows = {}
    for offload_idle in (False, True):
        run = onlinevpo.train(
            onlinevpo.Config(
                model=str(model_folder("tiny-cogvideox")),
                data=str(material / "prompts.txt"),
                out=tmp_path / str(offload_idle),
                steps=2,
                offload_idle=offload_idle,
                prompts_per_step=2,
                candidates=2,
                policy=PolicyConfig(rank=2, train="full"),
                reward=RewardConfig("temporal-flicker"),
                rollout=RolloutConfig(steps=2),
                validation=ValidationConfig(
                    1, str(material / "prompts.txt"), 2, ("dynamic-degree",), 0, RolloutConfig(steps=1)
                ),
            )
        )
        assert bool(run.model.parts.offload_idle) == offload_idle
        lines = (run.folder / "metrics.jsonl").read_text().splitlines()
        rows[offload_idle] = [{k: v for k, v in json.loads(line).items() if k != "minutes"} for line in lines]
    assert rows[False] == rows[True]

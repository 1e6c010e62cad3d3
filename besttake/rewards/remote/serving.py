"""Serving besttake's own critics: `besttake serve CRITIC --port N`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from tyro.conf import Positional

from besttake import __version__
from besttake.rewards import find_critic, load_reward
from besttake.rewards.cache import identity
from besttake.rewards.remote.server import Limits, serve
from besttake.runtime.configuration import require
from besttake.runtime.devices import find_device
from besttake.types import Reward


@dataclass(frozen=True)
class ServeConfig:
    """Serve a critic over HTTP until Ctrl-C; elsewhere its name is then the URL that is printed.

    It can be reached from this machine alone, unless the environment variable BESTTAKE_TOKEN holds a secret, here and
    at the clients, and `--host 0.0.0.0` says so.
    """

    critic: Positional[str]
    """A critic's name, a file of your own (./my_critic.py), a folder with its config.json, or a judge's .yaml file."""
    path: str | None = None
    """Folder or hub id of its weights; by default those it was published with."""
    port: int = 8000
    """TCP port; 0 = any that is free."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 = all of this machine's, which needs a token."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps."""
    queue: int = 8
    """Requests held at once; when they are as many, clients are told to come back."""
    largest: int = 512
    """Largest request in MiB."""

    def __post_init__(self):
        require(0 <= self.port < 65536, "port", self.port, "a port up to 65535, or 0 for any that is free")
        require(self.queue >= 1, "queue", self.queue, "1 or more")
        require(self.largest >= 1, "largest", self.largest, "MiB, 1 or more")


def serve_critic(config: ServeConfig) -> None:
    """Load and serve, until Ctrl-C or SIGTERM.

    Raises:
        ValueError: there is no such device, or another address than this machine's without a token.
        OSError: the port is taken, the critic cannot be loaded, or it hung when it was to stop.
    """
    find_critic(config.critic)
    device = find_device(config.device)
    limits = Limits(queue=config.queue, largest=config.largest << 20)
    if serve(lambda: Served(load_reward(config.critic, device, config.path)), config.host, config.port, limits):
        raise OSError(f"critic {config.critic} could not be loaded, or hung when it was to stop: see above")


class Served:
    """A `Reward` as `server.py` wants it: called with lists of uint8 arrays (f, h, w, 3).

    A critic that does not look at all of a clip tells which frames it wants: `chosen(frames, fps)` gives their places,
    and of a clip of these alone it looks at all.

    Attributes:
        revision: our version and a hash of the weights and settings, so that servers of one revision give one score,
            wherever their files came from.
    """

    def __init__(self, reward: Reward):
        self.reward, self.name, self.dimensions = reward, reward.name, reward.dimensions
        self.revision = f"besttake {__version__}, {hashlib.sha256(identity(reward).encode()).hexdigest()[:16]}"
        self.frames, self.frame_rate = reward.card.frames, reward.card.frame_rate
        self.card = asdict(reward.card)
        self.chosen: Callable[[int, float], Sequence[int]] = getattr(reward, "chosen", None) or all_frames

    def __call__(self, videos: list[np.ndarray], prompts: list[str], fps: float) -> np.ndarray:
        """Scores float32 (b, d); clips of one size are scored together."""
        if len({video.shape for video in videos}) > 1:
            return np.concatenate([self([video], [prompt], fps) for video, prompt in zip(videos, prompts, strict=True)])
        batch = torch.stack([torch.from_numpy(video).permute(0, 3, 1, 2) for video in videos])
        with torch.inference_mode():
            return self.reward(batch.float() / 127.5 - 1, prompts, fps).values.float().cpu().numpy()


def all_frames(frames: int, fps: float) -> Sequence[int]:
    return range(frames)

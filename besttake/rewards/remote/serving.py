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
    """Serve a critic over HTTP until Ctrl-C. Use the printed URL as the critic's name (`--reward.name`). For access
    from other machines, set `--host 0.0.0.0` and the same secret in BESTTAKE_TOKEN on server and clients.
    """

    critic: Positional[str]
    """Critic: a name, a file of your own (./my_critic.py), a folder with a config.json, or a judge's .yaml."""
    path: str | None = None
    """Folder or hub id of the critic's weights; by default the published ones."""
    port: int = 8000
    """TCP port; 0 = any free port."""
    host: str = "127.0.0.1"
    """Address to bind to; 0.0.0.0 = all addresses of this machine, which needs a token."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, mps."""
    queue: int = 8
    """Size of the request queue; clients retry while it is full."""
    largest: int = 512
    """Maximum size of a request in MiB."""

    def __post_init__(self):
        require(0 <= self.port < 65536, "port", self.port, "a port up to 65535, or 0 for any free port")
        require(self.queue >= 1, "queue", self.queue, "1 or more")
        require(self.largest >= 1, "largest", self.largest, "MiB, 1 or more")


def serve_critic(config: ServeConfig) -> None:
    """Load and serve, until Ctrl-C or SIGTERM.

    Raises:
        ValueError: there is no such critic or device, or the address is not local and there is no token.
        OSError: the port is in use, the critic cannot be loaded, or it hung on shutdown.
    """
    find_critic(config.critic)
    device = find_device(config.device)
    limits = Limits(queue=config.queue, largest=config.largest << 20)
    if serve(lambda: Served(load_reward(config.critic, device, config.path)), config.host, config.port, limits):
        raise OSError(f"critic {config.critic} could not be loaded, or hung on shutdown: see above")


class Served:
    """A `Reward` with the interface that `server.py` expects: called with lists of uint8 arrays (f, h, w, 3).

    A critic that does not use all frames has a method `chosen(frames, fps)` that returns their indices; given only
    these frames, it must use all of them.

    Attributes:
        revision: besttake's version and a hash of weights and settings: equal revisions give equal scores.
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

"""DPO losses as pure functions of denoising errors.

Notation: l = mean squared error of the network's prediction at time t, one number per clip; w = l_theta - l_ref of the
winner, v of a loser. w < 0: the policy denoises the winner better than the reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from besttake.runtime.configuration import require

Clips = Float[Tensor, "b k c f h w"]
"""Latents of `k` clips of each of `b` prompts: the winner first, then its losers."""


@dataclass(frozen=True)
class Errors:
    """Mean squared prediction errors, float32 (b, k), for the same clips, noise and times.

    `distance` is the mean squared difference between the predictions of policy and reference.
    """

    policy: Float[Tensor, "b k"]
    reference: Float[Tensor, "b k"]
    distance: Float[Tensor, "b k"]


def dpo(errors: Errors, beta: float, dpop_weight: float = 0.0) -> tuple[Float[Tensor, "b"], dict[str, Tensor]]:
    """Diffusion-DPO (Wallace et al. 2023, equation 14) with one or more losers per winner, as in RealDPO.

    L = sum_n -log sigmoid(-beta/2 (w - v_n)): ln 2 per loser while policy and reference are equal. On rectified flow
    the errors are of the velocity and beta is constant, as Flow-DPO (Liu et al. 2025) recommends.

    Losers are summed; RealDPO's public code averages them. The sum is N times the average of N losers, with the same
    beta inside the sigmoid (see docs/realdpo.md).

    With `dpop_weight` > 0, DPO-Positive (Pal et al. 2024): -beta/2 dpop_weight max(0, w) is added to each margin. Under
    plain DPO the winner's error may grow as long as the losers' errors grow faster; the penalty prevents that.

    Returns:
        The loss of each row, and metrics: errors and gains of winners and losers, margin, implicit accuracy, and the
        distance to the reference.
    """
    error_difference = errors.policy - errors.reference
    w, v = error_difference[:, :1], error_difference[:, 1:]
    margin = -beta / 2 * (w - v)
    metrics = {
        "dpo/winner_error": errors.policy[:, 0].mean(),
        "dpo/loser_error": errors.policy[:, 1:].mean(),
        "dpo/winner_gain": -w.mean(),
        "dpo/loser_gain": -v.mean(),
        "dpo/margin": margin.mean(),
        "dpo/implicit_accuracy": (margin > 0).float().mean(),
        "dpo/reference_distance": errors.distance.mean(),
    }
    penalised = margin - beta / 2 * dpop_weight * w.clamp(min=0)
    return -F.logsigmoid(penalised).sum(1), {name: value.detach() for name, value in metrics.items()}


def check_dpo(beta: float, dpop_weight: float, timesteps_per_pair: int) -> None:
    """ValueError for invalid settings of a DPO loss."""
    require(beta > 0, "beta", beta, "a number above 0")
    require(dpop_weight >= 0, "dpop_weight", dpop_weight, "0 or more")
    require(timesteps_per_pair >= 1, "timesteps_per_pair", timesteps_per_pair, "1 or more")

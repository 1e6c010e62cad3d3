"""Frechet distance between two sets of features, as Gaussians with their means and covariances."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def frechet_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """|mean_a - mean_b|^2 + trace(A + B - 2 (A^1/2 B A^1/2)^1/2), in float64.

    A and B are population covariances (divided by n, as in the content-debiased FVD). Small samples bias the distance
    upwards, more so in high dimensions: compare only distances of equal sample sizes.

    Raises:
        ValueError: a set is not (n, d), has fewer than two samples or a non-finite feature, or the sets differ in d.
    """
    for name, features in (("a", a), ("b", b)):
        if features.dim() != 2 or len(features) < 2:
            raise ValueError(f"features {name} are {tuple(features.shape)}, expected (n, d) with 2 samples or more")
        if not features.isfinite().all():
            row = int((~features.isfinite()).any(1).nonzero()[0])
            raise ValueError(f"features {name} are not finite, the first in sample {row}; is a video empty or broken?")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features a have {a.shape[1]} dimensions and b {b.shape[1]}; use features of one critic")
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    covariance_a, covariance_b = torch.cov(a.T, correction=0), torch.cov(b.T, correction=0)
    root = _square_root(covariance_a.reshape(a.shape[1], -1))
    cross = torch.linalg.eigvalsh(root @ covariance_b.reshape(root.shape) @ root).clamp(min=0).sqrt().sum()
    traces = covariance_a.reshape(root.shape).trace() + covariance_b.reshape(root.shape).trace()
    return float((a.mean(0) - b.mean(0)).square().sum() + traces - 2 * cross)


def _square_root(matrix: Tensor) -> Tensor:
    """The square root of a symmetric positive matrix; eigenvalues that are negative by rounding become 0."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T

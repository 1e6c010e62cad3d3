"""Films of test captions, clean or spoilt by one flaw of known severity."""

from copy import deepcopy

import numpy as np
import torch

from besttake.world.captions import sample_caption
from besttake.world.film import make_film, render
from besttake.world.flaws import FLAWS

CAPTIONS = [sample_caption(np.random.default_rng([1, i]), "test") for i in range(24)]
FILMS = [make_film(caption, np.random.default_rng([2, i])) for i, caption in enumerate(CAPTIONS)]
PROMPTS = [str(caption) for caption in CAPTIONS]


def spoilt(flaw: str, severity: float, every: int = 1) -> torch.Tensor:
    """Every so many of the films, each with this flaw; clean for a severity of 0."""
    videos = []
    for i in range(0, len(FILMS), every):
        film, rng = deepcopy(FILMS[i]), np.random.default_rng([3, i])
        if severity:
            FLAWS[flaw](film, severity, rng)
        videos.append(render(film, rng))
    return torch.stack(videos)


CLEAN = spoilt("blur", 0)

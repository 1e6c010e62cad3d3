"""From noise to candidates: the sampling loop, its steps, and caches between them."""

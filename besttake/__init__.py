"""besttake: post-train video diffusion models on preferences."""

__version__ = "0.1.0"

"""Reading and writing video, prompts, real clips and preference pairs."""

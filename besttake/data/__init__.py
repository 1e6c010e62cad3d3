"""Reading and writing of videos, prompts, real clips, samples, votes and preference pairs."""

"""Replicating a recipe on a card: its plan within a budget, downloads, the record of what was done, and the result."""

"""What every algorithm's training loop stands on: the run, its checkpoints, and its validation."""

"""Training: the loop, its clock, evaluation, checkpoints and metrics."""

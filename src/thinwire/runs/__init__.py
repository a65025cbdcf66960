"""What a run keeps: its folder, checkpoints, metrics, clock, evaluation, device and signals."""

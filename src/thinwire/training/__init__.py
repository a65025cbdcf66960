"""Training by workers that hold the whole model: the loop, and how the workers agree."""

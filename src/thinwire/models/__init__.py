"""Model bodies, which turn embedded words into hidden states. No loss, no vocabulary."""

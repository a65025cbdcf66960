"""Model bodies: embedded words in, hidden states out. No loss, no vocabulary, no network."""

"""Losses over the vocabulary: hidden states in, nats out. Each knows the rows it touches first."""

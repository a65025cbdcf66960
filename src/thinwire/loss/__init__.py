"""Losses over the vocabulary, in nats. Each first plans the output rows that it touches."""

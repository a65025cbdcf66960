"""Exchanges turn the gradients of a step into parameters on which all workers agree."""

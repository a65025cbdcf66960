"""Exchanges: how a step's gradients become agreed parameters."""

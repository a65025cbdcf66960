"""Writes a trained model in the formats of other tools: one module per format."""

"""Measures thinwire: `python -m benchmarks --list` names every benchmark."""

"""Campaigns against faults: each is one command, seeded and bounded in time."""

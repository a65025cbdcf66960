"""Campaigns that look for faults: kills, bad input, strangers."""

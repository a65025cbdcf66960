"""Forecasts for each exchange, before a run: bytes sent per step, and seconds per step."""

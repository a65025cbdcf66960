"""Sends bytes between processes: collectives, messages, and stand-ins for tests."""

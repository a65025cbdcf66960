"""How bytes get from one process to another: collectives, messages, and stand-ins for tests."""

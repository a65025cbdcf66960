"""Starts the processes of a run: on this machine, under torchrun, as servers and workers."""

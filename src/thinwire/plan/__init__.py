"""A forecast before the run: what each exchange would send, and how long a step would take."""

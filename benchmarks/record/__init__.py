"""What the benchmarks have found, and how it is written down."""

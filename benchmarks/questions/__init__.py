"""One script for each question that the record answers."""

"""The wire: numbers and ids as bytes of known size. Pure: nothing here talks to anyone."""

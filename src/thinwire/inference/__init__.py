"""What trained models are for: scoring text and writing it."""

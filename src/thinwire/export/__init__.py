"""A trained model in other people's formats: one file a format."""

"""Encodes numbers, ids and messages as bytes of known size. Nothing here sends anything."""

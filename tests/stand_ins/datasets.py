"""As much of Hugging Face datasets as the documentation calls."""

from __future__ import annotations


def load_dataset(*_: str, split: str, streaming: bool = False) -> list[dict[str, str]]:
    return [{"text": f"The cat sees {number % 9} dogs.\nIt runs."} for number in range(400)]

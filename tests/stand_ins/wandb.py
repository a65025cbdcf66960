"""As much of wandb as the documentation calls; it keeps what was logged."""

from __future__ import annotations

from typing import Any

logged: list[dict[str, Any]] = []


class Run:
    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        assert any("ppl" in line for line in logged), "nothing was measured"

    def log(self, data: dict[str, Any], step: int | None = None) -> None:
        logged.append(data)


def init(**_: Any) -> Run:
    return Run()

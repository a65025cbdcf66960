"""Windows of a body without a state: what a token costs, and that no state is changed in place."""

from __future__ import annotations

import pytest
import torch

from thinwire.inference.decoding import select, stack
from thinwire.models.transformer import Transformer

LENGTH = 12  # of the windows in `trained`


def test_a_token_costs_one_position_and_half_a_window_at_its_end(
    trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(kind="transformer")
    computed: list[int] = []
    forward_with_cache = Transformer.forward_with_cache

    def counted(self, x_BTE, past, first_B1):
        computed.append(x_BTE.shape[1])
        return forward_with_cache(self, x_BTE, past, first_B1)

    monkeypatch.setattr(Transformer, "forward_with_cache", counted)
    monkeypatch.setattr(Transformer, "forward", None)  # the parallel form is not used
    state = model.start()
    for _ in range(2 * LENGTH):
        state = model.advance(state, "dog")
    again = LENGTH // 2 + 1  # what stays of a full window, and the new token
    at_first = [1] * LENGTH
    moved = [again, *[1] * (LENGTH // 2 - 1)]
    assert computed == [*at_first, *moved, *moved, again]


def test_rows_whose_windows_move_at_different_times(trained) -> None:
    model = trained(kind="transformer")
    prompts = ["", "The cat", "The dog sees the cat", "dog " * 11, "dog " * 10]
    together = model.start(prompts)
    alone = [model.start(prompt) for prompt in prompts]
    for word in ["the", "cat", "sees", "</s>", "The", "bird"] * 3:
        kept = [part.clone() for part in together]
        after = model.advance(together, [word] * len(prompts))
        assert all(torch.equal(part, copy) for part, copy in zip(together, kept, strict=True))
        together, alone = after, [model.advance(state, word) for state in alone]
        expected = torch.cat([model.distribution(state) for state in alone])
        torch.testing.assert_close(model.distribution(together), expected, atol=1e-5, rtol=1e-5)
    both = stack([select(together, [3]), select(together, [0])])
    torch.testing.assert_close(model.distribution(both), expected[[3, 0]], atol=1e-5, rtol=1e-5)


def test_many_prompts_are_read_without_their_windows(trained, monkeypatch) -> None:
    model = trained(kind="transformer")
    monkeypatch.setattr(Transformer, "forward_with_cache", None)
    assert len(model.next(["The cat", "The"] * 3, 2)) == 6

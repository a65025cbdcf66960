from __future__ import annotations

import pytest
import torch

from .conftest import Trained
from .stand_ins import BatchScorerInterface, adapter


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_a_search_sees_the_exact_distributions(
    trained: Trained, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    espnet = adapter(
        monkeypatch, "espnet", "espnet.nets.scorer_interface",
        BatchScorerInterface=BatchScorerInterface,
    )  # fmt: skip
    model = trained(kind=kind)
    scorer = espnet.Scorer(model)
    eos_id = model.tokenizer.eos_id
    ys_BT = torch.tensor([[eos_id, 5, 7, 3], [eos_id, 2, 2, 9]])
    states = [scorer.init_state(None)] * 2
    single = scorer.init_state(None)
    for length in range(1, 5):
        prefix_BT = ys_BT[:, :length]
        hidden_BTD, _ = model.model.hidden(prefix_BT, None)
        expected_BV = model.model.output.distribution(hidden_BTD[:, -1])
        found_BV, states = scorer.batch_score(prefix_BT, states, None)
        torch.testing.assert_close(found_BV, expected_BV, atol=1e-5, rtol=1e-5)
        found_V, single = scorer.score(prefix_BT[0], single, None)
        torch.testing.assert_close(found_V, expected_BV[0], atol=1e-5, rtol=1e-5)
    # A prefix that is new, beside one that is not.
    found_BV, _ = scorer.batch_score(ys_BT, [None, None], None)
    torch.testing.assert_close(found_BV, expected_BV, atol=1e-5, rtol=1e-5)

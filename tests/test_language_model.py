"""What a step touches is all that it needs: its gradients are those of the dense model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from thinwire.data.batches import Batch
from thinwire.errors import UserError
from thinwire.language_model import EMBEDDING, NGRAMS, LanguageModel, Task
from thinwire.loss.config import LossConfig
from thinwire.matmul import ONEDNN_KNOWS_BF16
from thinwire.models.config import ModelConfig
from thinwire.models.contract import State, reset_streams
from thinwire.models.dropout import DropoutMasks
from thinwire.models.ngrams import sum_rows

torch.set_num_threads(1)

V, D = 40, 8
COUNTS = torch.arange(2 * V, V, -1) ** 2
PAD = -1


def language_model(
    *,
    loss: str = "sampled",
    samples: int = 6,
    width: int = D,
    in_bf16: bool = False,
    **model: Any,
) -> LanguageModel:
    made = LanguageModel(
        ModelConfig(width=width, heads=2, layers=2, **model),
        LossConfig(kind=loss, samples=samples),  # type: ignore[arg-type]
        COUNTS,
        seed=3,
        in_bf16=in_bf16,
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():  # away from the start, where much is zero
        torch.nn.init.normal_(parameter, 0.0, 0.4, generator=generator)
    return made


def batch_of(inputs: list[list[int]], targets: list[list[int]], fresh: Any = None) -> Batch:
    targets_BT = torch.tensor(targets)
    return Batch(
        torch.tensor(inputs),
        targets_BT,
        None if fresh is None else torch.tensor(fresh),
        int((targets_BT >= 0).sum()),
    )


BATCHES = {
    "plain": batch_of([[1, 5, 7, 5], [2, 2, 39, 0]], [[5, 7, 5, 1], [2, 39, 0, 3]]),
    "padded": batch_of([[1, 5, 7, 5], [2, 2, 0, 0]], [[5, 7, 5, 1], [2, 3, PAD, PAD]]),
    "one row": batch_of([[9, 9, 9]], [[9, 9, 9]]),
    "one token": batch_of([[38]], [[37]]),
    "one target": batch_of([[1, 5], [7, 2]], [[PAD, PAD], [PAD, 39]]),
    "no target": batch_of([[1, 5], [7, 2]], [[PAD, PAD], [PAD, PAD]]),
}


def fetch(model: LanguageModel, task: Task) -> dict[str, Tensor]:
    tables = model.tables()
    return {
        name: (tables[name].detach() if ids is None else tables[name].detach()[ids])
        .clone()
        .requires_grad_()
        for name, ids in task.touched.rows.items()
    }


def through_rows(
    model: LanguageModel, batch: Batch, step: int = 0, state: State | None = None
) -> tuple[Tensor, dict[str, Tensor], Task]:
    """The loss, and the dense gradient of every parameter that the touched rows amount to."""
    task = model.touch(batch, step)
    rows = fetch(model, task)
    model.zero_grad()
    value, _ = model.loss(task, rows, state, None)
    value.backward()
    gradients = {n: _zeros_if_none(p.grad, p) for n, p in model.blocks().items()}
    for name, table in model.tables().items():
        dense = torch.zeros_like(table)
        ids = task.touched.rows[name]
        gradient = _zeros_if_none(rows[name].grad, rows[name])
        if ids is None:
            dense += gradient
        else:
            dense[ids] += gradient
        gradients[name] = dense
    return value.detach(), gradients, task


def densely(
    model: LanguageModel, batch: Batch, task: Task, state: State | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The same from the whole tables, by PyTorch's own functions."""
    parameters = {**model.tables(), **model.blocks()}
    model.zero_grad()
    embedding_VE = parameters[EMBEDDING]
    if state is not None and batch.fresh_B is not None:
        state = reset_streams(state, batch.fresh_B)
    more_BTE = None
    if model.ngrams is not None:
        found = model.ngrams.rows(_tokens(batch), batch.inputs_BT.shape[1])
        more_BTE = sum_rows(model.ngrams.weight, *found)
    x_BTE = model.body.embed(embedding_VE, batch.inputs_BT, more_BTE)
    hidden_BTD, _ = model.body(x_BTE, state, None)
    at = batch.targets_BT >= 0
    hidden_ND, targets_N = hidden_BTD[at], batch.targets_BT[at]
    weight_VD = embedding_VE if model.tied else parameters["output.weight"]
    logits_NV = F.linear(hidden_ND, weight_VD, parameters["output.bias"])
    log_q = task.plan.log_inclusion_S
    if log_q is not None:
        assert task.plan.ids_R is not None
        drawn_S = task.plan.ids_R[: len(log_q)]
        others_NS = (logits_NV[:, drawn_S] - log_q).masked_fill(
            targets_N[:, None] == drawn_S, -torch.inf
        )
        target_N1 = logits_NV.gather(1, targets_N[:, None])
        logits_NV = torch.cat([target_N1, others_NS], dim=1)
        targets_N = torch.zeros_like(targets_N)
    value = F.cross_entropy(logits_NV, targets_N, reduction="sum")
    if len(targets_N):
        value.backward()
    return value.detach(), {n: _zeros_if_none(p.grad, p) for n, p in parameters.items()}


def _tokens(batch: Batch) -> Tensor:
    if batch.before_BP is None:
        return batch.inputs_BT + 1
    return torch.cat([batch.before_BP, batch.inputs_BT], dim=1) + 1


def _zeros_if_none(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(
            gradient, expected[name], msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("kind", ["lstm", "transformer", "causal_conv"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("loss", ["sampled", "full"])
def test_touched_rows_are_all_that_a_step_needs(
    name: str, kind: str, tied: bool, loss: str
) -> None:
    model, batch = language_model(kind=kind, tied=tied, loss=loss), BATCHES[name]
    for step in range(3):
        value, gradients, task = through_rows(model, batch, step)
        expected, dense = densely(model, batch, task)
        torch.testing.assert_close(value, expected)
        close(gradients, dense)
        for table, ids in task.touched.rows.items():
            if ids is not None:
                assert len(ids.unique()) == len(ids)
                others = torch.ones(V, dtype=torch.bool)
                others[ids] = False
                assert not dense[table][others].any()


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("kind", ["lstm", "transformer", "causal_conv"])
def test_rows_of_n_grams_are_touched_too(name: str, kind: str) -> None:
    model = language_model(kind=kind, ngrams=3, ngram_rows=11, embedding_width=4)
    value, gradients, task = through_rows(model, BATCHES[name])
    expected, dense = densely(model, BATCHES[name], task)
    torch.testing.assert_close(value, expected)
    close(gradients, dense)
    ids, T = task.touched.rows[NGRAMS], BATCHES[name].inputs_BT.shape[1]
    assert ids is not None and ids.tolist() == sorted(set(ids.tolist()))
    assert model.ngrams is not None
    if T > 1 and name != "no target":
        assert gradients[NGRAMS].any()
        without = language_model(kind=kind, embedding_width=4)
        without.load_state_dict(model.state_dict(), strict=False)
        assert float(value) != pytest.approx(float(through_rows(without, BATCHES[name])[0]))


@pytest.mark.parametrize("kind", ["lstm", "transformer", "causal_conv"])
def test_n_grams_reach_back_as_far_as_the_state(kind: str) -> None:
    """What a batch is told of the tokens before it, and what the state keeps of them, agree."""
    model = language_model(kind=kind, ngrams=4, ngram_rows=300)
    carries = model.body.carries_state
    assert model.num_before == (3 if carries else 0)
    ids_BT = torch.randint(0, V, (2, 9), generator=torch.Generator().manual_seed(5))
    whole_BTD, _ = model.hidden(ids_BT, None)
    state, found = None, []
    for id_B1 in ids_BT.split(1, dim=1):
        hidden_B1D, after = model.hidden(id_B1, state)
        state = after if carries else None
        found.append(hidden_B1D)
    same = torch.allclose(torch.cat(found, dim=1), whole_BTD, atol=1e-5)
    assert same == carries

    batch = Batch(ids_BT[:, 4:], ids_BT[:, 4:], None, 10, ids_BT[:, 1:4] if carries else None)
    task = model.touch(batch, 0)
    before = model.hidden(ids_BT[:, :4], None)[1] if carries else None
    hidden_BTD, _ = model.hidden(ids_BT[:, 4:], before)
    expected = model.output.loss(
        hidden_BTD.flatten(0, 1),
        task.plan,
        {n: model.by_name()[f"output.{n}"][task.plan.ids_R] for n in ("weight", "bias")},
    )
    value, _ = model.loss(task, fetch(model, task), before and before[1:], None)
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("kind", ["lstm", "causal_conv"])
def test_a_state_set_back_has_no_n_grams(kind: str) -> None:
    model = language_model(kind=kind, ngrams=3, ngram_rows=300)
    ids_BT = BATCHES["plain"].inputs_BT
    _, state = model.hidden(ids_BT, None)
    assert state[0].dtype == torch.int64
    again, _ = model.hidden(ids_BT, reset_streams(state, torch.tensor([True, False])))
    afresh, _ = model.hidden(ids_BT, None)
    carried, _ = model.hidden(ids_BT, state)
    torch.testing.assert_close(again[0], afresh[0])
    torch.testing.assert_close(again[1], carried[1])


def test_an_untrained_table_of_n_grams_changes_nothing() -> None:
    with_them, without = (
        LanguageModel(ModelConfig(width=D, ngrams=ngrams), LossConfig(), COUNTS, seed=1)
        for ngrams in (3, 1)
    )
    assert without.ngrams is None
    ids_BT = BATCHES["plain"].inputs_BT
    assert torch.equal(with_them.hidden(ids_BT, None)[0], without.hidden(ids_BT, None)[0])


@pytest.mark.parametrize("kind", ["lstm", "transformer", "causal_conv"])
def test_embeddings_narrower_than_the_model(kind: str) -> None:
    model = language_model(kind=kind, embedding_width=3)
    assert [list(t.shape) for t in model.tables().values()] == [[V, 3], [V, D], [V]]
    value, gradients, task = through_rows(model, BATCHES["plain"])
    expected, dense = densely(model, BATCHES["plain"], task)
    torch.testing.assert_close(value, expected)
    close(gradients, dense)


def test_what_a_batch_touches_is_no_more_than_it_names() -> None:
    model = language_model()
    for step in range(5):
        task = model.touch(BATCHES["one row"], step)
        assert _ids(task, EMBEDDING) == [9]
        drawn = model.output.plan(torch.tensor([9]), step).ids_R
        assert drawn is not None and 9 in drawn
        assert set(_ids(task, "output.weight")) == set(drawn.tolist())
        assert _ids(task, "output.bias") == _ids(task, "output.weight")


def test_a_tied_table_is_touched_once_for_both_uses() -> None:
    model = language_model(tied=True)
    task = model.touch(BATCHES["plain"], step=0)
    drawn = model.output.plan(BATCHES["plain"].targets_BT.view(-1), step=0).ids_R
    assert drawn is not None
    inputs = BATCHES["plain"].inputs_BT.unique().tolist()
    assert "output.weight" not in task.touched.rows
    assert _ids(task, EMBEDDING) == sorted({*inputs, *drawn.tolist()})
    assert _ids(task, "output.bias") == drawn.tolist()


def test_the_full_loss_touches_every_output_row() -> None:
    rows = language_model(loss="full").touch(BATCHES["one row"], 0).touched.rows
    assert rows["output.weight"] is None and rows["output.bias"] is None
    assert rows[EMBEDDING] is not None and rows[EMBEDDING].tolist() == [9]
    assert language_model(loss="full", tied=True).touch(BATCHES["one row"], 0).touched.rows == {
        EMBEDDING: None,
        "output.bias": None,
    }


def _ids(task: Task, name: str) -> list[int]:
    ids = task.touched.rows[name]
    assert ids is not None
    found: list[int] = ids.tolist()
    return found


def test_the_adaptive_loss_touches_embedding_rows_alone() -> None:
    wide = ModelConfig(width=64)
    model = LanguageModel(wide, LossConfig(kind="adaptive"), COUNTS, seed=0)
    assert model.touch(BATCHES["plain"], 0).touched.rows.keys() == {EMBEDDING}
    assert model.tables().keys() == {EMBEDDING}
    assert "output.softmax.head.weight" in model.blocks()
    value, gradients, _ = through_rows(model, BATCHES["padded"])
    hidden_BTD, _ = model.hidden(BATCHES["padded"].inputs_BT, None)
    at = BATCHES["padded"].targets_BT >= 0
    logprob_N = model.output.logprob(hidden_BTD[at], BATCHES["padded"].targets_BT[at])
    torch.testing.assert_close(value, -logprob_N.sum())
    assert gradients[EMBEDDING][5].any() and not gradients[EMBEDDING][6].any()


def test_steps_draw_anew() -> None:
    model = language_model()
    drawn = [tuple(_ids(model.touch(BATCHES["plain"], step), "output.bias")) for step in range(6)]
    assert len(set(drawn)) > 1
    assert drawn[2] == tuple(_ids(language_model().touch(BATCHES["plain"], 2), "output.bias"))


def test_state_carries_over_and_restarts_where_streams_are_fresh() -> None:
    model = language_model(loss="full")
    first, second = BATCHES["plain"], batch_of([[3, 4], [5, 6]], [[4, 5], [6, 7]], [False, True])
    task = model.touch(first, 0)
    _, state = model.loss(task, fetch(model, task), None, None)
    assert state and all(not s.requires_grad for s in state)
    value, gradients, task = through_rows(model, second, 1, state)
    expected, dense = densely(model, second, task, state)
    torch.testing.assert_close(value, expected)
    close(gradients, dense)

    def alone(stream: int, state: State | None) -> Tensor:
        rows = slice(stream, stream + 1)
        part = Batch(second.inputs_BT[rows], second.targets_BT[rows], None, 2)
        return through_rows(model, part, 1, state)[0]

    going_on = alone(0, tuple(s[:1] for s in state))
    torch.testing.assert_close(value, going_on + alone(1, None))
    assert abs(float(going_on - alone(0, None))) > 1e-3


def test_dropout_acts_in_training_and_not_in_evaluation() -> None:
    model, batch = language_model(loss="full", dropout=0.5), BATCHES["plain"]

    def loss(dropout: DropoutMasks | None) -> float:
        task = model.touch(batch, 0)
        value, _ = model.loss(task, fetch(model, task), None, dropout)
        return float(value.detach())

    assert loss(DropoutMasks(0.5, 0, 0, 0, 2)) == loss(DropoutMasks(0.5, 0, 0, 0, 2)) != loss(None)
    hidden_BTD, _ = model.hidden(batch.inputs_BT, None)
    logprob_N = model.output.logprob(hidden_BTD.reshape(-1, D), batch.targets_BT.view(-1))
    assert loss(None) == pytest.approx(-float(logprob_N.sum()), rel=1e-5)


@pytest.mark.parametrize("kind", ["lstm", "transformer", "causal_conv"])
@pytest.mark.parametrize("loss", ["sampled", "full", "nce"])
def test_untrained_it_predicts_the_unigram(kind: str, loss: str) -> None:
    model = LanguageModel(
        ModelConfig(kind=kind, width=D, heads=2),  # type: ignore[arg-type]
        LossConfig(kind=loss),  # type: ignore[arg-type]
        COUNTS,
        seed=0,
    )
    hidden_BTD, _ = model.hidden(BATCHES["plain"].inputs_BT, None)
    found = model.output.distribution(hidden_BTD.reshape(-1, D)).exp()
    torch.testing.assert_close(found, (COUNTS / COUNTS.sum()).expand_as(found))


@pytest.mark.parametrize("loss", ["sampled", "full", "nce", "adaptive"])
def test_parameters_follow_from_the_seed_alone(loss: str) -> None:
    def made(seed: int) -> list[Tensor]:
        torch.seed()
        model = LanguageModel(ModelConfig(width=64), LossConfig(kind=loss), COUNTS, seed)  # type: ignore[arg-type]
        return list(model.parameters())

    assert all(torch.equal(a, b) for a, b in zip(made(1), made(1), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(made(1), made(2), strict=True))


def test_every_parameter_is_a_table_or_a_block_once() -> None:
    for tied in (False, True):
        model = language_model(tied=tied)
        named = [*model.tables().values(), *model.blocks().values()]
        assert {id(p) for p in named} == {id(p) for p in model.parameters()}
        assert len(named) == len({id(p) for p in named})


def test_adaptive_needs_a_vocabulary_to_cut() -> None:
    with pytest.raises(UserError, match="only 1 entries"):
        LanguageModel(ModelConfig(width=64), LossConfig(kind="adaptive"), COUNTS[:1], seed=0)


# Products of bf16 factors


@pytest.mark.parametrize("loss", ["sampled", "full", "nce", "adaptive"])
@pytest.mark.parametrize("kind", ["lstm", "transformer", "causal_conv"])
def test_a_step_in_bf16_is_near_that_in_fp32(kind: str, loss: str) -> None:
    """A factor is off by at most 2^-9 of itself; a few such roundings follow each other."""
    steps, batch = [], BATCHES["plain"]
    for in_bf16 in (False, True):
        model = language_model(kind=kind, loss=loss, width=64, in_bf16=in_bf16)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= 0.25  # 0.4 saturates every gate at this width
        task = model.touch(batch, 0)
        rows = fetch(model, task)
        _, state = model.loss(task, rows, None, None)
        value, state = model.loss(task, rows, state, None)
        value.backward()
        found = [*rows.values(), *model.blocks().values()]
        gradients = [parameter.grad for parameter in found if parameter.grad is not None]
        assert {t.dtype for t in (value, *state, *gradients)} == {torch.float32}
        steps.append((value.detach(), gradients, model))
    (value, gradients, model), (value_bf16, gradients_bf16, model_bf16) = steps
    # Adaptive softmax stays in fp32; so does the LSTM where the processor cannot round it.
    rounds = ONEDNN_KNOWS_BF16 or (kind, loss) != ("lstm", "adaptive")
    assert torch.equal(gradients[0], gradients_bf16[0]) != rounds
    torch.testing.assert_close(value_bf16, value, rtol=5e-3, atol=0.0)
    for gradient, gradient_bf16 in zip(gradients, gradients_bf16, strict=True):
        assert (gradient_bf16 - gradient).norm() <= 0.05 * gradient.norm() + 1e-6
    # Evaluation knows nothing of it.
    hidden = [m.hidden(batch.inputs_BT, None)[0] for m in (model, model_bf16)]
    assert torch.equal(*hidden)
    hidden_ND, targets_N = hidden[0].flatten(0, 1), batch.targets_BT.flatten()
    logprob = [m.output.logprob(hidden_ND, targets_N) for m in (model, model_bf16)]
    assert torch.equal(*logprob)


@pytest.mark.parametrize("loss", ["sampled", "full", "nce"])
def test_large_logits_in_bf16_stay_finite(loss: str) -> None:
    values = []
    for in_bf16 in (False, True):
        model = language_model(kind="transformer", loss=loss, width=64, in_bf16=in_bf16)
        with torch.no_grad():
            for table in model.output.tables().values():
                table *= 300.0
        task = model.touch(BATCHES["plain"], 0)
        rows = fetch(model, task)
        value, _ = model.loss(task, rows, None, None)
        value.backward()
        gradients = [leaf.grad for leaf in rows.values() if leaf.grad is not None]
        assert gradients and all(bool(gradient.isfinite().all()) for gradient in gradients)
        values.append(value.detach())
    assert values[0] > 20 * BATCHES["plain"].num_targets  # nats a token: the logits are large
    torch.testing.assert_close(values[1], values[0], rtol=0.02, atol=0.0)

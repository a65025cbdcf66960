from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thinwire.data.batches import NO_TARGET, NO_TOKEN, Batch, Batches
from thinwire.data.config import DataConfig
from thinwire.errors import UserError

EOS = 0


def epoch_of(batches: Batches) -> list[Batch]:
    return list(islice(batches, batches.steps_per_epoch))


def same(one: Batch, other: Batch) -> bool:
    return (
        torch.equal(one.inputs_BT, other.inputs_BT)
        and torch.equal(one.targets_BT, other.targets_BT)
        and (one.fresh_B is None) == (other.fresh_B is None)
        and (one.fresh_B is None or torch.equal(one.fresh_B, other.fresh_B))
        and one.num_targets == other.num_targets
        and (one.before_BP is None) == (other.before_BP is None)
        and (one.before_BP is None or torch.equal(one.before_BP, other.before_BP))
    )


def numbered_text(num_tokens: int) -> np.ndarray:
    """Every token another one, so that it can be told where it went."""
    return np.arange(1, num_tokens + 1, dtype=np.uint16)


def numbered_lines(lengths: list[int]) -> tuple[np.ndarray, list[list[int]]]:
    """Lines of these many tokens and an end-of-line; every token another one."""
    tokens = iter(range(1, sum(lengths) + 1))
    lines = [[*islice(tokens, length), EOS] for length in lengths]
    return np.array([token for line in lines for token in line], dtype=np.uint16), lines


@given(
    num_tokens=st.integers(1, 400),
    batch=st.integers(1, 5),
    length=st.integers(1, 9),
    seed=st.integers(0, 5),
)
def test_text_streams_run_through_the_text(
    num_tokens: int, batch: int, length: int, seed: int
) -> None:
    ids = numbered_text(num_tokens)
    config = DataConfig(batch=batch, length=length)
    if num_tokens // batch < length:
        with pytest.raises(UserError, match=f"{num_tokens:,} tokens.*{batch * length:,}"):
            Batches(ids, config, seed=seed, eos_id=EOS)
        return
    batches = Batches(ids, config, seed=seed, eos_id=EOS)
    for _ in range(2):
        epoch = epoch_of(batches)
        streams = torch.cat([step.targets_BT for step in epoch], dim=1)
        inputs = torch.cat([step.inputs_BT for step in epoch], dim=1)
        assert len(torch.unique(streams)) == streams.numel()  # no token twice
        assert num_tokens - streams.numel() < batch * length + num_tokens // batch
        assert (streams[:, 1:] - streams[:, :-1]).remainder(num_tokens).eq(1 % num_tokens).all()
        assert torch.equal(inputs[:, 1:], streams[:, :-1])
        assert inputs[:, 0].eq(EOS).all()
        assert epoch[0].fresh_B is not None and epoch[0].fresh_B.all()
        assert all(step.fresh_B is None for step in epoch[1:])
        assert all(step.num_targets == batch * length for step in epoch)


def test_every_epoch_begins_elsewhere() -> None:
    batches = Batches(numbered_text(997), DataConfig(batch=2, length=7), seed=1, eos_id=EOS)
    firsts = {int(epoch_of(batches)[0].targets_BT[0, 0]) for _ in range(4)}
    assert len(firsts) == 4
    assert batches.epoch == 4.0


@given(
    lengths=st.lists(st.integers(0, 30), min_size=6, max_size=60),
    batch=st.integers(1, 6),
    length=st.integers(1, 9),
    seed=st.integers(0, 5),
)
def test_lines_are_all_read_each_for_itself(
    lengths: list[int], batch: int, length: int, seed: int
) -> None:
    ids, lines = numbered_lines(lengths)
    config = DataConfig(batch=batch, length=length, context="line")
    batches = Batches(ids, config, seed=seed, eos_id=EOS)
    for _ in range(2):
        streams: list[list[list[int]]] = [[] for _ in range(batch)]  # the lines of each stream
        for step in epoch_of(batches):
            assert step.fresh_B is not None
            assert 1 <= step.inputs_BT.shape[1] <= length
            assert step.num_targets == int((step.targets_BT != NO_TARGET).sum()) > 0
            rows = zip(step.inputs_BT, step.targets_BT, step.fresh_B, streams, strict=True)
            for inputs, targets, fresh, stream in rows:
                known = targets[targets != NO_TARGET].tolist()
                assert (targets[len(known) :] == NO_TARGET).all()
                assert (inputs[len(known) :] == EOS).all()
                if not known:
                    continue
                if fresh:
                    stream.append([])
                expected = [EOS, *stream[-1], *known][len(stream[-1]) :][: len(known)]
                assert inputs[: len(known)].tolist() == expected
                stream[-1] += known
        read = sorted(line for stream in streams for line in stream)
        assert read == sorted(lines)


def test_lines_of_like_length_are_read_together() -> None:
    rng = np.random.default_rng(0)
    lengths = np.concatenate((rng.integers(1, 12, 3000), rng.integers(100, 120, 300)))
    ids, _ = numbered_lines(rng.permutation(lengths).tolist())
    batches = Batches(ids, DataConfig(batch=8, length=20, context="line"), seed=0, eos_id=EOS)
    epoch = epoch_of(batches)
    places = sum(step.targets_BT.numel() for step in epoch)
    assert sum(step.num_targets for step in epoch) / places > 0.8


def test_a_giant_line_does_not_hold_up_the_others() -> None:
    ids, _ = numbered_lines([1000, *[9] * 4000])
    batches = Batches(ids, DataConfig(batch=4, length=10, context="line"), seed=0, eos_id=EOS)
    assert batches.steps_per_epoch < 1200  # 4100 windows on 4 streams


def test_lines_come_in_another_order_each_epoch() -> None:
    ids, _ = numbered_lines([5] * 100)
    batches = Batches(ids, DataConfig(batch=4, length=6, context="line"), seed=3, eos_id=EOS)
    first, second = ([step.targets_BT.tolist() for step in epoch_of(batches)] for _ in range(2))
    assert first != second


@pytest.mark.parametrize("context", ["text", "line"])
@pytest.mark.parametrize("num_workers", [2, 3, 6])
def test_many_workers_read_what_one_reads(context: str, num_workers: int) -> None:
    ids, _ = numbered_lines([length % 23 for length in range(200)])

    def batches(worker: int, num_workers: int) -> Batches:
        config = DataConfig(batch=6 // num_workers, length=7, context=context)
        which = {"worker": worker, "num_workers": num_workers, "num_before": 2}
        return Batches(ids, config, seed=5, eos_id=EOS, **which)

    together = batches(0, 1)
    apart = [batches(worker, num_workers) for worker in range(num_workers)]
    for _ in range(together.steps_per_epoch + 3):
        whole, parts = next(together), [next(worker) for worker in apart]
        assert torch.equal(torch.cat([part.inputs_BT for part in parts]), whole.inputs_BT)
        assert torch.equal(torch.cat([part.targets_BT for part in parts]), whole.targets_BT)
        assert torch.equal(torch.cat([part.before_BP for part in parts]), whole.before_BP)
        assert {part.num_targets for part in parts} == {whole.num_targets}
        if whole.fresh_B is None:
            assert all(part.fresh_B is None for part in parts)
        else:
            assert torch.equal(torch.cat([part.fresh_B for part in parts]), whole.fresh_B)


@pytest.mark.parametrize("context", ["text", "line"])
@pytest.mark.parametrize("length", [1, 2, 7])
@pytest.mark.parametrize("num_before", [1, 3, 9])
def test_tells_what_each_stream_has_read_before(context: str, length: int, num_before: int) -> None:
    """Since it last started afresh, as a state that is carried knows it; over two epochs."""
    ids, _ = numbered_lines([length % 23 for length in range(60)])
    config = DataConfig(batch=4, length=length, context=context)
    batches = Batches(ids, config, seed=5, eos_id=EOS, num_before=num_before)
    plain = Batches(ids, config, seed=5, eos_id=EOS)
    read: list[list[int]] = [[] for _ in range(4)]
    while batches.epoch < 2:
        batch, without = next(batches), next(plain)
        assert without.before_BP is None
        assert same(replace(batch, before_BP=None), without)
        for b, inputs in enumerate(batch.inputs_BT.tolist()):
            if batch.fresh_B is not None and batch.fresh_B[b]:
                read[b] = []
            if batch.targets_BT[b, 0] != NO_TARGET:
                known = [*[NO_TOKEN] * num_before, *read[b]][-num_before:]
                assert batch.before_BP is not None
                assert batch.before_BP[b].tolist() == known
            read[b] += inputs


@pytest.mark.parametrize("context", ["text", "line"])
@pytest.mark.parametrize("after", [0, 1, 5, "end", 40])
def test_resumes_to_the_bit(context: str, after: int | str) -> None:
    ids, _ = numbered_lines([length % 11 for length in range(60)])
    config = DataConfig(batch=3, length=5, context=context)
    straight = Batches(ids, config, seed=2, eos_id=EOS, num_before=3)
    for _ in range(straight.steps_per_epoch if after == "end" else int(after)):
        next(straight)
    state = json.loads(json.dumps(straight.state_dict()))
    resumed = Batches(ids, config, seed=2, eos_id=EOS, num_before=3)
    assert resumed.load_state_dict(state)
    assert resumed.epoch == straight.epoch
    assert all(same(next(straight), next(resumed)) for _ in range(50))


def test_refuses_a_state_of_another_length() -> None:
    ids = numbered_text(500)
    saved = Batches(ids, DataConfig(batch=4, length=5), seed=0, eos_id=EOS).state_dict()
    with pytest.raises(UserError, match=r"had 5 as data\.length, and this one has 6"):
        Batches(ids, DataConfig(batch=4, length=6), seed=0, eos_id=EOS).load_state_dict(saved)


@pytest.mark.parametrize("context", ["text", "line"])
@pytest.mark.parametrize("sizes", [(2, 3), (3, 1), (1, 4)], ids=str)
@pytest.mark.parametrize("part", [0.0, 0.3, 0.97])
def test_other_workers_go_on_at_the_same_part_of_the_epoch(
    context: str, sizes: tuple[int, int], part: float
) -> None:
    """The streams are others, which is said; all of them go on, and at the same place."""
    ids, _ = numbered_lines([length % 11 for length in range(400)])
    config = DataConfig(batch=3, length=5, context=context)

    def batches(worker: int, num_workers: int) -> Batches:
        return Batches(ids, config, seed=2, eos_id=EOS, worker=worker, num_workers=num_workers)

    before, after = sizes
    saved = batches(before - 1, before)
    while saved.epoch < 1 + part:
        next(saved)
    resumed = [batches(worker, after) for worker in range(after)]
    for worker in resumed:
        assert not worker.load_state_dict(saved.state_dict())
        steps = min(saved.steps_per_epoch, worker.steps_per_epoch)
        assert int(worker.epoch) == 1 and abs(worker.epoch - saved.epoch) <= 2 / steps
        assert worker.epoch == resumed[0].epoch
    # It is what such workers would have read there.
    straight = [batches(worker, after) for worker in range(after)]
    for worker, other in zip(resumed, straight, strict=True):
        while other.epoch < worker.epoch:
            next(other)
        assert all(same(next(worker), next(other)) for _ in range(20))


def test_refuses_too_few_lines() -> None:
    ids, _ = numbered_lines([3, 3, 3])
    with pytest.raises(UserError, match="3 lines, too few for one step of 4 sequences"):
        Batches(ids, DataConfig(batch=4, context="line"), seed=0, eos_id=EOS)


def test_a_text_may_end_without_an_end_of_line() -> None:
    ids = np.array([1, 2, EOS, 3, 4], dtype=np.uint8)
    config = DataConfig(batch=2, length=5, context="line")
    (step,) = epoch_of(Batches(ids, config, seed=0, eos_id=EOS))
    assert sorted(step.targets_BT.tolist()) == [[1, 2, EOS], [3, 4, NO_TARGET]]

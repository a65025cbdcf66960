"""The forecast counts what runs really send, and its arithmetic is what its docstring says."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
import torch

from thinwire.cli.app import main
from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.errors import UserError
from thinwire.language_model import LanguageModel
from thinwire.optim.config import OptimConfig
from thinwire.plan.forecast import (
    Link,
    async_seconds,
    periodic_seconds,
    queueing_seconds,
    sync_seconds,
)
from thinwire.plan.machine import Machine, _enough, parse_rate
from thinwire.plan.plan import make_plan
from thinwire.plan.traffic import Sent, TrafficCounter
from thinwire.runs.metrics import read_metrics
from thinwire.touched import Touched
from thinwire.training.loop import train
from thinwire.transport.c10d import loopback_group
from thinwire.transport.in_process import in_process_group

from ..parameter_server.together import together as served

CODING = {"fp32": 1e-9, "bf16": 1e-9, "int8": 1e-9, "int4": 1e-9}
EXCHANGING = {"fp32": 2e-9, "bf16": 2e-9, "int8": 4e-9, "int4": 4e-9}
SMALL = ("--workers", "2", "--model.width", "16", "--data.batch", "4", "--threads", "1")
MACHINE = Machine(
    0.01, 0.02, 0.03, 0.004, 1e-6, 1e-4, EXCHANGING, CODING, 3e-9, 7e-9, 4000.0, 1000.0
)


def settings(ngrams: int = 0, **exchange: object) -> RunConfig:
    return RunConfig.from_dict(
        {
            "run": {"tokens": 20 * 2 * 4 * 35, "threads": 1, "workers": 2},
            "model": {"width": 16, "ngrams": ngrams, "ngram_rows": 5000},
            "loss": {"samples": 50},
            "data": {"batch": 4},
            "exchange": exchange,
            "metrics": {"every_steps": 1},
        }
    )


def counter_of(data: Path, config: RunConfig) -> TrafficCounter:
    corpus = Corpus.open(data)
    model = LanguageModel(config.model, config.loss, torch.from_numpy(corpus.counts_V), 1)
    return TrafficCounter(corpus, config, model)


@pytest.mark.parametrize("codec", ["fp32", "int8"])
@pytest.mark.parametrize("select", ["rows", "everything"])
@pytest.mark.parametrize("ngrams", [0, 3])
def test_sync_sends_what_is_counted(
    toy_data: Path, tmp_path: Path, codec: str, select: str, ngrams: int
) -> None:
    config = settings(ngrams, codec=codec, select=select)
    counted = counter_of(toy_data, config).sync(2, codec, everything=select == "everything")

    threads = [
        Thread(target=train, args=(toy_data, tmp_path / "run", config), kwargs={"collective": c})
        for c in in_process_group(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [line for line in read_metrics(tmp_path / "run") if line["event"] == "train"]
    first, last = lines[0], lines[-1]
    steps = last["step"] - first["step"]
    measured = (last["bytes_sent"] - first["bytes_sent"]) / steps / 2
    # The same rows on average; the few steps counted are not the steps measured.
    assert counted.up == pytest.approx(measured, rel=0.05)
    dense = (last["bytes_dense"] - first["bytes_dense"]) / steps / 2
    assert counted.dense == pytest.approx(dense)


@pytest.mark.parametrize("kind", ["sync", "periodic"])
@pytest.mark.parametrize("select", ["rows", "everything"])
def test_workers_meet_in_as_many_rounds_as_counted(
    toy_data: Path, tmp_path: Path, swaps: list[int], kind: str, select: str
) -> None:
    config = settings(kind=kind, select=select, local_steps=10, fragments=2)
    never = 10**9  # tokens: what evaluating and saving exchange is not counted
    config = replace(
        config,
        eval=replace(config.eval, every_tokens=never),
        checkpoint=replace(config.checkpoint, every_tokens=never),
    )
    count = {"sync": TrafficCounter.sync, "periodic": TrafficCounter.periodic}[kind]
    counted = count(counter_of(toy_data, config), 2, "fp32", everything=select == "everything")

    def rounds(steps: int) -> int:
        swaps.clear()
        run = replace(config.run, tokens=steps * 2 * 4 * 35)
        out, longer = tmp_path / f"{steps}", replace(config, run=run)
        members = loopback_group(2)
        threads = [
            Thread(target=train, args=(toy_data, out, longer), kwargs={"collective": member})
            for member in members
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for member in members:
            member.close()
        return swaps.count(0)

    assert counted.rounds == pytest.approx((rounds(40) - rounds(20)) / 20)


@pytest.mark.parametrize(("codec", "ngrams"), [("fp32", 0), ("bf16", 0), ("int4", 0), ("fp32", 3)])
def test_async_sends_what_is_counted(
    toy_data: Path, tmp_path: Path, codec: str, ngrams: int
) -> None:
    config = settings(ngrams, kind="async", codec=codec)
    counted = counter_of(toy_data, config).asynchronous(2, codec)

    served(toy_data, tmp_path / "run", config, num_workers=2)
    lines = [line for line in read_metrics(tmp_path / "run") if line["event"] == "train"]
    first, last = lines[len(lines) // 5], lines[-1]
    measured = (last["bytes_sent"] - first["bytes_sent"]) / (last["step"] - first["step"])
    # How often a row of so few is pulled again depends on who pushes when.
    assert counted.up + counted.down == pytest.approx(measured, rel=0.25)


def test_async_pulls_again_what_has_changed(
    toy_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = counter_of(toy_data, settings(kind="async"))
    names, rows = ("embedding.weight", "output.weight"), torch.arange(40)
    row_bytes, headers = len(names) * len(rows) * 16 * 4, 250
    block_bytes = 4 * sum(block.numel() for block in counter.blocks.values())

    def count(*steps: torch.Tensor) -> Sent:
        touched = [[Touched(dict.fromkeys(names, ids), alike=(tuple(names),))] for ids in steps]
        monkeypatch.setattr(counter, "_steps", lambda *_, **__: touched)
        return counter.asynchronous(1, "fp32")

    # Steps that have no row in common: all come ahead, and none has changed since.
    apart = count(rows, rows + 40)
    assert apart.awaited == block_bytes
    assert row_bytes < apart.down - apart.awaited < row_bytes + headers
    # The same rows again and again: they are here, and the last push has changed all of them.
    same = count(rows, rows)
    assert same.down == same.awaited
    assert row_bytes < same.awaited - block_bytes < row_bytes + headers


def test_rows_and_blocks_are_coded_each_in_its_codec(toy_data: Path) -> None:
    counter = counter_of(toy_data, settings(kind="async"))
    assert not counter.asynchronous(2, "fp32").other_codecs
    assert not counter.asynchronous(2, "bf16").other_codecs
    int4 = counter.asynchronous(2, "int4")
    assert list(int4.other_codecs) == ["bf16"]
    int8 = counter.asynchronous(2, "int8")
    assert int8.other_codecs["bf16"] == int4.other_codecs["bf16"]
    assert sum(int8.other_codecs.values()) == pytest.approx(int8.down)

    coding = {"fp32": 0.0, "bf16": 1e-9, "int8": 3e-9, "int4": 5e-9}
    machine = replace(MACHINE, code_byte=coding, message_byte=0.0)
    sent = Sent(1e5, 0.0, 5e4, 1.0, 0.0, other_codecs={"bf16": 4e4, "int4": 1e4})
    coded = (3e-9 * 1e5 + 1e-9 * 4e4 + 5e-9 * 1e4) / 2
    step, _ = async_seconds(machine, sent, "int8", Link(1e15, latency_seconds=0.0), workers=1)
    assert step == pytest.approx(0.06 + 0.004 + 2 * coded)


def test_sync_hides_what_fits_behind_backward() -> None:
    link = Link(1e6, latency_seconds=0.0)
    computing = 0.01 + 0.02 + 0.03 + 0.004
    free = Sent(early=0.03e6, late=0.0, down=0.0, dense=1.0, rows=0.0)
    step, hidden = sync_seconds(MACHINE, free, "fp32", link)
    assert step == pytest.approx(computing + 2e-9 * 0.03e6)
    assert hidden == pytest.approx(1.0)
    late = Sent(early=0.0, late=0.5e6, down=0.0, dense=1.0, rows=0.0)
    step, hidden = sync_seconds(MACHINE, late, "fp32", link)
    assert step == pytest.approx(computing + 2e-9 * 0.5e6 + 0.5)
    assert hidden == pytest.approx(0.0)


@pytest.mark.parametrize("seconds", [sync_seconds, periodic_seconds])
def test_a_round_of_messages_takes_time_however_small(
    seconds: Callable[..., tuple[float, float]],
) -> None:
    link, little = Link(1e9, latency_seconds=0.0), Sent(0.0, 1.0, 0.0, 1.0, 0.0)
    fewer, more = (replace(little, rounds=rounds) for rounds in (0.5, 9.0))
    step = seconds(MACHINE, fewer, "fp32", link)[0]
    assert seconds(MACHINE, more, "fp32", link)[0] - step == pytest.approx(8.5 * 1e-4)


@pytest.mark.parametrize("seconds", [sync_seconds, periodic_seconds])
def test_a_byte_takes_what_its_codec_takes(seconds: Callable[..., tuple[float, float]]) -> None:
    link, sent = Link(1e15, latency_seconds=0.0), Sent(0.0, 1e6, 2e6, 1.0, 0.0)
    narrow, wide = (seconds(MACHINE, sent, codec, link)[0] for codec in ("int8", "fp32"))
    assert narrow - wide == pytest.approx((4e-9 - 2e-9) * 3e6)


def test_an_update_goes_over_the_rows_of_all_workers() -> None:
    link, sent = Link(1e15, latency_seconds=0.0), Sent(0.0, 0.0, 0.0, 1.0, rows=4000.0)
    own = sync_seconds(MACHINE, sent, "fp32", link)[0]
    of_all = sync_seconds(MACHINE, replace(sent, rows=9000.0), "fp32", link)[0]
    assert own == pytest.approx(0.01 + 0.02 + 0.03 + 0.004)
    assert of_all - own == pytest.approx(5000 * 1e-6)


def test_over_loopback_nothing_is_waited_for(toy_data: Path) -> None:
    plan = make_plan(Corpus.open(toy_data), settings(), None, (2,))
    assert plan.link.rate == math.inf
    assert all(forecast.hidden_share == 1.0 for forecast in plan.forecasts)
    assert all(0 < forecast.step_seconds < math.inf for forecast in plan.forecasts)


def test_a_delay_hides_what_fits_in_a_step() -> None:
    link = Link(1e6, latency_seconds=0.0)
    late = Sent(early=0.0, late=0.05e6, down=0.0, dense=1.0, rows=0.0)
    computing = 0.01 + 0.02 + 0.03 + 0.004 + 2e-9 * 0.05e6
    step, hidden = sync_seconds(MACHINE, late, "fp32", link, delay=1)
    assert step == pytest.approx(computing)
    assert hidden == pytest.approx(1.0)
    step, hidden = sync_seconds(MACHINE, late, "fp32", Link(1e5, latency_seconds=0.0), delay=1)
    assert step == pytest.approx(0.5)
    assert hidden == pytest.approx(computing / 0.5)
    early = Sent(early=0.05e6, late=0.0, down=0.0, dense=1.0, rows=0.0)
    assert sync_seconds(MACHINE, early, "fp32", link, delay=1)[0] == pytest.approx(computing + 0.02)


def test_an_asynchronous_worker_waits_for_its_push_and_for_what_has_changed() -> None:
    link = Link(1e6, latency_seconds=0.0)
    sent = Sent(early=1e5, late=0.0, down=2e5, dense=1.0, rows=0.0, awaited=5e4)
    coding = 1e-9 * 1.5e5 + 3e-9 * 3e5
    step, hidden = async_seconds(MACHINE, sent, "fp32", link, workers=1)
    # Its push goes up, is applied, and what it needs comes down; the rest came meanwhile.
    shown = 0.1 + (0.004 + coding) + 0.05
    assert step == pytest.approx(0.06 + coding + shown)
    assert hidden == pytest.approx(1.0 - shown / 0.3)


def test_asynchronous_workers_share_the_links_of_the_servers() -> None:
    sent = Sent(early=1e5, late=0.0, down=2e5, dense=1.0, rows=0.0, awaited=2e5)
    many, _ = async_seconds(MACHINE, sent, "fp32", Link(1e6), workers=64)
    assert many == pytest.approx(64 * 0.2, rel=0.02)
    shared, _ = async_seconds(MACHINE, sent, "fp32", Link(1e6), workers=64, servers=2)
    assert shared == pytest.approx(32 * 0.2, rel=0.1)


def test_queueing_of_one_two_and_many() -> None:
    assert queueing_seconds(1.0, [0.25, 0.5], 1) == pytest.approx(1.75)
    # Two customers and one station, both exponential, by hand: the busy share is
    # 2 (Z s + s^2) / (Z^2 + 2 Z s + 2 s^2) of Z = s = 1, which is 4 / 5; a round takes 2 s / that.
    assert queueing_seconds(1.0, [1.0], 2) == pytest.approx(2.5)
    assert queueing_seconds(1.0, [0.1, 0.5], 100) == pytest.approx(50.0, rel=1e-3)


def test_a_byte_of_a_large_message_costs_more() -> None:
    link = Link(1e15, latency_seconds=0.0)
    for size, byte in ((30e6, 3e-9), (40e6, 7e-9)):
        sent = Sent(early=size, late=0.0, down=size, dense=1.0, rows=0.0)
        # Of the worker and of the server, coding besides.
        spent = 2 * (byte + 1e-9 / 2) * 2 * size
        step = async_seconds(MACHINE, sent, "fp32", link, workers=1)[0]
        assert step == pytest.approx(0.06 + 0.004 + spent)


def test_periodic_merges_beside_its_update() -> None:
    sent = Sent(early=0.0, late=0.0, down=0.0, dense=1.0, rows=0.0, merged=10_000.0)
    by_hand = 0.01 + 0.02 + 0.03 + 0.004 + 2 * 10_000 * 1e-6
    assert periodic_seconds(MACHINE, sent, "fp32", Link(1e9))[0] == pytest.approx(by_hand)


def test_periodic_waits_for_what_overlaps_too_little() -> None:
    """A turn every fourth step takes 0.2 s on the wire; two steps take 0.128 s."""
    sent = Sent(early=5e4, late=0.0, down=0.0, dense=1.0, rows=0.0, turns=0.25)
    link, machine = Link(1e6), replace(MACHINE, exchange_byte=dict.fromkeys(CODING, 0.0))
    for overlap, waiting in ((0, 0.0), (2, (0.2 - 2 * 0.064) / 4), (1, (0.2 - 0.064) / 4)):
        step, hidden = periodic_seconds(machine, sent, "fp32", link, overlap)
        assert step == pytest.approx(0.064 + waiting)
        assert hidden == pytest.approx(1.0 - waiting / 0.05)


def test_periodic_is_as_slow_as_its_link() -> None:
    sent = Sent(early=1e6, late=0.0, down=1e6, dense=1.0, rows=0.0)
    assert periodic_seconds(MACHINE, sent, "fp32", Link(1e6))[0] == pytest.approx(1.0)
    assert periodic_seconds(MACHINE, sent, "fp32", Link(1e9))[1] == pytest.approx(1.0)


@pytest.mark.parametrize(("kind", "per_number"), [("adamw", 2), ("adagrad", 1), ("sgd", 0)])
def test_memory_is_parameters_and_optimiser_state(
    toy_data: Path, kind: str, per_number: int
) -> None:
    config = replace(settings(), optim=OptimConfig(kind=kind, rows="sgd", row_lr=0.1))
    counter = counter_of(toy_data, config)
    blocks = list(counter.blocks.values())
    numbers = counter.num_parameters + per_number * sum(block.numel() for block in blocks)
    alone = make_plan(Corpus.open(toy_data), config, Link(1e8), (2,)).forecasts[0]
    # Adam and Adagrad count the steps of each block besides.
    steps = 4 * len(blocks) if per_number else 0
    assert alone.memory_bytes == 4 * numbers + steps


def test_rows_of_n_grams_are_in_the_plan(toy_data: Path) -> None:
    corpus = Corpus.open(toy_data)
    plain, with_them = (make_plan(corpus, settings(ngrams), Link(1e8), (2,)) for ngrams in (0, 3))
    assert with_them.num_parameters == plain.num_parameters + 5000 * 16
    # Adagrad keeps a number a row.
    more = with_them.forecasts[0].memory_bytes - plain.forecasts[0].memory_bytes
    assert more == 4 * 5000 * (16 + 1)
    for a, b in zip(plain.forecasts[1:], with_them.forecasts[1:], strict=True):
        assert b.step_bytes > a.step_bytes


def test_bf16_products_change_neither_bytes_nor_memory(toy_data: Path) -> None:
    config = settings()
    config = replace(config, model=replace(config.model, kind="transformer"))
    in_bf16 = replace(config, run=replace(config.run, precision="bf16"))
    plain, found = (make_plan(Corpus.open(toy_data), c, Link(1e8), (2,)) for c in (config, in_bf16))
    assert found.num_parameters == plain.num_parameters
    for a, b in zip(plain.forecasts, found.forecasts, strict=True):
        assert (b.name, b.step_bytes, b.memory_bytes) == (a.name, a.step_bytes, a.memory_bytes)
        assert 0.0 < b.step_seconds < math.inf


def test_less_travels_as_rows_than_densely(toy_data: Path) -> None:
    config = settings()
    plan = make_plan(Corpus.open(toy_data), config, Link(1e8), (2,))
    by_name = {forecast.name: forecast for forecast in plan.forecasts}
    for kind in ("sync", "periodic", "async"):
        assert by_name[f"{kind} fp32"].step_bytes < by_name[f"{kind} all"].step_bytes
        assert by_name[f"{kind} bf16"].step_bytes < by_name[f"{kind} fp32"].step_bytes
    assert plan.best(2).select == "rows"


@pytest.mark.parametrize(
    ("text", "rate"), [("1gbit", 1.25e8), ("20mbit", 2.5e6), ("2.5Gbit/s", 3.125e8)]
)
def test_rates(text: str, rate: float) -> None:
    assert parse_rate(text) == pytest.approx(rate)


@pytest.mark.parametrize(
    "text", ["", "fast", "mbit", "-3mbit", "0gbit", "nangbit", "infmbit", "1e400mbit", "10"]
)
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(UserError, match=r"--link is .*, and must be a rate such as 100mbit"):
        parse_rate(text)


def test_the_command(toy_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(toy_data), *SMALL, "--link", "100mbit", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["link_bytes_per_second"] == 1.25e7
    assert found["best"]["2"]["tokens_per_second"] > 0
    assert main(["plan", str(toy_data), *SMALL, "--link", "soon"]) == 2
    assert "--link is 'soon'" in capsys.readouterr().err


@pytest.mark.parametrize("budget", [(), ("--tokens", "5000000", "--epochs", "1e6")])
def test_the_table(
    toy_data: Path, capsys: pytest.CaptureFixture[str], budget: tuple[str, ...]
) -> None:
    assert main(["plan", str(toy_data), *SMALL, *budget]) == 0
    shown = capsys.readouterr().out
    assert "2 workers: --exchange" in shown
    tokens = 5_000_000 if budget else len(Corpus.open(toy_data).ids("train"))
    assert f"to train on {tokens / 1e6:.1f} M tokens" in shown


def test_a_reader_of_the_table_that_leaves_is_no_error(
    toy_data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["plan", str(toy_data), *SMALL]) == 0
    assert "thinwire:" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("num_taken", "spent", "will_do"),
    [(4, 3.0, False), (5, 3.0, True), (5, 1.0, False), (3, 11.0, True), (2, 11.0, False)],
)
def test_few_steps_will_do_where_they_are_long(num_taken: int, spent: float, will_do: bool) -> None:
    assert _enough(num_taken, spent, seconds=2.0) == will_do

"""Every kind of model, loss and optimiser trains with the rates that it has by default."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from thinwire.config import RunConfig
from thinwire.data.corpus import Corpus
from thinwire.data.prepare import prepare
from thinwire.loss.config import LossKind
from thinwire.models.config import ModelKind
from thinwire.optim.config import DenseKind, RowKind
from thinwire.training.loop import Trainer

torch.set_num_threads(1)

STEPS = 50
LINES = 300


@pytest.fixture(scope="module", params=["word", "bpe", "bytes"])
def corpus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Sentences in which a word says which one comes next."""
    folder = tmp_path_factory.mktemp(request.param)
    words = [
        f"{a}{b}" for a in ("ba", "de", "fi", "go", "ku") for b in ("n", "ra", "st", "x", "le")
    ]
    lines = [" ".join(words[(i * 7 + k * 3) % 25] for k in range(9)) for i in range(LINES)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    prepare(
        [str(folder / "text.txt")],
        out=folder / "data",
        tokenizer=request.param,
        valid=0,
        min_count=1 if request.param == "word" else None,
        num_processes=1,
    )
    return Corpus.open(folder / "data")


def loss_after_training(corpus: Corpus, **sections: Any) -> tuple[float, float]:
    """The model's exact loss in nats a token before and after, over the same batch."""
    config = RunConfig.from_dict(
        {
            "model": {"width": 64, "heads": 2},
            "loss": {"samples": 20},
            "data": {"batch": 8, "length": 16},
        }
        | sections
    )
    trainer = Trainer(None, config, corpus, torch.device("cpu"))
    model = trainer.model
    trainer._touch()
    assert trainer.task is not None
    batch = trainer.task.batch

    def exact() -> float:
        hidden_BTD, _ = model.hidden(batch.inputs_BT, None)
        targets_N = batch.targets_BT[batch.targets_BT >= 0]
        hidden_ND = hidden_BTD[batch.targets_BT >= 0]
        return -float(model.output.logprob(hidden_ND, targets_N).mean())

    before = exact()
    with trainer.run.recording(resumed=False):
        for step in range(STEPS):
            trainer.run.set_rates(step / STEPS)
            trainer.train_step()
    return before, exact()


@pytest.mark.parametrize("optim", get_args(DenseKind))
@pytest.mark.parametrize("loss", get_args(LossKind))
@pytest.mark.parametrize("model", get_args(ModelKind))
def test_every_combination_learns(model: str, loss: str, optim: str, corpus: Corpus) -> None:
    settings = {
        "model": {"kind": model, "width": 64, "heads": 2},
        "loss": {"kind": loss, "samples": 20},
        "optim": {"kind": optim},
    }
    before, after = loss_after_training(corpus, **settings)
    assert after < 0.75 * before


@pytest.mark.parametrize("corpus", ["word"], indirect=True)
@pytest.mark.parametrize("rows", get_args(RowKind))
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model", get_args(ModelKind))
def test_every_row_optimiser_learns(model: str, tied: bool, rows: str, corpus: Corpus) -> None:
    settings = {
        "model": {"kind": model, "width": 64, "heads": 2, "tied": tied},
        "optim": {"rows": rows},
    }
    before, after = loss_after_training(corpus, **settings)
    assert after < 0.9 * before

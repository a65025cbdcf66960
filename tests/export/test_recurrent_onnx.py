from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from thinwire.errors import UserError
from thinwire.export.export import export
from thinwire.inference.trained_model import TrainedModel

from .conftest import Trained

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

MODELS: list[dict[str, Any]] = [
    {},
    {"layers": 2, "embedding_width": 8},
    {"tied": True, "layers": 2},
]


def exact(trained: TrainedModel, ids: list[int]) -> float:
    """-ln p of a sentence and its end, a softmax at a time."""
    eos_id = trained.tokenizer.eos_id
    hidden_1TD, _ = trained.model.hidden(torch.tensor([[eos_id, *ids]]), None)
    logprob_TV = trained.model.output.distribution(hidden_1TD[0])
    return -sum(float(row_V[id]) for row_V, id in zip(logprob_TV, [*ids, eos_id], strict=True))


@pytest.mark.parametrize("settings", MODELS)
def test_whole_sentences(trained: Trained, settings: dict[str, Any], tmp_path: Path) -> None:
    model = trained(**settings)
    export(model, "onnx", tmp_path / "out")
    session = ort.InferenceSession(tmp_path / "out/no-state-rnnlm.onnx")
    assert [i.name for i in session.get_inputs()] == ["x", "x_lens"]
    assert [o.name for o in session.get_outputs()] == ["nll"]
    generator = np.random.default_rng(1)
    for lengths in ([5], [1], [0], [3, 7, 1], [40, 0, 12, 40, 2]):
        ids = [generator.integers(0, model.model.vocab_size, n).tolist() for n in lengths]
        x = np.zeros((len(ids), max(lengths)), dtype=np.int64)
        for row, line in zip(x, ids, strict=True):
            row[: len(line)] = line
        (nll_N,) = session.run(None, {"x": x, "x_lens": np.array(lengths, dtype=np.int64)})
        assert nll_N.shape == (len(ids),) and nll_N.dtype == np.float32
        assert nll_N == pytest.approx([exact(model, line) for line in ids], rel=1e-5, abs=1e-4)


def test_whole_sentences_have_the_scores_of_score(trained: Trained, tmp_path: Path) -> None:
    model = trained()
    export(model, "onnx", tmp_path / "out")
    session = ort.InferenceSession(tmp_path / "out/no-state-rnnlm.onnx")
    for text in ("the cat sees a dog .", "a"):
        ids = np.array([model.tokenizer.encode(text)], dtype=np.int64)
        (nll,) = session.run(None, {"x": ids, "x_lens": np.array([ids.shape[1]])})
        assert nll[0] == pytest.approx(-model.score(text).logprob, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("settings", MODELS)
@pytest.mark.parametrize("num_streams", [1, 3])
def test_one_step(
    trained: Trained, settings: dict[str, Any], num_streams: int, tmp_path: Path
) -> None:
    model = trained(**settings)
    export(model, "onnx", tmp_path / "out")
    session = ort.InferenceSession(tmp_path / "out/with-state-rnnlm.onnx")
    assert [i.name for i in session.get_inputs()] == ["x", "h0", "c0"]
    assert [o.name for o in session.get_outputs()] == ["log_softmax", "next_h0", "next_c0"]
    layers = settings.get("layers", 1)
    h = c = np.zeros((layers, num_streams, 16), dtype=np.float32)
    generator = np.random.default_rng(2)
    ids_NT = generator.integers(0, model.model.vocab_size, (num_streams, 6))
    hidden_NTD, state = model.model.hidden(torch.from_numpy(ids_NT), None)
    for t in range(6):
        logprob_NV, h, c = session.run(None, {"x": ids_NT[:, t : t + 1], "h0": h, "c0": c})
        expected_NV = model.model.output.distribution(hidden_NTD[:, t])
        np.testing.assert_allclose(logprob_NV, expected_NV, atol=1e-4)
    np.testing.assert_allclose(h, torch.stack(state[0::2]), atol=1e-5)
    np.testing.assert_allclose(c, torch.stack(state[1::2]), atol=1e-5)


def test_metadata_is_icefalls(trained: Trained, tmp_path: Path) -> None:
    model = trained(layers=2, embedding_width=8)
    export(model, "onnx", tmp_path / "out")
    eos_id = str(model.tokenizer.eos_id)
    for name in ("no-state-rnnlm", "with-state-rnnlm"):
        found = onnx.load(tmp_path / f"out/{name}.onnx")
        assert [(o.domain, o.version) for o in found.opset_import] == [("", 13)]
        assert {p.key: p.value for p in found.metadata_props} == {
            "model_type": "rnnlm",
            "version": "1",
            "model_author": "thinwire",
            "sos_id": eos_id,
            "eos_id": eos_id,
            "vocab_size": str(model.model.vocab_size),
            "num_layers": "2",
            "hidden_size": "16",
            "embedding_dim": "8",
        }


def test_int8_is_near(trained: Trained, tmp_path: Path) -> None:
    model = trained()
    export(model, "onnx", tmp_path / "out", int8=True)
    x = np.array([model.tokenizer.encode("the cat sees a dog .")], dtype=np.int64)
    given = {"x": x, "x_lens": np.array([x.shape[1]])}
    full, small = (
        ort.InferenceSession(tmp_path / f"out/no-state-rnnlm{kind}.onnx").run(None, given)[0].item()
        for kind in ("", ".int8")
    )
    assert small != full
    assert small == pytest.approx(full, rel=0.05)
    held = onnx.load(tmp_path / "out/with-state-rnnlm.int8.onnx")
    types = {tensor.data_type for tensor in held.graph.initializer}
    assert onnx.TensorProto.INT8 in types


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kind": "transformer"}, "holds LSTM models, and this one is a Transformer"),
        ({"kind": "causal_conv", "layers": 2}, "holds LSTM models, and this one is a CausalConv"),
        ({"loss": "adaptive", "width": 64}, "clusters of different widths"),
    ],
)
def test_what_it_cannot_hold(
    trained: Trained, settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        export(trained(**settings), "onnx", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []

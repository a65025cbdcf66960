"""The two ONNX files with which icefall and sherpa-onnx run an RNN language model.

Names, shapes and metadata are those of icefall's `rnn_lm/export-onnx.py`, so that sherpa-onnx's
offline and online language models read them:

    no-state-rnnlm.onnx    x [N, L] int64, zero-padded, x_lens [N] int64 -> nll [N]
        the summed negative natural-log likelihood of each sentence, its start and end added inside
    with-state-rnnlm.onnx  x [N, 1] int64, h0 and c0 [layers, N, D]
        -> log_softmax [N, V], next_h0, next_c0

The graphs are written node by node from ONNX's own operators: no dimension is fixed by a trace.

N sentences, L tokens of the longest, T = L + 1 positions, V vocabulary, E embedding width, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from thinwire.errors import UserError
from thinwire.export.plain import PlainTables, lstm_weights, plain_tables
from thinwire.export.words import write_symbols
from thinwire.inference.trained_model import TrainedModel

FORM = "ONNX for sherpa-onnx"
OPSET = 13
IR_VERSION = 8  # runtimes that support opset 13 can read it
LARGEST_BYTES = 2**31 - 2**20  # protobuf's limit for a file, less room for the graph

Array = npt.NDArray[np.generic]
Shape = Sequence[int | str]


def write_onnx(trained: TrainedModel, folder: Path, *, int8: bool) -> None:
    """Write both files and `tokens.txt`; with `int8` also `*.int8.onnx`.

    Raises:
        UserError: the model is not an LSTM, or too large for one file.
    """
    weights = lstm_weights(trained.model, FORM)
    tables = plain_tables(trained.model, FORM)
    _check_size(weights, tables)
    eos_id = trained.tokenizer.eos_id
    metadata = {
        "model_type": "rnnlm",
        "version": "1",
        "model_author": "thinwire",
        "sos_id": eos_id,
        "eos_id": eos_id,
        "vocab_size": tables.embedding_VE.shape[0],
        "num_layers": len(weights) // 4,
        "hidden_size": tables.weight_VD.shape[1],
        "embedding_dim": tables.embedding_VE.shape[1],
    }
    for name, model in (
        ("no-state-rnnlm", _sentences(weights, tables, eos_id)),
        ("with-state-rnnlm", _one_step(weights, tables)),
    ):
        helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
        onnx.checker.check_model(model, full_check=True)
        path = folder / f"{name}.onnx"
        onnx.save(model, str(path))
        if int8:
            _quantise(path, folder / f"{name}.int8.onnx")
    write_symbols(trained.tokenizer, folder / "tokens.txt")


class _Graph:
    """Collects the nodes and constants of a graph; each is named after its result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def add(
        self,
        kind: str,
        inputs: Sequence[str],
        output: str,
        more: Sequence[str] = (),
        **options: int,
    ) -> str:
        """Add a node, and return the name of its first output."""
        node = helper.make_node(kind, list(inputs), [output, *more], name=output, **options)
        self.nodes.append(node)
        return output

    def constant(self, name: str, value: Array | Sequence[int]) -> str:
        """Add a constant tensor, and return its name."""
        array = value if isinstance(value, np.ndarray) else np.array(value, dtype=np.int64)
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def lstm(
        self, weights: Mapping[str, Tensor], x_TNE: str, state: Sequence[tuple[str, str]]
    ) -> tuple[str, list[tuple[str, str]]]:
        """Add all layers; `state` names h and c `[1, N, D]` of each layer; empty: zeros."""
        after = []
        for k in range(len(weights) // 4):
            w_ih, w_hh, b_ih, b_hh = (
                _gates_as_onnx(weights[f"{name}_l{k}"])
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            inputs = [
                x_TNE,
                self.constant(f"lstm_{k}.W", w_ih[None]),
                self.constant(f"lstm_{k}.R", w_hh[None]),
                self.constant(f"lstm_{k}.B", np.concatenate([b_ih, b_hh])[None]),
            ]
            if state:
                inputs += ["", *state[k]]
            h, c = f"lstm_{k}.h", f"lstm_{k}.c"
            y = self.add("LSTM", inputs, f"lstm_{k}.Y", (h, c), hidden_size=w_hh.shape[1])
            x_TNE = self.add("Squeeze", [y, self.constant("one", [1])], f"lstm_{k}.out")
            after.append((h, c))
        return x_TNE, after

    def swap(self, x: str, output: str) -> str:
        """Swap the first two of three dimensions."""
        self.nodes.append(helper.make_node("Transpose", [x], [output], perm=[1, 0, 2]))
        return output

    def embed(self, tables: PlainTables, ids: str) -> str:
        """Look up the input rows of ids `[N, T]`."""
        return self.add(
            "Gather", [self.constant("embedding.weight", tables.embedding_VE.numpy()), ids], "x_NTE"
        )

    def log_softmax(self, tables: PlainTables, hidden_MD: str, output: str) -> str:
        """ln p of every token, `[M, V]`."""
        weight = "embedding.weight"
        if not tables.is_tied:
            weight = self.constant("output.weight", tables.weight_VD.numpy())
        bias = self.constant("output.bias", tables.bias_V.numpy())
        logits = self.add("Gemm", [hidden_MD, weight, bias], "logits", transB=1)
        return self.add("LogSoftmax", [logits], output, axis=1)

    def model(
        self,
        name: str,
        inputs: Mapping[str, tuple[int, Shape]],
        outputs: Mapping[str, tuple[int, Shape]],
    ) -> onnx.ModelProto:
        """Build the model; inputs and outputs map names to types and shapes."""
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(n, *about) for n, about in inputs.items()],
            [helper.make_tensor_value_info(n, *about) for n, about in outputs.items()],
            list(self.constants.values()),
        )
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(
            graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="thinwire"
        )


def _sentences(weights: Mapping[str, Tensor], tables: PlainTables, eos_id: int) -> onnx.ModelProto:
    g = _Graph()
    D = tables.weight_VD.shape[1]
    zero, one = g.constant("zero", [0]), g.constant("one", [1])
    # Inputs are the start and x; targets are x and, after its last token, the end.
    shape = g.add("Shape", ["x"], "shape")
    num_1 = g.add("Gather", [shape, zero], "num_sentences")
    column = g.add("Concat", [num_1, one], "column", axis=0)
    eos = g.constant("eos", [eos_id])
    starts = g.add("Expand", [eos, column], "starts")
    blanks = g.add("Expand", [zero, column], "blanks")
    inputs = g.add("Concat", [starts, "x"], "inputs_NT", axis=1)
    padded = g.add("Concat", ["x", blanks], "padded_NT", axis=1)
    ones = g.add("Expand", [one, g.add("Shape", [padded], "shape_NT")], "ones_NT")
    axis = g.constant("axis", np.array(1, dtype=np.int64))
    place = g.add("CumSum", [ones, axis], "place_NT", exclusive=1)
    lens = g.add("Unsqueeze", ["x_lens", one], "lens_N1")
    targets = g.add("Where", [g.add("Equal", [place, lens], "is_end_NT"), eos, padded], "targets")
    past = g.add("Greater", [place, lens], "is_past_NT")

    x_NTE = g.embed(tables, inputs)
    x_TNE = g.swap(x_NTE, "x_TNE")
    hidden, _ = g.lstm(weights, x_TNE, [])
    hidden_NTD = g.swap(hidden, "hidden_NTD")
    flat = g.add("Reshape", [hidden_NTD, g.constant("flat", [-1, D])], "hidden_MD")
    logprob = g.log_softmax(tables, flat, "logprob_MV")
    target_M1 = g.add("Reshape", [targets, g.constant("flat_1", [-1, 1])], "target_M1")
    found = g.add("GatherElements", [logprob, target_M1], "found_M1", axis=1)
    found_NT = g.add("Reshape", [found, "shape_NT"], "found_NT")
    nothing = g.constant("nothing", np.zeros(1, dtype=np.float32))
    counted = g.add("Where", [past, nothing, found_NT], "counted_NT")
    total = g.add("ReduceSum", [counted, one], "total_N", keepdims=0)
    g.add("Neg", [total], "nll")
    return g.model(
        "sentences",
        {"x": (TensorProto.INT64, ("N", "L")), "x_lens": (TensorProto.INT64, ("N",))},
        {"nll": (TensorProto.FLOAT, ("N",))},
    )


def _one_step(weights: Mapping[str, Tensor], tables: PlainTables) -> onnx.ModelProto:
    g = _Graph()
    V, D = tables.weight_VD.shape
    K = len(weights) // 4
    x_NTE = g.embed(tables, "x")
    x_TNE = g.swap(x_NTE, "x_TNE")
    before: list[tuple[str, str]] = []
    for k in range(K):
        begin, end = g.constant(f"from_{k}", [k]), g.constant(f"to_{k}", [k + 1])
        names = [(f"h0_{k}", "h0"), (f"c0_{k}", "c0")]
        h, c = (g.add("Slice", [whole, begin, end], name) for name, whole in names)
        before.append((h, c))
    hidden, after = g.lstm(weights, x_TNE, before)
    last = g.add("Reshape", [hidden, g.constant("flat", [-1, D])], "hidden_ND")
    g.log_softmax(tables, last, "log_softmax")
    g.add("Concat", [h for h, _ in after], "next_h0", axis=0)
    g.add("Concat", [c for _, c in after], "next_c0", axis=0)
    state = (TensorProto.FLOAT, (K, "N", D))
    return g.model(
        "one_step",
        {"x": (TensorProto.INT64, ("N", 1)), "h0": state, "c0": state},
        {
            "log_softmax": (TensorProto.FLOAT, ("N", V)),
            "next_h0": state,
            "next_c0": state,
        },
    )


def _gates_as_onnx(weight: Tensor) -> Array:
    """Reorder gates: PyTorch has them in the order i, f, g, o, and ONNX in the order i, o, f, g."""
    i, f, g, o = weight.chunk(4)
    return torch.cat([i, o, f, g]).numpy()


def _check_size(weights: Mapping[str, Tensor], tables: PlainTables) -> None:
    held = [*weights.values(), tables.embedding_VE, tables.bias_V]
    held += [] if tables.is_tied else [tables.weight_VD]
    num_bytes = sum(tensor.numel() for tensor in held) * 4
    if num_bytes > LARGEST_BYTES:
        raise UserError(
            f"an ONNX file holds {LARGEST_BYTES:,} bytes at most, and this model's weights take "
            f"{num_bytes:,}: lower --vocab-size or model.width, or tie the output"
        )


def _quantise(path: Path, quantised: Path) -> None:
    """Quantise weights of matrix products to 8 bits, as in icefall's own export."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)  # it advises a preparation that this graph does not need
    try:
        quantize_dynamic(str(path), str(quantised), weight_type=QuantType.QInt8)
    finally:
        logging.disable(logging.NOTSET)

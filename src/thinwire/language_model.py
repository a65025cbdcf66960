"""Embedding, body and output put together: one model, seen through what a step touches.

B streams, T tokens, P tokens before them, K orders of n-grams, N positions with a target, E
embedding width, D width, I input rows touched, R rows touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from thinwire.data.batches import Batch
from thinwire.errors import UserError
from thinwire.loss.adaptive import AdaptiveOutput
from thinwire.loss.config import LossConfig
from thinwire.loss.contract import Criterion, LossPlan
from thinwire.loss.full import FullSoftmax
from thinwire.loss.nce import NCE
from thinwire.loss.output import Output, SoftmaxOutput
from thinwire.loss.sampled import SampledSoftmax
from thinwire.models.adapters import Adapter
from thinwire.models.causal_conv import CausalConv
from thinwire.models.config import CLASS_SEPARATOR, ModelConfig
from thinwire.models.contract import Body, State, reset_streams
from thinwire.models.custom import check_body, load_custom_body
from thinwire.models.dropout import DropoutMasks
from thinwire.models.lstm import LSTM
from thinwire.models.ngrams import NO_TOKEN, Ngrams, sum_rows
from thinwire.models.transformer import Transformer
from thinwire.seeds import torch_generator
from thinwire.touched import Touched

EMBEDDING = "embedding.weight"
NGRAMS = "ngrams.weight"
OUTPUT_BIAS = "output.bias"
EMBEDDING_DEVIATION = 0.1


@dataclass(frozen=True)
class Task:
    """One batch with everything that is known about it before the arithmetic.

    Attributes:
        batch: inputs and targets.
        touched: the rows of every table that the step needs.
        input_rows_BT: where each input word stands among the embedding's touched rows.
        output_rows_R: where the output plan's rows stand among the touched rows of a tied table;
            None: they are the touched rows of a table of their own.
        plan: the output layer's plan.
        frozen_rows: the rows that the step reads of tables that are not trained.
        ngrams: where the rows of each position's n-grams stand among their table's touched rows,
            and what they are multiplied with, both `[B, T, K]`; None: the model has no n-grams.
    """

    batch: Batch
    touched: Touched
    input_rows_BT: Tensor
    output_rows_R: Tensor | None
    plan: LossPlan
    frozen_rows: Mapping[str, Tensor | None] = field(default_factory=dict)
    ngrams: tuple[Tensor, Tensor] | None = None


class LanguageModel(nn.Module):
    """A language model whose large tables are read and trained row by row.

    `tables` (rows of the embedding, of n-grams and of the output, output biases) stay out of
    automatic differentiation: a step gathers the rows it touches, and their gradients are as small
    as they are. `blocks` are the
    dense parameters of the body, which every step touches whole. Without `initialise` their values
    are left to whoever loads them. With `in_bf16` the matrix products of the training loss are
    computed from factors rounded to bf16; parameters, states, gradients and evaluation stay in
    fp32, and so does the adaptive loss. Of a model with `frozen` parameters both name only what is
    trained: adaptation layers and output biases; the others are read from that file.
    """

    def __init__(
        self,
        model: ModelConfig,
        loss: LossConfig,
        counts: Tensor,
        seed: int,
        *,
        initialise: bool = True,
        in_bf16: bool = False,
    ) -> None:
        super().__init__()
        vocab_size, width = len(counts), model.width
        self.dropout = model.dropout
        self.in_bf16 = in_bf16
        self.seed = seed
        self.tied = model.tied
        self.embedding = nn.Embedding(
            vocab_size, model.input_width, _weight=torch.empty(vocab_size, model.input_width)
        )
        self.ngrams = (
            Ngrams(model.ngram_rows, model.input_width, model.ngrams) if model.ngrams > 1 else None
        )
        self.body: Body = _body(model)
        self.output = self._output(loss, counts, width)
        self.input_adapter = Adapter(model.input_width) if model.adapters == "both" else None
        self.output_adapter = Adapter(width) if model.adapters != "none" else None
        self.has_frozen = bool(model.frozen)
        if initialise:
            self._initialise()
            if CLASS_SEPARATOR in model.kind:
                check_body(self.body, model)
        if model.frozen:
            self._freeze(Path(model.frozen))

    def _output(self, loss: LossConfig, counts: Tensor, width: int) -> Output:
        if loss.kind == "adaptive":
            return AdaptiveOutput(counts, width)
        weight_VD = (
            self._embedding_VE if self.tied else nn.Parameter(torch.empty(len(counts), width))
        )
        return SoftmaxOutput(weight_VD, counts, _criterion(loss, counts, self.seed, self.in_bf16))

    @torch.no_grad()
    def _initialise(self) -> None:
        generator = torch_generator(self.seed, "initialise")
        self.body.initialise(generator)
        self.embedding.weight.normal_(0.0, EMBEDDING_DEVIATION, generator=generator)
        if isinstance(self.output, SoftmaxOutput):
            if not self.tied:
                # Zero: the untrained model predicts the unigram distribution of its biases.
                self.output.weight.zero_()
        else:
            for parameter in self.output.parameters():
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)

    @torch.no_grad()
    def _freeze(self, file: Path) -> None:
        """Read what is not trained; it collects no gradients."""
        try:
            found = load_file(file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"the frozen parameters in {file} cannot be read ({error})") from None
        for name, parameter in self.frozen().items():
            if name not in found or found[name].shape != parameter.shape:
                raise UserError(f"{file} does not hold the {name} of this model")
            parameter.copy_(found[name])
            parameter.requires_grad_(False)

    @property
    def _embedding_VE(self) -> nn.Parameter:
        weight = self.embedding.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def vocab_size(self) -> int:
        """Number of words."""
        return self.embedding.num_embeddings

    @property
    def num_before(self) -> int:
        """How many tokens before a batch `touch` has to know; a window's past is none."""
        if self.ngrams is None or not self.body.carries_state:
            return 0
        return self.ngrams.largest - 1

    def tables(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained row by row, by name; a tied table once."""
        tables = self._all_tables()
        return {n: p for n, p in tables.items() if n == OUTPUT_BIAS} if self.has_frozen else tables

    def blocks(self) -> dict[str, nn.Parameter]:
        """The dense parameters that are trained, by name."""
        blocks = self._all_blocks()
        return {n: p for n, p in blocks.items() if "adapter" in n} if self.has_frozen else blocks

    def frozen(self) -> dict[str, nn.Parameter]:
        """The parameters that are not trained, by name."""
        trained = {**self.tables(), **self.blocks()}
        return {name: p for name, p in self.by_name().items() if name not in trained}

    def by_name(self) -> dict[str, nn.Parameter]:
        """All parameters, trained or not; a tied table once."""
        return {**self._all_tables(), **self._all_blocks()}

    def _all_tables(self) -> dict[str, nn.Parameter]:
        tables = {EMBEDDING: self._embedding_VE}
        if self.ngrams is not None:
            tables[NGRAMS] = self.ngrams.weight
        for name, parameter in self.output.tables().items():
            if parameter is not self._embedding_VE:
                tables[f"output.{name}"] = parameter
        return tables

    def _all_blocks(self) -> dict[str, nn.Parameter]:
        rows = {id(parameter) for parameter in self._all_tables().values()}
        return {n: p for n, p in self.named_parameters() if id(p) not in rows}

    def touch(self, batch: Batch, step: int) -> Task:
        """What the step needs, from the batch and the step's draw alone."""
        targets_N = batch.targets_BT[batch.targets_BT >= 0]
        plan = self.output.plan(targets_N, step)
        ids_I, input_rows_BT = torch.unique(batch.inputs_BT, return_inverse=True)
        rows: dict[str, Tensor | None] = {EMBEDDING: ids_I}
        ngrams = None
        if self.ngrams is not None:
            tokens_BS = batch.inputs_BT + 1
            if self.num_before and batch.before_BP is not None:
                tokens_BS = torch.cat([batch.before_BP + 1, tokens_BS], dim=1)
            found_BTK, factor_BTK = self.ngrams.rows(tokens_BS, batch.inputs_BT.shape[1])
            rows[NGRAMS], at_BTK = torch.unique(found_BTK, return_inverse=True)
            ngrams = at_BTK, factor_BTK
        for name in self.output.tables():
            rows[f"output.{name}"] = plan.ids_R
        num_drawn = 0 if plan.log_inclusion_S is None else len(plan.log_inclusion_S)
        num_shared = {f"output.{name}": num_drawn for name in self.output.tables()}
        output_rows_R = None
        if self.tied:
            num_shared.pop("output.weight")
            own = Touched({EMBEDDING: rows.pop("output.weight")})
            ids = own.union(Touched({EMBEDDING: ids_I})).rows[EMBEDDING]
            if ids is None:
                input_rows_BT = batch.inputs_BT
            else:
                assert plan.ids_R is not None
                input_rows_BT = torch.searchsorted(ids, ids_I)[input_rows_BT]
                output_rows_R = torch.searchsorted(ids, plan.ids_R)
            rows[EMBEDDING] = ids
        frozen_rows: dict[str, Tensor | None] = {}
        if self.has_frozen:
            trained = self.tables()
            frozen_rows = {name: ids for name, ids in rows.items() if name not in trained}
            rows = {name: ids for name, ids in rows.items() if name in trained}
            num_shared = {name: n for name, n in num_shared.items() if name in trained}
        outputs = tuple(name for name in rows if name.startswith("output."))
        touched = Touched(rows, num_shared, () if plan.ids_R is None else (outputs,))
        return Task(batch, touched, input_rows_BT, output_rows_R, plan, frozen_rows, ngrams)

    def loss(
        self,
        task: Task,
        rows: Mapping[str, Tensor],
        state: State | None,
        dropout: DropoutMasks | None,
    ) -> tuple[Tensor, State]:
        """The summed training loss in nats over the batch's targets, and the state after it.

        Args:
            task: what `touch` returned.
            rows: the touched rows of each table, `[R, ...]`, as leaves that collect gradients.
            state: the state before the batch; None: afresh.
            dropout: the step's dropout masks.
        """
        batch = task.batch
        if state is not None and batch.fresh_B is not None:
            state = reset_streams(state, batch.fresh_B)
        rows = {**rows, **self._read_frozen(task)}
        embedding_RE = rows[EMBEDDING]
        with torch.autocast(embedding_RE.device.type, torch.bfloat16, enabled=self.in_bf16):
            if self.input_adapter is not None:
                embedding_RE = self.input_adapter(embedding_RE)
            more_BTE = None if task.ngrams is None else sum_rows(rows[NGRAMS], *task.ngrams)
            x_BTE = self.body.embed(embedding_RE, task.input_rows_BT, more_BTE)
            hidden_BTD, after = self._through_body(x_BTE, state, dropout)
        targets_N = batch.targets_BT >= 0
        hidden_ND = hidden_BTD.reshape(-1, hidden_BTD.shape[2])
        if not bool(targets_N.all()):
            hidden_ND = hidden_ND[targets_N.view(-1)]
        output_rows = {
            name: rows[EMBEDDING] if parameter is self._embedding_VE else rows[f"output.{name}"]
            for name, parameter in self.output.tables().items()
        }
        if task.output_rows_R is not None:
            output_rows["weight"] = output_rows["weight"].index_select(0, task.output_rows_R)
        value = self.output.loss(hidden_ND, task.plan, output_rows)
        # Autocast leaves some states in bf16; what a run keeps is fp32.
        kept = rows[EMBEDDING].dtype
        return value, tuple(s.detach().to(kept) for s in after)

    @torch.no_grad()
    def hidden(self, inputs_BT: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Hidden states `[B, T, D]` of word ids, and the state after them; no dropout.

        With n-grams a state that is carried begins with the last tokens, as `Ngrams` has them.
        """
        past: State = ()
        more_BTE = None
        if self.ngrams is not None:
            (B, T), P = inputs_BT.shape, self.num_before
            if P:
                nothing_BP = inputs_BT.new_full((B, P), NO_TOKEN)
                past, state = (state[:1], state[1:]) if state else ((nothing_BP,), None)
            tokens_BS = torch.cat([*past, inputs_BT + 1], dim=1)
            past = (tokens_BS[:, T:],) if P else ()
            more_BTE = sum_rows(self.ngrams.weight, *self.ngrams.rows(tokens_BS, T))
        hidden_BTD, after = self._through_body(self._embedded(inputs_BT, more_BTE), state, None)
        return hidden_BTD, (*past, *after)

    def taken_apart(self, state: State | None) -> tuple[Tensor | None, State | None]:
        """A state of `hidden` as `touch` and `loss` want it: the tokens before, and the body's."""
        if state is None or not self.num_before:
            return None, state
        return state[0] - 1, state[1:]

    def empty_cache(self, num_rows: int, length: int) -> State | None:
        """What `hidden_in_window` begins with; None: nothing is kept of a window, which is read
        anew, as with n-grams, which need its tokens."""
        if self.ngrams is not None or not isinstance(self.body, Transformer):
            return None
        return self.body.empty_cache(num_rows, length, self.embedding.weight)

    @torch.no_grad()
    def hidden_in_window(
        self, inputs_BT: Tensor, past: State, first_B1: Tensor
    ) -> tuple[Tensor, State]:
        """`hidden` of word ids that follow what a window holds already; see `Transformer`."""
        assert isinstance(self.body, Transformer)
        hidden_BTD, past = self.body.forward_with_cache(self._embedded(inputs_BT), past, first_B1)
        return self._adapted(hidden_BTD), past

    def _embedded(self, inputs_BT: Tensor, more_BTE: Tensor | None = None) -> Tensor:
        rows_RE = self.embedding.weight
        if self.input_adapter is not None:
            ids_R, inputs_BT = torch.unique(inputs_BT, return_inverse=True)
            rows_RE = self.input_adapter(rows_RE[ids_R])
        return self.body.embed(rows_RE, inputs_BT, more_BTE)

    def _through_body(
        self, x_BTE: Tensor, state: State | None, dropout: DropoutMasks | None
    ) -> tuple[Tensor, State]:
        """The body, and the adaptation layer after it if there is one."""
        hidden_BTD, after = self.body(x_BTE, state, dropout)
        return self._adapted(hidden_BTD), after

    def _adapted(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD if self.output_adapter is None else self.output_adapter(hidden_BTD)

    def _read_frozen(self, task: Task) -> dict[str, Tensor]:
        everything = self._all_tables() if task.frozen_rows else {}
        return {
            name: everything[name].detach()
            if ids is None
            else everything[name].detach().index_select(0, ids)
            for name, ids in task.frozen_rows.items()
        }


def _body(config: ModelConfig) -> Body:
    if CLASS_SEPARATOR in config.kind:
        return load_custom_body(config)
    if config.kind == "lstm":
        return LSTM(config.input_width, config.width, config.layers)
    if config.kind == "causal_conv":
        return CausalConv(
            config.input_width,
            config.width,
            layers=config.layers,
            first_kernel=config.first_kernel or config.kernel,
            kernel=config.kernel,
            dilation=config.dilation,
            window=config.window if config.attention else 0,
            heads=config.heads,
        )
    return Transformer(config.input_width, config.width, config.layers, config.heads)


def _criterion(config: LossConfig, counts: Tensor, seed: int, in_bf16: bool) -> Criterion:
    if config.kind == "full":
        return FullSoftmax(in_bf16=in_bf16)
    make = SampledSoftmax if config.kind == "sampled" else NCE
    return make(counts, config.samples, config.power, seed, in_bf16=in_bf16)

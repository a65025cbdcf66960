"""One device of a rival's run: an ordinary PyTorch loop over thinwire's batches.

Model, first weights, batches and, with `--loss sampled`, the loss are thinwire's; parameters,
gradients and optimisers are PyTorch's dense ones, and the exchange is the method's. The devices are
told apart as under torchrun, by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; the first one writes
a run folder that `thinwire eval RUN --step N` can read.

    python -m benchmarks.rivals.train METHOD DATA --out RUN --tokens N [--seconds S] [--loss full]

B streams, T tokens, N positions, D width, R output rows.
"""

from __future__ import annotations

import argparse
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.rivals.ddp import DDP
from benchmarks.rivals.diloco import DiLoCo
from benchmarks.rivals.method import Method, Updater
from benchmarks.rivals.sparta import Sparta
from thinwire import SampledSoftmax
from thinwire.config import RunConfig
from thinwire.data.batches import Batches
from thinwire.data.corpus import Corpus
from thinwire.language_model import LanguageModel
from thinwire.runs.checkpoints import Checkpoints
from thinwire.runs.clock import Clock
from thinwire.runs.device import set_up_device
from thinwire.runs.folder import RunFolder
from thinwire.runs.metrics import MetricsWriter

METHODS = ("ddp", "ddp-bf16", "powersgd", "diloco", "sparta")
# With `--seconds`, at least so many steps are made.
LEAST_STEPS = 3
# A slow link needs minutes for what a step sends.
TIMEOUT = timedelta(hours=1)

State = tuple[Tensor, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokens", type=int, required=True, help="of all devices together")
    parser.add_argument(
        "--seconds",
        type=float,
        help=f"stop then, but not before {LEAST_STEPS} steps; dense ones do not count",
    )
    parser.add_argument(
        "--snapshots", type=int, nargs="*", default=[], help="save at so many tokens"
    )
    parser.add_argument("--loss", choices=("sampled", "full"), default="sampled")
    parser.add_argument("--batch", type=int, default=16, help="sequences a device")
    parser.add_argument("--optimizer", choices=("adam", "adamw", "adagrad"), default="adam")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dense-steps", type=int, default=10, help="powersgd: not compressed")
    parser.add_argument("--inner-steps", type=int, default=100, help="diloco: between outer ones")
    arguments = parser.parse_args()
    dist.init_process_group("gloo", timeout=TIMEOUT)
    try:
        Training(arguments).run()
    finally:
        dist.destroy_process_group()


class Model(nn.Module):
    """Embedding, LSTM, linear output and the loss, all dense.

    Args:
        first: a model of thinwire's, whose weights this one starts from.
        criterion: None: the full softmax.
    """

    def __init__(self, first: LanguageModel, criterion: SampledSoftmax | None) -> None:
        super().__init__()
        V, D = first.embedding.weight.shape
        self.embedding = nn.Embedding(V, D)
        self.lstm = nn.LSTM(D, D)
        self.output = nn.Linear(D, V)
        self.criterion = criterion
        weights = first.state_dict()
        self.load_state_dict({mine: weights[theirs] for mine, theirs in self._names().items()})

    def forward(
        self, inputs_BT: Tensor, targets_BT: Tensor, state: State | None, draw: int
    ) -> tuple[Tensor, State]:
        """The mean loss of a batch in nats, and the state after it."""
        hidden_TBD, after = self.lstm(self.embedding(inputs_BT.t()), state)
        hidden_ND, targets_N = hidden_TBD.flatten(0, 1), targets_BT.t().flatten()
        if self.criterion is None:
            return F.cross_entropy(self.output(hidden_ND), targets_N), after
        plan = self.criterion.plan(targets_N, draw)
        assert plan.ids_R is not None, "a sample"
        # Not in one call, whose gradients are sparse: DistributedDataParallel wants dense ones.
        weight_RD = self.output.weight.index_select(0, plan.ids_R)
        bias_R = self.output.bias.index_select(0, plan.ids_R)
        return self.criterion.loss(hidden_ND, plan, weight_RD, bias_R) / len(targets_N), after

    def weights(self) -> dict[str, Tensor]:
        """The weights under the names of thinwire's model."""
        mine = self.state_dict()
        return {theirs: mine[name] for name, theirs in self._names().items()}

    def _names(self) -> dict[str, str]:
        return {name: name.replace("lstm.", "body.layers.0.") for name in self.state_dict()}


class Training:
    """A device: its model, its part of the batches and, on the first one, the record."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.rank, self.num_devices = dist.get_rank(), dist.get_world_size()
        config, corpus = settings(arguments), Corpus.open(arguments.data)
        set_up_device(config)
        counts_V = torch.from_numpy(corpus.counts_V)
        criterion = None
        if arguments.loss == "sampled":
            criterion = SampledSoftmax(counts_V, config.loss.samples, seed=arguments.seed)
        self.model = Model(
            LanguageModel(config.model, config.loss, counts_V, arguments.seed), criterion
        )
        self.method = make_method(self.model, arguments)
        self.batches = Batches(
            corpus.ids("train"),
            config.data,
            seed=arguments.seed,
            eos_id=corpus.meta.eos_id,
            worker=self.rank,
            num_workers=self.num_devices,
        )
        self.snapshots = sorted(arguments.snapshots)
        self.state: State | None = None
        self.clock = Clock()
        self.step = self.tokens = 0
        self.dense_seconds = 0.0
        if self.rank == 0:
            RunFolder.planned(arguments.out, config, corpus).write(corpus)
            self.checkpoints = Checkpoints(arguments.out, config.checkpoint.keep)
            self.metrics = MetricsWriter(arguments.out)

    def run(self) -> None:
        """Whole rounds until the budget is spent; a snapshot of the end."""
        self.write("start", workers=self.num_devices, **{k: str(v) for k, v in self.about()})
        dist.barrier()
        self.clock.start()
        while not self.spent():
            for _ in range(self.method.round_steps):
                self.train_step()
                if self.snapshots and self.tokens >= self.snapshots[0]:
                    self.snapshots = [n for n in self.snapshots if n > self.tokens]
                    self.save()
        self.save()
        self.write("end", **self.record())

    def train_step(self) -> None:
        """One step of this device, and a line about it."""
        batch, began = next(self.batches), self.clock.seconds
        if batch.fresh_B is not None:
            self.state = None
        # No two devices draw alike: what is averaged is the better for it, and costs no more.
        draw = self.step * self.num_devices + self.rank
        loss, after = self.method.module(batch.inputs_BT, batch.targets_BT, self.state, draw)
        loss.backward()
        self.state = (after[0].detach(), after[1].detach())
        self.method.step()
        self.step += 1
        self.tokens += batch.num_targets
        rate = batch.num_targets / (self.clock.seconds - began)
        event = "train" if self.step > self.method.dense_steps else "dense"
        if event == "dense":
            self.dense_seconds = self.clock.seconds
        self.write(event, **self.record(), loss=float(loss.detach()), tokens_per_second=rate)

    def spent(self) -> bool:
        """Whether to stop; where seconds count, those of the first device."""
        if self.arguments.seconds is None or self.tokens >= self.arguments.tokens:
            return self.tokens >= int(self.arguments.tokens)
        seconds = torch.tensor(self.clock.seconds - self.dense_seconds)
        dist.broadcast(seconds, src=0)
        enough = self.step >= self.method.dense_steps + LEAST_STEPS
        return enough and float(seconds) >= self.arguments.seconds

    def save(self) -> None:
        """Save the weights, or their mean where the devices' differ, while the clock stands still.

        The devices share a disk, over which the mean is taken, so that measuring sends nothing.
        """
        with self.clock.paused():
            weights = self.model.weights()
            if not self.method.same_weights:
                save_file(weights, self._own_weights(self.rank))
            dist.barrier()
            if self.rank == 0 and self.step not in self.checkpoints.steps:
                if not self.method.same_weights:
                    files = [self._own_weights(rank) for rank in range(self.num_devices)]
                    weights = mean_weights(files)
                self.checkpoints.save(self.step, {"model": weights}, self.record())
                self.checkpoints.wait()
            dist.barrier()

    def record(self) -> dict[str, float]:
        """What is counted, by the names in metrics.jsonl; bytes of all devices together."""
        method = self.method
        found = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": round(self.clock.seconds, 3),
            "wall_seconds": round(self.clock.wall_seconds, 3),
            "bytes_sent": round(method.bytes_sent * self.num_devices),
        }
        if method.exchange_seconds is not None:
            found["exchange_seconds"] = round(method.exchange_seconds, 3)
        return found

    def about(self) -> list[tuple[str, object]]:
        """What was asked for."""
        return sorted(vars(self.arguments).items())

    def write(self, event: str, **values: object) -> None:
        """A line of metrics.jsonl, if this is the first device."""
        if self.rank == 0:
            self.metrics.write(event, **values)

    def _own_weights(self, rank: int) -> Path:
        out: Path = self.arguments.out
        return out / f"device-{rank}.safetensors"


def settings(arguments: argparse.Namespace) -> RunConfig:
    """What the run folder says of the run, as far as thinwire's settings can say it."""
    rows = {"adagrad": "adagrad_full"}.get(arguments.optimizer, arguments.optimizer)
    optim = {"kind": arguments.optimizer, "rows": rows, "schedule": "constant"}
    return RunConfig.from_dict(
        {
            "run": {
                "seed": arguments.seed,
                "tokens": arguments.tokens,
                "threads": arguments.threads,
                "workers": dist.get_world_size(),
                "device": "cpu",
            },
            "data": {"batch": arguments.batch},
            "loss": {"kind": arguments.loss},
            "optim": optim | {"lr": arguments.lr, "row_lr": arguments.lr},
            "checkpoint": {"keep": 1000},
        }
    )


def make_method(model: Model, arguments: argparse.Namespace) -> Method:
    """The method by its name."""
    updater = Updater(arguments.optimizer, model.parameters(), arguments.lr)
    if arguments.method == "diloco":
        return DiLoCo(model, updater, arguments.inner_steps)
    if arguments.method == "sparta":
        return Sparta(model, updater, arguments.seed)
    return DDP(model, updater, arguments.method, arguments.dense_steps)


def mean_weights(files: list[Path]) -> dict[str, Tensor]:
    """The mean of each weight over these files."""
    mean = load_file(files[0])
    for file in files[1:]:
        for name, weight in load_file(file).items():
            mean[name] += weight
    return {name: weight / len(files) for name, weight in mean.items()}


if __name__ == "__main__":
    main()

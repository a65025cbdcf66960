"""A trained model, from its run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

import torch

from thinwire.data.text import lines_of, one_line
from thinwire.data.tokenizers import Tokenizer
from thinwire.errors import UserError
from thinwire.inference.generate import Sampling, write
from thinwire.inference.neural_cache import Histories, NeuralCache, cached_logprobs, mixed
from thinwire.inference.score import Score, score_lines, score_lines_cached
from thinwire.language_model import LanguageModel
from thinwire.runs.adapter_file import AdapterFile
from thinwire.runs.averaging import average_parameters
from thinwire.runs.checkpoints import Checkpoints
from thinwire.runs.device import find_device
from thinwire.runs.evaluation import (
    Evaluation,
    Ids,
    Tally,
    evaluate,
    lines_in_order,
    spans_of,
)
from thinwire.runs.folder import RunFolder


def load(
    run: Path | str,
    step: int | None = None,
    *,
    adapter: str | None = None,
    average: int | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> TrainedModel:
    """Load a trained model.

    Args:
        run: a run folder.
        step: which of its steps; None: the one with the best validation.
        adapter: the name of adaptation layers beside it, made by `thinwire adapt --method layers`;
            they decide on the step.
        average: instead of one step, the mean of the parameters of this many newest steps on disk.
        device: `auto` (CUDA where there is one, else the CPU), `cpu`, `cuda` or `mps`.
        threads: compute threads of this process from now on; None: as many as PyTorch uses.

    Raises:
        UserError: there is no such run or step, it is damaged, or its tokenizer is of another
            model. A damaged step is passed over, aloud, unless it was asked for.
    """
    folder = RunFolder.open(Path(run))
    if threads is not None:
        if threads < 1:
            raise UserError(f"{threads} threads were asked for, but it must be 1 or more")
        torch.set_num_threads(threads)
    where = find_device(device)
    tokenizer = Tokenizer.load(folder.tokenizer_file)
    if average is not None and (step is not None or adapter is not None):
        raise UserError("an average is of the newest steps: name no step and no adapter with it")
    if average is not None:
        checkpoints = Checkpoints(folder.path)
        steps, parameters = average_parameters(checkpoints, average)
        saved = checkpoints.load(steps[-1])
        model = folder.load_model(saved, parameters).to(where)
    elif adapter is not None:
        if step is not None:
            raise UserError("an adapter goes with the step that it was trained on: name no step")
        layers = AdapterFile.open(folder.path, adapter)
        folder, saved = layers.on(folder)
        model = folder.load_model(saved, layers.parameters).to(where)
    else:
        saved = Checkpoints(folder.path).load("best" if step is None else step)
        model = folder.load_model(saved).to(where)
    for name, of_model, of_tokenizer in (
        ("words", model.vocab_size, tokenizer.vocab_size),
        ("for the id of the end of a line", folder.eos_id, tokenizer.eos_id),
        ("for the id of unknown words", folder.unk_id, tokenizer.unk_id),
    ):
        if of_model != of_tokenizer:
            raise UserError(
                f"{folder.tokenizer_file} does not fit the model: it has {of_tokenizer} {name}, "
                f"and the model has {of_model}"
            )
    return TrainedModel(folder, saved.step, tokenizer, model)


@dataclass(frozen=True)
class TrainedModel:
    """A model to score text with, and to write it; made by `load`.

    Attributes:
        run: the run folder and its settings.
        step: the step that was loaded.
        tokenizer: text to ids and back.
        model: the network, ids to log-probabilities.
    """

    run: RunFolder
    step: int
    tokenizer: Tokenizer
    model: LanguageModel

    def score(self, text: str) -> Score:
        """The natural-log probability of a text, its tokens and unknown words counted.

        Each line starts from a fresh state, and its end counts as a token; the lines' scores are
        summed. Every probability is exact, normalised over the whole vocabulary. The text is read
        as a file is: CR LF ends a line, and a byte order mark at its beginning is left out.

        Raises:
            UserError: the text holds a NUL character, or what UTF-8 cannot hold.
        """
        scores = list(self._score_lines(lines_of(text)))
        return Score(
            sum(score.logprob for score in scores),
            sum(score.num_tokens for score in scores),
            sum(score.num_unknown for score in scores),
        )

    def score_lines(self, lines: Iterable[str]) -> Iterator[Score]:
        """The score of each line, in their order; many at a time are fast, however many.

        Each may have its line end or not; memory does not grow with their number.

        Raises:
            UserError: a line holds a line end elsewhere, a NUL character, or what UTF-8 cannot
                hold.
        """
        return self._score_lines(map(one_line, lines))

    def _score_lines(self, lines: Iterable[str]) -> Iterator[Score]:
        return score_lines(self.model, self.tokenizer, lines, window=self.run.config.data.length)

    def score_lines_cached(
        self, lines: Iterable[str], cache: NeuralCache
    ) -> Iterator[tuple[Score, Score]]:
        """The score of each line, and the score with a neural cache of the lines before it.

        States start afresh at each line, as in `score_lines`; the cache goes on over the lines.
        """
        return score_lines_cached(
            self.model,
            self.tokenizer,
            map(one_line, lines),
            cache,
            window=self.run.config.data.length,
        )

    def perplexity(self, text: str) -> float:
        """exp of the mean negative log-probability of the text's tokens, scored as by `score`."""
        return self.score(text).perplexity

    def evaluate(
        self, ids: Ids, advance: Callable[[int], object] = lambda num_tokens: None
    ) -> Evaluation:
        """The exact perplexity of a whole text, given as ids, the state carried over its lines.

        `advance` hears of the tokens scored, as they are.
        """
        return evaluate(
            self.model,
            ids,
            eos_id=self.tokenizer.eos_id,
            unk_id=self.tokenizer.unk_id,
            data=self.run.config.data,
            advance=advance,
        )

    def evaluate_cached(
        self,
        ids: Ids,
        cache: NeuralCache,
        advance: Callable[[int], object] = lambda num_tokens: None,
    ) -> Evaluation:
        """The same with a neural cache, which remembers what the text itself has shown so far.

        Each stream of the text has a cache of its own; of a model of single lines, one goes
        through all lines.
        """
        data, eos_id = self.run.config.data, self.tokenizer.eos_id
        spans = spans_of(ids, eos_id, data)
        by_line = data.context == "line"
        tally = Tally(self.tokenizer.unk_id, advance)
        for logprob_N, cache_GN, targets_N, _ in cached_logprobs(
            self.model,
            ids,
            lines_in_order(ids, eos_id) if by_line else spans,
            Histories(cache.size, shared=by_line),
            [cache.theta],
            eos_id=eos_id,
            window=data.length,
        ):
            tally.add(mixed(logprob_N, cache_GN[0], cache.weight), targets_N)
        return tally.evaluation()

    def adapt(
        self,
        text: str | Path | Sequence[str | Path],
        *,
        out: str | Path,
        method: Literal["continue", "layers"] = "continue",
        mix: str | Path | None = None,
        mix_ratio: float | None = None,
        new_words: int = 0,
        valid: str | Path | float | None = None,
        seconds: float | None = None,
        tokens: int | None = None,
        seed: int = 1,
        threads: int = 0,
    ) -> TrainedModel:
        """Adapt this model to new text, as `thinwire adapt` does, and return the adapted model.

        Args:
            text: files, folders or globs of new text.
            out: the run folder to create; this model's own stays as it is.
            method: `continue` trains all parameters further, `layers` small layers alone.
            mix: old text or its data folder; None: what the model was trained on, if still there.
            mix_ratio: tokens of old text for each token of new text.
            new_words: at most this many words of the new text are added to the vocabulary.
            valid: held-out new text, or the fraction of the lines to hold out.
            seconds: training budget in seconds.
            tokens: training budget in tokens, those of the old text included.
            seed: everything random follows from it.
            threads: compute threads; 0: as many as there are cores.

        Raises:
            UserError: what `thinwire adapt` would refuse.
        """
        # By name, for adaptation starts workers and so stands above this layer.
        run_adaptation = import_module("thinwire.adapt.adapt").adapt
        options = import_module("thinwire.adapt.options").AdaptOptions(
            method=method,
            mix_ratio=mix_ratio,
            new_words=new_words,
            valid=str(valid) if isinstance(valid, Path) else valid,
            seconds=seconds,
            tokens=tokens,
            seed=seed,
            threads=threads,
        )
        texts = [text] if isinstance(text, str | Path) else text
        run_adaptation(
            self.run.path,
            [str(one) for one in texts],
            out,
            options,
            mix_with=None if mix is None else str(mix),
            step=self.step,
        )
        return load(out, device=self.model.embedding.weight.device.type)

    def generate(
        self,
        prompt: str = "",
        *,
        tokens: int = 100,
        temperature: float = Sampling.temperature,
        top_k: int = Sampling.top_k,
        top_p: float = Sampling.top_p,
        seed: int = Sampling.seed,
    ) -> str:
        """The prompt and `tokens` tokens that go on from it; the end of a line is one of them.

        Args:
            prompt: may be empty, or have several lines.
            tokens: how many to add.
            temperature: below 1 the probable tokens are more probable than the model says; 0:
                always the most probable one.
            top_k: only the most probable so many; 0: all.
            top_p: only the fewest, most probable ones that hold this part of the probability.
            seed: the same seed gives the same text.

        Raises:
            UserError: one of them is out of its range.
        """
        return "".join(
            self.stream(
                prompt,
                tokens=tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed,
            )
        )

    def stream(
        self,
        prompt: str = "",
        *,
        tokens: int = 100,
        temperature: float = Sampling.temperature,
        top_k: int = Sampling.top_k,
        top_p: float = Sampling.top_p,
        seed: int = Sampling.seed,
    ) -> Iterator[str]:
        """What `generate` returns, in pieces as they are written."""
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        return write(self.model, self.tokenizer, prompt, tokens, sampling, self.run.config.data)

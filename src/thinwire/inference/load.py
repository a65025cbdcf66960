"""A trained model, from its run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, overload

import torch
from torch import Tensor

from thinwire.cores import num_threads
from thinwire.data.text import lines_of, one_line
from thinwire.data.tokenizers import Tokenizer
from thinwire.errors import UserError
from thinwire.inference.candidates import (
    Candidate,
    logprobs_of,
    most_probable,
    num_rows_at_a_time,
)
from thinwire.inference.decoding import Decoder, Words, read_prompt, token_id
from thinwire.inference.dynamic_evaluation import DynamicEvaluation, evaluate_dynamic
from thinwire.inference.generate import Sampling, write
from thinwire.inference.neural_cache import NeuralCache, evaluate_cached
from thinwire.inference.score import (
    Score,
    score_lines,
    score_lines_cached,
    score_lines_dynamic,
)
from thinwire.language_model import LanguageModel
from thinwire.models.contract import State
from thinwire.runs.adapter_file import AdapterFile
from thinwire.runs.averaging import average_parameters
from thinwire.runs.checkpoints import Checkpoints
from thinwire.runs.device import find_device
from thinwire.runs.evaluation import Evaluation, Ids, evaluate
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

    Returns:
        The model, ready to score and to write text.

    Raises:
        UserError: there is no such run or step, it is damaged, or its tokenizer is of another
            model. A damaged step is passed over, aloud, unless it was asked for.

    Examples:
        >>> import thinwire
        >>> model = thinwire.load("run", threads=1)
        >>> model.score("the cat sees a dog").num_tokens
        6
    """
    folder = RunFolder.open(Path(run))
    if threads is not None:
        if threads < 1:
            raise UserError(f"{threads} threads were asked for, but it must be 1 or more")
        torch.set_num_threads(num_threads(threads))
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


@dataclass(frozen=True, repr=False)
class TrainedModel:
    """A model to score text with, and to write it; made by `load` and `train`.

    Attributes:
        run: the run folder and its settings.
        loaded_step: the step that was loaded.
        tokenizer: text to ids and back.
        model: the network, ids to log-probabilities.

    Examples:
        >>> import thinwire
        >>> model = thinwire.load("run")
        >>> best = model.next("the cat", k=3)  # exact, over the whole vocabulary
        >>> best[0].logprob >= best[1].logprob >= best[2].logprob
        True
        >>> state = model.start("the cat")  # for a decoder, word by word
        >>> state, logprob = model.step(state, "sees")
        >>> logprob < 0
        True
        >>> model.generate("the cat", tokens=5, seed=1).startswith("the cat")
        True
    """

    run: RunFolder
    loaded_step: int
    tokenizer: Tokenizer
    model: LanguageModel

    def __repr__(self) -> str:
        about = self.run.config.model
        return (
            f"TrainedModel({str(self.run.path)!r}, step {self.loaded_step}: {about.kind} of width "
            f"{about.width}, {self.model.vocab_size:,} words)"
        )

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

    def score_lines_dynamic(
        self, lines: Iterable[str], settings: DynamicEvaluation
    ) -> Iterator[tuple[Score, Score]]:
        """The score of each line, and that by a copy which learns from the lines before it.

        States start afresh at each line, as in `score_lines`.
        """
        return score_lines_dynamic(
            self.model,
            self.tokenizer,
            map(one_line, lines),
            settings,
            window=self.run.config.data.length,
        )

    def perplexity(self, text: str) -> float:
        """exp of the mean negative log-probability of the text's tokens, scored as by `score`."""
        return self.score(text).perplexity

    @overload
    def next(self, prompt: str, k: int = 10, *, words_only: bool = False) -> list[Candidate]: ...
    @overload
    def next(
        self, prompt: list[str], k: int = 10, *, words_only: bool = False
    ) -> list[list[Candidate]]: ...
    def next(
        self, prompt: str | list[str], k: int = 10, *, words_only: bool = False
    ) -> list[Candidate] | list[list[Candidate]]:
        """The k most probable next tokens, the most probable first, exact.

        Every probability is normalised over the whole vocabulary. Of equally probable tokens the
        one with the smaller id comes first.

        Args:
            prompt: what comes before, from the beginning of a line on; may have several lines. A
                list of prompts gives a list for each; many at a time are fast, however many.
            k: how many; at most the whole vocabulary.
            words_only: leave out the unknown word and the end of the line.

        Raises:
            UserError: k is below 1, or a prompt holds what no text holds.
        """
        if k < 1:
            raise UserError(f"the {k} most probable words were asked for, but it must be 1 or more")
        ends = (self.tokenizer.eos_id, self.tokenizer.unk_id)
        without = [id for id in ends if id is not None] if words_only else []
        found = []
        for hidden_nD in self._last_hidden([prompt] if isinstance(prompt, str) else prompt):
            logprob_nK, ids_nK = most_probable(self.model, hidden_nD, k, without)
            found += [
                [Candidate(self.tokenizer.token(id), p, id) for p, id in zip(*row, strict=True)]
                for row in zip(logprob_nK.tolist(), ids_nK.tolist(), strict=True)
            ]
        return found[0] if isinstance(prompt, str) else found

    def logprobs(self, prompt: str | list[str], words: list[str] | list[int]) -> Tensor:
        """The natural-log probability of each of these words as the next one, exact.

        Args:
            prompt: as for `next`.
            words: words, each a single token, or token ids.

        Returns:
            `[K]` for K words; for a list of N prompts `[N, K]`. Memory does not grow with N times
            the vocabulary.

        Raises:
            UserError: a word is not one token, or an id is not in the vocabulary.
        """
        ids_K = self._ids(words)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        rows = [
            logprobs_of(self.model, hidden, ids_K).cpu() for hidden in self._last_hidden(prompts)
        ]
        logprob_NK = torch.cat(rows) if rows else torch.zeros(0, len(ids_K))
        return logprob_NK[0] if isinstance(prompt, str) else logprob_NK

    def start(self, prompt: str | list[str] = "") -> State:
        """The state of a decoder that has read a prompt; of several prompts, side by side.

        A state is a tuple of tensors whose first dimension is the batch; none is changed later.
        `thinwire.inference.decoding` has `select` and `stack` for beams. Without a prompt it is the
        state at the beginning of a line.
        """
        return self._decoder.read(self._read([prompt] if isinstance(prompt, str) else prompt))

    @overload
    def step(self, state: State, word: str | int) -> tuple[State, float]: ...
    @overload
    def step(self, state: State, word: Words) -> tuple[State, Tensor]: ...
    def step(self, state: State, word: str | int | Words) -> tuple[State, float | Tensor]:
        """Read one more word: the state after it, and its natural-log probability, exact.

        Over a line and its end (`model.tokenizer.eos_id`) these add up to the line's score.

        Args:
            state: of `start`, or of an earlier step; it stays as it is.
            word: a word that is a single token, or a token id; for a batch a list or a tensor of
                ids, one for each member.

        Returns:
            The new state, and a float, or `[B]` for a batch.

        Raises:
            UserError: a word is not one token, an id is not in the vocabulary, or there are more
                or fewer words than the batch has members.
        """
        ids_B = self._ids_for(state, word)
        after, logprob_B = self._decoder.step(state, ids_B)
        return after, float(logprob_B) if isinstance(word, str | int) else logprob_B.cpu()

    def advance(self, state: State, word: str | int | Words) -> State:
        """`step` without the probability and its cost, where `distribution` has told it."""
        return self._decoder.advance(state, self._ids_for(state, word))

    def distribution(self, state: State) -> Tensor:
        """The natural-log probability of every word as the next one, exact, `[B, V]`."""
        return self._decoder.distribution(state)

    @property
    def _decoder(self) -> Decoder:
        return Decoder(self.model, self.tokenizer.eos_id, self.run.config.data)

    def _last_hidden(self, prompts: list[str]) -> Iterator[Tensor]:
        """The hidden states after some prompts, a few prompts at a time."""
        size = num_rows_at_a_time(self.model.vocab_size)
        for first in range(0, len(prompts), size):
            yield self._decoder.hidden(self._read(prompts[first : first + size]))

    def _read(self, prompts: list[str]) -> list[list[int]]:
        return [read_prompt(self.tokenizer, prompt) for prompt in prompts]

    def _ids_for(self, state: State, word: str | int | Words) -> Tensor:
        words: Sequence[str | int] | Tensor = [word] if isinstance(word, str | int) else word
        ids_B = self._ids(words.tolist() if isinstance(words, Tensor) else words)
        if len(ids_B) != len(state[0]):
            raise UserError(f"{len(ids_B)} words were given for a state of {len(state[0])}")
        return ids_B

    def _ids(self, words: Sequence[str | int]) -> Tensor:
        ids = [token_id(self.tokenizer, word) for word in words]
        return torch.tensor(ids, dtype=torch.int64, device=self.model.embedding.weight.device)

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
        return evaluate_cached(
            self.model,
            ids,
            cache,
            eos_id=self.tokenizer.eos_id,
            unk_id=self.tokenizer.unk_id,
            data=self.run.config.data,
            advance=advance,
        )

    def evaluate_dynamic(
        self,
        ids: Ids,
        settings: DynamicEvaluation,
        advance: Callable[[int], object] = lambda num_tokens: None,
    ) -> tuple[Evaluation, Evaluation]:
        """The text as one stream: the model as it is, and a copy that learns from what it has read.

        A model of single lines starts afresh at each of them, and learns on from line to line.
        """
        return evaluate_dynamic(
            self.model,
            ids,
            settings,
            eos_id=self.tokenizer.eos_id,
            unk_id=self.tokenizer.unk_id,
            data=self.run.config.data,
            advance=advance,
        )

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
            step=self.loaded_step,
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

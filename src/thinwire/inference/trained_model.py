"""The model that `load` and `train` return: scoring, decoding, generation, evaluation, adaptation.

Each method is a short call of the module that does the work: `score`, `text_decoder`, `generate`,
`runs.evaluation`, `neural_cache`, `dynamic_evaluation`, `adapt`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, overload

from torch import Tensor

from thinwire.data.text import lines_of, one_line
from thinwire.data.tokenizers import Tokenizer
from thinwire.inference.candidates import Candidate
from thinwire.inference.decoding import Words
from thinwire.inference.dynamic_evaluation import DynamicEvaluation, evaluate_dynamic
from thinwire.inference.generate import Sampling, write
from thinwire.inference.neural_cache import NeuralCache, evaluate_cached
from thinwire.inference.score import (
    Score,
    score_lines,
    score_lines_cached,
    score_lines_dynamic,
)
from thinwire.inference.text_decoder import TextDecoder
from thinwire.language_model import LanguageModel
from thinwire.models.contract import State
from thinwire.runs.evaluation import Evaluation, Ids, evaluate
from thinwire.runs.folder import RunFolder


@dataclass(frozen=True, repr=False)
class TrainedModel:
    """A trained model that scores and generates text; `load` and `train` return it.

    Attributes:
        run: the run folder and its settings.
        loaded_step: the step that was loaded.
        tokenizer: turns text into token ids and back.
        model: the network, which turns token ids into log-probabilities.

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
        as a file is: CR LF ends a line, and a byte order mark at its beginning is skipped.

        Raises:
            UserError: the text contains a NUL character, or a character that UTF-8 cannot encode.
        """
        scores = list(self._score_lines(lines_of(text)))
        return Score(
            sum(score.logprob for score in scores),
            sum(score.num_tokens for score in scores),
            sum(score.num_unknown for score in scores),
        )

    def score_lines(self, lines: Iterable[str]) -> Iterator[Score]:
        """Yield the score of each line, in the order of the lines.

        Lines are batched, so one call with many lines is faster than many calls. Memory does not
        grow with the number of lines. A line may end in a line end or not.

        Raises:
            UserError: a line contains a line end before its last character, a NUL character, or a
                character that UTF-8 cannot encode.
        """
        return self._score_lines(map(one_line, lines))

    def _score_lines(self, lines: Iterable[str]) -> Iterator[Score]:
        return score_lines(self.model, self.tokenizer, lines, window=self.run.config.data.length)

    def score_lines_cached(
        self, lines: Iterable[str], cache: NeuralCache
    ) -> Iterator[tuple[Score, Score]]:
        """Yield two scores of each line: without and with a neural cache of the lines before it.

        The state is reset at each line, as in `score_lines`; the cache is not.
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
        """Yield two scores of each line: by this model, and by a copy that keeps learning.

        The copy learns from the lines before the one it scores. The state is reset at each line, as
        in `score_lines`.
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

        Every probability is normalised over the whole vocabulary. If two tokens are equally
        probable, the one with the smaller id comes first.

        Args:
            prompt: the text before the next token, from the beginning of a line; may have several
                lines. For a list of prompts, a list of candidates is returned for each; prompts are
                batched, so one call with many is faster than many calls.
            k: number of tokens to return; fewer are returned if the vocabulary is smaller.
            words_only: leave out the unknown word and the end of the line.

        Raises:
            UserError: k is below 1, or a prompt contains a NUL character, or a character that UTF-8
                cannot encode.
        """
        found = self._decoder.candidates(_as_list(prompt), k, words_only=words_only)
        return found[0] if isinstance(prompt, str) else found

    def logprobs(self, prompt: str | list[str], words: list[str] | list[int]) -> Tensor:
        """The natural-log probability of each of these words as the next one, exact.

        Args:
            prompt: as for `next`.
            words: words, each a single token, or token ids.

        Returns:
            `[K]` for K words; for a list of N prompts `[N, K]`. The distributions over the whole
            vocabulary are computed for a few prompts at a time, so memory does not grow with N
            times the size of the vocabulary.

        Raises:
            UserError: a word is not one token, or an id is not in the vocabulary.
        """
        logprob_NK = self._decoder.logprobs(_as_list(prompt), words)
        return logprob_NK[0] if isinstance(prompt, str) else logprob_NK

    def start(self, prompt: str | list[str] = "") -> State:
        """The decoder state after a prompt; for a list of prompts, their states as one batch.

        A state is a tuple of tensors whose first dimension is the batch; no tensor is changed in
        place later. `thinwire.inference.decoding` has `select` and `stack` for beam search. Without
        a prompt, the state is that at the beginning of a line.
        """
        return self._decoder.start(_as_list(prompt))

    @overload
    def step(self, state: State, word: str | int) -> tuple[State, float]: ...
    @overload
    def step(self, state: State, word: Words) -> tuple[State, Tensor]: ...
    def step(self, state: State, word: str | int | Words) -> tuple[State, float | Tensor]:
        """Read one more word: the state after it, and its natural-log probability, exact.

        The log-probabilities of a line's words and of its end (`model.tokenizer.eos_id`) add up to
        the line's score.

        Args:
            state: what `start` or an earlier step returned; it is not changed.
            word: a word that is a single token, or a token id; for a batch, a list of words or ids
                or a tensor of ids, one for each member of the batch.

        Returns:
            The new state, and a float, or `[B]` for a batch.

        Raises:
            UserError: a word is not one token, an id is not in the vocabulary, or there are more
                or fewer words than the batch has members.
        """
        after, logprob_B = self._decoder.step(state, word)
        return after, float(logprob_B) if isinstance(word, str | int) else logprob_B.cpu()

    def advance(self, state: State, word: str | int | Words) -> State:
        """The state after one more word, as from `step`, without computing the probability.

        Use it if the probability is known already, for instance from `distribution`.
        """
        return self._decoder.advance(state, word)

    def distribution(self, state: State) -> Tensor:
        """The natural-log probability of every word as the next one, exact, `[B, V]`."""
        return self._decoder.distribution(state)

    @property
    def _decoder(self) -> TextDecoder:
        return TextDecoder(self.model, self.tokenizer, self.run.config.data)

    def evaluate(
        self, ids: Ids, advance: Callable[[int], object] = lambda num_tokens: None
    ) -> Evaluation:
        """The exact perplexity of a whole text, given as token ids.

        The state is carried over from line to line, unless the model was trained on single lines.

        Args:
            ids: the token ids of the text, ends of lines included.
            advance: called with the number of tokens scored since the last call.
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
        """The same as `evaluate`, with a neural cache of the tokens of the text read so far.

        Each stream of the text has a cache of its own. For a model that was trained on single
        lines, one cache is kept over all lines.
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
        """Evaluate the text as one stream twice: with this model, and with a copy that learns.

        The copy takes a gradient step after each chunk of tokens that it has scored. The state of a
        model that was trained on single lines is reset at each line; what it has learnt is kept.

        Returns:
            The evaluation of the model as it is, and that of the copy.
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
            seed: seed of everything random.
            threads: compute threads; 0: as many as there are cores.

        Raises:
            UserError: what `thinwire adapt` would refuse.
        """
        # Imported by name: adaptation starts workers, so its layer is above this one.
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
        adapt_loaded = import_module("thinwire.adapt.loaded").adapt_loaded
        adapted: TrainedModel = adapt_loaded(self, text, out, mix, options)
        return adapted

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
        """The prompt, continued by `tokens` tokens; the end of a line counts as one.

        Args:
            prompt: may be empty, or have several lines.
            tokens: number of tokens to add.
            temperature: divides the logits. Below 1, probable tokens become more probable than the
                model says; 0: always take the most probable token.
            top_k: draw from the k most probable tokens only; 0: from all.
            top_p: draw from the smallest set of tokens whose probabilities add up to at least this.
            seed: the same seed gives the same text.

        Raises:
            UserError: an argument is out of its range.
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
        """Yield what `generate` returns, piece by piece, as soon as each is drawn."""
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        return write(self.model, self.tokenizer, prompt, tokens, sampling, self.run.config.data)


def _as_list(prompt: str | list[str]) -> list[str]:
    return [prompt] if isinstance(prompt, str) else prompt

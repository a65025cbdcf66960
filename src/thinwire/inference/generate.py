"""Text generation: a prompt is continued token by token.

1. An end-of-line and the prompt's tokens are read. (In a Transformer they fill the window, which
   moves on by half its length when it is full.)
2. The exact distribution of the next token is computed without the unknown word, sharpened by the
   temperature, and cut to its most probable part: `top_k` tokens, or the smallest set of tokens
   with a total probability of `top_p` (Holtzman et al. 2020, arXiv 1904.09751).
3. A token is drawn and appended to the prompt.

T tokens, D width, V vocabulary, K tokens that may be drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from thinwire.data.config import DataConfig
from thinwire.data.text import as_read
from thinwire.data.tokenizers import Tokenizer
from thinwire.errors import UserError
from thinwire.inference.decoding import Decoder
from thinwire.language_model import LanguageModel
from thinwire.seeds import torch_generator

# The character that a tokenizer decodes incomplete or invalid UTF-8 to.
INCOMPLETE = "\ufffd"
# Lower temperatures have the same effect; some processors treat numbers below 2.2e-308 as 0.
LOWEST_TEMPERATURE = 1e-300


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings for drawing the next token."""

    temperature: float = 0.8
    """Divides the logits. Below 1, probable tokens become more probable than the model says; 0:
    always take the most probable token."""
    top_k: int = 0
    """Draw from the k most probable tokens only; 0: from all."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens whose probabilities add up to at least this."""
    seed: int = 1
    """Seed of the random draws; the same seed gives the same text."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise UserError(f"the temperature is {self.temperature}, but it must be 0 or above")
        if self.top_k < 0:
            raise UserError(f"top-k is {self.top_k}, but it must be 0 (all) or above")
        if not 0.0 < self.top_p <= 1.0:
            raise UserError(f"top-p is {self.top_p}, but it must be above 0 and at most 1")


def write(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    num_tokens: int,
    sampling: Sampling,
    data: DataConfig,
) -> Iterator[str]:
    """Yield the prompt and `num_tokens` further tokens, piece by piece, as soon as each is drawn.

    Args:
        model: a trained model.
        tokenizer: its tokenizer.
        prompt: may be empty, or have several lines.
        num_tokens: number of tokens to add; an end-of-line counts as one and does not end the text.
        sampling: how tokens are chosen.
        data: `context` says whether the state is reset at each line, `length` how many tokens a
            body without a state sees at a time.
    """
    if num_tokens < 0:
        raise UserError(f"{num_tokens} tokens were asked for, but it must be 0 or more")
    prompt = as_read(prompt, "the prompt")
    *lines, last = (tokenizer.encode(line) for line in prompt.split("\n"))
    before = [id for line in lines for id in [*line, tokenizer.eos_id]]
    shown = tokenizer.decode(last)
    # The space before a word belongs to the word, unless the tokenizer has tokens for spaces.
    yield prompt if shown.endswith((" ", "\t")) else prompt.rstrip(" \t")
    tokens = _tokens(model, tokenizer, [*before, *last], sampling, data)
    yield from spelt(tokenizer, last, shown, islice(tokens, num_tokens))


def _tokens(
    model: LanguageModel,
    tokenizer: Tokenizer,
    context: list[int],
    sampling: Sampling,
    data: DataConfig,
) -> Iterator[int]:
    """Yield tokens that continue the context, endlessly."""
    generator = torch_generator(sampling.seed, "generate")
    decoder = Decoder(model, tokenizer.eos_id, data)
    state = decoder.read([context])
    while True:
        logprob_V = decoder.distribution(state)[0].cpu().to(torch.float64)
        if tokenizer.unk_id is not None:
            logprob_V[tokenizer.unk_id] = -torch.inf
        token = choose(logprob_V, sampling, generator)
        yield token
        state = decoder.advance(state, torch.tensor([token]))


def choose(logprob_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw a token from its log-probabilities, which need not be normalised."""
    if sampling.temperature == 0.0:
        return int(logprob_V.argmax())
    # Relative to the most probable token, so that no temperature makes all logits infinite.
    logit_V = (logprob_V - logprob_V.max()) / max(sampling.temperature, LOWEST_TEMPERATURE)
    if not sampling.top_k and sampling.top_p == 1.0:
        return int(torch.multinomial(logit_V.softmax(0), 1, generator=generator))
    logit_K, ids_K = logit_V.topk(min(sampling.top_k or len(logit_V), len(logit_V)))
    p_K = logit_K.softmax(0)
    # A token is in the set if the more probable tokens have less than top_p together.
    p_K = p_K[p_K.cumsum(0) - p_K < sampling.top_p]
    return int(ids_K[torch.multinomial(p_K, 1, generator=generator)])


def spelt(
    tokenizer: Tokenizer, line: list[int], shown: str, tokens: Iterable[int]
) -> Iterator[str]:
    """Yield the text that each token adds to a line whose text so far is `shown`."""
    line = list(line)
    for token in tokens:
        line.append(token)
        text = tokenizer.decode(line)
        if text.endswith(INCOMPLETE):
            continue
        yield text[len(shown) :]
        line, shown = ([], "") if token == tokenizer.eos_id else (line, text)
    if rest := tokenizer.decode(line)[len(shown) :]:
        yield rest

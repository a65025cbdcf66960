"""Old text: the text that the model was trained on, to rehearse it and to measure forgetting."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thinwire.adapt.data import NOTHING, Split
from thinwire.adapt.text import Text, encode, is_data_folder, open_data
from thinwire.data.corpus import file_digest
from thinwire.data.tokenizers import Tokenizer
from thinwire.errors import UserError
from thinwire.runs.evaluation import Ids
from thinwire.runs.folder import RunFolder

VALID_FRACTION = 0.02


@dataclass(frozen=True)
class Old:
    """Ids to draw from, held-out text, and the source of both (None: there is no old text)."""

    train: Ids
    valid: Split
    source: str | None


def find_old(run: RunFolder, mix: str | Path | None, tokenizer: Tokenizer) -> Old:
    """Open the old text: `--mix`, or else the data folder of the run, if it is still there.

    Args:
        run: the run that is adapted.
        mix: a data folder with the tokenizer of the run, or text: a file, folder or glob.
        tokenizer: the tokenizer of the run.

    Raises:
        UserError: `mix` is neither.
    """
    digest = file_digest(run.tokenizer_file)
    if mix is None:
        if not is_data_folder(run.data):
            return Old(np.empty(0, np.uint8), NOTHING, None)
        try:
            corpus = open_data(run.data, digest)
        except UserError:  # it has been prepared anew
            return Old(np.empty(0, np.uint8), NOTHING, None)
    elif is_data_folder(mix):
        corpus = open_data(mix, digest)
    else:
        text = Text.read([str(mix)], VALID_FRACTION)
        valid = Split.of_lines(encode(tokenizer, text.valid), text.valid)
        return Old(encode(tokenizer, text.train), valid, str(mix))
    return Old(corpus.ids("train"), Split.of_corpus(corpus, "valid"), str(corpus.path))

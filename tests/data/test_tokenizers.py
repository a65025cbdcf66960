from __future__ import annotations

import json
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers as hf
from hypothesis import given
from hypothesis import strategies as st

from thinwire.data.tokenizer_json import (
    EOS,
    UNK,
    bytes_tokenizer,
    renumbered,
    to_json,
    train_bpe,
    word_tokenizer_json,
)
from thinwire.data.tokenizers import HFTokenizer, Tokenizer, WordTokenizer, find_words
from thinwire.errors import UserError

LINES = [
    "It's a well-known fact: Dr. O'Neill's cat cost £4.50, or 1,200½ roubles...",
    "Ceci n'est pas une pipe, naïve cafe\u0301 — L’État, c’est moi !",
    "Съешь же ещё этих мягких французских булок, да выпей чаю № 5.",
    "نص حكيم له سر قاطع وذو شأن عظيم، مكتوب على ثوب أخضر ١٢٣.",
    "我能吞下玻璃而不伤身体。第三章，２０２６年。",
    "मुझे अंग्रेज़ी नहीं आती। १२३",
    "👩‍👩‍👧 emoji 🇨🇭🎉 and ☂️, tabs\tand\u00a0odd\u3000spaces\x0b\x85\x1c end",
    "",
    "   ",
    f"a literal {UNK} and one in{UNK}side, {EOS} too, {UNK}{UNK}<unk >",
    "a'b'c 'tis don't DON'T o'Clock x''y Ünï'ß",
]

# What Python's own table knows is surely known to both regular expression libraries. U+0295 is
# lower case in older tables and without case in newer ones.
texts = st.text(
    st.characters(exclude_categories=("Cs", "Cn"), exclude_characters="\0\n\u0295"), max_size=60
)
pieces = st.lists(
    st.one_of(texts, st.sampled_from([UNK, EOS, "'", "'s", " ", "don't", "<unk", "é", "١", "的"])),
    max_size=8,
).map("".join)


def both(kind: str, words: list[str]) -> tuple[Tokenizer, hf.Tokenizer]:
    content = word_tokenizer_json(kind, list(dict.fromkeys([*words, UNK, EOS])))
    return Tokenizer.parse(content, "it"), hf.Tokenizer.from_str(content)


def agree(ours: Tokenizer, theirs: hf.Tokenizer, line: str) -> bool:
    with_end = [*ours.encode(line), ours.eos_id]
    return (
        theirs.encode(line).ids == with_end
        and theirs.encode(line, add_special_tokens=False).ids == with_end[:-1]
        and ours.encode_lines([line])[0].tolist() == with_end
    )


@pytest.mark.parametrize("kind", ["word", "space"])
@pytest.mark.parametrize("line", LINES)
def test_hf_tokenizers_gives_the_same_ids(kind: str, line: str) -> None:
    everything = [word for other in LINES for word in find_words(kind, other)]
    ours, theirs = both(kind, everything)
    assert agree(ours, theirs, line)
    ours, theirs = both(kind, sorted(set(everything))[::2])  # every other word is unknown
    assert agree(ours, theirs, line)


@pytest.mark.parametrize("kind", ["word", "space"])
@given(line=pieces)
def test_hf_tokenizers_gives_the_same_ids_for_any_text(kind: str, line: str) -> None:
    ours, theirs = both(kind, find_words(kind, line))
    assert agree(ours, theirs, line)


@given(line=texts)
def test_what_python_splits_is_what_kind_space_splits(line: str) -> None:
    line = "".join(c for c in line if c not in "\x1c\x1d\x1e\x1f")  # no space to Unicode
    if UNK not in line:
        assert find_words("space", line) == line.split()


def test_words_as_the_documentation_says() -> None:
    line = "Dr. O'Neill's 12½ don't — 'tis naïve, cafe\u0301s_我们."
    assert find_words("word", line) == [
        "Dr", ".", "O", "'", "Neill's", "12½", "don't", "—", "'", "tis", "naïve", ",",
        "cafe\u0301s", "_", "我们", ".",
    ]  # fmt: skip
    assert find_words("word", "in<unk>side</s>") == ["in", UNK, "side", "<", "/", "s", ">"]
    assert find_words("space", "in<unk>side</s> </s>") == ["in", UNK, "side</s>", EOS]


@pytest.fixture(scope="module")
def learnt() -> str:
    """A byte-level BPE whose ids do not run as HF `tokenizers` gave them."""
    content = train_bpe(iter(LINES * 3), 400)
    return renumbered(content, sorted(content["model"]["vocab"], reverse=True))


@pytest.fixture(scope="module")
def spelt() -> str:
    return to_json(bytes_tokenizer())


@pytest.mark.parametrize("which", ["learnt", "spelt"])
def test_byte_level_kinds_spell_every_text(which: str, request: pytest.FixtureRequest) -> None:
    content = request.getfixturevalue(which)
    ours, theirs = Tokenizer.parse(content, "it"), hf.Tokenizer.from_str(content)

    @given(line=st.one_of(pieces, st.sampled_from(LINES)))
    def check(line: str) -> None:
        ids = ours.encode(line)
        assert agree(ours, theirs, line)
        assert ours.eos_id not in ids  # even where the text says </s>
        assert ours.decode(ids) == line
        assert theirs.decode(ids) == line

    check()
    assert ours.unk_id is None
    assert ours.token(ours.eos_id) == EOS
    lines = ours.encode_lines(LINES)
    assert ours.decode(id for line in lines for id in line) == "\n".join(LINES) + "\n"


def test_bytes_fit_in_a_byte(spelt: str) -> None:
    tokenizer = Tokenizer.parse(spelt, "it")
    assert tokenizer.vocab_size == 244
    assert len(tokenizer.encode("é€😀a")) == 2 + 3 + 4 + 1


def test_bpe_refuses_a_vocabulary_without_room() -> None:
    with pytest.raises(UserError, match=r"a vocabulary of 200 is too small .* are 244"):
        train_bpe(iter(LINES), 200)


@pytest.mark.parametrize(
    "text",
    [
        'He said, "I don\'t know" (twice); then left.',
        "A half-hearted - no, a whole-hearted - yes/no.",
    ],
)
def test_words_are_put_together_readably(text: str) -> None:
    ours, _ = both("word", find_words("word", text))
    joined = text.replace(" - ", "-")  # which of the two it was, words do not tell
    assert ours.decode(ours.encode(text)) == joined


def test_readable_text_grows_at_its_end() -> None:
    line = 'Well, "he said", it is (so) "it" - 5,000 ... x'
    ours, _ = both("word", find_words("word", line))
    ids = [*ours.encode(line), ours.eos_id, *ours.encode(line)]
    shown = [ours.decode(ids[:length]) for length in range(len(ids) + 1)]
    assert all(more.startswith(less) for less, more in pairwise(shown))


def test_kind_space_is_put_together_with_spaces() -> None:
    ours, _ = both("space", ["a", ",", "b"])
    assert ours.decode([0, 1, 2, ours.eos_id, 0, ours.unk_id]) == f"a , b\na {UNK}"


def given_tokenizer(**parts: object) -> hf.Tokenizer:
    tokenizer = hf.Tokenizer(hf.models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


def test_loads_a_tokenizer_of_others(tmp_path: Path) -> None:
    theirs = given_tokenizer()
    theirs.add_special_tokens(["<eos>"])
    theirs.enable_truncation(2)
    theirs.enable_padding(length=9)
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.load(tmp_path / "tokenizer.json")
    assert isinstance(ours, HFTokenizer)
    assert (ours.vocab_size, ours.unk_id, ours.eos_id) == (4, 2, 3)
    assert ours.encode("a b x a") == [0, 1, 2, 0]
    assert ours.token(3) == "<eos>"


def test_ids_of_others_may_have_holes() -> None:
    theirs = hf.Tokenizer(hf.models.WordLevel({"a": 0, "[UNK]": 5, EOS: 9}, unk_token="[UNK]"))
    ours = Tokenizer.parse(theirs.to_str(), "it")
    assert (ours.vocab_size, ours.token(3), ours.token(9)) == (10, "", EOS)


def test_a_lower_case_tokenizer_is_not_taken_for_ours() -> None:
    content = json.loads(word_tokenizer_json("word", ["a", UNK, EOS]))
    assert isinstance(Tokenizer.parse(json.dumps(content), "it"), WordTokenizer)
    content["normalizer"] = {"type": "Lowercase"}
    ours = Tokenizer.parse(json.dumps(content), "it")
    assert isinstance(ours, HFTokenizer)
    assert ours.encode("A") == [0]


def test_refuses_what_cannot_serve(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone cannot be read: No such file"):
        Tokenizer.load(tmp_path / "gone")
    with pytest.raises(UserError, match=r"no token that can end a line: add one of </s>, "):
        Tokenizer.parse(given_tokenizer().to_str(), "it")
    no_unk = hf.Tokenizer(hf.models.WordLevel({"a": 0, EOS: 1}))
    with pytest.raises(UserError, match="neither names an unknown token nor works on bytes"):
        Tokenizer.parse(no_unk.to_str(), "it")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": 3}', '{"model": {"type": "BPE"}}'])
def test_refuses_what_is_no_tokenizer(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"tokenizer\.json is no tokenizer\.json of HF tokenizers"):
        Tokenizer.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"tokenizer\.json is no tokenizer\.json of HF tokenizers"):
        Tokenizer.load(path)


@pytest.mark.parametrize("id", ["2", 2.5, 3, 0, None])
def test_refuses_ids_that_do_not_count_up(id: object) -> None:
    content = json.loads(word_tokenizer_json("space", ["<unk>", "</s>", "dog"]))
    assert Tokenizer.parse(json.dumps(content), "a").vocab_size == 3
    content["model"]["vocab"]["dog"] = id
    with pytest.raises(UserError, match=r"a is no tokenizer\.json .* 0, 1, 2, \.\.\."):
        Tokenizer.parse(json.dumps(content), "a")


def test_letters_and_numbers_are_the_same_to_both_libraries() -> None:
    known = [
        chr(code)
        for code in range(1, 0x30000)
        if unicodedata.category(chr(code)) not in ("Cs", "Cn", "Co") and chr(code) not in "\n\u0295"
        if unicodedata.category(chr(code)) != "Lo" or code % 16 == 0  # ideographs, syllables
    ]
    lines = [
        " ".join(f"{c}'{c} a{c}1" for c in known[first : first + 1000])
        for first in range(0, len(known), 1000)
    ]
    for kind in ("word", "space"):
        _, theirs = both(kind, [])
        for line in lines:
            found = theirs.pre_tokenizer.pre_tokenize_str(line)
            assert [word for word, _ in found] == find_words(kind, line)


def test_a_literal_end_of_line_never_ends_a_line() -> None:
    ours, theirs = both("space", ["a"])
    for line in (EOS, f"a {EOS} a", f"{UNK}{EOS}", f"{EOS}{UNK} a", f"a{EOS}", f"{EOS} {EOS}"):
        assert agree(ours, theirs, line)
        assert ours.eos_id not in ours.encode(line)
    assert ours.encode(f"a {EOS}") == [0, ours.unk_id]
    # A file of before, which HF tokenizers reads otherwise, means the same here.
    content = json.loads(word_tokenizer_json("space", ["a", UNK, EOS])) | {"normalizer": None}
    assert Tokenizer.parse(json.dumps(content), "it").encode(f"a {EOS}") == [0, 1]


def test_nor_does_that_of_a_tokenizer_of_others() -> None:
    special = given_tokenizer()
    special.add_special_tokens(["<eos>", "<s>"])
    ours = Tokenizer.parse(special.to_str(), "it")
    assert (ours.eos_id, ours.token(ours.eos_id)) == (3, "<eos>")
    assert ours.encode("a <s> <eos> b") == [0, 4, 2, 2, 2, 1]  # "<", "eos", ">"
    assert ours.encode_lines(["<eos>"])[0].tolist() == [2, 2, 2, 3]
    word = hf.Tokenizer(hf.models.WordLevel({"a": 0, "[UNK]": 1, EOS: 2}, unk_token="[UNK]"))
    word.pre_tokenizer = hf.pre_tokenizers.WhitespaceSplit()
    assert Tokenizer.parse(word.to_str(), "it").encode(f"a {EOS}") == [0, 1]


def test_refuses_a_tokenizer_of_bytes_that_lacks_some() -> None:
    level = hf.Tokenizer(hf.models.BPE({"a": 0, "b": 1, EOS: 2}, []))
    level.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    with pytest.raises(UserError, match=r"lacks 239 of the 241 bytes that a text may hold"):
        Tokenizer.parse(level.to_str(), "it")
    pieces = {f"<0x{byte:02X}>": byte for byte in range(256)} | {EOS: 256}
    fallback = hf.Tokenizer(hf.models.BPE(pieces, [], byte_fallback=True))
    assert Tokenizer.parse(fallback.to_str(), "it").encode("é") == [0xC3, 0xA9]
    del pieces["<0xC3>"]
    fallback = hf.Tokenizer(hf.models.BPE(pieces, [], byte_fallback=True))
    with pytest.raises(UserError, match=r"lacks 1 of the 241 bytes .* '<0xC3>' for one"):
        Tokenizer.parse(fallback.to_str(), "it")


def test_bpe_learns_from_parts_of_a_giant_word(capsys: pytest.CaptureFixture[str]) -> None:
    content = train_bpe(iter(["ab" * 100_000]), 300)
    assert "1 lines hold words of more than 256" in " ".join(capsys.readouterr().err.split())
    assert max(map(len, content["model"]["vocab"])) == 256
    train_bpe(iter(["ab " * 1000]), 300)
    assert capsys.readouterr().err == ""

"""Any text comes back exactly; the counts that the dry run's table is based on."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyomni.data import world
from tinyomni.dry_run import PIPELINES
from tinyomni.errors import InputError
from tinyomni.tokenizer import BOS, EOS, PAD, SEPARATORS, SHIPPED, BPETokenizer, train_tokenizer

TOK = BPETokenizer()
AWKWARD = [
    "",
    " ",
    "  a  b ",
    "\n\r\n\t",
    "a\0b\0",
    "\0",
    "▁",
    "a▁ ▁b",
    "<s></s><unk><pad>",
    "<0x41>",
    "é e\u0301",
    "日本語",
    "👩🏽‍🚀",
    "\ufffd",
]


@settings(max_examples=500, deadline=None)
@given(st.text())
def test_any_text_comes_back_exactly(text: str) -> None:
    ids = TOK.encode(text)
    assert TOK.decode(ids) == text
    assert all(3 < number < TOK.n_pieces for number in ids)


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_comes_back_exactly(text: str) -> None:
    assert TOK.decode(TOK.encode(text)) == text


@pytest.mark.parametrize("name", [name for name, each in PIPELINES.items() if each.text])
def test_each_pipelines_sentence_has_the_reference_number_of_tokens(name: str) -> None:
    pipeline = PIPELINES[name]
    assert len(TOK.encode(pipeline.text)) + (name != "speech") == pipeline.reference_tokens


def test_every_word_of_the_world_is_one_piece() -> None:
    assert [word for word in world.vocabulary() if len(TOK.encode(word)) != 1] == []


def test_special_ids_decode_to_nothing_and_the_table_has_room() -> None:
    ids = TOK.encode("There is a red circle.")
    assert TOK.decode([BOS, *ids, EOS, PAD, PAD]) == "There is a red circle."
    assert (PAD, BOS, EOS) == (0, 1, 2) and TOK.n_pieces <= 5000


def test_half_a_character_is_shown_as_such() -> None:
    ids = TOK.encode("é")
    assert TOK.decode(ids[:-1]) == "\ufffd"


def test_training_again_gives_the_same_file(tmp_path: Path) -> None:
    train_tokenizer(world.tokenizer_text(), tmp_path / "again.model")
    assert BPETokenizer(tmp_path / "again.model").pieces("There is a red circle.") == TOK.pieces(
        "There is a red circle."
    )
    train_tokenizer(world.tokenizer_text(), tmp_path / "more.model")
    assert (tmp_path / "again.model").read_bytes() == (tmp_path / "more.model").read_bytes()
    assert BPETokenizer(tmp_path / "again.model").vocabulary()[: TOK.n_pieces] == TOK.vocabulary()


def test_bad_input_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected a string, got int"):
        TOK.encode(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not valid Unicode"):
        TOK.encode("\ud800")
    with pytest.raises(ValueError, match=r"expected ids in 0 … \d+, got 4999"):
        TOK.decode([4999])
    with pytest.raises(TypeError, match="float"):
        TOK.decode([1.0])  # type: ignore[list-item]
    with pytest.raises(FileNotFoundError, match="tinyomni train tokenizer"):
        BPETokenizer(tmp_path / "none.model")
    shipped = SHIPPED.read_bytes()
    no_utf8 = shipped.replace("▁the".encode(), b"\xffabthe", 1), shipped.replace(b"\x0a\x06", b"\xff\x06", 1)
    for number, data in enumerate((b"", b"not a model", shipped[:500], *no_utf8)):
        (tmp_path / f"{number}.model").write_bytes(data)
        with pytest.raises(ValueError, match="damaged"):
            BPETokenizer(tmp_path / f"{number}.model")


def test_a_long_line_is_learned_from_too(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["zebra " * 2000, "a b c"], tmp_path / "x", vocab=300)
    assert len(tokenizer.encode("zebra")) == 1


@pytest.mark.parametrize(
    ("lines", "vocab", "words"),
    [
        ([], 300, "expected lines of text, got 0 lines without a word"),
        (["", "  ", "\t"], 300, "got 3 lines without a word"),
        (["a\ud800"], 300, "not valid Unicode"),
        (["hello world"], 269, "vocab must be at least 270 for the characters of this text, got 269"),
        (["hello"], -3, "got -3"),
    ],
)
def test_a_text_that_cannot_be_learned_is_refused(lines: list[str], vocab: int, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        train_tokenizer(lines, tmp_path / "x", vocab)
    assert not (tmp_path / "x").exists()


def test_short_and_odd_texts_make_a_tokenizer(tmp_path: Path) -> None:
    face = "\N{GRINNING FACE}" * 3000
    for lines, vocab in ((["hello world"], 270), (["a\tb\0"], 266), (["a\nb"] * 3, 300), ([face], 300)):
        tokenizer = train_tokenizer(lines, tmp_path / "x", vocab)
        assert tokenizer.decode(tokenizer.encode(lines[0])) == lines[0]


def test_no_text_gives_a_special_token(tmp_path: Path) -> None:
    own = train_tokenizer(["Is it red? Yes.", "a big red star"] * 9, tmp_path / "own.model", vocab=300)
    separators = own.separators
    assert separators == (own.n_pieces - 2, own.n_pieces - 1)
    for text in ("<|answer|>", " <|scratchpad|>", "".join(SEPARATORS), "red<|answer|>: yes"):
        ids = own.encode(text)
        assert not set(ids) & set(separators) and own.decode(ids) == text
    assert own.decode([*own.encode("a star"), separators.answer, *own.encode("Yes.")]) == "a star: Yes."
    assert own.decode([separators.scratchpad, *own.encode("a star")]) == "a star"
    assert [kind for *_, kind in own.vocabulary()[-2:]] == ["control", "control"]


def test_weights_from_before_have_a_tokenizer_without_special_tokens(tmp_path: Path) -> None:
    own = train_tokenizer(["Is it red? Yes."] * 9, tmp_path / "own.model", vocab=300)
    before = own.model[: own.model.index(b"<|scratchpad|>") - 4]
    (tmp_path / "before.model").write_bytes(before)
    older = BPETokenizer(tmp_path / "before.model")
    assert older.separators is None and older.n_pieces == own.n_pieces - 2
    assert older.encode("Is it red?") == own.encode("Is it red?")

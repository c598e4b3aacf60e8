"""Text ↔ ids: byte-pair encoding, by SentencePiece.

Common words are one piece (with the space before them), rare ones several; what no piece covers is spelled in bytes. So
every Unicode text comes back exactly. Ids: 0 padding, 1 BOS (begin), 2 EOS (end), 3 unknown, which never occurs. Two
special tokens, which no text gives, stand between the parts of a reply (`Separators`).

Sources: Sennrich, Haddow & Birch (2016); Kudo & Richardson, SentencePiece (2018).
"""

import codecs
import hashlib
import io
import struct
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import sentencepiece

from tinyomni.errors import InputError, MissingFileError
from tinyomni.files import whole

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SHIPPED = Path(__file__).parent / "assets" / "tokenizer.model"
SEPARATORS = ("<|scratchpad|>", "<|answer|>")
N_RESERVED = 4 + 256 + len(SEPARATORS)  # the four ids above, a piece for each byte, and these
CONTROL = 3  # the type of such pieces in a SentencePiece model
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's own sign for a space


class Separators(NamedTuple):
    """Ids of the special tokens in a reply: transcript `scratchpad` description and lookup `answer` answer."""

    scratchpad: int
    answer: int


class BPETokenizer:
    """`encode(text)` → ids without BOS; `decode(ids)` → text. Without a path, the tokenizer that ships."""

    def __init__(self, path: str | Path | None = None) -> None:
        source = Path(path) if path is not None else SHIPPED
        if not source.is_file():
            raise MissingFileError(f"BPETokenizer: no such file: {source}. Train one: tinyomni train tokenizer")
        self.model = source.read_bytes()
        self._pieces = sentencepiece.SentencePieceProcessor()
        try:
            loaded = self._pieces.LoadFromSerializedProto(self.model)
            for number in range(self._pieces.get_piece_size()):
                self._pieces.id_to_piece(number)  # raises where a piece is no UTF-8, which loading does not check
        except (RuntimeError, UnicodeDecodeError) as error:
            raise not_a_model(source) from error
        if not loaded or not self.model:
            raise not_a_model(source)
        special = (self._pieces.pad_id(), self._pieces.bos_id(), self._pieces.eos_id(), self._pieces.unk_id())
        if special != (PAD, BOS, EOS, UNK):
            raise InputError(
                f"BPETokenizer: expected pad, BOS, EOS, unk at {(PAD, BOS, EOS, UNK)}, got {special} in {source}. "
                "Train it with tinyomni train tokenizer."
            )

    @cached_property
    def n_pieces(self) -> int:
        """How many ids have a meaning; the Thinker's table may have more rows."""
        return self._pieces.get_piece_size()

    @cached_property
    def separators(self) -> Separators | None:
        """The special tokens; None for a tokenizer without them, as that of weights from before they were there."""
        scratchpad, answer = map(self._pieces.piece_to_id, SEPARATORS)
        return None if UNK in (scratchpad, answer) else Separators(scratchpad, answer)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model file."""
        return hashlib.sha256(self.model).hexdigest()

    @cached_property
    def _bytes(self) -> list[int]:
        return [self._pieces.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]

    def encode(self, text: str) -> list[int]:
        """Text → ids, without BOS. Raises TypeError for another type, InputError for half a surrogate pair."""
        if not isinstance(text, str):
            raise TypeError(f"BPETokenizer.encode: expected a string, got {type(text).__name__}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"BPETokenizer.encode: the text is not valid Unicode ({error.reason})") from error
        if not text:
            return []
        # a space in front makes the first word the same piece as elsewhere; decode takes it away again
        ids: list[int] = []
        for place, part in enumerate((" " + text).split(SPACE)):
            if place:  # the sign itself would come back as a space, so it is spelled in bytes
                ids += [self._bytes[byte] for byte in SPACE.encode()]
            for number, line in enumerate(part.split("\0")):  # SentencePiece ends a string at NUL
                ids += [self._bytes[0]] * (number > 0) + self._pieces.encode(line)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Ids → text. Padding, BOS and EOS are left out; bytes that form no whole character become U+FFFD."""
        return StreamDecoder(self).decode(ids, final=True)

    def piece_bytes(self, number: int) -> bytes:
        """What one id stands for; nothing for padding, BOS and EOS. Before the answer a colon is read."""
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"BPETokenizer.decode: expected ids as integers, got {type(number).__name__}")
        if not 0 <= number < self.n_pieces:
            raise InputError(f"BPETokenizer.decode: expected ids in 0 … {self.n_pieces - 1}, got {number}")
        if self._pieces.is_byte(number):
            return bytes([int(self._pieces.id_to_piece(number)[3:5], 16)])
        if self.separators and number in self.separators:
            return b":" if number == self.separators.answer else b""
        return b"" if number in (PAD, BOS, EOS) else self._pieces.id_to_piece(number).replace(SPACE, " ").encode()

    def vocabulary(self) -> list[tuple[str, float, str]]:
        """Each piece by its id: its text, its score (the best pair is merged first), and normal, byte or control."""

        def kind(number: int) -> str:
            if self._pieces.is_byte(number):
                return "byte"
            return "control" if number in (PAD, BOS, EOS, UNK, *(self.separators or ())) else "normal"

        return [(self._pieces.id_to_piece(n), self._pieces.get_score(n), kind(n)) for n in range(self.n_pieces)]

    def pieces(self, text: str) -> list[str]:
        """The pieces that the ids stand for, to look at."""
        return [self._pieces.id_to_piece(number) for number in self.encode(text)]


class StreamDecoder:
    """Decode ids as they come: the parts together are what `BPETokenizer.decode` gives for all of them.

    A character that needs several byte pieces comes out when it is whole.
    """

    def __init__(self, tokenizer: BPETokenizer) -> None:
        self.tokenizer, self.started = tokenizer, False
        self.utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def decode(self, ids: Sequence[int], final: bool = False) -> str:
        """The text of these ids; `final` also gives what is left of a character that never became whole."""
        text = self.utf8.decode(b"".join(map(self.tokenizer.piece_bytes, ids)), final)
        if text and not self.started:  # the space that `encode` put in front
            self.started, text = True, text.removeprefix(" ")
        return text


def not_a_model(source: Path) -> InputError:
    """The error for a file of another kind."""
    return InputError(f"BPETokenizer: {source} is not a SentencePiece model, or it is damaged")


def train_tokenizer(lines: Iterable[str], path: str | Path, vocab: int = 5000) -> BPETokenizer:
    """Train on lines of text and write the model file; `vocab` is the most pieces that it may have.

    No normalization, punctuation and digits stand alone, bytes for everything that is left over; the special tokens
    come last. Raises InputError for a text that is empty or not valid Unicode, and for a `vocab` that has no room for
    its characters.
    """
    text = [" " + line for line in lines]
    try:
        longest = max((len(line.encode("utf-8")) for line in text), default=0)
    except UnicodeEncodeError as error:
        raise InputError(f"train_tokenizer: the text is not valid Unicode ({error.reason})") from error
    if not any(line.strip() for line in text):
        raise InputError(f"train_tokenizer: expected lines of text, got {len(text)} lines without a word")
    needed = len(set().union(*text) - {"\0"}) + N_RESERVED
    if vocab < needed:
        raise InputError(
            f"train_tokenizer: vocab must be at least {needed} for the characters of this text, got {vocab}"
        )
    # without it, lines of more than 4,192 bytes are left out silently; where there are none, the file stays as it was
    more: dict[str, Any] = {"max_sentence_length": longest} if longest > 4192 else {}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab - len(SEPARATORS),
        hard_vocab_limit=False,
        pad_id=PAD,
        bos_id=BOS,
        eos_id=EOS,
        unk_id=UNK,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
        **more,
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as out:
        out.write_bytes(with_separators(model.getvalue()))
    return BPETokenizer(path)


def with_separators(model: bytes) -> bytes:
    """A SentencePiece model with the special tokens as its last pieces.

    It is a protocol buffer: a message that is appended to another adds to its lists. Each piece is an entry of list 1,
    with its text (1), its score (2), which does not matter here, and its type (3).
    """
    for name in SEPARATORS:
        piece = bytes([0x0A, len(name)]) + name.encode() + b"\x15" + struct.pack("<f", 0.0) + bytes([0x18, CONTROL])
        model += bytes([0x0A, len(piece)]) + piece
    return model

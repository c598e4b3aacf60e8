"""Text ↔ numbers: byte-pair encoding, by SentencePiece.

Common words are one piece (with the space before them), rare ones several; what no piece covers is spelled in bytes. So
every Unicode text comes back exactly. Ids: 0 padding, 1 BOS (begin), 2 EOS (end), 3 unknown, which never occurs.

Sources: Sennrich, Haddow & Birch (2016); Kudo & Richardson, SentencePiece (2018).
"""

import hashlib
import io
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import sentencepiece

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SHIPPED = Path(__file__).parent / "assets" / "tokenizer.model"
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's own sign for a space


class BPETokenizer:
    """`encode(text)` → ids without BOS; `decode(ids)` → text. Without a path, the tokenizer that ships."""

    def __init__(self, path: str | Path | None = None) -> None:
        source = Path(path) if path is not None else SHIPPED
        if not source.is_file():
            raise FileNotFoundError(f"BPETokenizer: there is no file {source}. Train one: tinyomni train tokenizer")
        self.model = source.read_bytes()
        self._pieces = sentencepiece.SentencePieceProcessor()
        try:
            loaded = self._pieces.LoadFromSerializedProto(self.model)
        except RuntimeError as error:
            raise ValueError(f"BPETokenizer: {source} is no SentencePiece model, or it is damaged") from error
        if not loaded or not self.model:
            raise ValueError(f"BPETokenizer: {source} is no SentencePiece model, or it is damaged")
        marks = (self._pieces.pad_id(), self._pieces.bos_id(), self._pieces.eos_id(), self._pieces.unk_id())
        if marks != (PAD, BOS, EOS, UNK):
            raise ValueError(
                f"BPETokenizer: {source} has pad, BOS, EOS, unk at {marks}, expected {(PAD, BOS, EOS, UNK)}"
            )

    @cached_property
    def n_pieces(self) -> int:
        """How many ids have a meaning; the Thinker's table may have more rows."""
        return self._pieces.get_piece_size()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model file."""
        return hashlib.sha256(self.model).hexdigest()

    @cached_property
    def _bytes(self) -> list[int]:
        return [self._pieces.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]

    def encode(self, text: str) -> list[int]:
        """Text → ids, without BOS. Raises TypeError for what is no string, ValueError for half a surrogate pair."""
        if not isinstance(text, str):
            raise TypeError(f"BPETokenizer.encode: expected a string, got {type(text).__name__}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"BPETokenizer.encode: the text is no valid Unicode ({error.reason})") from error
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
        """Ids → text. Padding, BOS and EOS say nothing; bytes that are no whole character become U+FFFD."""
        data = b""
        for place, number in enumerate(ids):
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(
                    f"BPETokenizer.decode: ids should be whole numbers, got {type(number).__name__} at {place}"
                )
            if not 0 <= number < self.n_pieces:
                raise ValueError(
                    f"BPETokenizer.decode: id {number} at {place} has no piece; they go from 0 to {self.n_pieces - 1}"
                )
            if self._pieces.is_byte(number):
                data += bytes([int(self._pieces.id_to_piece(number)[3:5], 16)])
            elif number not in (PAD, BOS, EOS):
                data += self._pieces.id_to_piece(number).replace(SPACE, " ").encode()
        text = data.decode("utf-8", errors="replace")
        return text.removeprefix(" ")

    def pieces(self, text: str) -> list[str]:
        """What the ids stand for, to look at."""
        return [self._pieces.id_to_piece(number) for number in self.encode(text)]


def train_tokenizer(lines: Iterable[str], path: str | Path, vocab: int = 5000) -> BPETokenizer:
    """Train on lines of text and write the model file; `vocab` is the most that it may have.

    No normalisation, punctuation and digits stand alone, bytes for all that is left over.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" " + line for line in lines]),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab,
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
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
    return BPETokenizer(path)

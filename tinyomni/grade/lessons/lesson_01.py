"""Lesson 01, tokens: its oracles count one by one, use a regular expression, or torch's own padding."""

import re
from collections import Counter
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tinyomni.grade.exercise import exercise

NOTEBOOK, TITLE = "01_tokens", "Tokens"

BPE = "2. Train byte-pair encoding by hand"
SPECIAL_TOKENS = "6. Special tokens: BOS, EOS, PAD"
PADDING = "7. Padding to a batch"
EMBEDDING = "8. The embedding table: from ids to vectors"


# ---- byte-pair encoding ---------------------------------------------------------------------------------------------


@exercise("Byte-pair encoding: the best pair", minutes=15, level=2)
def best_pair(words: dict[str, list[str]], counts: dict[str, int]) -> tuple[str, str]:
    """List every pair as often as it occurs, and take the best."""
    every = [pair for word, symbols in words.items() for _ in range(counts[word]) for pair in pairwise(symbols)]
    return min(set(every), key=lambda pair: (-every.count(pair), len("".join(pair)), "".join(pair)))


@best_pair.cases
def _(rng):
    yield (
        "a frequent word outweighs many",
        {
            "words": {"the": list("the"), "cat": list("cat"), "car": list("car"), "cab": list("cab")},
            "counts": {"the": 5, "cat": 1, "car": 1, "cab": 1},
        },
    )
    yield "twice in one word", {"words": {"nono": list("nono"), "or": list("or")}, "counts": {"nono": 2, "or": 3}}
    yield "tie: the shorter pair", {
        "words": {"aab": ["aa", "b"], "yz": ["y", "z"]}, "counts": {"aab": 2, "yz": 2}
    }  # fmt: skip
    yield "tie: the length of both symbols counts", {
        "words": {"abcd": ["a", "bcd"], "efg": ["ef", "g"]}, "counts": {"abcd": 2, "efg": 2}
    }  # fmt: skip
    yield "tie of equal lengths: alphabetical order", {
        "words": {"zy": list("zy"), "ba": list("ba"), "ab": list("ab")}, "counts": {"zy": 3, "ba": 3, "ab": 3}
    }  # fmt: skip
    yield "three in a row are two pairs", {
        "words": {"aaa": list("aaa"), "bc": list("bc")}, "counts": {"aaa": 2, "bc": 3}
    }  # fmt: skip
    yield "a word of one symbol has no pair", {"words": {"a": ["a"], "bc": ["b", "c"]}, "counts": {"a": 9, "bc": 1}}
    yield "pairs do not cross word boundaries", {
        "words": {"ab": list("ab"), "cd": list("cd"), "abc": ["a", "bc"]}, "counts": {"ab": 1, "cd": 2, "abc": 1}
    }  # fmt: skip
    yield "the same letters, split elsewhere, are another pair", {
        "words": {"abc": ["a", "bc"], "abcd": ["ab", "c", "d"], "xy": list("xy")},
        "counts": {"abc": 2, "abcd": 2, "xy": 3},
    }  # fmt: skip
    yield "tie: letters are counted, not bytes", {
        "words": {"été": ["é", "té"], "abcd": ["ab", "cd"]}, "counts": {"été": 2, "abcd": 2}
    }  # fmt: skip


@best_pair.random_inputs
def _(rng):
    texts = ["ca", *("".join(rng.chosen("abc", 6, 2)) for _ in range(rng.size()))]
    symbols = rng.choice(("ab|.", "."))  # with one pair merged already, or none
    return {
        "words": {text: re.findall(symbols, text) for text in texts},
        "counts": {text: rng.size(3) for text in texts},
    }


def best_pair_variant(words, counts, *, weight=lambda count: count, unique=False, offset=1, key=None):
    """`best_pair`; each keyword injects one fault."""
    pairs: Counter[tuple[str, str]] = Counter()
    for word, symbols in words.items():
        matches = list(zip(symbols, symbols[offset:], strict=False))
        for pair in dict.fromkeys(matches) if unique else matches:
            pairs[pair] += weight(counts[word])
    return min(pairs, key=lambda pair: key(pairs[pair], "".join(pair)) if key else (-pairs[pair],))


def bpe_order(count, text):
    """The most frequent first, then the shortest, then alphabetical order."""
    return -count, len(text), text


@best_pair.mutant("every word counts once, ignoring its frequency", BPE)
def _(words, counts):
    return best_pair_variant(words, counts, weight=lambda count: 1, key=bpe_order)


@best_pair.mutant("a pair that occurs twice in a word is counted once", BPE)
def _(words, counts):
    return best_pair_variant(words, counts, unique=True, key=bpe_order)


@best_pair.mutant("the rarest pair is taken", BPE)
def _(words, counts):
    return best_pair_variant(words, counts, key=lambda count, text: (count, len(text), text))


@best_pair.mutant("ties go to the pair that was found first", BPE)
def _(words, counts):
    return best_pair_variant(words, counts)


@best_pair.mutant("ties are broken by the alphabet alone, and not by length first", BPE)
def _(words, counts):
    return best_pair_variant(words, counts, key=lambda count, text: (-count, text))


@best_pair.mutant("ties go to the last pair in the alphabet", BPE)
def _(words, counts):
    return best_pair_variant(
        words, counts, key=lambda count, text: (-count, len(text), [-ord(letter) for letter in text])
    )


@best_pair.mutant("all words are concatenated first, so that pairs cross word boundaries", BPE)
def _(words, counts):
    run = [symbol for word, symbols in words.items() for _ in range(counts[word]) for symbol in symbols]
    return best_pair_variant({"": run}, {"": 1}, key=bpe_order)


@best_pair.mutant("every occurrence counts its position in the word: pairs at the end count for more", BPE)
def _(words, counts):
    pairs: Counter[tuple[str, str]] = Counter()
    for word, symbols in words.items():
        for at, pair in enumerate(pairwise(symbols), 1):
            pairs[pair] += at * counts[word]
    return min(pairs, key=lambda pair: bpe_order(pairs[pair], "".join(pair)))


@best_pair.mutant("the letters of pairs are counted: ab·c is not a·bc", BPE)
def _(words, counts):
    pairs = [pair for symbols in words.values() for pair in pairwise(symbols)]
    texts = Counter("".join(pair) for word, s in words.items() for pair in pairwise(s) for _ in range(counts[word]))
    return min(pairs, key=lambda pair: bpe_order(texts["".join(pair)], "".join(pair)))


@best_pair.mutant("the bytes of a pair are counted, not its letters", BPE)
def _(words, counts):
    return best_pair_variant(words, counts, key=lambda count, text: (-count, len(text.encode()), text))


@best_pair.mutant("the first pair of each word is left out", BPE)
def _(words, counts):
    shorter = {word: symbols[1:] for word, symbols in words.items()}
    return best_pair_variant(shorter, counts, key=bpe_order) if any(map(len, shorter.values())) else ("", "")


@best_pair.mutant("the two symbols are joined: the pair is a tuple of two", BPE)
def _(words, counts):
    return "".join(best_pair_variant(words, counts, key=bpe_order))


@best_pair.mutant("ties go by the alphabet of the last letters", BPE)
def _(words, counts):
    return best_pair_variant(words, counts, key=lambda count, text: (-count, 2, text[::-1]))


@best_pair.alternative
def _(words, counts):
    pairs: Counter[tuple[str, str]] = Counter()
    for word in words:
        for at in range(1, len(words[word])):
            pairs.update({(words[word][at - 1], words[word][at]): counts[word]})
    return sorted(pairs.items(), key=lambda item: bpe_order(item[1], item[0][0] + item[0][1]))[0][0]


@exercise("Byte-pair encoding: merge a pair", minutes=10, level=1)
def merge_pair(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """A regular expression over the symbols, joined with NUL characters."""
    left, right = map(re.escape, pair)
    text = re.sub(rf"(?<![^\0]){left}\0{right}(?![^\0])", lambda match: "".join(pair), "\0".join(symbols))
    return text.split("\0") if symbols else []


@merge_pair.cases
def _(rng):
    yield "twice in a word", {"symbols": list("banana"), "pair": ("a", "n")}
    yield "three in a row", {"symbols": list("aaa"), "pair": ("a", "a")}
    yield "the last two symbols", {"symbols": list("▁the"), "pair": ("h", "e")}
    yield "longer symbols", {"symbols": ["▁t", "he", "▁", "t", "he"], "pair": ("▁t", "he")}
    yield "the same letters, split elsewhere", {"symbols": ["ab", "c", "a", "bc"], "pair": ("a", "bc")}
    yield "the two symbols in reverse order", {"symbols": list("tack"), "pair": ("a", "t")}
    yield "nothing to merge", {"symbols": list("cat"), "pair": ("x", "y")}
    yield "one symbol", {"symbols": ["a"], "pair": ("a", "a")}
    yield "no symbols", {"symbols": [], "pair": ("a", "b")}


@merge_pair.random_inputs
def _(rng):
    symbols = ("a", "b", "ab", "ba")
    return {"symbols": rng.chosen(symbols, 9), "pair": (rng.choice(symbols), rng.choice(symbols))}


def merge_pair_variant(symbols, pair, *, skip=2, max_merges=99, matches=lambda two, pair: two == pair):
    """`merge_pair`, from left to right; each keyword injects one fault."""
    joined, at = [], 0
    while at < len(symbols):
        hit = at + 1 < len(symbols) and max_merges > 0 and matches((symbols[at], symbols[at + 1]), pair)
        joined.append(symbols[at] + symbols[at + 1] if hit else symbols[at])
        at, max_merges = at + (skip if hit else 1), max_merges - hit
    return joined


@merge_pair.mutant("only the first occurrence is merged", BPE)
def _(symbols, pair):
    return merge_pair_variant(symbols, pair, max_merges=1)


@merge_pair.mutant("the right symbol is kept as well: a merge consumes two symbols", BPE)
def _(symbols, pair):
    return merge_pair_variant(symbols, pair, skip=1)


@merge_pair.mutant("merging goes from right to left, so that of three in a row the last two are merged", BPE)
def _(symbols, pair):
    return [
        each[::-1]
        for each in merge_pair_variant([part[::-1] for part in symbols[::-1]], (pair[1][::-1], pair[0][::-1]))
    ][::-1]


@merge_pair.mutant("the letters are compared instead of the two symbols: ab·c is not a·bc", BPE)
def _(symbols, pair):
    return merge_pair_variant(symbols, pair, matches=lambda two, pair: "".join(two) == "".join(pair))


@merge_pair.mutant("the order of the two symbols is ignored", BPE)
def _(symbols, pair):
    return merge_pair_variant(symbols, pair, matches=lambda two, pair: set(two) == set(pair))


@merge_pair.mutant("the last symbol is lost where it is not merged: the loop ends one too early", BPE)
def _(symbols, pair):
    joined = merge_pair_variant(symbols, pair)
    return joined if symbols[-2:] == list(pair) else joined[:-1]


@merge_pair.mutant("the text is searched as a whole, ignoring the boundaries between symbols", BPE)
def _(symbols, pair):
    text, both = "".join(symbols), "".join(pair)
    return [each for each in re.split(f"({re.escape(both)})|(.)", text) if each]


@merge_pair.mutant("the input list is modified in place, though the caller still uses it", BPE)
def _(symbols, pair):
    symbols[:] = merge_pair_variant(symbols, pair)
    return symbols


@merge_pair.alternative
def _(symbols, pair):
    remaining, joined = list(symbols), []
    while remaining:
        joined.append("".join(pair) if tuple(remaining[:2]) == pair else remaining[0])
        remaining = remaining[2:] if tuple(remaining[:2]) == pair else remaining[1:]
    return joined


@merge_pair.alternative
def _(symbols, pair):
    return merge_pair_variant(symbols, pair)


# ---- special tokens and padding -------------------------------------------------------------------------------------


@exercise("Make a padded batch", minutes=15, level=2)
def make_batch(
    rows: list[list[int]], bos: int = 1, eos: int = 2, pad: int = 0
) -> tuple[Int[Tensor, "batch text_tokens"], Int[Tensor, "batch"]]:
    """torch's own padding."""
    whole = [torch.tensor([bos, *row, eos]) for row in rows]
    return pad_sequence(whole, batch_first=True, padding_value=pad), torch.tensor([len(row) for row in whole])


@make_batch.cases
def _(rng):
    rows = [rng.randint(50, length, low=10).tolist() for length in (3, 6, 1)]
    yield "three texts", {"rows": rows}
    yield "other special tokens", {"rows": [[20], [21, 22]], "bos": 7, "eos": 8, "pad": 9}
    yield "one text", {"rows": [[30, 31]]}
    yield "equal lengths", {"rows": [[40, 41], [42, 43]]}
    yield "an empty text still has BOS and EOS", {"rows": [[], [11]]}
    yield "a text that contains the pad id", {"rows": [[11, 9], [12, 13, 14]], "pad": 9}


@make_batch.random_inputs
def _(rng):
    rows = [rng.randint(6, rng.size(5, 0)).tolist() for _ in range(rng.size(4))]
    return {"rows": rows, "bos": rng.size(5, 0), "eos": rng.size(5, 0), "pad": rng.size(5, 0)}


def batch_variant(
    rows,
    bos=1,
    eos=2,
    pad=0,
    *,
    with_bos=True,
    with_eos=True,
    pad_left=False,
    eos_last=False,
    pad_value=None,
    truncate=False,
):
    """`make_batch`; each keyword injects one fault."""
    whole = [[bos] * with_bos + row + [eos] * (with_eos and not eos_last) for row in rows]
    width = (min if truncate else max)(map(len, whole))
    pad_value = pad if pad_value is None else pad_value
    filled = []
    for row in whole:
        padding = [pad_value] * (width - len(row))
        filled.append((padding + row if pad_left else row + padding)[:width] + [eos] * eos_last)
    return torch.tensor(filled), torch.tensor([len(row) + eos_last for row in whole])


@make_batch.mutant("BOS is missing: any length is a valid length, so no shape check notices", SPECIAL_TOKENS)
def _(*inputs, **more):
    return batch_variant(*inputs, **more, with_bos=False)


@make_batch.mutant("EOS is missing: a model that never saw an end never stops", SPECIAL_TOKENS)
def _(*inputs, **more):
    return batch_variant(*inputs, **more, with_eos=False)


@make_batch.mutant("the padding is on the left, so that the texts begin at different positions", PADDING)
def _(*inputs, **more):
    return batch_variant(*inputs, **more, pad_left=True)


@make_batch.mutant("EOS comes after the padding instead of right after the text", PADDING)
def _(*inputs, **more):
    return batch_variant(*inputs, **more, eos_last=True)


@make_batch.mutant("the lengths do not count BOS and EOS", PADDING)
def _(*inputs, **more):
    ids, lengths = batch_variant(*inputs, **more)
    return ids, lengths - 2


@make_batch.mutant("every length is the longest one: then the padding counts as text", PADDING)
def _(*inputs, **more):
    ids, lengths = batch_variant(*inputs, **more)
    return ids, torch.full_like(lengths, ids.shape[1])


@make_batch.mutant("the lengths count the ids that are not `pad`, though a text may contain that id", PADDING)
def _(rows, bos=1, eos=2, pad=0):
    ids, _ = batch_variant(rows, bos, eos, pad)
    return ids, (ids != pad).sum(dim=1)


@make_batch.mutant("the longer texts are truncated to the shortest one", PADDING)
def _(*inputs, **more):
    return batch_variant(*inputs, **more, truncate=True)


@make_batch.mutant("0 is used as padding, ignoring `pad`", SPECIAL_TOKENS)
def _(*inputs, **more):
    return batch_variant(*inputs, **more, pad_value=0)


@make_batch.mutant("EOS is used as padding", SPECIAL_TOKENS)
def _(rows, bos=1, eos=2, pad=0):
    return batch_variant(rows, bos, eos, pad, pad_value=eos)


@make_batch.mutant("BOS and EOS are always 1 and 2, ignoring `bos` and `eos`", SPECIAL_TOKENS)
def _(rows, bos=1, eos=2, pad=0):
    return batch_variant(rows, pad=pad)


@make_batch.mutant("the ids are floats: they cannot index a table", EMBEDDING)
def _(*inputs, **more):
    ids, lengths = batch_variant(*inputs, **more)
    return ids.float(), lengths


@make_batch.alternative
def _(rows, bos=1, eos=2, pad=0):
    lengths = torch.tensor([len(row) for row in rows]) + 2
    ids = torch.full((len(rows), int(lengths.max())), pad)
    ids[:, 0] = bos
    for at, row in enumerate(rows):
        ids[at, 1 : len(row) + 1] = torch.tensor(row, dtype=torch.int64)
        ids[at, len(row) + 1] = eos
    return ids, lengths


@exercise("The padding mask", minutes=5, level=1)
def padding_mask(lengths: Int[Tensor, "batch"], tokens: int) -> Bool[Tensor, "batch tokens"]:
    """Position by position."""
    return torch.tensor([[place < length for place in range(tokens)] for length in lengths.tolist()])


@padding_mask.cases
def _(rng):
    yield "three texts", {"lengths": torch.tensor([3, 5, 1]), "tokens": 6}
    yield "one text that fills its row", {"lengths": torch.tensor([4]), "tokens": 4}
    yield "a row of padding only", {"lengths": torch.tensor([0, 2]), "tokens": 2}
    yield "one token", {"lengths": torch.tensor([1, 1]), "tokens": 1}
    yield "a long text", {"lengths": torch.tensor([1090, 7]), "tokens": 1100}


@padding_mask.random_inputs
def _(rng):
    tokens = rng.size(7)
    return {"lengths": rng.randint(tokens + 1, rng.size()), "tokens": tokens}


@padding_mask.mutant("the first padding position is True: positions start at 0", PADDING)
def _(lengths, tokens):
    return torch.arange(tokens) <= lengths[:, None]


@padding_mask.mutant("the last token of each text is masked out", PADDING)
def _(lengths, tokens):
    return torch.arange(tokens) < lengths[:, None] - 1


@padding_mask.mutant("the mask is inverted: True should mean text", PADDING)
def _(lengths, tokens):
    return torch.arange(tokens) >= lengths[:, None]


@padding_mask.mutant("the padding is expected on the left: it comes after the text", PADDING)
def _(lengths, tokens):
    return (torch.arange(tokens) < lengths[:, None]).flip(1)


@padding_mask.mutant("the mask holds 0 and 1 instead of False and True", PADDING)
def _(lengths, tokens):
    return (torch.arange(tokens) < lengths[:, None]).long()


@padding_mask.mutant("the axes are (tokens, batch): the batch axis comes first", PADDING)
def _(lengths, tokens):
    return torch.arange(tokens)[:, None] < lengths


@padding_mask.mutant("every row has the mask of the longest text", PADDING)
def _(lengths, tokens):
    return (torch.arange(tokens) < lengths.max()).expand(len(lengths), -1)


@padding_mask.mutant("the mask is as wide as the longest text instead of `tokens`", PADDING)
def _(lengths, tokens):
    return torch.arange(int(lengths.max())) < lengths[:, None]


@padding_mask.mutant("an empty row counts as a text of one token", PADDING)
def _(lengths, tokens):
    return torch.arange(tokens) < lengths.clamp(min=1)[:, None]


@padding_mask.mutant("only the last token of each text is True", PADDING)
def _(lengths, tokens):
    return torch.arange(tokens) == lengths[:, None] - 1


@padding_mask.alternative
def _(lengths, tokens):
    mask = torch.zeros(len(lengths), tokens, dtype=torch.bool)
    for row, length in zip(mask, lengths, strict=True):
        row[:length] = True
    return mask


# ---- embedding ------------------------------------------------------------------------------------------------------


@exercise("Look up embeddings", minutes=5, level=1, gradients=("table",))
def embed(
    ids: Int[Tensor, "batch tokens"], table: Float[Tensor, "vocab d_model"]
) -> Float[Tensor, "batch tokens d_model"]:
    """Row by row."""
    return torch.stack([torch.stack([table[number] for number in row]) for row in ids.tolist()])


@embed.cases
def _(rng):
    yield "all sizes different", {"ids": torch.tensor([[1, 0, 9, 4, 3], [2, 9, 9, 10, 8]]), "table": rng.randn(11, 7)}
    yield "a square table", {"ids": rng.randint(4, 2, 3), "table": rng.randn(4, 4)}
    yield "batch 1, one token", {"ids": torch.tensor([[2]]), "table": rng.randn(3, 2)}
    yield "a padded row", {"ids": torch.tensor([[1, 2], [0, 0]]), "table": rng.randn(3, 4)}


@embed.random_inputs
def _(rng):
    vocab = rng.size(6)
    return {"ids": rng.randint(vocab, rng.size(), rng.size()), "table": rng.randn(vocab, rng.size())}


@embed.mutant("each id gets the row before its own: ids start at 0", EMBEDDING)
def _(ids, table):
    return table[ids - 1]


@embed.mutant("columns are taken instead of rows", EMBEDDING)
def _(ids, table):
    return table[:, ids].permute(1, 2, 0)


@embed.mutant("the id is used as a quantity, although it is an index", EMBEDDING)
def _(ids, table):
    return ids[..., None] * table[0]


@embed.mutant("the vectors are multiplied by √d_model; some models do so, ours does not", EMBEDDING)
def _(ids, table):
    return table[ids] * table.shape[1] ** 0.5


@embed.mutant("the vectors are normalized to unit length", EMBEDDING)
def _(ids, table):
    return torch.nn.functional.normalize(table[ids], dim=-1)


@embed.mutant("id 0 gets zeros: in this table padding has a row of its own, like every id", EMBEDDING)
def _(ids, table):
    return table[ids] * (ids != 0)[..., None]


@embed.mutant("every token gets the mean of its text: the order is lost", EMBEDDING)
def _(ids, table):
    return table[ids].mean(dim=1, keepdim=True).expand(-1, ids.shape[1], -1)


@embed.mutant("all texts get the vectors of the first one", EMBEDDING)
def _(ids, table):
    return table[ids[0]].expand(len(ids), -1, -1)


@embed.alternative
def _(ids, table):
    return torch.nn.functional.one_hot(ids, len(table)).to(table.dtype) @ table


@embed.alternative
def _(ids, table):
    return table.index_select(0, ids.flatten()).unflatten(0, tuple(ids.shape))

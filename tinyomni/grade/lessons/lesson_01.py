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

HAND = "2. Learn the pieces, by hand"
MARKS = "6. The marks: begin, end, padding"
BATCH = "7. A batch"
VECTORS = "8. From ids to vectors"


# ---- byte-pair encoding ---------------------------------------------------------------------------------------------


@exercise("The pair to join next", minutes=15, level=2)
def best_pair(words: dict[str, list[str]], counts: dict[str, int]) -> tuple[str, str]:
    """Write every pair down as often as it occurs, and look for the best."""
    every = [pair for word, parts in words.items() for _ in range(counts[word]) for pair in pairwise(parts)]
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
    yield "equally often: the shortest", {
        "words": {"aab": ["aa", "b"], "yz": ["y", "z"]}, "counts": {"aab": 2, "yz": 2}
    }  # fmt: skip
    yield "equally often, equally long: the alphabet", {
        "words": {"zy": list("zy"), "ba": list("ba"), "ab": list("ab")}, "counts": {"zy": 3, "ba": 3, "ab": 3}
    }  # fmt: skip
    yield "a word of one part has no pair", {"words": {"a": ["a"], "bc": ["b", "c"]}, "counts": {"a": 9, "bc": 1}}
    yield "pairs do not reach into the next word", {
        "words": {"ab": list("ab"), "cd": list("cd"), "abc": ["a", "bc"]}, "counts": {"ab": 1, "cd": 2, "abc": 1}
    }  # fmt: skip


def choose(words, counts, *, often=lambda count: count, once=False, apart=1, key=None):
    """The best pair, with one thing to go wrong at a time."""
    pairs: Counter[tuple[str, str]] = Counter()
    for word, parts in words.items():
        found = list(zip(parts, parts[apart:], strict=False))
        for pair in dict.fromkeys(found) if once else found:
            pairs[pair] += often(counts[word])
    return min(pairs, key=lambda pair: key(pairs[pair], "".join(pair)) if key else (-pairs[pair],))


def usual(count, text):
    """The most frequent first, then the shortest, then the alphabet."""
    return -count, len(text), text


@best_pair.mutant("every word counts once, however often it comes", HAND)
def _(words, counts):
    return choose(words, counts, often=lambda count: 1, key=usual)


@best_pair.mutant("a pair that stands in a word twice is counted once", HAND)
def _(words, counts):
    return choose(words, counts, once=True, key=usual)


@best_pair.mutant("the rarest pair is taken", HAND)
def _(words, counts):
    return choose(words, counts, key=lambda count, text: (count, len(text), text))


@best_pair.mutant("ties go to the pair that was met first", HAND)
def _(words, counts):
    return choose(words, counts)


@best_pair.mutant("ties go by the alphabet alone, and not by length first", HAND)
def _(words, counts):
    return choose(words, counts, key=lambda count, text: (-count, text))


@best_pair.mutant("ties go to the end of the alphabet", HAND)
def _(words, counts):
    return choose(words, counts, key=lambda count, text: (-count, len(text), [-ord(letter) for letter in text]))


@best_pair.mutant("all words are joined to one list first, so that pairs reach across a space", HAND)
def _(words, counts):
    run = [part for word, parts in words.items() for _ in range(counts[word]) for part in parts]
    return choose({"": run}, {"": 1}, key=usual)


@best_pair.alternative
def _(words, counts):
    pairs: Counter[tuple[str, str]] = Counter()
    for word in words:
        for at in range(1, len(words[word])):
            pairs.update({(words[word][at - 1], words[word][at]): counts[word]})
    return sorted(pairs.items(), key=lambda item: usual(item[1], item[0][0] + item[0][1]))[0][0]


@exercise("Join it everywhere", minutes=10, level=1)
def merge_pair(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """By a regular expression over the parts, written with a NUL between them."""
    left, right = map(re.escape, pair)
    text = re.sub(rf"(?<![^\0]){left}\0{right}(?![^\0])", lambda match: "".join(pair), "\0".join(parts))
    return text.split("\0") if parts else []


@merge_pair.cases
def _(rng):
    yield "twice in a word", {"parts": list("banana"), "pair": ("a", "n")}
    yield "three in a row", {"parts": list("aaa"), "pair": ("a", "a")}
    yield "the last two", {"parts": list("▁the"), "pair": ("h", "e")}
    yield "longer parts", {"parts": ["▁t", "he", "▁", "t", "he"], "pair": ("▁t", "he")}
    yield "the same letters, cut elsewhere", {"parts": ["ab", "c", "a", "bc"], "pair": ("a", "bc")}
    yield "the other way round", {"parts": list("tack"), "pair": ("a", "t")}
    yield "nothing to join", {"parts": list("cat"), "pair": ("x", "y")}
    yield "one part", {"parts": ["a"], "pair": ("a", "a")}
    yield "no part", {"parts": [], "pair": ("a", "b")}


def join(parts, pair, *, skip=2, most=99, found=lambda two, pair: two == pair):
    """From left to right, with one thing to go wrong at a time."""
    joined, at = [], 0
    while at < len(parts):
        hit = at + 1 < len(parts) and most > 0 and found((parts[at], parts[at + 1]), pair)
        joined.append(parts[at] + parts[at + 1] if hit else parts[at])
        at, most = at + (skip if hit else 1), most - hit
    return joined


@merge_pair.mutant("only the first place is joined", HAND)
def _(parts, pair):
    return join(parts, pair, most=1)


@merge_pair.mutant("the right half stays as well: after a join, two parts are used up", HAND)
def _(parts, pair):
    return join(parts, pair, skip=1)


@merge_pair.mutant("the joining goes from right to left, so that of three in a row the last two are joined", HAND)
def _(parts, pair):
    return [each[::-1] for each in join([part[::-1] for part in parts[::-1]], (pair[1][::-1], pair[0][::-1]))][::-1]


@merge_pair.mutant("the letters are compared instead of the two parts: ab·c is not a·bc", HAND)
def _(parts, pair):
    return join(parts, pair, found=lambda two, pair: "".join(two) == "".join(pair))


@merge_pair.mutant("the order of the two does not count", HAND)
def _(parts, pair):
    return join(parts, pair, found=lambda two, pair: set(two) == set(pair))


@merge_pair.mutant("the last part is lost where it is not joined: the loop ends one too early", HAND)
def _(parts, pair):
    joined = join(parts, pair)
    return joined if parts[-2:] == list(pair) else joined[:-1]


@merge_pair.mutant("all letters are searched as one text, without regard to where the parts end", HAND)
def _(parts, pair):
    text, both = "".join(parts), "".join(pair)
    return [each for each in re.split(f"({re.escape(both)})|(.)", text) if each]


@merge_pair.mutant("the list that was given is changed too, though others still hold it", HAND)
def _(parts, pair):
    parts[:] = join(parts, pair)
    return parts


@merge_pair.alternative
def _(parts, pair):
    rest, joined = list(parts), []
    while rest:
        joined.append("".join(pair) if tuple(rest[:2]) == pair else rest[0])
        rest = rest[2:] if tuple(rest[:2]) == pair else rest[1:]
    return joined


@merge_pair.alternative
def _(parts, pair):
    return join(parts, pair)


# ---- marks and padding ----------------------------------------------------------------------------------------------


@exercise("Begin, end, and fill up", minutes=15, level=2)
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
    yield "other marks", {"rows": [[20], [21, 22]], "bos": 7, "eos": 8, "pad": 9}
    yield "one text", {"rows": [[30, 31]]}
    yield "equally long", {"rows": [[40, 41], [42, 43]]}
    yield "an empty text has its marks", {"rows": [[], [11]]}
    yield "an id that is the padding's too", {"rows": [[11, 9], [12, 13, 14]], "pad": 9}


def batch(rows, bos=1, eos=2, pad=0, *, front=True, end=True, left=False, late=False, fill=None, short=False):
    """Padded rows, with one thing to go wrong at a time."""
    whole = [[bos] * front + row + [eos] * (end and not late) for row in rows]
    width = (min if short else max)(map(len, whole))
    fill = pad if fill is None else fill
    filled = []
    for row in whole:
        gap = [fill] * (width - len(row))
        filled.append((gap + row if left else row + gap)[:width] + [eos] * late)
    return torch.tensor(filled), torch.tensor([len(row) + late for row in whole])


@make_batch.mutant("BOS is forgotten: any length is a right length, so no shape check sees it", MARKS)
def _(*inputs, **more):
    return batch(*inputs, **more, front=False)


@make_batch.mutant("EOS is forgotten: a model that never saw an end never stops", MARKS)
def _(*inputs, **more):
    return batch(*inputs, **more, end=False)


@make_batch.mutant("the padding stands at the left, so that the texts begin at different positions", BATCH)
def _(*inputs, **more):
    return batch(*inputs, **more, left=True)


@make_batch.mutant("EOS comes after the padding instead of right behind the text", BATCH)
def _(*inputs, **more):
    return batch(*inputs, **more, late=True)


@make_batch.mutant("the lengths do not count BOS and EOS", BATCH)
def _(*inputs, **more):
    ids, lengths = batch(*inputs, **more)
    return ids, lengths - 2


@make_batch.mutant("every length is the longest one: then the padding counts as text", BATCH)
def _(*inputs, **more):
    ids, lengths = batch(*inputs, **more)
    return ids, torch.full_like(lengths, ids.shape[1])


@make_batch.mutant("the lengths are counted from the ids that are not padding, though a text may hold that id", BATCH)
def _(rows, bos=1, eos=2, pad=0):
    ids, _ = batch(rows, bos, eos, pad)
    return ids, (ids != pad).sum(dim=1)


@make_batch.mutant("the longer texts are cut to the shortest one", BATCH)
def _(*inputs, **more):
    return batch(*inputs, **more, short=True)


@make_batch.mutant("0 is filled in, whatever `pad` says", MARKS)
def _(*inputs, **more):
    return batch(*inputs, **more, fill=0)


@make_batch.mutant("EOS is filled in instead of the padding", MARKS)
def _(rows, bos=1, eos=2, pad=0):
    return batch(rows, bos, eos, pad, fill=eos)


@make_batch.mutant("the marks are always 1 and 2, whatever `bos` and `eos` say", MARKS)
def _(rows, bos=1, eos=2, pad=0):
    return batch(rows, pad=pad)


@make_batch.mutant("the ids are floats: nothing can be looked up with them", VECTORS)
def _(*inputs, **more):
    ids, lengths = batch(*inputs, **more)
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


@exercise("Which positions count?", minutes=5, level=1)
def padding_mask(lengths: Int[Tensor, "batch"], tokens: int) -> Bool[Tensor, "batch tokens"]:
    """Position by position."""
    return torch.tensor([[place < length for place in range(tokens)] for length in lengths.tolist()])


@padding_mask.cases
def _(rng):
    yield "three texts", {"lengths": torch.tensor([3, 5, 1]), "tokens": 6}
    yield "one text that fills its row", {"lengths": torch.tensor([4]), "tokens": 4}
    yield "a row of padding only", {"lengths": torch.tensor([0, 2]), "tokens": 2}
    yield "one token", {"lengths": torch.tensor([1, 1]), "tokens": 1}


@padding_mask.mutant("the first position of the padding counts too: places begin at 0", BATCH)
def _(lengths, tokens):
    return torch.arange(tokens) <= lengths[:, None]


@padding_mask.mutant("the last token of each text is left out", BATCH)
def _(lengths, tokens):
    return torch.arange(tokens) < lengths[:, None] - 1


@padding_mask.mutant("the mask is inverted: True should mean text", BATCH)
def _(lengths, tokens):
    return torch.arange(tokens) >= lengths[:, None]


@padding_mask.mutant("the texts are looked for at the right: padding comes after them", BATCH)
def _(lengths, tokens):
    return (torch.arange(tokens) < lengths[:, None]).flip(1)


@padding_mask.mutant("the mask holds 0 and 1 instead of False and True", BATCH)
def _(lengths, tokens):
    return (torch.arange(tokens) < lengths[:, None]).long()


@padding_mask.mutant("the batch stands in the columns: it comes first, always", BATCH)
def _(lengths, tokens):
    return torch.arange(tokens)[:, None] < lengths


@padding_mask.alternative
def _(lengths, tokens):
    mask = torch.zeros(len(lengths), tokens, dtype=torch.bool)
    for row, length in zip(mask, lengths, strict=True):
        row[:length] = True
    return mask


# ---- vectors --------------------------------------------------------------------------------------------------------


@exercise("Look the vectors up", minutes=5, level=1)
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


@embed.mutant("each id gets the row before its own: ids begin at 0", VECTORS)
def _(ids, table):
    return table[ids - 1]


@embed.mutant("columns are taken instead of rows", VECTORS)
def _(ids, table):
    return table[:, ids].permute(1, 2, 0)


@embed.mutant("the id is used as a quantity, although it is a name", VECTORS)
def _(ids, table):
    return ids[..., None] * table[0]


@embed.mutant("the vectors are multiplied by √d_model; some models do so, ours does not", VECTORS)
def _(ids, table):
    return table[ids] * table.shape[1] ** 0.5


@embed.mutant("the vectors are made equally long", VECTORS)
def _(ids, table):
    return torch.nn.functional.normalize(table[ids], dim=-1)


@embed.mutant("id 0 gets zeros: padding has a row of its own here, like every id", VECTORS)
def _(ids, table):
    return table[ids] * (ids != 0)[..., None]


@embed.mutant("every token gets the mean of its text: the order is lost", VECTORS)
def _(ids, table):
    return table[ids].mean(dim=1, keepdim=True).expand(-1, ids.shape[1], -1)


@embed.mutant("all texts get the vectors of the first one", VECTORS)
def _(ids, table):
    return table[ids[0]].expand(len(ids), -1, -1)


@embed.alternative
def _(ids, table):
    return torch.nn.functional.one_hot(ids, len(table)).to(table.dtype) @ table


@embed.alternative
def _(ids, table):
    return table.index_select(0, ids.flatten()).unflatten(0, tuple(ids.shape))

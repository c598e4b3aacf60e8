"""Ears that are not ours: pocketsphinx, a recogniser of another kind (hidden Markov models, trained on people).

Our own recogniser and the voices that it judges come from the same course. These ears have never heard eSpeak, and
know of the world only which word may follow which. They come with the extra `test`.

Source: Huggins-Daines et al., PocketSphinx (2006).
"""

import functools
import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tinyomni.data import world
from tinyomni.metrics import Rate, edit_rate


def words(text: str) -> list[str]:
    """Lower case, no punctuation."""
    return re.findall(r"[a-z']+", text.lower())


def word_pairs() -> dict[tuple[str, str], float]:
    """Which word follows which in the lines of the world, and how often; "" stands before the first and after the last.

    Each family of lines counts by its weight.
    """
    pairs: dict[tuple[str, str], float] = defaultdict(float)
    for weight, lines in world.language().values():
        for line, _ in lines:
            for pair in pairwise(["", *words(line), ""]):
                pairs[pair] += weight / len(lines)
    return pairs


@functools.cache
def decoder() -> Any:
    """A recogniser of lines in which each word may follow the one before it: a finite-state grammar, a state a word."""
    try:
        import pocketsphinx
    except ImportError as error:
        raise ImportError('Independent ears need pocketsphinx: pip install "tinyomni[test]"') from error
    ears = pocketsphinx.Decoder(samprate=16_000, lm=None, loglevel="FATAL", bestpath=False)
    pairs = word_pairs()
    states = {word: number for number, word in enumerate(sorted({one for one, _ in pairs}))}
    missing = [word for word in states if word and ears.lookup_word(word) is None]
    if missing:
        raise ValueError(f"Independent ears: pocketsphinx does not know {', '.join(missing)}; teach it with add_word")
    total: dict[str, float] = defaultdict(float)
    for (one, _), count in pairs.items():
        total[one] += count
    begin, end = states[""], len(states)
    # an arc without a word leads to the end
    arcs = [(states[one], states[two], count / total[one], two) if two else (states[one], end, count / total[one])
            for (one, two), count in pairs.items()]  # fmt: skip
    ears.add_fsg("world", ears.create_fsg("world", begin, end, arcs))
    ears.activate_search("world")
    return ears


def hear(wave: Float[Tensor, "samples"]) -> list[str]:
    """The words in a recording at 16 kHz."""
    ears = decoder()
    ears.start_utt()
    ears.process_raw((wave.clamp(-1, 1) * 32767).short().numpy().tobytes(), full_utt=True)
    ears.end_utt()
    found = ears.hyp()
    return words(found.hypstr) if found else []


def word_error(waves: Sequence[Float[Tensor, "_"]], texts: Sequence[str]) -> Rate:
    """Word error rate: words too many, missing or wrong."""
    return edit_rate([hear(wave) for wave in waves], [words(text) for text in texts])

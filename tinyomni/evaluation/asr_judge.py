"""The independent ASR judge: pocketsphinx, a recogniser of another kind (hidden Markov models, trained on people).

Our own recogniser and the speech that it judges come from the same course. This one has never heard eSpeak, and all
that it knows of the world is a grammar. It is part of the extra `test`.

Source: Huggins-Daines et al., PocketSphinx (2006).
"""

import functools
import importlib.util
import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tinyomni.config import SAMPLE_RATE
from tinyomni.data import unanswerable, world
from tinyomni.errors import InputError
from tinyomni.metrics import Rate, error_rate

HISS, HISS_SAMPLES = 1e-3, SAMPLE_RATE // 5  # as loud as -60 dBFS


def words(text: str) -> list[str]:
    """Lower case, no punctuation."""
    return re.findall(r"[a-z']+", text.lower())


def available() -> bool:
    """Whether pocketsphinx is installed."""
    return importlib.util.find_spec("pocketsphinx") is not None


def word_pairs() -> dict[tuple[str, str], float]:
    """Which word follows which in the lines of the world, and how often; "" marks the beginning and the end of a line.

    Each family of lines counts by its weight.
    """
    pairs: dict[tuple[str, str], float] = defaultdict(float)
    for weight, lines in world.language().values():
        for line in lines:
            for pair in pairwise(["", *words(line.text), ""]):
                pairs[pair] += weight / len(lines)
    return pairs


@functools.cache
def answers() -> tuple[str, ...]:
    """Every answer that a scene can give, and the unanswerable ones."""
    scenes = (world.draw_scene("train", index) for index in range(3000))
    drawn = {question.answer for things in scenes for question in world.questions(things)}
    return tuple(sorted({" ".join(words(each)) for each in (*drawn, *unanswerable.ANSWERS)}))


@functools.cache
def decoder(grammar: str) -> Any:
    """A recogniser of `lines`, a finite-state grammar in which each word may follow its predecessor in some line; of
    `answers`, a list of all answers; or of any rule in JSGF, such as `(red | blue) (star | ring)`. It has to choose
    one of a list, so words that are nearly right pass more easily.
    """
    if not available():
        raise InputError('The independent ASR judge needs pocketsphinx: pip install "tinyomni[test]"')
    import pocketsphinx

    found = pocketsphinx.Decoder(samprate=SAMPLE_RATE, lm=None, loglevel="FATAL", bestpath=False)
    if grammar == "lines":
        add_word_pairs(found)
    else:
        rule = " | ".join(answers()) if grammar == "answers" else grammar
        found.add_jsgf_string("rule", f"#JSGF V1.0;\ngrammar rule;\npublic <rule> = {rule};\n")
    found.activate_search("lines" if grammar == "lines" else "rule")
    return found


def add_word_pairs(found: Any) -> None:
    """The grammar `lines`: a state for each word."""
    pairs = word_pairs()
    states = {word: number for number, word in enumerate(sorted({one for one, _ in pairs}))}
    missing = [word for word in states if word and found.lookup_word(word) is None]
    if missing:
        raise ValueError(f"Independent ASR: not in the dictionary of pocketsphinx: {', '.join(missing)}; use add_word")
    total: dict[str, float] = defaultdict(float)
    for (one, _), count in pairs.items():
        total[one] += count
    begin, end = states[""], len(states)
    # an arc without a word leads to the end
    arcs = [(states[one], states[two], count / total[one], two) if two else (states[one], end, count / total[one])
            for (one, two), count in pairs.items()]  # fmt: skip
    found.add_fsg("lines", found.create_fsg("lines", begin, end, arcs))


def in_a_room(wave: Float[Tensor, "samples"]) -> Float[Tensor, "padded"]:
    """With a moment of faint hiss before and after it. The judge learns from these what no speech sounds like, and
    expects them, as in the recordings it was trained on; ours begin and end with speech.

    Measured on eSpeak's recordings in eight voices, of the validation split: of all answers 86% are read right instead
    of 64%, and of the words in lines 18% are wrong instead of 34%.
    """
    padded = torch.nn.functional.pad(wave, (HISS_SAMPLES, HISS_SAMPLES))
    return padded + HISS * torch.randn(padded.shape, generator=torch.Generator().manual_seed(0))


def transcribe(wave: Float[Tensor, "samples"], grammar: str = "lines") -> list[str]:
    """The words in a recording at 16 kHz."""
    judge = decoder(grammar)
    judge.start_utt()
    judge.process_raw((in_a_room(wave).clamp(-1, 1) * 32767).short().numpy().tobytes(), full_utt=True)
    judge.end_utt()
    found = judge.hyp()
    return words(found.hypstr) if found else []


def wer(waves: Sequence[Float[Tensor, "_"]], texts: Sequence[str]) -> Rate:
    """Word error rate of recordings of lines of the world."""
    return error_rate([transcribe(wave) for wave in waves], [words(text) for text in texts])

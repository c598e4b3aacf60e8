"""The report: what a trained model reaches, each figure beside its control, its limit and its uncertainty.

All figures are of the test split, of scenes, lines and utterances that no stage has seen. A *control* is what knowing
nothing of the matter gives: the texts exchanged, a grey picture, the mean frame, how often each token occurs. A *limit*
is what this preset has to reach. The interval is that of 95%, by the bootstrap over whole samples (Efron, 1979).
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinyomni.data import unanswerable, world
from tinyomni.evaluation import questions as measured_questions
from tinyomni.evaluation import speech
from tinyomni.evaluation import vision as measured_vision
from tinyomni.metrics import Rate, share
from tinyomni.tokenizer import EOS
from tinyomni.training.recipe import Place
from tinyomni.training.stages import codec, omni, thinker, vision

LIMITS = {
    "text: loss above the grammar's": (0.01, 0.003),
    "ear: characters wrong, grammar": (0.02, 0.005),
    "ear: characters wrong, shuffled words": (0.06, 0.03),
    "ear: characters wrong, unseen voice": (0.10, 0.04),
    "eye: caption found among 64": (0.90, 0.97),
    "codec: characters wrong, grammar": (0.05, 0.015),
    "codec: characters wrong, shuffled words": (0.20, 0.12),
    "voice: characters wrong": (0.08, 0.03),
    "voice: ends within 20%": (0.95, 0.99),
    "voice: seconds of work for one of speech": (1.0, 1.0),
    "typed questions: all": (0.97, 0.995),
    "typed questions: worst kind": (0.95, 0.99),
    "typed questions: unseen pairs": (0.65, 0.90),
    "spoken questions: heard": (0.95, 0.98),
    "spoken questions: new voice": (0.90, 0.96),
    "spoken questions: never heard": (None, 0.90),
}
"""For `laptop` and for `gpu`."""
HIGHER_IS_BETTER = ("eye", "typed", "spoken", "codec: entries", "voice: ends", "says")


@dataclass(frozen=True)
class Figure:
    """One line of the report. All but `n` are shares: 0.01 is 1%."""

    name: str
    value: float
    low: float
    high: float
    n: int
    control: float | None = None
    limit: float | None = None

    @property
    def higher_is_better(self) -> bool:
        """Which way is good."""
        return self.name.startswith(HIGHER_IS_BETTER)

    @property
    def good(self) -> bool | None:
        """Whether the limit is met; None without one."""
        if self.limit is None:
            return None
        return self.value >= self.limit if self.higher_is_better else self.value <= self.limit

    def __str__(self) -> str:
        sign = {True: "✔", False: "✘", None: " "}[self.good]
        least = "≥" if self.higher_is_better else "≤"
        limit = "" if self.limit is None else f"{least} {self.limit:.1%}"
        control = "" if self.control is None else f"{self.control:.1%}"
        span = f"{self.low:.2%} … {self.high:.2%}"
        return f"{sign} {self.name:44} {self.value:8.2%}   {span:20} {limit:>8} {control:>9} {self.n:6}"


def figure(name: str, rate: Rate, preset: str, control: Rate | float | None = None) -> Figure:
    """A measured rate as a line of the report."""
    limits = dict(zip(("laptop", "gpu"), LIMITS.get(name, (None, None)), strict=True))
    low, high = rate.interval()
    other = control.rate if isinstance(control, Rate) else control
    return Figure(name, rate.rate, low, high, rate.n, other, limits.get(preset))


# ---- what is measured, stage by stage -------------------------------------------------------------------------------


def text(place: Place, n: int) -> Iterator[Figure]:
    """How far the Thinker's loss lies above that of who knows the grammar. The control knows how often tokens come.

    Eight combinations of colour and shape never occur. Who does not know that, but all else, loses a little more.
    """
    encode = place.tokenizer().encode
    stage = place.trained(thinker.ThinkerStage(encode))
    lines = [world.draw_line("test", index) for index in range(n)]
    nats, floors, _ = thinker.surprises(stage.thinker, encode, lines, "test")
    counts = Counter(token for index in range(20_000) for token in (*encode(world.draw_line("train", index)), EOS))
    plain = [-sum(math.log(max(1, counts[token]) / counts.total()) for token in (*encode(line), EOS)) for line in lines]

    def above(found: Sequence[float], floors: Sequence[float]) -> Rate:
        return Rate(tuple(nat - due for nat, due in zip(found, floors, strict=True)), tuple(floors))

    knows, thinks_all_possible = floors.tolist(), [world.surprise("test", exceptions=False)[line] for line in lines]
    yield figure("text: loss above the grammar's", above(nats.tolist(), knows), place.preset, above(plain, knows))
    yield figure("text: the same, eight exceptions unknown", above(nats.tolist(), thinks_all_possible),
                 place.preset, above(plain, thinks_all_possible))  # fmt: skip


def eye(place: Place, n: int) -> Iterator[Figure]:
    """Pictures and captions find each other; what the CLS says of each thing. The controls see a grey picture."""
    stage = place.trained(vision.VisionStage())
    for swaps, more in ((True, ""), (False, ", no swaps")):
        found, grey = (
            measured_vision.image_text_retrieval(stage, groups=max(1, n // 64), swaps=swaps, blank=blank) for blank in (False, True)
        )
        yield figure(f"eye: caption found among 64{more}", found["picture → caption"], place.preset,
                     grey["picture → caption"])  # fmt: skip
        yield figure(f"eye: picture found among 64{more}", found["caption → picture"], place.preset,
                     grey["caption → picture"])  # fmt: skip
    read, grey = (measured_vision.slot_accuracy(stage, scenes=n, blank=blank) for blank in (False, True))
    for field, rate in read.items():
        yield figure(f"eye: {field} read off the CLS", rate, place.preset, grey[field])


def ear(place: Place, n: int) -> Iterator[Figure]:
    """Speech → characters. The control has the texts exchanged."""
    rates = speech.asr_cer(place, n)
    for name in speech.TEST_SETS:
        yield figure(f"ear: characters wrong, {name}", rates[name], place.preset, rates["texts exchanged"])


def speech_codec(place: Place, n: int) -> Iterator[Figure]:
    """Sound → codes → sound → our ear, and the same without codes. The control hears the mean frame."""
    rates = speech.codec_cer(place, n)
    for name in ("grammar", "shuffled words"):
        yield figure(f"codec: characters wrong, {name}", rates[f"{name}, codes"], place.preset,
                     rates[f"{name}, mean frame"])  # fmt: skip
        yield figure(f"codec: the same without codes, {name}", rates[f"{name}, unquantised"], place.preset)
    facts = speech.codec_statistics(place, n)
    lost = facts.pop("loss")
    yield Figure("codec: variance of the frames lost", lost, lost, lost, n, control=1.0)
    for book, used in facts.items():
        yield Figure(f"codec: entries {book}", used, used, used, n, limit=None if place.preset == "smoke" else 0.9)


def voice(place: Place, n: int) -> Iterator[Figure]:
    """Text → codes → sound → our ear, and where it ends. Without the Talker its codec's codes are the ceiling."""
    for what, order in ((", shuffled words", False), ("", True)):
        spoken = speech.synthesize(place, n, order=order)
        rates = speech.tts_cer(place, spoken, order)
        yield figure(f"voice: characters wrong{what}", rates["talker"], place.preset, rates["texts exchanged"])
        yield figure(f"voice: the same by its codec alone{what}", rates["its codec"], place.preset)
    yield figure("voice: ends within 20%", share(spoken.right_length), place.preset)
    yield figure("voice: seconds of work for one of speech", speech.real_time_factor(place), place.preset)


def other_ears(place: Place, n: int) -> Iterator[Figure]:
    """Words wrong in the ears of pocketsphinx: recordings, the codec's round trip, the Talker."""
    from tinyomni.evaluation import asr_judge

    said = speech.test_set(place, "grammar", n, **codec.SPEAKERS)
    waves, texts = [each.wave for each in said], [each.text for each in said]
    trips = speech.round_trips(place.trained(codec.CodecStage()).codec, waves)["codes"]
    spoken = speech.synthesize(place, n)
    for name, heard, due in (
        ("recordings", waves, texts),
        ("codec", trips, texts),
        ("voice", spoken.waves, spoken.texts),
    ):
        yield figure(f"other ears: words wrong, {name}", asr_judge.word_error(heard, due), place.preset)


def questions(place: Place, n: int) -> Iterator[Figure]:
    """Questions about pictures never seen, typed and spoken. The control gives each question its commonest answer."""
    stage, tokenizer = place.trained(omni.OmniStage()), place.tokenizer()

    def right(answers: Sequence[measured_questions.Answer]) -> Rate:
        return share([answer.right for answer in answers])

    answers = measured_questions.typed(stage, tokenizer, "test", n)
    guesses = measured_questions.best_guess(answers)
    yield figure("typed questions: all", right(answers), place.preset, right(guesses))
    kinds = measured_questions.by_kind(answers)
    worst = min(kinds, key=lambda kind: kinds[kind].rate)
    yield figure("typed questions: worst kind", kinds[worst], place.preset, measured_questions.by_kind(guesses)[worst])
    yield figure("typed questions: scene noted", share([each.seen == each.scene for each in answers]), place.preset)
    easy = measured_questions.typed(stage, tokenizer, "test", n, easy=1)
    yield figure("typed questions: easy pictures", right(easy), place.preset, right(measured_questions.best_guess(easy)))
    unseen = measured_questions.typed(stage, tokenizer, "compositional", n)
    yield figure("typed questions: unseen pairs", right(unseen), place.preset, right(measured_questions.best_guess(unseen)))
    for which in measured_questions.ASKED:
        answers, written = measured_questions.spoken(stage, tokenizer, which, n, str(place.folder / "speech"))
        yield figure(f"spoken questions: {which}", right(answers), place.preset, right(measured_questions.best_guess(answers)))
        yield figure(f"spoken questions: {which}, written down", written, place.preset)


def unknowable(place: Place, n: int) -> Iterator[Figure]:
    """What nobody can know: how often that is said. The control is how often it is said where an answer is there."""
    stage, tokenizer = place.trained(omni.OmniStage()), place.tokenizer()
    known = measured_questions.typed(stage, tokenizer, "test", n)
    false_alarms = share([answer.said == unanswerable.DO_NOT_KNOW for answer in known])
    for kind, answers in measured_questions.unknowable(stage, tokenizer, n).items():
        control = None if kind == "no speech" else false_alarms
        yield figure(
            f"says it does not know: {kind}", share([answer.right for answer in answers]), place.preset, control
        )


MEASURES: dict[str, tuple[str, Callable[[Place, int], Iterator[Figure]]]] = {
    "text": ("thinker", text), "eye": ("vision", eye), "ear": ("audio", ear), "codec": ("codec", speech_codec),
    "voice": ("talker", voice), "ears": ("talker", other_ears), "questions": ("omni", questions),
    "unknowable": ("omni", unknowable),
}  # fmt: skip
"""By name: the stage that has to be trained, and what measures it."""


# ---- the whole report -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """All figures, and what each stage has cost."""

    preset: str
    figures: tuple[Figure, ...]
    costs: dict[str, dict[str, Any]]
    missing: tuple[str, ...]  # stages that are not trained here

    @property
    def good(self) -> bool:
        """Every stage is there and every limit is met."""
        return not self.missing and all(each.good is not False for each in self.figures)

    def __str__(self) -> str:
        lines = [f"  {'':44} {'reached':>8}   {'95%':20} {'limit':>8} {'control':>9} {'n':>6}"]
        lines += map(str, self.figures)
        if self.costs:
            lines += ["", f"  {'stage':10} {'steps':>7} {'minutes':>8} {'samples':>9} {'MB':>7}  device"]
        for stage, cost in self.costs.items():
            lines.append(
                f"  {stage:10} {cost['steps']:7} {cost['seconds'] / 60:8.1f} {cost['samples']:9} "
                f"{cost['peak_memory'] / 2**20:7.0f}  {cost['device']} {cost['precision']}"
            )
        return "\n".join([*lines, *[f"  not trained here: {', '.join(self.missing)}"] * bool(self.missing)])

    def save(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def draw(self, path: Path) -> None:
        """As a picture: each figure with its interval, its limit (|) and its control (×)."""
        from matplotlib.figure import Figure as Picture

        picture = Picture(figsize=(9, 0.28 * len(self.figures) + 1.2), layout="constrained")
        axes = picture.subplots()
        for row, each in enumerate(self.figures):
            axes.plot([each.low, each.high], [row, row], color="0.3", linewidth=2)
            axes.plot(each.value, row, "o", color="black", fillstyle="none" if each.good is False else "full")
            if each.limit is not None:
                axes.plot(each.limit, row, "|", color="#b2182b", markersize=14, markeredgewidth=2)
            if each.control is not None:
                axes.plot(min(each.control, 1.0), row, "x", color="0.5")
        axes.set_yticks(range(len(self.figures)), [each.name for each in self.figures], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel("share: ● limit met, or none; ○ limit missed; | limit; × control (at most 1); line: 95%")
        axes.grid(axis="x", alpha=0.3)
        picture.savefig(path, dpi=130)


def report(place: Place, n: int = 300, only: Sequence[str] = ()) -> Report:
    """Measure what is trained in a place; `only` names some of MEASURES, else all of them."""
    unknown = [name for name in only if name not in MEASURES]
    if unknown or n < 1:
        raise ValueError(f"Report: n should be 1 or more, and parts among {', '.join(MEASURES)}; got {n}, {unknown}")
    figures: list[Figure] = []
    costs: dict[str, dict[str, Any]] = {}
    missing: dict[str, None] = {}
    for name in only or MEASURES:
        stage, measure = MEASURES[name]
        result = place.of(stage) / "result.json"
        if result.is_file():
            costs[stage] = json.loads(result.read_text(encoding="utf-8"))
            figures += measure(place, n)
        else:
            missing[stage] = None
    return Report(place.preset, tuple(figures), costs, tuple(missing))

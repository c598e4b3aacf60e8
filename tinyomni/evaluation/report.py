"""The report: what a trained model reaches, each metric with its confidence interval, threshold and baseline.

    run folder → one function for each part of `registry.PARTS` → MetricResult → Report: text, JSON, plot

All metrics are of the test split, of scenes, lines and utterances that no stage has seen. A *baseline* knows nothing of
the matter: transcripts of other recordings, a grey image, the mean frame, token frequencies. A *threshold* is what this
preset has to reach. The 95% CI is that of a bootstrap over whole samples (Efron, 1979).
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinyomni.data import unanswerable, world
from tinyomni.errors import InputError
from tinyomni.evaluation import asr_judge, dialogue, looks, questions, speech
from tinyomni.evaluation import vision as vision_evaluation
from tinyomni.evaluation.calibration import BINS
from tinyomni.evaluation.questions import accuracy_by_kind, accuracy_of, most_frequent_answers, typed_answers
from tinyomni.evaluation.registry import METRICS, PARTS, WHOLE_MODEL, WIDE, Metric, slug
from tinyomni.files import read_json
from tinyomni.metrics import Rate, accuracy
from tinyomni.omni import Omni
from tinyomni.tokenizer import EOS
from tinyomni.training.recipe import RunDir
from tinyomni.training.run import total_costs
from tinyomni.training.stages import codec, omni, thinker, vision

FEW = 100  # samples at most of each look, wording and recording: there are many of them
HEADINGS = ("value", "95% CI", "threshold", "baseline", "n")


@dataclass(frozen=True)
class MetricResult:
    """A measured metric: its value with the 95% CI, the threshold of the preset, and the value of the baseline."""

    id: str
    value: float
    low: float
    high: float
    n: int
    baseline: float | None = None
    threshold: float | None = None

    @property
    def metric(self) -> Metric:
        """What was measured."""
        return METRICS[self.id]

    @property
    def passed(self) -> bool | None:
        """Whether the threshold is met; None without one."""
        return None if self.threshold is None else self.metric.meets(self.value, self.threshold)

    def cells(self) -> tuple[str, ...]:
        """The cells of HEADINGS."""
        show = self.metric.format
        sign = "≥" if self.metric.higher_is_better else "≤"
        threshold = "" if self.threshold is None else f"{sign} {show(self.threshold, 1)}"
        baseline = "" if self.baseline is None else show(self.baseline, 1)
        return show(self.value), f"{show(self.low)} … {show(self.high)}", threshold, baseline, str(self.n)

    def __str__(self) -> str:
        sign = {True: "✔", False: "✘", None: " "}[self.passed]
        value, interval, threshold, baseline, n = self.cells()
        return f"{sign} {self.metric.label:62} {value:>8}   {interval:20} {threshold:>9} {baseline:>9} {n:>6}"


Measured = tuple[str, Rate | float, Rate | float | None]
"""The id of a metric, what was measured, and the same for the baseline."""


def result(id: str, measured: Rate | float, n: int, preset: str, baseline: Rate | float | None = None) -> MetricResult:
    """A line of the report. A float instead of a rate has no confidence interval; then `n` is its number of samples."""
    low, high = measured.interval() if isinstance(measured, Rate) else (measured, measured)
    value = measured.rate if isinstance(measured, Rate) else measured
    count = measured.n if isinstance(measured, Rate) else n
    base = baseline.rate if isinstance(baseline, Rate) else baseline
    return MetricResult(id, value, low, high, count, base, METRICS[id].thresholds.get(preset))


# ---- what is measured, part by part ---------------------------------------------------------------------------------


def measure_lm(run_dir: RunDir, n: int) -> Iterator[Measured]:
    """How far the Thinker's loss lies above the entropy of the grammar. The baseline knows the frequencies of tokens.

    Eight combinations of colour and shape never occur. Whoever knows all but that loses a little more.
    """
    encode = run_dir.tokenizer().encode
    stage = run_dir.trained(thinker.ThinkerStage(encode))
    lines = [world.draw_line("test", index) for index in range(n)]
    nats, _ = thinker.line_nats(stage.thinker, encode, lines)
    counts = Counter(token for index in range(20_000) for token in (*encode(world.draw_line("train", index)), EOS))
    unigram = [-sum(math.log(max(1, counts[id]) / counts.total()) for id in (*encode(line), EOS)) for line in lines]

    def excess(found: Sequence[float], floors: Sequence[float]) -> Rate:
        return Rate(tuple(nat - floor for nat, floor in zip(found, floors, strict=True)), tuple(floors))

    for id, knows in (("lm.excess_loss", True), ("lm.excess_loss_all_pairs", False)):
        floors = [world.surprisal("test", knows_held_out=knows)[line] for line in lines]
        yield id, excess(nats.tolist(), floors), excess(unigram, floors)


def measure_vision(run_dir: RunDir, n: int) -> Iterator[Measured]:
    """Image-text retrieval, and what the slots read from the CLS token. The baselines see grey images."""
    stage = run_dir.trained(vision.VisionStage())
    for swaps, end in ((True, ""), (False, "_random")):
        found, grey = (
            vision_evaluation.image_text_retrieval(stage, groups=max(1, n // 64), swaps=swaps, blank=blank)
            for blank in (False, True)
        )
        yield f"vision.image_to_text{end}", found["image → text"], grey["image → text"]
        yield f"vision.text_to_image{end}", found["text → image"], grey["text → image"]
    found, grey = (vision_evaluation.slot_accuracy(stage, scenes=n, blank=blank) for blank in (False, True))
    for field, rate in found.items():
        yield f"vision.cls_{field}", rate, grey[field]


def measure_asr(run_dir: RunDir, n: int) -> Iterator[Measured]:
    """Speech → characters. The baseline compares with the transcripts of other recordings."""
    rates = speech.asr_cer(run_dir, n)
    for id, name in (("grammar", "grammar"), ("shuffled", "shuffled words"), ("held_out_voice", "held-out voice")):
        yield f"asr.cer_{id}", rates[name], rates["baseline"]


def measure_codec(run_dir: RunDir, n: int) -> Iterator[Measured]:
    """Audio → codes → audio → our ASR, and the same without quantization. The baseline has the mean frame."""
    rates = speech.codec_cer(run_dir, n)
    for id, name in (("grammar", "grammar"), ("shuffled", "shuffled words")):
        yield f"codec.cer_{id}", rates[f"{name}, codes"], rates[f"{name}, baseline"]
        yield f"codec.cer_{id}_unquantized", rates[f"{name}, unquantized"], None
    unexplained, utilization = speech.codec_statistics(run_dir, n)
    yield "codec.unexplained_variance", unexplained, 1.0
    for book, used in enumerate(utilization):
        yield f"codec.utilization_{book}", used, None


def measure_tts(run_dir: RunDir, n: int) -> Iterator[Measured]:
    """Text → codes → audio → our ASR, and the duration. The codec alone, with the true codes, is the ceiling."""
    for end, order in (("_shuffled", False), ("", True)):
        spoken = speech.synthesize(run_dir, n, order=order)
        rates = speech.tts_cer(run_dir, spoken, order)
        yield f"tts.cer{end}", rates["talker"], rates["baseline"]
        yield f"tts.cer{end}_codec", rates["codec"], None
    yield "tts.duration", accuracy(spoken.duration_right), None
    yield "tts.rtf", speech.real_time_factor(run_dir), None


def measure_asr_judge(run_dir: RunDir, n: int) -> Iterator[Measured]:
    """WER by the independent ASR judge: of recordings, of the codec's round trips, and of the Talker."""
    recordings = speech.test_set(run_dir, "grammar", n, **codec.SPEAKERS)
    waves, texts = [each.wave for each in recordings], [each.text for each in recordings]
    yield "asr_judge.wer_recordings", asr_judge.wer(waves, texts), None
    trips = speech.round_trips(run_dir.trained(codec.CodecStage()).codec, waves)["codes"]
    yield "asr_judge.wer_codec", asr_judge.wer(trips, texts), None
    spoken = speech.synthesize(run_dir, n)
    yield "asr_judge.wer_tts", asr_judge.wer(spoken.waves, spoken.texts), None


def measure_questions(run_dir: RunDir, n: int) -> Iterator[Measured]:
    """Questions about images never seen, typed and spoken. The baseline is the most frequent answer to each."""
    stage, tokenizer = run_dir.trained(omni.OmniStage()), run_dir.tokenizer()
    answers = typed_answers(stage, tokenizer, "test", n)
    guesses = most_frequent_answers(answers)
    yield "questions.typed", accuracy_of(answers), accuracy_of(guesses)
    kinds = accuracy_by_kind(answers)
    worst = min(kinds, key=lambda kind: kinds[kind].rate)
    yield "questions.typed_worst_kind", kinds[worst], accuracy_by_kind(guesses)[worst]
    exact = accuracy([answer.description == answer.expected_description for answer in answers])
    yield "questions.description", exact, None
    easy = typed_answers(stage, tokenizer, "test", n, easy=1)
    yield "questions.typed_easy", accuracy_of(easy), accuracy_of(most_frequent_answers(easy))
    held_out = typed_answers(stage, tokenizer, "compositional", n)
    yield "questions.typed_held_out_pairs", accuracy_of(held_out), accuracy_of(most_frequent_answers(held_out))
    for kind in questions.SPOKEN_SETS:
        answers, transcripts = questions.spoken_answers(stage, tokenizer, kind, n, str(run_dir.folder / "speech"))
        yield f"questions.{kind}", accuracy_of(answers), accuracy_of(most_frequent_answers(answers))
        yield f"questions.{kind}_transcript", transcripts, None


def measure_unanswerable(run_dir: RunDir, n: int) -> Iterator[Measured]:
    """Inputs without an answer: how often the model says so. The baseline is how often it does where there is one."""
    stage, tokenizer = run_dir.trained(omni.OmniStage()), run_dir.tokenizer()
    answerable = typed_answers(stage, tokenizer, "test", n)
    false_alarms = accuracy([answer.output == unanswerable.DO_NOT_KNOW for answer in answerable])
    for kind, answers in questions.unanswerable_answers(stage, tokenizer, n).items():
        yield f"unanswerable.{slug(kind)}", accuracy_of(answers), None if kind == "no speech" else false_alarms


def measure_end_to_end(model: Omni, cache: str, n: int) -> Iterator[Measured]:
    """The whole model: spoken dialogue, inputs from outside the world, and what it is unsure of."""
    rates = dialogue.dialogue_rates(dialogue.dialogue(model, n, cache))
    baseline = rates.pop("baseline")
    for name, rate in rates.items():
        yield f"dialogue.{name}", rate, baseline if name.startswith("accuracy") else None
    for kind, says, either in dialogue.outside(model, n):
        yield f"outside.{slug(kind)}", says, None
        yield f"outside.{slug(kind)}_or_unsure", either, None
    for name, rate in zip(("right", "wrong"), dialogue.unsure(model, n), strict=True):
        if rate.n:
            yield f"unsure.{name}", rate, None


def measure_looks(model: Omni, cache: str, n: int) -> Iterator[Measured]:
    """Scenes in other looks, drawn by an independent renderer, and images that have no description."""
    for id, rate in looks.looks(model, min(n, FEW)):
        yield id, rate, None


def measure_wordings(model: Omni, cache: str, n: int) -> Iterator[Measured]:
    """Typed questions in wordings of each family, and typed carelessly."""
    for id, rate in looks.wordings_of_people(model, min(n, FEW)):
        yield id, rate, None


def measure_recordings(model: Omni, cache: str, n: int) -> Iterator[Measured]:
    """Spoken questions in other conditions and voices; and what a person says, where those recordings are."""
    for id, rate in dialogue.recorded(model, min(n, FEW), cache):
        yield id, rate, None
    if dialogue.REAL_SPEECH.is_dir():
        read, other, confident = dialogue.people(model, min(n, FEW))
        yield "recordings.person_cer", read, other
        yield "recordings.person_confident", confident, None


MEASURE: dict[str, Callable[[RunDir, int], Iterator[Measured]]] = {
    "lm": measure_lm, "vision": measure_vision, "asr": measure_asr, "codec": measure_codec, "tts": measure_tts,
    "asr-judge": measure_asr_judge, "questions": measure_questions, "unanswerable": measure_unanswerable,
}  # fmt: skip
"""What measures each part of a run."""
MEASURE_MODEL: dict[str, Callable[[Omni, str, int], Iterator[Measured]]] = {
    "end-to-end": measure_end_to_end, "looks": measure_looks, "wordings": measure_wordings,
    "recordings": measure_recordings,
}  # fmt: skip
"""What measures each part of a whole model."""


# ---- the whole report -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """All results, and the cost of each stage."""

    preset: str
    results: tuple[MetricResult, ...]
    costs: dict[str, dict[str, Any]]
    missing: tuple[str, ...]  # stages that are not trained here

    @property
    def passed(self) -> bool:
        """Every stage is there and every threshold is met."""
        return not self.missing and all(each.passed is not False for each in self.results)

    def __str__(self) -> str:
        value, interval, threshold, baseline, n = HEADINGS
        lines = [f"  {'metric':62} {value:>8}   {interval:20} {threshold:>9} {baseline:>9} {n:>6}"]
        lines += map(str, self.results)
        if self.costs:
            lines += ["", f"  {'stage':10} {'steps':>7} {'minutes':>8} {'samples':>9} {'MB':>7}  device"]
        for stage, cost in self.costs.items():
            lines.append(
                f"  {stage:10} {cost['steps']:7} {cost['seconds'] / 60:8.1f} {cost['samples']:9} "
                f"{cost['peak_memory'] / 2**20:7.0f}  {cost['device']} {cost['precision']}"
            )
        return "\n".join([*lines, *[f"  not trained here: {', '.join(self.missing)}"] * bool(self.missing)])

    def save(self, path: Path) -> None:
        """As JSON; label and unit are beside each value, for readers without this library."""
        data = asdict(self)
        for each, row in zip(self.results, data["results"], strict=True):
            row |= {"label": each.metric.label, "unit": each.metric.unit}
        path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Report":
        """What `save` wrote. Raises InputError for another file, and for a metric that there is not."""
        try:
            data = read_json(path)
            rows = [
                {key: value for key, value in row.items() if key not in ("label", "unit")} for row in data["results"]
            ]
            if unknown := [row["id"] for row in rows if row["id"] not in METRICS]:
                raise InputError(f"{path}: unknown metric {unknown[0]!r}. Measure again with this version.")
            results = tuple(MetricResult(**row) for row in rows)
            return cls(data["preset"], results, data["costs"], tuple(data["missing"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: expected the output of `tinyomni report --json` ({error!r})") from error

    def plot(self, path: Path) -> None:
        """Each value with its interval, its threshold (|) and its baseline (×)."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 0.28 * len(self.results) + 1.2), layout="constrained")
        axes = figure.subplots()
        for row, each in enumerate(self.results):
            axes.plot([each.low, each.high], [row, row], color="0.3", linewidth=2)
            axes.plot(each.value, row, "o", color="black", fillstyle="none" if each.passed is False else "full")
            if each.threshold is not None:
                axes.plot(each.threshold, row, "|", color="#b2182b", markersize=14, markeredgewidth=2)
            if each.baseline is not None:
                axes.plot(min(each.baseline, 1.0), row, "x", color="0.5")
        arrows = ["↑" if each.metric.higher_is_better else "↓" for each in self.results]
        labels = [f"{each.metric.label} {arrow}" for each, arrow in zip(self.results, arrows, strict=True)]
        axes.set_yticks(range(len(self.results)), labels, fontsize=8)
        axes.set_ylim(len(self.results) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel("● value, ○ if the threshold is missed; | threshold; × baseline (at most 1); line: 95% CI")
        axes.grid(axis="x", alpha=0.3)
        figure.savefig(path, dpi=130)

    def plot_reliability(self, path: Path) -> bool:
        """A reliability diagram: how many answers of each bin of confidence are right. False, and no file, where the
        report has not measured it.
        """
        found = {each.id.removeprefix("calibration."): each for each in self.results}
        if not (bins := [(*BINS[name], found[name]) for name in BINS if name in found]):
            return False
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        for place, (low, high, each) in enumerate(bins):
            axes.bar(place, high - low, bottom=low, width=0.7, color="0.85")
            axes.plot([place] * 2, [each.low, each.high], color="#0072b2", linewidth=2)
            axes.plot(place, each.value, "o", color="#0072b2")
            axes.annotate(f"{each.value:.0%}", (place, each.value), (7, 0), textcoords="offset points", va="center")
        axes.set_xticks(range(len(bins)), [f"{low:.0%} to {high:.0%}\nn {each.n}" for low, high, each in bins])
        axes.set(ylim=(0, 1.04), xlabel="confidence: probability of the answer's least likely token",
                 ylabel="right (line: 95% CI; grey: of a calibrated model)")  # fmt: skip
        with rc_context({"svg.hashsalt": "reliability"}):  # the same results give the same file
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        return True


def report(
    run_dir: RunDir,
    n: int = 300,
    only: Sequence[str] = (),
    model: Omni | None = None,
    notify: Callable[[str], None] = lambda text: None,
) -> Report:
    """Measure a run; `only` names some of PARTS. Those of WHOLE_MODEL need the whole `model` of a weights file. Those
    of WIDE are measured on weights of that style, and on others only where `only` names them.

    `notify` receives a line for each part when it begins, and for each metric when it is measured.
    """
    if unknown := [name for name in only if name not in PARTS]:
        raise InputError(f"Report: expected parts among {', '.join(PARTS)}; got {', '.join(unknown)}")
    if n < 1:
        raise InputError(f"Report: n must be at least 1, got {n}")
    if model is None and (whole := [name for name in only if name in WHOLE_MODEL]):
        raise InputError(f"Report: the part {whole[0]} needs a weights file: tinyomni report --weights")
    results: list[MetricResult] = []
    costs: dict[str, dict[str, Any]] = {}
    missing: dict[str, None] = {}
    plain = model is None or model.style == "plain"
    parts = [*(only or (part for part in PARTS if not (plain and part in WIDE)))]
    for number, part in enumerate(parts, 1):
        stage = PARTS[part]
        record = run_dir.of(stage) / "result.json"
        if not record.is_file():
            missing[stage] = None
            continue
        run = read_json(record)
        costs[stage] = run | total_costs(run)
        notify(f"part {number} of {len(parts)}: {part}")
        if part not in WHOLE_MODEL:
            measured = MEASURE[part](run_dir, n)
        elif model is not None:
            measured = MEASURE_MODEL[part](model, str(run_dir.folder / "speech"), n)
        else:
            continue
        for id, value, baseline in measured:
            results.append(result(id, value, n, run_dir.preset, baseline))
            notify(f"  {id}")
    return Report(run_dir.preset, tuple(results), costs, tuple(missing))

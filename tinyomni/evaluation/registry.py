"""All metrics of the report, each stated once: its name, its unit, which way is good, and what has to be reached.

The report, its plot and its JSON, the command line's choices and the model card derive from METRICS and PARTS. A new
metric is an entry here, and one line in the function that measures its part (`report.py`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tinyomni.data import other_makers, wordings
from tinyomni.evaluation.calibration import BINS
from tinyomni.evaluation.independent_renderer import LOOKS, UNCLEAR
from tinyomni.evaluation.recordings import CONDITIONS

PARTS = {
    "lm": "thinker",
    "vision": "vision",
    "asr": "audio",
    "codec": "codec",
    "tts": "talker",
    "asr-judge": "talker",
    "questions": "omni",
    "unanswerable": "omni",
    "end-to-end": "omni",
    "looks": "omni",
    "wordings": "omni",
    "recordings": "omni",
}
"""The parts of the report → the stage that has to be trained for it."""
WHOLE_MODEL = ("end-to-end", "looks", "wordings", "recordings")
"""Parts that need the whole model from a weights file, with its thresholds of certainty."""
WIDE = ("looks", "wordings", "recordings")
"""Those that weights of the plain style are not measured on, unless asked to be: they were not trained for them."""
PERCENT, RATIO = "%", "ratio"
HIGHER, LOWER = True, False


@dataclass(frozen=True)
class Metric:
    """One metric. `thresholds` are what each preset has to reach; a preset without one has nothing to reach."""

    id: str
    part: str
    label: str
    higher_is_better: bool
    unit: str = PERCENT
    thresholds: Mapping[str, float] = field(default_factory=dict)

    @property
    def stage(self) -> str:
        """The stage that has to be trained."""
        return PARTS[self.part]

    def meets(self, value: float, threshold: float) -> bool:
        """Whether a value is at least as good as the threshold."""
        return value >= threshold if self.higher_is_better else value <= threshold

    def format(self, value: float, digits: int = 2) -> str:
        """`12.34%`, or as a ratio `0.1234`."""
        return f"{value:.{digits}%}" if self.unit == PERCENT else f"{value:.{digits + 1}f}"


def laptop_gpu(laptop: float | None, gpu: float) -> dict[str, float]:
    """Thresholds of these presets; `shipped` has those of `laptop`."""
    return {"gpu": gpu} if laptop is None else {"laptop": laptop, "shipped": laptop, "gpu": gpu}


OUTSIDE = {"not there": "absent thing", "unknown word": "unknown word", "no scene": "image without a scene",
           "photograph": "photograph", "no image": "no image", "no speech": "audio without speech"}  # fmt: skip
"""Kinds of inputs from outside the world → how a label words them."""
UNANSWERABLE = ("not there", "unknown word", "no scene", "no speech")
"""Those that the stage omni is measured on."""
SPOKEN = {"spoken": "", "spoken_held_out_voice": ", held-out voice", "spoken_new": ", never spoken in training"}
"""Sets of spoken questions (`questions.SPOKEN_SETS`) → the end of a label."""


WORDINGS = {**{family: (laptop_gpu(0.98, 0.99), {}) for family in wordings.families("train")},
            **{family: (laptop_gpu(0.85, 0.90), laptop_gpu(0.05, 0.05)) for family in wordings.HELD_OUT}}  # fmt: skip
"""Families of wordings → thresholds of the accuracy, and of what is wrong of the answers called sure."""
HEARD = {"20 dB SNR": (0.95, 0.98), "10 dB SNR": (0.85, 0.92), "30 dB quieter": (0.95, 0.98),
         **{voice: (0.70, 0.80) for voice in other_makers.HELD_OUT}}  # fmt: skip
"""Conditions of a recording, and voices of other makers → thresholds."""
RECORDINGS = (*CONDITIONS, *other_makers.HELD_OUT, *other_makers.TRAINED)
"""All that spoken questions are measured in; the voices as far as they are installed."""


def slug(kind: str) -> str:
    """A kind of input as part of an id."""
    return re.sub(r"\W+", "_", kind.lower())


METRICS: dict[str, Metric] = {metric.id: metric for metric in (
    Metric("lm.excess_loss", "lm", "LM: excess loss over the grammar's entropy", LOWER,
           thresholds=laptop_gpu(0.01, 0.003)),
    Metric("lm.excess_loss_all_pairs", "lm", "LM: excess loss, held-out pairs unknown", LOWER),
    Metric("vision.image_to_text", "vision", "vision: image → text R@1 of 64, hard negatives", HIGHER,
           thresholds=laptop_gpu(0.90, 0.97)),
    Metric("vision.text_to_image", "vision", "vision: text → image R@1 of 64, hard negatives", HIGHER),
    Metric("vision.image_to_text_random", "vision", "vision: image → text R@1 of 64, random scenes", HIGHER),
    Metric("vision.text_to_image_random", "vision", "vision: text → image R@1 of 64, random scenes", HIGHER),
    *(Metric(f"vision.cls_{field}", "vision", f"vision: slot accuracy from CLS, {field}", HIGHER)
      for field in ("colour", "shape", "size", "place", "scene")),
    Metric("asr.cer_grammar", "asr", "ASR: CER, grammar", LOWER, thresholds=laptop_gpu(0.02, 0.005)),
    Metric("asr.cer_shuffled", "asr", "ASR: CER, shuffled words", LOWER, thresholds=laptop_gpu(0.06, 0.03)),
    Metric("asr.cer_held_out_voice", "asr", "ASR: CER, held-out voice", LOWER, thresholds=laptop_gpu(0.10, 0.04)),
    Metric("codec.cer_grammar", "codec", "codec: CER, grammar", LOWER, thresholds=laptop_gpu(0.05, 0.015)),
    Metric("codec.cer_grammar_unquantized", "codec", "codec: CER without quantization, grammar", LOWER),
    Metric("codec.cer_shuffled", "codec", "codec: CER, shuffled words", LOWER, thresholds=laptop_gpu(0.20, 0.12)),
    Metric("codec.cer_shuffled_unquantized", "codec", "codec: CER without quantization, shuffled words", LOWER),
    Metric("codec.unexplained_variance", "codec", "codec: unexplained variance of the frames", LOWER),
    *(Metric(f"codec.utilization_{i}", "codec", f"codec: codebook utilization, {name}", HIGHER,
             thresholds=laptop_gpu(0.9, 0.9)) for i, name in enumerate(("base", "residual"))),
    Metric("tts.cer_shuffled", "tts", "TTS: CER, shuffled words", LOWER),
    Metric("tts.cer_shuffled_codec", "tts", "TTS: CER of the codec alone, shuffled words", LOWER),
    Metric("tts.cer", "tts", "TTS: CER, grammar", LOWER, thresholds=laptop_gpu(0.08, 0.03)),
    Metric("tts.cer_codec", "tts", "TTS: CER of the codec alone, grammar", LOWER),
    Metric("tts.duration", "tts", "TTS: duration within 20%", HIGHER, thresholds=laptop_gpu(0.95, 0.99)),
    Metric("tts.rtf", "tts", "TTS: real-time factor (RTF)", LOWER, RATIO, thresholds=laptop_gpu(1.0, 1.0)),
    *(Metric(f"asr_judge.wer_{id}", "asr-judge", f"independent ASR: WER, {name}", LOWER)
      for id, name in (("recordings", "recordings"), ("codec", "codec"), ("tts", "TTS"))),
    Metric("questions.typed", "questions", "typed questions: accuracy", HIGHER, thresholds=laptop_gpu(0.97, 0.995)),
    Metric("questions.typed_worst_kind", "questions", "typed questions: accuracy, worst kind", HIGHER,
           thresholds=laptop_gpu(0.95, 0.99)),
    Metric("questions.description", "questions", "typed questions: description exact", HIGHER),
    Metric("questions.typed_easy", "questions", "typed questions: accuracy, easy images", HIGHER),
    Metric("questions.typed_held_out_pairs", "questions", "typed questions: accuracy, held-out pairs", HIGHER,
           thresholds=laptop_gpu(0.65, 0.90)),
    *(metric for (kind, end), thresholds in zip(SPOKEN.items(), (
        laptop_gpu(0.95, 0.98), laptop_gpu(0.90, 0.96), laptop_gpu(None, 0.90)), strict=True) for metric in (
        Metric(f"questions.{kind}", "questions", f"spoken questions: accuracy{end}", HIGHER, thresholds=thresholds),
        Metric(f"questions.{kind}_transcript", "questions", f"spoken questions: transcript exact{end}", HIGHER))),
    *(Metric(f"unanswerable.{slug(kind)}", "unanswerable", f"unanswerable: accuracy, {OUTSIDE[kind]}", HIGHER)
      for kind in UNANSWERABLE),
    Metric("dialogue.accuracy", "end-to-end", "spoken dialogue: accuracy, own ASR", HIGHER),
    Metric("dialogue.transcript", "end-to-end", "spoken dialogue: transcript exact", HIGHER),
    Metric("dialogue.answer", "end-to-end", "spoken dialogue: accuracy of the text", HIGHER),
    Metric("dialogue.speech", "end-to-end", "spoken dialogue: speech exact, own ASR", HIGHER),
    Metric("dialogue.accuracy_judge", "end-to-end", "spoken dialogue: accuracy, independent ASR", HIGHER,
           thresholds=laptop_gpu(0.95, 0.95)),
    Metric("dialogue.recording_judge", "end-to-end", "spoken dialogue: eSpeak's recordings, independent ASR", HIGHER),
    *(metric for kind, name in OUTSIDE.items() for metric in (
        Metric(f"outside.{slug(kind)}", "end-to-end", f"outside the world: says so, {name}", HIGHER),
        Metric(f"outside.{slug(kind)}_or_unsure", "end-to-end",
               f"outside the world: says so or is unsure, {name}", HIGHER))),
    Metric("unsure.right", "end-to-end", "unsure: of right answers", LOWER),
    Metric("unsure.wrong", "end-to-end", "unsure: of wrong answers", HIGHER),
    *(metric for look in LOOKS for metric in (
        Metric(f"looks.caption_{slug(look)}", "looks", f"independent renderer: caption exact, {look}", HIGHER),
        Metric(f"looks.question_{slug(look)}", "looks", f"independent renderer: questions, {look}", HIGHER))),
    Metric("looks.caption", "looks", "independent renderer: caption exact, mean of all looks", HIGHER,
           thresholds=laptop_gpu(0.90, 0.95)),
    Metric("looks.caption_worst", "looks", "independent renderer: caption exact, worst look", HIGHER,
           thresholds=laptop_gpu(0.75, 0.85)),
    Metric("looks.question", "looks", "independent renderer: questions, mean of all looks", HIGHER,
           thresholds=laptop_gpu(0.95, 0.97)),
    *(Metric(f"looks.claims_{slug(kind)}", "looks", f"independent renderer: confident claims, {kind}", LOWER,
             thresholds=laptop_gpu(0.05, 0.05)) for kind in UNCLEAR),
    *(metric for family, (right, wrong) in WORDINGS.items() for metric in (
        Metric(f"wordings.{family}", "wordings", f"wordings, {family}: accuracy", HIGHER, thresholds=right),
        Metric(f"wordings.{family}_sure_and_wrong", "wordings", f"wordings, {family}: wrong of those called sure",
               LOWER, thresholds=wrong))),
    Metric("wordings.careless", "wordings", "wordings, typed carelessly: accuracy", HIGHER,
           thresholds=laptop_gpu(0.90, 0.95)),
    *(Metric(f"calibration.{name}", "wordings", f"calibration: right, of confidence {low:.0%} to {high:.0%}", HIGHER)
      for name, (low, high) in BINS.items()),
    Metric("calibration.error", "wordings", "calibration: expected calibration error (ECE)", LOWER),
    *(Metric(f"recordings.{slug(kind)}", "recordings", f"spoken questions, {kind}: accuracy", HIGHER,
             thresholds=laptop_gpu(*HEARD[kind]) if kind in HEARD else {}) for kind in RECORDINGS),
    Metric("recordings.person_cer", "recordings", "a person says other words: CER of the recogniser", LOWER),
    Metric("recordings.person_confident", "recordings", "a person says other words: confident claims", LOWER,
           thresholds=laptop_gpu(0.0, 0.0)),
)}  # fmt: skip
"""Every metric by its id, in the order of the report."""

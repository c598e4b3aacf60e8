"""The model card: how a weights file was made, what it reaches, what it cannot do."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyomni.config import TINY
from tinyomni.evaluation.calibration import MAX_WRONG, UNSURE_SCENE_QUANTILE
from tinyomni.evaluation.report import HEADINGS, MetricResult, Report
from tinyomni.io.weights import number_types
from tinyomni.reply import MOST_APART
from tinyomni.training import stages
from tinyomni.training.run import total_costs

CARD, RELIABILITY = "MODEL_CARD.md", "reliability.svg"
CANNOT = """## What it cannot do

- It knows twelve colours, eight shapes, two sizes, five places, numbers up to three, and about 30 everyday phrases. It
  has no other words, and knows nothing else about the world.
- Images are drawings of one to three things{drawn}. A photograph means nothing to it; the metrics "outside the world"
  say how often it admits that.
- It understands English as spoken by {makers}. No human voice was in its training. A spoken question can last 5 s.
- It speaks in {voices} voices, learned from eSpeak NG. Sentences unlike those of its world are garbled.
- "Unsure" is not a probability of being wrong. It says that the answer was less certain, by the {certainty} of its
  tokens, than {sure:.0%} of the right answers to validation questions{stricter}.
- It can be wrong with confidence: the metric "unsure: of wrong answers" says how often it noticed, if there were any.
"""


CERTAINTY = {"plain": "mean log-probability", "wide": "least log-probability"}
DRAWN = {
    "plain": ", as `tinyomni world --show` draws them",
    "wide": """; the rows "independent renderer" say in which looks it sees them. Of too many, overlapping or
  unknown shapes it can give a description all the same: the rows "confident claims" say how often""",
}
STRICTER = (
    f", or than a stricter limit, where more than {MAX_WRONG:.0%} of those called sure were wrong; or that it began to "
    f"describe an image less certainly than {1 - UNSURE_SCENE_QUANTILE:.0%} of them; or that the\n"
    f"  recogniser read another spoken question than the Thinker: more than {MOST_APART:.0%} of the letters were others"
)


def style_of(made: dict[str, Any]) -> str:
    """The style of the data of the last stage."""
    style: str = made["stages"].get("omni", {}).get("settings", {}).get("style", "plain")
    return style


def makers_of(made: dict[str, Any]) -> str:
    """The synthesizers that the recogniser has heard."""
    others = made["stages"].get("audio", {}).get("settings", {}).get("makers", "")
    return ", ".join(["eSpeak NG", *filter(None, others.split(","))])


def model_card(out: Path, report: Report, made: dict[str, Any], thresholds: dict[str, float], sure: float) -> str:
    """The card in Markdown. `sure` is the fraction of right answers that are not called unsure."""
    costs = {name: total_costs(result) for name, result in made["stages"].items()}
    lines = [
        "# Model card",
        "",
        f"`{out.name}`: {out.stat().st_size / 1e6:.1f} MB, {number_types(out)}, safetensors; it contains the "
        "tokenizer, all sizes and a SHA-256. The model sees one image, reads, hears and speaks, "
        "in a closed world of coloured shapes.",
        "",
        "## How it was made",
        "",
        "| | |",
        "|---|---|",
        f"| command | `{command(made)}` |",
        f"| commit | {made['commit']} |",
        f"| date of export | {made['date']} |",
        f"| data | the closed world: images, sentences and questions drawn from a seed, spoken by {makers_of(made)} "
        "(`tinyomni/data/`); no other data |",
        f"| hardware | {made['hardware']} |",
        f"| time | {sum(cost['seconds'] for cost in costs.values()) / 60:.0f} minutes for all stages |",
        "",
        "| stage | steps | initialized from | minutes | samples | skipped batches | MB | device | changed settings |",
        "|---|--:|---|--:|--:|--:|--:|---|---|",
    ]
    for name, result in made["stages"].items():
        cost = costs[name]
        lines.append(
            f"| {name} | {cost['steps']} | {origin(result)} | {cost['seconds'] / 60:.1f} | {cost['samples']} "
            f"| {cost['skipped']} | {result['peak_memory'] / 2**20:.0f} | {result['device']} {result['precision']} "
            f"| {changed(name, made)} |"
        )
    lines += [
        "",
        "Steps, minutes, samples and skipped batches include the runs whose weights a stage was initialized from.",
        "",
        "## What it reaches",
        "",
        "Measured from this file, on the test split. A baseline knows nothing of the matter; "
        f"a threshold is what the preset `{report.preset}` has to reach. "
        "`tinyomni report --weights` measures all of it again.",
        "",
        f"| metric | {' | '.join(HEADINGS)} |",
        "|---|--:|---|---|--:|--:|",
        *map(row, report.results),
        "",
        *missed(report),
        *([f"Not in this file, so not measured: {', '.join(report.missing)}.", ""] if report.missing else []),
        f"Thresholds of certainty ({CERTAINTY[style_of(made)]}): "
        + (", ".join(f"{name} {value:.3f}" for name, value in thresholds.items()) or "none, no answer was right")
        + ".",
        "",
        *figure_of(report),
        CANNOT.format(
            voices=TINY.talker.voices,
            sure=sure,
            makers=makers_of(made),
            drawn=DRAWN[style_of(made)],
            certainty=CERTAINTY[style_of(made)],
            stricter=STRICTER * (style_of(made) == "wide"),
        ).rstrip(),
    ]
    return "\n".join(lines) + "\n"


def missed(report: Report) -> list[str]:
    """Which thresholds the weights do not reach, if there are any."""
    held = [each for each in report.results if each.passed is not None]
    found = [each for each in held if not each.passed]
    if not found:
        return []
    values = "; ".join(f"{each.metric.label}: {each.cells()[0]}, threshold {each.cells()[2]}" for each in found)
    return [f"**{len(found)} of {len(held)} thresholds are missed.** {values}.", ""]


def figure_of(report: Report) -> list[str]:
    """The reliability diagram, where calibration was measured."""
    if not any(each.id == "calibration.error" for each in report.results):
        return []
    return [f"![How many typed answers of each confidence are right]({RELIABILITY})", ""]


def row(result: MetricResult) -> str:
    """A line of the table of metrics."""
    value, interval, threshold, baseline, n = result.cells()
    met = {True: " met", False: " **missed**", None: ""}[result.passed]
    return f"| {result.metric.label} | {value} | {interval} | {threshold}{met} | {baseline} | {n} |"


def command(made: dict[str, Any]) -> str:
    """The command that trains it."""
    if all(not changed(name, made) and not result.get("initialized_from") for name, result in made["stages"].items()):
        return f"tinyomni train all --preset {made['preset']}"
    return f"tinyomni train STAGE --preset {made['preset']} --set …, see below"


def origin(result: dict[str, Any]) -> str:
    """Which weights a stage was initialized from."""
    source = result.get("initialized_from")
    return "random" if source is None else f"a run of {source['steps']} steps"


def changed(stage: str, made: dict[str, Any]) -> str:
    """The settings that are not those of the preset."""
    preset = asdict(stages.get(stage).presets[made["preset"]])
    used = made["stages"][stage]["settings"]
    names = (name for name in used if name in preset and preset[name] != used[name] and name != "init_from")
    return " ".join(f"{name}={used[name]}" for name in names)

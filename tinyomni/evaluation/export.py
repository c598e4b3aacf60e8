"""From trained stages to one file, and from that file to stages again.

    assemble   a run folder → Omni, and what taught its eye
    limits     how certain right answers are: validation questions decide when the interface says that it is unsure
    export     both → weights and a model card
    unpack     weights → a run folder, so that `report` measures what ships, and training can go on from it

The Thinker is that of the omni stage; the stage thinker is not in the file. Eye and ear must be those that the omni
stage was trained with.
"""

import base64
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from tinyomni.data.datasets import Scenes, Speech
from tinyomni.evaluation.conversation import asked, outside, rates, turns, unsure
from tinyomni.evaluation.report import Figure, Report, figure, report
from tinyomni.io import weights as weights_file
from tinyomni.omni import VOICES, Omni
from tinyomni.training import checkpoint
from tinyomni.training.engine import Stage
from tinyomni.training.recipe import Place
from tinyomni.training.stages.audio import AudioStage
from tinyomni.training.stages.codec import CodecStage
from tinyomni.training.stages.omni import OmniStage
from tinyomni.training.stages.talker import TalkerStage
from tinyomni.training.stages.vision import VisionStage

LOW = 0.02  # share of right answers that may be called unsure
MOST_BYTES = 30_000_000
CARD = "MODEL_CARD.md"
STEPS = " steps"
PARTS = {
    "vision": {"vision": "vision"},
    "audio": {"audio": "encoder", "ctc": "head"},
    "codec": {"codec": "codec"},
    "talker": {"talker": "talker"},
    "omni": {name: name for name in ("thinker", "vision", "audio", "proj_v", "proj_a")},
}
"""Of each stage, what in `Omni` is what in the stage."""
TEACHERS = ("text", "picture_out", "text_out", "slots", "patch_slot", "text_slots")  # of the eye: for the report

Tensors = dict[str, Shaped[Tensor, "..."]]


def stage_of(name: str) -> Stage:
    """An untrained stage."""
    kinds: list[Callable[[], Stage]] = [VisionStage, AudioStage, CodecStage, TalkerStage, OmniStage]
    return dict(zip(PARTS, kinds, strict=True))[name]()


# ---- one model ------------------------------------------------------------------------------------------------------


def assemble(place: Place) -> tuple[Omni, Tensors]:
    """The model, and the tensors of what taught its eye. Raises FileNotFoundError for a stage that is not trained, and
    ValueError for stages that were not trained together.
    """
    omni = Omni(tokenizer=place.tokenizer())
    stages = {name: place.trained(stage_of(name)) for name in PARTS}
    for name, parts in PARTS.items():
        for here, there in parts.items():
            weights = getattr(stages[name], there).state_dict()
            if name == "omni" and here in ("vision", "audio") and not same(getattr(omni, here).state_dict(), weights):
                raise ValueError(
                    f"Export: the stage omni was trained with another {here} than the one in {place.of(here)}. "
                    "Train it again: tinyomni train omni"
                )
            getattr(omni, here).load_state_dict(weights)
    teachers = {f"eye.{name}": tensor for name, tensor in stages["vision"].state_dict().items()
                if name.split(".")[0] in TEACHERS or name == "log_scale"}  # fmt: skip
    return omni, teachers


def same(one: Tensors, other: Tensors) -> bool:
    """Equal weights."""
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# ---- how certain is certain? ----------------------------------------------------------------------------------------


def limits(omni: Omni, n: int = 200, cache: str | None = None) -> dict[str, float]:
    """Limits for typed questions, spoken ones, and the ear, from the validation split."""
    silent, spoken = Scenes("validation", n, speech=False), Scenes("validation", n, cache=cache)
    said = Speech("validation", n, cache=cache)
    found: dict[str, list[tuple[float, bool]]] = {"read": [], "heard": [], "ear": []}
    for index in range(n):
        for name, sample in (("read", silent[index]), ("heard", spoken[index])):
            question = sample.question if name == "read" else (sample.question_wave, 16_000)
            reply = asked(omni, question, sample.picture)
            found[name].append((reply.certainty, reply.answer.lower() == sample.answer.lower()))
        transcript = omni.transcribe((said[index].wave, 16_000))
        text = "".join(transcript)
        found["ear"].append((transcript.certainty, text == said[index].text))
    right = {name: [certain for certain, good in pairs if good] for name, pairs in found.items()}
    return {name: float(np.quantile(kept, LOW)) for name, kept in right.items() if kept}


# ---- out ------------------------------------------------------------------------------------------------------------


def export(
    place: Place, out: Path, n: int = 300, hardware: str = "", commit: str = "", measured: Path | None = None
) -> Report:
    """Write the weights to `out` and the card beside them. `measured` is the JSON of a report that was made of these
    very weights, of the stages or with `--weights`; without it everything is measured here, from the file.
    """
    omni, teachers = assemble(place)
    weights = {name: tensor[: omni.tokenizer.n_pieces] if name in weights_file.TABLES else tensor
               for name, tensor in {**omni.state_dict(), **teachers}.items()}  # fmt: skip
    omni.limits = limits(omni, n, str(place.folder / "speech"))
    results = {name: result_of(place.of(name)) for name in PARTS}
    made = {"preset": place.preset, "commit": commit or head(), "hardware": hardware or "not said",
            "date": datetime.now(UTC).date().isoformat(), "stages": results}  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    weights_file.write(out, weights, asdict(omni.cfg), omni.tokenizer, limits=omni.limits, made=made)
    if (size := out.stat().st_size) > MOST_BYTES:
        out.unlink()
        raise ValueError(f"Export: {out} would have {size:,} bytes, more than {MOST_BYTES:,}")
    again = unpack(out, place.folder / "shipped", place.preset)
    found = load_report(measured) if measured else report(again, n)
    found = replace(found, figures=(*found.figures, *more_figures(Omni.from_pretrained(out), again, n)))
    (out.parent / CARD).write_text(card(out, found, made, omni.limits), encoding="utf-8")
    return found


def result_of(run: Path) -> dict[str, Any]:
    """What a run did, together with what was done before in the run from whose weights it started."""
    result: dict[str, Any] = json.loads((run / "result.json").read_text(encoding="utf-8"))
    start = result["settings"].get("start")
    if start is not None and not start.endswith(STEPS):  # what came out of a weights file is added up already
        before = result_of(Path(start))
        for name in ("steps", "seconds", "samples", "tokens", "skipped"):
            result[name] += before[name]
        result["settings"]["start"] = f"{before['steps']}{STEPS}"
    return result


def head() -> str:
    """The commit of the checkout that this code lies in."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "not known"
    return commit + " with changes" * bool(dirty)


def load_report(path: Path) -> Report:
    """What `tinyomni report --json` wrote."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Report(data["preset"], tuple(Figure(**each) for each in data["figures"]), data["costs"],
                      tuple(data["missing"]))  # fmt: skip
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"Export: {path} is no report of `tinyomni report --json` ({error!r})") from error


def more_figures(omni: Omni, place: Place, n: int) -> Iterator[Figure]:
    """The conversation, and what lies outside of the world."""
    found = rates(turns(omni, n, str(place.folder / "speech")))
    control = found.pop("answers exchanged")
    for name, rate in found.items():
        yield figure(f"conversation: {name}", rate, place.preset, control if name.startswith("right") else None)
    for kind, says, either in outside(omni, n):
        yield figure(f"outside: {kind}, says so", says, place.preset)
        yield figure(f"outside: {kind}, says so or is unsure", either, place.preset)
    for name, rate in zip(("right", "wrong"), unsure(omni, n), strict=True):
        if rate.n:
            yield figure(f"unsure: of {name} answers", rate, place.preset)


# ---- and back -------------------------------------------------------------------------------------------------------


def unpack(weights: Path | None, folder: Path, preset: str = "gpu") -> Place:
    """The stages that a weights file was made of, each with one checkpoint, in float32; the tokenizer too.

    What is in the folder from an earlier file is replaced.
    """
    tensors, about = weights_file.read(weights)
    made = json.loads(about.get("made", "{}"))
    if not made:
        raise ValueError("Export: these weights do not say how they were made. `tinyomni export` writes such a file.")
    tokenizer = folder / "tokenizer" / "tokenizer.model"
    tokenizer.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.write_bytes(base64.b64decode(about["tokenizer"]))
    place = Place(folder, preset)
    for name, parts in PARTS.items():
        stage = stage_of(name)
        weights_of = stage.state_dict()
        for here, there in parts.items():
            weights_of |= shipped(f"{here}.", f"{there}.", tensors, weights_of)
        if name == "vision":
            weights_of |= shipped("eye.", "", tensors, weights_of)
        stage.load_state_dict(weights_of)
        result = made["stages"][name]
        for old in checkpoint.steps(place.of(name)):
            checkpoint.discard(old)
        model = {f"model.{key}": each for key, each in weights_of.items()}
        path = checkpoint.save(place.of(name), result["best_step"] or result["steps"], model, {"result": result})
        checkpoint.point(place.of(name), "best", path)
        (place.of(name) / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    return place


def shipped(here: str, there: str, tensors: Tensors, weights: Tensors) -> Tensors:
    """What the file calls `here…`, by the names that it has in a stage, in the sizes of the stage's weights."""
    found = {there + key.removeprefix(here): (key, each) for key, each in tensors.items() if key.startswith(here)}
    return {name: weights_file.fill(key, each, weights[name]) for name, (key, each) in found.items()}


# ---- the card -------------------------------------------------------------------------------------------------------


CAN_NOT = """## What it can not do

- It knows twelve colours, eight shapes, two sizes, five places, numbers up to three, and about 30 everyday phrases. It
  has no other words, and knows nothing of the world.
- Pictures are drawn scenes of one to three things, as `tinyomni world --show` draws them. A photograph means nothing to
  it; the rows "outside" say how often it admits that.
- It understands English as eSpeak NG speaks it. No human voice was in its training. Speech in one piece is 5 s at most.
- It speaks in {voices} voices, both made from eSpeak NG. Sentences unlike those of its world come out garbled.
- "Unsure" is no probability of being wrong. It says that the answer was less certain, by the mean log-probability of
  its tokens, than {low:.0%} of the right answers to validation questions were.
- It can be confidently wrong: the row "unsure: of wrong answers" says how often it noticed, if there were any.
"""


def card(out: Path, found: Report, made: dict[str, Any], limits: dict[str, float]) -> str:
    """The model card, in Markdown."""
    stages = made["stages"]
    lines = [
        "# Model card",
        "",
        f"`{out.name}`: {out.stat().st_size / 1e6:.1f} MB, float16, safetensors; tokenizer, sizes and a SHA-256 lie "
        "inside. It sees one picture, reads, hears and speaks, in a closed world of coloured shapes.",
        "",
        "## How it was made",
        "",
        "| | |",
        "|---|---|",
        f"| command | `{command(made)}` |",
        f"| commit | {made['commit']} |",
        f"| date of export | {made['date']} |",
        "| data | the closed world: pictures, sentences and questions drawn from a seed, spoken by eSpeak NG "
        "(`tinyomni/data/`); no other data |",
        f"| hardware | {made['hardware']} |",
        f"| time | {sum(each['seconds'] for each in stages.values()) / 60:.0f} minutes for all stages |",
        "",
        "| stage | steps | minutes | samples | skipped | MB | device | changed settings |",
        "|---|--:|--:|--:|--:|--:|---|---|",
    ]
    for name, each in stages.items():
        lines.append(
            f"| {name} | {each['steps']} | {each['seconds'] / 60:.1f} | {each['samples']} | {each['skipped']} "
            f"| {each['peak_memory'] / 2**20:.0f} | {each['device']} {each['precision']} | {changed(name, made)} |"
        )
    lines += [
        "",
        "## What it reaches",
        "",
        "Measured from this file, on the test split. A control knows nothing of the matter; a limit is what the preset "
        f"`{found.preset}` has to reach. `tinyomni report --weights` measures again all rows but *conversation*, "
        "*outside* and *unsure*.",
        "",
        "| figure | reached | 95% | limit | control | n |",
        "|---|--:|---|---|--:|--:|",
        *map(row, found.figures),
        "",
        *([f"Not in this file, so not measured: {', '.join(found.missing)}.", ""] if found.missing else []),
        "Limits of certainty (mean log-probability): "
        + (", ".join(f"{name} {value:.3f}" for name, value in limits.items()) or "none, nothing was answered right")
        + ".",
        "",
        CAN_NOT.format(voices=VOICES, low=1 - LOW).rstrip(),
    ]
    return "\n".join(lines) + "\n"


def row(each: Figure) -> str:
    """A line of the table."""
    limit = "" if each.limit is None else f"{'≥' if each.higher_is_better else '≤'} {each.limit:.1%}"
    met = {True: " met", False: " **missed**", None: ""}[each.good]
    control = "" if each.control is None else f"{each.control:.1%}"
    return (
        f"| {each.name} | {each.value:.2%} | {each.low:.2%} … {each.high:.2%} | {limit}{met} | {control} | {each.n} |"
    )


def command(made: dict[str, Any]) -> str:
    """What trains it."""
    one = all(changed(name, made) == "" for name in made["stages"])
    return f"tinyomni train {'all' if one else 'STAGE'} --preset {made['preset']}" + (
        "" if one else " --set …, see below"
    )


def changed(stage: str, made: dict[str, Any]) -> str:
    """Settings that are not those of the preset."""
    preset = asdict(import_module(f"tinyomni.training.stages.{stage}").SETTINGS[made["preset"]])
    used = made["stages"][stage]["settings"]
    return " ".join(f"{name}={value}" for name, value in used.items() if name in preset and preset[name] != value)

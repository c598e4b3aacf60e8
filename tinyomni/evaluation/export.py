"""From trained stages to one weights file with its model card, and from that file to stages again.

    assemble     run folder → Omni, and the tensors that only the report needs
    thresholds   how certain right answers are: validation questions decide below which certainty an answer is unsure
    export       both → weights file and model card
    unpack       weights file → run folder, so that `report` measures what ships, and training can go on from it

Which tensors a stage gives to the file is stated by the stage itself (`Stage.weights_file`). The Thinker in the file is
that of the stage omni. The encoders must be those that the stage omni was trained with.
"""

import base64
import json
import os
import subprocess
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinyomni.config import SAMPLE_RATE
from tinyomni.data.datasets import Scenes, Speech
from tinyomni.errors import InputError
from tinyomni.evaluation.calibration import (
    MAX_WRONG,
    UNSURE_QUANTILE,
    UNSURE_SCENE_QUANTILE,
    threshold,
    validation_wording,
)
from tinyomni.evaluation.dialogue import ask
from tinyomni.evaluation.model_card import CARD, RELIABILITY, model_card
from tinyomni.evaluation.registry import WHOLE_MODEL, WIDE
from tinyomni.evaluation.report import Report, report
from tinyomni.files import read_json, temporary_folder
from tinyomni.io import weights as weights_io
from tinyomni.io.weights import Tensors
from tinyomni.omni import Omni
from tinyomni.training import checkpoint, stages
from tinyomni.training.recipe import RunDir
from tinyomni.training.run import shipped_state
from tinyomni.training.settings import SHIPPED
from tinyomni.training.stage import Stage

MAX_BYTES = {False: 30_000_000, True: 20_000_000}  # of a file in float16, in int8
EARLIER_RUN = "an earlier run"
TEACHER = "eye."  # tensors of the file that are not in Omni: what taught the image encoder


def exported_stages() -> dict[str, Stage]:
    """Untrained stages, by name, of those that a weights file holds something of."""
    fresh = {spec.name: spec.untrained() for spec in stages.in_order() if spec.untrained is not None}
    return {name: stage for name, stage in fresh.items() if stage.weights_file}


# ---- one model ------------------------------------------------------------------------------------------------------


def in_file(stage: Stage) -> Tensors:
    """The tensors that a stage gives to the weights file, by their names there."""
    found: Tensors = {}
    prefixes = sorted(stage.weights_file, key=lambda pair: -len(pair[1]))  # the longest prefix that fits decides
    for name, tensor in stage.state_dict().items():
        there, here = next((pair for pair in prefixes if name.startswith(pair[1])), (None, ""))
        if there is not None:
            found[there + name.removeprefix(here)] = tensor
    return found


def assemble(run_dir: RunDir) -> tuple[Omni, Tensors]:
    """The model, and the tensors that only the report needs. Raises InputError for a stage that is not trained, and for
    stages that were not trained together.
    """
    found: Tensors = {}
    for name, stage in exported_stages().items():
        tensors = in_file(run_dir.trained(stage))
        for key in tensors.keys() & found.keys():
            if not torch.equal(tensors[key], found[key]):
                part = key.split(".")[0]
                raise InputError(
                    "Export: "
                    f"the stage {name} was trained with another {part} encoder than the one in {run_dir.of(part)}. "
                    f"Train it again: tinyomni train {name}"
                )
        found |= tensors
    omni = Omni(tokenizer=run_dir.tokenizer())
    parts = {name: tensor for name, tensor in found.items() if not name.startswith(TEACHER)}
    omni.load_state_dict(omni.state_dict() | parts)
    return omni, {name: tensor for name, tensor in found.items() if name.startswith(TEACHER)}


# ---- how certain is certain? ----------------------------------------------------------------------------------------


def thresholds(omni: Omni, n: int = 200, cache: str | None = None) -> dict[str, float]:
    """Certainty below which typed answers, spoken ones and transcripts are unsure, from the validation split.

    Of weights of the style `wide` it is measured on images and wordings of that style, those of held-out families too;
    and for `scene`, how certain typed answers that are right are of what begins their description.
    """
    style = omni.style
    silent = Scenes("validation", n, speech=False, style=style)
    aloud = Scenes("validation", n, cache=cache, style=style)
    utterances = Speech("validation", n, cache=cache, style=style)
    certainties: dict[str, list[float]] = {"typed": [], "spoken": [], "asr": []}
    wrong: dict[str, list[float]] = {"typed": [], "spoken": [], "asr": []}
    scenes: list[float] = []
    for index in range(n):
        typed, spoken, utterance = silent[index], aloud[index], utterances[index]
        assert spoken.question_wave is not None
        for name, sample, reply in (
            ("typed", typed, ask(omni, validation_wording(typed, style), typed.image)),
            ("spoken", spoken, ask(omni, (spoken.question_wave, SAMPLE_RATE), spoken.image)),
        ):
            right = reply.answer.lower() == sample.answer.lower()
            (certainties if right else wrong)[name].append(reply.certainty)
            if style == "wide" and name == "typed" and right and reply.scene_certainty is not None:
                scenes.append(reply.scene_certainty)
        transcript = omni.transcribe((utterance.wave, SAMPLE_RATE))
        right = "".join(transcript) == utterance.text
        (certainties if right else wrong)["asr"].append(transcript.certainty)
    max_wrong = MAX_WRONG if style == "wide" else 1.0
    found = {name: threshold(right, wrong[name], max_wrong) for name, right in certainties.items() if right}
    return found | ({"scene": float(np.quantile(scenes, UNSURE_SCENE_QUANTILE))} if scenes else {})


# ---- out ------------------------------------------------------------------------------------------------------------


def export(
    run_dir: RunDir,
    out: Path,
    n: int = 300,
    hardware: str = "",
    commit: str = "",
    measured: Path | None = None,
    overwrite: bool = False,
    allow_missed: bool = False,
    int8: bool = True,
) -> Report:
    """Write the weights to `out`, large matrices in int8 or else all in float16, and the card beside them.

    `measured` is the JSON of a report on these very weights, of the stages or with `--weights`; what it does not hold
    is measured here, from the file.

    Raises InputError where `out` exists, unless `overwrite`, and where a threshold is missed, unless `allow_missed`;
    then nothing is written.
    """
    if out.exists() and not overwrite:
        raise InputError(f"Export: {out} exists. Write to another file (-o FILE), or say --overwrite to replace it.")
    omni, teachers = assemble(run_dir)
    tensors = {name: tensor[: omni.tokenizer.n_pieces] if name in weights_io.TABLES else tensor
               for name, tensor in {**omni.state_dict(), **teachers}.items()}  # fmt: skip
    omni.style = read_result(run_dir.of("omni")).get("settings", {}).get("style", "plain")
    omni.thresholds = thresholds(omni, n, str(run_dir.folder / "speech"))
    made = {
        "preset": run_dir.preset,
        "commit": commit or checkout(),
        "hardware": hardware or "not given",
        "date": datetime.now(UTC).date().isoformat(),
        "stages": {name: without_paths(read_result(run_dir.of(name))) for name in exported_stages()},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(out.parent, "tmp-export-") as folder:
        new = folder / out.name
        weights_io.write(new, tensors, asdict(omni.cfg), omni.tokenizer, int8, thresholds=omni.thresholds,
                         style=omni.style, made=made)  # fmt: skip
        if (size := new.stat().st_size) > MAX_BYTES[int8]:
            raise InputError(f"Export: {out} must have at most {MAX_BYTES[int8]:,} bytes, got {size:,}")
        unpacked, model = unpack(new, run_dir.folder / "shipped", run_dir.preset), Omni.from_pretrained(new)
        found = Report.load(measured) if measured else report(unpacked, n, model=model)
        if not any(each.metric.part in WHOLE_MODEL for each in found.results):
            parts = tuple(part for part in WHOLE_MODEL if omni.style == "wide" or part not in WIDE)
            more = report(unpacked, n, parts, model)
            found = replace(found, results=(*found.results, *more.results))
        missed = [each.metric.label for each in found.results if each.passed is False]
        if missed and not allow_missed:
            raise InputError(
                f"Export: {len(missed)} thresholds are missed ({'; '.join(missed)}), so nothing was written. "
                "Train longer (--set steps=N lengthens a finished run), or say --allow-missed to write it as it is."
            )
        card = folder / CARD
        card.write_text(model_card(new, found, made, omni.thresholds, 1 - UNSURE_QUANTILE), encoding="utf-8")
        figure = folder / RELIABILITY
        written = [new, card, figure] if found.plot_reliability(figure) else [new, card]
        for each in written:
            os.replace(each, out.parent / each.name)
    return found


def read_result(run: Path) -> dict[str, Any]:
    """What a run did."""
    result: dict[str, Any] = read_json(run / "result.json")
    return result


def without_paths(result: dict[str, Any]) -> dict[str, Any]:
    """The result of a run, for a file that others read: where its first weights lay on this machine is left out."""
    source = result.get("initialized_from")
    if source is None or source["run"] == SHIPPED:
        return result
    settings = {**result["settings"], "init_from": EARLIER_RUN}
    return {**result, "settings": settings, "initialized_from": {**source, "run": EARLIER_RUN}}


def checkout() -> str:
    """The commit of the checkout that holds this code."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + " with changes" * bool(dirty)


# ---- and back -------------------------------------------------------------------------------------------------------


def unpack(weights: Path | None, folder: Path, preset: str = "gpu") -> RunDir:
    """The stages that a weights file was made of, each with one checkpoint, in float32; the tokenizer too.

    What the folder holds of an earlier file is replaced.
    """
    tensors, metadata = weights_io.read(weights)
    made = json.loads(metadata.get("made", "{}"))
    if "stages" not in made:
        raise InputError(
            "Export: expected weights that say how they were made, as `tinyomni export` writes them; got others"
        )
    tokenizer = folder / "tokenizer" / "tokenizer.model"
    tokenizer.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.write_bytes(base64.b64decode(metadata["tokenizer"]))
    run_dir = RunDir(folder, preset)
    for name, stage in exported_stages().items():
        run, result = run_dir.of(name), made["stages"][name]
        for old in checkpoint.list_checkpoints(run):
            checkpoint.delete(old)
        model = {f"model.{key}": tensor for key, tensor in shipped_state(stage, tensors).items()}
        path = checkpoint.save(run, result["best_step"] or result["steps"], model, {"result": result})
        checkpoint.set_pointer(run, "best", path)
        (run / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    return run_dir

"""What every stage's file gives: a recipe that says what is trained, on what, and how.

    job(place) → Job → fit → runs/laptop/STAGE/ with checkpoints, log.jsonl and result.json

A `Place` is one whole training under one folder: the preset, data of one's own, settings that were changed by hand, and
the stages that are done. Later stages ask it for what earlier ones have learned.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from torch.utils.data import Dataset

from tinyomni.data.corpora import open_data
from tinyomni.data.manifests import ManifestError
from tinyomni.tokenizer import BPETokenizer
from tinyomni.training import checkpoint, distributed
from tinyomni.training.engine import Result, Settings, Stage, fit, seed_everything

PRESETS = ("smoke", "laptop", "gpu")
STAGES = ("tokenizer", "thinker", "vision", "audio", "codec", "talker", "omni")  # each needs some of those before it
AnyStage = TypeVar("AnyStage", bound=Stage)


@dataclass(frozen=True)
class Place:
    """Where a whole model is trained, and how."""

    folder: Path
    preset: str = "laptop"
    data: Path | None = None  # a manifest or texts of one's own, instead of the closed world
    skip_bad: bool = False  # go on without those rows of it that cannot be used
    changes: Mapping[str, str] = field(default_factory=dict)  # --set lr=1e-4

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"Training: there is no preset {self.preset!r}; there are {', '.join(PRESETS)}")

    def settings(self, presets: Mapping[str, Settings]) -> Settings:
        """The settings of the preset, with what was changed by hand."""
        settings = presets[self.preset]
        kinds = {each.name: type(getattr(settings, each.name)) for each in dataclasses.fields(Settings)}
        kinds |= {"patience": int, "start": str}
        values: dict[str, Any] = {}
        for name, text in self.changes.items():
            if name not in kinds:
                raise ValueError(f"Training: there is no setting {name!r}; there are {', '.join(kinds)}")
            values[name] = read(name, text, kinds[name])
        return dataclasses.replace(settings, **values)

    def own(self, *kinds: str) -> Any:
        """The data of one's own, of one of these kinds. Sound that has to be resampled is kept beside the runs."""
        if self.data is None:
            raise ValueError("Training: --data names no data")
        data = open_data(self.data, skip_bad=self.skip_bad, cache=self.folder / "speech")
        if data.kind not in kinds:
            raise ManifestError(f"{self.data.name} holds {data.kind}; this stage needs {' or '.join(kinds)}")
        return data

    def of(self, stage: str) -> Path:
        """The folder of a stage."""
        return self.folder / stage

    def tokenizer(self) -> BPETokenizer:
        """The one that was trained here, else the one that ships."""
        own = self.of("tokenizer") / "tokenizer.model"
        return BPETokenizer(own if own.is_file() else None)

    def trained(self, stage: AnyStage) -> AnyStage:
        """A stage with the best weights that it has learned here, in eval mode."""
        if not (self.of(stage.name) / "result.json").is_file():
            raise FileNotFoundError(
                f"Training: {self.of(stage.name)} holds no finished run. First: tinyomni train {stage.name}"
            )
        checkpoint.load_weights(stage, self.of(stage.name))
        stage.eval()
        return stage


def read(name: str, text: str, kind: Callable[[str], Any]) -> Any:
    """What stands behind `--set name=`, as a value of its kind."""
    try:
        return {"True": True, "False": False}[text] if kind is bool else kind(text)
    except (KeyError, ValueError) as error:
        raise ValueError(f"Training: {name}={text} is no {getattr(kind, '__name__', kind)}") from error


@dataclass
class Job:
    """One stage, ready for `fit`."""

    stage: Stage
    train: Dataset[Any]
    collate: Callable[[list[Any]], Any]
    settings: Settings
    lengths: Sequence[float] | None = None
    in_order: bool = False  # the first samples first: the data leads from what is easy to what is hard

    def run(self, place: Place) -> Result:
        """Train, or go on."""
        return fit(self.stage, self.train, self.settings, place.of(self.stage.name), collate=self.collate,
                   lengths=self.lengths, in_order=self.in_order)  # fmt: skip


def train(stage: str, place: Place) -> Result | None:
    """Train one stage, or go on with it. The tokenizer, which has no steps, gives no result.

    Beside the settings, `--set` reaches a recipe's own switches: `omni` has `thaw`, `codec` has `plain`.
    """
    if stage not in STAGES:
        raise ValueError(f"Training: there is no stage {stage!r}; there are {', '.join(STAGES)}")
    recipe = import_module(f"tinyomni.training.stages.{stage}")
    if stage != "tokenizer":
        switches = [name for name, each in inspect.signature(recipe.job).parameters.items()
                    if isinstance(each.default, bool) and name in place.changes]  # fmt: skip
        chosen = {name: read(name, place.changes[name], bool) for name in switches}
        changes = {name: text for name, text in place.changes.items() if name not in switches}
        place = dataclasses.replace(place, changes=changes)
        seed_everything(place.settings(recipe.SETTINGS).seed)  # the first weights come from the seed too
        return recipe.job(place, **chosen).run(place)
    world = distributed.start()
    if world.first:
        recipe.train(place)
    world.any(False)  # the others wait for it
    return None

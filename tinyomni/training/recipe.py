"""Where a whole model is trained, and one stage of it, ready to be trained.

RunDir ─ data, tokenizer, earlier stages ─ a stage's build → Job → fit → runs/laptop/STAGE/
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch.utils.data import Dataset

from tinyomni.data.custom import open_data
from tinyomni.data.manifests import ManifestError, files_below
from tinyomni.errors import InputError, MissingFileError
from tinyomni.tokenizer import BPETokenizer
from tinyomni.training import checkpoint
from tinyomni.training.loop import fit
from tinyomni.training.run import Result, load_shipped
from tinyomni.training.settings import PRESETS, SHIPPED, Settings
from tinyomni.training.stage import Stage

AnyStage = TypeVar("AnyStage", bound=Stage)


@dataclass(frozen=True)
class RunDir:
    """The folder of a whole training, such as runs/laptop: one subfolder for each stage; its preset and its data."""

    folder: Path
    preset: str = PRESETS[0]
    data: Path | None = None  # custom data, a manifest or texts, instead of the closed world
    skip_bad: bool = False  # skip those rows of it that cannot be used
    allow_outside: bool = False  # accept paths that leave its folder

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise InputError(f"Training: unknown preset {self.preset!r}; expected one of {', '.join(PRESETS)}")

    def custom_data(self, *kinds: str) -> Any:
        """The custom data, of one of these kinds. Audio that has to be resampled is cached beside the runs."""
        if self.data is None:
            raise ValueError("RunDir: this run has no custom data")
        data = open_data(
            self.data, skip_bad=self.skip_bad, allow_outside=self.allow_outside, cache=self.folder / "speech"
        )
        if data.kind not in kinds:
            raise ManifestError(f"{self.data.name}: this stage needs {' or '.join(kinds)}, got {data.kind}")
        return data

    def data_digest(self) -> str | None:
        """Changes with the custom data: with the texts and tables, and with the names and sizes of all other files."""
        if self.data is None:
            return None
        folder = self.data if self.data.is_dir() else self.data.parent
        total = hashlib.sha256()
        for path in sorted(files_below(self.data, "*")) if self.data.is_dir() else [self.data]:
            if path.is_file():
                content = path.suffix.lower() in (".txt", ".csv", ".tsv", ".json", ".jsonl")
                size = path.stat().st_size
                entry = [path.relative_to(folder).as_posix(), hash_file(path) if content else size]
                total.update(json.dumps(entry).encode())
        return total.hexdigest()

    def of(self, stage: str) -> Path:
        """The folder of a stage."""
        return self.folder / stage

    def tokenizer(self) -> BPETokenizer:
        """The tokenizer that was trained here, else the shipped one."""
        own = self.of("tokenizer") / "tokenizer.model"
        return BPETokenizer(own if own.is_file() else None)

    def trained(self, stage: AnyStage, init_from: str | None = None) -> AnyStage:
        """A stage with the best weights that it has learned here, in eval mode.

        Where it was not trained here, and a later stage starts from the shipped weights, it has the shipped ones too.
        """
        if (self.of(stage.name) / "result.json").is_file():
            checkpoint.load_weights(stage, self.of(stage.name))
        elif init_from == SHIPPED:
            load_shipped(stage)
        else:
            raise MissingFileError(
                f"Training: {self.of(stage.name)} holds no finished run. First: tinyomni train {stage.name}"
            )
        stage.eval()
        return stage


def hash_file(path: Path) -> str:
    """SHA-256 of its bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class Job:
    """One stage, ready to be trained."""

    stage: Stage
    train: Dataset[Any]
    collate: Callable[[list[Any]], Any]
    settings: Settings
    lengths: Sequence[float] | None = None
    in_order: bool = False  # keep the order of the data: it leads from what is easy to what is hard

    def run(self, run_dir: RunDir) -> Result:
        """Train, or resume."""
        return fit(self.stage, self.train, self.settings, run_dir.of(self.stage.name), collate=self.collate,
                   lengths=self.lengths, in_order=self.in_order, data=run_dir.data_digest())  # fmt: skip

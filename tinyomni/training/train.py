"""The entry of `tinyomni train`: settings are read once, then each stage is built and trained.

train("audio", run_dir, {"lr": "1e-4"}) → settings → build → Job → run
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tinyomni.errors import InputError
from tinyomni.io import weights
from tinyomni.training import stages
from tinyomni.training.loop import seed_everything
from tinyomni.training.recipe import RunDir
from tinyomni.training.run import Result
from tinyomni.training.settings import SHIPPED, Settings
from tinyomni.training.stages import Runnable, StageSpec


def train(stage: str, run_dir: RunDir, changes: Mapping[str, str] | None = None) -> Result | None:
    """Train one stage, or resume it. `changes` are those of `--set`. The tokenizer, which has no steps: no result."""
    return prepare(stage, run_dir, changes).run(run_dir)


def prepare(stage: str, run_dir: RunDir, changes: Mapping[str, str] | None = None) -> Runnable:
    """A stage, its data and its settings, ready to be trained."""
    spec = stages.get(stage)
    settings = spec.settings(run_dir.preset, changes)
    if isinstance(settings, Settings):
        if settings.init_from == SHIPPED and "tokenizer" in spec.requires:
            check_tokenizer(run_dir)
        seed_everything(settings.seed)  # the first weights follow from the seed too
    return spec.build(run_dir, settings)


def changes_for(specs: Sequence[StageSpec[Any]], changes: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Of each stage, those changes that it has a setting for. Each change must concern one stage at least."""
    known = {spec.name: spec.setting_names() for spec in specs}
    if unknown := set(changes) - set[str]().union(*known.values()):
        every = sorted(set[str]().union(*known.values()))
        raise InputError(f"Training: unknown setting {min(unknown)!r}; expected one of {', '.join(every)}")
    return {stage: {name: text for name, text in changes.items() if name in names} for stage, names in known.items()}


def check_tokenizer(run_dir: RunDir) -> None:
    """Raise InputError where the shipped weights were trained with another tokenizer than this run's."""
    _, about = weights.read()
    if run_dir.tokenizer().fingerprint != about["fingerprint"]:
        raise InputError(
            f"Training: init_from={SHIPPED} needs the shipped tokenizer, but {run_dir.of('tokenizer')} holds another. "
            "Use another --out folder."
        )

"""The registry of stages. Each module in this package registers one stage; it is imported when it is asked for.

names() → get("audio") → StageSpec: build(run_dir, settings) → Job → run
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from graphlib import TopologicalSorter
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from tinyomni.errors import InputError
from tinyomni.training.settings import PRESETS, Overridable

if TYPE_CHECKING:  # these import torch, which takes seconds
    from tinyomni.training.recipe import RunDir
    from tinyomni.training.run import Result
    from tinyomni.training.stage import Stage

S = TypeVar("S", bound=Overridable)


class Runnable(Protocol):
    """What `build` returns: a `Job`, or anything else that can be run."""

    def run(self, run_dir: "RunDir") -> "Result | None":
        """Train, or resume."""


@dataclass(frozen=True)
class StageSpec(Generic[S]):
    """All that the command line, the report, the export and the tests know of a stage."""

    name: str
    presets: Mapping[str, S]  # settings for each of PRESETS; options of its own are fields of a subclass of Settings
    build: "Callable[[RunDir, S], Runnable]"  # what to train, on what
    requires: tuple[str, ...] = ()  # stages whose results it uses
    untrained: "Callable[[], Stage] | None" = None  # a fresh one, into which trained weights can be loaded

    def __post_init__(self) -> None:
        if missing := [preset for preset in PRESETS if preset not in self.presets]:
            raise ValueError(f"Stage {self.name}: no settings for the preset {', '.join(missing)}")

    def settings(self, preset: str, changes: Mapping[str, str] | None = None) -> S:
        """The settings of a preset, with `--set` changes."""
        return self.presets[preset].override(changes or {})

    def setting_names(self) -> tuple[str, ...]:
        """What `--set` can change."""
        return tuple(field.name for field in fields(self.presets[PRESETS[0]]))  # type: ignore[arg-type]


_registered: dict[str, StageSpec[Any]] = {}


def register(spec: StageSpec[S]) -> StageSpec[S]:
    """Add a stage: `SPEC = register(StageSpec(...))` in its module."""
    _registered[spec.name] = spec
    return spec


def names() -> tuple[str, ...]:
    """All stages, without importing them."""
    return tuple(sorted({module.name for module in iter_modules(__path__)} | _registered.keys()))


def get(name: str) -> StageSpec[Any]:
    """A stage's entry; imports its module the first time."""
    if name not in _registered:
        if name not in names():
            raise InputError(f"Training: unknown stage {name!r}; expected one of {', '.join(names())}")
        import_module(f"{__name__}.{name}")
    return _registered[name]


def in_order() -> tuple[StageSpec[Any], ...]:
    """All stages, each after those that it requires."""
    order = TopologicalSorter({name: get(name).requires for name in names()}).static_order()
    return tuple(map(get, order))

"""How to train: the settings, what `--set KEY=VALUE` makes of them, and the names of the presets.

A stage with options of its own adds them as fields of a subclass; `--set` reaches those too.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import NoneType
from typing import Any, Self, get_args, get_type_hints

from tinyomni.errors import InputError

# the first is the default; every stage has settings for each; shipped: as many steps as the shipped weights have had
PRESETS = ("laptop", "quick", "gpu", "smoke", "shipped")
OPTIMIZERS = ("adamw", "muon")
SHIPPED = "shipped"  # `init_from` with this value: the weights that come with the package

# values that a resumed run may change; all others decide what is learned
FREE_ON_RESUME = frozenset(
    {
        *("grad_accum_steps", "max_skips", "device", "compile", "checkpoint_freq"),
        *("keep_last", "eval_every", "patience", "num_workers"),
    }
)

MOST = 1_000_000
AT_MOST = {
    **{"batch_size": 65_536, "grad_accum_steps": 65_536, "restarts": 1000, "num_workers": 128},
    **{"lr": 100, "restart_lr": 100, "min_lr_ratio": 1, "weight_decay": 100},
    **{"max_grad_norm": 10**9, "skip_grad_norm": 10**9},
    "seed": 2**31 - 1,  # each process adds its number, and numpy takes 32 bits
}
"""The largest value of each number; of those that are not here, a stage's own too, MOST.

A larger one is a slip: it would fill the memory, start processes without end, or overflow in torch.
"""


def check_at_most(settings: Any) -> None:
    """Raise an InputError for a number that is too large, before anything starts."""
    for field in fields(settings):
        value, most = getattr(settings, field.name), AT_MOST.get(field.name, MOST)
        if isinstance(value, (int, float)) and value > most:
            raise InputError(f"Settings: {field.name} must be at most {most:,}, got {value}")


class Overridable:
    """A dataclass of settings whose fields can be changed by text."""

    def override(self, changes: Mapping[str, str]) -> Self:
        """A copy with these fields changed. Raises InputError for an unknown name and for a value of the wrong type."""
        hints = get_type_hints(type(self))
        kinds = {field.name: hints[field.name] for field in fields(self)}  # type: ignore[arg-type]
        for name in changes:
            if name not in kinds:
                known = f"expected one of {', '.join(kinds)}" if kinds else "this stage has no settings"
                raise InputError(f"Training: unknown setting {name!r}; {known}")
        return replace(self, **{name: parse(name, text, kinds[name]) for name, text in changes.items()})  # type: ignore[type-var]


def parse(name: str, text: str, kind: Any) -> Any:
    """The text of `--set name=text` as a value of the field's type: int, float, str or bool, perhaps `| None`."""
    kinds = get_args(kind) or (kind,)
    if text == "None" and NoneType in kinds:
        return None
    to = kinds[0]
    try:
        return {"true": True, "false": False}[text.lower()] if to is bool else to(text)
    except (KeyError, ValueError) as error:
        wanted = {bool: "True or False", int: "an int", float: "a float"}[to]
        raise InputError(f"Training: {name} must be {wanted}, got {text!r}") from error


@dataclass(frozen=True)
class Settings(Overridable):
    """How to train. Batches are global: `batch_size` samples over all processes and micro-batches."""

    steps: int
    batch_size: int = 32
    grad_accum_steps: int = 1  # micro-batches per batch, each with its own backward pass: less memory, the same result
    lr: float = 1e-3
    min_lr_ratio: float = 0.05  # where the cosine ends, as a fraction of lr
    cycle: int | None = None  # steps of the first cosine of the learning rate; None: all
    restarts: int = 1  # cosines that share the steps after it; the weights at the ends of several are averaged
    restart_lr: float | None = None  # where those begin; None: at lr
    warmup: int = 50
    weight_decay: float = 0.1  # on matrices only
    optimizer: str = "adamw"  # muon: for the matrices inside the blocks
    max_grad_norm: float = 1.0  # longer gradients are clipped to it
    skip_grad_norm: float = 100.0  # a batch with a longer gradient is skipped
    max_skips: int = 10  # in a row
    seed: int = 0
    precision: str = "auto"  # fp32, bf16, fp16: see precision.py
    device: str = "auto"
    compile: bool = False
    checkpoint_freq: int = 500
    keep_last: int = 2  # checkpoints beside the best one
    eval_every: int = 250
    patience: int | None = None  # stop after so many validations without an improvement
    num_workers: int = 0
    init_from: str | None = None  # initial weights, except frozen ones: a finished run of the same stage, or "shipped"

    def __post_init__(self) -> None:
        ones = ("steps", "batch_size", "grad_accum_steps", "restarts", "checkpoint_freq", "keep_last", "eval_every",
                "max_skips")  # fmt: skip
        at_least = dict.fromkeys(ones, 1)
        at_least |= dict.fromkeys(("warmup", "num_workers", "min_lr_ratio", "weight_decay", "seed"), 0)
        at_least |= {name: 1 for name in ("patience", "cycle") if getattr(self, name) is not None}
        for name, least in at_least.items():
            if not least <= getattr(self, name) < math.inf:
                raise InputError(f"Settings: {name} must be at least {least}, got {getattr(self, name)}")
        for name in ("lr", "restart_lr", "max_grad_norm", "skip_grad_norm"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise InputError(f"Settings: {name} must be above 0 and finite, got {value}")
        check_at_most(self)
        if self.optimizer not in OPTIMIZERS:
            names = " or ".join(map(repr, OPTIMIZERS))
            raise InputError(f"Settings: optimizer must be {names}, got {self.optimizer!r}")


# Muon's steps have a length of their own, however flat the loss: only a low rate lets them come to rest
MUON: dict[str, Any] = {"optimizer": "muon", "min_lr_ratio": 0.01}

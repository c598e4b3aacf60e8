"""`tinyomni train` and `tinyomni curves`."""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

from tinyomni.cli.console import Choices, say
from tinyomni.errors import InputError
from tinyomni.files import whole


def stages() -> Iterable[str]:
    """Every stage, and "all"."""
    from tinyomni.training.stages import names

    return ("all", *names())


def presets() -> Iterable[str]:
    """The presets that settings and thresholds exist for."""
    from tinyomni.training.settings import PRESETS

    return PRESETS


def add_preset(command: argparse.ArgumentParser, meaning: str) -> None:
    """Add --preset, which several commands have."""
    command.add_argument("--preset", choices=Choices(presets), default="laptop", metavar="NAME",
                         help=f"{meaning}: %(choices)s (default laptop)")  # fmt: skip


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add both commands to the parser."""
    train = commands.add_parser("train", help="train one stage, or all; a run that was stopped is resumed")
    train.add_argument("stage", choices=Choices(stages), metavar="STAGE", help="%(choices)s")
    add_preset(train, "settings for which machine")
    train.add_argument("--data", metavar="PATH", help="custom data, a manifest or texts, instead of the closed world")
    train.add_argument("--skip-bad", action="store_true", help="skip rows of it that cannot be used")
    train.add_argument("--allow-outside", action="store_true", help="allow paths that leave the manifest's folder")
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the preset")
    train.add_argument("--out", metavar="FOLDER", help="where everything goes (default: runs/PRESET)")
    train.set_defaults(run=run_train)

    curves = commands.add_parser("curves", help="plot the losses of runs")
    curves.add_argument("runs", nargs="+", metavar="RUN", help="a stage's folder, such as runs/laptop/thinker")
    curves.add_argument("--out", default="curves.png", metavar="FILE", help="PNG, SVG or PDF (default curves.png)")
    curves.set_defaults(run=run_curves)


def run_train(args: argparse.Namespace) -> int:
    """Train one stage, or all of them."""
    from tinyomni.training import stages
    from tinyomni.training.recipe import RunDir
    from tinyomni.training.train import changes_for, train

    if args.stage == "all" and args.data:
        raise InputError("--data belongs to one stage, got `train all`: the stages read data of different kinds")
    for each in args.set:
        if "=" not in each:
            raise InputError(f"--set: expected KEY=VALUE, such as --set lr=1e-4, got {each}")
    folder, data = Path(args.out or f"runs/{args.preset}"), Path(args.data) if args.data else None
    run_dir = RunDir(folder, args.preset, data, args.skip_bad, args.allow_outside)
    specs = stages.in_order() if args.stage == "all" else (stages.get(args.stage),)
    for stage, changes in changes_for(specs, dict(each.split("=", 1) for each in args.set)).items():
        result = train(stage, run_dir, changes)
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in result.validation.items()) if result else ""
        done = f"{result.steps} steps, {result.seconds:.0f} s, validation: {metrics or 'none'}" if result else "done"
        if os.environ.get("RANK", "0") == "0":  # of several processes the first one reports
            say(f"{run_dir.of(result.stage if result else stage)}: {done}")
    return 0


def run_curves(args: argparse.Namespace) -> int:
    """Plot the losses of runs."""
    from tinyomni.training.plots import save_plot

    with whole(args.out) as out:
        save_plot([Path(run) for run in args.runs], out)
    say(args.out)
    return 0

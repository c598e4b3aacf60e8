"""`tinyomni report`, `tinyomni export` and `tinyomni export-onnx`."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from tinyomni.cli.console import Choices, say
from tinyomni.cli.training import add_preset
from tinyomni.errors import InputError
from tinyomni.files import whole


def parts() -> Iterable[str]:
    """The parts of the report."""
    from tinyomni.evaluation.registry import PARTS

    return PARTS


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add both commands to the parser."""
    report = commands.add_parser("report", help="measure a trained run, beside baselines and thresholds")
    report.add_argument("folder", nargs="?", metavar="RUNS", help="where it was trained (default: runs/PRESET)")
    add_preset(report, "whose thresholds")
    report.add_argument("--n", type=int, default=300, help="samples for each metric (default 300)")
    report.add_argument("--only", nargs="+", default=[], choices=Choices(parts), metavar="PART", help="%(choices)s")
    report.add_argument("--json", metavar="FILE", help="also write the metrics to this file")
    report.add_argument("--plot", metavar="FILE", help="plot them")
    report.add_argument(
        "--weights", nargs="?", const="shipped", metavar="FILE",
        help="measure a weights file instead (without FILE: the shipped one), unpacked into runs/shipped",
    )  # fmt: skip
    report.set_defaults(run=run_report)

    export = commands.add_parser("export", help="write a trained run to one weights file, with its model card")
    export.add_argument("folder", metavar="RUNS", help="such as runs/laptop, with vision, audio, codec, talker, omni")
    export.add_argument("-o", "--out", metavar="FILE", help="default: where the package keeps its weights")
    add_preset(export, "what it was trained with")
    export.add_argument("--report", metavar="FILE", help="metrics of these weights, by `tinyomni report --json`")
    export.add_argument("--n", type=int, default=300, help="samples for each metric (default 300)")
    export.add_argument("--hardware", default="", help="for the card: what it was trained on")
    export.add_argument("--commit", default="", help="for the card, where it is not that of this checkout")
    export.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    export.add_argument("--allow-missed", action="store_true", help="write it although a threshold is missed")
    export.add_argument("--float16", action="store_true", help="all weights in 16 bits, not in 8: twice the size")
    export.set_defaults(run=run_export)

    onnx = commands.add_parser("export-onnx", help="write the model as ONNX graphs, for onnxruntime or the live page")
    onnx.add_argument("folder", metavar="OUT", help="where the graphs and model.json go")
    onnx.add_argument("--weights", metavar="FILE", help="other weights than the shipped ones")
    onnx.add_argument("--float32", action="store_true", help="weights as they are, not as int8: four times the size")
    onnx.set_defaults(run=run_export_onnx)


def check_trained(folder: Path, preset: str) -> None:
    """Raise InputError where there is no run to measure or to export."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}. First: tinyomni train all --preset {preset}")


def run_report(args: argparse.Namespace) -> int:
    """Measure what was trained; 1 if a threshold is missed."""
    from tinyomni.evaluation.report import report
    from tinyomni.training.recipe import RunDir

    folder = Path(args.folder or ("runs/shipped" if args.weights else f"runs/{args.preset}"))
    model = None
    if args.weights:
        from tinyomni.evaluation.export import unpack
        from tinyomni.omni import Omni

        weights = None if args.weights == "shipped" else Path(args.weights)
        unpack(weights, folder, args.preset)
        model = Omni.from_pretrained(weights)
    check_trained(folder, args.preset)
    found = report(RunDir(folder, args.preset), args.n, args.only, model, notify=lambda text: say(text, sys.stderr))
    say(str(found))
    for write, file in ((found.save, args.json), (found.plot, args.plot)):
        if file:
            with whole(file) as out:
                write(out)
    return 0 if found.passed else 1


def run_export(args: argparse.Namespace) -> int:
    """Write one file of a trained run; 1 if it was allowed to miss a threshold, and does."""
    from tinyomni.evaluation.export import CARD, export
    from tinyomni.io.weights import SHIPPED
    from tinyomni.training.recipe import RunDir

    out, folder = Path(args.out or SHIPPED), Path(args.folder)
    check_trained(folder, args.preset)
    measured = Path(args.report) if args.report else None
    found = export(
        RunDir(folder, args.preset),
        out,
        args.n,
        args.hardware,
        args.commit,
        measured,
        args.overwrite,
        args.allow_missed,
        not args.float16,
    )
    say(f"{found}\n\n{out}: {out.stat().st_size / 1e6:.1f} MB; {out.parent / CARD}")
    return 0 if found.passed else 1


def run_export_onnx(args: argparse.Namespace) -> int:
    """Write the ONNX graphs; takes about a minute."""
    from tinyomni.omni import Omni
    from tinyomni.onnx.export import export, fingerprint

    model, quantize = Omni.from_pretrained(args.weights), not args.float32
    sizes = export(model, Path(args.folder), quantize, fingerprint(args.weights))
    for name, size in sizes.items():
        say(f"  {name:12} {size / 1e6:6.2f} MB")
    say(f"{args.folder}: {sum(sizes.values()) / 1e6:.1f} MB")
    return 0

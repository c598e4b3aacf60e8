"""`tinyomni dry-run` and `tinyomni trace`."""

import argparse
import runpy
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tinyomni.cli.console import Choices, say
from tinyomni.errors import InputError
from tinyomni.files import whole

if TYPE_CHECKING:
    from tinyomni.tracing import Trace


def pipelines() -> Iterable[str]:
    """The six pipelines."""
    from tinyomni.dry_run import PIPELINES

    return PIPELINES


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add both commands to the parser."""
    dry_run = commands.add_parser("dry-run", help="run the six pipelines and check every shape")
    dry_run.add_argument("--image", metavar="FILE", help="a custom image (PNG, JPEG, …)")
    dry_run.add_argument("--audio", metavar="FILE", help="a custom recording (WAV, FLAC, OGG)")
    dry_run.add_argument("--text", help="a custom text, for all pipelines")
    dry_run.add_argument(
        "--pipeline", action="append", choices=Choices(pipelines), metavar="NAME",
        help="only this one (may be repeated): %(choices)s",
    )  # fmt: skip
    dry_run.add_argument("--device", default="cpu", help="cpu (default), cuda, mps")
    dry_run.add_argument("--seed", type=int, default=0, help="of the fresh weights (default 0)")
    dry_run.add_argument("--json", metavar="FILE", help="also write the reports to this file")
    dry_run.add_argument("--docs", metavar="FOLDER", help="write shapes.md and the figures there, and nothing else")
    dry_run.set_defaults(run=run_dry_run)

    trace = commands.add_parser("trace", help="run a script and show the shape of every annotated call")
    trace.add_argument("script", metavar="SCRIPT.py")
    trace.add_argument("--spec", metavar="FILE", help="check the run against this specification (TOML)")
    for kind in ("html", "svg", "json"):
        trace.add_argument(f"--{kind}", metavar="FILE", help=f"write the trace as {kind.upper()}")
    trace.add_argument("rest", nargs=argparse.REMAINDER, metavar="…", help="the script's own arguments")
    trace.set_defaults(run=run_trace)


def check_device(name: str) -> None:
    """Raise InputError for a device that torch does not know or does not see."""
    import torch

    if name.partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise InputError(f"--device: expected cpu, cuda or mps, got {name}")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises AssertionError
        raise InputError(f"--device {name}: torch sees no such device here. `tinyomni doctor` says more.") from error


def run_dry_run(args: argparse.Namespace) -> int:
    """All six pipelines on real input, checked against their specifications."""
    from tinyomni.dry_run import main, write_docs

    check_device(args.device)
    if args.docs:
        Path(args.docs).mkdir(parents=True, exist_ok=True)
        write_docs(Path(args.docs))
        return 0
    good = main(args.text, args.image, args.audio, args.pipeline, args.device, args.seed, args.json, say)
    return 0 if good else 1


def run_trace(args: argparse.Namespace) -> int:
    """Run a script inside a trace; 1 if the script fails, shows nothing or does not match the specification."""
    from tinyomni.tracing import Spec, SpecError, SpecMismatch

    if not Path(args.script).is_file():
        raise InputError(f"expected a Python script, but there is no file {args.script}")
    try:
        spec = Spec.load(args.spec) if args.spec else None
    except SpecError as error:
        raise InputError(str(error)) from error
    seen, failure = traced(Path(args.script), args.rest, args.debug)
    say(str(seen))
    for write, file in ((seen.to_html, args.html), (seen.save, args.json), (seen.to_svg, args.svg)):
        if file and (seen.steps or file != args.svg):  # an SVG of nothing cannot be drawn
            with whole(file) as out:
                write(out)
    if failure:
        say(failure, sys.stderr)
        return 1
    if spec is not None:
        try:
            say(str(seen.check(spec)))
        except SpecMismatch as error:
            say(str(error), sys.stderr)
            return 1
    return 0 if seen.steps else 1


def traced(script: Path, arguments: list[str], debug: bool) -> "tuple[Trace, str]":
    """The trace of a script that runs as `python SCRIPT ARGUMENTS` would, and how it failed: "" if it did not."""
    from tinyomni.tracing import ShapeError, trace

    seen, failure = trace(script.name, strict=True), ""
    argv, path = sys.argv, sys.path[:]
    sys.argv, sys.path[0] = [str(script), *arguments], str(script.resolve().parent)
    try:
        with seen:
            runpy.run_path(str(script), run_name="__main__")
    except ShapeError as error:
        if debug:
            raise
        failure = str(error)
    except SystemExit as end:
        failure = f"{script.name} ended with {end.code}" if end.code else ""
    except Exception:
        failure = traceback.format_exc().strip()
    finally:
        sys.argv, sys.path[:] = argv, path
    return seen, failure

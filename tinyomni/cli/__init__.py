"""The `tinyomni` command; `main` runs it.

Exit status: 0 success; 1 a check failed (a shape, a threshold, an exercise, a script that was traced); 2 input that
cannot be used, with one message that says why; 70 a fault of tinyomni itself, with its traceback; 130 interrupted,
143 ended by SIGTERM.
--debug shows the traceback in every case.

    tracing     dry-run, trace          data     world, data
    training    train, curves           course   grade, progress, milestone, quiz, doctor
    evaluation  report, export(-onnx)   talk     ask, caption, transcribe, speak, chat, demo

Each module adds its commands to the parser, and imports what a command needs only when it runs.
"""

import argparse
import contextlib
import errno
import gc
import importlib.metadata
import os
import platform
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tinyomni.cli import course, data, evaluation, extras, talk, tracing, training
from tinyomni.cli.console import say
from tinyomni.errors import InputError

SUCCESS, USAGE, FAULT = 0, 2, 70
PROGRAM = "TINYOMNI_PROGRAM"
"""The environment variable by which `course.py` says how users call this program."""
REPORT = """
This is a fault of tinyomni, not of your input. Please report it with the traceback above, the command that you
typed, and what `tinyomni --version` and `tinyomni doctor` print."""


def version() -> str:
    """The versions that a report of a fault needs."""
    torch = importlib.metadata.version("torch")
    return f"tinyomni {importlib.metadata.version('tinyomni')} (Python {platform.python_version()}, torch {torch})"


class Version(argparse.Action):
    """--version: looked up only when somebody asks."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        say(version())
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog=os.environ.get(PROGRAM, "tinyomni"),
        description="An omni model from scratch, with the shape of every tensor checked.",
    )
    top.add_argument("--version", action=Version, nargs=0, help="show the versions of tinyomni, Python and torch")
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (tracing, talk, training, evaluation, data, course):
        group.add_commands(commands)
    for each in commands.choices.values():  # after the command as well as before it
        each.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return top


def commands_of(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Each command, with its own parser."""
    return next(each.choices for each in top._actions if isinstance(each, argparse._SubParsersAction))


def input_problem(error: Exception, args: argparse.Namespace) -> str:
    """What is wrong with the input, if that is what the error says; "" for a fault of the program."""
    if isinstance(error, InputError):
        return "\n".join([str(error), *getattr(error, "__notes__", [])])
    if isinstance(error, ModuleNotFoundError):
        return extras.explain_missing(error)
    if out_of_memory(error):
        asked = re.search(r"allocate ([\d.]+ [KMGT]?i?[Bb](?:ytes)?)", str(error))
        fix = (
            "Lower batch_size or raise grad_accum_steps, such as --set grad_accum_steps=4."
            if args.command == "train"
            else "Close other programs, or give it less at once."
        )
        return f"out of memory{f' (it asked for {asked[1]})' if asked else ''}. {fix}"
    if isinstance(error, OSError) and named_by_user(error, args):
        return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    return ""


def out_of_memory(error: Exception) -> bool:
    """Whether no memory was left. What torch raises is known by its words: for the CPU it has no class of its own."""
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and re.search("DefaultCPUAllocator|out of memory", str(error)) is not None)
    )


def named_by_user(error: OSError, args: argparse.Namespace) -> bool:
    """Whether the operating system refused a path from the command line, or the disk is full or read-only."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        return True
    if not isinstance(error.filename, str):
        return False
    refused = Path(error.filename).absolute()
    values = [each for value in vars(args).values() for each in (value if isinstance(value, list) else [value])]
    named = [Path(each).absolute() for each in values if isinstance(each, str) and each]
    return any(path == refused or path in refused.parents for path in named)


def as_called(text: str, commands: Iterable[str]) -> str:
    """A message in which each `tinyomni COMMAND` is as the user would type it, and options are those of the command."""
    text = re.sub(r"\b\w+=True \((--[\w-]+)(?: on the command line)?\)", r"\1", text)
    return re.sub(rf"\btinyomni (?=({'|'.join(commands)})\b)", os.environ.get(PROGRAM, "tinyomni") + " ", text)


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings as one line each, without the source line that raised them, which says nothing to a user."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    if argv is None:  # a process of its own: to look again and again through all that imports make takes 0.1 s
        gc.set_threshold(50_000)
    top = parser()
    args = top.parse_args(argv)
    try:
        with plain_warnings():
            return int(args.run(args))
    except BrokenPipeError:  # the reader (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SUCCESS
    except KeyboardInterrupt as error:
        return 128 + getattr(error, "number", signal.SIGINT)
    except Exception as error:
        if args.debug:
            raise
        if problem := input_problem(error, args):
            say(as_called(f"tinyomni {args.command}: {problem}", commands_of(top)), sys.stderr)
            return USAGE
        say(traceback.format_exc() + REPORT, sys.stderr)
        return FAULT


if __name__ == "__main__":
    sys.exit(main())

"""What tools say about planted bugs: does the message lead to the right line, and does it name the right fix?

    pip install transformers torchvision timm torchaudio torchinfo torchview torchlens torchtyc graphviz
    python benchmarks/planted_bugs.py                       # prints the table
    python benchmarks/planted_bugs.py --write docs/planted_bugs.md
    python benchmarks/planted_bugs.py --only "CLS twice" --tool torchinfo --show

The list is in bugs.py. Each bug meets each tool in a process of its own, because some tools leave torch changed behind
them. Judged is all that a person gets to read: the error with its notes, the errors that it came from, and the last
line of the model's own code in their tracebacks.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import inspect
import io
import json
import linecache
import os
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bugs import BUGS, OTHERS, OURS, PLANTED, Bug, Planted, dry_run_inputs, function_of, models, planted, wrong_source
from torch import nn

SECONDS = 180  # of CPU time, for one bug and one tool
SKIPPED = (
    "torch.",
    "torchinfo.",
    "torchview.",
    "torchlens.",
    "torchtyc.",
    "jaxtyping.",
    "beartype.",
    "tinyomni.tracing.",
)


SOURCE = re.compile(r":\d+(?:, if that ran)?: `.*")  # a place, and the line of source there


class Verdict(NamedTuple):
    """What a message is worth."""

    said: bool  # was there any error at all?
    line: bool
    fix: bool
    note: str = ""  # why there is none

    def __str__(self) -> str:
        return self.note or ("".join("·✔"[each] for each in (self.line, self.fix)) if self.said else "no error")


# ---- tools ----------------------------------------------------------------------------------------------------------


class Pipeline(nn.Module):
    """A pipeline of the dry run as a module, for tools that want one."""

    def __init__(self, bug: Bug) -> None:
        super().__init__()
        from tinyomni.dry_run import PIPELINES, build

        self.run, self.omni, self.inputs = PIPELINES[bug.model].run, build(), dry_run_inputs(bug)

    def forward(self, start: torch.Tensor) -> torch.Tensor:
        """The input of the pipeline is its own; `start` is there for tools that give some."""
        self.run(self.omni, self.inputs)
        return start


def made(bug: Bug) -> tuple[nn.Module, tuple[Any, ...]]:
    """The model in which the bug is planted, with its inputs."""
    torch.manual_seed(0)
    if bug.ours:
        return Pipeline(bug), (torch.zeros(1),)
    model, inputs = models()[bug.model]()
    return model.eval(), inputs


def plain(bug: Bug) -> None:
    """torch itself."""
    model, inputs = made(bug)
    model(*inputs)


def tracer(bug: Bug) -> None:
    """This tracer: a dry run with its specification for the library's own code, a bare trace for that of others."""
    from tinyomni.tracing import SpecMismatch, trace

    if bug.ours:
        from tinyomni.dry_run import build, run

        report = run(bug.model, build(), dry_run_inputs(bug))
        if not report.ok:
            raise SpecMismatch(report)
        return
    model, inputs = made(bug)
    with trace(bug.model):
        model(*inputs)


def with_torchinfo(bug: Bug) -> None:
    """torchinfo: the summary of a model."""
    from torchinfo import summary

    model, inputs = made(bug)
    summary(model, input_data=list(inputs), verbose=0)


def with_torchview(bug: Bug) -> None:
    """torchview: the graph of a model."""
    from torchview import draw_graph

    model, inputs = made(bug)
    draw_graph(model, input_data=list(inputs), device="cpu")


def with_torchlens(bug: Bug) -> None:
    """torchlens: every operation of a model."""
    import torchlens

    model, inputs = made(bug)
    torchlens.trace(model, list(inputs))


def with_jaxtyping(bug: Bug) -> None:
    """jaxtyping and beartype: all annotations are checked, for the library's own code by the import hook."""
    import beartype
    import jaxtyping

    if not bug.ours:
        right = function_of(bug)
        module, _, path = bug.target.partition(":")
        owner: Any = sys.modules[module]
        *classes, name = path.split(".")
        for each in classes:
            owner = getattr(owner, each)
        setattr(owner, name, jaxtyping.jaxtyped(right, typechecker=beartype.beartype))
    plain(bug)


def with_torchtyc(bug: Bug) -> None:
    """torchtyc: a check of the whole file, without a run. What it says of the right file, too, does not count."""
    file = function_of(bug).__code__.co_filename
    whole = linecache.getlines(file)
    if not any("jaxtyping" in line for line in whole):
        return  # it checks annotations, and the file has none
    wrong = whole_source(bug, whole)
    before = {_stable(each) for each in torchtyc_says(file, "".join(whole))}
    found = [each for each in torchtyc_says(file, wrong) if _stable(each) not in before]
    if found:
        keys = ("message", "expected", "got", "hint", "note", "suggestion", "traceback")
        said = "\n".join(f"{PLANTED}{Path(file).name}:{each['line']} {each.get(key) or ''}" for each in found
                         for key in keys)  # fmt: skip
        raise TypeError(said)


def torchtyc_says(file: str, source: str) -> list[dict[str, Any]]:
    """The errors of torchtyc in one file."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / Path(file).name
        copy.write_text(source, encoding="utf-8")
        command = [sys.executable, "-m", "torchtyc.cli", "check", "--format", "json", "--severity", "error",
                   "--python", sys.executable, "--timeout", "600", str(copy)]  # fmt: skip
        output = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No module named 'torchtyc" in output.stderr:
        raise ImportError("torchtyc")
    return list(json.loads(output.stdout)["diagnostics"])


def _stable(diagnostic: dict[str, Any]) -> str:
    """What it says, without the line, which moves."""
    return json.dumps([diagnostic.get(key) for key in ("rule", "function", "message")])


def whole_source(bug: Bug, whole: list[str]) -> str:
    """The file with the bug in it."""
    source, _ = wrong_source(bug)
    right = function_of(bug)
    lines, start = inspect.getsourcelines(right)
    first = next(i for i, line in enumerate(lines) if line.lstrip().startswith("def "))
    indent = lines[first][: len(lines[first]) - len(lines[first].lstrip())]
    new = textwrap.indent(source.lstrip("\n"), indent)
    return "".join([*whole[: start - 1 + first], new, *whole[start - 1 + len(lines) :]])


TOOLS: dict[str, Callable[[Bug], None]] = {
    "this tracer": tracer, "plain torch": plain, "torchinfo": with_torchinfo, "torchview": with_torchview,
    "torchlens": with_torchlens, "jaxtyping + beartype": with_jaxtyping, "torchtyc": with_torchtyc,
}  # fmt: skip


# ---- judging --------------------------------------------------------------------------------------------------------


def chain(error: BaseException) -> list[BaseException]:
    """An error and those that it came from: all of them are printed."""
    found: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in found:
        found.append(each)
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    return found


def judge(bug: Bug, place: Planted, error: BaseException) -> tuple[Verdict, str]:
    """Are the line and the fix named? With the text that was judged."""
    errors = chain(error)
    text = "\n".join("\n".join([str(each), *getattr(each, "__notes__", ())]) for each in errors)
    ends = []
    for each in errors:
        frames = [(Path(frame.f_code.co_filename).name, line) for frame, line in traceback.walk_tb(each.__traceback__)
                  if not f"{frame.f_globals.get('__name__', '')}.".startswith(SKIPPED)]  # fmt: skip
        ends += frames[-1:]
    file = place.file.rpartition("/")[2]
    name = re.escape(file)  # tools name files in different ways
    led = any(re.search(rf"\b{name}:{line}\b", text) or (file, line) in ends for line in place.lines)
    # a quoted line of source that happens to hold the fix says nothing
    said = "\n".join(SOURCE.sub("", each) for each in text.splitlines() if not each.startswith("    `"))
    fix = re.search(bug.fix, said, re.IGNORECASE) is not None
    return Verdict(True, led, fix), text


def attempt(bug: Bug, tool: str) -> tuple[Verdict, str]:
    """One bug under one tool, in this process."""
    try:
        if tool == "jaxtyping + beartype" and bug.ours:
            from jaxtyping import install_import_hook

            install_import_hook("tinyomni", "beartype.beartype")
        function_of(bug)
    except ImportError as error:
        return Verdict(False, False, False, "not installed"), str(error)
    with planted(bug) as place, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            with torch.no_grad() if not bug.ours else contextlib.nullcontext():
                TOOLS[tool](bug)
        except ImportError as error:
            return Verdict(False, False, False, "not installed"), str(error)
        except Exception as error:
            return judge(bug, place, error)
    return Verdict(False, False, False), ""


def apart(bug: Bug, tool: str) -> tuple[Verdict, str]:
    """The same in a process of its own, with a limit.

    Forked and not a child of multiprocessing, in which torchlens refuses to run. Nothing but imports may happen before.
    """
    import resource  # as os.fork, not there on Windows

    reader, writer = os.pipe()
    if (process := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
        torch.set_num_threads(1)
        with open(writer, "w", encoding="utf-8") as answer:
            json.dump(attempt(bug, tool), answer)
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as answer:
        said = answer.read()
    os.waitpid(process, 0)
    if not said:
        return Verdict(False, False, False, "no end"), f"nothing after {SECONDS} s of CPU time"
    verdict, text = json.loads(said)
    return Verdict(*verdict), text


def load_libraries() -> None:
    """Once, in the process that all others are forked from; what is not installed is said by the tool that needs it."""
    for name in ("torchinfo", "torchview", "jaxtyping", "beartype", *{bug.target.partition(":")[0] for bug in OTHERS}):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


# ---- the page -------------------------------------------------------------------------------------------------------

HEAD = """\
# Planted bugs

Written by `{command}`.

The list with all sources is [benchmarks/bugs.py](../benchmarks/bugs.py): {count} mistakes that people make, {ours} in
this library's own code and {others} in models of {libraries}. The table holds {ran} of them, each under each tool in a
process of its own. List and tracer come from the same people, and the tracer was improved on this list: bugs of your
own are the fairer test.

The first sign is ✔ if what a person gets to read leads to the expected line: by the message, or as the last line of
the model's own code in the traceback. The second is ✔ if the expected fix is named. *no error*: the tool said nothing;
a checker of annotations does so where there are none, or where they hold. In the library's own code the tracer also has
the specification of the dry run, and the two checkers have the annotations; the models of other libraries have neither.
"""


def table(rows: dict[Bug, dict[str, Verdict]], tools: list[str]) -> str:
    """How often each tool names the line, the fix, and both; then bug by bug."""
    text = [f"| of {len(rows)} | {' | '.join(tools)} |", f"|---|{'---|' * len(tools)}"]
    for name, counts in (("line", lambda v: v.line), ("fix", lambda v: v.fix), ("both", lambda v: v.line and v.fix)):
        ours, theirs = [bug for bug in rows if bug.ours], [bug for bug in rows if not bug.ours]
        parts = {"": list(rows), " (own code)": ours, " (other libraries)": theirs} if ours and theirs else {"": rows}
        for part, bugs in parts.items():
            cells = " | ".join(str(sum(counts(rows[bug][tool]) for bug in bugs)) for tool in tools)
            text.append(f"| {name}{part} | {cells} |")
    text += ["", f"| bug | in | {' | '.join(tools)} |", f"|---|---|{'---|' * len(tools)}"]
    for bug, row in rows.items():
        text.append(f"| {bug.title} | {bug.model} | {' | '.join(str(row[tool]) for tool in tools)} |")
    return "\n".join(text)


def listing() -> str:
    """The bugs, with the lines and fixes that are expected."""
    text = ["| bug | in | line | fix (a pattern) |", "|---|---|---|---|"]
    for bug in BUGS:
        _, place = wrong_source(bug)
        cells = (f"`{each}`".replace("|", "\\|") for each in (bug.target.partition(":")[2], place.text, bug.fix))
        text.append(f"| {bug.title} | {' | '.join(cells)} |")
    return "\n".join(text)


def page(rows: dict[Bug, dict[str, Verdict]], tools: list[str], command: str) -> str:
    """The whole page, with the command that it was made by."""
    libraries = sorted({bug.target.partition(".")[0] for bug in OTHERS})
    names = ", ".join([*libraries, "torch", "torchinfo", "torchview", "torchlens", "jaxtyping", "beartype", "torchtyc"])
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names.split(", "))
    head = HEAD.format(
        command=command, count=len(BUGS), ours=len(OURS), others=len(OTHERS), ran=len(rows),
        libraries=", ".join(libraries),
    )  # fmt: skip
    return f"{head}\n{table(rows, tools)}\n\n## The list\n\n{listing()}\n\n{versions}.\n"


def main() -> None:
    """Print the table, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", metavar="FILE", type=Path)
    parser.add_argument("--only", metavar="TEXT", default="", help="bugs with this in their title or model")
    parser.add_argument("--others", action="store_true", help="only the models of other libraries")
    parser.add_argument("--tool", action="append", choices=TOOLS, help="only this one; may be repeated")
    parser.add_argument("--show", action="store_true", help="also print what is said")
    parser.add_argument("--json", metavar="FILE", type=Path, help="keep results; what is there is not run again")
    args = parser.parse_args()
    tools = args.tool or list(TOOLS)
    load_libraries()
    rows: dict[Bug, dict[str, Verdict]] = {}
    kept: dict[str, Any] = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    for bug in BUGS:
        if (args.others and bug.ours) or args.only not in f"{bug.title} {bug.model} {bug.target}":
            continue
        rows[bug] = {}
        for tool in tools:
            key, text = f"{bug.title} | {bug.model} | {tool}", ""
            if key not in kept:
                kept[key], text = apart(bug, tool)
            rows[bug][tool] = Verdict(*kept[key])
            if args.json:
                args.json.write_text(json.dumps(kept, indent=1, ensure_ascii=False), encoding="utf-8")
            if args.show:
                print(f"--- {bug.title} ({bug.model}), {tool}: {rows[bug][tool]}\n{text}\n", flush=True)
        print(f"{bug.title} ({bug.model}): {', '.join(map(str, rows[bug].values()))}", file=sys.stderr, flush=True)
    if args.write:
        asked = ["python", "benchmarks/planted_bugs.py", "--write", str(args.write), *["--others"] * args.others]
        asked += [part for tool in args.tool or () for part in ("--tool", tool)]
        args.write.write_text(page(rows, tools, shlex.join(asked)), encoding="utf-8")
    else:
        print(table(rows, tools))


if __name__ == "__main__":
    main()

"""Do the tests bite? One change at a time is made to the models' code, and the tests that should notice it are run.

    python benchmarks/mutants.py --minutes 120 --jobs 2        a sample of all mutants, as large as fits into the time
    python benchmarks/mutants.py --count 200 --seed 0          a sample of 200; without --count and --minutes: every one
    python benchmarks/mutants.py --modules attention rope      of these modules only
    python benchmarks/mutants.py --again                       those that survived, after a test was added
    python benchmarks/mutants.py --show --modules attention    list the mutants that were not run, and run nothing

The result goes to benchmarks/mutants.json, where the next run goes on; docs/reliability.md is made from it. A mutant is
killed by a failing test or by the time limit, which counts processor time: a busy machine kills none. Survivors that
change nothing that matters have a reason in benchmarks/survivors.toml. Every mutant runs in a fork of a process that
has loaded all libraries, so that it costs little more than its tests.
"""

import argparse
import ast
import copy
import functools
import importlib.abc
import importlib.util
import io
import itertools
import json
import math
import os
import random
import resource
import signal
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[1]
TESTS = {
    "attention": ["attention", "gradients", "thinker"],
    "rope": ["attention", "gradients", "thinker"],
    "layers": ["attention", "gradients", "thinker"],
    "generation": ["thinker"],
    "vision": ["encoders"],
    "audio": ["encoders", "ask"],
    "codec": ["speech_models", "streaming_speech", "gradients"],
    "talker": ["speech_models", "streaming_speech"],
    "vocoder": ["speech_models", "streaming_speech", "gradients"],
    "stability": ["stability", "loop", "thinker"],
    "omni": ["omni", "ask"],
    "training.loop": ["loop", "checkpoint"],
    "training.checkpoint": ["checkpoint"],
}
"""Module → the test files that are about it."""
SECONDS = 120  # of processor time, for one mutant
PATIENCE = 10  # times as long may pass by the clock

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
CALLS = {"all": "any", "any": "all", "min": "max", "max": "min", "argmin": "argmax", "argmax": "argmin",
         "repeat_interleave": "repeat", "sin": "cos", "cos": "sin", "sum": "mean", "mean": "sum"}  # fmt: skip


SKIPPED_FIELDS = ("annotation", "returns", "decorator_list")
SKIPPED_NODES = (ast.Raise, ast.Assert, ast.JoinedStr)


@dataclass(frozen=True)
class Mutant:
    """One change: where, what stood there, what stands there now."""

    module: str
    number: int
    line: int
    code: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.code}: {self.before} → {self.after}"


def changes_of(node: ast.AST) -> Iterator[ast.AST]:
    """Every changed copy of this node."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        yield ast.Compare(node.left, [COMPARISONS[type(node.ops[0])](), *node.ops[1:]], node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
        yield node.left
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        yield node.values[0]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CALLS:
        yield ast.Call(ast.Attribute(node.func.value, CALLS[node.func.attr], ast.Load()), node.args, node.keywords)
    elif isinstance(node, ast.List) and len(node.elts) > 1 and isinstance(node.ctx, ast.Load):
        yield ast.List([node.elts[0], *node.elts[:-1]], ast.Load())
    elif isinstance(node, ast.If):
        yield ast.If(ast.Constant(False), node.body, node.orelse)
    elif isinstance(node, ast.IfExp):
        yield node.orelse
    elif isinstance(node, ast.AugAssign) and type(node.op) in OPERATORS:
        yield ast.AugAssign(node.target, OPERATORS[type(node.op)](), node.value)


def places(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """(parent, field, index, node) of all code but annotations, raised errors, asserts and decorators."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list") or isinstance(
            tree, (ast.Raise, ast.Assert, ast.JoinedStr)
        ):
            continue
        for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(node, ast.AST):
                yield tree, name, index, node
                yield from places(node)


def path_of(module: str) -> Path:
    """The file of a module."""
    return TOP / "tinyomni" / f"{module.replace('.', '/')}.py"


def source_with(changed: ast.AST, tree: ast.AST, parent: ast.AST, name: str, index: int | None, node: ast.AST) -> str:
    """The source of the module with this node in place of that one."""
    put(parent, name, index, ast.copy_location(copy.copy(changed), node))
    try:
        return ast.unparse(ast.fix_missing_locations(tree))
    finally:
        put(parent, name, index, node)


def mutants_of(module: str) -> list[tuple[Mutant, Callable[[], str]]]:
    """Every mutant of a module, and what makes its source."""
    source = path_of(module).read_text(encoding="utf-8")
    tree, lines, found = ast.parse(source), source.splitlines(), list[tuple[Mutant, Callable[[], str]]]()
    for parent, name, index, node in list(places(tree)):
        for changed in changes_of(node):
            if ast.unparse(changed) == ast.unparse(node):
                continue
            before, line = ast.unparse(node).splitlines()[0], getattr(node, "lineno", 1)
            after = "(never)" if isinstance(node, ast.If) else ast.unparse(changed).splitlines()[0]
            render = functools.partial(source_with, changed, tree, parent, name, index, node)
            code = lines[line - 1].strip()
            found.append((Mutant(module, len(found), line, code, before[:100], after[:100]), render))
    return found


def put(parent: ast.AST, name: str, index: int | None, node: ast.AST) -> None:
    """Set a child of a node."""
    if index is None:
        setattr(parent, name, node)
    else:
        getattr(parent, name)[index] = node


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Serves one changed module."""

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = name, source

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """Only of that module."""
        where = TOP / f"{name.replace('.', '/')}.py"
        return importlib.util.spec_from_file_location(name, where, loader=self) if name == self.name else None

    def exec_module(self, module: Any) -> None:
        """Run the changed source."""
        exec(compile(self.source, module.__spec__.origin, "exec", dont_inherit=True), vars(module))


def start_tests(module: str, source: str) -> int:
    """The process id of a fork that runs the tests of a module whose source is this one."""
    child = os.fork()
    if child == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        sys.stdout = sys.stderr = io.TextIOWrapper(os.fdopen(nothing, "wb"))
        sys.meta_path.insert(0, Finder(f"tinyomni.{module}", source))
        os.environ["TINYOMNI_SHAPES"] = "0"  # the import hook of the shape checks would compile the original
        files = [str(TOP / "tests" / f"test_{name}.py") for name in TESTS[module]]
        import pytest

        # no rewriting of assertions: it is slow, and complains of plugins that are loaded already
        options = ["-x", "-q", "--assert=plain", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        status = pytest.main([*options, "-p", "no:cacheprovider", "-k", "not kill_9", *files])
        os._exit(int(status))
    return child


def outcome_of(child: int, deadline: float) -> str | None:
    """How the tests of a fork ended: "killed", "timeout" or "survived"; None while they run."""
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        ended = os.waitstatus_to_exitcode(status)
        return "timeout" if ended == -signal.SIGXCPU else "killed" if ended else "survived"
    if time.monotonic() < deadline:
        return None
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


def outcomes(sources: Iterable[tuple[int, str, str]], jobs: int) -> Iterator[tuple[int, str]]:
    """Test these modules, several at a time: (number, module, source) → (number, outcome), as they end."""
    waiting, running = iter(sources), dict[int, tuple[int, float]]()
    while True:
        while len(running) < jobs and (following := next(waiting, None)):
            number, module, source = following
            running[number] = start_tests(module, source), time.monotonic() + PATIENCE * SECONDS
        if not running:
            return
        time.sleep(0.05)
        for number, (child, deadline) in list(running.items()):
            if outcome := outcome_of(child, deadline):
                del running[number]
                yield number, outcome


def load_libraries() -> None:
    """What every fork would have to load; nothing of tinyomni."""
    import hypothesis
    import librosa
    import numpy
    import pytest
    import torch
    import torchaudio
    import transformers.models.llama.modeling_llama as llama

    torch.set_num_threads(1)
    assert all((hypothesis, librosa.filters, numpy, pytest, torchaudio, llama))


def reasons() -> dict[tuple[str, str, str], str]:
    """Why a survivor is none: its module, the code of its line and the change → the reason."""
    path = TOP / "benchmarks" / "survivors.toml"
    entries = tomllib.loads(path.read_text(encoding="utf-8")).get("survivor", [])
    return {(each["module"], each["code"], each["change"]): each["reason"] for each in entries}


def reason_of(survivor: dict[str, Any]) -> str | None:
    """The stored reason, or None."""
    return reasons().get((survivor["module"], survivor["code"], f"{survivor['before']} → {survivor['after']}"))


def key_of(mutant: Mapping[str, Any]) -> tuple[str, int, str, str, str]:
    """What tells a mutant from all others."""
    return mutant["module"], mutant["number"], mutant["code"], mutant["before"], mutant["after"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sample; 1 if a mutant without a reason survived."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, help="how many mutants, drawn evenly over the modules (default: all)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no test begins after this time")
    parser.add_argument("--jobs", type=int, default=1, help="mutants that are tested at the same time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", nargs="+", choices=TESTS, default=list(TESTS), metavar="MODULE")
    parser.add_argument("--again", action="store_true", help="only what survived in the stored run, into the same file")
    parser.add_argument("--show", action="store_true", help="list the mutants and run nothing")
    parser.add_argument("--out", default=str(TOP / "benchmarks" / "mutants.json"), metavar="FILE")
    args = parser.parse_args(arguments)
    pools = {module: mutants_of(module) for module in TESTS}
    for module, pool in pools.items():
        random.Random(f"{args.seed} {module}").shuffle(pool)
    # turn by turn from each module, so that a short sample meets all of them
    longest = max(map(len, pools.values()))
    order = [pools[name][turn] for turn in range(longest) for name in args.modules if turn < len(pools[name])]
    every = {key_of(vars(mutant)) for pool in pools.values() for mutant, _ in pool}
    out = Path(args.out)
    stored = json.loads(out.read_text(encoding="utf-8"))["results"] if out.is_file() else []
    done = {key_of(each): each for each in stored if key_of(each) in every}  # a line that changed is another mutant
    order = [
        (mutant, render)
        for mutant, render in order[: args.count]
        if (done.get(key_of(vars(mutant)), {}).get("outcome") == ("survived" if args.again else None))
    ]
    if args.show:
        print("\n".join(str(mutant) for mutant, _ in order))
        return 0
    load_libraries()
    sys.path[:0] = [str(TOP), str(TOP / "tests")]
    modules = list({tuple(TESTS[mutant.module]): mutant.module for mutant, _ in order}.values())
    unchanged = ((at, name, path_of(name).read_text(encoding="utf-8")) for at, name in enumerate(modules))
    for at, outcome in outcomes(unchanged, args.jobs):
        if outcome != "survived":
            raise SystemExit(f"mutants: these tests fail without any change: {', '.join(TESTS[modules[at]])}")
    deadline = time.monotonic() + 60 * args.minutes
    sources = ((at, mutant.module, render()) for at, (mutant, render) in enumerate(order))
    in_time = itertools.takewhile(lambda _: time.monotonic() < deadline, sources)
    for at, outcome in outcomes(in_time, args.jobs):
        mutant = order[at][0]
        key = key_of(vars(mutant))
        # what was found first is kept: a test that was written for a survivor says nothing about other mutants
        done[key] = {**vars(mutant), "outcome": outcome, "first": done.get(key, {}).get("first", outcome)}
        print(f"{len(done)} {outcome:8} {mutant}", flush=True)
        # after each one: a run that is stopped has what it measured, and the next one goes on
        of = {module: len(pool) for module, pool in pools.items()}
        report = {"seed": args.seed, "of": of, "results": list(done.values())}
        out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(any(reason_of(each) is None for each in done.values() if each["outcome"] == "survived"))


if __name__ == "__main__":
    sys.exit(main())

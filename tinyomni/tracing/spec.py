"""Specifications: what a run must show, written down independently of the code, in TOML.

    [given]   axes that the input decides        [fixed]  numbers and formulas that always hold
    [[step]]  call, in, out, tokens, times       [[figure]]  a formula and the number that it must give
    [ledger]  who puts how many tokens in

Shapes are expressions over the axes: "1, text_tokens + new_tokens". In a step with `times`, `i` counts 0, 1, 2, …
"""

import ast
import operator
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyomni.tracing.trace import Record, Trace, Value

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
FUNCTIONS = {"min": min, "max": max}


class SpecError(ValueError):
    """The specification itself is wrong."""


class SpecMismatch(AssertionError):
    """A run is not what the specification demands."""

    def __init__(self, report: "Report") -> None:
        super().__init__("\n".join([f"{report.title}: not as specified", *report.problems]))
        self.report = report


def evaluate(text: str | int, names: dict[str, int]) -> int:
    """A whole number from `+ - * // % min max`, brackets, numbers and names. Parsed, never run."""

    def value(node: ast.AST) -> int:
        match node:
            case ast.Expression(body):
                return value(body)
            case ast.Constant(int(number)) if not isinstance(number, bool):
                return number
            case ast.Name(name):
                if name not in names:
                    raise SpecError(f"unknown axis {name!r} in {text!r}; known: {', '.join(sorted(names))}")
                return names[name]
            case ast.BinOp(left, sign, right) if type(sign) in OPERATORS:
                if type(sign) in (ast.FloorDiv, ast.Mod) and value(right) == 0:
                    raise SpecError(f"{text!r} divides by zero")
                return OPERATORS[type(sign)](value(left), value(right))
            case ast.Call(ast.Name(name), [_, *_] as arguments, []) if name in FUNCTIONS:
                return FUNCTIONS[name](value(argument) for argument in arguments)
        raise SpecError(f"{text!r}: only + - * // % min max, brackets, whole numbers and axis names are allowed")

    try:
        return value(ast.parse(str(text).strip(), mode="eval"))
    except SyntaxError as error:
        raise SpecError(f"{text!r} cannot be read: {error.msg}") from error


def shape(text: str, names: dict[str, int]) -> tuple[int, ...]:
    """`"1, tokens, d_model"` → (1, 6, 256). Commas inside brackets belong to a function call."""
    parts, depth, part = [], 0, ""
    for char in text:
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += char
    return tuple(evaluate(each, names) for each in [*parts, part] if each.strip())


@dataclass
class Line:
    """One line of a report."""

    number: str
    title: str
    came: str
    gone: str
    tokens: int | None = None
    times: int = 1
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Did it hold?"""
        return not self.problem

    @property
    def label(self) -> str:
        """Title, how often, and how many tokens came out."""
        often = f" ×{self.times}" if self.times > 1 else ""
        return f"{self.title}{often}" + ("" if self.tokens is None else f" [{self.tokens}]")


@dataclass
class Report:
    """A run beside its specification."""

    title: str
    lines: list[Line] = field(default_factory=list)
    figures: list[tuple[str, int, int | None]] = field(
        default_factory=list
    )  # name, value, what is due (None: formula only)
    ledger: list[tuple[str, int]] = field(default_factory=list)
    limit: int = 0
    problems: list[str] = field(default_factory=list)
    axes: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Does every line hold, and is there one?"""
        return bool(self.lines) and not self.problems

    def data(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        return {
            "title": self.title,
            "ok": self.ok,
            "axes": self.axes,
            "steps": [
                {"number": line.number, "title": line.title, "in": line.came, "out": line.gone, "tokens": line.tokens,
                 "times": line.times, "ok": line.ok, "problem": line.problem}
                for line in self.lines
            ],
            "figures": [{"name": name, "value": value, "due": due} for name, value, due in self.figures],
            "ledger": {"of": self.limit, **dict(self.ledger)},
            "problems": self.problems,
        }  # fmt: skip

    def __str__(self) -> str:
        text = [self.title]
        width = max((len(line.label) for line in self.lines), default=0)
        for line in self.lines:
            arrow = " → ".join(part for part in (line.came, line.gone) if part)
            text.append(f"  {'✔' if line.ok else '✘'} {line.number:>4}  {line.label:{width}}  {arrow}")
            if line.problem:
                text.append(f"          ✘ {line.problem}")
        for name, value, due in self.figures:
            mark = "·" if due is None else "✔" if value == due else "✘"
            text.append(f"  {mark}       {name}: {value:,}" + (f", {due:,} expected" if mark == "✘" else ""))
        if self.ledger:
            total = sum(count for _, count in self.ledger)
            parts = " + ".join(f"{name} {count}" for name, count in self.ledger)
            text.append(f"  tokens: {parts} = {total} of {self.limit}")
        told = [line.problem for line in self.lines if line.problem]
        text += [f"  ✘ {problem}" for problem in self.problems if not any(each in problem for each in told)]
        return "\n".join(text)


STEP_KEYS = {"number", "call", "title", "in", "out", "tokens", "times", "inside"}


class Spec:
    """A specification that was read. `Spec.load(path)`, then `compare(trace)`."""

    def __init__(self, data: dict[str, Any], name: str = "spec") -> None:
        self.name = name
        unknown = set(data) - {"title", "given", "fixed", "ledger", "step", "figure"}
        if unknown:
            raise SpecError(f"{name}: unknown part {', '.join(sorted(unknown))}")
        self.title = str(data.get("title", name))
        self.given: dict[str, int] = data.get("given", {})
        self.fixed: dict[str, int | str] = data.get("fixed", {})
        self.ledger: dict[str, int | str] = dict(data.get("ledger", {}))
        self.limit = self.ledger.pop("of", 0)
        self.steps: list[dict[str, Any]] = data.get("step", [])
        self.figures: list[dict[str, Any]] = data.get("figure", [])
        for each in self.steps:
            if "call" not in each or set(each) - STEP_KEYS:
                raise SpecError(
                    f"{name}: a step needs `call` and knows {', '.join(sorted(STEP_KEYS))}; got {', '.join(each)}"
                )
        if not self.steps:
            raise SpecError(f"{name}: no [[step]] in it")

    @classmethod
    def load(cls, path: str | Path) -> "Spec":
        """Read a TOML file. Raises SpecError with the place of what cannot be read."""
        try:
            return cls(tomllib.loads(Path(path).read_text(encoding="utf-8")), Path(path).name)
        except tomllib.TOMLDecodeError as error:
            raise SpecError(f"{Path(path).name}: {error}") from error

    def axes(self, given: dict[str, int]) -> dict[str, int]:
        """All names and their sizes; formulas may build on those before them."""
        unknown = set(given) - set(self.given)
        if unknown:
            raise SpecError(
                f"{self.name}: {', '.join(sorted(unknown))} given, but [given] knows only {', '.join(self.given)}"
            )
        names = {**self.given, **given}
        for name, formula in self.fixed.items():
            names[name] = evaluate(formula, names)
        return names

    def compare(self, run: Trace, given: dict[str, int]) -> Report:
        """Walk through the declared steps and the lines side by side."""
        names = self.axes(given)
        report = Report(self.title, axes=names)
        done = [record for record in run.steps if record.declared]
        place = 0
        for each in self.steps:
            times = evaluate(each.get("times", 1), names)
            same = [record for record in done[place : place + times] if record.call.endswith(each["call"])]
            line = Line(str(each.get("number", "")), each.get("title", each["call"]), "", "", times=times)
            report.lines.append(line)
            if len(same) < times:
                came = done[place + len(same)].call if place + len(same) < len(done) else "the end of the run"
                line.problem = f"{each['call']} expected {times} times, came {len(same)} times, then {came}"
            else:
                place += times
            for i, record in enumerate(same):
                now = {**names, "i": i}
                line.problem = line.problem or self._differs(each, record, now) or self._inside(each, record, run, now)
            if same:
                last = {**names, "i": len(same) - 1}
                line.came, line.gone = _show(same[-1].inputs), _show(same[-1].outputs)
                line.tokens = evaluate(each["tokens"], last) if "tokens" in each else None
            if line.problem:
                report.problems.append(f"{line.number} {line.title}: {line.problem}".strip())
        left = [record.call for record in done[place:]]
        for call in dict.fromkeys(left):
            report.problems.append(f"{call} ran {left.count(call)} times, but no line of the specification names it")
        for each in self.figures:
            value = evaluate(each["formula"], names)
            due = None if given else int(each["equals"])
            report.figures.append((each["name"], value, due))
            if due is not None and value != due:
                report.problems.append(f"{each['name']}: {value} by the formula, {due} expected")
        self._tokens(run, names, report)
        return report

    def _differs(self, each: dict[str, Any], record: Record, names: dict[str, int]) -> str:
        """The first difference between a line and a record, in words; empty if there is none."""
        if record.status != "ok":
            return record.status
        came = {value.name: value for value in record.inputs}
        for name, text in each.get("in", {}).items():
            due = shape(text, names)
            if name not in came:
                return f"{record.call} has no tensor {name!r}"
            if came[name].shape != due:
                return f"{name}: {due} expected, {came[name]} came"
        if "out" in each:
            outs = each["out"] if isinstance(each["out"], list) else [each["out"]]
            dues = [shape(text, names) for text in outs]
            got = [value for value in record.outputs if value.dtype]
            if [value.shape for value in got] != dues:
                return f"out: {', '.join(map(str, dues))} expected, {', '.join(map(str, got)) or 'nothing'} came"
        return ""

    def _inside(self, each: dict[str, Any], record: Record, run: Trace, names: dict[str, int]) -> str:
        """Calls that have to be found under this one, in order."""
        under = _below(run.steps, record)
        for item in each.get("inside", []):
            times = evaluate(item.get("times", 1), names)
            calls = [record for record in under if record.call.endswith(item["call"])][:times]
            if len(calls) < times:
                return f"{item['call']} expected {times} times inside, came {len(calls)} times"
            for i, call in enumerate(calls):
                problem = self._differs(item, call, {**names, "i": i})
                if problem:
                    return f"inside, {item['call']}: {problem}"
            under = [record for record in under if record.id > calls[-1].id]
        return ""

    def _tokens(self, run: Trace, names: dict[str, int], report: Report) -> None:
        """The ledger: every source with its count, and their sum within the limit."""
        report.ledger = [(source, count) for source, count, _ in run.ledger]
        report.limit = int(self.limit)
        due = [(source, evaluate(formula, names)) for source, formula in self.ledger.items()]
        if report.ledger != due:
            report.problems.append(f"ledger: {dict(due)} expected, {dict(report.ledger)} came")
        if any(limit != self.limit for _, _, limit in run.ledger):
            report.problems.append(f"ledger: a limit of {self.limit} expected")
        if self.ledger and sum(count for _, count in report.ledger) > report.limit:
            report.problems.append(f"ledger: more than {self.limit} tokens")


def _below(steps: list[Record], top: Record) -> list[Record]:
    """All records under one, in order."""
    inside = {top.id}
    found = []
    for record in steps[top.id + 1 :]:
        if record.parent in inside:
            inside.add(record.id)
            found.append(record)
        elif record.depth <= top.depth:
            break
    return found


def _show(values: list[Value]) -> str:
    """Tensors side by side, those of one shape counted; plain values only where there is no tensor."""
    tensors = [value for value in values if value.dtype]
    if not tensors:
        return ", ".join(text if len(text) < 30 else text[:26] + "…" + text[0] for text in map(str, values))
    first = {value.shape: value for value in reversed(tensors)}
    shapes = [value.shape for value in tensors]
    return " ".join(
        (f"{shapes.count(shape)} × " if shapes.count(shape) > 1 else "") + str(first[shape])
        for shape in dict.fromkeys(shapes)
    )

"""Specifications: what a run must show, written down independently of the code, in TOML.

    [given]   axes that the input decides        [fixed]  numbers and formulas that always hold, in any order
    [[step]]  call, in, out, tokens, times       [[quantity]] a formula and the value it must have
    [ledger]  who puts how many tokens in        [[rule]]  a length that has to hold for every input: over, want

Shapes are expressions over the axes: "1, text_tokens + new_tokens". In a step with `times`, `i` counts 0, 1, 2, …
A step names a call as the trace shows it (`RMSNorm.forward`), and with `module` also where ("thinker.blocks.0.norm1").
Calls below a step with `inside` belong to that step alone. `complete = true` at the top: no outermost call without a
step, its own or one for a call below it.
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tinyomni.tracing.formula import SpecError, evaluate, names_in, shape, split
from tinyomni.tracing.records import Record, Run, Value
from tinyomni.tracing.sweep import Sweep, sweep


class SpecMismatch(AssertionError):
    """A run is not what the specification demands."""

    def __init__(self, report: "SpecReport") -> None:
        super().__init__("\n".join([f"{report.title}: the run does not match the specification", *report.problems]))
        self.report = report


@dataclass
class StepResult:
    """One line of a report."""

    number: str
    title: str
    inputs: str
    outputs: str
    tokens: int | None = None
    times: int = 1
    problem: str = ""
    calls: list[int] = field(default_factory=list)  # ids of the records that were compared

    @property
    def ok(self) -> bool:
        """Did it hold?"""
        return not self.problem

    @property
    def label(self) -> str:
        """Title, how often, and how many output tokens."""
        often = f" ×{self.times}" if self.times > 1 else ""
        return f"{self.title}{often}" + ("" if self.tokens is None else f" [{self.tokens}]")


@dataclass
class SpecReport:
    """A run beside its specification."""

    title: str
    steps: list[StepResult] = field(default_factory=list)
    # name, value, expected value (None: not compared, other axes were given)
    quantities: list[tuple[str, int, int | None]] = field(default_factory=list)
    ledger: list[tuple[str, int]] = field(default_factory=list)
    limit: int = 0
    problems: list[str] = field(default_factory=list)
    axes: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Does every line hold, and is there one?"""
        return bool(self.steps) and not self.problems

    def data(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        return {
            "title": self.title,
            "ok": self.ok,
            "axes": self.axes,
            "steps": [
                {"number": line.number, "title": line.title, "in": line.inputs, "out": line.outputs,
                 "tokens": line.tokens, "times": line.times, "ok": line.ok, "problem": line.problem}
                for line in self.steps
            ],
            "quantities": [
                {"name": name, "value": value, "expected": expected} for name, value, expected in self.quantities
            ],
            "ledger": {"of": self.limit, **dict(self.ledger)},
            "problems": self.problems,
        }  # fmt: skip

    def __str__(self) -> str:
        text = [self.title]
        width = max((len(line.label) for line in self.steps), default=0)
        for line in self.steps:
            arrow = " → ".join(part for part in (line.inputs, line.outputs) if part)
            text.append(f"  {'✔' if line.ok else '✘'} {line.number:>4}  {line.label:{width}}  {arrow}")
            if line.problem:
                text.append(f"          ✘ {line.problem}")
        for name, value, expected in self.quantities:
            mark = "·" if expected is None else "✔" if value == expected else "✘"
            text.append(f"  {mark}       {name}: {value:,}" + (f" (expected {expected:,})" if mark == "✘" else ""))
        if self.ledger:
            total = sum(count for _, count in self.ledger)
            parts = " + ".join(f"{name} {count}" for name, count in self.ledger)
            text.append(f"  tokens: {parts} = {total} of {self.limit}")
        told = [line.problem for line in self.steps if line.problem]
        text += [f"  ✘ {problem}" for problem in self.problems if not any(each in problem for each in told)]
        return "\n".join(text)


PARTS = {"title", "complete", "given", "fixed", "ledger", "step", "quantity", "rule"}
STEP_KEYS = {"number", "call", "module", "title", "in", "out", "tokens", "times", "inside"}
INSIDE_KEYS = {"call", "module", "in", "out", "times"}
QUANTITY_KEYS = {"name", "formula", "equals"}
RULE_KEYS = {"call", "over", "want"}


class Spec:
    """A specification that was read. `Spec.load(path)`, then `compare(trace)`. Raises SpecError with the line."""

    def __init__(self, data: dict[str, Any], name: str = "spec", text: str = "") -> None:
        self.name = name
        self._text = text.splitlines()
        unknown = sorted(set(data) - PARTS)
        if unknown:
            raise self.error(
                f"unknown table {', '.join(unknown)}; expected one of {', '.join(sorted(PARTS))}", unknown[0]
            )
        self.title = str(data.get("title", name))
        self.complete = bool(data.get("complete", False))
        self.given: dict[str, int] = data.get("given", {})
        self.fixed: dict[str, int | str] = data.get("fixed", {})
        self.ledger: dict[str, int | str] = dict(data.get("ledger", {}))
        self.limit = self.ledger.pop("of", 0)
        self.steps: list[dict[str, Any]] = data.get("step", [])
        self.quantities: list[dict[str, Any]] = data.get("quantity", [])
        self.rules: list[dict[str, Any]] = data.get("rule", [])
        if not self.steps:
            raise self.error("no [[step]]: every run would pass")
        twice = sorted(set(self.given) & set(self.fixed))
        if twice:
            raise self.error(f"duplicate name {twice[0]!r}: in [given] and in [fixed]", twice[0])
        for part, keys, needed in (("step", STEP_KEYS, {"call"}), ("quantity", QUANTITY_KEYS, QUANTITY_KEYS),
                                   ("rule", RULE_KEYS, RULE_KEYS)):  # fmt: skip
            for place, each in enumerate(data.get(part, [])):
                self._keys(part, place, each, keys, needed)
                for inside in each.get("inside", []):
                    self._keys(part, place, inside, INSIDE_KEYS, {"call"})
        self._check_names()

    def _keys(self, part: str, place: int, each: dict[str, Any], keys: set[str], needed: set[str]) -> None:
        """Nothing unknown, nothing missing."""
        unknown, missing = sorted(set(each) - keys), sorted(needed - set(each))
        if unknown:
            raise self.error(f"unknown key {unknown[0]!r} in [[{part}]]; known: {', '.join(sorted(keys))}", part, place)
        if missing:
            raise self.error(f"missing key {missing[0]!r} in [[{part}]]", part, place)

    def _check_names(self) -> None:
        """Every formula speaks of axes that there are, and none of itself."""
        for name, size in self.given.items():
            if not isinstance(size, int) or isinstance(size, bool):
                raise self.error(f"[given] {name}: expected an integer, got {size!r}", name)
        sizes = self.axes({})
        for place, each in enumerate(self.steps):
            for text in formulas(each):
                self._known(text, {*sizes, "i"}, "step", place)
        for place, each in enumerate(self.quantities):
            self._known(each["formula"], set(sizes), "quantity", place)
        for place, each in enumerate(self.rules):
            self._known(each["want"], {*sizes, each["over"]}, "rule", place)
        for name, formula in self.ledger.items():
            self._known(formula, set(sizes), name)

    def _known(self, text: str | int, known: set[str], word: str, place: int | None = None) -> None:
        try:
            unknown = sorted(names_in(text) - known)
        except SpecError as error:
            raise self.error(str(error), word, place) from error
        if unknown:
            raise self.error(f"unknown axis {unknown[0]!r} in {text!r}; known: {', '.join(sorted(known))}", word, place)

    def line(self, word: str, place: int | None = None) -> int | None:
        """The line of the n-th `[[word]]`, or of the key `word`; None where the specification is no file."""
        pattern = rf"\s*\[\[{word}\]\]" if place is not None else rf'\s*(\[+\s*)?"?{re.escape(word)}"?\s*[=\]]'
        found = [number for number, line in enumerate(self._text, 1) if re.match(pattern, line)]
        return found[place or 0] if len(found) > (place or 0) else None

    def error(self, text: str, word: str = "", place: int | None = None) -> SpecError:
        """The error with its line."""
        line = self.line(word, place) if word else None
        return SpecError(f"{self.name}{f':{line}' if line else ''}: {text}")

    @classmethod
    def load(cls, path: str | Path) -> "Spec":
        """Read a TOML file. Raises SpecError with the line of what cannot be read."""
        name = Path(path).name
        try:
            text = Path(path).read_text(encoding="utf-8")
            return cls(tomllib.loads(text), name, text)
        except tomllib.TOMLDecodeError as error:  # also a key or a table that is there twice
            line = re.search(r"at line (\d+)", str(error))
            raise SpecError(f"{name}{f':{line[1]}' if line else ''}: {error}") from error
        except UnicodeDecodeError as error:
            raise SpecError(f"{name}: not a UTF-8 text file ({error.reason})") from error

    def axes(self, given: dict[str, int]) -> dict[str, int]:
        """All names and their sizes."""
        unknown = sorted(set(given) - set(self.given))
        if unknown:
            raise SpecError(f"{self.name}: unknown axis {unknown[0]!r}; [given] has {', '.join(self.given) or 'none'}")
        sizes: dict[str, int] = {**self.given, **given}

        def find(name: str, within: tuple[str, ...]) -> None:
            if name in within:
                circle = " → ".join([*within[within.index(name) :], name])
                raise self.error(f"circular formulas: {circle}", name)
            formula = self.fixed[name]
            try:
                for other in sorted(names_in(formula) - set(sizes)):
                    if other in self.fixed:
                        find(other, (*within, name))
                sizes[name] = evaluate(formula, sizes)
            except SpecError as error:
                raise error if ":" in str(error).split(" ")[0] else self.error(str(error), name) from error

        for name in self.fixed:
            if name not in sizes:
                find(name, ())
        return {name: sizes[name] for name in (*self.given, *self.fixed)}

    def prove(self, functions: Mapping[str, Callable[..., Any]], **sizes: int) -> list[Sweep]:
        """Every `[[rule]]` for all lengths, with the function that the rule's call names. Raises SweepMismatch."""
        missing = [each["call"] for each in self.rules if each["call"] not in functions]
        if missing:
            raise self.error(f"no function for the rule {missing[0]!r}; given: {', '.join(functions)}", "rule")
        fixed = self.axes({})
        return [
            replace(
                sweep(functions[each["call"]], over=each["over"], want=each["want"], given=fixed, **sizes),
                name=each["call"],
            )
            for each in self.rules
        ]

    def compare(self, run: Run, given: dict[str, int]) -> SpecReport:
        """Walk through the run and the lines side by side: the calls named here, and all that are marked with @step."""
        names = self.axes(given)
        report = SpecReport(self.title, axes=names)
        done = self._named(run)
        place = 0
        for index, each in enumerate(self.steps):
            times = evaluate(each.get("times", 1), names)
            same = [record for record in done[place : place + times] if _is(record, each)]
            line = StepResult(str(each.get("number", "")), each.get("title", each["call"]), "", "", times=times)
            line.calls = [record.id for record in same]
            report.steps.append(line)
            if len(same) < times:
                after = _place(done[place + len(same)]) if place + len(same) < len(done) else "the end of the run"
                where = f" ({each['module']})" if "module" in each else ""
                line.problem = f"{each['call']}{where}: expected {times} calls, got {len(same)}, then {after}"
            place += len(same)
            for i, record in enumerate(same):
                now = {**names, "i": i}
                line.problem = line.problem or self._differs(each, record, now) or self._inside(each, record, run, now)
            if same:
                last = {**names, "i": len(same) - 1}
                line.inputs, line.outputs = _show(same[-1].inputs), _show(same[-1].outputs)
                line.tokens = evaluate(each["tokens"], last) if "tokens" in each else None
            if line.problem:
                at = self.line("step", index)
                where = f" ({self.name}:{at})" if at else ""
                report.problems.append(f"{line.number} {line.title}: {line.problem}{where}".strip())
        left = [_place(record) for record in [*done[place:], *(self._unnamed(run, done) if self.complete else [])]]
        for call in dict.fromkeys(left):
            report.problems.append(f"{call} ran {left.count(call)} times, but no [[step]] names it")
        for each in self.quantities:
            value = evaluate(each["formula"], names)
            expected = None if given else int(each["equals"])
            report.quantities.append((each["name"], value, expected))
            if expected is not None and value != expected:
                report.problems.append(f"{each['name']}: expected {expected}, got {value} by the formula")
        self._tokens(run, names, report)
        return report

    def _named(self, run: Run) -> list[Record]:
        """The records that a step has to name or names, in order; a step with `inside` answers for what is below it."""
        found, answered = [], set()
        for record in run.steps:
            if record.parent in answered:
                answered.add(record.id)
                continue
            steps = [each for each in self.steps if _is(record, each)]
            if steps or record.declared:
                found.append(record)
            if any("inside" in each for each in steps):
                answered.add(record.id)
        return found

    def _unnamed(self, run: Run, named: list[Record]) -> list[Record]:
        """The outermost calls that no step names, and no call below them either."""
        within = {record.id for record in named}
        for record in reversed(run.steps):
            if record.id in within and record.parent is not None:
                within.add(record.parent)
        return [record for record in run.steps if record.parent is None and record.id not in within]

    def _differs(self, each: dict[str, Any], record: Record, names: dict[str, int]) -> str:
        """The first difference between a line and a record, in words; empty if there is none."""
        if record.status != "ok":
            return record.status
        inputs = {value.name: value for value in record.inputs}
        for name, text in each.get("in", {}).items():
            expected = shape(text, names)
            if name not in inputs:
                return f"{record.call} has no argument {name!r}"
            if inputs[name].shape != expected:
                return f"{name}: expected {expected}, got {inputs[name]}"
        if "out" in each:
            outs = each["out"] if isinstance(each["out"], list) else [each["out"]]
            shapes = [shape(text, names) for text in outs]
            got = [value for value in record.outputs if value.dtype]
            if [value.shape for value in got] != shapes:
                return f"out: expected {', '.join(map(str, shapes))}, got {', '.join(map(str, got)) or 'nothing'}"
        return ""

    def _inside(self, each: dict[str, Any], record: Record, run: Run, names: dict[str, int]) -> str:
        """Calls that have to be found under this one, in order."""
        under = _below(run.steps, record)
        for item in each.get("inside", []):
            times = evaluate(item.get("times", 1), names)
            calls = [record for record in under if _is(record, item)][:times]
            if len(calls) < times:
                return f"{item['call']}: expected {times} calls inside, got {len(calls)}"
            for i, call in enumerate(calls):
                problem = self._differs(item, call, {**names, "i": i})
                if problem:
                    return f"inside, {item['call']}: {problem}"
            under = [record for record in under if record.id > calls[-1].id]
        return ""

    def _tokens(self, run: Run, names: dict[str, int], report: SpecReport) -> None:
        """The ledger: every source with its count, and their sum within the limit."""
        report.ledger = [(entry.source, entry.tokens) for entry in run.ledger]
        report.limit = int(self.limit)
        expected = [(source, evaluate(formula, names)) for source, formula in self.ledger.items()]
        if report.ledger != expected:
            report.problems.append(f"ledger: expected {dict(expected)}, got {dict(report.ledger)}")
        for entry in [entry for entry in run.ledger if entry.of != self.limit][:1]:
            report.problems.append(f"ledger: expected a limit of {self.limit}, got {entry.of}")
        if self.ledger and sum(count for _, count in report.ledger) > report.limit:
            report.problems.append(f"ledger: more than {self.limit} tokens")


def _is(record: Record, step: dict[str, Any]) -> bool:
    """`ThinkerLM.forward` is named `ThinkerLM.forward`, or `forward` for short; `module` is the whole path."""
    call = step["call"]
    return (record.call == call or record.call.endswith("." + call)) and step.get("module", record.path) == record.path


def _place(record: Record) -> str:
    """The call, with the module it belongs to."""
    return f"{record.call} ({record.path})" if record.path else record.call


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


def _show(values: tuple[Value, ...]) -> str:
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


def formulas(step: dict[str, Any]) -> list[str | int]:
    """Every formula of a step and of what stands inside it."""
    outs = step.get("out", [])
    shapes = [*step.get("in", {}).values(), *(outs if isinstance(outs, list) else [outs])]
    found = [part for text in shapes for part in split(text)]
    found += [step[key] for key in ("tokens", "times") if key in step]
    return found + [text for inside in step.get("inside", []) for text in formulas(inside)]

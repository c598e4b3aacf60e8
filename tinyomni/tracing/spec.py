"""Specifications: what a run must show, written independently of the code, in TOML.

    [given]   axes that the input decides        [fixed]  numbers and formulas that always hold, in any order
    [[step]]  call, in, out, tokens, times       [[quantity]] a formula and the value it must have
    [ledger]  who puts how many tokens in        [[rule]]  a length that has to hold for every input: over, want

Shapes are expressions over the axes: "1, text_tokens + new_tokens"; `_`, `...` and a dtype as in `shape_pattern`. In a
step with `times`, `i` counts 0, 1, 2, … A step names a call as the trace shows it (`RMSNorm.forward`), and with
`module` also where ("thinker.blocks.0.norm1"); `*` stands for any part of either. Calls below a step with `inside`
belong to that step alone. `complete = true` at the top: no outermost call without a step, its own or one for a call
below it.
"""

import difflib
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, SupportsIndex

from tinyomni.tracing.formula import SpecError, evaluate, names_in, unknown
from tinyomni.tracing.records import Record, Run, Value
from tinyomni.tracing.shape_pattern import ANY, MANY, ShapePattern
from tinyomni.tracing.spec_file import SpecFile
from tinyomni.tracing.spec_report import RuleResult, SpecMismatch, SpecReport, StepResult, show
from tinyomni.tracing.sweep import Sweep, SweepMismatch, sweep

Functions = Mapping[str, Callable[..., Any]]
"""For the rules: the function or module that each call stands for."""


@dataclass(frozen=True)
class _Match:
    """The calls of one step, or of one item of `inside`."""

    records: list[Record]
    times: int
    problem: str = ""


class Spec:
    """A specification that was read: `Spec.load(path)`, then `t.check(spec)`. Raises SpecError with file and line."""

    def __init__(self, data: Mapping[str, Any], name: str = "spec", text: str = "") -> None:
        self._read(SpecFile(data, name, text))

    @classmethod
    def load(cls, path: str | Path) -> "Spec":
        """Read a TOML file."""
        found = cls.__new__(cls)
        found._read(SpecFile.load(path))
        return found

    def _read(self, file: SpecFile) -> None:
        data, self.file, self.name = file.data, file, file.name
        self.title: str = data.get("title", file.name)
        self.complete: bool = data.get("complete", False)
        self.given: dict[str, int] = data.get("given", {})
        self.fixed: dict[str, int | str] = data.get("fixed", {})
        self.ledger: dict[str, int | str] = dict(data.get("ledger", {}))
        self.limit = int(self.ledger.pop("of", 0))
        self.steps: list[dict[str, Any]] = data["step"]
        self.quantities: list[dict[str, Any]] = data.get("quantity", [])
        self.rules: list[dict[str, Any]] = data.get("rule", [])
        file.check_names(self.axes({}))

    def axes(self, given: Mapping[str, int]) -> dict[str, int]:
        """All names and their sizes."""
        if not isinstance(given, Mapping):
            raise SpecError(f"{self.name}: expected given={{axis: size}}, got {given!r}")
        sizes = dict(self.given)
        for name, size in given.items():
            if name not in self.given:
                raise SpecError(f"{self.name}: {unknown(name, self.given, ' for [given]')}")
            if isinstance(size, bool) or not isinstance(size, SupportsIndex):
                raise SpecError(f"{self.name}: given {name!r}: expected an integer, got {size!r}")
            sizes[name] = size.__index__()

        def find(name: str, within: tuple[str, ...]) -> None:
            if name in within:
                circle = " → ".join([*within[within.index(name) :], name])
                raise SpecError(f"circular formulas: {circle}")
            for other in sorted(names_in(self.fixed[name]) - set(sizes)):
                if other in self.fixed:
                    find(other, (*within, name))
            sizes[name] = evaluate(self.fixed[name], sizes)

        for name in self.fixed:
            if name not in sizes:
                try:
                    find(name, ())
                except SpecError as error:
                    raise self.file.error(str(error), "fixed", key=name) from error
        return {name: sizes[name] for name in (*self.given, *self.fixed)}

    # ---- rules

    def check_rules(self, functions: Functions) -> list[Sweep]:
        """Every `[[rule]]` for all lengths, with the function that its call names. Raises SweepMismatch."""
        for place, each in enumerate(self.rules):
            if each["call"] not in functions:
                raise self.file.error(unknown(each["call"], functions, what="function"), "rule", place, "call")
        return [self._rule(place, functions) for place in range(len(self.rules))]

    def _rule(self, place: int, functions: Functions) -> Sweep:
        each = self.rules[place]
        options = {**{key: each[key] for key in ("axis", "upto") if key in each}, **each.get("sizes", {})}
        try:
            found = sweep(functions[each["call"]], each["over"], str(each["want"]), self.axes({}), **options)
        except ValueError as error:  # also: no length is taken, or none has an effect
            raise self.file.error(str(error), "rule", place) from error
        return replace(found, name=each["call"])

    # ---- a run

    def compare(self, run: Run, given: Mapping[str, int], functions: Functions | None = None) -> SpecReport:
        """Walk through the run and the steps side by side: the calls named here, and all that are marked with @step."""
        names = self.axes(given)
        report = SpecReport(self.title, axes=names, limit=self.limit)
        candidates = self._named(run)
        times = [
            self._value(each.get("times", 1), names, "step", index, "times") for index, each in enumerate(self.steps)
        ]
        matches, left = _in_order(_matches(candidates, self.steps, times), self.steps, candidates)
        for index, (each, match) in enumerate(zip(self.steps, matches, strict=True)):
            try:
                line, item = self._step(each, match, run, names)
            except SpecError as error:  # a formula that has no value, such as a division by zero
                raise self.file.error(str(error), "step", index) from error
            report.steps.append(line)
            if line.problem:
                at, code = self.file.line("step", index), match.records[:1]
                at = at if item is None else self.file.item_line(index, item)
                where = f" ({self.name}:{at})" if at else ""
                where += "".join(f", code at {each.file}:{each.line}" for each in code if each.line)
                where += "".join(f", called at {each.called}" for each in code if each.called)
                report.problems.append(f"{line.number} {line.title}: {line.problem}{where}".strip())
        left += self._unnamed(run, candidates) if self.complete else []
        places = [_place(record) for record in left]
        for place, record in dict(zip(places, left, strict=True)).items():
            named = any(is_step(record, each) for each in self.steps)
            rest = " more than its [[step]] says" if named else ", but no [[step]] names it"
            report.problems.append(f"{place} ran {_often(places.count(place))}{rest}")
        self._quantities(report, names, compared=not given)
        self._rules(report, functions or {})
        self._tokens(run, names, report)
        return report

    def _step(
        self, each: Mapping[str, Any], match: _Match, run: Run, names: dict[str, int]
    ) -> tuple[StepResult, int | None]:
        """The line of the report, and which item of `inside` is wrong."""
        shapes = any("in" in part or "out" in part for part in (each, *each.get("inside", [])))
        line = StepResult(
            str(each.get("number", "")), each.get("title", each["call"]), times=match.times, problem=match.problem,
            calls=[record.id for record in match.records], compared=shapes,
        )  # fmt: skip
        item = None
        if not match.records:
            line.problem += _near(each, run.steps)
        for i, record in enumerate(match.records):
            now = {**names, "i": i}
            line.problem = line.problem or _differs(each, record, now)
            if not line.problem:
                line.problem, item = self._inside(each, record, run, now)
        if match.records:
            last = {**names, "i": len(match.records) - 1}
            line.inputs, line.outputs = show(match.records[-1].inputs), show(match.records[-1].outputs)
            line.tokens = evaluate(each["tokens"], last) if "tokens" in each else None
        return line, item

    def _inside(
        self, each: Mapping[str, Any], record: Record, run: Run, names: dict[str, int]
    ) -> tuple[str, int | None]:
        """The first problem of the calls below one, and whose it is: those that `inside` names have to be just these,
        in this order."""
        items = each.get("inside", [])
        below = [other for other in _below(run.steps, record) if any(is_step(other, item) for item in items)]
        found = _matches(below, items, [evaluate(item.get("times", 1), names) for item in items])
        for number, (item, match) in enumerate(zip(items, found, strict=True)):
            problem = match.problem
            for i, call in enumerate(match.records):
                problem = problem or _differs(item, call, {**names, "i": i})
            if problem:
                near = "" if match.records else _near(item, run.steps)
                who = "" if problem == match.problem else f"{item['call']}: "
                return f"inside, {who}{problem}{near}", number
        done = {other.id for match in found for other in match.records}
        left = [other for other in below if other.id not in done]
        more = f"inside, {_place(left[0])} ran {_often(len(left))} more than `inside` says" if left else ""
        return more, None

    def _named(self, run: Run) -> list[Record]:
        """The records that a step has to name or names, in order; a step with `inside` answers for what is below it."""
        found, answered = [], set()
        for record in run.steps:
            if record.parent in answered:
                answered.add(record.id)
                continue
            steps = [each for each in self.steps if is_step(record, each)]
            if steps or record.declared:
                found.append(record)
            if any("inside" in each for each in steps):
                answered.add(record.id)
        return found

    def _unnamed(self, run: Run, named: Sequence[Record]) -> list[Record]:
        """The outermost calls that no step names, and no call below them either."""
        within = {record.id for record in named}
        for record in reversed(run.steps):
            if record.id in within and record.parent is not None:
                within.add(record.parent)
        return [record for record in run.steps if record.parent is None and record.id not in within]

    def _quantities(self, report: SpecReport, names: Mapping[str, int], compared: bool) -> None:
        for place, each in enumerate(self.quantities):
            value = self._value(each["formula"], names, "quantity", place, "formula")
            expected = each["equals"] if compared else None
            report.quantities.append((each["name"], value, expected))
            if expected is not None and value != expected:
                report.problems.append(f"{each['name']}: expected {expected}, got {value} by the formula")

    def _rules(self, report: SpecReport, functions: Functions) -> None:
        for place, each in enumerate(self.rules):
            call = each["call"]
            if call not in functions:
                want = f"unchecked: {each['want']} for every {each['over']}"
                report.rules.append(RuleResult(call, f"{want}; give functions={{{call!r}: …}}", "unchecked"))
                continue
            try:
                found = self._rule(place, functions)
                text = str(found).splitlines()[0].removeprefix(f"{call}: ")
                report.rules.append(RuleResult(call, text, "proven" if found.proven else "checked"))
            except SweepMismatch as error:
                report.rules.append(RuleResult(call, str(error), "wrong"))
                report.problems.append(f"rule {call}: {error}")

    def _tokens(self, run: Run, names: Mapping[str, int], report: SpecReport) -> None:
        """The ledger: every source with its count, and their sum within the limit."""
        report.ledger = [(entry.source, entry.tokens) for entry in run.ledger]
        expected = [
            (source, self._value(formula, names, "ledger", None, source)) for source, formula in self.ledger.items()
        ]
        if report.ledger != expected:
            at = "".join(f", counted at {place}" for place in dict.fromkeys(entry.at for entry in run.ledger) if place)
            report.problems.append(f"ledger: expected {dict(expected)}, got {dict(report.ledger)}{at}")
        for entry in [entry for entry in run.ledger if entry.of != self.limit][:1]:
            report.problems.append(f"ledger: expected a limit of {self.limit}, got {entry.of}")
        if self.ledger and sum(count for _, count in report.ledger) > report.limit:
            report.problems.append(f"ledger: more than {self.limit} tokens")

    def _value(self, formula: str | int, names: Mapping[str, int], table: str, place: int | None, key: str) -> int:
        """The value of a formula of the file."""
        try:
            return evaluate(formula, names)
        except SpecError as error:
            raise self.file.error(str(error), table, place, key) from error


def _matches(records: Sequence[Record], items: Sequence[Mapping[str, Any]], all_times: Sequence[int]) -> list[_Match]:
    """Items and records side by side: each item takes the next `times` records, if they are its own."""
    found, place = [], 0
    for index, (item, times) in enumerate(zip(items, all_times, strict=True)):
        own = 0
        while place + own < len(records) and is_step(records[place + own], item):
            own += 1
        # what is too many for this item belongs to the next one, if that names the same call
        if own > times and index + 1 < len(items) and is_step(records[place + times], items[index + 1]):
            own = times
        problem, where = "", f" ({item['module']})" if "module" in item else ""
        if own != times:
            then = _place(records[place + own]) if place + own < len(records) else "the end of the run"
            then = f", then {then}" if own < times else ""
            problem = f"{item['call']}{where}: expected {_calls(times)}, got {own}{then}"
        found.append(_Match(list(records[place : place + own]), times, problem))
        place += own
    return found


def _in_order(
    matches: Sequence[_Match], items: Sequence[Mapping[str, Any]], records: Sequence[Record]
) -> tuple[list[_Match], list[Record]]:
    """The matches, where one that lacks calls says if they ran later; and the records that are in none of them.

    Matches take the records one after the other, so those that are left all ran after those that are taken.
    """
    found, left = [], list(records[sum(len(match.records) for match in matches) :])
    for index, (match, item) in enumerate(zip(matches, items, strict=True)):
        late = [record for record in left if is_step(record, item)] if len(match.records) < match.times else []
        if late:
            left = [record for record in left if not is_step(record, item)]
            passed = [record for other in matches[index + 1 :] for record in other.records]
            before = passed[0] if passed else records[records.index(late[0]) - 1]
            order = "; expected before it" if passed else ""
            said = f"; {_place(late[0])} ran {_often(len(late))} after {_place(before)}{order}"
            match = replace(match, problem=match.problem + said)
        found.append(match)
    return found, left


def _differs(each: Mapping[str, Any], record: Record, names: Mapping[str, int]) -> str:
    """The first difference between a step and a record, in words; empty if there is none."""
    if not record.ok:
        return record.status
    inputs = {value.name: value for value in record.inputs}
    for name, text in each.get("in", {}).items():
        pattern = ShapePattern.read(text)
        if name not in inputs:
            return f"{record.call}: {unknown(name, inputs, what='argument')}"
        if not pattern.matches(inputs[name], names):
            one = _one_off([pattern], [inputs[name]], names)
            return f"{name}: expected {pattern.show(names)}, got {pattern.describe(inputs[name])}{one}"
    if "out" in each:
        outs = each["out"] if isinstance(each["out"], list) else [each["out"]]
        patterns = [ShapePattern.read(text) for text in outs]
        got = [value for value in record.outputs if value.dtype]
        if len(got) != len(patterns) or not all(
            pattern.matches(value, names) for pattern, value in zip(patterns, got, strict=True)
        ):
            expected = ", ".join(pattern.show(names) for pattern in patterns)
            typed = next((pattern for pattern in patterns if pattern.dtype), ShapePattern(()))
            one = _one_off(patterns, got, names)
            return f"out: expected {expected}, got {', '.join(map(typed.describe, got)) or 'no tensor'}{one}"
    return ""


def _one_off(patterns: Sequence[ShapePattern], values: Sequence[Value], names: Mapping[str, int]) -> str:
    """`: one too many`, if that is all that is wrong."""
    off = set()
    for pattern, value in zip(patterns, values, strict=False):
        if MANY in pattern.axes or len(pattern.axes) != len(value.shape):
            return ""
        for axis, size in zip(pattern.axes, value.shape, strict=True):
            if axis != ANY and isinstance(size, int):
                off.add(size - evaluate(axis, names))
    off.discard(0)
    return {1: ": one too many", -1: ": one too few"}.get(off.pop(), "") if len(off) == 1 else ""


def is_step(record: Record, step: Mapping[str, Any]) -> bool:
    """`ThinkerLM.forward` is named so, `forward` for short, or `Think*`; `module` is the whole path."""
    call, module = step["call"], step.get("module", "*")
    named = record.call == call or record.call.endswith("." + call) or fnmatch.fnmatchcase(record.call, call)
    return named and fnmatch.fnmatchcase(record.path, module)


def _near(step: Mapping[str, Any], records: Sequence[Record]) -> str:
    """Calls of the run with a similar name, or its modules with a similar path, if there is no such one."""
    if any(is_step(record, step) for record in records):
        return ""
    what, name = "module", step.get("module", "")
    known = sorted({record.path for record in records if is_step(record, {"call": step["call"]})})
    short: list[str] = []
    if not known:
        what, name, known = "call", step["call"], sorted({record.call for record in records})
        short = [each for each in known if each.rpartition(".")[2] == name.rpartition(".")[2]][:3]
    names = dict.fromkeys([*difflib.get_close_matches(name, known, n=2, cutoff=0.5), *short])
    return f". No such {what} in this run; did you mean {' or '.join(map(repr, names))}?" if names else ""


def _place(record: Record) -> str:
    """The call, with the module it belongs to."""
    return f"{record.call} ({record.path})" if record.path else record.call


def _calls(count: int) -> str:
    return f"{count} call{'s' * (count != 1)}"


def _often(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _below(steps: Sequence[Record], top: Record) -> list[Record]:
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


__all__ = ["Functions", "Spec", "SpecMismatch", "SpecReport", "StepResult"]

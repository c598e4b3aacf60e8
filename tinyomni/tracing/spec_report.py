"""What came of comparing a run with a specification: one line a step, and what was not compared."""

from dataclasses import dataclass, field
from typing import Any

from tinyomni.tracing.records import Value


class SpecMismatch(AssertionError):
    """A run is not what the specification demands."""

    def __init__(self, report: "SpecReport") -> None:
        super().__init__("\n".join([f"{report.title}: the run does not match the specification", *report.problems]))
        self.report = report


@dataclass
class StepResult:
    """One step: ✔ where shapes were compared, · where the call was only seen to happen, ✘ with the problem."""

    number: str
    title: str
    inputs: str = ""
    outputs: str = ""
    tokens: int | None = None
    times: int = 1
    problem: str = ""
    calls: list[int] = field(default_factory=list)  # ids of the records that were compared
    compared: bool = True  # False: the specification says nothing about its shapes

    @property
    def ok(self) -> bool:
        """Did it hold?"""
        return not self.problem

    @property
    def mark(self) -> str:
        """✔, ✘, or · for a call without shapes to compare."""
        return "✘" if self.problem else "✔" if self.compared else "·"

    @property
    def label(self) -> str:
        """Title, how often, and how many output tokens."""
        often = f" ×{self.times}" if self.times > 1 else ""
        return f"{self.title}{often}" + ("" if self.tokens is None else f" [{self.tokens}]")


@dataclass
class RuleResult:
    """One rule for all lengths."""

    call: str
    text: str  # what was found, or what to do
    status: str  # proven, checked, unchecked or wrong

    def __str__(self) -> str:
        mark = {"proven": "✔", "checked": "✔", "unchecked": "·"}.get(self.status, "✘")
        return f"  {mark}       rule {self.call}: {self.text}"


@dataclass
class SpecReport:
    """A run beside its specification."""

    title: str
    steps: list[StepResult] = field(default_factory=list)
    # name, value, expected value (None: not compared, other axes were given)
    quantities: list[tuple[str, int, int | None]] = field(default_factory=list)
    rules: list[RuleResult] = field(default_factory=list)
    ledger: list[tuple[str, int]] = field(default_factory=list)
    limit: int = 0
    problems: list[str] = field(default_factory=list)
    axes: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Does every line hold, and is there one? What was not compared is in the report, and no problem."""
        return bool(self.steps) and not self.problems

    def data(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        return {
            "title": self.title,
            "ok": self.ok,
            "axes": self.axes,
            "steps": [
                {"number": line.number, "title": line.title, "in": line.inputs, "out": line.outputs,
                 "tokens": line.tokens, "times": line.times, "ok": line.ok, "compared": line.compared,
                 "problem": line.problem}
                for line in self.steps
            ],
            "quantities": [
                {"name": name, "value": value, "expected": expected} for name, value, expected in self.quantities
            ],
            "rules": [{"call": rule.call, "status": rule.status, "text": rule.text} for rule in self.rules],
            "ledger": {"of": self.limit, **dict(self.ledger)},
            "problems": self.problems,
        }  # fmt: skip

    def __str__(self) -> str:
        text = [self.title]
        width = max((len(line.label) for line in self.steps), default=0)
        for line in self.steps:
            arrow = " → ".join(part for part in (line.inputs, line.outputs) if part)
            called = "" if line.compared else "  (called; no shapes to compare)"
            text.append(f"  {line.mark} {line.number:>4}  {line.label:{width}}  {arrow}{called}".rstrip())
            if line.problem:
                text.append(f"          ✘ {line.problem}")
        for name, value, expected in self.quantities:
            mark = "·" if expected is None else "✔" if value == expected else "✘"
            text.append(f"  {mark}       {name}: {value:,}" + (f" (expected {expected:,})" if mark == "✘" else ""))
        text += map(str, self.rules)
        if self.ledger:
            total = sum(count for _, count in self.ledger)
            parts = " + ".join(f"{name} {count}" for name, count in self.ledger)
            text.append(f"  tokens: {parts} = {total} of {self.limit}")
        told = [line.problem for line in self.steps if line.problem]
        told += [rule.text for rule in self.rules if rule.status == "wrong"]
        text += [f"  ✘ {problem}" for problem in self.problems if not any(each in problem for each in told)]
        return "\n".join(text)


def show(values: tuple[Value, ...]) -> str:
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

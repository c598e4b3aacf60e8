"""What a run did, to be read, kept, compared and drawn. `trace()` in `recorder` makes one."""

import dataclasses
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyomni.tracing import html, svg, table
from tinyomni.tracing.annotations import Axis
from tinyomni.tracing.diff import Diff
from tinyomni.tracing.draft import draft
from tinyomni.tracing.lines import Lines
from tinyomni.tracing.mismatch import Mismatch
from tinyomni.tracing.records import Entry, Gradient, Ledger, Record, Run, Value
from tinyomni.tracing.rows import Row, fold, tree
from tinyomni.tracing.spec import Functions, Spec, SpecMismatch, SpecReport
from tinyomni.tracing.suspicions import suspicions

SCHEMA = 2
SHARED = ("inputs", "outputs", "gradients")  # values that many calls have in common are written once


@dataclass(repr=False)
class Trace(Run):
    """A run with its `mismatches`: values that are not what their annotations say, in order. `problem` explains the
    first one, or the error that ended the run, and names the line."""

    mismatches: list[Mismatch] = field(default_factory=list)
    problem: str = ""
    lines: list[Lines] = field(default_factory=list)  # of `trace(lines=True)`
    recorder: AbstractContextManager[Any] | None = field(default=None, compare=False)  # until the run has ended

    def __enter__(self) -> "Trace":
        if self.recorder is None:
            raise RuntimeError(f"trace({self.title!r}) has run already; make a new one")
        self.recorder.__enter__()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        recorder, self.recorder = self.recorder, None
        if recorder is not None:
            recorder.__exit__(kind, error, traceback)

    def rows(self) -> list[Row]:
        """Calls under their callers; those that repeat are one row with a count."""
        return fold(tree(self.steps))

    def check(
        self, spec: Spec | str | Path, given: dict[str, int] | None = None, functions: Functions | None = None
    ) -> SpecReport:
        """Compare the run with a `Spec` (or the path of one): a report, or SpecMismatch with every wrong line.

        `given`: other sizes than those of the specification. `functions`: what the calls of its rules stand for; rules
        without a function are reported as unchecked.
        """
        report = self.report(spec, given, functions)
        if not report.ok:
            raise SpecMismatch(report)
        return report

    def report(
        self, spec: Spec | str | Path, given: dict[str, int] | None = None, functions: Functions | None = None
    ) -> SpecReport:
        """The same without raising."""
        return (spec if isinstance(spec, Spec) else Spec.load(spec)).compare(self, given or {}, functions)

    def diff(self, other: Run) -> Diff:
        """What changed from this run to the other one: rows that are new, gone, or have other shapes."""
        return Diff(self, other)

    def draft_spec(self, path: str | Path | None = None, other: Run | Sequence[Run] = (), depth: int = 1) -> str:
        """A first specification, copied from this run and to be reviewed; written to `path` if there is one.

        `other`: a run of the same calls with other sizes, or several, from which formulas are suggested; what they do
        not decide is said at the top. `depth`: 0 for the outermost calls, 1 for their parts. The draft holds for all of
        the runs; ValueError where that cannot be.
        """
        return _write(draft([self, *([other] if isinstance(other, Run) else other)], depth), path)

    def suspicions(self) -> list[str]:
        """What a person should look at although nothing failed: shapes that were spread, masks, axes of equal size."""
        return suspicions(self)

    # ---- showing

    def table(
        self, depth: int | None = None, unfold: bool = False, most: int | None = table.MOST_ROWS, where: bool = False
    ) -> str:
        """The calls as text. `depth`: none deeper than this, 0 for the outermost. `unfold`: each call its own row.
        `where`: also the file and line of each function, which many terminals open at a click."""
        problem = [f"✘ {self.problem}"] if self.problem else []
        sources = [f"\n{each}" for each in self.lines]
        return "\n".join([table.table(self, depth, unfold, most, where), *problem, *sources])

    def __str__(self) -> str:
        return self.table()

    __repr__ = __str__

    def to_html(self, path: str | Path | None = None, links: str = "", to_scale: bool = False) -> str:
        """One self-contained page, without scripts; written to `path` if there is one. `links`: the address behind each
        `file:line`, such as `vscode://file/{path}:{line}` or `file://{path}`. `to_scale`: a bar under each output, as
        long as it has values."""
        return _write(html.page(self, links, to_scale, self.problem, self.lines), path)

    def to_svg(self, path: str | Path | None = None, depth: int | None = None) -> str:
        """A flow diagram with named shapes between the calls; written to `path` if there is one. `depth`: 0 for the
        outermost calls, 1 for their parts; by default the outermost, or the parts of a model that is called alone."""
        return _write(svg.flow(self, depth), path)

    def _repr_html_(self) -> str:
        return html.fragment(self, problem=self.problem, lines=self.lines)

    # ---- keeping

    def save(self, path: str | Path) -> None:
        """Write the trace as JSON. Equal inputs of many calls are written once, and so is the source of a function."""
        values: dict[Value, int] = {}

        def index(each: Value) -> int:
            return values.setdefault(each, len(values))

        steps = [
            {
                **{name: getattr(record, name) for name in Record.__slots__ if name not in SHARED},
                "inputs": [index(value) for value in record.inputs],
                "outputs": [index(value) for value in record.outputs],
                "gradients": [(index(each.value), each.norm) for each in record.gradients],
            }
            for record in self.steps
        ]
        sources = list(dict.fromkeys(tuple(each.source) for each in self.lines))
        data = {
            "schema": SCHEMA,
            "title": self.title,
            "notes": self.notes,
            "problem": self.problem,
            "mismatches": [dataclasses.asdict(each) for each in self.mismatches],
            "ledger": [list(entry) for entry in self.ledger],
            "values": [dataclasses.asdict(each) for each in values],
            "steps": steps,
            "sources": sources,
            "lines": [each.data(sources.index(tuple(each.source))) for each in self.lines],
        }
        Path(path).write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Trace":
        """Read what `save` wrote. Raises ValueError for another file or another schema."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if data["schema"] != SCHEMA:
                raise ValueError(f"{path}: expected schema {SCHEMA}, got {data['schema']!r}")
            values = [Value(**{**v, "axes": tuple(Axis(*axis) for axis in v["axes"])}) for v in data["values"]]
            return cls(
                data["title"],
                [_record(each, values) for each in data["steps"]],
                Ledger(Entry(*entry) for entry in data["ledger"]),
                list(data["notes"]),
                [Mismatch(**each) for each in data["mismatches"]],
                data["problem"],
                # there are none in files of before
                [Lines.of(each, data["sources"]) for each in data.get("lines", [])],
            )
        except (LookupError, TypeError, AttributeError, UnicodeError, RecursionError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a trace written by t.save(): {error!r}") from error


def _record(each: dict[str, Any], values: list[Value]) -> Record:
    ends: dict[str, Any] = {name: tuple(values[i] for i in each[name]) for name in ("inputs", "outputs")}
    gradients = tuple(Gradient(values[i], norm) for i, norm in each["gradients"])
    return Record(**{**each, **ends, "sources": tuple(each["sources"]), "gradients": gradients})


def _write(text: str, path: str | Path | None) -> str:
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text

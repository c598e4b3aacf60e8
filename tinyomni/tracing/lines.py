"""A function's source with what stood in its variables behind each line, from one real run.

    annotate(attend)(q, k)        trace("…", lines=True)

    scores = q @ k.transpose(-2, -1)      # batch 1, heads 4, queries 6, keys 6

Python tells a trace function of each line before it runs, so that the line before it is done by then. Names of axes are
those of annotations, handed on by `flow`. Annotations of local variables are judged, too.
"""

import ast
import functools
import inspect
import itertools
import linecache
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from html import escape
from typing import Any

from torch import Tensor

from tinyomni.tracing import annotations, tensors
from tinyomni.tracing.flow import NameFlow
from tinyomni.tracing.functions import file_of
from tinyomni.tracing.statements import attribute, parsed
from tinyomni.tracing.values import TENSOR, text_of, walk

WIDEST = 72  # column of the comments, if the code is not wider
# no <code>: VS Code draws that in its own font, colour and background
CELL = "text-align:left;font-family:monospace"
NOTE = "var(--jp-content-link-color,var(--vscode-textLink-foreground,#0b5394))"
MOST_SHOWN = 6  # values behind one line


@dataclass
class LineNote:
    """What one statement did: in its first and its last run."""

    first: str
    last: str
    count: int = 1

    def __str__(self) -> str:
        if self.count == 1:
            return self.first
        if self.first == self.last:
            return f"{self.first}  (each of {self.count})"
        return f"{self.first}  (first)  …  {self.last}  (last of {self.count})"


@dataclass
class Lines:
    """The source of one call, with its notes."""

    call: str
    file: str
    start: int
    source: list[str]
    notes: dict[int, LineNote] = field(default_factory=dict)  # by line number
    ran: set[int] = field(default_factory=set)
    result: Any = None  # of `annotate(f)(x)`: what f returned

    def data(self, source: int) -> list[Any]:
        """Plain data, with a number for the source: many calls have the same."""
        notes = [[number, note.first, note.last, note.count] for number, note in self.notes.items()]
        return [self.call, self.file, self.start, source, notes, sorted(self.ran)]

    @classmethod
    def of(cls, data: list[Any], sources: list[list[str]]) -> "Lines":
        """What `data` gave, and the sources that the numbers stand for."""
        call, file, start, source, notes, ran = data
        return cls(call, file, start, sources[source], {line: LineNote(*note) for line, *note in notes}, set(ran))

    def _rows(self) -> Iterator[tuple[int, str, str, bool]]:
        """(line, code, note, did it run) without the docstring."""
        skipped = _docstring(self.source)
        for number, code in enumerate(self.source, self.start):
            if number - self.start not in skipped:
                yield number, code, str(self.notes.get(number, "")), number in self.ran

    def __str__(self) -> str:
        rows = list(self._rows())
        wide = [len(code) for _, code, note, _ in rows if note]
        width = min(WIDEST, max(wide, default=0))
        lines = [f"{code:{width}}  # {note}" if note else code for _, code, note, _ in rows]
        return "\n".join([f"# {self.call}, {self.file}:{self.start}", *lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The same for a notebook; lines that did not run are grey."""
        rows = "".join(
            f'<tr><td style="{CELL};white-space:pre{"" if ran or not code.strip() else ";color:#888"}">'
            f"{escape(code) or '&nbsp;'}</td>"
            f'<td style="{CELL};white-space:pre-wrap;padding-left:2em;color:{NOTE}">{escape(note)}</td></tr>'
            for _, code, note, ran in self._rows()
        )
        title = escape(f"{self.call}, {self.file}:{self.start}")
        return f'<table style="border-collapse:collapse"><caption>{title}</caption><tbody>{rows}</tbody></table>'


def _function(source: list[str]) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    try:
        found = ast.parse(textwrap.dedent("\n".join(source))).body[0]
    except (SyntaxError, IndexError):
        return None
    return found if isinstance(found, (ast.FunctionDef, ast.AsyncFunctionDef)) else None


def _docstring(source: list[str]) -> range:
    """The lines of the docstring, counted from 0."""
    body = getattr(_function(source), "body", [])
    if len(body) > 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        return range(body[0].lineno - 1, body[0].end_lineno or body[0].lineno)
    return range(0)


def _head(source: list[str]) -> int:
    """The last line of the signature, counted from 0."""
    function = _function(source)
    if function is None:
        return 0
    ends = [each for each in (function.returns, *ast.walk(function.args)) if each is not None]
    return max([function.lineno, *(getattr(each, "end_lineno", 0) for each in ends)]) - 1


def _places(source: list[str]) -> dict[str, int]:
    """The line of each parameter, counted from 0."""
    function = _function(source)
    inner = ast.walk(function.args) if function is not None else ()
    return {each.arg: (each.end_lineno or each.lineno) - 1 for each in inner if isinstance(each, ast.arg)}


Judge = Callable[[types.FrameType, str, Any, Any, int], None]
"""Called with the frame, a variable, its value, its annotation and its line."""


class LineTracer:
    """A trace function that follows the lines of chosen functions."""

    def __init__(
        self,
        flow: NameFlow,
        chosen: Callable[[types.FrameType], bool],
        judge: Judge,
        returned: Callable[[types.FrameType, Any], None],
        quietly: Callable[..., Any],
    ) -> None:
        self.found: list[Lines] = []
        self._flow, self._chosen, self._judge = flow, chosen, judge
        self._returned, self._quietly = returned, quietly
        self._open: dict[types.FrameType, tuple[Lines, dict[int, ast.stmt], list[ast.stmt]]] = {}

    def __call__(self, frame: types.FrameType, event: str, arg: Any) -> Any:
        """Called for each new frame: follows it, or leaves it alone."""
        return self._line if event == "call" and self._quietly(self._begin, frame) else None

    def _begin(self, frame: types.FrameType) -> bool:
        if not self._chosen(frame):
            return False
        code = frame.f_code
        source, start = inspect.getsourcelines(code)
        indent = len(source[0]) - len(source[0].lstrip())
        body = [line.rstrip("\n")[indent:] if not line[:indent].strip() else line.rstrip("\n") for line in source]
        call = code.co_qualname.rpartition("<locals>.")[2]
        lines = Lines(call, file_of(code, frame.f_globals), start, body)
        statements = _statements(code.co_filename, frame.f_globals, start, len(source))
        self.found.append(lines)
        self._open[frame] = (lines, statements, [])
        return True

    def _line(self, frame: types.FrameType, event: str, arg: Any) -> Any:
        """Called before each line of a frame that is followed, and at its end."""
        if event in ("line", "return", "exception"):
            self._quietly(self._step, frame, event, arg)
        return self._line

    def _step(self, frame: types.FrameType, event: str, arg: Any) -> None:
        if frame not in self._open or event == "exception":
            return
        lines, statements, running = self._open[frame]
        if not lines.ran:  # by now the annotations of the arguments are known
            code, local = frame.f_code, frame.f_locals
            names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            lines.ran.update(range(lines.start, lines.start + _head(lines.source) + 1))
            for place, group in itertools.groupby(names, functools.partial(_places(lines.source).get)):
                self._note(lines, lines.start + (place or 0), [(name, local[name]) for name in group])
        if event == "return":
            self._returned(frame, arg)
            if running:
                self._done(frame, lines, running[-1], arg)
            del self._open[frame]
            return
        lines.ran.add(frame.f_lineno)
        statement = statements.get(frame.f_lineno)
        if running and statement is not running[-1]:
            done = running.pop()
            # a loop comes back to its first line once more than it runs
            if not isinstance(done, ast.For) or done.lineno <= frame.f_lineno <= (done.body[-1].end_lineno or 0):
                self._done(frame, lines, done, None)
        if statement is not None and not running:
            running.append(statement)

    def _done(self, frame: types.FrameType, lines: Lines, statement: ast.stmt, result: Any) -> None:
        """Note what a statement has assigned or returned, and judge the annotation of a variable."""
        local = frame.f_locals
        if isinstance(statement, ast.Return):
            self._note(lines, statement.lineno, [("", result)])
            return
        values = []
        for name in targets(statement):
            node = ast.parse(name, mode="eval").body
            value = local.get(name) if isinstance(node, ast.Name) else attribute(frame, node)  # type: ignore[arg-type]
            values.append((name, value))
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and values:
            hint = _evaluated(statement.annotation, frame)
            if isinstance(values[0][1], Tensor) and annotations.is_array(hint):
                axes = annotations.axes(hint, tensors.sizes(values[0][1]))
                self._flow.annotate(values[0][1], tuple(axis.name or axis.formula for axis in axes))
            if annotations.leaves(hint) and values[0][0] in local:
                self._judge(frame, values[0][0], values[0][1], hint, statement.lineno)
        self._note(lines, statement.lineno, values)

    def _note(self, lines: Lines, number: int, values: Iterable[tuple[str, Any]]) -> None:
        text = self._text(list(values))
        if not text:
            return
        if number in lines.notes:
            note = lines.notes[number]
            note.last, note.count = text, note.count + 1
        else:
            lines.notes[number] = LineNote(text, text)

    def _text(self, values: list[tuple[str, Any]]) -> str:
        """`batch 1, tokens 6` for one tensor, `q: batch 1, …; n = 4` for several values."""
        shown: list[tuple[str, str]] = []
        for name, value in values:
            for path, part, _, how in walk(name, value, hinted=False):
                if how == TENSOR:
                    shown.append((path.lstrip("."), self.axes(part)))
                elif path == name and type(part) in (int, float, bool):
                    shown.append((name, f"= {text_of(part)}"))
        tensors_only = [text for _, text in shown if not text.startswith("= ")]
        if len(shown) == 1 and tensors_only:
            return shown[0][1] or "a number"
        told = [f"{name} {text}" if text.startswith("= ") else f"{name}: {text}" for name, text in shown[:MOST_SHOWN]]
        return "; ".join([*told, *(["…"] if len(shown) > MOST_SHOWN else [])])

    def axes(self, tensor: Tensor) -> str:
        """`batch 1, heads 4, 6`."""
        pairs = zip(self._flow.of(tensor), tensors.sizes(tensor), strict=True)
        text = ", ".join(f"{name} {size}".strip() for name, size in pairs) or "()"
        kind = tensors.dtype_name(tensor.dtype)
        return text if kind == "float32" else f"{text} {kind}"


@functools.lru_cache(64)
def _statements_of(file: str, lines: tuple[str, ...], start: int, count: int) -> dict[int, ast.stmt]:
    tree = parsed(file, lines)
    found: dict[int, ast.stmt] = {}
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.stmt) and start < node.lineno < start + count:
            simple = not hasattr(node, "body")
            for number in range(node.lineno, (node.end_lineno or node.lineno) + 1 if simple else node.lineno + 1):
                if number not in found or simple:
                    found[number] = node
    return found


def _statements(file: str, names: dict[str, Any], start: int, count: int) -> dict[int, ast.stmt]:
    """The statement at each line of a function."""
    return _statements_of(file, tuple(linecache.getlines(file, names)), start, count)


def targets(statement: ast.stmt) -> list[str]:
    """What a statement assigns, as text."""
    match statement:
        case ast.Assign(targets):
            nodes: list[ast.expr] = targets
        case ast.AnnAssign(target) | ast.AugAssign(target) | ast.For(target):
            nodes = [target]
        case ast.With(items):
            nodes = [item.optional_vars for item in items if item.optional_vars is not None]
        case _:
            nodes = []
    flat: list[str] = []
    for node in nodes:
        for each in ast.walk(node):
            if isinstance(each, (ast.Name, ast.Attribute)) and isinstance(each.ctx, ast.Store):
                flat.append(ast.unparse(each))
    head = getattr(statement, "test", None) if hasattr(statement, "body") else statement
    inner = ast.walk(head) if head is not None else ()
    flat += [ast.unparse(each.target) for each in inner if isinstance(each, ast.NamedExpr)]
    return list(dict.fromkeys(flat))


def _evaluated(annotation: ast.expr, frame: types.FrameType) -> Any:
    """The annotation of a local variable: Python does not evaluate it."""
    code = compile(ast.Expression(annotation), frame.f_code.co_filename, "eval")
    return eval(code, frame.f_globals, frame.f_locals)

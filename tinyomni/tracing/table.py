"""A run as text: one row a call, in columns."""

from tinyomni.tracing.records import Gradient, Run
from tinyomni.tracing.rows import Row, Usual, fold, tree, usual_of, walk

MOST_ROWS = 60


def table(
    run: Run, depth: int | None = None, unfold: bool = False, most: int | None = MOST_ROWS, where: bool = False
) -> str:
    """The calls of a run. `depth`: none deeper than this, 0 for the outermost. `unfold`: each call a row of its own.
    `where`: with `file:line`."""
    notes = [f"note: {note}" for note in run.notes]
    if not run.steps:
        why = "Was the model called inside the `with`? Compiled, scripted and other threads' code is not seen."
        return "\n".join([f"{run.title}: nothing was traced. {why}", *notes])
    top, usual = tree(run.steps), usual_of(run.steps)
    rows = list(walk(top if unfold else fold(top), deepest=depth))
    above: dict[int, str] = {}
    cells = [
        ("  " * depth + row.label + row.times, place_of(row, where), between(row, usual), remark(row, above, depth))
        for depth, row in rows[:most]
    ]
    width, place = (max(len(cell[column]) for cell in cells) for column in (0, 1))
    lines = [f"  {call:{width}}  {path:{place}}  {shapes}  {rest}".rstrip() for call, path, shapes, rest in cells]
    left = len(rows) - len(cells)
    more = [f"  … {left} more rows: t.to_html(FILE) or t.table(most=None) shows all"] if left else []
    tokens = [f"tokens: {run.ledger}"] if run.ledger else []
    return "\n".join([f"{run.title}: {count_of(run)}", *lines, *more, *tokens, *notes])


def place_of(row: Row, where: bool) -> str:
    """The module path, and perhaps the file and line."""
    return f"{row.path} {row.last.file}:{row.last.line}".strip() if where else row.path


def count_of(run: Run) -> str:
    """`14 calls, 31 operations`."""
    ops = sum(record.op for record in run.steps)
    calls = len(run.steps) - ops
    return f"{calls} call{'s' * (calls != 1)}" + (f", {ops} operation{'s' * (ops != 1)}" if ops else "")


def between(row: Row, usual: Usual | None = None) -> str:
    """`x (2, 3) → (2, 4)`; `→ ?` if the call did not return, `→ —` if it returned no tensor."""
    nothing = "—" if row.last.status == "ok" else "?"
    return f"{row.values('inputs', usual)} → {row.values('outputs', usual) or nothing}"


def remark(row: Row, above: dict[int, str], depth: int) -> str:
    """What else there is to say of a row: its phase where it is not its caller's, the cache, what went wrong."""
    first, last = row.records[0], row.last
    above[depth] = last.phase
    parts = [last.phase] if last.phase != above.get(depth - 1, "") else []
    if last.cache is not None and parts:
        parts.append(f"cache {last.cache}" if first.cache == last.cache else f"cache {first.cache}…{last.cache}")
    parts += gradients(row)
    if row.below_differs:
        parts.append("below: the last call")
    if last.status != "ok":
        parts.append(f"({last.status})" if last.ok else f"✘ {last.status}")
    return ", ".join(parts)


def gradients(row: Row) -> list[str]:
    """The gradients of each output; of several calls, how small and how large their norms are."""
    found: dict[str, list[Gradient]] = {}
    for record in row.records:
        for each in record.gradients:
            found.setdefault(each.value.name, []).append(each)
    if row.count == 1:
        return [str(each) for several in found.values() for each in several]
    ranges = []
    for several in found.values():
        norms = [each.norm for each in several]
        ranges.append(f"grad {several[-1].value} |{min(norms):.2g}…{max(norms):.2g}|")
    return ranges

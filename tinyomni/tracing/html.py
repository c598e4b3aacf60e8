"""A run as a page in HTML, without scripts."""

from html import escape

from tinyomni.tracing.records import Run
from tinyomni.tracing.rows import Row, fold, tree
from tinyomni.tracing.table import table

STYLE = """
.tinyomni { font: 14px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; }
.tinyomni table { border-collapse: collapse; }
.tinyomni th, .tinyomni td { border-bottom: 1px solid #ccc; padding: 2px 10px; text-align: left; vertical-align: top; }
.tinyomni code { font: 13px/1.5 ui-monospace, monospace; }
.tinyomni details table { margin: 2px 0 6px 12px; }
.tinyomni summary { cursor: pointer; }
.tinyomni .wrong { font-weight: bold; }
""".strip()
MOST_CALLS = 400  # of one folded row that are listed one by one
MOST_BYTES = 180_000


def page(run: Run) -> str:
    """A whole page."""
    title = escape(run.title)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n</head>\n'
        f"<body>\n{fragment(run)}\n</body>\n</html>\n"
    )


def fragment(run: Run) -> str:
    """The table, for a notebook or inside a page. What would make it too large is counted and left out."""
    if not run.steps:
        return f'<div class="tinyomni"><p>{escape(table(run))}</p></div>'
    rows = fold(tree(run.steps))
    for depth in (99, 3, 2, 1, 0):
        text = _fragment(run, rows, depth)
        if len(text.encode()) < MOST_BYTES:
            break
    return text


def _fragment(run: Run, rows: list[Row], depth: int) -> str:
    lines = [f'<div class="tinyomni"><style>{STYLE}</style>', *_table(rows, escape(run.title), depth)]
    if run.ledger:
        lines.append(f"<p>Tokens: {escape(str(run.ledger))}</p>")
    lines += [f"<p>Note: {escape(note)}</p>" for note in run.notes]
    return "\n".join([*lines, "</div>"])


def _table(rows: list[Row], caption: str, depth: int) -> list[str]:
    head = "".join(f'<th scope="col">{name}</th>' for name in ("call", "in", "out", "status"))
    lines = [f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>"]
    for row in rows:
        record = row.last
        where = " · ".join(part for part in (record.path, f"{record.file}:{record.line}") if part)
        status = "✔ ok" if record.ok else f'<span class="wrong">✘ {escape(record.status)}</span>'
        status += f" ({record.phase})" if record.phase else ""
        cells = [f"<td><code>{escape(row.values(which))}</code></td>" for which in ("inputs", "outputs")]
        name = f'<code title="{escape(where, quote=True)}">{escape(record.call)}</code>{row.times}'
        lines.append(f'<tr><th scope="row">{name}</th>{"".join(cells)}<td>{status}</td></tr>')
        inside = _inside(row, depth)
        if inside:
            lines += ['<tr><td colspan="4">', *inside, "</td></tr>"]
    return [*lines, "</tbody></table>"]


def _inside(row: Row, depth: int) -> list[str]:
    """What opens under a row: each of its calls, and the calls that it made."""
    lines = []
    call = escape(row.last.call)
    alike = len({(record.inputs, record.outputs) for record in row.records}) == 1
    if row.count > 1 and not alike and depth > 0:
        calls = [Row([record]) for record in row.records[:MOST_CALLS]]
        each = [f"<li><code>{escape(' → '.join(map(one.values, ('inputs', 'outputs'))))}</code></li>" for one in calls]
        more = [f"<li>… {row.count - MOST_CALLS} more</li>"] if row.count > MOST_CALLS else []
        lines += [
            f"<details><summary>the {row.count} calls of {call}</summary><ol start=0>",
            *each,
            *more,
            "</ol></details>",
        ]
    if row.below and depth > 0:
        which = " (of the last one)" if row.count > 1 else ""
        lines += [
            f"<details><summary>inside {call}{which}</summary>",
            *_table(row.below, call, depth - 1),
            "</details>",
        ]
    elif row.below:
        lines.append(f"{len(row.below)} rows inside")
    return lines

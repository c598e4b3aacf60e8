"""A run as a page in HTML, without scripts."""

import sys
from collections.abc import Iterator
from html import escape

from tinyomni.tracing.records import STOPPED, Record, Run
from tinyomni.tracing.rows import Row, Usual, fold, tree, usual_of
from tinyomni.tracing.table import between, table

STYLE = """
.tinyomni { font: 14px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; min-width: 900px; }
.tinyomni table { border-collapse: collapse; table-layout: fixed; width: 100%; margin: 0; }
.tinyomni th, .tinyomni td { border-bottom: 1px solid #ccc; padding: 2px 8px; text-align: left; vertical-align: top; }
.tinyomni th, .tinyomni code { overflow-wrap: anywhere; }
.tinyomni td.inside { padding: 0; border: 0; }
.tinyomni td.inside caption { display: none; }
.tinyomni code { font: 13px/1.5 ui-monospace, monospace; white-space: pre-wrap; }
.tinyomni small { color: #555; font-weight: normal; }
.tinyomni summary { cursor: pointer; }
.tinyomni .wrong { font-weight: bold; }
""".strip()
COLUMNS = (("call", 30), ("in", 34), ("out", 22), ("status", 14))  # with their width in %, the same in every table
MOST_CALLS = 400  # of one folded row that are listed one by one
MOST_BYTES = 180_000


def page(run: Run, links: str = "") -> str:
    """A whole page. `links`: an address for `file:line`, such as `vscode://file/{path}:{line}`."""
    title = escape(run.title)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n</head>\n'
        f"<body>\n{fragment(run, links)}\n</body>\n</html>\n"
    )


def fragment(run: Run, links: str = "") -> str:
    """The table, for a notebook or inside a page. What would make it too large is counted and left out."""
    if not run.steps:
        return f'<div class="tinyomni"><p>{escape(table(run))}</p></div>'
    rows, usual = fold(tree(run.steps)), usual_of(run.steps)
    for depth in (99, 3, 2, 1, 0):
        text = "\n".join(_Tables(usual, links).whole(run, rows, depth))
        if len(text.encode()) < MOST_BYTES:
            break
    return text


class _Tables:
    """Tables in tables: what a call does inside opens below it, in the same columns."""

    def __init__(self, usual: Usual, links: str) -> None:
        self._usual, self._links = usual, links

    def whole(self, run: Run, rows: list[Row], depth: int) -> Iterator[str]:
        """The table with what stands below it."""
        yield f'<div class="tinyomni"><style>{STYLE}</style>'
        yield from self._table(rows, escape(run.title), depth, 0)
        if run.ledger:
            yield f"<p>Tokens: {escape(str(run.ledger))}</p>"
        yield from (f"<p>Note: {escape(note)}</p>" for note in run.notes)
        yield "</div>"

    def _table(self, rows: list[Row], caption: str, depth: int, level: int) -> Iterator[str]:
        columns = "".join(f'<col style="width:{width}%">' for _, width in COLUMNS)
        head = "".join(f'<th scope="col">{name}</th>' for name, _ in COLUMNS)
        yield f"<table><caption>{caption}</caption><colgroup>{columns}</colgroup>"
        yield f"<thead><tr>{head}</tr></thead><tbody>" if level == 0 else "<tbody>"
        indent = f' style="padding-left:{8 + 16 * level}px"'
        for row in rows:
            record = row.last
            cells = [
                f"<td><code>{escape(row.values(which, self._usual))}</code></td>" for which in ("inputs", "outputs")
            ]
            name = f"<code>{escape(row.label)}</code>{row.times}"
            small = " · ".join(part for part in (escape(row.path), self._place(record)) if part)
            head = f'<th scope="row"{indent}>{name}<br><small>{small}</small></th>'
            yield f"<tr>{head}{''.join(cells)}<td>{self._status(row)}</td></tr>"
            inside = list(self._inside(row, depth, level))
            if inside:
                yield from ('<tr><td colspan="4" class="inside">', *inside, "</td></tr>")
        yield "</tbody></table>"

    def _place(self, record: Record) -> str:
        """`file:line`, as a link if one is wanted and the file is known."""
        text = escape(f"{record.file}:{record.line}") if record.file else ""
        path = source_of(record.file) if self._links and record.file else ""
        if not path:
            return text
        return f'<a href="{escape(self._links.format(path=path, line=record.line), quote=True)}">{text}</a>'

    @staticmethod
    def _status(row: Row) -> str:
        record = row.last
        status = "✔ ok" if record.ok else f'<span class="wrong">✘ {escape(record.status)}</span>'
        status += f" ({record.status})" if record.status == STOPPED else ""
        status += f" ({record.phase})" if record.phase else ""
        return status + "".join(f"<br>{escape(str(each))}" for each in record.gradients)

    def _inside(self, row: Row, depth: int, level: int) -> Iterator[str]:
        """What opens under a row: each of its calls, and the calls that it made."""
        call, pad = escape(row.label), f' style="padding-left:{8 + 16 * level}px"'
        alike = len({(record.inputs, record.outputs) for record in row.records}) == 1
        if row.count > 1 and not alike and depth > 0:
            yield f"<details><summary{pad}>the {row.count} calls of {call}</summary><ol start=0>"
            for record in row.records[:MOST_CALLS]:
                yield f"<li><code>{escape(between(Row([record]), self._usual))}</code></li>"
            if row.count > MOST_CALLS:
                yield f"<li>… {row.count - MOST_CALLS} more</li>"
            yield "</ol></details>"
        if row.below and depth > 0:
            which = " (of the last one)" if row.count > 1 else ""
            yield f"<details><summary{pad}>inside {call}{which}</summary>"
            yield from self._table(row.below, call, depth - 1, level + 1)
            yield "</details>"
        elif row.below:
            yield f"<span{pad}>{len(row.below)} rows inside</span>"


def source_of(file: str) -> str:
    """Where a file of a record is on this machine; "" if it is not known."""
    name = file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    module = sys.modules.get(name) or sys.modules.get("__main__")
    path = str(getattr(module, "__file__", None) or "")
    return path if path.replace("\\", "/").endswith(file) else ""

"""A run as a page in HTML, without scripts: calls that open, in the colours of what they work on, light or dark."""

import sys
from collections.abc import Iterable, Iterator
from html import escape

from tinyomni.tracing.lines import Lines
from tinyomni.tracing.looks import KINDS, MODALITIES, Modality, kind_of, modalities, values_in
from tinyomni.tracing.records import STOPPED, Record, Run
from tinyomni.tracing.rows import Row, Usual, fold, tree, usual_of, walk
from tinyomni.tracing.table import between, gradients, table

STYLE = """
.tinyomni { font: 14px/1.5 system-ui, sans-serif; min-width: 900px; color: var(--jp-content-font-color1, CanvasText);
  background: var(--jp-layout-color0, Canvas); }
.tinyomni table { border-collapse: collapse; table-layout: fixed; width: 100%; margin: 0; }
.tinyomni th, .tinyomni td { border-bottom: 1px solid #8886; padding: 2px 8px; text-align: left; vertical-align: top; }
.tinyomni th, .tinyomni code { overflow-wrap: anywhere; }
.tinyomni td.inside { padding: 0; border: 0; }
.tinyomni td.inside caption { display: none; }
.tinyomni code { font: 13px/1.5 ui-monospace, monospace; white-space: pre-wrap; color: inherit; background: none; }
.tinyomni pre { font: 13px/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.tinyomni small { opacity: .75; font-weight: normal; }
.tinyomni summary { cursor: pointer; }
.tinyomni .wrong { font-weight: bold; }
.tinyomni tr[class] > th { border-left: 5px solid var(--c); }
.tinyomni b { color: var(--c); font-weight: normal; }
.tinyomni i { font: 11px/1.4 system-ui, sans-serif; padding: 0 5px; border: 1px solid var(--c); border-radius: 8px;
  background: color-mix(in srgb, var(--c) 20%, transparent); white-space: nowrap; }
.tinyomni u { display: block; height: 7px; min-width: 1px; background: var(--c, #888); }
""".strip()
STYLE += "".join(f"\n.tinyomni .{each.name} {{ --c: {each.colour}; }}" for each in MODALITIES)
STYLE += "".join(f"\n.tinyomni .k{number} {{ --c: {colour}; }}" for number, (colour, _) in enumerate(KINDS.values()))
COLUMNS = (("call", 30), ("in", 34), ("out", 22), ("status", 14))  # with their width in %, the same in every table
PAGE = "body { --jp-content-link-color: light-dark(#0b5394, #8ab4f8); }"  # of what stands behind source lines
MOST_CALLS = 400  # of one folded row that are listed one by one
MOST_BYTES = 180_000


def page(run: Run, links: str = "", to_scale: bool = False, problem: str = "", lines: Iterable[Lines] = ()) -> str:
    """A whole page. `links`: an address for `file:line`, such as `vscode://file/{path}:{line}`. `to_scale`: a bar under
    each output, as long as it has values."""
    title = escape(run.title)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{title}</title>\n'
        f"<style>{PAGE}</style>\n</head>\n"
        f"<body>\n{fragment(run, links, to_scale, problem, lines)}\n</body>\n</html>\n"
    )


def fragment(run: Run, links: str = "", to_scale: bool = False, problem: str = "", lines: Iterable[Lines] = ()) -> str:
    """What went wrong, the table, and the source lines, for a notebook or inside a page. What would make the table too
    large is counted and left out."""
    told = f"<pre>✘ {escape(problem)}</pre>" if problem else ""
    return "\n".join([_calls(run, links, to_scale, told), *(each._repr_html_() for each in lines)])


def _calls(run: Run, links: str, to_scale: bool, told: str) -> str:
    if not run.steps:
        return f'<div class="tinyomni">{told}<p>{escape(table(run))}</p></div>'
    rows, usual = fold(tree(run.steps)), usual_of(run.steps)
    scale = max((values_in(row) for _, row in walk(rows)), default=0) if to_scale else 0
    for depth in (99, 3, 2, 1, 0):
        text = "\n".join(_Tables(usual, links, scale, modalities(rows)).whole(run, rows, depth, told))
        if len(text.encode()) < MOST_BYTES:
            break
    return text


class _Tables:
    """Tables in tables: what a call does inside opens below it, in the same columns."""

    def __init__(self, usual: Usual, links: str, scale: int, found: dict[int, Modality | None]) -> None:
        self._usual, self._links, self._scale, self._modalities = usual, links, scale, found

    def whole(self, run: Run, rows: list[Row], depth: int, told: str) -> Iterator[str]:
        """The table with what stands above and below it."""
        yield f'<div class="tinyomni"><style>{STYLE}</style>'
        yield told
        yield from self._legend()
        yield from self._table(rows, escape(run.title), depth, 0)
        if run.ledger:
            yield f"<p>Tokens: {escape(str(run.ledger))}</p>"
        yield from (f"<p>Note: {escape(note)}</p>" for note in run.notes)
        yield "</div>"

    def _legend(self) -> Iterator[str]:
        """What the colours mean, of those that occur, and how long the bars are."""
        seen = set(self._modalities.values())
        marks = [f'<b class="{each.name}">{each.mark}</b> {each.name}' for each in MODALITIES if each in seen]
        if self._scale:
            marks.append(f"bars: the longest is {self._scale:,} values")
        if marks:
            yield f"<p>{' &nbsp; '.join(marks)}</p>"

    def _table(self, rows: list[Row], caption: str, depth: int, level: int) -> Iterator[str]:
        columns = "".join(f'<col style="width:{width}%">' for _, width in COLUMNS)
        head = "".join(f'<th scope="col">{name}</th>' for name, _ in COLUMNS)
        yield f"<table><caption>{caption}</caption><colgroup>{columns}</colgroup>"
        yield f"<thead><tr>{head}</tr></thead><tbody>" if level == 0 else "<tbody>"
        indent = f' style="padding-left:{8 + 16 * level}px"'
        for row in rows:
            record, modality = row.last, self._modalities[row.last.id]
            cells = [
                f"<td><code>{escape(row.values(which, self._usual))}</code></td>" for which in ("inputs", "outputs")
            ]
            if self._scale and (values := values_in(row)):
                bar = f'<u style="width:{100 * values / self._scale:.3g}%" title="{values:,} values"></u>'
                cells[1] = cells[1].replace("</td>", f"{bar}</td>")
            mark = f'<b aria-label="{modality.name}">{modality.mark}</b> ' if modality else ""
            kind = kind_of(record)
            chip = f' <i class="k{list(KINDS).index(kind)}">{kind}</i>' if kind else ""
            name = f"{mark}<code>{escape(row.label)}</code>{row.times}{chip}"
            small = " · ".join(part for part in (escape(row.path), self._place(record)) if part)
            head = f'<th scope="row"{indent}>{name}<br><small>{small}</small></th>'
            colour = f' class="{modality.name}"' if modality else ""
            yield f"<tr{colour}>{head}{''.join(cells)}<td>{self._status(row)}</td></tr>"
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
        return status + "".join(f"<br>{escape(each)}" for each in gradients(row))

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

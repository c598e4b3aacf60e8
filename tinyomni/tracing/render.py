"""Pictures of a trace: a page in HTML without scripts, and a flow diagram in SVG."""

from html import escape
from typing import TYPE_CHECKING

from tinyomni.tracing.records import Row, fold, tree

if TYPE_CHECKING:
    from tinyomni.tracing.trace import Trace

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


# ---- HTML -----------------------------------------------------------------------------------------------------------


def page(trace: "Trace") -> str:
    """A whole page."""
    title = escape(trace.title)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n</head>\n'
        f"<body>\n{fragment(trace)}\n</body>\n</html>\n"
    )


def fragment(trace: "Trace") -> str:
    """The table, for a notebook or inside a page. What would make it too large is counted and left out."""
    if not trace.steps:
        return f'<div class="tinyomni"><p>{escape(str(trace))}</p></div>'
    rows = trace.rows()
    for depth in (99, 3, 2, 1, 0):
        text = _fragment(trace, rows, depth)
        if len(text.encode()) < MOST_BYTES:
            break
    return text


def _fragment(trace: "Trace", rows: list[Row], depth: int) -> str:
    lines = [f'<div class="tinyomni"><style>{STYLE}</style>', *_table(rows, escape(trace.title), depth)]
    if trace.ledger:
        lines.append(f"<p>Tokens: {escape(str(trace.ledger))}</p>")
    lines += [f"<p>Note: {escape(note)}</p>" for note in trace.notes]
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


# ---- SVG ------------------------------------------------------------------------------------------------------------

CHAR, LINE, PAD, GAP, RISE = 7.3, 17, 10, 28, 34


class Box:
    """One call of the diagram: its title, the shapes that leave it, its place."""

    def __init__(self, row: Row) -> None:
        record = row.last
        name = record.title if record.declared else " ".join(part for part in (record.call, record.path) if part)
        self.lines = [
            name + row.times,
            *([] if record.ok else [f"✘ {record.status}"]),
        ]
        self.shapes = [text for text in dict.fromkeys(map(str, (v for v in record.outputs if v.dtype)))]
        inputs = [value for value in record.inputs if value.dtype]
        self.inputs = list(dict.fromkeys(f"{value.name} {value}" for value in inputs))
        self.ids = {record.id for record in row.records}
        self.sources: set[int] = {source for record in row.records for source in record.sources}
        self.rank, self.x, self.y = 0, 0.0, 0.0

    @property
    def width(self) -> float:
        """Wide enough for every line of text that stands in it or under it."""
        return max(map(len, [*self.lines, *self.shapes, *self.entry])) * CHAR + 2 * PAD

    @property
    def entry(self) -> list[str]:
        """Inputs that no call before has made stand above the box."""
        return self.inputs if not self.sources else []

    @property
    def height(self) -> float:
        """Of the box alone."""
        return len(self.lines) * LINE + PAD


def flow(trace: "Trace") -> str:
    """The outermost calls from top to bottom; on the arrows, what shape goes from one to the next."""
    rows = fold(tree(trace.steps), turns=False)  # an arrow has one direction
    boxes = [Box(row) for row in rows]
    if not boxes:
        raise ValueError(f"{trace.title}: nothing was traced, so there is nothing to draw")
    owner = _owners(trace, boxes)
    parents: list[list[int]] = []
    for place, box in enumerate(boxes):
        found = {owner[source] for source in box.sources if owner.get(source, place) != place}
        box.sources = {source for source in box.sources if owner.get(source, place) != place}
        parents.append(sorted(found))
        box.rank = max((boxes[parent].rank + 1 for parent in found), default=0)
    # a box without known parents stands right above its first child
    for place in reversed(range(len(boxes))):
        children = [child for child, found in enumerate(parents) if place in found]
        if not parents[place] and children:
            boxes[place].rank = max(0, min(boxes[child].rank for child in children) - 1)
    return _draw(trace.title, boxes, parents)


def _owners(trace: "Trace", boxes: list[Box]) -> dict[int, int]:
    """For every call, the box of its outermost caller."""
    place = {record: index for index, box in enumerate(boxes) for record in box.ids}
    for record in trace.steps:
        if record.parent is not None:
            place[record.id] = place[record.parent]
    return place


def _draw(title: str, boxes: list[Box], parents: list[list[int]]) -> str:
    ranks = sorted({box.rank for box in boxes})
    # an arrow that passes a rank needs a lane of its own there
    lanes: dict[tuple[int, int], list[tuple[int, int]]] = {}
    columns: dict[int, list[tuple[float, object]]] = {rank: [] for rank in ranks}
    for place, box in enumerate(boxes):
        for parent in parents[place]:
            for rank in ranks:
                if boxes[parent].rank < rank < box.rank:
                    lanes.setdefault((parent, place), []).append((rank, len(columns[rank])))
                    columns[rank].append((0.0, (parent, place)))
        columns[box.rank].append((0.0, place))
    xs: dict[tuple[int, object], float] = {}
    reached: dict[object, float] = {}  # where an arrow ran in the rank before
    widest = 0.0
    for rank in ranks:
        # beside one another in the order of their parents
        def centre(item: object, rank: int = rank) -> float:
            if item in reached:
                return reached[item]
            above = parents[item] if isinstance(item, int) else [item[0]]  # type: ignore[index]
            known = [boxes[parent].x for parent in above if boxes[parent].rank < rank]
            return sum(known) / len(known) if known else 1e6

        items = sorted((item for _, item in columns[rank]), key=centre)
        widths = [boxes[item].width if isinstance(item, int) else 2.0 * PAD for item in items]
        total = sum(widths) + GAP * (len(items) - 1)
        x = -total / 2
        for item, width in zip(items, widths, strict=True):
            xs[rank, item] = x + width / 2
            if isinstance(item, int):
                boxes[item].x = x + width / 2
            else:
                reached[item] = x + width / 2
            x += width + GAP
        widest = max(widest, total)
    y = 2.0 * LINE + PAD
    bottoms: dict[int, float] = {}
    tops: dict[int, float] = {}
    for rank in ranks:
        here = [box for box in boxes if box.rank == rank]
        tops[rank] = y
        y += PAD  # room for the arrow's tip
        above = max(len(box.entry) for box in here)
        y += above * LINE + (PAD if above else 0)
        for box in here:
            box.y = y
        shapes = max(len(box.shapes) for box in here)
        y += max(box.height for box in here) + shapes * LINE + PAD
        bottoms[rank] = y
        y += RISE
    half = max(widest, len(title) * CHAR) / 2 + 2 * PAD
    lines = [_text(0, LINE + 2, title, "bold")]
    for place, box in enumerate(boxes):
        for parent in parents[place]:
            lines.append(_arrow(boxes[parent], box, lanes.get((parent, place), []), xs, (parent, place), tops, bottoms))
    lines += [part for box in boxes for part in _box(box)]
    size = f'width="{2 * half:.0f}" height="{y:.0f}" viewBox="{-half:.0f} 0 {2 * half:.0f} {y:.0f}"'
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(title, quote=True)}" '
        'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="12">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#333"/></marker></defs>',
        f'<rect x="{-half:.0f}" y="0" width="{2 * half:.0f}" height="{y:.0f}" fill="#fff"/>',
        *lines, "</svg>\n"])  # fmt: skip


def _arrow(
    start: Box, end: Box, lane: list[tuple[int, int]], xs: dict[tuple[int, object], float],
    key: tuple[int, int], tops: dict[int, float], bottoms: dict[int, float],
) -> str:  # fmt: skip
    """From under the shapes of one box to the top of another, through its lanes."""
    y = start.y + start.height + len(start.shapes) * LINE + PAD / 2
    points = [(start.x, y), (start.x, bottoms[start.rank])]
    for rank, _ in lane:
        points += [(xs[rank, key], tops[rank]), (xs[rank, key], bottoms[rank])]
    points += [(end.x, tops[end.rank]), (end.x, end.y - 1)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="#333" marker-end="url(#tip)"/>'


def _box(box: Box) -> list[str]:
    top = [_text(box.x, box.y - PAD / 2 - (len(box.entry) - 1 - n) * LINE, text) for n, text in enumerate(box.entry)]
    rect = (f'<rect x="{box.x - box.width / 2:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" '
            'rx="4" fill="#f4f4f4" stroke="#333"/>')  # fmt: skip
    inside = [_text(box.x, box.y + PAD / 2 + LINE * (n + 0.75), text, "bold") for n, text in enumerate(box.lines)]
    under = [_text(box.x, box.y + box.height + LINE * (n + 0.9), text) for n, text in enumerate(box.shapes)]
    return [*top, rect, *inside, *under]


def _text(x: float, y: float, text: str, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" font-weight="{weight}">{escape(text)}</text>'

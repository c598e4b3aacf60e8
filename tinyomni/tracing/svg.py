"""A run as a flow diagram in SVG: calls from top to bottom, on the arrows what goes from one to the next.

An arrow is drawn where a tensor is known to come from a call. Operations between calls are known with `ops=True` only;
without them, a part of a model that got its input from somewhere hangs by a dashed line from the call before it.
A box has the colour and the mark of what it works on: text, image, audio or speech.
"""

from collections import Counter
from html import escape

from tinyomni.tracing.looks import Modality, modalities, tint
from tinyomni.tracing.records import Run, Value
from tinyomni.tracing.rows import Row, Usual, fold, text, tree, usual_of

CHAR, LINE, PAD, GAP, RISE = 7.3, 17, 10, 28, 34


class Box:
    """One call of the diagram: its title, the shapes that leave it, its place."""

    def __init__(self, row: Row, modality: Modality | None, usual: Usual) -> None:
        record = row.last
        self.modality = modality
        name = record.title if record.declared else " ".join(part for part in (row.label, row.path) if part)
        self.lines = [
            (f"{self.modality.mark} " if self.modality else "") + name + row.times,
            *([] if record.ok else [f"✘ {record.status}"]),
        ]
        self.op = record.op
        self.shapes = _counted(record.outputs, usual, named=False)
        self.inputs = _counted(record.inputs, usual, named=True)
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

    @property
    def tip(self) -> float:
        """Where an arrow ends: above the text over the box."""
        return self.y - 1 - len(self.entry) * LINE


def _counted(values: tuple[Value, ...], usual: Usual, named: bool) -> list[str]:
    """The tensors as text, equal ones as `2 × (3, 4)`."""
    counts = Counter(text(value, value, usual, named) for value in values if value.dtype)
    return [f"{times} × {each}" if times > 1 else each for each, times in counts.items()]


def flow(run: Run, depth: int | None = None) -> str:
    """The calls at a depth, 0 for the outermost; by default the outermost, or the parts of a single one."""
    rows = fold(tree(run.steps), turns=False)  # an arrow has one direction
    if not rows:
        raise ValueError(f"{run.title}: nothing was traced, so there is nothing to draw")
    top, rows, works_on = rows, opened(rows, depth), modalities(rows)
    usual = usual_of(run.steps)
    boxes = [Box(row, works_on[row.last.id], usual) for row in rows]
    owner = _owners(run, boxes)
    parents: list[list[int]] = []
    guessed: set[int] = set()
    for place, box in enumerate(boxes):
        found = {owner[source] for source in box.sources if owner.get(source, place) != place}
        box.sources = {source for source in box.sources if owner.get(source, place) != place}
        if not found and place and rows is not top:
            found = {place - 1}
            guessed.add(place)
        parents.append(sorted(found))
        box.rank = max((boxes[parent].rank + 1 for parent in found), default=0)
    # a box without known parents stands right above its first child
    for place in reversed(range(len(boxes))):
        children = [child for child, found in enumerate(parents) if place in found]
        if not parents[place] and children:
            boxes[place].rank = max(0, min(boxes[child].rank for child in children) - 1)
    return _draw(run.title, boxes, parents, guessed)


def opened(rows: list[Row], depth: int | None) -> list[Row]:
    """The rows at a depth; None opens a call that is alone."""
    if depth is None:
        while len(calls := [row for row in rows if not row.last.op]) == 1 and calls[0].below and calls[0].count == 1:
            rows = calls[0].below
        return rows
    for _ in range(depth):
        rows = [inner for row in rows for inner in (row.below if row.below and row.count == 1 else [row])]
    return rows


def _owners(run: Run, boxes: list[Box]) -> dict[int, int]:
    """For every call, the box that it belongs to."""
    place = {record: index for index, box in enumerate(boxes) for record in box.ids}
    for record in run.steps:
        if record.id not in place and record.parent in place:
            place[record.id] = place[record.parent]
    return place


def _draw(title: str, boxes: list[Box], parents: list[list[int]], guessed: set[int]) -> str:
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
            lane = lanes.get((parent, place), [])
            lines.append(_arrow(boxes[parent], box, lane, xs, (parent, place), tops, bottoms, place in guessed))
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
    key: tuple[int, int], tops: dict[int, float], bottoms: dict[int, float], dashed: bool,
) -> str:  # fmt: skip
    """From under the shapes of one box to the top of another, through its lanes."""
    y = start.y + start.height + len(start.shapes) * LINE + PAD / 2
    points = [(start.x, y), (start.x, bottoms[start.rank])]
    for rank, _ in lane:
        points += [(xs[rank, key], tops[rank]), (xs[rank, key], bottoms[rank])]
    points += [(end.x, tops[end.rank]), (end.x, end.tip)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    style = ' stroke-dasharray="4 4"' if dashed else ""
    return f'<polyline points="{path}" fill="none" stroke="#333"{style} marker-end="url(#tip)"/>'


def _box(box: Box) -> list[str]:
    top = [_text(box.x, box.y - PAD / 2 - (len(box.entry) - 1 - n) * LINE, each) for n, each in enumerate(box.entry)]
    stroke = box.modality.colour if box.modality else "#333"
    fill = "#fff" if box.op else tint(stroke) if box.modality else "#f4f4f4"
    rect = (f'<rect x="{box.x - box.width / 2:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" '
            f'rx="4" fill="{fill}" stroke="{stroke}"/>')  # fmt: skip
    inside = [_text(box.x, box.y + PAD / 2 + LINE * (n + 0.75), each, "bold") for n, each in enumerate(box.lines)]
    under = [_text(box.x, box.y + box.height + LINE * (n + 0.9), each) for n, each in enumerate(box.shapes)]
    return [*top, rect, *inside, *under]


def _text(x: float, y: float, shown: str, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" font-weight="{weight}">{escape(shown)}</text>'

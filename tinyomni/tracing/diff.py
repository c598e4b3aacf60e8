"""Two runs side by side: only what changed."""

import difflib
from collections.abc import Iterator

from tinyomni.tracing.records import Run
from tinyomni.tracing.rows import Row, fold, tree, walk


class Diff:
    """The changes from one trace to another, as lines; true if there are any."""

    def __init__(self, old: Run, new: Run) -> None:
        self.changes: list[str] = []
        one, other = (list(walk(fold(tree(run.steps)))) for run in (old, new))
        # the rows are matched by call and depth; what they carry is then compared
        names = [[(depth, row.last.call) for depth, row in rows] for rows in (one, other)]
        for kind, a, b, c, d in difflib.SequenceMatcher(None, names[0], names[1], autojunk=False).get_opcodes():
            if kind == "equal":
                for (_, was), (_, now) in zip(one[a:b], other[c:d], strict=True):
                    self.changes += self._changed(was, now)
                continue
            for sign, rows in (("-", one[a:b]), ("+", other[c:d])):
                self.changes += [
                    f"{sign} {_name(row)}  {row.values('inputs')} → {row.values('outputs')}" for _, row in rows
                ]
        if old.ledger != new.ledger:
            self.changes.append(f"~ tokens: {old.ledger} | {new.ledger}")

    @staticmethod
    def _changed(was: Row, now: Row) -> Iterator[str]:
        name = f"~ {_name(now)}"
        if was.count != now.count:
            yield f"{name}: {was.count} calls, now {now.count}"
        for which in ("inputs", "outputs"):
            if was.values(which) != now.values(which):
                yield f"{name} {which}: {was.values(which)} | {now.values(which)}"
        kinds = [sorted({(v.name, v.dtype, v.device) for v in row.last.inputs + row.last.outputs if v.dtype})
                 for row in (was, now)]  # fmt: skip
        for one, other in zip(*kinds, strict=False):
            if one[0] == other[0] and one != other:
                yield f"{name} {one[0]}: {' '.join(one[1:])} | {' '.join(other[1:])}"
        for what in ("title", "status", "phase"):
            one, other = (getattr(row.last, what) or "—" for row in (was, now))
            if one != other:
                yield f"{name}: {one} | {other}"

    def __bool__(self) -> bool:
        return bool(self.changes)

    def __str__(self) -> str:
        return "\n".join(self.changes) or "no difference"

    __repr__ = __str__


def _name(row: Row) -> str:
    """The call, with its module."""
    return f"{row.last.call} {row.path}".strip()

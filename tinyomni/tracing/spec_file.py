"""A specification file as it is written: its tables, keys and types, and the line of whatever is wrong."""

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyomni.tracing.formula import SpecError, names_in, unknown
from tinyomni.tracing.shape_pattern import ShapePattern


@dataclass(frozen=True)
class Kind:
    """What a key may hold."""

    text: str
    fits: Callable[[Any], bool]
    formulas: Callable[[Any], Iterable[str | int]] = lambda value: ()


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _texts(value: Any) -> bool:
    return isinstance(value, str)


def _shape_formulas(value: str | list[str]) -> list[str | int]:
    return [
        axis for text in ([value] if isinstance(value, str) else value) for axis in ShapePattern.read(text).formulas
    ]


TEXT = Kind("a text in quotes", _texts)
CALL = Kind("a call as the trace prints it, in quotes", lambda value: isinstance(value, str) and value.strip() != "")
NAME = Kind("the name of an axis in quotes", lambda value: isinstance(value, str) and value.isidentifier())
NUMBER = Kind("a text in quotes or an integer", lambda value: isinstance(value, str) or _integer(value))
INTEGER = Kind("an integer", _integer)
TIMES = Kind(
    "an integer, 0 or more, or a formula in quotes", lambda v: (_integer(v) and v >= 0) or _texts(v), lambda v: [v]
)
COUNT = Kind("an integer, 1 or more", lambda value: _integer(value) and value > 0)
YES = Kind("true or false", lambda value: isinstance(value, bool))
FORMULA = Kind(
    'an integer or a formula in quotes, such as "tokens // 2"', lambda v: _integer(v) or _texts(v), lambda v: [v]
)
OUT = Kind(
    'a shape in quotes, such as "batch, tokens", or a list of shapes',
    lambda value: _texts(value) or (isinstance(value, list) and all(map(_texts, value))),
    _shape_formulas,
)
IN = Kind(
    'a table of shapes, such as { x = "batch, tokens" }',
    lambda value: isinstance(value, dict) and all(map(_texts, value.values())),
    lambda value: [formula for text in value.values() for formula in _shape_formulas(text)],
)
SIZES = Kind(
    "a table of integers, 0 or more, such as { n_mels = 128 }",
    lambda value: isinstance(value, dict) and all(_integer(size) and size >= 0 for size in value.values()),
)
TABLES = Kind("a list of tables", lambda value: isinstance(value, list) and all(isinstance(v, dict) for v in value))

INSIDE = {"call": CALL, "module": TEXT, "in": IN, "out": OUT, "times": TIMES}
TABLE_KEYS: dict[str, dict[str, Kind]] = {
    "step": {**INSIDE, "number": NUMBER, "title": TEXT, "tokens": FORMULA, "inside": TABLES},
    "quantity": {"name": TEXT, "formula": FORMULA, "equals": INTEGER},
    "rule": {"call": CALL, "over": NAME, "want": FORMULA, "axis": INTEGER, "upto": COUNT, "sizes": SIZES},
}
NEEDED = {"step": ("call",), "quantity": ("name", "formula", "equals"), "rule": ("call", "over", "want")}
TOP = {"title": TEXT, "complete": YES}
QUOTED = re.compile(r'"[^"]*"|\'[^\']*\'|#.*')
PLAIN = {"given": INTEGER, "fixed": FORMULA, "ledger": FORMULA}


class SpecFile:
    """The data of a specification and its text. Raises SpecError, with file and line, for what is no specification."""

    def __init__(self, data: Mapping[str, Any], name: str = "spec", text: str = "") -> None:
        self.data, self.name, self._lines = data, name, text.splitlines()
        for key in data:
            if key not in {*TOP, *PLAIN, *TABLE_KEYS}:
                raise self.error(unknown(key, {*TOP, *PLAIN, *TABLE_KEYS}, what="table or key"), key)
        for key, kind in TOP.items():
            if key in data and not kind.fits(data[key]):
                raise self.error(f"{key}: expected {kind.text}, got {data[key]!r}", "", key=key)
        for table, kind in PLAIN.items():
            self._plain(table, kind)
        for table in TABLE_KEYS:
            self._tables(table)
        for name in self.data.get("given", {}):
            if name in self.data.get("fixed", {}):
                raise self.error(f"duplicate name {name!r}: in [given] and in [fixed]", "fixed", key=name)
        if not data.get("step"):
            raise self.error("no [[step]]: every run would pass")

    @classmethod
    def load(cls, path: str | Path) -> "SpecFile":
        """Read a TOML file."""
        name = Path(path).name
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
            data = tomllib.loads(text)
            repr(data)  # every integer can be printed: Python refuses a hexadecimal one that is too long only here
        except tomllib.TOMLDecodeError as error:  # also a key or a table that is there twice
            line = re.search(r"at line (\d+)", str(error))
            raise SpecError(f"{name}{f':{line[1]}' if line else ''}: {error}") from error
        except UnicodeDecodeError as error:
            raise SpecError(f"{name}: not a UTF-8 text file ({error.reason})") from error
        except RecursionError as error:
            raise SpecError(f"{name}: expected tables and lists inside each other a few times, got too many") from error
        except ValueError as error:  # Python's limit of digits
            raise SpecError(f"{name}: expected integers up to 2**63, got one with thousands of digits") from error
        return cls(data, name, text)

    # ---- types and keys

    def _plain(self, table: str, kind: Kind) -> None:
        """[given], [fixed], [ledger]: names with values."""
        found = self.data.get(table, {})
        if not isinstance(found, dict):
            raise self.error(f"[{table}]: expected a table, got {found!r}", table)
        for name, value in found.items():
            if table != "ledger" and not name.isidentifier():
                raise self.error(f"[{table}] {name!r}: expected a name of letters, digits and _", table, key=name)
            limit = table == "ledger" and name == "of"
            if not (INTEGER if limit else kind).fits(value):
                expected = (INTEGER if limit else kind).text
                raise self.error(f"[{table}] {name}: expected {expected}, got {value!r}", table, key=name)

    def _tables(self, table: str) -> None:
        """[[step]], [[quantity]], [[rule]]."""
        found = self.data.get(table, [])
        if not TABLES.fits(found):
            raise self.error(f"expected [[{table}]] tables, got {found!r}"[:200], table)
        for place, each in enumerate(found):
            self._keys(table, place, each, TABLE_KEYS[table], NEEDED[table], f"[[{table}]]")
            for number, item in enumerate(each.get("inside", [])):
                self._keys(table, place, item, INSIDE, ("call",), "inside", number)

    def _keys(
        self, table: str, place: int, each: Mapping[str, Any], kinds: Mapping[str, Kind], needed: Iterable[str],
        where: str, item: int | None = None,
    ) -> None:  # fmt: skip
        """Nothing unknown, nothing missing, and each of its type."""
        for key, value in each.items():
            if key not in kinds:
                raise self.error(unknown(key, kinds, f" in {where}", "key"), table, place, key, item)
            if not kinds[key].fits(value):
                text = f"{where} {key}: expected {kinds[key].text}, got {value!r}"
                raise self.error(text, table, place, key, item)
        for key in needed:
            if key not in each:
                raise self.error(f"missing key {key!r} in {where}", table, place, "", item)

    def check_names(self, axes: Iterable[str]) -> None:
        """Every formula has only names that there are."""
        known = set(axes)
        for table, kinds in TABLE_KEYS.items():
            for place, each in enumerate(self.data.get(table, [])):
                more = (
                    {"i"} if table == "step" else {each["over"], *each.get("sizes", {})} if table == "rule" else set()
                )
                for key, kind in kinds.items():
                    if key in each:
                        self._names(kind, each[key], known | more, table, place, key)
                for number, item in enumerate(each.get("inside", [])):
                    for key, kind in INSIDE.items():
                        if key in item:
                            self._names(kind, item[key], known | more, table, place, key, number)
        for name, formula in self.data.get("ledger", {}).items():
            self._names(FORMULA, formula, known, "ledger", None, name)

    def _names(
        self, kind: Kind, value: Any, known: set[str], table: str, place: int | None, key: str, item: int | None = None
    ) -> None:
        try:
            for formula in kind.formulas(value):
                for name in sorted(names_in(formula) - known):
                    raise SpecError(unknown(name, known, f" in {formula!r}"))
        except SpecError as error:
            raise self.error(str(error), table, place, key, item) from error

    # ---- lines

    def line(self, table: str, place: int | None = None, key: str = "") -> int | None:
        """The line of a key in a table (the n-th, if there are several); of the table's head, if the key has none."""
        inside, count, head = not table, -1, None
        for number, line in enumerate(self._lines, 1):
            header = re.match(r'\s*(\[\[?)\s*"?([^\]"]+?)"?\s*\]', line)
            if header:
                count += header[2] == table
                inside = header[2] == table and (place is None or count == place)
                head = number if inside and head is None else head
            elif inside and key and re.match(rf"""\s*["']?{re.escape(key)}["']?\s*[.=]""", line):
                return number
        if head is None:  # not written with a head of its own: `given = { … }`
            pattern = re.compile(rf"""\s*\[*\s*["']?{re.escape(table or key)}\b""")
            head = next((number for number, line in enumerate(self._lines, 1) if pattern.match(line)), None)
        return head

    def item_line(self, place: int, item: int, key: str = "") -> int | None:
        """The line of an item in the `inside` of the n-th step."""
        before = sum(len(each.get("inside", [])) for each in self.data["step"][:place])
        start = self.line("step.inside", before + item, key)  # with a head of its own: [[step.inside]]
        if start is not None:
            return start
        start, depth, seen = self.line("step", place, "inside"), 0, -1
        for number, line in enumerate(self._lines[start - 1 :] if start else (), start or 0):
            for char in QUOTED.sub("", line):
                seen += char == "{" and depth == 0
                depth += (char == "{") - (char == "}")
                if seen == item:
                    return number
        return start

    def error(
        self, text: str, table: str = "", place: int | None = None, key: str = "", item: int | None = None
    ) -> SpecError:
        """The error with its line. `item`: of `inside`, if it is there."""
        line = self.line(table, place, key) if table or key else None
        if item is not None and place is not None:
            line = self.item_line(place, item, key)
        return SpecError(f"{self.name}{f':{line}' if line else ''}: {text}")

"""Axis names for models that nobody annotated, given from outside.

    trace(names={"LlamaAttention.forward": {"hidden_states": "batch tokens d_model"}})
    trace(names="llama.toml")

A key is a call as the table shows it, also with its module before it or with `*`; `return` names the result. A list
names the items of a tuple, a dict those of a mapping or dataclass. The names are judged like annotations.
"""

import difflib
import fnmatch
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

from tinyomni.tracing import annotations
from tinyomni.tracing.annotations import Fields

Given = str | Path | Mapping[str, Mapping[str, Any]]


class Names:
    """Names for calls; which of them were used."""

    def __init__(self, given: Given | None) -> None:
        where = "names"
        if isinstance(given, (str, Path)):
            where, given = Path(given).name, _load(Path(given))
        if not isinstance(given or {}, Mapping):
            raise ValueError(f"{where}: expected a table of calls, or the path of a TOML file, got {given!r}")
        self._hints = {call: _hints(f"{where}: {call}", axes) for call, axes in (given or {}).items()}
        self._used: set[str] = set()
        self._unknown: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._hints)

    def find(self, module: str, call: str) -> dict[str, Any]:
        """The annotations for a call; the first key that fits it."""
        for key, hints in self._hints.items():
            if key in (call, f"{module}.{call}") or ("*" in key and fnmatch.fnmatchcase(call, key)):
                self._used.add(key)
                return hints
        return {}

    def check(self, call: str, hints: Iterable[str], parameters: Iterable[str]) -> None:
        """Remember a name of a parameter that the call does not have."""
        for name in set(hints) - set(parameters) - {"return"}:
            self._unknown[f"{call}: {name}"] = _meant(name, parameters)

    def notes(self, calls: Iterable[str]) -> list[str]:
        """What of the names was of no use."""
        known = list(dict.fromkeys(calls))
        unused = [f"names for {key!r} were not used: it was not called{_meant(key, known)}" for key in self._hints
                  if key not in self._used]  # fmt: skip
        return unused + [f"names: {name!r} is no parameter{meant}" for name, meant in self._unknown.items()]


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _load(path: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: expected names in TOML, got {error}") from error
    return dict(_calls("", found))


def _calls(prefix: str, tables: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """TOML reads [Model.forward] without quotes as a table in a table."""
    for name, table in tables.items():
        nested = isinstance(table, Mapping) and table and all(isinstance(each, Mapping) for each in table.values())
        if nested and "return" not in table:
            yield from _calls(f"{prefix}{name}.", table)
        else:
            yield prefix + name, table


def _hints(where: str, axes: Any) -> dict[str, Any]:
    if not isinstance(axes, Mapping):
        raise ValueError(f"{where}: expected a table of parameters and their axes, got {axes!r}")
    return {str(name): _hint(f"{where}.{name}", text) for name, text in axes.items()}


def _hint(where: str, axes: Any) -> Any:
    if axes is None or axes == "":
        return Any
    if isinstance(axes, Mapping):
        return Fields(tuple((str(name), _hint(f"{where}.{name}", each)) for name, each in axes.items()))
    if isinstance(axes, (list, tuple)):
        return tuple[tuple(_hint(where, each) for each in axes)]  # type: ignore[misc]
    expected = f'{where}: expected axes such as "batch tokens d_model", got {axes!r}'
    if not isinstance(axes, str):
        raise ValueError(expected)
    try:
        hint = Shaped[Tensor, axes]
        _read(hint)
    except (ValueError, TypeError, SyntaxError) as error:
        why = error.msg if isinstance(error, SyntaxError) else error
        raise ValueError(f"{expected}: {why}") from error
    return hint


def _read(hint: Any) -> None:
    """Read the formulas of an annotation, as jaxtyping does no sooner than in the first call. Raises SyntaxError."""
    annotations.braces({"": hint})
    if set("{}") & set(annotations.BRACES.sub("", hint.dim_str)):
        raise SyntaxError("unmatched brace")
    for word in annotations.words(hint.dim_str):
        if word.formula:
            compile(word.formula, "<axes>", "eval")

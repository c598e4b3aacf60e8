"""Mistakes that keep a run going: what a person should look at, though nothing has failed.

Found in the records of a run: a column against a row in a loss, a mask of another length than the keys, axes of equal
size that could be exchanged. These are hints, never errors.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from tinyomni.tracing.records import Run, Value

ELEMENTWISE = {"sub", "add", "mul", "div", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "eq", "pow"}
TOKENS = ("input_ids", "inputs_embeds", "hidden_states", "decoder_input_ids")


def suspicions(run: Run) -> list[str]:
    """All of them, each once."""
    found = itertools.chain(columns_against_rows(run), masks(run), equal_axes(run))
    return list(dict.fromkeys(found))


def columns_against_rows(run: Run) -> Iterator[str]:
    """(N, 1) against (N,) gives (N, N): in a loss, every prediction against every label."""
    for record in run.steps:
        if (record.op and record.call in ELEMENTWISE) or record.call.endswith("Loss.forward"):
            shapes = [value.shape for value in record.inputs if value.dtype][:2]
            if len(shapes) == 2 and is_column_against_row(*shapes):
                yield (
                    f"{record.call} at {record.file}:{record.line} got {shapes[0]} and {shapes[1]}: "
                    "each row against each other one. `.squeeze(-1)` of the column?"
                )


def is_column_against_row(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Is one (N, 1) and the other (N,), in either order?"""
    column, row = (one, other) if len(one) == 2 else (other, one)
    return len(column) == 2 and len(row) == 1 and column[1] == 1 and column[0] == row[0] != 1


def masks(run: Run) -> Iterator[str]:
    """A padding mask that is not as long as the keys: some models cut it, and some spread it."""
    for record in run.steps:
        mask = next((value for value in record.inputs if value.name == "attention_mask"), None)
        if mask is None or len(mask.axes) != 2:
            continue
        given = {value.name: value for value in record.inputs if value.dtype}
        tokens = next((given[name] for name in TOKENS if name in given), None)
        if tokens is None or len(tokens.axes) < 2:
            continue
        keys = _int(tokens.shape[1]) + (record.cache or 0)
        if mask.shape[1] != keys:
            cached = f" and {record.cache} in the cache" if record.cache else ""
            yield (
                f"{record.call}: attention_mask {mask.shape} has {mask.shape[1]} positions, but there are {keys} keys: "
                f"{tokens.shape[1]} in {tokens.name}{cached}"
            )


def equal_axes(run: Run) -> Iterator[str]:
    """Two names whose sizes were equal in every call: exchanged axes would not be noticed."""
    calls: dict[tuple[str, str], list[Value]] = {}
    for record in run.steps:
        for value in record.inputs if not record.op else ():
            calls.setdefault((record.call, value.name), []).append(value)
    for (call, name), values in calls.items():
        axes = values[0].axes
        for a, b in itertools.combinations(range(len(axes)), 2):
            names = (axes[a].name, axes[b].name)
            if not all(names) or "*" in "".join(names) or names[0] == names[1]:
                continue
            sizes = [(value.shape[a], value.shape[b]) for value in values if len(value.axes) == len(axes)]
            if all(one == other != 1 for one, other in sizes):
                yield (
                    f"{call}: {names[0]} and {names[1]} of `{name}` were equal ({sizes[0][0]}) in every call, "
                    f"so that exchanged axes would not be noticed. Try sizes that differ: `distinct_sizes({call}, …)`"
                )


def _int(size: Any) -> int:
    return size if isinstance(size, int) else -1

"""The source of a function with the shapes behind its lines, and the axis names that flow through operations."""

import math
import random
import re
import sys
from typing import Any

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinyomni.tracing import ShapeError, annotate, trace
from tinyomni.tracing.flow import NameFlow
from tinyomni.tracing.operations import Operations


def attend(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch heads keys head_dim"],
    v: Float[Tensor, "batch heads keys head_dim"],
    *,
    causal: bool = False,
) -> Float[Tensor, "batch heads queries head_dim"]:
    """Softmax attention.

    It has a docstring, which is left out.
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if causal:
        mask = torch.ones(scores.shape[-2:]).tril().bool()
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(dim=-1)
    return weights @ v


def notes(shown: Any) -> dict[str, str]:
    """What stands behind each line of code."""
    found = (line.rpartition("  # ") for line in str(shown).splitlines()[1:] if "  # " in line)
    return {code.strip(): note for code, _, note in found}


def test_names_stand_behind_each_line() -> None:
    q, k = torch.randn(1, 4, 6, 8), torch.randn(1, 4, 9, 8)
    shown = annotate(attend)(q, k, k)
    torch.testing.assert_close(shown.result, attend(q, k, k))
    found = notes(shown)
    assert found["scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])"] == "batch 1, heads 4, queries 6, keys 9"
    assert found["weights = scores.softmax(dim=-1)"] == "batch 1, heads 4, queries 6, keys 9"
    assert found["return weights @ v"] == "batch 1, heads 4, queries 6, head_dim 8"
    assert found['k: Float[Tensor, "batch heads keys head_dim"],'] == "batch 1, heads 4, keys 9, head_dim 8"
    assert found["causal: bool = False,"] == "causal = False"
    assert "docstring" not in str(shown) and not any("mask" in code for code in found)  # that line did not run
    html = shown._repr_html_()
    assert "queries 6, keys 9" in html and html.count("color:#888") == 2 and "<script" not in html
    assert "mask = torch.ones" in notes(annotate(attend)(q, q, q, causal=True)).__str__()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(5, 5) for _ in range(4)])
        self.table = nn.Embedding(9, 5)

    def forward(self, ids: Int[Tensor, "batch words"]) -> Float[Tensor, "batch words width"]:
        x, n = self.table(ids), 0
        for place, layer in enumerate(self.layers):
            x = layer(x)
            n += place
        parts = (
            x[:, :1],
            x[:, 1:],
        )
        last = torch.cat(
            parts,
            dim=1,
        )
        self.state = last.flatten(1)
        if (total := last.sum(dim=1)).ndim == 2:
            del total
        return last


def test_loops_show_first_and_last_and_statements_may_have_many_lines() -> None:
    found = notes(annotate(Net())(torch.zeros(2, 3, dtype=torch.long)))
    assert found['def forward(self, ids: Int[Tensor, "batch words"]) -> Float[Tensor, "batch words width"]:'] == (
        "batch 2, words 3 int64"
    )
    assert found["x, n = self.table(ids), 0"] == "x: batch 2, words 3, 5; n = 0"
    assert found["for place, layer in enumerate(self.layers):"] == "place = 0  (first)  …  place = 3  (last of 4)"
    assert found["x = layer(x)"] == "batch 2, words 3, 5  (each of 4)"
    assert found["n += place"] == "n = 0  (first)  …  n = 6  (last of 4)"
    assert found["parts = ("] == "parts.0: batch 2, words 1, 5; parts.1: batch 2, words 2, 5"
    assert found["last = torch.cat("] == "batch 2, words 3, 5"
    assert found["if (total := last.sum(dim=1)).ndim == 2:"] == "batch 2, 5"
    assert found["self.state = last.flatten(1)"] == "batch 2, 15"
    assert found["return last"] == "batch 2, words 3, width 5"


def test_a_trace_shows_the_first_call_of_each_function() -> None:
    with trace("run", lines=True) as t:
        q, k = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4)
        attend(q, k, k)
        attend(q[:, :, :1], k, k)
        Net()(torch.zeros(2, 3, dtype=torch.long))
    assert [each.call for each in t.lines] == ["attend", "Net.forward"]
    assert "batch 1, heads 2, queries 3, keys 3" in str(t) and "queries 3" in t._repr_html_()
    assert "parts" not in t.lines[0].__str__() and len(t.steps) == 3
    with trace(lines=True) as t:
        attend(k, k, k)  # one tensor under two names: its rows are neither `queries` nor `keys`
    assert "# batch 1, heads 2, 3, 3\n" in str(t)


def test_the_result_is_the_same_and_nothing_is_left_behind() -> None:
    ids, net = torch.zeros(2, 3, dtype=torch.long), Net()
    before = sys.gettrace()
    assert torch.equal(annotate(net)(ids).result, net(ids)) and sys.gettrace() is before
    with pytest.raises(ZeroDivisionError), trace(lines=True):
        _ = 1 / 0
    assert sys.gettrace() is before
    with pytest.raises(TypeError, match="expected a Python function or a module, got builtin"):
        annotate(torch.sum)


# ---- annotations of local variables ---------------------------------------------------------------------------------


def local(x: Float[Tensor, "batch n"], width: int) -> Float[Tensor, "batch n"]:
    doubled: Float[Tensor, "batch n"] = x * 2
    joined: Float[Tensor, "batch n+n"] = torch.cat([x, doubled], dim=1)
    wide: Float[Tensor, "batch w"] = joined[:, :width]
    again: Float[Tensor, "batch w"] = joined[:, :3]
    return x + wide.sum() + again.sum()


def test_a_function_that_looks_at_its_own_variables_runs_as_always() -> None:
    def settings(x: Float[Tensor, "n"], depth: int = 2) -> list[str]:
        found = []
        for name in locals():
            again = found
            again.append(name)
        return found[:2]

    with trace(lines=True) as t:
        assert settings(torch.zeros(2)) == ["x", "depth"]
    assert len(t.steps) == 1 and any("its lines are not shown" in note for note in t.notes)


def test_annotations_of_local_variables_are_checked() -> None:
    with trace(lines=True, strict=True) as t:
        local(torch.zeros(2, 4), 3)
    assert "batch 2, n+n 8" in str(t.lines[0]) and not t.mismatches
    words = r"local: expected `again` \(batch, w\) Float.* w must be 5 as in `wide`, got 3"
    with pytest.raises(ShapeError, match=words), trace(lines=True, strict=True) as t:
        local(torch.zeros(2, 4), 5)
    assert t.mismatches[0].argument == "again" and re.search(r"assigned at test_lines.py:\d+", t.problem)
    with trace(strict=True) as t:  # only where lines are followed
        local(torch.zeros(2, 4), 5)


# ---- names that flow ------------------------------------------------------------------------------------------------

SIZES = {"a": 2, "b": 3, "c": 5, "d": 7}


def random_step(rng: random.Random, x: Tensor) -> Tensor:
    """Some operation that works on any tensor."""
    n = x.dim()
    dim, other = rng.randrange(n), rng.randrange(n)
    steps = [
        lambda: x.transpose(dim, other),
        lambda: x.permute(*rng.sample(range(n), n)),
        lambda: x.unsqueeze(dim),
        lambda: x.flatten(dim, min(dim + 1, n - 1)),
        lambda: x.softmax(dim=dim),
        lambda: x.sum(dim=dim) if n > 2 else x,
        lambda: x.mean(dim, keepdim=True),
        lambda: x + x.sum(dim=dim, keepdim=True),
        lambda: x @ x.transpose(-1, -2) if n > 1 else x,
        lambda: torch.cat([x, x], dim=dim),
        lambda: torch.stack([x, x], dim=dim),
        lambda: x[..., :1],
        lambda: x[:, None] if n > 1 else x,
        lambda: x.reshape(*x.shape[:-1], x.shape[-1], 1),
        lambda: x.flatten().view(x.shape),
        lambda: x.masked_fill(x > 0, 1.0),
        lambda: torch.where(x > 0, x, x.amax(dim=dim, keepdim=True)),
        lambda: x.unbind(dim)[0] if n > 2 else x,
        lambda: x.chunk(2, dim=dim)[0],
        lambda: x.expand(2, *x.shape),
        lambda: torch.einsum("...i->...i", x) if n < 3 else torch.einsum("xyz...->yxz...", x),
        lambda: torch.einsum("xyz->zx", x) if n == 3 else x,
        lambda: x.mT.contiguous() if n > 1 else x,
        lambda: x.view(-1, x.shape[-1]) if x.is_contiguous() else x.T if n == 2 else x,
    ]
    return rng.choice(steps)()


@pytest.mark.filterwarnings("ignore:The use of `x.T`:UserWarning")
def test_a_name_never_stands_at_another_axis() -> None:
    """The axes have different prime sizes, so that a name at a wrong place is seen. A slice may be shorter."""
    rng, named, total = random.Random(1), 0, 0
    for _ in range(1500):
        flow = NameFlow()

        def listen(frame: Any, name: str, args: Any, kwargs: Any, result: Any, _: Any, flow: NameFlow = flow) -> None:
            with torch._C.DisableTorchFunction():
                flow.operation(name, args, kwargs, result)

        names = rng.sample(sorted(SIZES), rng.randint(1, 4))
        x = torch.randn([SIZES[name] for name in names])
        flow.give(x, tuple(names))
        with Operations(listen, lambda *_: None):
            for _ in range(rng.randint(1, 6)):
                if x.numel() < 3000:
                    x = random_step(rng, x)
        for name, size in zip(flow.of(x), x.shape, strict=True):
            total += 1
            if name:
                named += 1
                expected = math.prod(SIZES[part] for part in name.split("*"))
                repeats = [expected * 2**k for k in range(7)]  # joined with itself
                assert size in repeats or size < expected, (name, size)
    assert named > total / 4  # and often there is one


def test_two_axes_of_one_size_are_told_apart() -> None:
    flow = NameFlow()
    x, y = torch.zeros(4, 4), torch.zeros(4, 4)
    flow.give(x, ("rows", "columns"))
    flow.give(y, ("columns", "rows"))
    for name, args, result, expected in (
        ("transpose", (x, 0, 1), x.T, ("columns", "rows")),
        ("add", (x, y), x + y, ("", "")),
        ("matmul", (x, y), x @ y, ("rows", "rows")),
        ("view", (x, 2, 8), x.view(2, 8), ("", "")),
        ("cat", ([x, y], 0), torch.cat([x, y]), ("rows+columns", "")),
        ("linear", (x, y), x @ y, ("rows", "")),
        ("something", (x,), x.clone(), ("", "")),  # no rule, and equal sizes: it could have been transposed
    ):
        flow.operation(name, args, {}, result)
        assert flow.of(result) == expected, name

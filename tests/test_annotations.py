"""What the tracer reads from annotations, against shapes built from known names."""

import random

import pytest
import torch
from jaxtyping import AbstractDtype, Bool, Float, Int, Shaped
from torch import Tensor

from tinyomni.tracing import trace
from tinyomni.tracing.annotations import axes, choose, mismatched, show, words

WORDS = ["batch", "tokens", "d_model", "heads", "frames"]
DTYPES = {Float: torch.float32, Int: torch.int64, Bool: torch.bool, Shaped: torch.float16}


def random_pair(rng: random.Random, sizes: dict[str, int]) -> tuple[type, list[tuple[str, int]]]:
    """An annotation, and the axes (name or formula, size) that a tensor for it has.

    `sizes` are those of names that were used before in the same call.
    """
    dims, built, variadic = [], [], False
    for _ in range(rng.randint(0, 4)):
        kind, size = (
            rng.choice(["name", "fixed", "labelled", "any", "dots", "star", "hash", "formula"]),
            rng.randint(1, 6),
        )
        name = rng.choice(WORDS)
        if kind in ("dots", "star") and variadic:
            kind = "any"
        if kind == "name":
            size = sizes.setdefault(name, size)
            dims.append(name)
            built.append((name, size))
        elif kind == "fixed":
            dims.append(str(size))
            built.append(("", size))
        elif kind == "labelled":
            dims.append(f"{name}={size}")
            built.append((name, size))
        elif kind == "any":
            dims.append(rng.choice(["_", f"_{name}"]))
            built.append(("" if dims[-1] == "_" else name, size))
        elif kind in ("dots", "star"):
            variadic = True
            word = f"lead{rng.randint(0, 9999)}"
            dims.append("..." if kind == "dots" else f"*{word}")
            built += [("" if kind == "dots" else f"*{word}", rng.randint(1, 6)) for _ in range(rng.randint(0, 3))]
        elif kind == "hash":
            size = rng.choice([1, sizes[name]]) if name in sizes else 1
            dims.append(f"#{name}")
            built.append((name, size))
        elif kind == "formula" and sizes:
            base = rng.choice(sorted(sizes))
            text, value = rng.choice([(f"{base}+1", sizes[base] + 1), (f"{base}*2", sizes[base] * 2),
                                      (f"({base}+3)//4", (sizes[base] + 3) // 4)])  # fmt: skip
            dims.append(text)
            built.append((text, value))
    array = rng.choice(list(DTYPES))
    return array[Tensor, " ".join(dims)], built


def test_ten_thousand_random_annotations_show_the_names_and_sizes_that_the_shape_was_built_from() -> None:
    rng = random.Random(0)
    wrong = 0
    for _ in range(10_000):
        sizes = {name: rng.randint(2, 6) for name in rng.sample(WORDS, rng.randint(1, 3))}
        known = dict(sizes)
        hint, built = random_pair(rng, sizes)
        broken = rng.random() < 0.7
        bound = [place for place, (name, _) in enumerate(built) if name in known]
        shape = [size for _, size in built]
        labelled = {word.name: word.fixed for word in words(hint.dim_str) if word.fixed is not None}
        loose = {word.name for word in words(hint.dim_str) if word.broadcast or f"_{word.name}" in hint.dim_str.split()}
        bound = [place for place in bound if built[place][0] not in labelled and built[place][0] not in loose]
        if broken and bound:
            shape[rng.choice(bound)] += 10
        tensor = torch.zeros(shape, dtype=DTYPES[hint.dtype])
        shown = axes(hint, tuple(shape))
        assert [(axis.name or axis.formula, axis.size) for axis in shown] == [
            (name, size) for (name, _), size in zip(built, shape, strict=True)
        ], hint.dim_str
        # the names that were known before come as the first argument of the call
        before = " ".join(known)
        verdict = mismatched(
            {"known": torch.zeros(tuple(known.values())), "x": tensor}, {"known": Float[Tensor, before], "x": hint}
        )
        assert verdict == ("x" if broken and bound else None), (before, known, hint.dim_str, shape)
        wrong += broken and bool(bound)
    assert wrong > 300


@pytest.mark.parametrize(
    ("dims", "read"),
    [
        ("batch tokens", ["batch", "tokens"]),
        ("*batch n", ["*batch", "n"]),
        ("... #a _ b=3 4", ["", "a", "", "b", ""]),
        ("{n} n+1 frames//4 {self.hop}*n", ["n", "n+1", "frames//4", "self.hop*n"]),
        ("", []),
    ],
)
def test_every_form_is_read(dims: str, read: list[str]) -> None:
    found = words(dims)
    assert [("*" if word.many and word.name else "") + (word.name or word.formula) for word in found] == read


def test_of_a_union_the_annotation_that_suits_is_shown() -> None:
    hint = Float[Tensor, "batch d_model"] | Int[Tensor, "batch tokens"] | None
    assert choose(hint, torch.zeros(2, 3, dtype=torch.long)).dim_str == "batch tokens"
    assert choose(hint, torch.zeros(2, 3)).dim_str == "batch d_model"
    assert show(hint) == "(batch, d_model) Float | (batch, tokens) Int | None"
    assert mismatched({"x": torch.zeros(2, 3, dtype=torch.bool)}, {"x": hint}) == "x"
    assert mismatched({"x": None}, {"x": hint}) is None


def test_braces_that_cannot_be_filled_are_said_and_stop_nothing() -> None:
    def f(x: Float[Tensor, "n//{missing.hop}"]) -> Float[Tensor, "n"]:
        return x

    with trace() as seen:
        f(torch.zeros(3))
    assert seen.steps[0].status == "ok" and "missing" in str(seen)


def test_somebodys_own_dtype_is_understood() -> None:
    class Half(AbstractDtype):
        dtypes = ["float16", "bfloat16"]  # noqa: RUF012

    def f(x: Half[Tensor, "a"]) -> Half[Tensor, "a"]:
        return x

    with trace() as seen:
        f(torch.zeros(3, dtype=torch.bfloat16))
    assert seen.steps[0].ok and seen.steps[0].inputs[0].axes[0].name == "a"

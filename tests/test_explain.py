"""Errors that teach: which call, expected, got, where from, and the line or layer to look at."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from jaxtyping import Float, Int, TypeCheckError
from torch import Tensor, nn

from tinyomni.tracing import ShapeError, Trace, annotate, mismatch, trace
from tinyomni.tracing.checks import checked
from tinyomni.tracing.values import annotated_tensors


class Eye(nn.Module):
    """A picture's encoder of width 8."""

    def forward(self, img: Float[Tensor, "batch height"]) -> Float[Tensor, "batch n_patches vision_dim"]:
        return img[:, :4, None].expand(-1, -1, 8) * 1.0


class Model(nn.Module):
    """Joins an eye of width 8 and text of width 16; forgets the projection when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.eye, self.proj_v, self.table = Eye(), nn.Linear(8, 16), nn.Embedding(5, 16)

    def embed(self, ids: Int[Tensor, "batch text_tokens"]) -> Float[Tensor, "batch text_tokens d_model"]:
        return self.table(ids)

    def join(
        self, image: Float[Tensor, "batch n d_model"], text: Float[Tensor, "batch t d_model"]
    ) -> Float[Tensor, "batch n+t d_model"]:
        return torch.cat([image, text], dim=1)

    def forward(
        self, img: Float[Tensor, "batch height"], ids: Int[Tensor, "batch text_tokens"], forget: bool = False
    ) -> Float[Tensor, "batch tokens d_model"]:
        image = self.eye(img)
        return self.join(image if forget else self.proj_v(image), self.embed(ids))


def fail(run: object, glossary: dict[str, str] | None = None, title: str = "run") -> tuple[str, Trace, BaseException]:
    with pytest.raises(TypeCheckError) as caught, trace(title, glossary, strict=True) as seen:
        run()  # type: ignore[operator]
    text = str(caught.value)
    assert len(text) < 2000 and text.count("\n") <= 16 and "tensor(" not in text
    return text, seen, caught.value


def test_a_forgotten_projection_is_named_with_where_the_tensor_came_from() -> None:
    model = Model()
    text, seen, error = fail(lambda: model(torch.ones(1, 6), torch.zeros(1, 3, dtype=torch.long), forget=True))
    assert text.startswith("run: Model.join: expected `image` (batch, n, d_model) Float, got (1, 4, 8) float32: ")
    assert "d_model must be 16 as in `text`, got 8." in text and "Thinker" not in text  # whose glossary is not ours
    assert "Did it go through `proj_v` (8 → 16)?" in text
    assert "`image` came from Eye.forward (eye), " in text and "called at test_explain.py" in text.replace("tests/", "")
    assert isinstance(error.__cause__, RuntimeError)  # torch.cat's own words stay in the chain
    assert [r.call for r in seen.steps] == ["Model.forward", "Eye.forward", "Model.embed", "Model.join"]
    assert "image: expected (batch, n, d_model) Float, got (1, 4, 8) float32" in seen.steps[-1].status
    assert "Model.join" in str(seen) and "✘" in str(seen)


def test_your_own_glossary_explains_your_own_axes() -> None:
    def pair(a: Float[Tensor, "genes"], b: Float[Tensor, "genes"]) -> Float[Tensor, "genes"]:
        return a

    text, *_ = fail(lambda: pair(torch.ones(3), torch.ones(5)), {"genes": "columns of the table"})
    assert "genes (columns of the table) must be 3 as in `a`, got 5" in text


def reads(
    ids: Int[Tensor, "batch tokens"] | None = None, *, vectors: Float[Tensor, "batch tokens 4"] | None = None
) -> None:
    """Ids, or what they stand for."""


def explain(values: dict[str, Tensor], hints: dict[str, object]) -> mismatch.Mismatch:
    bound = [each for name, value in values.items() for each in annotated_tensors(name, value, hints[name])]
    return mismatch.explain("reads", "ids", values["ids"], bound, hints)


def test_what_fits_another_argument_is_sent_there() -> None:
    hints = get_type_hints(reads, include_extras=True)
    for value, words in (
        (torch.ones(2, 3, 4), "Is it meant for `vectors=`?"),
        (torch.ones(2, 3, 4).long(), "expected 2 dims, got 3."),  # the dtype is right: only an axis is too many
        (torch.ones(2, 3, 4, 5), "expected 2 dims, got 4."),
    ):
        found = explain({"ids": value}, hints)
        assert found.argument == "ids" and words in str(found)
    given = {"ids": torch.ones(2, 3, 4), "vectors": torch.ones(2, 3, 4)}
    assert "meant for" not in str(explain(given, hints))


def takes(
    x: Float[Tensor, "batch tokens 4"], ids: Int[Tensor, "batch tokens"] | None = None
) -> Float[Tensor, "batch tokens"]:
    return torch.zeros(x.shape[0], x.shape[1])


@pytest.mark.parametrize(
    ("x", "ids", "words"),
    [
        (torch.ones(3, 4), None, r"expected 3 dims, got 2. Is the batch axis missing\? `x.unsqueeze\(0\)`"),
        (torch.ones(1, 2, 3, 4), None, r"expected 3 dims, got 4. `x.squeeze\(0\)`"),
        (torch.ones(2, 2, 3, 4), None, r"One at a time: `x\[0\]`"),
        (torch.ones(2, 4, 3), None, r"axis 2 must be 4, got 3. .*`x.transpose\(1, 2\)`"),
        (torch.ones(4, 2, 3), None, r"another order\? `x.transpose\(0, 2\)`"),
        (torch.ones(2, 3, 5), None, r"must be 4, got 5\. One too many\.\n"),
        (torch.ones(2, 3, 3), None, r"must be 4, got 3\. One too few\.\n"),
        (torch.ones(2, 3, 4).long(), None, r"expected dtype Float, got int64. `x.float\(\)`"),
        (torch.ones(2, 3, 4), torch.ones(2, 3), r"expected dtype Int, got float32. `ids.long\(\)`"),
        (torch.ones(2, 3, 4), torch.ones(2, 9).long(), "tokens must be 3 as in `x`, got 9"),
        (torch.ones(2, 3, 4), torch.ones(3, 2).long(), r"`ids.transpose\(0, 1\)`"),
        ([1.0], None, "expected `x` .*, got list"),
    ],
)
def test_arguments(x: Tensor, ids: Tensor | None, words: str) -> None:
    def call() -> None:
        if isinstance(x, Tensor):
            takes(x, ids)
        else:
            wrong_kind(x)

    def wrong_kind(x: Float[Tensor, "a"]) -> Float[Tensor, "a"]:
        return torch.zeros(1)

    text, *_ = fail(call)
    assert re.search(words, text), text


def loss(
    pred: Float[Tensor, "batch"],
    target: Float[Tensor, "batch"] | None = None,
    wide: Float[Tensor, "batch 6"] | None = None,
) -> Float[Tensor, ""]:
    return pred.sum()


def put_together(
    image: Float[Tensor, "batch n d_model"], text: Float[Tensor, "batch t d_model"], dim: int
) -> Float[Tensor, "batch n+t d_model"]:
    return torch.cat([image, text], dim=dim)


def embed(x: Float[Tensor, "batch text_tokens d_model"], y: Float[Tensor, "batch text_tokens d_model"]) -> None:
    return None


@pytest.mark.parametrize(
    ("call", "words", "never"),
    [
        (lambda: loss(torch.ones(16, 1)), r"`pred.squeeze\(-1\)`", r"pred\[0\]"),
        (lambda: loss(torch.ones(9), torch.ones(9, 1)), r"`target.squeeze\(-1\)`", r"target\[0\]"),
        (lambda: loss(torch.ones(1, 7)), r"`pred.squeeze\(0\)`", r"pred\[0\]"),
        (lambda: loss(torch.ones(16, 10)), r"expected 1 dim, got 2\.\n", "squeeze"),
        (lambda: loss(torch.ones(5), None, torch.ones(3, 5, 6)), r"One at a time: `wide\[0\]`", "squeeze"),
        (lambda: put_together(torch.ones(2, 3, 8), torch.ones(2, 3, 8), 0), r"`torch.cat\(…, dim=1\)`, not 0", "CLS"),
        (lambda: put_together(torch.ones(2, 5, 8), torch.ones(2, 5, 8), 2), r"`torch.cat\(…, dim=1\)`, not 2", "CLS"),
        (lambda: embed(torch.ones(2, 3, 64), torch.ones(2, 3, 65)), r"got 65. One too many\.\n", "CLS|BOS"),
        (
            lambda: embed(torch.ones(2, 3, 64), torch.ones(2, 4, 64)),
            "text_tokens must be 3 .*, got 4. .*CLS",
            "nothing",
        ),
    ],
)
def test_fixes_that_fit_the_axis(call: object, words: str, never: str) -> None:
    text, *_ = fail(call)
    assert re.search(words, text) and not re.search(never, text.split("the last calls")[0]), text


def test_an_argument_that_is_no_tensor_is_not_taken_for_the_result() -> None:
    @checked
    def cool(logits: Float[Tensor, "vocab"], temperature: float = 1.0, *more: int) -> Float[Tensor, "vocab"]:
        return logits[:-1] if temperature == 7 else logits / temperature

    assert cool(torch.ones(3), 2, 5, 6).shape == (3,)
    with pytest.raises(ShapeError, match=r"^[\w.<>]*cool: expected `temperature` float, got 'hot' \(str\)\.\n"):
        cool(torch.ones(3), "hot")
    with pytest.raises(ShapeError, match="cool: expected the result"):
        cool(torch.ones(3), 7)


def test_results_are_explained_at_the_line_that_returned_them() -> None:
    def shorter(x: Float[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens"]:
        return x[:, 1:]

    text, seen, _ = fail(lambda: shorter(torch.ones(2, 5)))
    assert "shorter: expected the result (batch, tokens) Float, got (2, 4) float32: " in text
    assert "must be 5 as in `x`, got 4. One too few" in text and "returned at " in text
    assert seen.steps[0].status.startswith("return: ")


def test_only_the_first_problem_is_raised_and_all_are_marked() -> None:
    def same(a: Float[Tensor, "n"], b: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        return a

    def both() -> None:
        same(torch.ones(1), torch.ones(2))
        same(torch.ones(3), torch.ones(3))
        same(torch.ones(3), torch.ones(4))

    text, seen, _ = fail(both)
    assert "n must be 1 as in `a`, got 2" in text and "must be 3" not in text
    assert [record.ok for record in seen.steps] == [False, True, False]


def four(x: Float[Tensor, "b 4"]) -> Tensor:
    return x


def add_three(x: Tensor) -> Tensor:
    return x + torch.zeros(3)


def test_an_error_after_a_mismatch_is_told_with_its_own_line() -> None:
    text, *_ = fail(lambda: (four(torch.zeros(3, 5)), add_three(torch.zeros(2))))
    assert text.startswith("run: four: expected `x` (b, 4) Float, got (3, 5) float32")
    assert re.search(r"The run went on, and ended at test_explain.py:\d+, in add_three\n +`return x \+ torch", text), (
        text
    )

    def inside(x: Float[Tensor, "b 4"]) -> Tensor:
        return x @ x

    text, *_ = fail(lambda: inside(torch.zeros(3, 5)))
    assert "torch says: mat1 and mat2" in text and "It ended at " in text and "went on" not in text


class Four(nn.Module):
    def forward(self, x: Float[Tensor, "b 4"]) -> Tensor:
        return x @ x


@pytest.mark.parametrize("called", [four, Four()])
def test_annotate_names_the_readers_line(called: Callable[..., object]) -> None:
    name = "four" if called is four else "Four.forward"
    with pytest.raises(TypeCheckError) as caught:
        annotate(called)(torch.zeros(3, 5))
    text = str(caught.value)
    assert text.startswith(f"annotate: {name}: expected `x`") and "recorder.py" not in text
    assert len(re.findall(r"called at (?:tests/)?test_explain.py:\d+", text)) == 2, text


# ---- errors that torch raises, in models without annotations --------------------------------------------------------


class Plain(nn.Module):
    """Nobody annotated this one."""

    def __init__(self, layer: nn.Module, twist: str = "") -> None:
        super().__init__()
        self.first, self.layer, self.twist = nn.Identity(), layer, twist

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.layer(x)


@pytest.mark.parametrize(
    ("layer", "x", "words"),
    [
        (
            nn.Linear(12, 3),
            torch.ones(2, 3, 4),
            r"`layer` is a Linear and takes 12 features.*3 × 4 = 12: `x.flatten\(1\)`",
        ),
        (nn.Linear(3, 3), torch.ones(2, 3, 4), r"Axis 1 has 3: `x.transpose\(1, -1\)`"),
        (nn.Linear(7, 3), torch.ones(2, 4), r"should give 7, or this one should be Linear\(4, …\)"),
        (nn.Conv2d(3, 8, 3), torch.ones(2, 32, 32, 3), r"channels last\? `x.permute\(0, 3, 1, 2\)`"),
        (nn.Conv1d(3, 8, 3), torch.ones(2, 5, 32), "The channel axis has 5"),
        (nn.Conv2d(1, 8, 3), torch.ones(28, 28), r"4 dims.*`x.unsqueeze\(1\)`"),
        (nn.LayerNorm(6), torch.ones(2, 5), r"normalizes the last axes \(6,\)"),
        (nn.BatchNorm1d(6), torch.ones(2, 5), "takes 6 channels on axis 1"),
        (nn.Embedding(9, 2), torch.ones(2, 5), r"looks up int64; got \(2, 5\) float32"),
        (nn.Embedding(9, 2), torch.full((2, 5), 9), "an id in it is outside 0 … 8"),
        (nn.GRU(6, 2), torch.ones(2, 5, 3), "takes 6 features on the last axis"),
    ],
)
def test_the_layer_is_named_with_its_place_and_a_fix(layer: nn.Module, x: Tensor, words: str) -> None:
    model = Plain(layer)
    text, seen, error = fail(lambda: model(x))
    assert re.search(words, text, re.DOTALL), text
    assert "in Plain.forward" in text and "`return self.layer(x)`, with x " in text
    assert isinstance(error.__cause__, (RuntimeError, IndexError, ValueError))
    assert [record.status for record in seen.steps][:2] == ["raised", "ok"] and isinstance(error, ShapeError)


def test_a_bare_operation_is_shown_with_the_shapes_in_its_line() -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(3, 4))

        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            return q @ self.w @ k

    text, *_ = fail(lambda: Scores()(torch.ones(2, 5, 3), torch.ones(2, 5, 4)))
    assert "`return q @ self.w @ k`, with q (2, 5, 3) float32, self.w (3, 4) float32, k (2, 5, 4) float32" in text
    assert "torch says: " in text


def test_other_errors_stay_what_they_are_and_get_a_note() -> None:
    with pytest.raises(ZeroDivisionError) as caught, trace("run"):
        takes(torch.ones(1, 2, 4))
        _ = 1 / 0
    assert "the last calls" in caught.value.__notes__[0] and "takes" in caught.value.__notes__[0]
    with pytest.raises(RuntimeError, match="out of patience") as other, trace():
        raise RuntimeError("out of patience")
    assert not isinstance(other.value, TypeCheckError)
    with pytest.raises(TypeCheckError, match=r"with a \(2, 3\) float32, b \(4, 5\) float32"), trace():
        a, b = torch.ones(2, 3), torch.ones(4, 5)
        a @ b


f32 = torch.zeros


def bits(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.bool)


def ids(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.int64)


# the statement, x, y, and what is said behind the shapes
OPERATIONS: list[tuple[str, Any, Any, str]] = [
    # of two tensors the one with fewer dims is turned
    ("x.masked_fill(y, 0.0)", f32(2, 4, 5, 7), bits(7, 5), "do not broadcast: `y.T`?"),
    ("x + y", f32(2, 4, 7, 7), f32(7, 7, 4), "do not broadcast: `y.permute(2, 0, 1)`?"),
    ("x + y", f32(2, 16, 20), f32(20, 16), "do not broadcast: `y.T`, or `x.transpose(1, 2)`?"),
    ("x * y", f32(2, 4, 7, 8), f32(7, 4), "axis 3 of x is longer than y, 8 and 4: if these are rotary angles, "
        "`torch.cat([y, y], -1)`?"),
    # a mask is one of keys; other tensors have two readings
    ("x.masked_fill(y, 0.0)", f32(2, 7, 7), bits(2, 7), "matched from the right, so `y.unsqueeze(1)`?"),
    ("x.masked_fill(y, 0.0)", f32(3, 4, 7, 7), bits(3, 1, 7), "matched from the right, so `y.unsqueeze(1)`?"),
    ("x * y", f32(2, 7, 7), f32(2, 7), "so `y.unsqueeze(2)`, or `y.unsqueeze(1)`?"),
    ("x.masked_fill(~y, 0.0)", f32(2, 4, 7, 7), bits(16, 16), "`(~y)[:7, :7]`, if it is a mask for the longest"),
    ("x + y", f32(2, 4, 5, 7), f32(1, 1, 16, 16), "`y[:, :, 2:7, :7]`, if it is a mask for the longest"),
    ("F.scaled_dot_product_attention(x, x, x, attn_mask=y)", f32(2, 7, 8), bits(2, 7), "so `y.unsqueeze(1)`?"),
    ("F.scaled_dot_product_attention(x, x, x, attn_mask=y)", f32(2, 4, 7, 8), bits(16, 16), "`y[:7, :7]`"),
    # the dim of `gather` is kept
    ("x.gather(1, y)", f32(2, 7, 8), ids(2, 3), "got x (2, 7, 8) and y (2, 3). "
        "`x.gather(1, y.unsqueeze(-1).expand(-1, -1, 8))`?"),
    ("torch.gather(x, dim=2, index=y)", f32(2, 7, 8), ids(2, 7), "`x.gather(2, y.unsqueeze(2)).squeeze(2)`?"),
    ("x.gather(0, y)", f32(2, 7), ids(7), "`x.gather(0, y.unsqueeze(0)).squeeze(0)`, or `x.gather"),
    ("x.gather(1, y)", f32(2, 7, 8, 3), ids(2, 3), "got x (2, 7, 8, 3) and y (2, 3).\n"),
    # losses
    ("F.cosine_embedding_loss(x, x, y)", f32(4, 8), f32(4, 1), "cosine_embedding_loss takes one 1 or -1 for each pair, "
        "(batch,); got y (4, 1) float32. `y.squeeze(1)`?"),
    ("F.nll_loss(x, y)", f32(4, 8), ids(4, 1), "nll_loss takes one class number a row"),
    ("F.cross_entropy(x, y)", f32(4, 8), ids(4, 3), "got y (4, 3) int64.\n"),
    ("F.cross_entropy(x, y)", f32(4, 1), ids(4) + 1, "x (4, 1) has one score a row: `binary_cross_entropy_with"),
    ("F.cross_entropy(x @ y.T, torch.arange(5))", f32(4, 8), f32(5, 8), "4 rows of scores and 5 labels, and needs one "
        "label for each row."),
    ("F.triplet_margin_loss(x, x, y)", f32(5, 8), f32(4, 8), "axis 0 of x is longer than y, 5 and 4.\n"),
    # channels and features have no stride, and are no table
    ("x + y", f32(2, 16, 10, 10), f32(2, 8, 10, 10), "if these are channels, `nn.Conv2d(8, 16, 1)` for y?"),
    ("x * y", f32(2, 5, 24), f32(2, 5, 48), "48 and 24: features to project, or a stride of 2 left out?"),
    ("x + y", f32(2, 6, 30), f32(2, 6, 32), "axis 2 of y is longer than x, 32 and 30: features to project, or"),
    ("x + y", f32(2, 10, 16), f32(2, 4, 16), "axis 1 of x is longer than y, 10 and 4. For every pair of them, "
        "`x.unsqueeze(2)` and `y.unsqueeze(1)`?"),
    ("x + y", f32(2, 3, 9, 16), f32(2, 3, 4, 16), "axis 2 of x is longer than y, 9 and 4.\n"),
    # products
    ("x @ y", f32(6, 8), f32(6, 6), "axis -2 of y (6, 6): `y @ x`?"),
    ("x @ y", f32(2, 33, 26), f32(80, 33), "`y @ x`?"),
    ("x @ y", f32(4, 8), f32(6, 4), "they are 8 and 6."),
    # cat and split
    ("torch.cat([x, y], 1)", f32(1, 8, 34, 34), f32(1, 8, 33, 33), "Resize the one that was upsampled: "
        "`F.interpolate(y, size=x.shape[2:])`, or `F.interpolate(x, size=y.shape[2:])`?"),
    ("torch.cat([x, y], 1)", f32(1, 16, 32, 32), f32(1, 8, 33, 33), "`F.interpolate(x, size=y.shape[2:])`?"),
    ("torch.cat([x, y], dim=1)", f32(1, 1, 8), f32(3, 7, 8), "differ on axis 0, too: `x.expand(3, -1, -1)`?"),
    ("torch.cat([x, y], dim=-1)", f32(3, 7, 8), f32(3, 1, 8), "`dim=1`, or `y.expand(-1, 7, -1)`?"),
    ("a, b, c, d = x.split(4, dim=1)", f32(2, 20), None, "size of a part, and 20 = 4 × 5: `split(5, dim=1)`?"),
    ("a, b = x.split([4, 8, 8], dim=1)", f32(2, 20), None, "torch says: too many values to unpack"),
    ("x + y", f32(2, 0, 8), f32(2, 4, 8), "axis 1 of y is longer than x, 4 and 0."),
]  # fmt: skip


@pytest.mark.parametrize(("line", "x", "y", "words"), OPERATIONS, ids=lambda value: value if type(value) is str else "")
def test_what_operations_say_and_do_not_say(line: str, x: Tensor, y: Tensor, words: str, tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(f"import torch\nimport torch.nn.functional as F\n\n\ndef run(x, y):\n    {line}\n")
    program: dict[str, Any] = {"__name__": "program"}
    exec(compile(file.read_text(), file, "exec"), program)
    text, *_ = fail(lambda: program["run"](x, y))
    assert words in text, text

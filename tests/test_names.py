"""Names from outside: a model that nobody annotated gets named axes without an edit."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tinyomni.tracing import trace


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 6)

    def forward(self, hidden: Tensor, mask: Tensor | None = None, **kwargs: Any) -> Any:
        scores = attend(self.inner(hidden), hidden)
        return {"scores": scores, "pair": (hidden, scores)}


def attend(a: Tensor, b: Tensor) -> Tensor:
    return a.transpose(1, 2) @ b


NAMES = {
    "Plain.forward": {
        "hidden": "batch tokens width",
        "mask": "batch tokens",
        "kwargs": {"positions": "tokens"},
        "return": {"scores": "batch inner width", "pair": ["batch tokens width", None]},
    },
    "test_names.attend": {"a": "batch tokens inner", "b": "batch tokens width", "return": "batch inner width"},
    "Lin*.forward": {"input": "*lead features"},
}


def shown(values: Any) -> dict[str, str]:
    return {value.name: str(value) for value in values}


def test_functions_and_modules_get_names_and_are_judged() -> None:
    with trace(names=NAMES) as t:
        Plain()(torch.zeros(2, 3, 4), positions=torch.zeros(3))
    forward, linear, attention = t.steps
    assert shown(forward.inputs) == {
        "hidden": "(batch 2, tokens 3, width 4)", "kwargs.positions": "(tokens 3)",
    }  # fmt: skip
    assert shown(forward.outputs) == {
        "out.scores": "(batch 2, inner 6, width 4)", "out.pair.0": "(batch 2, tokens 3, width 4)",
        "out.pair.1": "(2, 6, 4)",
    }  # fmt: skip
    assert shown(linear.inputs) == {"input": "(*lead 2, *lead 3, features 4)"}
    assert shown(attention.outputs) == {"out": "(batch 2, inner 6, width 4)"}
    assert all(record.ok for record in t.steps) and not t.notes
    with trace(names={"attend": {"a": "batch tokens n", "b": "batch tokens n"}}, strict=False) as t:
        Plain()(torch.zeros(2, 3, 4))
    assert (t.mismatches[0].axis, t.mismatches[0].expected, t.mismatches[0].got) == ("n", 6, 4)
    assert t.mismatches[0].annotation == "(batch, tokens, n)"


def test_dataclasses_are_named_by_field() -> None:
    @dataclasses.dataclass
    class Out:
        state: Tensor
        other: Tensor

    class Gives(nn.Module):
        def forward(self, x: Tensor) -> Out:
            return Out(x, x[0])

    with trace(names={"Gives.forward": {"return": {"state": "rows columns"}}}) as t:
        Gives()(torch.zeros(2, 3))
    assert shown(t.steps[0].outputs) == {"out.state": "(rows 2, columns 3)", "out.other": "(3,)"}


def test_names_come_from_a_file_and_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "plain.toml"
    file.write_text('["Plain.forward"]\nhidden = "batch tokens width"\n[Other.forward]\nx = "a"\n')
    with trace(names=file) as t:
        Plain()(torch.zeros(2, 3, 4))
    assert "hidden (batch 2, tokens 3, width 4)" in str(t)
    assert "names for 'Other.forward' were not used" in str(t)
    with trace(names={"Plan.forward": {}, "Plain.forward": {"hiden": "a"}}) as t:
        Plain()(torch.zeros(2, 3, 4))
    assert "did you mean 'Plain.forward'?" in str(
        t
    ) and "'Plain.forward: hiden' is no parameter; did you mean 'hidden'?" in str(t)
    for wrong, words in (
        ("x = [", "TOML"),
        ("x = 3", "a table"),
        ('[f]\nx = "*a *b"', "f.x: expected axes"),
        ("['F.forward']\na = 5", r"^plain.toml: F.forward.a: expected axes such as .*, got 5$"),
        ("[F.forward]\nreturn = ['n', 1.5]", r"^plain.toml: F.forward.return: expected axes .*, got 1.5$"),
    ):
        file.write_text(wrong)
        with pytest.raises(ValueError, match=words):
            trace(names=file)


def test_names_that_are_no_table_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"^names: expected a table of calls, or the path of a TOML file, got \['a'\]"):
        trace(names=["a"])  # type: ignore[arg-type]


@pytest.mark.parametrize("axes", ["b (d", "b d$", "float16[b d]", "b {n", "b {self.}", ["b d", "b d+"]])
def test_axes_that_cannot_be_read_are_refused_at_once(axes: Any) -> None:
    text = axes if isinstance(axes, str) else axes[-1]
    with pytest.raises(ValueError) as caught:
        trace(names={"Plain.forward": {"hidden": axes}})
    assert str(caught.value).startswith("names: Plain.forward.hidden: expected axes such as")
    assert f"got {text!r}: " in str(caught.value)


def test_formulas_and_braces_may_be_given() -> None:
    with trace(names={"attend": {"a": "batch=2 n 2*n", "b": "*lead {b.shape[2]}+0", "return": "_ ... (n+1)"}}) as t:
        Plain()(torch.zeros(2, 3, 4))
    assert [record.status for record in t.steps if record.call == "attend"] == ["ok"]
    assert "could not be recorded" not in str(t)


def test_a_generator_with_names_is_noted_and_leaves_its_caller_alone() -> None:
    def parts(x: Tensor) -> Iterator[Tensor]:
        yield attend(x, x)

    class Caller(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return next(parts(x))

    with trace(names={"parts": {"x": "b t d"}, "Caller.forward": {"x": "b t d"}}) as t:
        Caller()(torch.zeros(2, 3, 4))
    assert [(record.call, record.status) for record in t.steps] == [("Caller.forward", "ok")]
    assert "parts is an async or generator function: it ran, and was not recorded" in t.notes


def test_a_model_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20,
        image_size=24, patch_size=8)  # fmt: skip
    names = {
        "ViTModel.forward": {"pixel_values": "batch channels height width", "return": {"last_hidden_state": "b t d"}},
        "ViTLayer.forward": {"hidden_states": "batch tokens d_model", "return": "batch tokens d_model"},
        "ViTAttention.forward": {"hidden_states": "batch tokens d_model"},
    }
    with trace(names=names) as t, torch.no_grad():
        transformers.ViTModel(config).eval()(torch.zeros(2, 3, 24, 24))
    assert t.steps[0].outputs[0].name == "out.last_hidden_state" and str(t.steps[0].outputs[0]) == "(b 2, t 10, d 12)"
    assert sum("(batch 2, tokens 10, d_model 12)" in str(value) for r in t.steps for value in r.inputs) == 4
    assert not t.mismatches and any(record.call == "Conv2d.forward" for record in t.steps)


def test_given_names_are_enough_without_modules_and_what_cannot_be_judged_is_noted() -> None:
    with trace(modules=False, names={"Linear.forward": {"input": "batch n", "return": "batch other+1"}}) as seen:
        nn.Sequential(nn.Linear(3, 4))(torch.zeros(2, 3))
    assert [record.call for record in seen.steps] == ["Linear.forward"] and seen.steps[0].status == "ok"
    assert [str(value) for value in seen.steps[0].inputs] == ["(batch 2, n 3)"]
    assert any("other+1" in note for note in seen.notes)

"""Traces are drawn in the colours of what each call works on, with its kind, and to scale if asked for."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tinyomni import palette
from tinyomni.tracing import Trace, looks, trace
from tinyomni.tracing.records import Record


class SmallVisionTower(nn.Module):
    """A stranger's model: no annotations, names of its own. What the tower calls works on the image too."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 4, 2, 2)
        self.norm = nn.LayerNorm(4)
        self.c_proj = nn.Linear(4, 1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.c_proj(self.norm(self.patch_embed(pixel_values).flatten(2).transpose(1, 2)))


@pytest.mark.parametrize(
    ("call", "path", "modality", "kind"),
    [
        ("SelfAttention.forward", "vision.blocks.0.attn", "image", "attention"),
        ("TalkerTiny.forward", "talker", "speech", ""),
        ("SwiGLU.forward", "thinker.blocks.1.mlp", "text", "MLP"),
        ("Qwen2AudioEncoderLayer.forward", "audio_tower.layers.3", "audio", "block"),
        ("Embedding.forward", "wte", "", "embedding"),
        ("Linear.forward", "lm_head", "text", "linear"),
        ("Conv1D.forward", "transformer.h.0.mlp.c_fc", "", "linear"),
        ("Conv1d.forward", "c", "", "convolution"),
        ("GPT2LMHeadModel.forward", "", "text", ""),
        ("Qwen2MoeForCausalLM.forward", "", "text", ""),
        ("FeedForward.forward", "", "", "MLP"),
        ("Omni.generate", "", "", ""),
        ("Concatenate image + audio + text", "", "", ""),
    ],
)
def test_names_say_what_a_call_works_on_and_its_kind(call: str, path: str, modality: str, kind: str) -> None:
    record = Record(0, None, 0, call, path)
    found = looks.modality_of(record)
    assert (found.name if found else "", looks.kind_of(record)) == (modality, kind)


def test_the_tracer_and_the_lessons_have_the_same_colours() -> None:
    assert {each.name: each.colour for each in looks.MODALITIES} == {
        name: look.colour for name, look in palette.LOOKS.items() if name != "model"
    }


def test_a_page_has_colours_kinds_and_bars_to_scale() -> None:
    with trace("a stranger's model") as t:
        SmallVisionTower()(torch.zeros(2, 3, 8, 8))
    page = t.to_html(to_scale=True)
    assert "<script" not in page and page.count('<tr class="image">') == 4
    assert re.findall(r'<i class="k\d">(\w+)</i>', page) == ["convolution", "norm", "linear"]
    widths = re.findall(r'<u style="width:([\d.]+)%" title="([\d,]+) values">', page)
    assert widths == [("25", "32"), ("100", "128"), ("100", "128"), ("25", "32")]
    assert "the longest is 128 values" in page and "<u " not in t.to_html()


def test_a_flow_diagram_has_the_colours_too() -> None:
    with trace("a stranger's model") as t:
        SmallVisionTower()(torch.zeros(2, 3, 8, 8))
    drawn = t.to_svg()
    assert drawn.count(f'stroke="{looks.IMAGE.colour}"') == 3 and "■ Conv2d.forward" in drawn


class Twice(nn.Module):
    """Two parts between which the tracer sees nothing without `ops=True`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * 2)


def test_a_dashed_arrow_ends_above_the_shapes_of_the_next_box() -> None:
    with trace("twice") as t:
        Twice()(torch.zeros(2, 4))
    drawn = t.to_svg()
    (tip,) = re.findall(r'points="[^"]*,([\d.]+)" fill="none" stroke="#333" stroke-dasharray', drawn)
    heights = re.findall(r'y="([\d.]+)" text-anchor="middle" font-weight="normal">input \(2, 4\)', drawn)
    assert len(heights) == 2 and float(tip) <= float(heights[1]) - 12


def test_a_flow_diagram_counts_equal_outputs_and_shows_other_dtypes() -> None:
    def parts(x: Tensor) -> Tensor:
        return x.chunk(2)[0] + x.topk(2, dim=0)[0]

    with trace("parts", ops=True) as t:
        parts(torch.rand(4, 3))
    drawn = t.to_svg()
    assert ">2 × (2, 3)<" in drawn and ">(2, 3) int64<" in drawn


def test_what_failed_is_explained_in_every_form_and_lines_are_kept(tmp_path: Path) -> None:
    with pytest.raises(TypeError), trace("failed", lines=True) as t:
        Twice()(torch.zeros(2, 5))
    page = t.to_html()
    for shown in (page, t._repr_html_()):
        assert "takes 4 features on the last axis" in shown and "return self.second(self.first(x) * 2)" in shown
    t.save(tmp_path / "t.json")
    again = Trace.load(tmp_path / "t.json")
    assert again == t and again.to_html() == page and str(again) == str(t) and "# 2, 5" in str(again)


def test_a_difference_of_operations_and_phases() -> None:
    runs, layer = [], nn.Linear(2, 2)
    for dim, train in ((0, True), (1, False)):
        with trace(ops=True) as t:
            torch.zeros(4, 4).sum(dim)
            layer.train(train)(torch.zeros(2, 2))
        runs.append(t)
    told = str(runs[0].diff(runs[1]))
    assert "~ sum: sum(0) | sum(1)" in told and "~ Linear.forward: train | —" in told


def test_a_difference_names_the_module() -> None:
    runs = []
    for size in (2, 3):
        with trace("twice") as t:
            Twice()(torch.zeros(size, 4))
        runs.append(t)
    assert "~ Linear.forward second outputs: (2, 6) | (3, 6)" in str(runs[0].diff(runs[1]))

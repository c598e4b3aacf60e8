"""Traces are drawn in the colours of what each call works on, with its kind, and to scale if asked for."""

import re

import pytest
import torch
from torch import Tensor, nn

from tinyomni import palette
from tinyomni.tracing import looks, trace
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

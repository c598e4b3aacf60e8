"""Bugs that people really make, planted into the course's own code one at a time: each must fail, and at its step.

A bug is a piece of source that is replaced. Bugs that keep every shape cannot be seen by a tracer: the last test shows
two, and what catches them instead.
"""

import inspect
import sys
import textwrap
from dataclasses import replace
from typing import Any

import pytest
import torch

from tinyomni import attention, audio, codec, generation, omni, talker, thinker, vision
from tinyomni.dry_run import build, default_inputs, pipelines, run
from tinyomni.io import images
from tinyomni.tracing import ShapeError, SpecMismatch

GENERATE_WITHOUT_CACHE = '''
def generate(
    thinker, ids: Int[Tensor, "batch tokens"], *, max_new_tokens=64, eos=None, vocab_limit=None
) -> Int[Tensor, "batch new_tokens"]:
    """As one writes it before one knows of caches: the whole sequence again for each token."""
    begin = ids.shape[1]
    for _ in range(max_new_tokens):
        ids = torch.cat([ids, thinker(ids)[:, -1:, :vocab_limit].argmax(-1)], dim=1)
    return ids[:, begin:]
'''

# pipeline, where, what is replaced, by what, where it must fail
BUGS: dict[str, tuple[str, Any, str, str, str, str]] = {
    "centred STFT": ("audio", audio.MelFrontend, "forward", "[..., :frames]", "",
                     "MelFrontend.forward: expected the result .*One too many"),
    "bands before frames": ("audio", audio.MelFrontend, "forward", "bft,fm->btm", "bft,fm->bmt",
                            "MelFrontend.forward: expected the result"),
    "a convolution without stride": ("audio", audio.AudioEncoderTiny, "downsample", "x = layer(x)",
                                     "x = layer(x) if x.shape[1] == 1 else F.gelu(F.conv2d(x, self.down[2].weight))",
                                     "downsample: expected the result"),
    "channels left out of the flattening": ("audio", audio.AudioEncoderTiny, "flatten",
                                            "(channels bands)", "bands", "flatten|channels"),
    "mean over time too early": ("audio", audio.AudioEncoderTiny, "encode", "return self.norm(x)",
                                 "return self.norm(x).mean(dim=1)",
                                 "encode: expected the result .*expected 3 dims, got 2"),
    "forgotten projection of the audio": ("multimodal", omni.Omni, "embed_audio",
                                          "self.proj_a(self.audio(self.mel(wav).to(self.dtype)))",
                                          "self.audio(self.mel(wav))",
                                          "fuse: expected `parts`|2\\.2 .*expected .1, 25, 256."),
    "dropped CLS": ("image", vision.ViTTiny, "add_cls",
                    "[self.cls.expand(patches.shape[0], -1, -1).to(patches.dtype), patches]", "[patches]",
                    "add_cls: expected the result .*One too few: was BOS, CLS"),
    "CLS twice": ("image", vision.ViTTiny, "add_cls", "self.cls.expand(patches.shape[0], -1, -1)",
                  "self.cls.expand(patches.shape[0], 2, -1)", "add_cls: expected the result .*One too many"),
    "grid instead of CLS": ("image", vision.ViTTiny, "split_cls", "tokens[:, :1], tokens[:, 1:]",
                            "tokens[:, 1:], tokens[:, :1]", "split_cls: expected `return.0`"),
    "channels last": ("image", images, "crop", "square.contiguous()", "square.permute(1, 2, 0)",
                      r"crop|1\.0|load_image|patchify|Conv2d"),
    "patches flattened into the width": ("image", vision.ViTTiny, "patchify", "self.proj(img * 2 - 1)",
                                         "self.proj(img * 2 - 1).flatten(2)", "patchify: expected the result .*got 3"),
    "missing BOS": ("text", omni.Omni, "text_ids", "[BOS, *self.tokenizer.encode(text)]",
                    "self.tokenizer.encode(text)", "1 .* out: expected .1, 6., got .*5|expected a prompt"),
    "ids as floats": ("text", omni.Omni, "text_ids", "[BOS, *self", "[float(BOS), *self",
                      r"text_ids: expected the result .*`return.long\(\)`|dtype Int"),
    "heads after tokens": ("text", attention, "split_heads", "-> batch heads tokens head_dim",
                           "-> batch tokens heads head_dim", "split_heads: expected the result"),
    "heads not merged": ("text", attention, "merge_heads", "-> batch tokens (heads head_dim)",
                         "-> (batch tokens) (heads head_dim)", "merge_heads: expected the result .*3 dims, got 2"),
    "head of the tokenizer's size": ("image", thinker.ThinkerLM, "forward", "self.lm_head(self.norm(x))",
                                     "self.lm_head(self.norm(x))[..., :1309]",
                                     r"4 Thinker.*out: expected \(1, 9, 5000\)"),
    "only the last token normalised": ("image", thinker.ThinkerLM, "forward", "self.norm(x)", "self.norm(x)[:, -1:]",
                                       "ThinkerLM.forward: expected the result"),
    "squeezed batch": ("text", generation, "sample", "logits.argmax(dim=-1)", "logits.argmax(dim=-1).squeeze()",
                       "sample: expected the result .*expected 1 dim, got 0"),
    "lost cache": ("text", generation, "generate", "", GENERATE_WITHOUT_CACHE,
                   r"Generate.* inside, ThinkerLM.forward: ids: expected \(1, 1\), got \(batch 1, tokens 7\)"),
    "swapped order": ("multimodal", omni.Omni, "embed", "parts: dict[str, Tensor] = {}",
                      'parts: dict[str, Tensor] = dict.fromkeys(("audio", "image", "text"))',
                      "ledger: expected .*'image': 1, 'audio': 25, 'text': 9.* got"),
    "audio counted as text": ("multimodal", omni.Omni, "embed", "tokens(name,", 'tokens("text",', "ledger"),
    "a frame too long": ("speech", talker, "max_frames", "30 * text_tokens", "30 * text_tokens + 1",
                         "2 Generate codes.*expected .1, 301, 2., got"),
    "start frame spoken": ("speech", pipelines, "text_to_speech", "codes[:, 1:]", "codes",
                           r"6 .*codes: expected \(1, 300, 2\), got .*301"),
    "Talker that reads all again in spite of its cache": (
        "speech", talker, "next_frame", "codes if first else codes[:, -1:]", "codes",
        r"3 .*inside, TalkerTiny.forward: codes: expected \(1, 1, 2\)|> 1\d\d\d"),
    "transposed codes": ("training", codec.RVQ, "encode", "torch.stack(codes, dim=-1)", "torch.stack(codes, dim=1)",
                         "RVQ.encode: expected the result"),
    "one codebook": ("training", codec.RVQ, "encode", "torch.stack(codes, dim=-1)", "torch.stack(codes[:1], dim=-1)",
                     r"RVQ|codebooks"),
    "off-by-one shift": ("training", talker, "previous",
                         "torch.cat([torch.zeros_like(codes[:, :1]), codes[:, :-1]], dim=1)", "codes[:, :-1]",
                         "previous: expected the result .*One too few"),
    "targets not flattened": ("training", pipelines, "train_talker", "codes.flatten(0, 1).unbind", "codes.unbind",
                              "talker_loss: expected `base_target`"),
    "logits not flattened": ("training", pipelines, "train_talker", "base_logit.flatten(0, 1)", "base_logit",
                             "talker_loss: expected `base_logit`"),
    "batch joined in time": ("training", pipelines, "make_batch", "torch.stack([wav, wav.flip(0)])",
                             "torch.cat([wav, wav.flip(0)])",
                             "make_batch: expected the result .*expected 2 dims, got 1"),
}  # fmt: skip


def plant(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, old: str, new: str) -> None:
    """Put the changed function in the place of the right one, also where it was imported under its name."""
    right = inspect.unwrap(vars(where)[name] if inspect.isclass(where) else getattr(where, name))
    source = textwrap.dedent(inspect.getsource(right)) if old else new
    assert not old or source.count(old) >= 1, f"{old!r} is no longer in {name}"
    space: dict[str, Any] = {}
    exec(compile(source.replace(old, new) if old else source, f"<planted {name}>", "exec"), right.__globals__, space)
    bug = space[name]
    bug.__code__ = bug.__code__.replace(co_qualname=right.__code__.co_qualname)
    if inspect.isclass(where):
        monkeypatch.setattr(where, name, bug)
        return
    originals = (getattr(where, name), right)
    for module in [module for key, module in sys.modules.items() if key.split(".")[0] == "tinyomni"]:
        if any(vars(module).get(name) is original for original in originals):
            monkeypatch.setattr(module, name, bug)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_fails_at_its_step(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, where, name, old, new, words = BUGS[bug]
    model = build()
    plant(monkeypatch, where, name, old, new)
    if where is pipelines and name != "make_batch":  # the registry holds the right function
        planted = replace(pipelines.PIPELINES[pipeline], run=getattr(pipelines, name))
        monkeypatch.setitem(pipelines.PIPELINES, pipeline, planted)
    with pytest.raises((ShapeError, SpecMismatch, ValueError, RuntimeError), match=f"(?s){words}"):
        report = run(pipeline, model, default_inputs())
        if not report.ok:
            raise SpecMismatch(report)


def test_bugs_that_keep_the_shape_are_out_of_reach_and_met_by_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads merged without a permute, a shift made twice: every shape is right. The comparison with an independent
    implementation catches the first, the Talker's causality test the second."""
    x = torch.randn(1, 4, 6, 64)
    right = attention.merge_heads(x)
    wrong = x.reshape(1, 6, 256)
    assert right.shape == wrong.shape and not torch.equal(right, wrong)
    codes = torch.arange(12).reshape(1, 6, 2)
    twice = talker.previous(talker.previous(codes))
    assert twice.shape == codes.shape and not torch.equal(twice, talker.previous(codes))
    plant(monkeypatch, talker, "previous", "codes[:, :1]), codes[:, :-1]", "codes[:, :2]), codes[:, :-2]")
    assert run("training", build(), default_inputs()).ok


def test_there_are_enough_bugs_and_the_clean_runs_raise_no_alarm() -> None:
    assert len(BUGS) >= 20
    for pipeline in {bug[0] for bug in BUGS.values()}:
        assert run(pipeline, build(), default_inputs()).ok, pipeline

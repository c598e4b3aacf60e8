"""Bugs that people really make, planted into the course's own code one at a time: each must fail, and at its step.

A bug is a piece of source that is replaced. Bugs that keep every shape cannot be seen by a tracer: the last test shows
two, and what catches them instead.
"""

import inspect
import sys
import textwrap
from typing import Any

import pytest
import torch

from tinyomni import attention, audio, codec, dry_run, generation, vision
from tinyomni.dry_run import build, default_inputs, run
from tinyomni.tracing import ShapeError, SpecMismatch

STREAM_WITHOUT_CACHE = '''
def generate(thinker, ids=None, *, embeddings=None, max_new_tokens=64, eos=None, vocab_limit=None):
    """As one writes it before one knows of caches: the whole sequence again for each token."""
    begin = ids.shape[1]
    for _ in range(max_new_tokens):
        ids = torch.cat([ids, thinker(ids)[:, -1:, :vocab_limit].argmax(-1)], dim=1)
    return ids[:, begin:]
'''

# pipeline, where, what is replaced, by what, where it must fail
BUGS: dict[str, tuple[str, Any, str, str, str, str]] = {
    "centred STFT": ("audio", dry_run, "hear", "mel(wav)", "torch.nn.functional.pad(mel(wav), (0, 0, 0, 1))",
                     r"1\.1 Mel spectrogram: out: expected \(1, 100, 128\), got .*101"),
    "bands before frames": ("audio", dry_run, "hear", "mel(wav)", "mel(wav).transpose(1, 2)",
                            r"1\.1 Mel spectrogram: out: expected \(1, 100, 128\)"),
    "a convolution without stride": ("audio", dry_run, "second_convolution", "audio.down[2:](x)",
                                     "torch.nn.functional.conv2d(x, audio.down[2].weight, padding=1)", "1.2c|flatten"),
    "channels left out of the flattening": ("audio", audio.AudioEncoderTiny, "flatten",
                                            "(channels bands)", "bands", "flatten|channels"),
    "mean over time too early": ("audio", dry_run, "listen", "audio.encode(x)", "audio.encode(x).mean(dim=1)",
                                 r"listen: the result should be .*2 axes came, 3 expected"),
    "forgotten projection of the sound": ("audio", dry_run, "project_audio", "proj(x)", "x",
                                          r"combine: audio should be|`audio`"),
    "dropped CLS": ("image", vision.ViTTiny, "add_cls",
                    "[self.cls.expand(patches.shape[0], -1, -1).to(patches.dtype), patches]", "[patches]",
                    r"add_cls: the result should be .*One too few: was BOS, CLS"),
    "CLS twice": ("image", dry_run, "with_cls", "vision.add_cls(x)", "vision.add_cls(vision.add_cls(x))",
                  "with_cls: the result .*One too many"),
    "grid instead of CLS": ("image", dry_run, "take_cls", "x[:, :1], x[:, 1:]", "x[:, 1:], x[:, :1]",
                            "take_cls: the result"),
    "channels last": ("image", dry_run, "read_image", "load_image(source)", "load_image(source).permute(1, 2, 0)",
                      "Reading|1.0|Read the picture|patch|Conv2d"),
    "patches flattened into the width": ("image", vision.ViTTiny, "patchify", "self.proj(img * 2 - 1)",
                                         "self.proj(img * 2 - 1).flatten(2)", "patchify: the result .*3 axes came"),
    "missing BOS": ("text", dry_run, "tokenize", "[BOS, *tokenizer.encode(text)]", "tokenizer.encode(text)",
                    r"1.* out: expected \(6,\)"),
    "ids as floats": ("text", dry_run, "tokenize", "[BOS, *tokenizer.encode(text)]",
                      "[float(BOS), *tokenizer.encode(text)]", r"tokenize: the result .*`return.long\(\)`|dtype Int"),
    "heads after tokens": ("text", attention, "split_heads", "-> batch heads tokens head_dim",
                           "-> batch tokens heads head_dim", "split_heads: the result"),
    "heads not merged": ("text", attention, "merge_heads", "-> batch tokens (heads head_dim)",
                         "-> (batch tokens) (heads head_dim)", "merge_heads: the result .*2 axes came, 3"),
    "head of the tokenizer's size": ("text", dry_run, "lm_head", "thinker.lm_head(x)", "thinker.lm_head(x)[..., :1309]",
                                     r"LM head: out: expected \(1, 6, 5000\)"),
    "only the last token normalised": ("text", dry_run, "final_norm", "thinker.norm(x)", "thinker.norm(x)[:, -1:]",
                                       "final_norm: the result"),
    "squeezed batch": ("text", dry_run, "next_token", "sample(logits[:, -1, :pieces])",
                       "sample(logits[:, -1, :pieces]).squeeze()", "next_token: the result .*0 axes came, 1 expected"),
    "lost cache": ("text", dry_run, "generate", "", STREAM_WITHOUT_CACHE,
                   r"Generate.* inside, ThinkerLM.forward: ids: expected \(1, 1\), got \(batch 1, tokens 7\)"),
    "swapped order": ("multimodal", dry_run, "combine", '"image": image, "audio": audio',
                      '"audio": audio, "image": image',
                      "ledger: expected .*'image': 1, 'audio': 25, 'text': 9.* got"),
    "sound counted as text": ("multimodal", dry_run, "combine", "part.shape[1]", "text.shape[1]", "ledger"),
    "a frame too long": ("speech", dry_run, "longest", "max_frames(text_tokens)", "max_frames(text_tokens) + 1",
                         r"Write the next frame|Talker writes|write_frame"),
    "start frame spoken": ("speech", dry_run, "text_to_speech", "codes[:, 1:]", "codes",
                           r"6 .*codes: expected \(1, 300, 2\), got .*301"),
    "Talker without its cache": ("speech", dry_run, "text_to_speech", "codes, ids, cache)",
                                 "codes, ids, omni.talker.new_cache())",
                                 r"3 .*inside, TalkerTiny.predict: codes: expected \(1, 1, 2\)"),
    "transposed codes": ("training", dry_run, "encode_codes", "rvq.encode(x)", "rvq.encode(x).transpose(1, 2)",
                         "encode_codes: the result .*transpose"),
    "one codebook": ("training", dry_run, "encode_codes", "rvq.encode(x)", "rvq.encode(x)[..., :1]",
                     r"RVQ|encode|codebooks"),
    "off-by-one shift": ("training", dry_run, "shift", "previous(codes)", "codes[:, :-1]",
                         "shift: the result .*One too few"),
    "target of the wrong axis": ("training", dry_run, "train_talker", "flatten_targets(codes[..., 0])",
                                 "flatten_targets(codes[:, 0])", "talker_loss: base_target should be"),
    "logits not flattened": ("training", dry_run, "flatten_logits", "-1, logits.shape[-1]", "logits.shape[0], -1",
                             "flatten_logits: the result"),
    "batch joined in time": ("training", dry_run, "two_recordings", "torch.stack([wav, wav.flip(0)])",
                             "torch.cat([wav, wav.flip(0)])", "two_recordings: the result .*1 axis came, 2 expected"),
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
    omni = build()
    plant(monkeypatch, where, name, old, new)
    if pipeline == "training" or name in ("text_to_speech",):
        pipelines = dict(dry_run.PIPELINES)
        each = pipelines[pipeline]
        pipelines[pipeline] = type(each)(getattr(dry_run, each.run.__name__), each.spec, each.text, each.prompt, 0)
        monkeypatch.setattr(dry_run, "PIPELINES", pipelines)
    with pytest.raises((ShapeError, SpecMismatch, ValueError), match=f"(?s){words}"):
        report = run(pipeline, omni, default_inputs())
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
    twice = dry_run.previous(dry_run.previous(codes))
    assert twice.shape == codes.shape and not torch.equal(twice, dry_run.previous(codes))
    plant(monkeypatch, dry_run, "shift", "previous(codes)", "previous(previous(codes))")
    assert run("training", build(), default_inputs()).ok


def test_there_are_enough_bugs_and_the_clean_runs_raise_no_alarm() -> None:
    assert len(BUGS) >= 20 and codec and generation
    for pipeline in {bug[0] for bug in BUGS.values()}:
        assert run(pipeline, build(), default_inputs()).ok, pipeline

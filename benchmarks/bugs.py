"""A public list of planted bugs: mistakes that people make, in this library's own code and in models of four others.

A bug is a piece of source that is replaced in one function. Beside it stand the line to which a message has to lead,
and what it has to say about the fix. `planted_bugs.py` compares tools on this list, tests/test_planted_bugs.py holds
this tracer to it.

The bugs of `OURS` run in the dry run (the specification is part of the tool), those of `OTHERS` in small models with
random weights. Bugs that keep every shape are out of reach for all of these tools, and not here.
"""

import __future__

import importlib
import inspect
import linecache
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Bug:
    """What is planted, and what a message about it should say."""

    title: str
    model: str  # a pipeline of the dry run, or one of `models()`
    target: str  # module:function or module:Class.method
    old: str
    new: str
    fix: str  # a pattern: what to do
    line: str = ""  # a piece of the line to which the message should lead; by default the planted line itself
    also: str = ""  # a pattern: what else this tracer says, such as the step that does not hold

    @property
    def ours(self) -> bool:
        """Is it in this library's own code?"""
        return self.target.startswith("tinyomni")


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
AUDIO, VISION, TALKER, OMNI = "tinyomni.audio", "tinyomni.vision", "tinyomni.talker", "tinyomni.omni:Omni"
ATTENTION, PIPELINES = "tinyomni.attention", "tinyomni.dry_run.pipelines"
ENCODER, THINKER = f"{AUDIO}:AudioEncoderTiny", "tinyomni.thinker:ThinkerLM"

OURS = [
    Bug("centred STFT", "audio", f"{AUDIO}:MelFrontend.forward", "[..., :frames]", "",
        "last frame of a centred STFT", "return", "MelFrontend.forward: expected the result .*One too many"),
    Bug("bands before frames", "audio", f"{AUDIO}:MelFrontend.forward", "bft,fm->btm", "bft,fm->bmt",
        r"transpose\(1, 2\)", "return", "MelFrontend.forward: expected the result"),
    Bug("a convolution without stride", "audio", f"{ENCODER}.downsample", "x = layer(x)",
        "x = layer(x) if x.shape[1] == 1 else F.gelu(F.conv2d(x, self.down[2].weight))",
        "stride", "return", "downsample: expected the result"),
    Bug("channels left out of the flattening", "audio", f"{ENCODER}.flatten", "(channels bands)", "bands",
        r"\{'channels'\}|`channels`", also="flatten|channels"),
    Bug("mean over time too early", "audio", f"{ENCODER}.encode", "return self.norm(x)",
        "return self.norm(x).mean(dim=1)", "audio_tokens axis .*(?:mean|averaged)",
        also="encode: expected the result .*expected 3 dims, got 2"),
    Bug("forgotten projection of the audio", "multimodal", f"{OMNI}.embed_audio",
        "self.proj_a(self.audio(self.mel(wav).to(self.dtype)))", "self.audio(self.mel(wav))",
        "through `proj_a`", also="fuse: expected `parts`|2\\.2 .*expected .1, 25, 256."),
    Bug("dropped CLS", "image", f"{VISION}:ViTTiny.add_cls",
        "[self.cls.expand(patches.shape[0], -1, -1).to(patches.dtype), patches]", "[patches]",
        "One too few: .*CLS", also="add_cls: expected the result .*One too few: was BOS, CLS"),
    Bug("CLS twice", "image", f"{VISION}:ViTTiny.add_cls", "self.cls.expand(patches.shape[0], -1, -1)",
        "self.cls.expand(patches.shape[0], 2, -1)", "One too many: .*CLS", also="add_cls: expected the result"),
    Bug("grid instead of CLS", "image", f"{VISION}:ViTTiny.split_cls", "tokens[:, :1], tokens[:, 1:]",
        "tokens[:, 1:], tokens[:, :1]", "other order|exchanged", also="split_cls: expected `return.0`"),
    Bug("channels last", "image", "tinyomni.io.images:crop", "square.contiguous()", "square.permute(1, 2, 0)",
        r"permute\(2, 0, 1\)|transpose\(0, 2\)", also=r"crop|1\.0|load_image|patchify|Conv2d"),
    Bug("patches flattened into the width", "image", f"{VISION}:ViTTiny.patchify", "self.proj(img * 2 - 1)",
        "self.proj(img * 2 - 1).flatten(2)", "flattened", also="patchify: expected the result .*got 3"),
    Bug("missing BOS", "text", f"{OMNI}.text_ids", "[BOS, *self.tokenizer.encode(text)]",
        "self.tokenizer.encode(text)", r"starts with BOS.*\[1\] \+|BOS first", "def text_ids",
        also="1 .* out: expected .1, 6., got .*5|expected a prompt"),
    Bug("ids as floats", "text", f"{OMNI}.text_ids", "[BOS, *self", "[float(BOS), *self", r"\.long\(\)",
        also=r"text_ids: expected the result .*`return.long\(\)`|dtype Int"),
    Bug("heads after tokens", "text", f"{ATTENTION}:split_heads", "-> batch heads tokens head_dim",
        "-> batch tokens heads head_dim", r"transpose\(1, 2\)", also="split_heads: expected the result"),
    Bug("heads not merged", "text", f"{ATTENTION}:merge_heads", "-> batch tokens (heads head_dim)",
        "-> (batch tokens) (heads head_dim)", "unflatten|unsqueeze",
        also="merge_heads: expected the result .*3 dims, got 2"),
    Bug("head of the tokenizer's size", "image", f"{THINKER}.forward", "self.lm_head(self.norm(x))",
        "self.lm_head(self.norm(x))[..., :1309]", r"expected \(1, 9, 5000\)", "def forward",
        r"4 Thinker.*out: expected \(1, 9, 5000\)"),
    Bug("only the last token normalized", "image", f"{THINKER}.forward", "self.norm(x)", "self.norm(x)[:, -1:]",
        r"sliced|one of 9|only one|indexed", also="ThinkerLM.forward: expected the result"),
    Bug("squeezed batch", "text", "tinyomni.generation:sample", "logits.argmax(dim=-1)",
        "logits.argmax(dim=-1).squeeze()", r"unsqueeze\(0\)",
        also="sample: expected the result .*expected 1 dim, got 0"),
    Bug("lost cache", "text", "tinyomni.generation:generate", "", GENERATE_WITHOUT_CACHE,
        r"ids: expected \(1, 1\)", "def generate",
        r"Generate.* inside, ThinkerLM.forward: ids: expected \(1, 1\), got \(batch 1, tokens 7\)"),
    Bug("swapped order", "multimodal", f"{OMNI}.embed", "parts: dict[str, Tensor] = {}",
        'parts: dict[str, Tensor] = dict.fromkeys(("audio", "image", "text"))', "'image': 1, 'audio': 25, 'text': 9",
        also="ledger: expected .*'image': 1, 'audio': 25, 'text': 9.* got"),
    Bug("audio counted as text", "multimodal", f"{OMNI}.embed", "tokens(name,", 'tokens("text",', "'audio': 25",
        also="ledger"),
    Bug("a frame too long", "speech", f"{TALKER}:max_frames", "30 * text_tokens", "30 * text_tokens + 1",
        "one too many", "def generate_codes(", r"2 Generate codes.*: one too many"),
    Bug("start frame spoken", "speech", f"{PIPELINES}:text_to_speech", "codes[:, 1:]", "codes",
        "one too many", also=r"6 Codec.*codes: expected .*: one too many"),
    Bug("Talker that reads all again in spite of its cache", "speech", f"{TALKER}:next_frame",
        "codes if first else codes[:, -1:]", "codes", r"\d+ positions before",
        also=r"next_frame  codes \(batch 1, frames \d+"),
    Bug("transposed codes", "training", "tinyomni.codec:RVQ.encode", "codes.reshape(*x.shape[:-1], self.cfg.codebooks)",
        "codes.reshape(*x.shape[:-1], -1).transpose(1, 2)", r"transpose\(1, 2\)",
        also="RVQ.encode: expected the result"),
    Bug("one codebook", "training", "tinyomni.codec:RVQ.encode", "codes.reshape(*x.shape[:-1], self.cfg.codebooks)",
        "codes[:, :1].reshape(*x.shape[:-1], 1)", "base and residual", "def encode", also=r"RVQ|codebooks"),
    Bug("off-by-one shift", "training", f"{TALKER}:previous",
        "torch.cat([torch.zeros_like(codes[:, :1]), codes[:, :-1]], dim=1)", "codes[:, :-1]",
        "One too few: .*start frame", also="previous: expected the result .*One too few"),
    Bug("targets not flattened", "training", f"{PIPELINES}:train_talker", "codes.flatten(0, 1).unbind", "codes.unbind",
        r"flatten\(0, 1\)|flatten\(\)", "talker_loss(", "talker_loss: expected `base_target`"),
    Bug("logits not flattened", "training", f"{PIPELINES}:train_talker", "base_logit.flatten(0, 1)", "base_logit",
        r"flatten\(0, 1\)", also="talker_loss: expected `base_logit`"),
    Bug("batch joined in time", "training", f"{PIPELINES}:make_batch", "torch.stack([wav, wav.flip(0)])",
        "torch.cat([wav, wav.flip(0)])", r"unflatten\(0, \(2, 64000\)\)|stack",
        also="make_batch: expected the result .*expected 2 dims, got 1"),
]  # fmt: skip

LLAMA, VIT = "transformers.models.llama.modeling_llama", "transformers.models.vit.modeling_vit"
GPT2, BERT = "transformers.models.gpt2.modeling_gpt2", "transformers.models.bert.modeling_bert"
WHISPER = "transformers.models.whisper.modeling_whisper:WhisperEncoder.forward"
RESNET, TV_VIT = "torchvision.models.resnet", "torchvision.models.vision_transformer:VisionTransformer"
DENSENET = "torchvision.models.densenet"
TIMM_PATCHES, TIMM_VIT = (
    "timm.layers.patch_embed:PatchEmbed.forward",
    "timm.models.vision_transformer:VisionTransformer",
)
CONVNEXT, WAV2VEC2 = "timm.models.convnext:ConvNeXtBlock.forward", "torchaudio.models.wav2vec2.components"

OTHERS = [
    Bug("heads not merged", "llama", f"{LLAMA}:LlamaAttention.forward", "reshape(*input_shape, -1)",
        "reshape(*input_shape, -1, self.head_dim)", r"flatten\(2\)"),
    Bug("values: heads and tokens not exchanged", "llama", f"{LLAMA}:LlamaAttention.forward",
        "value_states = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)",
        "value_states = self.v_proj(hidden_states).view(hidden_shape)", r"transpose\(1, 2\)"),
    Bug("an MLP without its up projection", "llama", f"{LLAMA}:LlamaMLP.forward",
        "self.act_fn(self.gate_proj(x)) * self.up_proj(x)", "x", r"`(?:layers.0.mlp.)?(?:up|gate)_proj`"),
    Bug("key heads not repeated", "llama eager", f"{LLAMA}:repeat_kv", "if n_rep == 1", "if n_rep",
        r"repeat_interleave\(2", "torch.matmul(query"),
    Bug("keys not transposed", "llama eager", f"{LLAMA}:eager_attention_forward", "key_states.transpose(2, 3)",
        "key_states", r"transpose\((?:-2, -1|2, 3)\)"),
    Bug("heads not merged", "gpt2", f"{GPT2}:GPT2Attention.forward",
        "attn_output.reshape(*attn_output.shape[:-2], -1).contiguous()", "attn_output", r"flatten\(-2|flatten\(2"),
    Bug("queries, keys, values split along the tokens", "gpt2", f"{GPT2}:GPT2Attention.forward",
        "query_states, key_states, value_states = self.c_attn(hidden_states).split(self.split_size, dim=2)",
        "query_states, key_states, value_states = self.c_attn(hidden_states).split(self.split_size, dim=1)",
        r"dim=(?:-1|2)"),
    Bug("joined where it is added", "bert", f"{BERT}:BertSelfOutput.forward", "hidden_states + input_tensor",
        "torch.cat([hidden_states, input_tensor], dim=-1)", r"64 = 2 × 32"),
    Bug("the first sentence in place of the first token", "bert", f"{BERT}:BertPooler.forward", "hidden_states[:, 0]",
        "hidden_states[0]", r"\[:, 0\]", "return"),
    Bug("channels and frames not exchanged", "whisper", WHISPER, "inputs_embeds.permute(0, 2, 1)", "inputs_embeds",
        r"transpose\(1, 2\)"),
    Bug("the convolution with the stride left out", "whisper", WHISPER,
        "nn.functional.gelu(self.conv2(inputs_embeds))", "inputs_embeds", r"100 = 2 × 50|stride"),
    Bug("patches not transposed", "vit", f"{VIT}:ViTPatchEmbeddings.forward", ".flatten(2).transpose(1, 2)",
        ".flatten(2)", r"transpose\(1, 2\)"),
    Bug("CLS twice", "vit", f"{VIT}:ViTEmbeddings.forward", "(cls_tokens, embeddings)",
        "(cls_tokens, cls_tokens, embeddings)", "One too many"),
    Bug("CLS left out", "vit", f"{VIT}:ViTEmbeddings.forward", "torch.cat((cls_tokens, embeddings), dim=1)",
        "embeddings", "One too few"),
    Bug("CLS joined along the batch", "vit", f"{VIT}:ViTEmbeddings.forward", "dim=1", "dim=0", "dim=1"),
    Bug("flattened with the batch", "resnet", f"{RESNET}:ResNet._forward_impl", "torch.flatten(x, 1)",
        "torch.flatten(x)", r"flatten\(1\)|start_dim=1"),
    Bug("pooling left out", "resnet", f"{RESNET}:ResNet._forward_impl", "self.avgpool(x)", "x", "pool"),
    Bug("a shortcut without its convolution", "resnet", f"{RESNET}:BasicBlock.forward", "self.downsample(x)", "x",
        r"`(?:layer2.0.)?downsample"),
    Bug("patches not permuted", "torchvision vit", f"{TV_VIT}._process_input", "x.permute(0, 2, 1)", "x",
        r"transpose\(1, 2\)", "x = self._process_input(x)"),
    Bug("dense features joined along the batch", "densenet", f"{DENSENET}:_DenseLayer.bn_function",
        "torch.cat(inputs, 1)", "torch.cat(inputs, 0)", "dim=1"),
    Bug("not flattened before the classifier", "densenet", f"{DENSENET}:DenseNet.forward", "torch.flatten(out, 1)",
        "out", r"flatten\(1\)"),
    Bug("patches not transposed", "mixer", TIMM_PATCHES, "x.flatten(2).transpose(1, 2)", "x.flatten(2)",
        r"transpose\(1, 2\)", "return"),
    Bug("mixed along the wrong axis", "mixer", "timm.models.mlp_mixer:MixerBlock.forward",
        "self.norm1(x).transpose(1, 2)", "self.norm1(x)", r"transpose\(1, (?:-1|2)\)"),
    Bug("CLS left out", "timm vit", f"{TIMM_VIT}._pos_embed",
        "x = torch.cat(to_cat + [x], dim=1)\n        x = x + pos", "pass\n        x = x + pos", "One too few",
        "x = x + pos_embed"),
    Bug("the 3 of queries, keys, values not in front", "timm vit", "timm.layers.attention:Attention.forward",
        "permute(2, 0, 3, 1, 4)", "permute(0, 2, 3, 1, 4)", r"unbind\(1\)"),
    Bug("channels not last before the norm", "convnext", CONVNEXT, "x.permute(0, 2, 3, 1)", "x",
        r"permute\(0, 2, 3, 1\)", "x = self.norm(x)"),
    Bug("channels not back in front", "convnext", CONVNEXT, "x.permute(0, 3, 1, 2)", "x",
        r"permute\(0, 3, 1, 2\)|channels last"),
    Bug("frames and features not exchanged", "conformer", "torchaudio.models.conformer:_ConvolutionModule.forward",
        "x = x.transpose(1, 2)", "pass", r"transpose\(1, 2\)", "self.sequential(x)"),
    Bug("transposed padding mask", "conformer", "torchaudio.models.conformer:Conformer.forward",
        "_lengths_to_padding_mask(lengths)", "_lengths_to_padding_mask(lengths).T", r"key_padding_mask\.T|mask\.T"),
    Bug("queries: heads and frames not exchanged", "wav2vec2", f"{WAV2VEC2}:SelfAttention.forward",
        "self.q_proj(x).view(*shape).transpose(2, 1)", "self.q_proj(x).view(*shape)", r"transpose\(1, 2\)"),
    Bug("features before frames", "wav2vec2", f"{WAV2VEC2}:FeatureExtractor.forward", "x.transpose(1, 2)", "x",
        r"transpose\(1, 2\)", "return"),
    Bug("the frame too many of an even kernel", "wav2vec2", f"{WAV2VEC2}:ConvolutionalPositionalEmbedding.forward",
        "self.num_remove > 0", "self.num_remove > 1", "One too many", "return"),
]  # fmt: skip

BUGS = [*OURS, *OTHERS]


def models() -> dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...]]]]:
    """Small models of other libraries, with inputs; sizes that mean different things are different."""

    def hf(name: str, config: Any, *inputs: Any) -> tuple[nn.Module, tuple[Any, ...]]:
        import transformers

        return getattr(transformers, name)(config(transformers)), inputs

    def vision(library: str, name: str, *inputs: Any, **settings: Any) -> tuple[nn.Module, tuple[Any, ...]]:
        make = importlib.import_module(library)
        return (make.create_model(name, **settings) if library == "timm" else getattr(make, name)(**settings)), inputs

    def audio(name: str, *inputs: Any, **settings: Any) -> tuple[nn.Module, tuple[Any, ...]]:
        import torchaudio.models

        return getattr(torchaudio.models, name)(**settings), inputs

    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama = {**size, "num_key_value_heads": 2, "vocab_size": 99}
    gpt2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2}
    layers = {f"{part}_{what}": number for part in ("encoder", "decoder")
              for what, number in (("layers", 1), ("attention_heads", 4), ("ffn_dim", 64))}  # fmt: skip
    marks = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    whisper = {"d_model": 32, "max_source_positions": 50, "vocab_size": 99, **layers, **marks}
    wav2vec2 = {
        "extractor_mode": "layer_norm", "extractor_conv_layer_config": [(24, 10, 5), (24, 3, 2)],
        "extractor_conv_bias": False, "encoder_embed_dim": 32, "encoder_projection_dropout": 0.0,
        "encoder_pos_conv_kernel": 16, "encoder_pos_conv_groups": 4, "encoder_num_layers": 2, "encoder_num_heads": 4,
        "encoder_attention_dropout": 0.0, "encoder_ff_interm_features": 64, "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.0, "encoder_layer_norm_first": False, "encoder_layer_drop": 0.0, "aux_num_out": None,
    }  # fmt: skip
    ids, image = torch.ones(2, 6, dtype=torch.long), torch.zeros(2, 3, 32, 32)
    larger, labels = torch.zeros(2, 3, 64, 64), torch.tensor([0, 1])
    bert = ids, None, None, None, None, labels
    conformer = {"input_dim": 16, "num_heads": 4, "ffn_dim": 32, "num_layers": 2,
                 "depthwise_conv_kernel_size": 3}  # fmt: skip
    vit = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 4, "hidden_dim": 48, "mlp_dim": 64}
    return {
        "llama": lambda: hf("LlamaModel", lambda tf: tf.LlamaConfig(**llama), ids),
        "llama eager": lambda: hf("LlamaModel", lambda tf: tf.LlamaConfig(**llama, attn_implementation="eager"), ids),
        "gpt2": lambda: hf("GPT2Model", lambda tf: tf.GPT2Config(**gpt2), ids),
        "bert": lambda: hf("BertForSequenceClassification", lambda tf: tf.BertConfig(**size, vocab_size=99), *bert),
        "whisper": lambda: hf("WhisperModel", lambda tf: tf.WhisperConfig(**whisper), torch.zeros(2, 80, 100), None,
                              ids),
        "vit": lambda: hf("ViTModel", lambda tf: tf.ViTConfig(**size, image_size=32, patch_size=8), image),
        "resnet": lambda: vision("torchvision.models", "resnet18", larger),
        "densenet": lambda: vision("torchvision.models", "DenseNet", larger, growth_rate=8, block_config=(2, 2),
                                   num_init_features=16),
        "torchvision vit": lambda: vision("torchvision.models", "VisionTransformer", image, **vit),
        "mixer": lambda: vision("timm", "mixer_s32_224", larger, img_size=64, num_classes=9),
        "timm vit": lambda: vision("timm", "vit_tiny_patch16_224", larger, img_size=64, depth=2),
        "convnext": lambda: vision("timm", "convnext_atto", larger, conv_mlp=False),
        "conformer": lambda: audio("Conformer", torch.zeros(2, 9, 16), torch.tensor([9, 7]), **conformer),
        "wav2vec2": lambda: audio("wav2vec2_model", torch.zeros(2, 800), **wav2vec2),
    }  # fmt: skip


def dry_run_inputs(bug: Bug) -> Any:
    """What the pipelines read: a short text where each token of it costs 30 steps."""
    from tinyomni.dry_run import default_inputs

    return default_inputs("Hi." if bug.model == "speech" else None)


# ---- planting -------------------------------------------------------------------------------------------------------


PLANTED = "planted/"  # in front of the names of files with a bug


@dataclass(frozen=True)
class Planted:
    """A bug in its place."""

    file: str  # as a traceback names it
    lines: tuple[int, ...]  # those to which a message may lead
    text: str  # the first of them

    @property
    def where(self) -> str:
        """`modeling_llama.py:244`."""
        return f"{self.file}:{self.lines[0]}"


def function_of(bug: Bug) -> FunctionType:
    """The plain function inside its decorators."""
    module, _, path = bug.target.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    right = inspect.unwrap(vars(owner)[name])
    assert isinstance(right, FunctionType), bug.target
    return right


def wrong_source(bug: Bug) -> tuple[str, Planted]:
    """The source of the function with the bug in it, on its own lines, and where a message should lead."""
    right = function_of(bug)
    whole, start = inspect.getsourcelines(right)
    first = next(i for i, line in enumerate(whole) if line.lstrip().startswith("def "))
    start += first
    before = textwrap.dedent("".join(whole[first:]))
    if bug.old not in before:
        raise ValueError(f"{bug.title}: {bug.old!r} is no longer in {bug.target}")
    after = before.replace(bug.old, bug.new) if bug.old else bug.new.lstrip()
    old, new = before.splitlines(), after.splitlines()
    changed = next(i for i, (a, b) in enumerate(zip([*old, ""], [*new, ""], strict=False)) if a != b)
    offset = start
    wanted = [i for i, line in enumerate(new) if bug.line in line] if bug.line else [min(changed, len(new) - 1)]
    if not wanted:  # in another function of the file
        new = inspect.getsource(inspect.getmodule(right)).splitlines()  # type: ignore[arg-type]
        wanted, offset = [i for i, line in enumerate(new) if bug.line in line], 1
    if not wanted:
        raise ValueError(f"{bug.title}: {bug.line!r} is not in {bug.target}")
    file = PLANTED + inspect.getfile(right).replace("\\", "/").rpartition("/")[2]
    return "\n" * (start - 1) + after, Planted(file, tuple(offset + i for i in wanted), new[wanted[0]].strip())


@contextmanager
def planted(bug: Bug) -> Iterator[Planted]:
    """The bug in its place: the function stays, with its decorators, and gets other code."""
    right = function_of(bug)
    source, found = wrong_source(bug)
    linecache.cache[found.file] = (len(source), None, source.splitlines(keepends=True), found.file)
    space: dict[str, Any] = {}
    flags = __future__.annotations.compiler_flag  # of annotations, nothing is run
    exec(compile(source, found.file, "exec", flags=flags, dont_inherit=True), right.__globals__, space)
    wrong = space[right.__name__]
    names = ("__code__", "__defaults__", "__kwdefaults__")
    before = {name: getattr(right, name) for name in names}
    wrong.__code__ = wrong.__code__.replace(co_qualname=right.__code__.co_qualname)
    for name in names if bug.old == "" else names[:1]:
        setattr(right, name, getattr(wrong, name))
    try:
        yield found
    finally:
        for name, value in before.items():
            setattr(right, name, value)

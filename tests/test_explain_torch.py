"""What torch's own errors mean: each program here fails, and the explanation has to name the line, the shapes and the
likely fix. No model is annotated."""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tinyomni.tracing import ShapeError, trace

f32, i64 = torch.zeros, lambda *shape: torch.zeros(*shape, dtype=torch.int64)

# what it is: (the body of forward(self, x, y), the layers, x, y, the line that is named, the explanation)
BUGS: dict[str, tuple[str, dict[str, Any], Any, Any, str, str]] = {
    # ---- attention
    "missing transpose": ("return self.attn(x, x, x)[0]", {"attn": nn.MultiheadAttention(24, 3, batch_first=True)},
        f32(4, 24, 7), None, "self.attn(x, x, x)",
        r"takes \(batch, tokens, features\), .*with 24 features; got query \(4, 24, 7\)\. `query.transpose\(1, -1\)`"),
    "missing transpose in an encoder layer": ("return self.enc(x)",
        {"enc": nn.TransformerEncoderLayer(12, 2, 8)}, f32(5, 12, 9), None, "self.enc(x)",
        r"`enc.self_attn` .* with 12 features; got query \(5, 12, 9\)\. `query.transpose\(1, -1\)`"),
    "transposed padding mask": ("return self.attn(x, x, x, key_padding_mask=y)",
        {"attn": nn.MultiheadAttention(8, 2, batch_first=True)}, f32(3, 6, 8), f32(6, 3).bool(), "self.attn",
        r"must be \(batch, keys\) \(3, 6\), got \(6, 3\)\. `key_padding_mask.T`"),
    "transposed padding mask in an encoder": ("return self.enc(x, src_key_padding_mask=y)",
        {"enc": nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 1).requires_grad_(False)
            .eval()}, f32(3, 6, 8), f32(6, 3).bool(), "self.enc", r"got y \(6, 3\)\. `y.T`|key_padding_mask.T"),
    "batch_first forgotten": ("return self.attn(x, x, x, key_padding_mask=y)", {"attn": nn.MultiheadAttention(8, 2)},
        f32(3, 6, 8), f32(3, 6).bool(), "self.attn", r"batch_first=False; .*Then batch_first=True"),
    "padding mask for attn_mask": ("return self.attn(x, x, x, attn_mask=y)",
        {"attn": nn.MultiheadAttention(8, 2, batch_first=True)}, f32(3, 6, 8), f32(3, 6), "self.attn",
        r"attn_mask must be \(queries, keys\) \(6, 6\), got \(3, 6\)\. .*`key_padding_mask=`"),
    "mask without heads": ("return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=y)", {},
        f32(3, 2, 6, 8), f32(3, 6).bool(), "scaled_dot_product", r"`y\[:, None, None, :\]`"),
    "keys not transposed": ("scores = x @ y / 3\nreturn scores", {}, f32(2, 3, 5, 16), f32(2, 3, 9, 16), "x @ y",
        r"last axis of x .* axis -2 of y .*`y.transpose\(-2, -1\)`"),
    # ---- layers
    "conv of doubles": ("return self.conv(x)", {"conv": nn.Conv2d(2, 3, 3)}, f32(1, 2, 8, 8).double(), None,
        "self.conv(x)", r"`conv` is a Conv2d of float32; its input .* float64 .*`x.to\(torch.float32\)`"),
    "conv of bytes": ("return self.conv(x)", {"conv": nn.Conv1d(2, 3, 3)}, f32(1, 2, 8).byte(), None, "self.conv(x)",
        r"uint8 has another dtype.*Divide an image by 255"),
    "linear of integers": ("return self.head(x)", {"head": nn.Linear(5, 3)}, i64(2, 5), None, "self.head(x)",
        r"`head` is a Linear of float32; its input \(2, 5\) int64"),
    "linear of half": ("return self.head(x)", {"head": nn.Linear(5, 3)}, f32(2, 5).half(), None, "self.head(x)",
        r"Linear of float32; its input \(2, 5\) float16"),
    "recurrent of doubles": ("return self.rnn(x)", {"rnn": nn.LSTM(5, 3)}, f32(2, 4, 5).double(), None, "self.rnn(x)",
        r"`rnn` is a LSTM of float32; its input .* float64"),
    "another device": ("return self.head(x)", {"head": nn.Linear(5, 3)}, f32(2, 5, device="meta"), None, "self.head(x)",
        r"`head` is a Linear on cpu; its input .* is on meta\. `model.to\('meta'\)`"),
    "a buffer on another device": ("return x * self.scale", {"scale": nn.Parameter(f32(5))}, f32(2, 5, device="meta"),
        None, "x * self.scale", r"x is on meta and self.scale is on cpu"),
    "dropped batch": ("x = self.conv(x)[0]\nreturn self.head(x.flatten(1))",
        {"conv": nn.Conv2d(3, 4, 3, padding=1), "head": nn.Linear(4 * 10 * 6, 2)}, f32(1, 3, 10, 6), None,
        "self.head(x.flatten(1))", r"4 × 60 = 240, .*was the batch axis dropped\? Keep it, `x\[None\]`"),
    "joined along the batch": ("return self.head(torch.cat([x, y], dim=0))", {"head": nn.Linear(10, 2)}, f32(3, 5),
        f32(3, 5), "self.head(torch.cat", r"10 = 2 × 5: joined along the wrong axis\? `torch.cat\(…, dim=-1\)`, not 0"),
    "joined along the frames": ("both = torch.cat([x, y, x], 1)\nreturn self.head(both)", {"head": nn.Linear(24, 2)},
        f32(2, 7, 8), f32(2, 7, 8), "self.head(both)", r"24 = 3 × 8: joined along the wrong axis.*not 1"),
    "a table too short": ("return x + y", {}, f32(2, 12, 8), f32(10, 8), "x + y",
        r"axis 1 of x is longer than y, 12 and 10: a longer table, or a shorter input\?"),
    "flattened batch": ("return self.head(x.flatten())", {"head": nn.Linear(30, 2)}, f32(7, 5, 6), None, "self.head",
        r"210 = 7 × 30: was the batch flattened, too\? `x.flatten\(1\)`"),
    "over several lines": ("return self.head(\n    self.conv(\n        x\n    )\n)",
        {"conv": nn.Conv1d(2, 4, 3), "head": nn.Linear(24, 2)}, f32(5, 2, 8), None, "return self.head(self.conv(x))",
        r"`head` .* 4 × 6 = 24: `self.conv\(x\).flatten\(1\)` before it"),
    "transposed convolution": ("return self.up(x)", {"up": nn.ConvTranspose1d(6, 3, 2)}, f32(2, 9, 6), None, "self.up",
        r"takes \(batch, 6 channels, …\), 3 dims; got .*`x.transpose\(1, 2\)`"),
    "channels last": ("return self.norm(x)", {"norm": nn.GroupNorm(2, 6)}, f32(2, 9, 9, 6), None, "self.norm",
        r"takes 6 channels on axis 1; .*`x.permute\(0, 3, 1, 2\)`"),
    "batch norm of images": ("return self.norm(x)", {"norm": nn.BatchNorm1d(6)}, f32(2, 6, 4, 4), None, "self.norm",
        r"BatchNorm1d and takes 2 or 3 dims; .*`BatchNorm2d`"),
    "batch norm of one": ("return self.norm(x)", {"norm": nn.BatchNorm1d(6)}, f32(1, 6), None, "self.norm",
        r"more than one value for each channel.*`.eval\(\)`"),
    "kernel too large": ("return self.conv(x)", {"conv": nn.Conv2d(1, 2, 7)}, f32(1, 1, 5, 5), None, "self.conv",
        r"kernel of \(7, 7\) over \(5, 5\)"),
    "pooled away": ("return self.pool(x)", {"pool": nn.MaxPool2d(8)}, f32(1, 1, 5, 5), None, "self.pool",
        r"windows of 8; .*nothing is left"),
    "state with batch first": ("return self.rnn(x, y)", {"rnn": nn.GRU(4, 6, 2, batch_first=True)}, f32(3, 5, 4),
        f32(3, 2, 6), "self.rnn", r"state \(layers, batch, features\) \(2, 3, 6\); got \(3, 2, 6\)\. `h.transpose"),
    "bilinear": ("return self.b(x, x)", {"b": nn.Bilinear(5, 7, 2)}, f32(3, 5), None, "self.b", "takes 5 and 7"),
    # ---- operations
    "cat along the wrong axis": ("return torch.cat([x, y], dim=0)", {}, f32(2, 3, 8), f32(2, 7, 8), "torch.cat",
        r"joins along dim 0, but x \(2, 3, 8\), y \(2, 7, 8\) differ on axis 1: `dim=1`"),
    "cat of a list": ("parts = [x, y, x]\nreturn torch.cat(parts, -1)", {}, f32(4, 3), f32(9, 3), "cat(parts, -1)",
        r"parts\[1\] \(9, 3\).* differ on axis 0: `dim=0`"),
    "cat without an axis": ("return torch.cat((x, y), 1)", {}, f32(2, 3, 8), f32(2, 8), "torch.cat",
        r"y \(2, 8\) has no axis 1: `y.unsqueeze\(1\)`"),
    "stack of lengths": ("return torch.stack([x, y])", {}, f32(4), f32(6), "stack",
        r"\[4\] and \[6\].*pad_sequence"),
    "position table": ("return x + self.pos", {"pos": nn.Parameter(f32(1, 64, 6))}, f32(3, 10, 6), None, "x + self.pos",
        r"axis 1 of self.pos is longer\. `self.pos\[:, :10\]`"),
    "a weight for each row": ("return x * y", {}, f32(6, 4), f32(6), "x * y", r"`y.unsqueeze\(1\)`"),
    "two axes exchanged": ("return x + y", {}, f32(2, 5, 7), f32(2, 7, 5), "x + y", r"`x.transpose\(1, 2\)`"),
    "heads do not divide": ("b, t, width = x.shape\nheads = 3\nreturn x.view(b, t, heads, width // heads)", {},
        f32(2, 5, 16), None, "x.view(b, t, heads, width // heads)",
        r"with x \(2, 5, 16\) float32, b = 2, t = 5, heads = 3, width = 16\n.*160 numbers, but 2 × 5 × 3 × 5 = 150"),
    "view of a transposed": ("z = x.transpose(1, 2)\nreturn z.view(2, -1)", {}, f32(2, 5, 6), None, "z.view(2, -1)",
        r"`.reshape\(…\)`, not `.view\(…\)`"),
    "not enough dims": ("b, h, t, d = x.shape\nreturn x", {}, f32(2, 5, 6), None, "b, h, t, d = x.shape",
        r"x has 3 dims, \(2, 5, 6\); 4 names"),
    "too many dims": ("b, t = x.size()\nreturn x", {}, f32(2, 5, 6), None, "b, t = x.size()", "x has 3 dims.*2 names"),
    "no such dim of a shape": ("return x.reshape(x.shape[2], -1)", {}, f32(2, 5), None, "x.shape[2]",
        r"x \(2, 5\) has 2 dims: there is no `x.shape\[2\]`"),
    "no such dim": ("return x.softmax(dim=3)", {}, f32(2, 5, 6), None, "x.softmax(dim=3)", "has 3 dims, 0 … 2; dim 3"),
    "index beyond the end": ("return x[:, 9]", {}, f32(2, 5), None, "x[:, 9]", "Axis 1 has 5 entries, 0 … 4; index 9"),
    "id beyond the table": ("return nn.functional.embedding(x, self.w)", {"w": nn.Parameter(f32(7, 2))},
        torch.full((2, 3), 7), None, "embedding(x, self.w)", r"outside 0 … 6: the table self.w \(7, 2\)"),
    "gather": ("return x.gather(-1, y)", {}, f32(2, 5, 6), i64(2, 5), "x.gather",
        r"`x.gather\(-1, y.unsqueeze\(-1\)\)"),
    # ---- indices
    "scatter of rows": ("return self.w.scatter_add(0, y, x)", {"w": nn.Parameter(f32(9, 8))}, f32(4, 8), i64(4),
        "self.w.scatter_add",
        r"with as many dims as the tensor; got \(4,\).* along dim 0: `index_add`, or `y\[:, None\].expand\(-1, 8\)`"),
    "scatter of classes": ("return x.scatter(1, y, 1.0)", {}, f32(5, 8), i64(5), "x.scatter",
        r"One for each along the other dims: `y.unsqueeze\(1\)`\?"),
    "more indices than values": ("return x.scatter_add(0, y, x)", {}, f32(5, 8), i64(9, 8), "x.scatter_add",
        r"along dim 0, with an index \(9, 8\): axis 0 has 9 indices for 5 values"),
    "scatter along the other dim": ("return x.scatter(1, y, 1.0)", {}, f32(3, 7), i64(5, 2), "x.scatter",
        r"axis 0 has 5 indices, and the tensor 3.* Is `dim=0` meant, or `.T`"),
    "one index too many": ("return torch.zeros(9, 8).index_add(0, y, x)", {}, f32(5, 8), i64(6), "index_add(0, y, x)",
        "one index for each entry of the source along dim 0: 6 for 5. Was one"),
    "indices of the other axis": ("return torch.zeros(9, 8).index_add(0, y, x)", {}, f32(5, 8), i64(8),
        "index_add(0, y, x)", "8 for 5. Was one of them cut or padded"),
    "a column of indices": ("return torch.index_add(x, 0, y, x)", {}, f32(5, 8), i64(5, 1), "torch.index_add",
        r"takes a list of indices, \(n,\); got \(5, 1\): `y.squeeze\(1\)`"),
    "source of another width": ("return torch.zeros(9, 7).index_add(0, y, x)", {}, f32(5, 8), i64(5),
        "index_add(0, y, x)", "along dim 0 needs a source .*: axis 1 has 8, and the tensor 7"),
    "floats as indices": ("return x[y]", {}, f32(5, 8), f32(3), "x[y]", r"got y \(3,\) float32: `.long\(\)`"),
    "a transposed mask": ("return x[y]", {}, f32(5, 3, 8), f32(3, 5).bool(), "x[y]",
        r"\(5, 3\); got \(3, 5\): transpose"),
    "a mask of a later axis": ("return x[:, y]", {}, f32(6, 4), f32(6).bool(), "x[:, y]",
        r"here \(4,\); got \(6,\): axis 1 has 4, and the mask 6"),
    "another dim is meant": ("return torch.index_add(self.w, 0, y, x)", {"w": nn.Parameter(f32(5, 9))}, f32(5, 8),
        i64(8), "torch.index_add", r"8 for 5\. `dim=1`"),
    "several for each": ("return x.take_along_dim(y, dim=1)", {}, f32(2, 7, 4), i64(2, 3), "take_along_dim",
        r"`y.unsqueeze\(-1\)`"),
    "cat of a frame less": ("return torch.cat([x, y], -1)", {}, f32(2, 4, 3), f32(2, 3), "torch.cat",
        r"`y.unsqueeze\(1\).expand\(-1, 4, -1\)`"),
    "labels from 1, by name": ("return nn.functional.one_hot(x, num_classes=3)", {}, i64(2) + 3, None, "one_hot",
        "takes labels 0 … 2"),
    "floats to gather by": ("return x.gather(1, y)", {}, f32(5, 3), f32(5, 3), "x.gather", r"got y float32: `y.long"),
    "floats to add by": ("return x.index_add(0, y / 2, x)", {}, f32(5, 3), i64(5), "x.index_add",
        r"got y / 2 float32: `\(y / 2\).long"),
    "an id beyond another axis": ("return x[:, y]", {}, f32(4, 7, 3), i64(2) + 9, "x[:, y]", "Axis 1 has 7 entries.*9"),
    "an id beyond the last axis": ("return x[..., y]", {}, f32(4, 7, 3), i64(2) + 9, "x[..., y]",
        "Axis 2 has 3 entries"),
    "ids beyond the second of two": ("return x[:, y - 9, y]", {}, f32(4, 7, 7), i64(2) + 9, "x[:, y - 9, y]",
        "Axis 2 has 7 entries"),
    "an id behind a slice with a name": ("s = slice(0, 2)\nreturn x[s, y]", {}, f32(7, 7), i64(2) + 9, "x[s, y]",
        "An axis has 7 entries"),
    "a size of one axis": ("s = slice(0, 2)\nreturn x[s, y]", {}, f32(4, 7), i64(2) + 9, "x[s, y]", "Axis 1 has 7"),
    "an entry behind another": ("return x[:, 1, 9]", {}, f32(4, 7, 7), None, "x[:, 1, 9]", "Axis 2 has 7 entries"),
    "an id behind a number": ("return x[0, :, y]", {}, f32(4, 7, 7), i64(2) + 9, "x[0, :, y]", "Axis 2 has 7 entries"),
    "an id behind a mask": ("return x[y, self.ids]", {"ids": i64(1) + 8}, f32(4, 7, 3), f32(4, 7) == 0,
        "x[y, self.ids]", "Axis 2 has 3 entries"),
    "an id that is assigned to": ("x[:, None, y] = 0.0\nreturn x", {}, f32(4, 7), i64(1) + 7, "x[:, None, y] = 0.0",
        "Axis 1 has 7 entries"),
    "an entry to select": ("return x.select(-1, 3)", {}, f32(4, 7, 3), None, "x.select",
        r"Axis 2 has 3 entries, 0 … 2; index 3"),
    "a mask and more": ("return x[y, :, 0]", {}, f32(4, 7, 3), f32(4, 7).bool(), "x[y, :, 0]",
        "3 dims, and 4 are indexed; a mask stands for as many as it has"),
    "a table that comes first": ("return torch.embedding(self.w, x)", {"w": nn.Parameter(f32(7, 2))},
        torch.full((2, 3), 7), None, "torch.embedding", r"the table self.w \(7, 2\) has 7 rows"),
    "a table of the module": ("return nn.functional.embedding(x, TABLE)", {}, torch.full((2, 3), 7), None, "embedding",
        r"the table TABLE \(5, 2\) has 5 rows"),
    "nothing to index": ("return x[0]", {}, f32(0, 2), None, "x[0]", "index 0 is beyond the end"),
    "before the beginning": ("return x[-6]", {}, f32(5, 2), None, "x[-6]", "index -6 is before the beginning, -5"),
    "indexed with an ellipsis": ("return x[..., 0, 0, 0]", {}, f32(4, 6), None, "x[", "2 dims, and 3 are indexed"),
    "a computed index": ("return x.index_select(0, y + 1)", {}, f32(5, 8), i64(1, 3), "x.index_select",
        r"`\(y \+ 1\).squeeze\(0\)`"),
    "probabilities as indices": ("return x[y.softmax(-1)]", {}, f32(5, 8), f32(3, 5), "x[y.softmax(-1)]",
        r"`.argmax\(-1\)`"),
    "scatter of columns": ("return x.scatter(0, y, 1.0)", {}, f32(5, 3), i64(3), "x.scatter",
        r"`y.unsqueeze\(0\)`\?"),
    "an index beyond a dim": ("return x.index_select(1, y)", {}, f32(4, 3), i64(2) + 3, "x.index_select",
        "beyond the 3 entries of axis 1"),
    "an id beyond a table that is named": ("return nn.functional.embedding(weight=self.w, input=x)",
        {"w": nn.Parameter(f32(7, 2))}, torch.full((2, 3), 7), None, "embedding(", r"the table self.w \(7, 2\) has 7"),
    "gather of more rows": ("return x.gather(1, y)", {}, f32(3, 5), i64(4, 2), "x.gather",
        "axis 0 has 4 indices, and the tensor 3"),
    "a mask of another length": ("return x[y]", {}, f32(2, 5, 8), f32(2, 6).bool(), "x[y]",
        r"here \(2, 5\); got \(2, 6\): axis 1 has 5, and the mask 6"),
    "labels from 1": ("return nn.functional.one_hot(x, 5)", {}, i64(3) + 5, None, "one_hot", "takes labels 0 … 4"),
    "taken along a dim": ("return torch.take_along_dim(x, y, 1)", {}, f32(3, 4), i64(3), "take_along_dim",
        r"got x \(3, 4\), y \(3,\)\. `y.unsqueeze\(1\)`"),
    "an end for a length": ("return x.narrow(1, 3, 7)", {}, f32(2, 8), None, "x.narrow",
        "3 \\+ 7 is more than the 8 entries of this axis. `length=4`"),
    "a window too long": ("return x.unfold(1, 20, 1)", {}, f32(2, 16), None, "x.unfold", "20 does not fit into the 16"),
    "a speaker for every frame": ("return torch.cat([x, y], dim=-1)", {}, f32(2, 7, 8), f32(2, 4), "torch.cat",
        r"`y\[:, None, :\].expand\(-1, 7, -1\)`, one for each of the batch"),
    "a class for every pixel": ("return torch.cat((x, y), 1)", {}, f32(2, 8, 5, 6), f32(2, 4), "torch.cat",
        r"`y\[:, :, None, None\].expand\(-1, -1, 5, 6\)`, one for each of the batch"),
    "einsum": ("return torch.einsum('bqd,bkd->bqk', x, y)", {}, f32(2, 5, 8), f32(2, 8, 6), "einsum",
        "the letter d is 8 before and 6 in operand 1"),
    "functional linear": ("return nn.functional.linear(x, self.w)", {"w": nn.Parameter(f32(5, 3))}, f32(2, 5), None,
        "linear(x, self.w)", r"weight \(out, in\); .*`self.w.T`"),
    # ---- losses
    "classes on the last axis": ("return nn.functional.cross_entropy(x, y)", {}, f32(3, 8, 20), i64(3, 8),
        "cross_entropy(x, y)", r"classes on axis 1; x \(3, 8, 20\) has 8 there: `x.flatten\(0, -2\), y.flatten\(\)`"),
    "only scores flattened": ("return nn.functional.cross_entropy(x.flatten(0, 1), y)", {}, f32(3, 8, 20), i64(3, 8),
        "cross_entropy", "24 rows of scores and 3 labels: .*only the scores were flattened"),
    "only labels shifted": ("return nn.functional.cross_entropy(x.flatten(0, 1), y[:, 1:].flatten())", {},
        f32(3, 8, 20), i64(3, 8), "cross_entropy", "24 rows of scores and 21 labels. Were the labels shifted"
        r" by one, and the scores not\? `x\[:, :-1\]`, before `flatten`"),
    "labels as a column": ("return nn.functional.cross_entropy(x, y)", {}, f32(6, 4), i64(6, 1), "cross_entropy",
        r"`y.squeeze\(1\)`"),
    "labels as floats": ("return nn.functional.cross_entropy(x, y)", {}, f32(6, 4), f32(6), "cross_entropy",
        r"Class numbers are int64; got y \(6,\) float32\. `y.long\(\)`"),
    "column against row": ("return nn.functional.binary_cross_entropy_with_logits(x, y)", {}, f32(6, 1), f32(6),
        "binary_cross", r"`x.squeeze\(-1\)`"),
    "integer labels": ("return nn.functional.binary_cross_entropy_with_logits(x, y)", {}, f32(6), i64(6),
        "binary_cross", r"`y.float\(\)`"),
    # ---- what the source or torch's own function shows
    "several statements on one line": ("a = x; b = y; c = a @ a.mT; return a @ b", {}, f32(3, 4), f32(5, 6),
        "return a @ b",
        r"`a @ b` needs the last axis of a \(3, 4\).*they are 4 and 5"),
    "a stack for a cat": ("both = torch.stack([x, y], dim=1)\nreturn self.head(both)", {"head": nn.Linear(16, 2)},
        f32(2, 7, 8), f32(2, 7, 8), "self.head(both)",
        r"16 = 2 × 8: `stack` makes a new axis\. `torch.cat\(…, dim=-1\)`"),
    "a skip connection along the height": ("return self.conv(torch.cat([x, y], dim=2))", {"conv": nn.Conv2d(8, 4, 3)},
        f32(2, 4, 8, 8), f32(2, 4, 8, 8), "self.conv",
        r"8 = 2 × 4: joined along the wrong axis\? `torch.cat\(…, dim=1\)`"),
    "a loss of computed scores": ("return nn.functional.binary_cross_entropy_with_logits(self.head(x) * 2, y)",
        {"head": nn.Linear(5, 1)}, f32(3, 5), f32(3), "binary_cross", r"\(3, 1\) and y \(3,\): `.*`?"),
    "a loss module": ("return nn.MSELoss()(x.cumsum(1), y)", {}, f32(3, 5), f32(3, 6), "MSELoss",
        r"takes two tensors of one shape; got input \(3, 5\) and y \(3, 6\)"),
    "labels from one on": ("return nn.functional.cross_entropy(x, y)", {}, f32(3, 5), torch.full((3,), 5),
        "cross_entropy",
        r"A label is 5, and x \(3, 5\) has the classes 0 … 4"),
    "one-hot integers": ("return nn.functional.cross_entropy(x, y)", {}, f32(3, 5), i64(3, 5), "cross_entropy",
        r"`y.argmax\(1\)`, or `y.float\(\)`"),
    "a wrong padding mask of an encoder layer": ("return self.enc(x, src_key_padding_mask=y)",
        {"enc": nn.TransformerEncoderLayer(8, 2, 8)}, f32(6, 3, 8), f32(6, 3).bool(), "self.enc",
        r"must be \(batch, keys\) \(3, 6\), got \(6, 3\)|\(batch, tokens\) \(3, 6\)"),
    "source and target": ("return self.t(x, y)", {"t": nn.Transformer(8, 2, 1, 1, 8, batch_first=True)}, f32(2, 5, 8),
        f32(3, 5, 8), "self.t", r"takes \(batch, tokens, features\), batch_first=True; .* their batches are 2 and 3"),
    "keys and values of two lengths": ("return self.a(x, x, y)", {"a": nn.MultiheadAttention(8, 2, batch_first=True)},
        f32(2, 5, 8), f32(2, 4, 8), "self.a", r"a value for each key; got key \(2, 5, 8\) and value \(2, 4, 8\)"),
    "fewer heads of keys": ("return nn.functional.scaled_dot_product_attention(x, y, y)", {}, f32(2, 6, 5, 4),
        f32(2, 2, 5, 4), "scaled_dot", r"`enable_gqa=True`, or `y.repeat_interleave\(3, 1\)`"),
    "a compared mask": ("return x.masked_fill(y == 0, 0.0)", {}, f32(2, 3, 4, 4), f32(2, 4, 4), "masked_fill",
        r"`\(y == 0\)\.unsqueeze\(1\)`"),
    "more positions than rows": ("return self.pos(x)", {"pos": nn.Embedding(4, 2)}, torch.arange(6), None, "self.pos",
        r"If these are positions, there are more of them, 6"),
    "an odd size on its way up": ("return torch.cat([x, y], 1)", {}, f32(1, 4, 6, 6), f32(1, 4, 7, 7), "torch.cat",
        r"`F.interpolate\(x, size=y.shape\[2:\]\)`"),
    "a shortcut around a convolution": ("return x + self.conv(x)", {"conv": nn.Conv2d(4, 4, 5)}, f32(1, 4, 9, 9), None,
        "x + self.conv(x)", r"self.conv\(x\) has lost 4 on each axis: a convolution without `padding=2`"),
    "in place": ("x += y\nreturn x", {}, f32(2, 1, 8), f32(2, 5, 8), "x += y",
        r"cannot make x \(2, 1, 8\) larger.*`x = x \+"),
    "assigned to a part": ("x[:, 2:5] = y\nreturn x", {}, f32(4, 9, 8), f32(4, 8), "x[:, 2:5] = y",
        r"\(4, 8\) does not spread to \(4, 3, 8\).*`.unsqueeze\(1\)`"),
    "assigned with an axis too many": ("x[:, 0] = y\nreturn x", {}, f32(4, 9, 8), f32(4, 1, 8), "x[:, 0] = y",
        r"\(4, 1, 8\) has 3 dims.*`.squeeze\(1\)`"),
    "parts that do not add up": ("a, b = x.split([3, 4], dim=-1)\nreturn a", {}, f32(2, 8), None, "x.split",
        r"The parts 3 \+ 4 = 7, but axis -1 has 8"),
    "a part too many": ("a, b = x.chunk(4, dim=-1)\nreturn a", {}, f32(2, 8), None, "x.chunk",
        "gives 4 parts, and 2 names"),
    "a dim left out": ("return x.permute(0, 2)", {}, f32(2, 8, 3), None, "x.permute",
        r"takes each dim once; x \(2, 8, 3\) has 3"),
    "batches of a product": ("return torch.bmm(x, y)", {}, f32(2, 3, 5), f32(4, 5, 2), "torch.bmm",
        r"the axes before them do not, \(2, 3, 5\) and \(4, 5, 2\)"),
    "a product of matrices": ("return torch.bmm(x, y)", {}, f32(3, 5), f32(5, 2), "torch.bmm",
        r"`x @ y` takes any number"),
    "an index too many": ("return x[:, :, 0]", {}, f32(3, 5), None, "x[:, :, 0]",
        r"x \(3, 5\) has 2 dims, and 3 are indexed"),
    "letters of an einsum": ("return torch.einsum('bhd,bkd->bhk', x, y)", {}, f32(3, 5), f32(3, 2, 5), "einsum",
        r"x \(3, 5\) has 2 dims and 3 letters"),
    "the result of a layer": ("return self.head(self.conv(x))",
        {"conv": nn.Conv1d(8, 4, 3, padding=1), "head": nn.Linear(4, 2)}, f32(2, 8, 10), None, "self.head",
        r"Axis 1 has 4: `self.conv\(x\).transpose\(1, -1\)`"),
    "a sum": ("return self.conv(x + 1)", {"conv": nn.Conv1d(8, 4, 3)}, f32(2, 10, 8), None, "self.conv",
        r"`\(x \+ 1\).transpose\(1, 2\)`"),
    "a layer within layers": ("return self.net(x)", {"net": nn.Sequential(nn.Linear(8, 9), nn.Linear(5, 2))},
        f32(2, 5, 8), None, "self.net", r"`net.1` .* Axis 1 has 5: `input.transpose\(1, -1\)`"),
    "a batch of one": ("return self.head(x)", {"head": nn.Linear(1, 2)}, f32(1, 5), None, "self.head",
        r"should give 1, or this one should be Linear\(5, …\)"),
    "a token too many in a batch of one": ("return x + y", {}, f32(1, 6, 16), f32(1, 5, 16), "x + y",
        "do not broadcast: One too many in x"),
    "two widths in a batch of one": ("return x * y", {}, f32(1, 4, 7, 16), f32(7, 8), "x * y", "axis 3 of x is longer"),
    "expanded from a batch of one": ("return y.expand(2, 5, 8)", {}, None, f32(1, 2, 8), "y.expand",
        "only an axis of 1 can, and axes are matched from the right. It has 2 where 5 is wanted"),
    "a skip connection of an odd height": ("return torch.cat([x, y], dim=1)", {}, f32(2, 4, 15, 16), f32(2, 4, 16, 16),
        "torch.cat", r"on axis 2 by 1: crop, `y\[:, :, :15\]`, or pad x\? An odd size that is halved"),
    "only scores shifted": ("return nn.functional.cross_entropy(x.flatten(0, 1), y.flatten())", {}, f32(2, 6, 11),
        i64(2, 7), "cross_entropy", r"Were the scores shifted by one, and the labels not\? `y\[:, 1:\]`, before"),
    "a label too many": ("return nn.functional.cross_entropy(x, y)", {}, f32(6, 11), i64(7), "cross_entropy",
        r"labels not\? `y\[1:\]`"),
    "labels of something else": ("return nn.functional.cross_entropy(x, y)", {}, f32(10, 4), i64(7), "cross_entropy",
        "10 rows of scores and 7 labels, and needs one label for each row"),
    "a layer's tuple": ("y, state = x, self.rnn(x)\nreturn self.head(state)", {"rnn": nn.LSTM(5, 4),
        "head": nn.Linear(4, 2)}, f32(3, 2, 5), None, "self.head(state)",
        r"`state` is a tuple of 2, its first entry a tensor \(3, 2, 4\) float32: `state, _ = …` where it is made"),
    "the last step of a tuple": ("y = self.rnn(x)\nreturn y[:, -1]", {"rnn": nn.GRU(5, 4)}, f32(3, 2, 5), None,
        "y[:, -1]", r"`y` is a tuple .*`y, _ = …`"),
    "a tuple within layers": ("return self.net(x)", {"net": nn.Sequential(nn.LSTM(5, 4), nn.Linear(4, 2))},
        f32(3, 2, 5), None, "self.net(x)", r"`net.1` is a Linear, and its input is a tuple .*`input\[0\]`"),
    "a tuple in the call": ("return self.head(self.rnn(x))", {"rnn": nn.LSTM(5, 4), "head": nn.Linear(4, 2)},
        f32(3, 2, 5), None, "self.head", r"its input is a tuple .*`self.rnn\(x\)\[0\]`"),
    "one sequence transposed": ("return self.rnn(x)", {"rnn": nn.GRU(80, 8)}, f32(80, 100), None, "self.rnn",
        r"got \(80, 100\) float32\. `x.transpose\(0, 1\)`"),
    "a number for each sample": ("return self.head(x)", {"head": nn.Linear(1, 8)}, f32(4), None, "self.head",
        r"`x.unsqueeze\(-1\)`"),
    "from tokens first to channels": ("y, _ = self.rnn(x)\nreturn self.conv(y)", {"rnn": nn.LSTM(8, 16),
        "conv": nn.Conv1d(16, 4, 3)}, f32(12, 2, 8), None, "self.conv(y)", r"`y.permute\(1, 2, 0\)`"),
    "a linear layer of an image": ("return self.head(x)", {"head": nn.Linear(8, 3)}, f32(2, 8, 6, 9), None,
        "self.head", r"channels first\? `x.permute\(0, 2, 3, 1\)`"),
    "heads not merged": ("return self.out(x)", {"out": nn.Linear(32, 32)}, f32(2, 4, 7, 8), None, "self.out",
        r"4 × 8 = 32, .*`x.transpose\(1, 2\).flatten\(2\)`"),
    "batch_first of a recurrent layer": ("return self.rnn(x, y)", {"rnn": nn.GRU(8, 16)}, f32(2, 5, 8), f32(1, 2, 16),
        "self.rnn", r"got \(2, 5, 8\), and a state of 2 sequences\. `x.transpose\(0, 1\)` or batch_first=True"),
    "a state of too few layers": ("return self.rnn(x, y)", {"rnn": nn.GRU(8, 16, 2)}, f32(5, 2, 8), f32(1, 2, 16),
        "self.rnn", r"a state \(layers, batch, features\) \(2, 2, 16\); got \(1, 2, 16\)\.$"),
    "one tensor for a state of two": ("return self.rnn(x, y)", {"rnn": nn.LSTM(8, 16)}, f32(5, 3, 8), f32(1, 3, 16),
        "self.rnn", r"takes its state as a tuple \(h, c\); got one tensor \(1, 3, 16\)"),
    "a complex spectrogram": ("return self.conv(x)", {"conv": nn.Conv1d(33, 8, 3)},
        torch.zeros(2, 33, 26, dtype=torch.complex64), None, "self.conv", r"is complex\. `x.abs\(\)`"),
    "queries and keys, batch_first forgotten": ("return self.a(x, y, y)", {"a": nn.MultiheadAttention(8, 2)},
        f32(2, 5, 8), f32(2, 6, 8), "self.a", r"their batches are 5 and 6\. .*Then batch_first=True"),
    "one-hot rows": ("return self.table(x)", {"table": nn.Embedding(10, 4)}, f32(2, 3, 10), None, "self.table",
        r"`x.argmax\(-1\)`"),
    "sound without a channel": ("return self.conv(x)", {"conv": nn.Conv1d(1, 4, 3)}, f32(2, 400), None, "self.conv",
        r"`x.unsqueeze\(1\)`, if axis 0 is the batch"),
    "a sum of functions' results": ("return torch.relu(x) + y.sigmoid()", {}, f32(2, 5, 8), f32(2, 1, 5, 4), "sigmoid",
        r"`torch.relu\(x\)`.*`y.sigmoid\(\)`|torch.relu\(x\) \(2, 5, 8\)"),
    "a mean of integers": ("return x.mean()", {}, i64(3, 5), None, "x.mean()", r"not there for Long: `.float\(\)`"),
}  # fmt: skip


def module_of(body: str, layers: dict[str, Any], folder: Path) -> nn.Module:
    """The body as a file of its own, so that its lines can be read."""
    lines = "\n".join("        " + line for line in body.splitlines())
    head = "import torch\nfrom torch import nn\n\nTABLE = torch.zeros(5, 2)\n\n\n"
    source = f"{head}class Model(nn.Module):\n    def forward(self, x, y=None):\n{lines}\n"
    (folder / "program.py").write_text(source)
    spec = importlib.util.spec_from_file_location("program", folder / "program.py")
    assert spec is not None and spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    model = program.Model()
    for name, layer in layers.items():
        setattr(model, name, layer)
    return model


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.filterwarnings("ignore")
def test_the_line_the_shapes_and_a_fix(bug: str, tmp_path: Path) -> None:
    body, layers, x, y, line, words = BUGS[bug]
    model = module_of(body, layers, tmp_path)
    with pytest.raises((RuntimeError, ValueError, IndexError, AssertionError, TypeError)) as plain:
        model(x, y)
    with pytest.raises(type(plain.value)) as caught, trace("run", strict=False) as t:
        model(x, y)
    text = str(caught.value)
    assert isinstance(caught.value, ShapeError) and isinstance(caught.value.__cause__, type(plain.value))
    where, explanation = text.splitlines()[:2], "\n".join(text.splitlines()[1:3])
    assert "program.py:" in where[0] and "Model.forward" in where[0] and line in where[1], text
    assert re.search(words, explanation, re.DOTALL), text
    assert "torch says" not in text and t.problem and t.steps[0].status == "raised"


def test_a_bug_inside_a_package_names_the_readers_line_first() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, vocab_size=40)  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    model.model.layers[1].mlp.down_proj = nn.Linear(30, 24)
    with pytest.raises(RuntimeError) as caught, trace(strict=False):
        model(torch.ones(2, 5, dtype=torch.long))
    text = str(caught.value)
    assert re.match(r"trace: test_explain_torch.py:\d+, in .*\n    `model\(torch.ones", text), text
    assert "inside transformers/" in text and "in LlamaMLP.forward" in text
    assert "`model.layers.1.mlp.down_proj` is a Linear and takes 30 features on the last axis; got (2, 5, 32)" in text


@pytest.mark.parametrize(
    "fails",
    [
        lambda x: torch.cdist(x, x[:, :4]),
        lambda x: nn.GRUCell(8, 16)(x, torch.zeros(1, 3, 16)),
        lambda x: nn.functional.embedding(x, torch.tensor([1, 2])),
        lambda x: ~x,
        lambda x: x + None,
        lambda x: bool(x),
        lambda x: x.sum(dims=1),
    ],
)
def test_what_torch_raises_of_tensors_has_a_line(fails: Callable[[Tensor], object]) -> None:
    with pytest.raises(ShapeError, match=r"^trace: test_explain_torch.py:\d+, in .*\n.*\ntorch says: "), trace():
        fails(torch.zeros(3, 8))


def test_an_operation_that_no_word_gives_away_has_a_line() -> None:
    x = torch.zeros(3, 8)
    with pytest.raises(ShapeError, match=r"`torch.outer\(x \* 2, x\[0\]\)`.*\ntorch says: outer: "), trace():
        torch.outer(x * 2, x[0])
    with pytest.raises(ShapeError, match=r"^trace: cell:1, in .*\n.*\ntorch says: outer: "), trace():
        exec("torch.outer(x, x[0])", {"torch": torch}, {"x": x})
    with pytest.raises(ShapeError, match=r"`x.index_select.*\n`index_select` .*\n  `x` was assigned at "), trace():
        x.index_select(1, x.long())


def by_hand(x: Tensor) -> None:
    raise TypeError("a Tensor of another kind, please")


@pytest.mark.parametrize(
    "fails",
    [
        by_hand,
        lambda x: nn.Linear(8, 2)(x, x),
        lambda x: nn.Linear(8, 2)(tensor=x),
        lambda x: [1, 2].index(int(x[0, 0]) + 7),
        lambda x: [].pop(int(x[0, 0])),
        lambda x: "loss " + x,
        lambda x: torch.set_num_threads(0),
        lambda x: torch.testing.assert_close(x, x + 1),
    ],
)
def test_what_is_not_about_tensors_is_not_explained(fails: Callable[[Tensor], object]) -> None:
    with pytest.raises((TypeError, ValueError, IndexError, RuntimeError, AssertionError)) as caught, trace() as t:
        fails(torch.zeros(3, 8))
    assert not isinstance(caught.value, ShapeError) and not t.problem


def test_a_tuple_without_the_attributes_of_a_tensor_gets_a_note() -> None:
    rnn = nn.LSTM(5, 4)
    with pytest.raises(AttributeError, match="has no attribute 'mean'") as caught, trace():
        y = rnn(f32(3, 2, 5))
        y.mean(1)
    assert "`y, _ = …` where it is made" in caught.value.__notes__[0]


def test_what_somebody_raised_on_purpose_is_not_explained_away() -> None:
    def load(size: int) -> Tensor:
        if size != 4:
            raise ValueError(f"size must be 4, got {size}")
        return torch.zeros(size)

    with pytest.raises(ValueError) as caught, trace(strict=False):
        nn.Identity()(torch.zeros(1))
        load(3)
    assert "size must be 4, got 3" in str(caught.value)

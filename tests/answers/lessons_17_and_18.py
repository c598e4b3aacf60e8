"""Lessons 17 and 18: the whole model."""

import types
from itertools import chain, groupby

import torch
import torch.nn.functional as F

from answers import right, wrong


@right("make_labels")
def _(ids, prompts, lengths, ignore_index=-100):
    t = torch.arange(ids.shape[1])
    labels = F.pad(ids[:, 1:], (0, 1), value=ignore_index)
    keep = (t + 1 >= prompts[:, None]) & (t + 1 < lengths[:, None])
    return labels.where(keep, torch.tensor(ignore_index))


@right("make_labels")
def _(ids, prompts, lengths, ignore_index=-100):
    out = torch.full_like(ids, ignore_index)
    for i in range(len(ids)):
        for t in range(ids.shape[1] - 1):
            if prompts[i] <= t + 1 < lengths[i]:
                out[i, t] = ids[i, t + 1]
    return out


@right("make_labels")
def _(ids, prompts, lengths, ignore_index=-100):
    out = ids.clone().fill_(ignore_index)
    for row, new, p, n in zip(ids, out, prompts.tolist(), lengths.tolist(), strict=True):
        new[p - 1 : n - 1] = row[p:n]
    return out


def labels(start=0, end=0, shift=True, ignore=None):
    def answer(ids, prompts, lengths, ignore_index=-100):
        t = torch.arange(ids.shape[1])[None] + bool(shift)
        source = F.pad(ids[:, 1:], (0, 1)) if shift else ids
        keep = (t >= prompts[:, None] + start) & (t < lengths[:, None] + end) & (t < ids.shape[1])
        return source.masked_fill(~keep, ignore_index if ignore is None else ignore)

    return answer


wrong("make_labels", "no shift")(labels(shift=False))
wrong("make_labels", "the first token of the answer left out")(labels(start=1))
wrong("make_labels", "the last token of the prompt is a label")(labels(start=-1))
wrong("make_labels", "EOS left out")(labels(end=-1))
wrong("make_labels", "one token of padding is a label")(labels(end=1))
wrong("make_labels", "-100 is fixed")(labels(ignore=-100))
wrong("make_labels", "padding 0 as ignore_index")(labels(ignore=0))
wrong("make_labels", "prompt is a label too")(labels(start=-(10**6)))
wrong("make_labels", "padding is a label too")(labels(end=10**6))
wrong("make_labels", "rolled")(
    lambda ids, prompts, lengths, ignore_index=-100: ids.roll(-1, 1).masked_fill(
        (torch.arange(ids.shape[1]) + 1 < prompts[:, None]) | (torch.arange(ids.shape[1]) + 1 > lengths[:, None]),
        ignore_index,
    )
)
wrong("make_labels", "padding found by id 0")(
    lambda ids, prompts, lengths, ignore_index=-100: (
        lambda s: s.masked_fill((torch.arange(ids.shape[1]) + 1 < prompts[:, None]) | (s == 0), ignore_index)
    )(F.pad(ids[:, 1:], (0, 1)))
)
wrong("make_labels", "one prompt length for all")(
    lambda ids, prompts, lengths, ignore_index=-100: labels()(
        ids, prompts[:1].expand_as(prompts), lengths, ignore_index
    )
)


@wrong("make_labels", "in place")
def _(ids, prompts, lengths, ignore_index=-100):
    ids[:, :-1] = ids[:, 1:].clone()
    t = torch.arange(ids.shape[1]) + 1
    ids[(t < prompts[:, None]) | (t >= lengths[:, None])] = ignore_index
    return ids


@right("freeze")
def _(model, part):
    module = getattr(model, part)
    for p in module.parameters():
        p.requires_grad = False
    for m in module.modules():
        m.train = types.MethodType(lambda self, mode=True: self, m)
        m.training = False


@right("freeze")
def _(model, part):
    module = model.get_submodule(part)
    module.requires_grad_(False).eval()
    module.train = lambda mode=True: module
    return model


@right("freeze")
def _(model, part):
    frozen = getattr(model, part).requires_grad_(False)
    frozen.eval()
    before = model.train

    def train(mode=True):
        before(mode)
        frozen.eval()
        return model

    model.train = train


@wrong("freeze", "eval once")
def _(model, part):
    getattr(model, part).requires_grad_(False).eval()


@wrong("freeze", "no eval")
def _(model, part):
    getattr(model, part).requires_grad_(False)


@wrong("freeze", "by startswith: siblings freeze too")
def _(model, part):
    for name, p in model.named_parameters():
        if name.startswith(part):
            p.requires_grad = False
    module = getattr(model, part).eval()
    module.train = lambda mode=True: module


@wrong("freeze", "by `in`: a submodule of the same name elsewhere freezes too")
def _(model, part):
    for name, p in model.named_parameters():
        if part in name:
            p.requires_grad = False
    module = getattr(model, part).eval()
    module.train = lambda mode=True: module


@wrong("freeze", "its own parameters only")
def _(model, part):
    module = getattr(model, part).eval()
    for p in module.parameters(recurse=False):
        p.requires_grad = False
    module.train = lambda mode=True: module


@wrong("freeze", "eval for the module alone, not for its submodules")
def _(model, part):
    module = getattr(model, part).requires_grad_(False)
    module.training = False
    module.train = lambda mode=True: module


@wrong("freeze", "everything")
def _(model, part):
    model.requires_grad_(False)
    module = getattr(model, part).eval()
    module.train = lambda mode=True: module


@wrong("freeze", "the gradient only set to None")
def _(model, part):
    module = getattr(model, part).eval()
    for p in module.parameters():
        p.grad = None
    module.train = lambda mode=True: module


@wrong("freeze", "the whole model stays in eval mode")
def _(model, part):
    getattr(model, part).requires_grad_(False)
    model.eval()
    model.train = lambda mode=True: model


@wrong("freeze", "every module's class is changed")
def _(model, part):
    module = getattr(model, part).requires_grad_(False).eval()
    for m in model.modules():
        m.train = types.MethodType(lambda self, mode=True: self, m)
    return module


@right("image_and_text")
def _(thinker, proj_v, cls, ids):
    return thinker(embeddings=torch.cat((proj_v(cls), thinker.embed(ids)), 1))


@right("image_and_text")
def _(thinker, proj_v, cls, ids):
    parts = [proj_v.forward(cls)]
    parts.append(thinker.embed(ids))
    return thinker.forward(embeddings=torch.hstack(parts))


def together(order=lambda image, text: [image, text], project=lambda proj, cls: proj(cls), result=lambda y, n: y):
    return lambda thinker, proj_v, cls, ids: result(
        thinker(embeddings=torch.cat(order(project(proj_v, cls), thinker.embed(ids)), 1)), cls.shape[1]
    )


right("image_and_text")(together())
wrong("image_and_text", "text first")(together(lambda image, text: [text, image]))
wrong("image_and_text", "projected twice")(together(project=lambda proj, cls: proj(proj(cls))
      if proj(cls).shape == cls.shape else proj(cls)))  # fmt: skip
wrong("image_and_text", "logits of the text only")(together(result=lambda y, n: y[:, n:]))
wrong("image_and_text", "image added to the text")(
    lambda thinker, proj_v, cls, ids: thinker(embeddings=thinker.embed(ids) + proj_v(cls))
)
wrong("image_and_text", "text projected too")(
    lambda thinker, proj_v, cls, ids: thinker(embeddings=torch.cat([proj_v(cls), proj_v(thinker.embed(ids))
    if thinker.embed(ids).shape[-1] == cls.shape[-1] else thinker.embed(ids) * 2], 1))
)  # fmt: skip
wrong("image_and_text", "projected only where the widths differ")(
    lambda thinker, proj_v, cls, ids: thinker(embeddings=torch.cat([
        proj_v(cls) if cls.shape[-1] != thinker.embed(ids).shape[-1] else cls, thinker.embed(ids)], 1))
)  # fmt: skip


def within(size=lambda ids: ids.shape[1], check=lambda n, c: n > c, at=-1, keep=True, early=True):
    def answer(thinker, ids, new_tokens, ctx_len=512):
        if early and check(size(ids) + new_tokens, ctx_len):
            raise ValueError("too long")
        start = ids.shape[1]
        for _ in range(new_tokens):
            ids = torch.cat([ids, thinker(ids)[:, at].argmax(-1, keepdim=True)], 1)
            if not early and check(ids.shape[1], ctx_len):
                raise ValueError("too long")
        return ids if keep else ids[:, start:]

    return answer


right("answer_within")(within())


@right("answer_within")
def _(thinker, ids, new_tokens, ctx_len=512):
    if (total := ids.size(1) + new_tokens) > ctx_len:
        raise ValueError(f"{ids.size(1)} + {new_tokens} = {total} tokens > {ctx_len}")
    while ids.size(1) < total:
        new = thinker(ids)[:, -1:].topk(1).indices[..., 0]
        ids = torch.hstack((ids, new))
    return ids


@right("answer_within")
def _(thinker, ids, new_tokens, ctx_len=512):
    if not new_tokens <= ctx_len - ids.shape[-1]:
        raise ValueError
    out = torch.zeros(ids.shape[0], ids.shape[1] + new_tokens, dtype=ids.dtype)
    out[:, : ids.shape[1]] = ids
    for n in range(ids.shape[1], out.shape[1]):
        out[:, n] = thinker(out[:, :n])[:, -1].max(-1).indices
    return out


wrong("answer_within", ">=")(within(check=lambda n, c: n >= c))
wrong("answer_within", "while it runs")(within(early=False))
wrong("answer_within", "tokens of the batch together")(within(size=lambda ids: ids.numel()))
wrong("answer_within", "the batch size")(within(size=lambda ids: ids.shape[0]))
wrong("answer_within", "512 is fixed")(lambda thinker, ids, new_tokens, ctx_len=512: within()(thinker, ids, new_tokens))
wrong("answer_within", "answer only")(within(keep=False))
wrong("answer_within", "first position")(within(at=0))
wrong("answer_within", "prompt truncated")(
    lambda thinker, ids, new_tokens, ctx_len=512: within()(
        thinker, ids[:, -max(ctx_len - new_tokens, 1):], new_tokens, 10**6)
)  # fmt: skip
wrong("answer_within", "answer truncated")(
    lambda thinker, ids, new_tokens, ctx_len=512: within()(
        thinker, ids, min(new_tokens, max(ctx_len - ids.shape[1], 0)), 10**6)
)  # fmt: skip
wrong("answer_within", "RuntimeError")(
    lambda thinker, ids, new_tokens, ctx_len=512: (_ for _ in ()).throw(RuntimeError("too long"))
    if ids.shape[1] + new_tokens > ctx_len else within()(thinker, ids, new_tokens, ctx_len)
)  # fmt: skip


@right("prompt_ids")
def _(turns, bos=1):
    ids = [bos]
    for turn in turns:
        ids += [i for i in turn if i != bos]
    return ids


@right("prompt_ids")
def _(turns, bos=1):
    return [bos, *(i for i in chain(*turns) if i != bos)]


@right("prompt_ids")
def _(turns, bos=1):
    ids = [bos]
    for turn in turns:
        ids.extend(filter(bos.__ne__, turn))
    return ids


wrong("prompt_ids", "no BOS without turns")(
    lambda turns, bos=1: [bos, *(i for t in turns for i in t if i != bos)] if turns else []
)
wrong("prompt_ids", "repeated tokens dropped")(
    lambda turns, bos=1: list(dict.fromkeys([bos, *(i for t in turns for i in t)]))
)
wrong("prompt_ids", "a BOS for each turn")(lambda turns, bos=1: [i for t in turns for i in [bos, *t]])
wrong("prompt_ids", "BOS only if the first turn has none")(
    lambda turns, bos=1: (lambda ids: ids if ids[:1] == [bos] else [bos, *ids])([i for t in turns for i in t])
)
wrong("prompt_ids", "bos is 1")(lambda turns, bos=1: [1, *(i for t in turns for i in t if i != 1)])
wrong("prompt_ids", "1 is removed")(lambda turns, bos=1: [bos, *(i for t in turns for i in t if i != 1)])
wrong("prompt_ids", "the first id of each turn is removed")(
    lambda turns, bos=1: [bos, *(i for t in turns for i in t[1:])]
)
wrong("prompt_ids", "BOS at the end")(lambda turns, bos=1: [*(i for t in turns for i in t if i != bos), bos])
wrong("prompt_ids", "BOS always put in front")(lambda turns, bos=1: [bos, *(i for t in turns for i in t)])
wrong("prompt_ids", "sorted set")(lambda turns, bos=1: [bos, *sorted({i for t in turns for i in t} - {bos})])
wrong("prompt_ids", "equal neighbours merged")(
    lambda turns, bos=1: [bos, *(i for i, _ in groupby(i for t in turns for i in t if i != bos))]
)
wrong("prompt_ids", "equal turns dropped")(
    lambda turns, bos=1: [bos, *(i for t in dict.fromkeys(map(tuple, turns)) for i in t if i != bos)]
)


@wrong("prompt_ids", "in place")
def _(turns, bos=1):
    for turn in turns:
        while bos in turn:
            turn.remove(bos)
    return [bos, *(i for t in turns for i in t)]


right("next_tokens")(lambda thinker, texts: [int(thinker(torch.tensor([t]))[0, -1].argmax()) for t in texts])


@right("next_tokens")
def _(thinker, texts):
    new = []
    for text in texts:
        logits = thinker(torch.tensor(text).unsqueeze(0))
        new.append(logits[:, -1].argmax(dim=-1).item())
    return new


@right("next_tokens")
def _(thinker, texts):
    return list(map(lambda t: thinker(torch.as_tensor(t)[None, :]).squeeze(0)[-1].max(0).indices.item(), texts))


wrong("next_tokens", "batch axis behind the tokens")(
    lambda thinker, texts: [int(thinker(torch.tensor(t)[:, None])[-1, -1].argmax()) for t in texts]
)
wrong("next_tokens", "argmax over everything")(
    lambda thinker, texts: [int(thinker(torch.tensor([t]))[-1].argmax()) for t in texts]
)
wrong("next_tokens", "first position")(
    lambda thinker, texts: [int(thinker(torch.tensor([t]))[0, 0].argmax()) for t in texts]
)
wrong("next_tokens", "tensors")(lambda thinker, texts: [thinker(torch.tensor([t]))[0, -1].argmax() for t in texts])
wrong("next_tokens", "logits, not ids")(
    lambda thinker, texts: [float(thinker(torch.tensor([t]))[0, -1].max()) for t in texts]
)
wrong("next_tokens", "padded with 0 on the right")(
    lambda thinker, texts: thinker(torch.nn.utils.rnn.pad_sequence([torch.tensor(t) for t in texts], batch_first=True))[
        :, -1
    ].argmax(-1).tolist()
)  # fmt: skip
wrong("next_tokens", "a nested list")(
    lambda thinker, texts: [thinker(torch.tensor([t]))[:, -1].argmax(-1).tolist() for t in texts]
)
wrong("next_tokens", "the first text only")(
    lambda thinker, texts: [int(thinker(torch.tensor([texts[0]]))[0, -1].argmax())] * len(texts)
)


def asking(
    order=lambda image, audio, text: [*image, *audio, *text], keep_eos=False, project=True, stop=True, at=-1,
    limit=0, eos=2, image_audio=True,
):  # fmt: skip
    def answer(omni, ids, img=None, wav=None, new_tokens=8):
        image, audio = [], []
        if img is not None:
            image = [omni.proj_v(omni.vision(img)) if project else omni.vision(img)]
        if wav is not None and (image_audio or img is None):
            audio = [omni.proj_a(omni.audio(omni.mel(wav)))]
        x, out = torch.cat(order(image, audio, [omni.thinker.embed(ids)]), 1), []
        for _ in range(new_tokens + limit):
            new = int(omni.thinker(embeddings=x)[0, at].argmax())
            if stop and new == eos and not keep_eos:
                break
            out.append(new)
            if stop and new == eos:
                break
            x = torch.cat([x, omni.thinker.embed(torch.tensor([[new]]))], 1)
        return out

    return answer


right("ask")(asking())


@right("ask")
def _(omni, ids, img=None, wav=None, new_tokens=8):
    x = omni.thinker.embed(ids)
    if wav is not None:
        x = torch.cat([omni.proj_a(omni.audio(omni.mel(wav))), x], 1)
    if img is not None:
        x = torch.cat([omni.proj_v(omni.vision(img)), x], 1)
    answer = []
    while len(answer) < new_tokens:
        token = omni.thinker(embeddings=x)[:, -1:].argmax(-1)
        if token.item() == 2:
            return answer
        answer.append(token.item())
        x = torch.cat([x, omni.thinker.embed(token)], 1)
    return answer


@right("ask")
def _(omni, ids, img=None, wav=None, new_tokens=8):
    head = [] if img is None else [omni.proj_v(omni.vision(img))]
    head += [] if wav is None else [omni.proj_a(omni.audio(omni.mel(wav)))]
    prompt, new = ids.shape[1], ids
    for _ in range(new_tokens):
        logits = omni.thinker(embeddings=torch.cat([*head, omni.thinker.embed(new)], 1))
        token = logits[:, -1].argmax(1, keepdim=True)
        if int(token) == 2:
            break
        new = torch.cat([new, token], 1)
    return new[0, prompt:].tolist()


wrong("ask", "EOS is part of the answer")(asking(keep_eos=True))
wrong("ask", "never stops")(asking(stop=False))
wrong("ask", "EOS is 1")(asking(eos=1))
wrong("ask", "one more")(asking(limit=1))
wrong("ask", "text first")(asking(lambda image, audio, text: [*text, *image, *audio]))
wrong("ask", "audio before the image")(asking(lambda image, audio, text: [*audio, *image, *text]))
wrong("ask", "image not projected")(asking(project=False))
wrong("ask", "first position")(asking(at=0))
wrong("ask", "audio ignored beside an image")(asking(image_audio=False))
wrong("ask", "the new token alone goes on")(
    lambda omni, ids, img=None, wav=None, new_tokens=8: asking()(omni, ids, img, wav, min(new_tokens, 1))
)
wrong("ask", "the image only")(
    lambda omni, ids, img=None, wav=None, new_tokens=8: asking()(omni, ids, img, None, new_tokens)
)
wrong("ask", "a tensor")(
    lambda omni, ids, img=None, wav=None, new_tokens=8: torch.tensor(asking()(omni, ids, img, wav, new_tokens))
)
wrong("ask", "prompt included")(
    lambda omni, ids, img=None, wav=None, new_tokens=8: ids[0].tolist() + asking()(omni, ids, img, wav, new_tokens)
)
wrong("ask", "new_tokens is 8")(lambda omni, ids, img=None, wav=None, new_tokens=8: asking()(omni, ids, img, wav))

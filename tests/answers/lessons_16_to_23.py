"""More answers to the exercises of lessons 16 to 23: mistakes at the ends, with ties, extremes and types."""

import itertools
import math
from collections import defaultdict

import numpy as np
import torch
import torch.nn.functional as F

from answers import right, wrong

# ---- 16 -------------------------------------------------------------------------------------------------------------


@right("kmeans_step")
def _(x, centroids):
    new = [row.clone() for row in centroids]
    members = defaultdict(list)
    for row in x:
        members[int((centroids - row).norm(dim=1).argmin())].append(row)
    for number, rows in members.items():
        new[number] = sum(rows) / len(rows)
    return torch.stack(new)


@wrong("kmeans_step", "the centroids move while the rows are still assigned")
def _(x, centroids):
    new, counts = centroids.clone(), torch.zeros(len(centroids))
    for row in x:
        k = int((new - row).square().sum(dim=1).argmin())
        counts[k] += 1
        new[k] = row if counts[k] == 1 else new[k] + (row - new[k]) / counts[k]
    return new


@wrong("kmeans_step", "L1 distances")
def _(x, centroids):
    hot = F.one_hot((x[:, None] - centroids).abs().sum(-1).argmin(1), len(centroids)).to(x)
    count = hot.sum(0)[:, None]
    return torch.where(count > 0, hot.T @ x / count.clamp(min=1), centroids)


@wrong("kmeans_step", "a centroid with one row does not move")
def _(x, centroids):
    hot = F.one_hot(torch.cdist(x, centroids).argmin(1), len(centroids)).to(x)
    count = hot.sum(0)[:, None]
    return torch.where(count > 1, hot.T @ x / count.clamp(min=1), centroids)


@wrong("kmeans_step", "the median of the rows")
def _(x, centroids):
    nearest = torch.cdist(x, centroids).argmin(1)
    rows = [x[nearest == k] for k in range(len(centroids))]
    return torch.stack([each.median(0).values if len(each) else c for each, c in zip(rows, centroids, strict=True)])


@wrong("kmeans_step", "moved in place")
def _(x, centroids):
    nearest = torch.cdist(x, centroids).argmin(1)
    for k in nearest.unique():
        centroids[k] = x[nearest == k].mean(0)
    return centroids


@right("speech_masks")
def _(frames, length):
    place = np.arange(length)
    speech = torch.from_numpy(place < frames.numpy()[:, None])
    end = torch.from_numpy(place == frames.numpy()[:, None])
    return [speech, end]


@wrong("speech_masks", "the end of a full row is its last frame")
def _(frames, length):
    place = torch.arange(length)
    return place < frames[:, None], place == frames.clamp(max=length - 1)[:, None]


@wrong("speech_masks", "the end wraps around in a full row")
def _(frames, length):
    place = torch.arange(length)
    return place < frames[:, None], place == (frames % length)[:, None]


@wrong("speech_masks", "a row without speech has no end")
def _(frames, length):
    place = torch.arange(length)
    speech = place < frames[:, None]
    return speech, speech.roll(1, 1) & ~speech & (place > 0)


@wrong("speech_masks", "speech counted from 1")
def _(frames, length):
    place = torch.arange(1, length + 1)
    return place < frames[:, None], place == frames[:, None]


# ---- 17 -------------------------------------------------------------------------------------------------------------


@right("make_labels")
def _(ids, prompts, lengths, ignore_index=-100):
    out = []
    for row, prompt, length in zip(ids.tolist(), prompts.tolist(), lengths.tolist(), strict=True):
        out.append([row[t + 1] if prompt <= t + 1 < length else ignore_index for t in range(len(row))])
    return torch.tensor(out)


@wrong("make_labels", "all rows end with the longest")
def _(ids, prompts, lengths, ignore_index=-100):
    place = torch.arange(1, ids.shape[1] + 1)
    inside = (place >= prompts[:, None]) & (place < lengths.max())
    return ids.roll(-1, 1).masked_fill(~inside, ignore_index)


@wrong("make_labels", "the label of the last position wraps around in a full row")
def _(ids, prompts, lengths, ignore_index=-100):
    place = torch.arange(1, ids.shape[1] + 1)
    inside = (place >= prompts[:, None]) & (place <= lengths[:, None])
    return torch.where(inside, ids.roll(-1, 1), ignore_index)


@wrong("make_labels", "padding recognized by the id 0")
def _(ids, prompts, lengths, ignore_index=-100):
    labels = F.pad(ids[:, 1:], (0, 1))
    place = torch.arange(1, ids.shape[1] + 1)
    return labels.masked_fill((place < prompts[:, None]) | (labels == 0), ignore_index)


@wrong("make_labels", "one column fewer")
def _(ids, prompts, lengths, ignore_index=-100):
    place = torch.arange(1, ids.shape[1])
    inside = (place >= prompts[:, None]) & (place < lengths[:, None])
    return ids[:, 1:].masked_fill(~inside, ignore_index)


@wrong("make_labels", "EOS found by its id 2")
def _(ids, prompts, lengths, ignore_index=-100):
    labels = torch.full_like(ids, ignore_index)
    for i, row in enumerate(ids.tolist()):
        end = row.index(2) if 2 in row else len(row) - 1
        for t in range(int(prompts[i]) - 1, end):
            labels[i, t] = row[t + 1]
    return labels


@right("freeze")
def _(model, part):
    frozen = dict(model.named_children())[part]
    for parameter in frozen.parameters():
        parameter.requires_grad = False
    kind = type(frozen)
    frozen.eval()
    frozen.__class__ = type(kind.__name__, (kind,), {"train": lambda self, mode=True: super(kind, self).train(False)})


@wrong("freeze", "its submodules go back to training mode")
def _(model, part):
    frozen = getattr(model, part).requires_grad_(False)

    def train(mode=True):
        for child in frozen.children():
            child.train(mode)
        frozen.training = False
        return frozen

    frozen.train = train


@wrong("freeze", "all parts whose name contains the name")
def _(model, part):
    for name, child in model.named_children():
        if part in name:
            child.requires_grad_(False).eval()
            child.train = lambda mode=True, child=child: child


@wrong("freeze", "eval mode is not permanent")
def _(model, part):
    getattr(model, part).requires_grad_(False).eval()


@wrong("freeze", "the whole model stays in eval mode")
def _(model, part):
    getattr(model, part).requires_grad_(False)
    model.eval()
    model.train = lambda mode=True: model


@wrong("freeze", "the other parts are switched on")
def _(model, part):
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not name.startswith(f"{part}.")
    frozen = getattr(model, part).eval()
    frozen.train = lambda mode=True: frozen


# ---- 18 -------------------------------------------------------------------------------------------------------------


@right("image_and_text")
def _(thinker, proj_v, cls, ids):
    parts = [proj_v(cls), thinker.embed(ids)]
    return thinker(embeddings=torch.concatenate(parts, 1))


@wrong("image_and_text", "only the first image of the batch is projected")
def _(thinker, proj_v, cls, ids):
    return thinker(embeddings=torch.cat([proj_v(cls[:1]).expand(len(ids), -1, -1), thinker.embed(ids)], dim=1))


@wrong("image_and_text", "the logits of the image are cut off")
def _(thinker, proj_v, cls, ids):
    return thinker(embeddings=torch.cat([proj_v(cls), thinker.embed(ids)], dim=1))[:, 1:]


@wrong("image_and_text", "projected only where the widths differ")
def _(thinker, proj_v, cls, ids):
    text = thinker.embed(ids)
    image = cls if cls.shape[-1] == text.shape[-1] else proj_v(cls)
    return thinker(embeddings=torch.cat([image, text], dim=1))


@right("answer_within")
def _(thinker, ids, new_tokens, ctx_len=512):
    if (total := ids.shape[1] + new_tokens) > ctx_len:
        raise ValueError(f"{total} > {ctx_len}")
    while ids.shape[1] < total:
        ids = torch.hstack([ids, thinker(ids)[:, -1].argmax(-1)[:, None]])
    return ids


@wrong("answer_within", "checked inside the loop, after the Thinker has run")
def _(thinker, ids, new_tokens, ctx_len=512):
    for _ in range(new_tokens):
        ids = torch.cat([ids, thinker(ids)[:, -1:].argmax(dim=-1)], dim=1)
        if ids.shape[1] > ctx_len:
            raise ValueError("too long")
    return ids


@wrong("answer_within", "an assertion")
def _(thinker, ids, new_tokens, ctx_len=512):
    assert ids.shape[1] + new_tokens <= ctx_len
    for _ in range(new_tokens):
        ids = torch.cat([ids, thinker(ids)[:, -1:].argmax(dim=-1)], dim=1)
    return ids


@wrong("answer_within", "the last new token is not counted, as it is never read")
def _(thinker, ids, new_tokens, ctx_len=512):
    if ids.shape[1] + new_tokens - 1 > ctx_len:
        raise ValueError("too long")
    for _ in range(new_tokens):
        ids = torch.cat([ids, thinker(ids)[:, -1:].argmax(dim=-1)], dim=1)
    return ids


@wrong("answer_within", "a prompt that is too long is let through when nothing is generated")
def _(thinker, ids, new_tokens, ctx_len=512):
    if new_tokens and ids.shape[1] + new_tokens > ctx_len:
        raise ValueError("too long")
    for _ in range(new_tokens):
        ids = torch.cat([ids, thinker(ids)[:, -1:].argmax(dim=-1)], dim=1)
    return ids


@right("prompt_ids")
def _(turns, bos=1):
    return [bos] + [number for number in itertools.chain.from_iterable(turns) if number != bos]


@wrong("prompt_ids", "only the first BOS of a turn is removed")
def _(turns, bos=1):
    ids = [bos]
    for turn in turns:
        ids += turn[1:] if turn[:1] == [bos] else turn
    return ids


@wrong("prompt_ids", "no turns, no prompt")
def _(turns, bos=1):
    return [bos, *(n for turn in turns for n in turn if n != bos)] if turns else []


@wrong("prompt_ids", "an empty turn ends the conversation")
def _(turns, bos=1):
    ids = [bos]
    for turn in turns:
        if not turn:
            break
        ids += [n for n in turn if n != bos]
    return ids


@wrong("prompt_ids", "BOS removed from the caller's own lists")
def _(turns, bos=1):
    for turn in turns:
        while bos in turn:
            turn.remove(bos)
    return [bos, *itertools.chain(*turns)]


@right("next_tokens")
def _(thinker, texts):
    return [thinker(torch.tensor(text)[None])[0, -1].max(0).indices.item() for text in texts]


@wrong("next_tokens", "padded to one batch, read at the last column")
def _(thinker, texts):
    longest = max(map(len, texts), default=0)
    rows = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    return thinker(rows)[:, -1].argmax(-1).tolist()


@wrong("next_tokens", "tensors instead of numbers")
def _(thinker, texts):
    return [thinker(torch.tensor([text]))[0, -1].argmax() for text in texts]


@wrong("next_tokens", "each text is a column")
def _(thinker, texts):
    return [int(thinker(torch.tensor(text)[:, None])[-1, -1].argmax()) for text in texts]


@wrong("next_tokens", "the most likely token of all positions")
def _(thinker, texts):
    return [int(thinker(torch.tensor([text]))[0].amax(0).argmax()) for text in texts]


@right("ask")
def _(omni, ids, img=None, wav=None, new_tokens=8):
    x = omni.thinker.embed(ids)
    if wav is not None:
        x = torch.cat((omni.proj_a(omni.audio(omni.mel(wav))), x), 1)
    if img is not None:
        x = torch.cat((omni.proj_v(omni.vision(img)), x), 1)
    answer = []
    while len(answer) < new_tokens:
        new = omni.thinker(embeddings=x)[:, -1].argmax(-1)
        if int(new) == 2:
            break
        answer.append(int(new))
        x = torch.cat((x, omni.thinker.embed(new[None])), 1)
    return answer


@wrong("ask", "audio before the image")
def _(omni, ids, img=None, wav=None, new_tokens=8):
    parts = [omni.thinker.embed(ids)]
    if img is not None:
        parts.insert(0, omni.proj_v(omni.vision(img)))
    if wav is not None:
        parts.insert(0, omni.proj_a(omni.audio(omni.mel(wav))))
    return greedily(omni, torch.cat(parts, 1), new_tokens)


def greedily(omni, x, new_tokens, last=False):
    """The new ids; with `last`, EOS as well."""
    answer = []
    for _ in range(new_tokens):
        new = int(omni.thinker(embeddings=x)[0, -1].argmax())
        if new != 2 or last:
            answer.append(new)
        if new == 2:
            break
        x = torch.cat([x, omni.thinker.embed(torch.tensor([[new]]))], 1)
    return answer


def everything(omni, ids, img, wav):
    """Image, audio, text as one sequence."""
    parts = [] if img is None else [omni.proj_v(omni.vision(img))]
    parts += [] if wav is None else [omni.proj_a(omni.audio(omni.mel(wav)))]
    return torch.cat([*parts, omni.thinker.embed(ids)], 1)


@wrong("ask", "EOS is part of the answer")
def _(omni, ids, img=None, wav=None, new_tokens=8):
    return greedily(omni, everything(omni, ids, img, wav), new_tokens, last=True)


@wrong("ask", "the recording is only heard beside an image")
def _(omni, ids, img=None, wav=None, new_tokens=8):
    return greedily(omni, everything(omni, ids, img, wav if img is not None else None), new_tokens)


@wrong("ask", "the question is read twice")
def _(omni, ids, img=None, wav=None, new_tokens=8):
    return greedily(omni, torch.cat([everything(omni, ids, img, wav), omni.thinker.embed(ids)], 1), new_tokens)


# ---- 20 -------------------------------------------------------------------------------------------------------------


@right("linear_probe")
def _(train, labels, fresh, classes, ridge=1.0):
    x = np.hstack([train.double().numpy(), np.ones((len(train), 1))])
    z = np.hstack([fresh.double().numpy(), np.ones((len(fresh), 1))])
    y = np.eye(classes)[labels.numpy()]
    return torch.from_numpy(z @ np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ y)).to(fresh)


@wrong("linear_probe", "as many classes as the labels show")
def _(train, labels, fresh, classes, ridge=1.0):
    x, z = (F.pad(each, (0, 1), value=1.0) for each in (train, fresh))
    y = F.one_hot(labels).to(x)
    return z @ torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1]).to(x), x.T @ y)


@wrong("linear_probe", "targets of −1 and 1")
def _(train, labels, fresh, classes, ridge=1.0):
    x, z = (F.pad(each, (0, 1), value=1.0) for each in (train, fresh))
    y = 2 * F.one_hot(labels, classes).to(x) - 1
    return z @ torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1]).to(x), x.T @ y)


@wrong("linear_probe", "the mean of the squared errors: the penalty weighs as much as n vectors")
def _(train, labels, fresh, classes, ridge=1.0):
    x, z = (F.pad(each, (0, 1), value=1.0) for each in (train, fresh))
    y = F.one_hot(labels, classes).to(x)
    return z @ torch.linalg.solve(x.T @ x / len(x) + ridge * torch.eye(x.shape[1]).to(x), x.T @ y / len(x))


@right("ablate_head")
def _(merged, heads, head):
    parts = list(merged.split(merged.shape[-1] // heads, dim=-1))
    parts[head] = parts[head].flatten(0, 1).mean(0).expand_as(parts[head])
    return torch.cat(parts, -1)


@wrong("ablate_head", "the mean is that of all heads")
def _(merged, heads, head):
    parts = merged.unflatten(-1, (heads, -1)).clone()
    parts[:, :, head] = parts.mean(dim=(0, 1, 2))
    return parts.flatten(2)


@wrong("ablate_head", "the mean is added, not put in its place")
def _(merged, heads, head):
    parts = merged.unflatten(-1, (heads, -1)).clone()
    parts[:, :, head] += parts[:, :, head].mean(dim=(0, 1))
    return parts.flatten(2)


@wrong("ablate_head", "heads and numbers exchanged in the view")
def _(merged, heads, head):
    parts = merged.unflatten(-1, (-1, heads)).clone()
    parts[..., head] = parts[..., head].mean(dim=(0, 1))
    return parts.flatten(2)


@wrong("ablate_head", "the median instead of the mean")
def _(merged, heads, head):
    parts = merged.unflatten(-1, (heads, -1)).clone()
    parts[:, :, head] = parts[:, :, head].flatten(0, 1).median(0).values
    return parts.flatten(2)


@right("patch_activation")
def _(model, x, source, layer, position):
    layers = list(model)
    for each in layers[: layer + 1]:
        x, source = each(x), each(source)
    x = torch.cat([x[:, :position], source[:, position : position + 1], x[:, position + 1 :]], dim=1)
    for each in layers[layer + 1 :]:
        x = each(x)
    return x


@wrong("patch_activation", "only in the first text")
def _(model, x, source, layer, position):
    for number, each in enumerate(model):
        x, source = each(x), each(source)
        if number == layer:
            x = x.clone()
            x[0, position] = source[0, position]
    return x


@wrong("patch_activation", "this position and all later ones")
def _(model, x, source, layer, position):
    for number, each in enumerate(model):
        x, source = each(x), each(source)
        if number == layer:
            x = torch.cat([x[:, :position], source[:, position:]], dim=1)
    return x


@wrong("patch_activation", "the later layers are patched too")
def _(model, x, source, layer, position):
    for number, each in enumerate(model):
        x, source = each(x), each(source)
        if number >= layer:
            x = x.clone()
            x[:, position] = source[:, position]
    return x


@wrong("patch_activation", "the input itself is patched")
def _(model, x, source, layer, position):
    x[:, position] = source[:, position]
    return model(x)


@right("head_effects")
def _(lead, layers, heads):
    whole = float(np.mean(lead().numpy()))
    table = np.array([[whole - lead([(i, j)]).numpy().mean() for j in range(heads)] for i in range(layers)])
    return torch.tensor(table, dtype=torch.float32)


@wrong("head_effects", "heads stay ablated")
def _(lead, layers, heads):
    gone, table = [], torch.zeros(layers, heads)
    for i, j in itertools.product(range(layers), range(heads)):
        before = lead(gone).mean()
        gone.append((i, j))
        table[i, j] = before - lead(gone).mean()
    return table


@wrong("head_effects", "the median of the scenes")
def _(lead, layers, heads):
    return torch.tensor([[float((lead() - lead([(i, j)])).median()) for j in range(heads)] for i in range(layers)])


@wrong("head_effects", "a list of lists")
def _(lead, layers, heads):
    return [[float((lead() - lead([(i, j)])).mean()) for j in range(heads)] for i in range(layers)]


@right("find_binding_heads")
def _(lead, layers, heads, share=0.2):
    free = [(i, j) for i in range(layers) for j in range(heads)]
    found, whole, now = [], lead().mean().item(), lead().mean().item()
    while free and now > share * whole:
        means = [lead([*found, each]).mean().item() for each in free]
        now = min(means)
        found.append(free.pop(means.index(now)))
    return found


@wrong("find_binding_heads", "all heads")
def _(lead, layers, heads, share=0.2):
    return [(i, j) for i in range(layers) for j in range(heads)]


@wrong("find_binding_heads", "no head at all")
def _(lead, layers, heads, share=0.2):
    return []


@wrong("find_binding_heads", "the most harmful heads, whose ablation raises the lead")
def _(lead, layers, heads, share=0.2):
    free = [(i, j) for i in range(layers) for j in range(heads)]
    return sorted(free, key=lambda head: -lead([head]).mean())[:2]


# ---- 21 -------------------------------------------------------------------------------------------------------------


@right("size_and_flops")
def _(layers, d_model, intermediate_size, vocab, tokens):
    per_block = {"norms": 2 * d_model, "attention": 4 * d_model**2, "mlp": 3 * d_model * intermediate_size}
    size = layers * sum(per_block.values()) + d_model + vocab * d_model
    return size, 6 * size + 3 * layers * (2 * tokens * d_model + 2 * tokens * d_model)


@wrong("size_and_flops", "attention without its backward pass")
def _(layers, d_model, intermediate_size, vocab, tokens):
    size = layers * (2 * d_model + 4 * d_model**2 + 3 * d_model * intermediate_size) + d_model + vocab * d_model
    return size, 6 * size + 4 * layers * tokens * d_model


@wrong("size_and_flops", "the norms are forgotten")
def _(layers, d_model, intermediate_size, vocab, tokens):
    size = layers * (4 * d_model**2 + 3 * d_model * intermediate_size) + vocab * d_model
    return size, 6 * size + 12 * layers * tokens * d_model


@wrong("size_and_flops", "floats")
def _(layers, d_model, intermediate_size, vocab, tokens):
    size = layers * (2 * d_model + 4 * d_model**2 + 3 * d_model * intermediate_size) + d_model + vocab * d_model
    return float(size), float(6 * size + 12 * layers * tokens * d_model)


@right("fit_power_law")
def _(sizes, losses, floor=0.0):
    slope, intercept = np.polyfit(np.log(sizes.double().numpy()), np.log(losses.double().numpy() - floor), 1)
    return np.exp(intercept), -slope


@wrong("fit_power_law", "through the first and the last point")
def _(sizes, losses, floor=0.0):
    x, y = sizes.double().log(), (losses.double() - floor).log()
    alpha = -float((y[-1] - y[0]) / (x[-1] - x[0]))
    return float((y[0] + alpha * x[0]).exp()), alpha


@wrong("fit_power_law", "the floor is subtracted from the logarithms")
def _(sizes, losses, floor=0.0):
    slope, intercept = np.polyfit(np.log(sizes.double().numpy()), np.log(losses.double().numpy()) - floor, 1)
    return float(np.exp(intercept)), float(-slope)


@wrong("fit_power_law", "tensors instead of floats")
def _(sizes, losses, floor=0.0):
    x, y = sizes.double().log(), (losses.double() - floor).log()
    alpha = -((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return (y.mean() + alpha * x.mean()).exp(), alpha


@wrong("fit_power_law", "the logarithm to base 10, and the exponential to base e")
def _(sizes, losses, floor=0.0):
    slope, intercept = np.polyfit(np.log10(sizes.double().numpy()), np.log10(losses.double().numpy() - floor), 1)
    return float(np.exp(intercept)), float(-slope)


@right("compute_optimal")
def _(parameters, tokens, losses, budgets):
    cost = [6 * n * d for n, d in zip(parameters.tolist(), tokens.tolist(), strict=True)]
    loss = losses.tolist()
    chosen = []
    for budget in budgets.tolist():
        affordable = [i for i, each in enumerate(cost) if each <= budget]
        chosen.append(min(affordable, key=loss.__getitem__) if affordable else -1)
    return torch.tensor(chosen)


@wrong("compute_optimal", "the products overflow in 32 bits")
def _(parameters, tokens, losses, budgets):
    cost = 6 * parameters.int() * tokens.int()
    fits = cost <= budgets[:, None]
    best = losses.where(fits, torch.inf).argmin(1)
    return best.masked_fill(~fits.any(1), -1)


@wrong("compute_optimal", "exactly the budget is not affordable")
def _(parameters, tokens, losses, budgets):
    fits = 6.0 * parameters.double() * tokens < budgets[:, None]
    return losses.where(fits, torch.inf).argmin(1).masked_fill(~fits.any(1), -1)


@wrong("compute_optimal", "the index among the affordable runs")
def _(parameters, tokens, losses, budgets):
    fits = 6.0 * parameters.double() * tokens <= budgets[:, None]
    return torch.tensor([int(losses[each].argmin()) if each.any() else -1 for each in fits])


@wrong("compute_optimal", "0 where nothing is affordable")
def _(parameters, tokens, losses, budgets):
    fits = 6.0 * parameters.double() * tokens <= budgets[:, None]
    return losses.where(fits, torch.inf).argmin(1)


@right("tokens_for_budget")
def _(days, gpus, peak, mfu=0.4, tokens_per_parameter=20.0):
    compute = mfu * peak * gpus * days * 24 * 60 * 60
    tokens = math.sqrt(compute * tokens_per_parameter / 6)
    return tokens / tokens_per_parameter, tokens


@wrong("tokens_for_budget", "a day of 24 hours of 60 seconds")
def _(days, gpus, peak, mfu=0.4, tokens_per_parameter=20.0):
    n = math.sqrt(days * 1440 * gpus * peak * mfu / 6 / tokens_per_parameter)
    return n, n * tokens_per_parameter


@wrong("tokens_for_budget", "whole parameters")
def _(days, gpus, peak, mfu=0.4, tokens_per_parameter=20.0):
    n = int(math.sqrt(days * 86400 * gpus * peak * mfu / 6 / tokens_per_parameter))
    return n, n * tokens_per_parameter


@wrong("tokens_for_budget", "divided by the share that is used")
def _(days, gpus, peak, mfu=0.4, tokens_per_parameter=20.0):
    n = math.sqrt(days * 86400 * gpus * peak / mfu / 6 / tokens_per_parameter)
    return n, n * tokens_per_parameter


@right("training_memory")
def _(parameters, layers, d_model, vocab, batch, tokens, kept=42, checkpointing=False):
    row = 4 * d_model * batch * tokens
    return {
        "logits": 4 * vocab * batch * tokens, "activations": row * (layers + kept if checkpointing else layers * kept),
        "optimizer": 8 * parameters, "gradients": 4 * parameters, "weights": 4 * parameters,
    }  # fmt: skip


@wrong("training_memory", "numbers instead of bytes")
def _(parameters, layers, d_model, vocab, batch, tokens, kept=42, checkpointing=False):
    row = d_model * batch * tokens
    return {
        "weights": parameters, "gradients": parameters, "optimizer": 2 * parameters,
        "activations": row * (layers + kept if checkpointing else layers * kept), "logits": vocab * batch * tokens,
    }  # fmt: skip


@wrong("training_memory", "with checkpointing the recomputed layer replaces its input")
def _(parameters, layers, d_model, vocab, batch, tokens, kept=42, checkpointing=False):
    row = 4 * d_model * batch * tokens
    return {
        "weights": 4 * parameters, "gradients": 4 * parameters, "optimizer": 8 * parameters,
        "activations": row * (layers - 1 + kept if checkpointing else layers * kept),
        "logits": 4 * vocab * batch * tokens,
    }  # fmt: skip


@wrong("training_memory", "floats")
def _(parameters, layers, d_model, vocab, batch, tokens, kept=42, checkpointing=False):
    row = 4.0 * d_model * batch * tokens
    return {
        "weights": 4.0 * parameters, "gradients": 4.0 * parameters, "optimizer": 8.0 * parameters,
        "activations": row * (layers + kept if checkpointing else layers * kept),
        "logits": 4.0 * vocab * batch * tokens,
    }  # fmt: skip


# ---- 22 -------------------------------------------------------------------------------------------------------------


@right("sample_with_log_probs")
def _(logits, uniform, temperature=1.0):
    shares = (logits / temperature).softmax(-1)
    ids = []
    for row, number in zip(shares.tolist(), uniform.tolist(), strict=True):
        sums = list(itertools.accumulate(row))
        ids.append(next((token for token, total in enumerate(sums) if total > number), len(row) - 1))
    return torch.tensor(ids), shares.gather(1, torch.tensor(ids)[:, None])[:, 0].log()


@wrong("sample_with_log_probs", "a running sum that equals the number is enough")
def _(logits, uniform, temperature=1.0):
    log_p = (logits / temperature).log_softmax(-1)
    ids = (log_p.exp().cumsum(-1) < uniform[:, None]).sum(-1).clamp(max=logits.shape[1] - 1)
    return ids, log_p.gather(1, ids[:, None])[:, 0]


@wrong("sample_with_log_probs", "the log-probability of the untempered logits")
def _(logits, uniform, temperature=1.0):
    p = (logits / temperature).softmax(-1)
    ids = (p.cumsum(-1) <= uniform[:, None]).sum(-1).clamp(max=logits.shape[1] - 1)
    return ids, logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]


@wrong("sample_with_log_probs", "sorted by probability first")
def _(logits, uniform, temperature=1.0):
    log_p, order = (logits / temperature).log_softmax(-1).sort(descending=True)
    at = (log_p.exp().cumsum(-1) <= uniform[:, None]).sum(-1, keepdim=True).clamp(max=logits.shape[1] - 1)
    return order.gather(1, at)[:, 0], log_p.gather(1, at)[:, 0]


@wrong("sample_with_log_probs", "the first row's number for all")
def _(logits, uniform, temperature=1.0):
    log_p = (logits / temperature).log_softmax(-1)
    ids = (log_p.exp().cumsum(-1) <= uniform[0]).sum(-1).clamp(max=logits.shape[1] - 1)
    return ids, log_p.gather(1, ids[:, None])[:, 0]


@right("group_advantages")
def _(rewards):
    centered = rewards - rewards.mean(1, keepdim=True)
    spread = centered.square().mean(1, keepdim=True).sqrt()
    equal = (rewards == rewards[:, :1]).all(1, keepdim=True)
    return torch.where(equal, torch.zeros_like(rewards), centered / torch.where(equal, 1.0, spread).to(rewards))


@wrong("group_advantages", "1 is added to the deviation, so that it is never 0")
def _(rewards):
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, correction=0, keepdim=True) + 1)


@wrong("group_advantages", "a deviation below 1 is taken for 1")
def _(rewards):
    spread = rewards.std(1, correction=0, keepdim=True).clamp(min=1)
    return (rewards - rewards.mean(1, keepdim=True)) / spread


@wrong("group_advantages", "one deviation for all groups")
def _(rewards):
    centered = rewards - rewards.mean(1, keepdim=True)
    return centered / centered.square().mean().sqrt().clamp(min=1e-8)


@right("policy_loss")
def _(log_probs, old_log_probs, advantages, mask, clip=0.2):
    replies = []
    for new, old, advantage, counts in zip(log_probs, old_log_probs, advantages, mask, strict=True):
        ratio = torch.exp(new - old)[counts == 1]
        limited = torch.clip(ratio, 1 - clip, 1 + clip)
        replies.append(torch.min(ratio * advantage, limited * advantage).mean())
    return -torch.stack(replies).mean()


@wrong("policy_loss", "only clipped from above")
def _(log_probs, old_log_probs, advantages, mask, clip=0.2):
    ratio, a = (log_probs - old_log_probs).exp(), advantages[:, None]
    gain = torch.minimum(ratio * a, ratio.clamp(max=1 + clip) * a)
    return -((gain * mask).sum(1) / mask.sum(1)).mean()


@wrong("policy_loss", "the log-probabilities are subtracted, not their exponential")
def _(log_probs, old_log_probs, advantages, mask, clip=0.2):
    ratio, a = 1 + log_probs - old_log_probs, advantages[:, None]
    gain = torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a)
    return -((gain * mask).sum(1) / mask.sum(1)).mean()


@wrong("policy_loss", "a mean over all tokens of the batch")
def _(log_probs, old_log_probs, advantages, mask, clip=0.2):
    ratio, a = (log_probs - old_log_probs).exp(), advantages[:, None]
    gain = torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a)
    return -(gain * mask).sum() / mask.sum()


@wrong("policy_loss", "the masked tokens count with a ratio of 1")
def _(log_probs, old_log_probs, advantages, mask, clip=0.2):
    ratio, a = ((log_probs - old_log_probs) * mask).exp(), advantages[:, None]
    return -torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a).mean(1).mean()


@right("kl_k3")
def _(log_probs, reference_log_probs):
    log_r = reference_log_probs - log_probs
    return torch.expm1(log_r) - log_r


@wrong("kl_k3", "the logarithm of the clamped ratio")
def _(log_probs, reference_log_probs):
    r = (reference_log_probs - log_probs).exp()
    return r - r.clamp(min=0.1).log() - 1


@wrong("kl_k3", "the mean of all tokens in every place")
def _(log_probs, reference_log_probs):
    log_r = reference_log_probs - log_probs
    return (log_r.exp() - log_r - 1).mean().expand_as(log_r)


@wrong("kl_k3", "half the square: k2")
def _(log_probs, reference_log_probs):
    return (reference_log_probs - log_probs).square() / 2


@wrong("kl_k3", "no gradient comes through the ratio")
def _(log_probs, reference_log_probs):
    log_r = reference_log_probs - log_probs
    return log_r.exp().detach() - log_r - 1


@right("judge_replies")
def _(replies, answer):
    def plain(text):
        text = text.strip().lower()
        return text[:-1].rstrip() if text.endswith(".") else text

    return [float(plain(reply) == plain(answer)) for reply in replies]


@wrong("judge_replies", "all full stops at the end are removed")
def _(replies, answer):
    return [float(reply.strip().rstrip(".").strip().lower() == answer.strip(" .").lower()) for reply in replies]


@wrong("judge_replies", "full stops at the beginning too")
def _(replies, answer):
    def plain(text):
        text = text.strip()
        text = text.removesuffix(".").strip()
        return text.removeprefix(".").strip().lower()

    return [float(plain(reply) == plain(answer)) for reply in replies]


@wrong("judge_replies", "the same words in any order")
def _(replies, answer):
    def plain(text):
        return sorted(text.strip().lower().removesuffix(".").split())

    return [float(plain(reply) == plain(answer)) for reply in replies]


@wrong("judge_replies", "other marks at the end are forgiven")
def _(replies, answer):
    return [float(reply.strip().lower().rstrip(".!?, ") == answer.strip().lower().rstrip(".")) for reply in replies]


@wrong("judge_replies", "spaces inside are ignored")
def _(replies, answer):
    def plain(text):
        return text.lower().replace(" ", "").removesuffix(".")

    return [float(plain(reply) == plain(answer)) for reply in replies]


# ---- 23 -------------------------------------------------------------------------------------------------------------


@right("split_by_words")
def _(transcripts, every):
    held = set(np.unique(transcripts)[::every].tolist()) if transcripts else set()
    train, test = [], []
    for row, word in enumerate(transcripts):
        (test if word in held else train).append(row)
    return train, test


@wrong("split_by_words", "capital letters are ignored in the order")
def _(transcripts, every):
    words = sorted(set(transcripts), key=str.lower, reverse=True)[::-1]
    held = {word for number, word in enumerate(words, 1) if number % every == 0}
    rows = range(len(transcripts))
    return [i for i in rows if transcripts[i] not in held], [i for i in rows if transcripts[i] in held]


@wrong("split_by_words", "numbered in the order in which they occur")
def _(transcripts, every):
    held = set(list(dict.fromkeys(transcripts))[::every])
    rows = range(len(transcripts))
    return [i for i in rows if transcripts[i] not in held], [i for i in rows if transcripts[i] in held]


@wrong("split_by_words", "held-out rows in the order of their words")
def _(transcripts, every):
    words = sorted(set(transcripts))
    held = [i for word in words[::every] for i, each in enumerate(transcripts) if each == word]
    return [i for i in range(len(transcripts)) if i not in held], held


@wrong("split_by_words", "each held-out word once")
def _(transcripts, every):
    held = set(sorted(set(transcripts))[::every])
    test = sorted({transcripts.index(word) for word in held})
    return [i for i, word in enumerate(transcripts) if word not in held], test


@right("candidate_probabilities")
def _(log_probs, candidates):
    lengths = torch.tensor([len(each) for each in candidates])
    flat = torch.cat([each.long() for each in candidates])
    scores = log_probs[:, None].expand(-1, len(candidates), -1)
    tokens = torch.full_like(lengths, len(log_probs))
    loss = F.ctc_loss(scores, flat, tokens, lengths, reduction="none")
    return F.softmax(-loss, 0)


def losses_of(log_probs, candidates, **more):
    """The CTC loss of each candidate."""
    tokens = torch.tensor([len(log_probs)])
    return torch.stack([
        F.ctc_loss(log_probs[:, None], each[None], tokens, torch.tensor([len(each)]), reduction="sum", **more)
        for each in candidates
    ])  # fmt: skip


@wrong("candidate_probabilities", "divided by the number of characters")
def _(log_probs, candidates):
    return (-losses_of(log_probs, candidates) / torch.tensor([len(each) for each in candidates])).softmax(0)


@wrong("candidate_probabilities", "what is impossible becomes certain: an infinite loss counts as 0")
def _(log_probs, candidates):
    return (-losses_of(log_probs, candidates, zero_infinity=True)).softmax(0)


@wrong("candidate_probabilities", "exponentials that underflow")
def _(log_probs, candidates):
    p = (-losses_of(log_probs, candidates)).exp()
    return p / p.sum().clamp(min=1e-30)


@wrong("candidate_probabilities", "the blank is the last character")
def _(log_probs, candidates):
    return (-losses_of(log_probs, candidates, blank=log_probs.shape[1] - 1)).softmax(0)


@right("trainable_names")
def _(names, first_block):
    def is_trained(name):
        match name.split("."):
            case ["head", *_] | ["encoder", "norm", *_]:
                return True
            case ["encoder", "blocks", number, *_]:
                return int(number) >= first_block
        return False

    return list(filter(is_trained, names))


@wrong("trainable_names", "everything that contains “norm”")
def _(names, first_block):
    def trained(name):
        parts = name.split(".")
        if "norm" in name or parts[0] == "head":
            return True
        return parts[1] == "blocks" and int(parts[2]) >= first_block

    return [name for name in names if trained(name)]


@wrong("trainable_names", "numbers compared as text")
def _(names, first_block):
    def trained(name):
        parts = name.split(".")
        block = parts[1] == "blocks" and parts[2] >= str(first_block)
        return parts[0] == "head" or parts[1] == "norm" or block

    return [name for name in names if trained(name)]


@wrong("trainable_names", "only the first digit")
def _(names, first_block):
    def trained(name):
        if name.startswith("encoder.blocks."):
            return int(name[len("encoder.blocks.")]) >= first_block
        return name.startswith(("head.", "encoder.norm."))

    return [name for name in names if trained(name)]


@wrong("trainable_names", "sorted")
def _(names, first_block):
    keep = [n for n in names if n.startswith(("head.", "encoder.norm."))]
    keep += [n for n in names if n.startswith("encoder.blocks.") and int(n.split(".")[2]) >= first_block]
    return keep


@right("mask_spectrogram")
def _(mel, frames, bands):
    out = mel.clone()
    for i in range(len(mel)):
        mean = mel[i].mean()
        out[i, frames[i, 0] : frames[i, 1]] = mean
        out[i, :, bands[i, 0] : bands[i, 1]] = mean
    return out


@wrong("mask_spectrogram", "the mean of what is left after the first mask")
def _(mel, frames, bands):
    out = mel.clone()
    for i, (at, band) in enumerate(zip(frames.tolist(), bands.tolist(), strict=True)):
        out[i, at[0] : at[1]] = mel[i].mean()
        out[i, :, band[0] : band[1]] = out[i].clone()[:, : band[0]].mean() if band[0] else out[i].mean()
    return out


@wrong("mask_spectrogram", "the second number is a length")
def _(mel, frames, bands):
    out = mel.clone()
    for i, (at, band) in enumerate(zip(frames.tolist(), bands.tolist(), strict=True)):
        out[i, at[0] : at[0] + at[1]] = mel[i].mean()
        out[i, :, band[0] : band[0] + band[1]] = mel[i].mean()
    return out


@wrong("mask_spectrogram", "an empty stretch hides one frame")
def _(mel, frames, bands):
    out = mel.clone()
    for i, (at, band) in enumerate(zip(frames.tolist(), bands.tolist(), strict=True)):
        out[i, at[0] : max(at[1], at[0] + 1)] = mel[i].mean()
        out[i, :, band[0] : max(band[1], band[0] + 1)] = mel[i].mean()
    return out


@wrong("mask_spectrogram", "each band's own mean")
def _(mel, frames, bands):
    out = mel.clone()
    for i, (at, band) in enumerate(zip(frames.tolist(), bands.tolist(), strict=True)):
        out[i, at[0] : at[1]] = mel[i].mean(0)
        out[i, :, band[0] : band[1]] = mel[i].mean(0)[band[0] : band[1]]
    return out


@right("bootstrap_interval")
def _(errors, characters, rows):
    rates = [float(errors[row].sum() / characters[row].sum()) for row in rows]
    low, high = np.quantile(rates, [0.025, 0.975])
    return low, high


@wrong("bootstrap_interval", "the mean of the recordings' rates")
def _(errors, characters, rows):
    rates = (errors / characters)[rows].mean(1)
    return rates.quantile(0.025).item(), rates.quantile(0.975).item()


@wrong("bootstrap_interval", "rounds and recordings exchanged")
def _(errors, characters, rows):
    rates = errors[rows].sum(0) / characters[rows].sum(0)
    return rates.quantile(0.025).item(), rates.quantile(0.975).item()


@wrong("bootstrap_interval", "the nearest round instead of a quantile between two")
def _(errors, characters, rows):
    rates = (errors[rows].sum(1) / characters[rows].sum(1)).sort().values
    return float(rates[int(0.025 * len(rates))]), float(rates[int(0.975 * len(rates))])


@wrong("bootstrap_interval", "a normal distribution is assumed")
def _(errors, characters, rows):
    rates = errors[rows].sum(1) / characters[rows].sum(1)
    return float(rates.mean() - 1.96 * rates.std()), float(rates.mean() + 1.96 * rates.std())

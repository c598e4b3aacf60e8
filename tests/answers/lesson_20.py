"""Lesson 20: probes, ablation, patching, and the heads that bind."""

import torch
import torch.nn.functional as F

from answers import right, wrong

# ---- a linear probe -------------------------------------------------------------------------------------------------


@right("linear_probe")
def _(train, labels, fresh, classes, ridge=1.0):
    x = torch.hstack([train, train.new_ones(len(train), 1)])
    y = torch.zeros(len(train), classes, dtype=train.dtype)
    y[torch.arange(len(train)), labels] = 1
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    w = v.T @ torch.diag(s / (s**2 + ridge)) @ u.T @ y
    return fresh @ w[:-1] + w[-1]


@right("linear_probe")
def _(train, labels, fresh, classes, ridge=1.0):
    x = F.pad(train, (0, 1), value=1)
    a = x.mT @ x
    a.diagonal().add_(ridge)
    columns = [torch.cholesky_solve((x.mT @ (labels == c).to(x))[:, None], torch.linalg.cholesky(a))
               for c in range(classes)]  # fmt: skip
    return F.pad(fresh, (0, 1), value=1) @ torch.cat(columns, dim=1)


@right("linear_probe")
def _(train, labels, fresh, classes, ridge=1.0):
    out = []
    for c in range(classes):
        x = torch.cat([train, torch.ones(len(train), 1, dtype=train.dtype)], 1)
        w = torch.linalg.inv(x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype)) @ x.T @ (labels == c).to(x.dtype)
        out.append(fresh @ w[:-1] + w[-1])
    return torch.stack(out, dim=1)


def probe(train, labels, fresh, classes, ridge=1.0, *, low=0.0, one=1.0, times=1.0):
    x, z = (F.pad(each, (0, 1), value=one) for each in (train, fresh))
    y = F.one_hot(labels, classes).to(x) * (1 - low) + low
    return z @ torch.linalg.solve(x.T @ x + times * ridge * torch.eye(x.shape[1]).to(x), x.T @ y)


wrong("linear_probe", "no bias")(lambda *a, **k: probe(*a, **k, one=0.0))
wrong("linear_probe", "targets -1 and 1")(lambda *a, **k: probe(*a, **k, low=-1.0))
wrong("linear_probe", "twice the ridge")(lambda *a, **k: probe(*a, **k, times=2.0))
wrong("linear_probe", "probabilities")(lambda *a, **k: probe(*a, **k).sigmoid())
wrong("linear_probe", "one row for each class")(lambda *a, **k: probe(*a, **k).T)
wrong("linear_probe", "as many classes as occur")(
    lambda train, labels, fresh, classes, ridge=1.0: probe(train, labels, fresh, int(labels.max()) + 1, ridge)
)

# ---- ablate a head --------------------------------------------------------------------------------------------------


@right("ablate_head")
def _(merged, heads, head):
    size = merged.shape[-1] // heads
    a, b = head * size, (head + 1) * size
    middle = merged[..., a:b].mean((0, 1), keepdim=True).expand_as(merged[..., a:b])
    return torch.cat([merged[..., :a], middle, merged[..., b:]], dim=-1)


@right("ablate_head")
def _(merged, heads, head):
    parts = list(merged.split(merged.shape[-1] // heads, dim=-1))
    parts[head] = torch.ones_like(parts[head]) * parts[head].flatten(0, 1).mean(0)
    return torch.cat(parts, -1)


@right("ablate_head")
def _(merged, heads, head):
    mask = torch.zeros(heads, merged.shape[-1] // heads)
    mask[head] = 1
    mask = mask.flatten().to(merged)
    return merged * (1 - mask) + merged.flatten(0, 1).mean(0) * mask


@wrong("ablate_head", "zero")
def _(merged, heads, head):
    out = merged.clone().unflatten(-1, (heads, -1))
    out[..., head, :] = 0
    return out.flatten(-2)


@wrong("ablate_head", "the heads are the outer part of a token axis")
def _(merged, heads, head):
    out = merged.clone().unflatten(-1, (-1, heads))
    out[..., head] = out[..., head].mean((0, 1))
    return out.flatten(-2)


@wrong("ablate_head", "median")
def _(merged, heads, head):
    out = merged.clone().unflatten(-1, (heads, -1))
    out[..., head, :] = out[..., head, :].flatten(0, 1).median(0).values
    return out.flatten(-2)


@wrong("ablate_head", "the mean of all heads")
def _(merged, heads, head):
    out = merged.clone().unflatten(-1, (heads, -1))
    out[..., head, :] = out.mean((0, 1, 2))
    return out.flatten(-2)


wrong("ablate_head", "nothing")(lambda merged, heads, head: merged.clone())

# ---- patch an activation --------------------------------------------------------------------------------------------


@right("patch_activation")
def _(model, x, source, layer, position):
    for each in model[: layer + 1]:
        x, source = each(x), each(source)
    here = (torch.arange(x.shape[1]) == position)[:, None]
    return model[layer + 1 :](torch.where(here, source, x))


@right("patch_activation")
def _(model, x, source, layer, position):
    both = torch.cat([x, source])
    n = len(x)

    def hook(module, args, output):
        output = output.clone()
        output[:n, position] = output[n:, position]
        return output

    handle = model[layer].register_forward_hook(hook)
    out = model(both)[:n]
    handle.remove()
    return out


@right("patch_activation")
def _(model, x, source, layer, position):
    store = {}
    with torch.no_grad():
        handle = model[layer].register_forward_hook(lambda m, a, o: store.update(o=o.clone()))
        model(source)
        handle.remove()

        def put(m, a, o):
            o[:, position, :] = store["o"][:, position, :]

        handle = model[layer].register_forward_hook(put)
        out = model(x)
        handle.remove()
    return out


@wrong("patch_activation", "the hook stays")
def _(model, x, source, layer, position):
    front = model[: layer + 1](source)
    model[layer].register_forward_hook(
        lambda m, a, o: torch.cat([o[:, :position], front[:, position : position + 1], o[:, position + 1 :]], 1)
    )
    return model(x)


@wrong("patch_activation", "one layer too early")
def _(model, x, source, layer, position):
    x, source = model[:layer](x).clone(), model[:layer](source)
    x[:, position] = source[:, position]
    return model[layer:](x)


@wrong("patch_activation", "one text")
def _(model, x, source, layer, position):
    x, source = model[: layer + 1](x).clone(), model[: layer + 1](source)
    x[0, position] = source[0, position]
    return model[layer + 1 :](x)


@wrong("patch_activation", "from this position on")
def _(model, x, source, layer, position):
    x, source = model[: layer + 1](x).clone(), model[: layer + 1](source)
    x[:, position:] = source[:, position:]
    return model[layer + 1 :](x)


wrong("patch_activation", "the output of source")(lambda model, x, source, layer, position: model(source))

# ---- effects --------------------------------------------------------------------------------------------------------


@right("head_effects")
def _(lead, layers, heads):
    return torch.tensor([[float((lead([]) - lead([(i, j)])).mean()) for j in range(heads)] for i in range(layers)])


@right("head_effects")
def _(lead, layers, heads):
    full, out = lead(), torch.empty(layers * heads)
    for n in range(layers * heads):
        out[n] = full.mean() - lead(((n // heads, n % heads),)).mean()
    return out.reshape(layers, heads)


@right("head_effects")
def _(lead, layers, heads):
    drops = [torch.stack([lead() - lead({(i, j)}) for j in range(heads)]) for i in range(layers)]
    return torch.stack(drops).mean(dim=-1)


def table(effect):
    return lambda lead, layers, heads: torch.stack(
        [torch.stack([effect(lead(), lead([(i, j)])) for j in range(heads)]) for i in range(layers)]
    )


wrong("head_effects", "sign")(table(lambda full, without: (without - full).mean()))
wrong("head_effects", "never negative")(table(lambda full, without: (full - without).mean().clamp(min=0)))
wrong("head_effects", "median")(table(lambda full, without: (full - without).median()))
wrong("head_effects", "the largest")(table(lambda full, without: (full - without).max()))
wrong("head_effects", "one head for all layers")(
    lambda lead, layers, heads: torch.stack(
        [(lead() - lead([(i, j) for i in range(layers)])).mean() for j in range(heads)]
    ).expand(layers, -1)
)

# ---- the heads that bind --------------------------------------------------------------------------------------------


@right("find_binding_heads")
def _(lead, layers, heads, share=0.2):
    found, now, goal = [], float(lead().mean()), share * float(lead().mean())
    while now > goal:
        options = [(i, j) for i in range(layers) for j in range(heads) if (i, j) not in found]
        values = torch.tensor([float(lead([*found, one]).mean()) for one in options])
        found.append(options[int(values.argmin())])
        now = float(values.min())
    return found


@right("find_binding_heads")
def _(lead, layers, heads, share=0.2):
    def search(found):
        if lead(found).mean() <= share * lead().mean():
            return found
        rest = {(i, j) for i in range(layers) for j in range(heads)} - set(found)
        return search((*found, min(rest, key=lambda one: float(lead((*found, one)).mean()))))

    return search(())


def take(first, order=lambda lead, one: float(lead([one]).mean())):
    def answer(lead, layers, heads, share=0.2):
        everything = sorted(((i, j) for i in range(layers) for j in range(heads)), key=lambda one: order(lead, one))
        return everything[:first]

    return answer


wrong("find_binding_heads", "always one")(take(1))
wrong("find_binding_heads", "always two")(take(2))
wrong("find_binding_heads", "all")(take(None))
wrong("find_binding_heads", "the least")(take(1, lambda lead, one: -float(lead([one]).mean())))
wrong("find_binding_heads", "none")(lambda lead, layers, heads, share=0.2: [])
wrong("find_binding_heads", "a number for each head")(lambda lead, layers, heads, share=0.2: [0])

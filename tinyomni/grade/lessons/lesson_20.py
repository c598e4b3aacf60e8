"""Lesson 20, looking inside: a probe by least squares, heads ablated, activations patched, and a circuit on trial.

The oracles go without hooks, one layer and one head at a time. Heads that a learner finds are judged by their effect:
they are ablated on other scenes, beside as many other heads, in models made for it and in the one that ships.
"""

import functools
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinyomni.grade import inside
from tinyomni.grade.exercise import AnswerError, exercise
from tinyomni.omni import Omni

NOTEBOOK, TITLE = "20_looking_inside", "Looking inside"

PROBING = "2. Probing: what could be read there"
ABLATION = "4. Ablation: what the answer needs"
PATCHING = "5. Activation patching: where it is, layer by layer"
CIRCUIT = "6. A circuit on trial"

fault: Any  # what a mutant changes


# ---- probe ----------------------------------------------------------------------------------------------------------


@exercise("A linear probe", minutes=15, level=2, rtol=1e-3, atol=1e-3)
def linear_probe(
    train: Float[Tensor, "n_train features"],
    labels: Int[Tensor, "n_train"],
    fresh: Float[Tensor, "n_fresh features"],
    classes: int,
    ridge: float = 1.0,
) -> Float[Tensor, "n_fresh classes"]:
    """As a longer least squares problem: √ridge times the identity below the vectors, zeros below the targets."""
    ones = torch.ones(len(train), 1, dtype=torch.float64)
    x = torch.cat([train.double(), ones], dim=1)
    y = torch.zeros(len(train), classes, dtype=torch.float64)
    for row, label in enumerate(labels.tolist()):
        y[row, label] = 1
    width = x.shape[1]
    longer = torch.cat([x, ridge**0.5 * torch.eye(width, dtype=torch.float64)])
    weights = torch.linalg.lstsq(longer, torch.cat([y, torch.zeros(width, classes, dtype=torch.float64)])).solution
    scores = [[float(row @ weights[:-1, c] + weights[-1, c]) for c in range(classes)] for row in fresh.double()]
    return fresh.new_tensor(scores)


@linear_probe.cases
def _(rng):
    def inputs(n_train, features, n_fresh, classes, **more):
        labels = rng.randint(classes, n_train)
        return {
            "train": rng.randn(n_train, features) + F.one_hot(labels, features).float() + 1,
            "labels": labels,
            "fresh": rng.randn(n_fresh, features),
            "classes": classes,
            **more,
        }

    yield "all sizes different", inputs(11, 7, 5, 4, ridge=0.5)
    yield "the usual ridge, fewer vectors than features", inputs(4, 6, 3, 3)
    rare = inputs(9, 4, 2, 3, ridge=2.0)
    yield "the last class does not occur", rare | {"labels": rare["labels"] % 2}


@linear_probe.random_inputs
def _(rng):
    n, features, classes = rng.size(9), rng.size(5), rng.size(4)
    return {
        "train": rng.randn(n, features) + rng.choice((0.0, 3.0)), "labels": rng.randint(classes, n),
        "fresh": rng.randn(rng.size(), features), "classes": classes, "ridge": rng.number(0.1, 3.0),
    }  # fmt: skip


def probe_variant(train, labels, fresh, classes, ridge=1.0, *, one=1.0, scale=lambda ridge, n: ridge, free=False,
                  center=lambda x, train: x, finish=lambda scores: scores):  # fmt: skip
    """`linear_probe`; each keyword injects one fault."""
    x, z = (F.pad(center(each, train), (0, 1), value=one) for each in (train, fresh))
    penalty = scale(ridge, len(train)) * torch.eye(x.shape[1], dtype=x.dtype)
    if free:
        penalty[-1, -1] = 0
    y = F.one_hot(labels, classes).to(x.dtype)
    return finish(z @ (torch.linalg.pinv(x.T @ x + penalty) @ (x.T @ y)))


for cause, fault in (
    ("there is no 1 beside the features, so that the probe has no bias", {"one": 0.0}),
    ("`ridge` is left out", {"scale": lambda ridge, n: 0.0}),
    ("`ridge` is always 1, whatever is given", {"scale": lambda ridge, n: 1.0}),
    ("`ridge` is multiplied by the number of vectors", {"scale": lambda ridge, n: ridge * n}),
    ("`ridge` is squared", {"scale": lambda ridge, n: 4 * ridge**2}),
    ("the weights of the 1 are left out of the penalty", {"free": True}),
    ("each set of vectors is centered with its own mean: fresh ones are not measured like those of the fit",
     {"center": lambda x, train: x - x.mean(dim=0)}),
    ("the scores go through a softmax", {"finish": lambda scores: scores.softmax(dim=1)}),
    ("the class is returned instead of a score for each", {"finish": lambda scores: scores.argmax(dim=1)}),
):  # fmt: skip
    linear_probe.mutant(cause, PROBING)(functools.partial(probe_variant, **fault))


@linear_probe.mutant("the scores are those of the vectors that the probe was fitted to", PROBING)
def _(train, labels, fresh, classes, ridge=1.0):
    return probe_variant(train, labels, train, classes, ridge)


linear_probe.alternative(probe_variant)


@linear_probe.alternative
def _(train, labels, fresh, classes, ridge=1.0):
    x, z = (torch.cat([each, torch.ones_like(each[:, :1])], dim=1) for each in (train, fresh))
    kernel = x @ x.T + ridge * torch.eye(len(x)).to(x)  # the same in the space of the vectors
    return z @ x.T @ torch.linalg.solve(kernel, torch.eye(classes).to(x)[labels])


# ---- ablation -------------------------------------------------------------------------------------------------------


@exercise("Ablate a head", minutes=10, level=1)
def ablate_head(merged: Float[Tensor, "batch tokens dim"], heads: int, head: int) -> Float[Tensor, "batch tokens dim"]:
    """One number of a head at a time."""
    out = merged.clone()
    head_dim = merged.shape[2] // heads
    for number in range(head * head_dim, (head + 1) * head_dim):
        values = [float(token[number]) for row in merged for token in row]
        out[:, :, number] = sum(values) / len(values)
    return out


@ablate_head.cases
def _(rng):
    yield "all sizes different", {"merged": rng.randn(2, 5, 12) + 1, "heads": 4, "head": 1}
    yield "the last head", {"merged": rng.randn(3, 4, 6) - 1, "heads": 2, "head": 1}
    yield "one text of one token: its own mean", {"merged": rng.randn(1, 1, 6), "heads": 3, "head": 0}


@ablate_head.random_inputs
def _(rng):
    heads = rng.size(4)
    merged = 3 * rng.randn(rng.size(4), rng.size(4), heads * rng.size(4))
    return {"merged": merged, "heads": heads, "head": rng.size(heads - 1, 0)}


def ablate_variant(merged, heads, head, *, mean=lambda part: part.mean(dim=(0, 1)), pattern="(heads head_dim)",
                   offset=0, others=False):  # fmt: skip
    """`ablate_head`; each keyword injects one fault."""
    parts = rearrange(merged, f"batch tokens {pattern} -> batch tokens heads head_dim", heads=heads).clone()
    for each in range(heads):
        if (each == (head + offset) % heads) != others:
            parts[:, :, each] = mean(parts[:, :, each])
    return rearrange(parts, f"batch tokens heads head_dim -> batch tokens {pattern}")


for cause, fault in (
    ("the head's output is 0, which it never says: that is another ablation", {"mean": lambda part: 0.0}),
    ("the mean goes over the texts only: each position keeps its own",
     {"mean": lambda part: part.mean(dim=0, keepdim=True)}),
    ("the mean goes over the tokens only: each text keeps its own",
     {"mean": lambda part: part.mean(dim=1, keepdim=True)}),
    ("one number stands for the whole head: the mean also goes over head_dim", {"mean": lambda part: part.mean()}),
    ("every n-th number is taken: the heads lie side by side, not interleaved", {"pattern": "(head_dim heads)"}),
    ("heads are counted from 1", {"offset": -1}),
    ("all other heads are ablated and this one is kept", {"others": True}),
):  # fmt: skip
    ablate_head.mutant(cause, ABLATION)(functools.partial(ablate_variant, **fault))


@ablate_head.mutant("the head is cut out: the rest no longer fits the output projection", ABLATION)
def _(merged, heads, head):
    parts = list(merged.chunk(heads, dim=2))
    return torch.cat(parts[:head] + parts[head + 1 :], dim=2) if heads > 1 else merged


@ablate_head.mutant("the input itself is changed: whoever still holds it gets the ablated one", ABLATION)
def _(merged, heads, head):
    part = merged.chunk(heads, dim=2)[head]
    part.copy_(part.mean(dim=(0, 1)).expand_as(part))
    return merged


ablate_head.alternative(ablate_variant)


@ablate_head.alternative
def _(merged, heads, head):
    inside_head = torch.arange(merged.shape[2]) // (merged.shape[2] // heads) == head
    return torch.where(inside_head, merged.mean(dim=(0, 1)), merged)


# ---- patching -------------------------------------------------------------------------------------------------------


class Mix(nn.Module):
    """Each token gets the mean of those up to it: what one token holds reaches the later ones."""

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """(batch, tokens, dim) → the same."""
        count = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        return x + (2 * x).tanh().cumsum(dim=1) / count


def small_model(rng: Any, dim: int) -> nn.Sequential:
    """Five layers, in two of which tokens meet."""
    model = nn.Sequential(nn.Linear(dim, dim), Mix(), nn.Linear(dim, dim), Mix(), nn.Linear(dim, dim))
    for parameter in model.parameters():
        parameter.data = rng.randn(*parameter.shape)
    return model.requires_grad_(False)


@exercise("Patch an activation", minutes=20, level=3)
def patch_activation(
    model: nn.Sequential,
    x: Float[Tensor, "batch tokens dim"],
    source: Float[Tensor, "batch tokens dim"],
    layer: int,
    position: int,
) -> Float[Tensor, "batch tokens dim"]:
    """Both runs layer by layer, without a hook."""
    for number, each in enumerate(model):
        x, source = each(x), each(source)
        if number == layer:
            x = torch.stack([source[:, t] if t == position else x[:, t] for t in range(x.shape[1])], dim=1)
    return x


@patch_activation.invoke
def _(answer, model, x, source, layer, position):
    value = answer(model, x, source, layer, position)
    if any(each._forward_hooks or each._forward_pre_hooks for each in model.modules()):
        raise AnswerError("a hook is still there afterwards: it would change every later run. Call its `remove()`")
    return value


@patch_activation.cases
def _(rng):
    def inputs(batch, tokens, dim, layer, position):
        return {
            "model": small_model(rng, dim),
            "x": rng.randn(batch, tokens, dim),
            "source": rng.randn(batch, tokens, dim),
            "layer": layer,
            "position": position,
        }

    yield "all sizes different", inputs(2, 5, 3, layer=1, position=2)
    yield "the first layer, the last position", inputs(2, 4, 3, layer=0, position=3)
    yield "the last layer", inputs(3, 4, 2, layer=4, position=1)
    yield "one text of one token", inputs(1, 1, 3, layer=2, position=0)


@patch_activation.random_inputs
def _(rng):
    tokens, dim = rng.size(5), rng.size(4)
    x, source = rng.randn(2, rng.size(3), tokens, dim)
    return {
        "model": small_model(rng, dim), "x": x, "source": source, "layer": rng.size(4, 0),
        "position": rng.size(tokens - 1, 0),
    }  # fmt: skip


def patch_variant(model, x, source, layer, position, *, change=lambda old, new, at: torch.cat(
    [old[:, :at], new[:, at : at + 1], old[:, at + 1 :]], dim=1
), shift=0, before=False, exchange=False):  # fmt: skip
    """`patch_activation`; each keyword injects one fault."""
    if exchange:
        x, source = source, x
    layer = min(layer + shift, len(model) - 1)
    kept = []
    if before:
        hook = model[layer].register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    else:
        hook = model[layer].register_forward_hook(lambda _, args, out: kept.append(out))
    model(source)
    hook.remove()
    if before:
        hook = model[layer].register_forward_pre_hook(lambda _, args: (change(args[0], kept[0], position),))
    else:
        hook = model[layer].register_forward_hook(lambda _, args, out: change(out, kept[0], position))
    out = model(x)
    hook.remove()
    return out


def nudge(old: Tensor, new: Tensor, at: int, part: float, keep: float) -> Tensor:
    """A mixture of both at one position."""
    out = old.clone()
    out[:, at] = keep * old[:, at] + part * new[:, at]
    return out


for cause, fault in (
    ("all positions are patched: then nothing is left of the second run", {"change": lambda old, new, at: new}),
    ("the activation is added instead of replaced",
     {"change": functools.partial(nudge, part=1, keep=1)}),
    ("the mean of both is taken instead of the other one",
     {"change": functools.partial(nudge, part=0.5, keep=0.5)}),
    ("the position is set to 0 instead of the other run's activation",
     {"change": functools.partial(nudge, part=0, keep=0)}),
    ("the roles are exchanged: `source` runs, and gets what `x` had", {"exchange": True}),
    ("the layer's input is patched, not its output", {"before": True}),
    ("the hook sits one layer too late", {"shift": 1}),
):  # fmt: skip
    patch_activation.mutant(cause, PATCHING)(functools.partial(patch_variant, **fault))


@patch_activation.mutant("nothing is patched: a hook that returns nothing changes nothing", PATCHING)
def _(model, x, source, layer, position):
    return model(x)


patch_activation.alternative(patch_variant)


@patch_activation.alternative
def _(model, x, source, layer, position):
    front, back = model[: layer + 1], model[layer + 1 :]
    middle = front(x).clone()
    middle[:, position] = front(source)[:, position]
    return back(middle)


# ---- effects --------------------------------------------------------------------------------------------------------

Lead = Callable[..., Tensor]
"""`lead([(layer, head), …])` → for each scene how far the right word is ahead, with these heads ablated."""


def planted_lead(
    rng: Any, full: float, single: dict[inside.Head, float], together: dict[frozenset[inside.Head], float]
) -> Any:
    """A model in which it is known what each head is good for, alone and together with another one."""

    def lead_on(scenes: int) -> Lead:
        level, share = (noise - noise.mean() + 1 for noise in 0.1 * rng.randn(2, scenes))

        def lead(heads: Sequence[inside.Head] = ()) -> Tensor:
            gone = {(int(layer), int(head)) for layer, head in heads}
            if not all(head in single for head in gone):
                raise IndexError(f"there is no head {sorted(gone - set(single))[0]}, counted from (0, 0)")
            lost = sum(single[head] for head in gone)
            return full * level - share * (lost + sum(more for pair, more in together.items() if pair <= gone))

        return lead

    lead: Any = lead_on(7)
    lead.fresh = lead_on(9)
    return lead


def small_effects(layers: int, heads: int) -> dict[inside.Head, float]:
    """Heads that hardly matter, each a little differently."""
    return {(n // heads, n % heads): 0.01 * (n + 1) for n in range(layers * heads)}


@exercise("The effect of each head", minutes=10, level=2, float64=False)
def head_effects(lead: Lead, layers: int, heads: int) -> Float[Tensor, "layers heads"]:
    """Scene by scene."""
    before = lead().tolist()
    table = torch.zeros(layers, heads)
    for layer, head in itertools.product(range(layers), range(heads)):
        after = lead([(layer, head)]).tolist()
        table[layer, head] = sum(b - a for b, a in zip(before, after, strict=True)) / len(before)
    return table


@head_effects.cases
def _(rng):
    effects = small_effects(2, 3) | {(0, 1): 2.5, (1, 2): -4.0}
    lead = planted_lead(rng, 6.0, effects, {frozenset({(0, 1), (1, 0)}): 3.0})
    yield "two layers of three heads, one of which does harm", {"lead": lead, "layers": 2, "heads": 3}
    effects = {head: float(rng.randn(1)) for head in small_effects(3, 2)}
    yield "three layers of two heads", {"lead": planted_lead(rng, 2.0, effects, {}), "layers": 3, "heads": 2}
    yield "a single head", {"lead": planted_lead(rng, 3.0, {(0, 0): 1.0}, {}), "layers": 1, "heads": 1}


@head_effects.random_inputs
def _(rng):
    layers, heads = rng.size(3), rng.size(4)
    effects = {head: rng.number(-3.0, 3.0) for head in small_effects(layers, heads)}
    pair = frozenset(rng.chosen(list(effects), 2, 2))
    return {
        "lead": planted_lead(rng, 5.0, effects, {pair: 2.0} if len(pair) > 1 else {}),
        "layers": layers,
        "heads": heads,
    }


def effects_variant(
    lead,
    layers,
    heads,
    *,
    effect=lambda before, after: (before - after).mean(),
    ablate=lambda layer, head: [(layer, head)],
    finish=lambda table: table,
):
    """`head_effects`; each keyword injects one fault."""
    before = lead()
    rows = [[effect(before, lead(ablate(layer, head))) for head in range(heads)] for layer in range(layers)]
    return finish(torch.stack([torch.stack(row) for row in rows]))


for cause, fault in (
    ("the sign is reversed: a head that the answer needs has a *positive* effect",
     {"effect": lambda before, after: (after - before).mean()}),
    ("the absolute value is taken: a head that does harm looks like one that is needed",
     {"effect": lambda before, after: (before - after).mean().abs()}),
    ("the lead after ablation is returned, not the difference", {"effect": lambda before, after: after.mean()}),
    ("the effects of the scenes are summed, not averaged", {"effect": lambda before, after: (before - after).sum()}),
    ("only the first scene counts", {"effect": lambda before, after: (before - after)[0]}),
    ("the effect is divided by the lead", {"effect": lambda before, after: (before - after).mean() / before.mean()}),
    ("scenes are counted in which the right word no longer leads: a head that only weakens it gets 0",
     {"effect": lambda before, after: ((before > 0) & (after <= 0)).float().mean()}),
    ("layers and heads are exchanged in the table", {"finish": lambda table: table.T}),
    ("all heads of the layer are ablated at once",
     {"ablate": lambda layer, head: [(layer, each) for each in range(head + 1)]}),
):  # fmt: skip
    head_effects.mutant(cause, ABLATION)(functools.partial(effects_variant, **fault))


head_effects.alternative(effects_variant)


@head_effects.alternative
def _(lead, layers, heads):
    after = [lead([(number // heads, number % heads)]).mean() for number in range(layers * heads)]
    return (lead([]).mean() - torch.stack(after)).view(layers, heads)


# ---- the circuit ----------------------------------------------------------------------------------------------------

RIVALS = 10


@functools.cache
def shipped_lead() -> Any:
    """That of the model that ships, on six scenes and on six fresh ones; what was ablated once is remembered."""
    omni = Omni.from_pretrained()

    def lead_on(seed: int) -> Lead:
        asked = inside.draw_lookups(omni.tokenizer, 6, seed)

        @functools.cache
        def measured(heads: frozenset[inside.Head]) -> Tensor:
            return inside.lead(omni.thinker, asked.ids, asked.right, asked.other, heads)

        return lambda heads=(): measured(frozenset((int(layer), int(head)) for layer, head in heads)).clone()

    lead: Any = lead_on(1)
    lead.fresh = lead_on(2)
    lead.layers, lead.heads = omni.cfg.thinker.layers, omni.cfg.thinker.heads
    return lead


def trial(found: Sequence[inside.Head], lead: Any, layers: int, heads: int, share: float) -> dict[str, Any]:
    """What the ablation of these heads does on fresh scenes, beside that of as many others."""
    found = [(int(layer), int(head)) for layer, head in found]
    everything = set(itertools.product(range(layers), range(heads)))
    if not set(found) <= everything:
        raise AnswerError(f"expected (layer, head) up to ({layers - 1}, {heads - 1}), got {found}")
    before, after = float(lead.fresh().mean()), float(lead.fresh(found).mean())
    others, rng = sorted(everything - set(found)), random.Random(0)
    rivals = [float(lead.fresh(rng.sample(others, min(len(found), len(others)))).mean()) for _ in range(RIVALS)]
    as_strong = sum(each <= after for each in rivals)
    return {
        "number of heads": len(set(found)),
        "what their ablation leaves of the lead": few if after <= (share + 0.3) * before else f"{after / before:.0%}",
        "other heads, as many, that matter as much": rare if as_strong <= 1 else f"{as_strong} of {RIVALS} draws",
    }


few, rare = "little", "hardly any"


@exercise("Find the heads that bind", minutes=25, level=3, float64=False)
def find_binding_heads(lead: Lead, layers: int, heads: int, share: float = 0.2):
    """Greedily; what is expected of them on fresh scenes."""
    found: list[inside.Head] = []
    left = set(itertools.product(range(layers), range(heads)))
    limit = share * float(lead().mean())
    while left and float(lead(found).mean()) > limit:
        costs = {head: float(lead([*found, head]).mean()) for head in left}
        found.append(min(costs, key=lambda head: costs[head]))
        left.remove(found[-1])
    return {
        "number of heads": len(found),
        "what their ablation leaves of the lead": few,
        "other heads, as many, that matter as much": rare,
    }


@find_binding_heads.invoke
def _(answer, lead, layers, heads, **more):
    found = answer(lead, layers, heads, **more)
    return found if found is None or found is ... else trial(found, lead, layers, heads, more.get("share", 0.2))


@find_binding_heads.cases
def _(rng):
    effects = small_effects(3, 4) | {(1, 2): 7.0, (0, 1): 0.6, (2, 3): -4.0}
    backup = {frozenset({(1, 2), (2, 0)}): 1.5}
    yield (
        "one head, a second that takes over for it, and one that does harm",
        {"lead": planted_lead(rng, 10.0, effects, backup), "layers": 3, "heads": 4},
    )
    effects = small_effects(2, 6) | {(1, 4): 5.0, (0, 5): 4.0, (0, 0): 3.0}
    yield "another share", {"lead": planted_lead(rng, 8.0, effects, {}), "layers": 2, "heads": 6, "share": 0.7}
    effects = effects | {(1, 1): 0.9}
    yield "three heads together", {"lead": planted_lead(rng, 13.0, effects, {}), "layers": 2, "heads": 6}
    shipped = shipped_lead()
    yield "the model that ships", {"lead": shipped, "layers": shipped.layers, "heads": shipped.heads}


@find_binding_heads.random_inputs
def _(rng):
    layers, heads = rng.size(3, 2), rng.size(6, 4)
    effects = small_effects(layers, heads)
    strong = {head: rng.number(3.0, 6.0) for head in rng.chosen(list(effects), 3, 1)}
    full = sum(strong.values()) / 0.85
    return {"lead": planted_lead(rng, full, effects | strong, {}), "layers": layers, "heads": heads}


def find_variant(lead, layers, heads, share=0.2, *, cost=lambda lead, found, head: float(lead([*found, head]).mean()),
                 limit=lambda full, share: share * full, more=0, most=99, name=lambda head: head):  # fmt: skip
    """`find_binding_heads`; each keyword injects one fault."""
    left = list(itertools.product(range(layers), range(heads)))
    found: list[inside.Head] = []
    end = limit(float(lead().mean()), share)
    while left and len(found) < most and float(lead(found).mean()) > end:
        found.append(min(left, key=lambda head: cost(lead, found, head)))
        left.remove(found[-1])
    for _ in range(more):
        found.append(min(left, key=lambda head: cost(lead, found, head)))
        left.remove(found[-1])
    return [name(head) for head in found]


def change(lead: Lead, found: list[inside.Head], head: inside.Head) -> float:
    """Minus the absolute change that one more ablation makes."""
    return -abs(float((lead(found) - lead([*found, head])).mean()))


for cause, fault in (
    ("the effects are measured once and not again: a head that takes over for an ablated one is not seen",
     {"cost": lambda lead, found, head: float(lead([head]).mean())}),
    ("the absolute change is taken: a head that does harm is among them", {"cost": change}),
    ("the heads are taken that matter least", {"cost": lambda lead, found, head: -float(lead([*found, head]).mean())}),
    ("it stops one head too late", {"more": 1}),
    ("it stops after the first head, whatever is left of the lead", {"most": 1}),
    ("it stops when the lead itself is below `share`, not below that part of it",
     {"limit": lambda full, share: share}),
    ("it stops as soon as `share` of the lead is lost, not when only that much is left",
     {"limit": lambda full, share: (1 - share) * full}),
    ("it goes on until nothing is left of the lead", {"limit": lambda full, share: 0.0}),
    ("`share` is always 0.2", {"limit": lambda full, share: 0.2 * full}),
    ("head and layer are exchanged", {"name": lambda head: (head[1], head[0])}),
):  # fmt: skip
    find_binding_heads.mutant(cause, CIRCUIT)(functools.partial(find_variant, **fault))


@find_binding_heads.mutant("the first heads are taken in their order, unmeasured", CIRCUIT)
def _(lead, layers, heads, share=0.2):
    return [(0, head) for head in range(min(heads, 2))]


find_binding_heads.alternative(find_variant)


@find_binding_heads.alternative
def _(lead, layers, heads, share=0.2):
    found: list[inside.Head] = []
    full = lead().mean()
    while lead(found).mean() > share * full:
        best = None
        for number in range(layers * heads):
            head = divmod(number, heads)
            if head in found:
                continue
            after = lead([*found, head]).mean()
            if best is None or after < best[0]:
                best = after, head
        found.append(best[1])  # type: ignore[index]  # there is a head left
    return found

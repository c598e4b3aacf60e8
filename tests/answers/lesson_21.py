"""Lesson 21: bigger, measured."""

import math

import numpy as np
import torch

from answers import right, wrong


@right("size_and_flops")
def _(layers, d_model, intermediate_size, vocab, tokens):
    per_block = 4 * d_model**2 + 3 * d_model * intermediate_size + 2 * d_model
    n = layers * per_block + d_model + d_model * vocab
    return n, 6 * n + 12 * layers * tokens * d_model


@right("size_and_flops")
def _(layers, d_model, intermediate_size, vocab, tokens):
    n = vocab * d_model + d_model
    attention = 0
    for _ in range(layers):
        n += d_model * (4 * d_model + 3 * intermediate_size + 2)
        attention += 4 * d_model * tokens
    forward = 2 * n + attention
    return [n, forward + 2 * forward]


def counted(matrices=4, mlp=3, norms=True, head=1, attention=12, per_pass=6, layered=True):
    def answer(layers, d_model, intermediate_size, vocab, tokens):
        block = matrices * d_model**2 + mlp * d_model * intermediate_size + 2 * d_model * norms
        n = (layers if layered else 1) * block + d_model * norms + head * vocab * d_model
        return n, per_pass * n + attention * layers * tokens * d_model

    return answer


wrong("size_and_flops", "with the embedding")(counted(head=2))
wrong("size_and_flops", "without the head")(counted(head=0))
wrong("size_and_flops", "no norms at all")(counted(norms=False))
wrong("size_and_flops", "an MLP of two matrices")(counted(mlp=2))
wrong("size_and_flops", "6N alone")(counted(attention=0))
wrong("size_and_flops", "the forward pass alone")(counted(attention=4, per_pass=2))
wrong("size_and_flops", "one block")(counted(layered=False))
wrong("size_and_flops", "half of attention, as if a mask saved it")(counted(attention=6))
wrong("size_and_flops", "the order swapped")(lambda *sizes: counted()(*sizes)[::-1])


@right("fit_power_law")
def _(sizes, losses, floor=0.0):
    x, y = torch.log(sizes.double()), torch.log(losses.double() - floor)
    covariance = torch.cov(torch.stack([x, y]))
    slope = covariance[0, 1] / covariance[0, 0]
    return torch.exp(y.mean() - slope * x.mean()).item(), -slope.item()


@right("fit_power_law")
def _(sizes, losses, floor=0.0):
    x = np.log10(sizes.double().numpy())
    y = np.log10(losses.double().numpy() - floor)
    matrix = np.vstack([np.ones(len(x)), x]).T
    (a, b), *_ = np.linalg.lstsq(matrix, y, rcond=None)
    return 10**a, -b


@right("fit_power_law")
def _(sizes, losses, floor=0.0):
    pairs = [(math.log(n), math.log(loss - floor)) for n, loss in zip(sizes.tolist(), losses.tolist(), strict=True)]
    count = len(pairs)
    sx, sy = sum(x for x, _ in pairs), sum(y for _, y in pairs)
    sxx, sxy = sum(x * x for x, _ in pairs), sum(x * y for x, y in pairs)
    slope = (count * sxy - sx * sy) / (count * sxx - sx**2)
    return math.exp((sy - slope * sx) / count), -slope


def fitted(
    y_of=lambda loss, floor: np.log(loss - floor), x_of=np.log, out=lambda slope, start: (np.exp(start), -slope)
):
    def answer(sizes, losses, floor=0.0):
        slope, start = np.polyfit(x_of(sizes.double().numpy()), y_of(losses.double().numpy(), floor), 1)
        return tuple(map(float, out(slope, start)))

    return answer


wrong("fit_power_law", "the floor forgotten")(fitted(y_of=lambda loss, floor: np.log(loss)))
wrong("fit_power_law", "the slope, not the exponent")(fitted(out=lambda slope, start: (np.exp(start), slope)))
wrong("fit_power_law", "the logarithm of the coefficient")(fitted(out=lambda slope, start: (start, -slope)))
wrong("fit_power_law", "swapped")(fitted(out=lambda slope, start: (-slope, np.exp(start))))
wrong("fit_power_law", "an exponential")(fitted(x_of=lambda x: x))
wrong("fit_power_law", "a line")(fitted(x_of=lambda x: x, y_of=lambda y, floor: y - floor))
wrong("fit_power_law", "log2 with exp")(fitted(x_of=np.log2, y_of=lambda y, floor: np.log2(y - floor)))
wrong("fit_power_law", "the mean of the slopes between neighbours")(
    lambda sizes, losses, floor=0.0: (
        b := float((torch.log(losses - floor).diff() / torch.log(sizes).diff()).mean()),
        (float(torch.exp((torch.log(losses - floor) - b * torch.log(sizes)).mean())), -b),
    )[1]
)


@right("compute_optimal")
def _(parameters, tokens, losses, budgets):
    flops = parameters.to(torch.float64) * tokens.to(torch.float64) * 6
    found = []
    for budget in budgets:
        runs = torch.nonzero(flops <= budget.to(torch.float64)).flatten()
        found.append(runs[losses[runs].argmin()].item() if runs.numel() else -1)
    return torch.tensor(found)


@right("compute_optimal")
def _(parameters, tokens, losses, budgets):
    by_loss = sorted(range(len(losses)), key=lambda run: float(losses[run]))
    flops = [6 * int(n) * int(d) for n, d in zip(parameters, tokens, strict=True)]
    return torch.tensor([next((r for r in by_loss if flops[r] <= float(b)), -1) for b in budgets])


def chosen(flops=lambda n, d: 6 * n.double() * d.double(), fits=lambda c, b: c <= b, empty=-1, by=None):
    def answer(parameters, tokens, losses, budgets):
        cost = flops(parameters, tokens)
        value = losses.double() if by is None else by(parameters.double(), tokens.double())
        picked = torch.where(fits(cost[None], budgets.double()[:, None]), value[None], torch.inf)
        return torch.where(picked.isinf().all(1), empty, picked.argmin(1))

    return answer


wrong("compute_optimal", "without the 6")(chosen(flops=lambda n, d: n.double() * d.double()))
wrong("compute_optimal", "strictly below the budget")(chosen(fits=lambda c, b: c < b))
wrong("compute_optimal", "all runs fit")(chosen(fits=lambda c, b: torch.ones_like(c * b, dtype=torch.bool)))
wrong("compute_optimal", "runs within a factor of two of the budget")(chosen(fits=lambda c, b: (c <= b) & (c > b / 2)))
wrong("compute_optimal", "int64 overflows")(chosen(flops=lambda n, d: 6 * n * d))
wrong("compute_optimal", "0 where nothing fits")(chosen(empty=0))
wrong("compute_optimal", "the largest that fits")(chosen(by=lambda n, d: -n))
wrong("compute_optimal", "the longest that fits")(chosen(by=lambda n, d: -d))


@right("tokens_for_budget")
def _(days, gpus, peak, mfu=0.4, tokens_per_parameter=20.0):
    flops = days * 24 * 60 * 60 * gpus * peak * mfu
    n = math.sqrt(flops / (6 * tokens_per_parameter))
    return n, tokens_per_parameter * n


@right("tokens_for_budget")
def _(days, gpus, peak, mfu=0.4, tokens_per_parameter=20.0):
    log_n = 0.5 * (math.log(days * 86400) + math.log(gpus * peak) + math.log(mfu / 6) - math.log(tokens_per_parameter))
    return np.float64(math.exp(log_n)), tokens_per_parameter * math.exp(log_n)


def planned(
    seconds=86400, used=lambda u: u, six=6, many=lambda g: g, root=0.5, per=lambda r: r, out=lambda n, d: (n, d)
):
    def answer(days, gpus, peak, mfu=0.4, tokens_per_parameter=20.0):
        r = per(tokens_per_parameter)
        n = (days * seconds * many(gpus) * peak * used(mfu) / six / r) ** root
        return out(n, r * n)

    return answer


wrong("tokens_for_budget", "hours")(planned(seconds=3600))
wrong("tokens_for_budget", "the peak is reached")(planned(used=lambda u: 1))
wrong("tokens_for_budget", "divided by the MFU")(planned(used=lambda u: 1 / u))
wrong("tokens_for_budget", "C = ND")(planned(six=1))
wrong("tokens_for_budget", "one GPU")(planned(many=lambda g: 1))
wrong("tokens_for_budget", "no root")(planned(root=1))
wrong("tokens_for_budget", "always Chinchilla's ratio")(planned(per=lambda r: 20))
wrong("tokens_for_budget", "the tokens alone, twice")(planned(out=lambda n, d: (d, d)))
wrong("tokens_for_budget", "Kaplan's share: size to the power 0.73")(planned(root=0.73))


@right("training_memory")
def _(parameters, layers, d_model, vocab, batch, tokens, kept=42, checkpointing=False):
    vectors = layers + kept if checkpointing else layers * kept
    numbers = {
        "weights": parameters,
        "gradients": parameters,
        "optimizer": 2 * parameters,
        "activations": batch * tokens * d_model * vectors,
        "logits": batch * tokens * vocab,
    }
    return {name: 4 * count for name, count in numbers.items()}


@right("training_memory")
def _(parameters, layers, d_model, vocab, batch, tokens, kept=42, checkpointing=False):
    def size(*shape):
        return torch.empty(shape, device="meta").nbytes

    block, given = size(batch, tokens, kept, d_model), size(batch, tokens, d_model)
    return {
        "weights": size(parameters),
        "gradients": size(parameters),
        "optimizer": size(2, parameters),
        "activations": layers * given + block if checkpointing else layers * block,
        "logits": size(batch, tokens, vocab),
    }


def memory(state=(4, 4, 8), number=4, deep=True, saved=lambda layers, kept: layers + kept, batched=True, k=None):
    def answer(parameters, layers, d_model, vocab, batch, tokens, kept=42, checkpointing=False):
        kept = k or kept
        vectors = saved(layers, kept) if checkpointing else (layers if deep else 1) * kept
        rows = (batch if batched else 1) * tokens
        sizes = [each * parameters for each in state]
        sizes += [number * rows * d_model * vectors, number * rows * vocab]
        return dict(zip(("weights", "gradients", "optimizer", "activations", "logits"), sizes, strict=True))

    return answer


wrong("training_memory", "all in 16 bits")(memory(state=(2, 2, 4), number=2))
wrong("training_memory", "activations in 16 bits")(memory(number=2))
wrong("training_memory", "one moment")(memory(state=(4, 4, 4)))
wrong("training_memory", "no gradients")(memory(state=(4, 0, 8)))
wrong("training_memory", "one layer")(memory(deep=False))
wrong("training_memory", "one row of the batch")(memory(batched=False))
wrong("training_memory", "checkpointing keeps the inputs only")(memory(saved=lambda layers, kept: layers))
wrong("training_memory", "checkpointing keeps everything")(memory(saved=lambda layers, kept: layers * kept))
wrong("training_memory", "always 42")(memory(k=42))
wrong("training_memory", "the sum alone")(lambda *sizes, **more: sum(memory()(*sizes, **more).values()))

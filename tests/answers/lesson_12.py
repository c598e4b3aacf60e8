"""Lesson 12: the training loop."""

import math
import os
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

from answers import right, wrong


@right("check_finite")
def _(where, values):
    nan, inf = int(torch.isnan(values).sum()), int(torch.isinf(values).sum())
    if nan or inf:
        raise RuntimeError(f"Numerical instability in {where}: NaN={nan}, Inf={inf}")


@right("check_finite")
def _(where, values):
    flat = values.flatten().tolist()
    nans = sum(x != x for x in flat)
    infs = sum(abs(x) == float("inf") for x in flat)
    if nans + infs > 0:
        raise RuntimeError(f"Numerical instability in {where}: NaN={nans}, Inf={infs}")


@right("check_finite")
def _(where, values):
    if not torch.isfinite(values).all():
        raise RuntimeError(
            "Numerical instability in {}: NaN={}, Inf={}".format(  # noqa: UP032
                where, values.isnan().count_nonzero().item(), values.isinf().count_nonzero().item()
            )
        )


def finite(nan=torch.isnan, inf=torch.isinf, count=lambda m: int(m.sum()), error=RuntimeError, when=None, result=None):
    def answer(where, values):
        n, i = count(nan(values)), count(inf(values))
        if (n or i) if when is None else when(n, i):
            raise error(f"Numerical instability in {where}: NaN={n}, Inf={i}")
        return result(values) if result else None

    return answer


wrong("check_finite", "a sum that overflows")(
    lambda where, values: finite(when=lambda n, i: not math.isfinite(float(values.sum())))(where, values)
)
wrong("check_finite", "+inf only")(finite(inf=torch.isposinf))
wrong("check_finite", "isfinite inverted for Inf")(finite(inf=lambda v: ~torch.isfinite(v)))
wrong("check_finite", "ValueError")(finite(error=ValueError))
wrong("check_finite", "whether instead of how many")(finite(count=lambda m: bool(m.any())))
wrong("check_finite", "NaN only")(finite(when=lambda n, i: n > 0))
wrong("check_finite", "both needed")(finite(when=lambda n, i: n and i))
wrong("check_finite", "where forgotten")(lambda where, values: finite()("Thinker", values))
wrong("check_finite", "looks at the sum")(
    lambda where, values: (
        finite()(where, values) if not math.isfinite(float(values.sum())) and values.isnan().any() else None
    )
)
wrong("check_finite", "prints")(lambda where, values: None)
wrong("check_finite", "large numbers count as infinite")(finite(inf=lambda v: v.abs() > 1e6))


@right("validate_loss")
def _(loss, min_loss=-1e6, max_loss=1e6):
    value = float(loss)
    if not (math.isfinite(value) and min_loss <= value <= max_loss):
        raise RuntimeError(f"invalid loss {value}")


@right("validate_loss")
def _(loss, min_loss=-1e6, max_loss=1e6):
    t = torch.as_tensor(loss)
    if t.isnan() or t.isinf() or t < min_loss or t > max_loss:
        raise RuntimeError("bad loss")


def validate(bad, error=RuntimeError, convert=float):
    def answer(loss, min_loss=-1e6, max_loss=1e6):
        if bad(convert(loss), min_loss, max_loss):
            raise error("bad loss")

    return answer


wrong("validate_loss", "comparison only: NaN passes")(validate(lambda x, a, b: x < a or x > b or math.isinf(x)))
wrong("validate_loss", "infinite bounds let infinity pass")(validate(lambda x, a, b: math.isnan(x) or x < a or x > b))
wrong("validate_loss", "a bound is outside")(validate(lambda x, a, b: not math.isfinite(x) or not a < x < b))
wrong("validate_loss", "no lower bound")(validate(lambda x, a, b: not math.isfinite(x) or x > b))
wrong("validate_loss", "no upper bound")(validate(lambda x, a, b: not math.isfinite(x) or x < a))
wrong("validate_loss", "negative is invalid")(validate(lambda x, a, b: not math.isfinite(x) or x < 0 or x > b))
wrong("validate_loss", "a million is fixed")(validate(lambda x, a, b: not math.isfinite(x) or abs(x) > 1e6))
wrong("validate_loss", "ValueError")(
    validate(lambda x, a, b: not math.isfinite(x) or not a <= x <= b, error=ValueError)
)
wrong("validate_loss", "tensors only")(
    validate(lambda x, a, b: not math.isfinite(x) or not a <= x <= b, convert=lambda loss: loss.item())
)
wrong("validate_loss", "abs against the upper bound")(validate(lambda x, a, b: not math.isfinite(x) or abs(x) > b))
wrong("validate_loss", "bounds excluded, a little")(validate(lambda x, a, b: not math.isfinite(x) or x <= a or x > b))


def _norm(model, power=2.0, root=True):
    total = sum((p.grad.double() ** 2).sum() for p in model.parameters() if p.grad is not None)
    return math.sqrt(float(total)) if root else float(total)


@right("check_gradient_explosion")
def _(model, max_grad_norm=100.0):
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    norm = torch.cat(grads).norm().item() if grads else 0.0
    return norm, not math.isfinite(norm) or norm > max_grad_norm


@right("check_gradient_explosion")
def _(model, max_grad_norm=100.0):
    norms = [torch.linalg.vector_norm(p.grad) for p in model.parameters() if p.grad is not None]
    norm = float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
    return norm, bool(math.isnan(norm) or math.isinf(norm) or norm > max_grad_norm)


@right("check_gradient_explosion")
def _(model, max_grad_norm=100.0):
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    return (norm, not norm <= max_grad_norm or norm == float("inf"))


def explosion(norm=_norm, judge=lambda n, m: not math.isfinite(n) or n > m):
    return lambda model, max_grad_norm=100.0: ((n := norm(model)), judge(n, max_grad_norm))


def _grads(model):
    return [p.grad for p in model.parameters() if p.grad is not None]


wrong("check_gradient_explosion", "sum of the norms")(explosion(lambda m: float(sum(g.norm() for g in _grads(m)))))
wrong("check_gradient_explosion", "largest norm")(
    explosion(lambda m: max((float(g.norm()) for g in _grads(m)), default=0.0))
)
wrong("check_gradient_explosion", "largest entry")(
    explosion(lambda m: max((float(g.abs().max()) for g in _grads(m)), default=0.0))
)
wrong("check_gradient_explosion", "no root")(explosion(lambda m: _norm(m, root=False)))
wrong("check_gradient_explosion", "norm of the weights")(
    explosion(lambda m: float(torch.cat([p.detach().flatten() for p in m.parameters()]).norm()))
)
wrong("check_gradient_explosion", "None is an error")(
    explosion(lambda m: float(torch.cat([p.grad.flatten() for p in m.parameters()]).norm()))
)
wrong("check_gradient_explosion", ">=")(explosion(judge=lambda n, m: not math.isfinite(n) or n >= m))
wrong("check_gradient_explosion", "NaN passes")(explosion(judge=lambda n, m: n > m))
wrong("check_gradient_explosion", "infinity passes an infinite limit")(
    explosion(judge=lambda n, m: math.isnan(n) or n > m)
)
wrong("check_gradient_explosion", "100 is fixed")(explosion(judge=lambda n, m: not math.isfinite(n) or n > 100))
wrong("check_gradient_explosion", "clips")(
    explosion(lambda m: float(torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)))
)
wrong("check_gradient_explosion", "clips to the limit")(
    lambda model, max_grad_norm=100.0: (
        (n := float(torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm))),
        not math.isfinite(n) or n > max_grad_norm,
    )
)
wrong("check_gradient_explosion", "a tensor")(
    lambda model, max_grad_norm=100.0: (
        (n := torch.cat([g.flatten() for g in _grads(model)] or [torch.zeros(1)]).norm()),
        bool(~torch.isfinite(n) | (n > max_grad_norm)),
    )
)
wrong("check_gradient_explosion", "mean square")(
    explosion(lambda m: float(torch.cat([g.flatten() for g in _grads(m)] or [torch.zeros(1)]).pow(2).mean().sqrt()))
)


@right("accumulate_gradients")
def _(model, optimizer, batches):
    rows = sum(len(x) for x, _ in batches)
    optimizer.zero_grad()
    total = 0.0
    for x, y in batches:
        loss = F.mse_loss(model(x), y) * len(x) / rows
        loss.backward()
        total += loss.item()
    optimizer.step()
    optimizer.zero_grad()
    return total


@right("accumulate_gradients")
def _(model, optimizer, batches):
    optimizer.zero_grad(set_to_none=False)
    numbers = sum(y.numel() for _, y in batches)
    losses = []
    for x, y in batches:
        part = (model(x) - y).square().sum() / numbers
        part.backward()
        losses.append(part.detach())
    optimizer.step()
    for p in model.parameters():
        p.grad = None
    return float(torch.stack(losses).sum())


def accumulate(
    weight=lambda n, rows, k: n / rows, before=True, after=True, each=False, returned=None, steps=1, record=True
):
    def answer(model, optimizer, batches):
        rows, losses = sum(len(x) for x, _ in batches), []
        if before:
            optimizer.zero_grad()
        for x, y in batches:
            loss = F.mse_loss(model(x), y)
            (loss * weight(len(x), rows, len(batches))).backward()
            losses.append((loss.item(), len(x)))
            if each:
                optimizer.step()
                optimizer.zero_grad()
        for _ in range(0 if each else steps):
            optimizer.step()
        if after:
            optimizer.zero_grad()
        return returned(losses, rows) if returned else sum(v * n for v, n in losses) / rows

    return answer


wrong("accumulate_gradients", "1 / number of batches")(accumulate(lambda n, rows, k: 1 / k))
wrong("accumulate_gradients", "not weighted")(accumulate(lambda n, rows, k: 1))
wrong("accumulate_gradients", "1 / rows")(accumulate(lambda n, rows, k: 1 / rows))
wrong("accumulate_gradients", "a step for each")(accumulate(each=True))
wrong("accumulate_gradients", "gradients not cleared")(accumulate(after=False))
wrong("accumulate_gradients", "mean of the losses")(
    accumulate(returned=lambda losses, rows: sum(v for v, _ in losses) / len(losses))
)
wrong("accumulate_gradients", "sum of the losses")(accumulate(returned=lambda losses, rows: sum(v for v, _ in losses)))
wrong("accumulate_gradients", "the last loss")(accumulate(returned=lambda losses, rows: losses[-1][0]))
wrong("accumulate_gradients", "no step")(accumulate(steps=0))
wrong("accumulate_gradients", "two steps")(accumulate(steps=2))
wrong("accumulate_gradients", "a tensor")(
    accumulate(returned=lambda losses, rows: torch.tensor(sum(v * n for v, n in losses) / rows))
)


@wrong("accumulate_gradients", "concatenates the micro-batches")
def _(model, optimizer, batches):
    optimizer.zero_grad()
    loss = F.mse_loss(model(torch.cat([x for x, _ in batches])), torch.cat([y for _, y in batches]))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


@wrong("accumulate_gradients", "all graphs until the end: one backward of the sum")
def _(model, optimizer, batches):
    optimizer.zero_grad()
    rows = sum(len(x) for x, _ in batches)
    total = sum(F.mse_loss(model(x), y) for x, y in batches) * len(batches[0][0]) / rows
    total.backward()
    optimizer.step()
    optimizer.zero_grad()
    return total.item()


@right("training_step")
def _(model, optimizer, scaler, x, y, skip_grad_norm=100.0, max_grad_norm=1.0):
    optimizer.zero_grad()
    loss = F.mse_loss(model(x), y)
    if not (torch.isfinite(loss) and -1e6 <= loss <= 1e6):
        return "bad loss"
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if not torch.isfinite(norm) or norm > skip_grad_norm:
        optimizer.zero_grad()
        scaler.update()
        return "exploded"
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return "stepped"


@right("training_step")
def _(model, optimizer, scaler, x, y, skip_grad_norm=100.0, max_grad_norm=1.0):
    loss = F.mse_loss(model(x), y)
    value = loss.item()
    if math.isnan(value) or math.isinf(value) or abs(value) > 1e6:
        return "bad loss"
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.cat([g.flatten() for g in grads]).norm().item()
    exploded = not norm <= skip_grad_norm or norm == math.inf
    if not exploded:
        for g in grads:
            g.mul_(min(1.0, max_grad_norm / (norm + 1e-6)))
        scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return "exploded" if exploded else "stepped"


def train(
    bad=lambda v: not math.isfinite(v) or abs(v) > 1e6, scale=True, unscale=True, clip=True, update=True,
    skip=lambda n, s: not math.isfinite(n) or n > s, update_skip=True, clear_skip=True, clip_first=False,
    clip_early=False, step=lambda scaler, opt: scaler.step(opt), raw=False,
):  # fmt: skip
    def answer(model, optimizer, scaler, x, y, skip_grad_norm=100.0, max_grad_norm=1.0):
        if clear_skip:
            optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        if bad(loss.item()):
            return "bad loss"
        (scaler.scale(loss) if scale else loss).backward()
        if clip_early:
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        if unscale:
            scaler.unscale_(optimizer)
        if clip_first:
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm().item()
        if skip(norm, skip_grad_norm):
            if clear_skip:
                optimizer.zero_grad()
            if update_skip:
                scaler.update()
            return "exploded"
        if clip and not clip_first:
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        step(scaler, optimizer)
        if update:
            scaler.update()
        if clear_skip:
            optimizer.zero_grad()
        return "stepped"

    return answer


wrong("training_step", "never unscaled")(train(unscale=False))
wrong("training_step", "not scaled")(train(scale=False))
wrong("training_step", "not clipped")(train(clip=False))
wrong("training_step", "no update")(train(update=False))
wrong("training_step", "no update after an explosion")(train(update_skip=False))
wrong("training_step", "clipped before the norm is judged")(train(clip_first=True))
wrong("training_step", "clipped before unscaling")(train(clip_early=True, clip=False))
wrong("training_step", "gradients never cleared")(train(clear_skip=False))
wrong("training_step", "infinite gradients used")(train(skip=lambda n, s: n > s and math.isfinite(n)))
wrong("training_step", ">= skip_grad_norm of 1")(train(skip=lambda n, s: not math.isfinite(n) or n > 1.0))
wrong("training_step", "100 is fixed")(train(skip=lambda n, s: not math.isfinite(n) or n > 100))
wrong("training_step", "NaN only is bad")(train(bad=math.isnan))
wrong("training_step", "large losses pass")(train(bad=lambda v: not math.isfinite(v)))


@right("learning_rate")
def _(step, steps, warmup, lr=1e-3, min_lr_ratio=0.05):
    if step < warmup:
        return lr * (step + 1) / warmup
    part = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    return lr * (min_lr_ratio + (1 - min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * part)))


@right("learning_rate")
def _(step, steps, warmup, lr=1e-3, min_lr_ratio=0.05):
    low, last = min_lr_ratio * lr, steps - 1
    if step < warmup:
        return lr / warmup * (step + 1)
    if step == warmup:
        return lr
    if step >= last:
        return low
    return low + (lr - low) * math.cos(math.pi / 2 * (step - warmup) / (last - warmup)) ** 2


def schedule(rise=lambda s, w: (s + 1) / w, last=lambda n: n - 1, guard=True, stay=True, shape=None, floor=None):
    shape = shape or (lambda p: (1 + math.cos(math.pi * p)) / 2)

    def answer(step, steps, warmup, lr=1e-3, min_lr_ratio=0.05):
        if step < warmup:
            return lr * rise(step, warmup)
        span = last(steps) - warmup
        part = (step - warmup) / (max(1, span) if guard else span)
        ratio = min_lr_ratio if floor is None else floor
        return lr * (ratio + (1 - ratio) * shape(min(1.0, part) if stay else part))

    return answer


wrong("learning_rate", "no guard for steps - 1 = warmup")(schedule(guard=False))
wrong("learning_rate", "warm-up from 0")(schedule(lambda s, w: s / w))
wrong("learning_rate", "(step + 1) / (warmup + 1)")(schedule(lambda s, w: (s + 1) / (w + 1)))
wrong("learning_rate", "the end at `steps`")(schedule(last=lambda n: n))
wrong("learning_rate", "rises again after the end")(schedule(stay=False))
wrong("learning_rate", "linear decay")(schedule(shape=lambda p: 1 - p))
wrong("learning_rate", "a whole cosine")(schedule(shape=lambda p: (1 + math.cos(2 * math.pi * p)) / 2))
wrong("learning_rate", "a quarter of a cosine")(schedule(shape=lambda p: math.cos(math.pi / 2 * p)))
wrong("learning_rate", "to 0")(schedule(floor=0.0))
wrong("learning_rate", "5 % is fixed")(schedule(floor=0.05))
wrong("learning_rate", "min_lr_ratio is a rate")(
    lambda step, steps, warmup, lr=1e-3, min_lr_ratio=0.05: (
        lr * (step + 1) / warmup if step < warmup else
        min_lr_ratio + (lr - min_lr_ratio) * (1 + math.cos(
            math.pi * min(1, (step - warmup) / max(1, steps - 1 - warmup)))) / 2
    )
)  # fmt: skip
wrong("learning_rate", "cosine cut off at the minimum")(
    lambda step, steps, warmup, lr=1e-3, min_lr_ratio=0.05: max(
        schedule(floor=0.0)(step, steps, warmup, lr), lr * min_lr_ratio if step >= warmup else 0.0)
)  # fmt: skip
wrong("learning_rate", "decay from step 0")(
    lambda step, steps, warmup, lr=1e-3, min_lr_ratio=0.05: (
        lr * (step + 1) / warmup if step < warmup else
        lr * (min_lr_ratio + (1 - min_lr_ratio) * (1 + math.cos(math.pi * min(1, step / max(1, steps - 1)))) / 2)
    )
)  # fmt: skip
wrong("learning_rate", "zero after the end")(
    lambda step, steps, warmup, lr=1e-3, min_lr_ratio=0.05: (
        0.0 if step >= steps else schedule()(step, steps, warmup, lr, min_lr_ratio)
    )
)


@right("atomic_save")
def _(path, data):
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@right("atomic_save")
def _(path, data):
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@right("atomic_save")
def _(path, data):
    other = path.parent / f".{path.name}.{os.getpid()}"
    try:
        fd = os.open(other, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(other, path)
    except OSError:
        if other.exists():
            os.remove(other)
        raise


def save(
    flush=True, sync=True, clean=True, rename=lambda tmp, path: tmp.replace(path), swallow=False, sync_after=False
):
    def answer(path, data):
        tmp = path.with_name(path.name + ".tmp")
        try:
            with open(tmp, "wb") as file:
                file.write(data)
                if flush:
                    file.flush()
                if sync:
                    os.fsync(file.fileno())
            rename(tmp, path)
            if sync_after:
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        except OSError:
            if clean:
                tmp.unlink(missing_ok=True)
            if not swallow:
                raise

    return answer


def _delete_first(tmp, path):
    path.unlink(missing_ok=True)
    tmp.rename(path)


def _copy(tmp, path):
    path.write_bytes(tmp.read_bytes())
    tmp.unlink()


wrong("atomic_save", "write_bytes")(lambda path, data: path.write_bytes(data) and None)
wrong("atomic_save", "no fsync")(save(sync=False))
wrong("atomic_save", "fsync without flush")(save(flush=False))
wrong("atomic_save", "flush only")(save(sync=False, flush=True))
wrong("atomic_save", "fsync after renaming")(save(sync=False, sync_after=True))
wrong("atomic_save", "old file deleted first")(save(rename=_delete_first))
wrong("atomic_save", "copied instead of renamed")(save(rename=_copy))
wrong("atomic_save", "error swallowed")(save(swallow=True))


@wrong("atomic_save", "temporary file in another folder")
def _(path, data):
    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)


@wrong("atomic_save", "renamed before the file is closed and written")
def _(path, data):
    tmp = path.with_name(path.name + ".tmp")
    with open(tmp, "wb") as file:
        tmp.replace(path)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Debugging: nineteen broken programs
#
# Each of them runs, and almost every result has the right shape; what it does is wrong.
# Read the symptom, find the cause, mend the program. The check below it is that of the
# lesson's exercise. Open this file in an editor that knows cells, such as VS Code, or
# run `tinyomni progress --watch exercises/debugging.py` and save.

# %%
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyomni.grade import check

# %% [markdown]
# ## 1. The end of every text is masked away (lesson 01)
#
# `make_batch` · 5 minutes · ●○○
#
# A model trained on these batches never learns to end a text, and the last word of each
# is missing.


# %%
def make_batch(
    rows: list[list[int]], bos: int = 1, eos: int = 2, pad: int = 0
) -> tuple[Tensor, Tensor]:
    complete = [[bos, *row, eos] for row in rows]
    longest = max(len(row) for row in complete)
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in complete])
    return ids, torch.tensor([len(row) for row in rows])


# %%
check.make_batch(make_batch)

# %% [markdown]
# ## 2. One token too many (lesson 01)
#
# `padding_mask` · 5 minutes · ●○○
#
# The longest text of a batch is answered as before. All others answer a little
# differently than alone.


# %%
def padding_mask(lengths: Tensor, tokens: int) -> Tensor:
    return torch.arange(tokens) <= lengths[:, None]


# %%
check.padding_mask(padding_mask)

# %% [markdown]
# ## 3. A rotation that is none (lesson 02)
#
# `apply_rope` · 10 minutes · ●●○
#
# The length of a query should not depend on its position. Here it does. `cos` and `sin`
# hold the angles of the pairs twice: once for the first halves of the pairs, once for
# the second.


# %%
def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x1, x2 = x[..., 0::2], x[..., 1::2]
    turned = torch.stack([-x2, x1], dim=-1).flatten(-2)
    return x * cos + turned * sin


# %%
check.apply_rope(apply_rope)

# %% [markdown]
# ## 4. Weights that sum to 1 in the wrong direction (lesson 03)
#
# `attention_weights` · 5 minutes · ●○○
#
# For a text of one token all is well. In longer ones each *key* is attended to equally
# often.


# %%
def attention_weights(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None], -torch.inf)
    return scores.softmax(dim=-2).nan_to_num(0.0)


# %%
check.attention_weights(attention_weights)

# %% [markdown]
# ## 5. Every token gets pieces of its neighbours (lesson 03)
#
# `merge_heads` · 5 minutes · ●○○
#
# With one head the model works. With four it writes nonsense, and a causal model sees
# the future.


# %%
def merge_heads(x: Tensor) -> Tensor:
    batch, heads, tokens, head_dim = x.shape
    return x.reshape(batch, tokens, heads * head_dim)


# %%
check.merge_heads(merge_heads)

# %% [markdown]
# ## 6. The wrong neighbours share a key (lesson 03)
#
# `repeat_kv` · 10 minutes · ●●○
#
# Weights of a published model with grouped-query attention load without an error. It
# writes nonsense, unless there are as many key heads as query heads, or only one.


# %%
def repeat_kv(k: Tensor, heads: int) -> Tensor:
    return k.repeat(1, heads // k.shape[1], 1, 1)


# %%
check.repeat_kv(repeat_kv)

# %% [markdown]
# ## 7. A loss that is too good (lesson 04)
#
# `next_token_loss` · 5 minutes · ●○○
#
# After a hundred steps the loss is almost 0. The model, asked to go on with a text,
# repeats the last token forever.


# %%
def next_token_loss(logits: Tensor, ids: Tensor, pad: int = 0) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), ids.flatten(), ignore_index=pad)


# %%
check.next_token_loss(next_token_loss)

# %% [markdown]
# ## 8. With the cache it answers differently (lesson 05)
#
# `cached_step` · 10 minutes · ●●○
#
# Generation with the cache should give the logits of a run without it. They are close,
# but not equal, from the first token on.


# %%
def cached_step(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    output = F.scaled_dot_product_attention(q, keys, values)
    return output, torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)


# %%
check.cached_step(cached_step)

# %% [markdown]
# ## 9. Patches that are not square (lesson 06)
#
# `patchify` · 10 minutes · ●●○
#
# Each "patch" should show a square of the image. Plotted, the first ones show thin
# strips of its top, in one colour.


# %%
def patchify(img: Tensor, patch: int) -> Tensor:
    batch, channels, height, width = img.shape
    n_patches = (height // patch) * (width // patch)
    return img.reshape(batch, n_patches, channels * patch * patch)


# %%
check.patchify(patchify)

# %% [markdown]
# ## 10. Time and channels stirred together (lesson 07)
#
# `flatten_bands` · 5 minutes · ●○○
#
# The recogniser trains, slowly, and its errors do not fall below a third of the
# characters. A click at one moment of the recording changes tokens everywhere.


# %%
def flatten_bands(x: Tensor) -> Tensor:
    batch, channels, tokens, bands = x.shape
    return x.reshape(batch, tokens, channels * bands)


# %%
check.flatten_bands(flatten_bands)

# %% [markdown]
# ## 11. "hello" becomes "helo" (lesson 07)
#
# `ctc_collapse` · 10 minutes · ●●○
#
# Words without double letters come out right.


# %%
def ctc_collapse(path: Tensor, lengths: Tensor, blank: int = 0) -> list[list[int]]:
    texts = []
    for row, length in zip(path, lengths, strict=True):
        letters = row[:length][row[:length] != blank]
        texts.append(torch.unique_consecutive(letters).tolist())
    return texts


# %%
check.ctc_collapse(ctc_collapse)

# %% [markdown]
# ## 12. A few entries win everything (lesson 09)
#
# `rvq_encode` · 10 minutes · ●●○
#
# Codebook utilization is 9%, though the entries lie where the data lie. The winners are
# the longest vectors.


# %%
def rvq_encode(x: Tensor, codebooks: Tensor) -> Tensor:
    residual, codes = x, []
    for codebook in codebooks:
        nearest = (residual @ codebook.T).argmax(dim=-1)
        codes.append(nearest)
        residual = residual - codebook[nearest]
    return torch.stack(codes, dim=-1)


# %%
check.rvq_encode(rvq_encode)

# %% [markdown]
# ## 13. Base and residual may be swapped, and nobody notices (lesson 10)
#
# `embed_codes` · 10 minutes · ●●○
#
# The codes (5, 9) and (9, 5) of a frame give the same embedding. `table` holds the
# entries of all codebooks, one codebook after the other.


# %%
def embed_codes(codes: Tensor, table: Tensor) -> Tensor:
    return table[codes].sum(dim=-2)


# %%
check.embed_codes(embed_codes)

# %% [markdown]
# ## 14. Speech at double speed (lesson 10)
#
# `teacher_forcing` · 5 minutes · ●○○
#
# The loss falls as it should. What is generated leaves out every other frame.


# %%
def teacher_forcing(codes: Tensor) -> tuple[Tensor, Tensor]:
    start = torch.zeros_like(codes[:, :1])
    return torch.cat([start, codes[:, :-1]], dim=1), codes.roll(-1, dims=1)


# %%
check.teacher_forcing(teacher_forcing)

# %% [markdown]
# ## 15. The last micro-batch weighs too much (lesson 12)
#
# `accumulate_gradients` · 10 minutes · ●●○
#
# With micro-batches of equal size the result is that of one large batch. When the last
# one is smaller, it is not.


# %%
def accumulate_gradients(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: list[tuple[Tensor, Tensor]],
) -> float:
    total = 0.0
    for x, y in batches:
        part = F.mse_loss(model(x), y) / len(batches)
        part.backward()
        total += part.item()
    optimizer.step()
    optimizer.zero_grad()
    return total


# %%
check.accumulate_gradients(accumulate_gradients)

# %% [markdown]
# ## 16. A similarity that depends on the others (lesson 14)
#
# `similarities` · 5 minutes · ●○○
#
# The score of an image and a caption changes with what else is in the batch.


# %%
def similarities(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor
) -> Tensor:
    images, texts = (
        F.normalize(image_features, dim=0),
        F.normalize(text_features, dim=0),
    )
    return logit_scale.exp() * images @ texts.T


# %%
check.similarities(similarities)

# %% [markdown]
# ## 17. It finds captions, but not images (lesson 14)
#
# `info_nce` · 5 minutes · ●●○
#
# Image → caption recall rises with training. Caption → image recall stays behind:
# nothing asks for it.


# %%
def info_nce(images: Tensor, texts: Tensor, temperature: float = 0.07) -> Tensor:
    scores = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T / temperature
    return F.cross_entropy(scores, torch.arange(len(scores)))


# %%
check.info_nce(info_nce)

# %% [markdown]
# ## 18. Every sentence loses its last sound (lesson 16)
#
# `speech_masks` · 5 minutes · ●○○
#
# The end of speech is trained one frame too early.


# %%
def speech_masks(frames: Tensor, length: int) -> tuple[Tensor, Tensor]:
    positions = torch.arange(length)
    return positions < frames[:, None] - 1, positions == frames[:, None] - 1


# %%
check.speech_masks(speech_masks)

# %% [markdown]
# ## 19. Fine-tuned, and mute (lesson 17)
#
# `make_labels` · 10 minutes · ●●○
#
# The loss on answers falls to almost 0 within minutes. Asked a question, the model
# repeats its last word.


# %%
def make_labels(
    ids: Tensor, prompts: Tensor, lengths: Tensor, ignore_index: int = -100
) -> Tensor:
    positions = torch.arange(ids.shape[1])
    in_answer = (positions >= prompts[:, None]) & (positions < lengths[:, None])
    return torch.where(in_answer, ids, ignore_index)


# %%
check.make_labels(make_labels)

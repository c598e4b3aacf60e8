"""Examples of the stage omni, one sequence each, and how they become batches.

[image] [audio …] BOS prompt … | answer … EOS
                                 ← the loss is on these tokens only
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tinyomni.audio import audio_token_count
from tinyomni.config import TINY
from tinyomni.data.datasets import pad
from tinyomni.tokenizer import PAD


@dataclass(frozen=True)
class OmniExample:
    """One sequence. Image and audio are raw, (3, 224, 224) and (samples,), or what the encoders made of them:
    (1, 128) and (audio_tokens, 192)."""

    prompt: list[int]  # BOS first
    answer: list[int]  # EOS last, where it ends
    image: Float[Tensor, "..."] | None = None
    audio: Float[Tensor, "..."] | None = None
    loss_mask: tuple[bool, ...] | None = None  # which tokens of the answer are learned; by default all

    @property
    def size(self) -> int:
        """About how many tokens it has: image, audio, text."""
        audio = 0 if self.audio is None else len(self.audio)
        if self.audio is not None and self.audio.ndim == 1:
            audio = audio_token_count(audio // TINY.audio.hop)
        return len(self.prompt) + len(self.answer) + (self.image is not None) + audio


@dataclass(frozen=True)
class OmniBatch:
    """Examples side by side; `image_of` is the index of an example's image, -1 for none, and `audio_of` likewise."""

    ids: Int[Tensor, "batch text_tokens"]
    lengths: Int[Tensor, "batch"]
    loss_mask: Bool[Tensor, "batch text_tokens"]
    images: Float[Tensor, "images ..."] | None
    image_of: Int[Tensor, "batch"]
    audios: Float[Tensor, "audios ..."] | None
    audio_lengths: Int[Tensor, "audios"] | None
    audio_of: Int[Tensor, "batch"]


def collate(items: Sequence[list[OmniExample]]) -> list[OmniBatch]:
    """Examples of similar length together, so that little is padding; those with audio apart from the others."""
    examples = sorted((each for item in items for each in item), key=lambda each: (each.audio is not None, each.size))
    groups: list[list[OmniExample]] = []
    for each in examples:
        alike = groups and (groups[-1][0].audio is None) == (each.audio is None)
        if not alike or each.size > 1.3 * groups[-1][0].size:
            groups.append([])
        groups[-1].append(each)
    return [side_by_side(group) for group in groups]


def side_by_side(examples: Sequence[OmniExample]) -> OmniBatch:
    """One padded batch. An image or audio that several examples share is in it once."""
    ids, lengths = pad([torch.tensor(each.prompt + each.answer) for each in examples], PAD)
    masks = [[*[False] * len(each.prompt), *(each.loss_mask or [True] * len(each.answer))] for each in examples]
    loss_mask, _ = pad([torch.tensor(mask) for mask in masks], False)
    images, image_of = deduplicate([each.image for each in examples])
    audios, audio_of = deduplicate([each.audio for each in examples])
    padded, audio_lengths = pad(audios) if audios else (None, None)
    return OmniBatch(
        ids, lengths, loss_mask, torch.stack(images) if images else None, image_of, padded, audio_lengths, audio_of
    )


def deduplicate(tensors: Sequence[Tensor | None]) -> tuple[list[Tensor], Int[Tensor, "batch"]]:
    """The different tensors among these, and the index of each one's; -1 for None."""
    different: dict[int, Tensor] = {}
    indices = []
    for tensor in tensors:
        if tensor is not None:
            different.setdefault(id(tensor), tensor)
        indices.append(-1 if tensor is None else list(different).index(id(tensor)))
    return list(different.values()), torch.tensor(indices)

"""What is exported: the trained modules with every state an input and every inner view an output.

    image  (1, 3, 224, 224)              → image token (1, 1, 256), attention of CLS (layers, heads, 197)
    mel    (1, samples)                  → log-mel (1, samples // 160, 128)
    audio  (1, mel_frames, 128)          → audio tokens (1, ⌈mel_frames / 4⌉, 256), characters (1, …, 99)
    embed  ids (1, tokens)               → embeddings (1, tokens, 256)
    think  embeddings, cache, head_scale → logits of the next token, attention, the longer cache
    talk   text, codes, cache            → logits of the next frame, attention, the longer cache
    codec  codes (1, frames, 2)          → log-mel (1, 8 · frames, 128)

The library's modules are used unchanged. Two things differ from `forward`: the KV cache is a pair of tensors that grows
by concatenation, since a graph cannot write into its inputs; and attention is the readable `attention`, which returns
its weights, not the fused kernel. `head_scale` (layers, heads) multiplies each head's output: 1 leaves the model as it
is, 0 ablates the head.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinyomni.attention import attention, merge_heads
from tinyomni.layers import DecoderBlock, EncoderBlock
from tinyomni.omni import Omni

Cache = Float[Tensor, "layers batch kv_heads keys head_dim"]
LongerCache = Float[Tensor, "layers batch kv_heads all_keys head_dim"]  # with the new tokens in it


def encoder_block(
    block: EncoderBlock, x: Float[Tensor, "batch tokens dim"]
) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch heads tokens tokens"]]:
    """`EncoderBlock.forward`, and its attention weights."""
    mixed, weights = attention(*block.attn.qkv(block.norm1(x)))
    x = x + block.attn.o_proj(merge_heads(mixed))
    return x + block.mlp(block.norm2(x)), weights


class Decoder(nn.Module):
    """The blocks of the Thinker or the Talker with an explicit cache."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks

    def block(
        self,
        block: DecoderBlock,
        x: Float[Tensor, "batch tokens dim"],
        keys: Float[Tensor, "batch kv_heads past head_dim"],
        values: Float[Tensor, "batch kv_heads past head_dim"],
        scale: Float[Tensor, "heads"],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`DecoderBlock.forward` behind `past` cached tokens: x, weights, and the longer keys and values."""
        q, k, v = block.attn.qkv(block.norm1(x))
        q, k = block.attn.rotate(q, k, start=keys.shape[2])
        k, v = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
        mixed, weights = attention(q, k, v, causal=True)
        x = x + block.attn.o_proj(merge_heads(mixed * scale[:, None, None]))
        return x + block.mlp(block.norm2(x)), weights, k, v

    def forward(
        self, x: Float[Tensor, "1 tokens dim"], keys: Cache, values: Cache, head_scale: Float[Tensor, "layers heads"]
    ) -> tuple[Float[Tensor, "1 tokens dim"], Float[Tensor, "layers heads tokens all_keys"], LongerCache, LongerCache]:
        """All blocks; the weights of all layers, and the cache with the new tokens in it."""
        found = []
        for number, block in enumerate(self.blocks):
            assert isinstance(block, DecoderBlock)
            x, *more = self.block(block, x, keys[number], values[number], head_scale[number])
            found.append(more)
        weights, all_keys, all_values = (torch.stack(each) for each in zip(*found, strict=True))
        return x, weights[:, 0], all_keys, all_values


class Image(nn.Module):
    """Pixels in 0…1 → the image token, and what CLS attended to in each layer and head."""

    def __init__(self, omni: Omni) -> None:
        super().__init__()
        self.vision, self.proj = omni.vision, omni.proj_v

    def forward(
        self, image: Float[Tensor, "1 channels height width"]
    ) -> tuple[Float[Tensor, "1 1 d_model"], Float[Tensor, "layers heads n_patches+1"]]:
        """The steps of `ViTTiny.forward_features`."""
        vision = self.vision
        x = vision.add_positions(vision.add_cls(vision.flatten(vision.patchify(image))))
        seen = []
        for block in vision.blocks:
            assert isinstance(block, EncoderBlock)
            x, weights = encoder_block(block, x)
            seen.append(weights[0, :, 0])
        return self.proj(vision.norm(x)[:, :1]), torch.stack(seen)


class Audio(nn.Module):
    """Log-mel → audio tokens for the Thinker, and the recogniser's log-probabilities of characters."""

    def __init__(self, omni: Omni) -> None:
        super().__init__()
        self.audio, self.proj, self.ctc = omni.audio, omni.proj_a, omni.ctc

    def forward(
        self, mel: Float[Tensor, "1 mel_frames n_mels"]
    ) -> tuple[Float[Tensor, "1 audio_tokens d_model"], Float[Tensor, "1 audio_tokens characters"]]:
        """`Omni.embed_audio` and `Omni.recognize` from the mel spectrogram on."""
        encoded = self.audio(mel)
        return self.proj(encoded), self.ctc(encoded)


class Embed(nn.Module):
    """Token ids → embeddings; only the rows that the tokenizer uses."""

    def __init__(self, omni: Omni) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(omni.thinker.tok_emb.weight.detach()[: omni.tokenizer.n_pieces])

    def forward(self, ids: Int[Tensor, "1 tokens"]) -> Float[Tensor, "1 tokens d_model"]:
        """`ThinkerLM.embed`."""
        return self.table(ids)


class Think(nn.Module):
    """Embeddings behind a cache → logits of the next token, over the tokenizer's pieces."""

    def __init__(self, omni: Omni) -> None:
        super().__init__()
        self.decoder, self.norm = Decoder(omni.thinker.blocks), omni.thinker.norm
        head = omni.thinker.lm_head.weight.detach()[: omni.tokenizer.n_pieces]
        self.lm_head = nn.Linear(head.shape[1], head.shape[0], bias=False)
        self.lm_head.weight = nn.Parameter(head)

    def forward(
        self,
        embeddings: Float[Tensor, "1 tokens d_model"],
        keys: Cache,
        values: Cache,
        head_scale: Float[Tensor, "layers heads"],
    ) -> tuple[Float[Tensor, "1 vocab"], Float[Tensor, "layers heads tokens all_keys"], LongerCache, LongerCache]:
        """`ThinkerLM.forward`, of the last position."""
        x, weights, keys, values = self.decoder(embeddings, keys, values, head_scale)
        return self.lm_head(self.norm(x[:, -1])), weights, keys, values


class Talk(nn.Module):
    """Text (first call only, else empty) and new code frames behind a cache → logits of the next frame, and the end."""

    def __init__(self, omni: Omni) -> None:
        super().__init__()
        self.talker, self.decoder = omni.talker, Decoder(omni.talker.blocks)

    def forward(
        self,
        text: Int[Tensor, "1 text_tokens"],
        codes: Int[Tensor, "1 frames codebooks"],
        keys: Cache,
        values: Cache,
        head_scale: Float[Tensor, "layers heads"],
    ) -> tuple[
        Float[Tensor, "1 codebook_size"],
        Float[Tensor, "1 codebook_size"],
        Float[Tensor, "1"],
        Float[Tensor, "layers heads tokens all_keys"],
        LongerCache,
        LongerCache,
    ]:
        """`TalkerTiny.forward` of the last frame: base, residual, end, attention weights, and the longer cache."""
        talker = self.talker
        # the tables themselves: the range checks of embed_text and embed_codes look at values, which a graph cannot
        frames = sum(table(codes[..., number]) for number, table in enumerate(talker.code_emb))
        x, weights, keys, values = self.decoder(
            torch.cat([talker.text_emb(text), frames], dim=1), keys, values, head_scale
        )
        x = talker.norm(x[:, -1])
        return talker.base(x), talker.res(x), talker.end(x)[:, 0], weights, keys, values


class Codec(nn.Module):
    """Codes → the log-mel spectrogram that Griffin-Lim turns into audio."""

    def __init__(self, omni: Omni) -> None:
        super().__init__()
        self.codec = omni.codec

    def forward(self, codes: Int[Tensor, "1 frames codebooks"]) -> Float[Tensor, "1 mel_frames n_mels"]:
        """`SpeechCodec.to_mel` of the entries that the codes name."""
        rvq = self.codec.rvq
        entries = sum(book[codes[..., number]] for number, book in enumerate(rvq.codebooks))
        return self.codec.to_mel(rvq.out_proj(entries))

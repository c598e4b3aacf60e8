"""Axis names, one sentence each. The same word always means the same axis.

Annotations use these words, the tracer prints them, and error messages explain them with the sentences below.
"""

from tinyomni.tracing.glossaries import register_glossary

AXES: dict[str, str] = {
    "batch": "samples that are processed together",
    "tokens": "positions of one sequence: text pieces, image, audio, or all of them",
    "queries": "tokens that attend (a part of `tokens` when the rest is in a KV cache)",
    "keys": "tokens that are attended to",
    "text_tokens": "positions that hold text, BOS included",
    "d_model": "width of the Thinker (256)",
    "dim": "width of the model that this layer belongs to",
    "intermediate_size": "inner width of an MLP",
    "heads": "attention heads, each with its own query",
    "kv_heads": "heads that keep keys and values; fewer than `heads` when heads share them",
    "head_dim": "width of one head (64)",
    "vocab": "rows of the token table (5000)",
    "samples": "audio samples, 16,000 a second",
    "mel_frames": "spectrogram frames of 10 ms (100 a second)",
    "n_mels": "mel frequency bands (128)",
    "audio_tokens": "positions that hold audio, 40 ms each (25 a second)",
    "audio_dim": "width of the audio encoder (192)",
    "characters": "outputs of the CTC head: the blank and 98 characters",
    "channels": "colours of an image, or feature maps of a convolution",
    "height": "rows of an image",
    "width": "columns of an image",
    "rows": "rows of patches (14)",
    "columns": "columns of patches (14)",
    "n_patches": "patches of an image (14 × 14 = 196)",
    "vision_dim": "width of the ViT (128)",
    "frames": "code frames of 80 ms (12.5 a second)",
    "codec_dim": "numbers that describe one code frame (128)",
    "block_dim": "mel values of one code frame: 8 mel frames of 128 bands (1024)",
    "code_dim": "width in which the codebooks live (64)",
    "codebooks": "codes for each frame: base and residual (2)",
    "codebook_size": "entries of one codebook (128)",
    "talker_dim": "width of the Talker (192)",
    "image_tokens": "positions that hold an image (1)",
    "new_tokens": "tokens that were generated, one after the other",
    "positions": "places in a sequence, used or not",
    "layers": "blocks, one after the other",
    "frequencies": "rows of a spectrum, from 0 Hz to half the sample rate",
    "pairs": "numbers that RoPE rotates together, two by two",
    "images": "images, each compared with all captions",
    "captions": "captions, each compared with all images",
    "things": "what a scene holds, in the order of `PLACES` (3)",
    "fields": "colour, shape, size and place of a thing (4)",
    "choices": "scores for every value of every field (13 + 9 + 3 + 6 = 31)",
}

register_glossary(__name__.partition(".")[0], AXES)

"""Image and audio encoder beside torch's TransformerEncoder of the same sizes, with its fast path

Limits: 53% of the image encoder are products with a bias (`addmm`) and 19% attention, by `torch.profiler`: the same
operations as in torch's fast path, which has one call for each block where ours has twenty.
"""

import torch
import torch.nn.functional as F
from harness import Case, Run
from references import encoder
from torch import nn

from tinyomni.audio import AudioEncoderTiny
from tinyomni.config import TINY
from tinyomni.vision import ViTTiny


def inference(run: Run) -> Run:
    """The same without gradients, which the fast path asks for."""

    def quiet() -> object:
        with torch.inference_mode():
            return run()

    return quiet


def cases(device: str) -> list[Case]:
    """Both convolve first: patches of the image; the spectrogram to a quarter of its frames."""
    image_encoder, audio_encoder = ViTTiny().to(device).eval(), AudioEncoderTiny().to(device).eval()
    found = []
    cfg = TINY.vision
    body = encoder(cfg.vision_dim, cfg.layers, cfg.heads, cfg.intermediate_size, norm_first=False).to(device).eval()
    patches = nn.Conv2d(3, cfg.vision_dim, cfg.patch, cfg.patch).to(device)
    for batch in (1, 8):
        images = torch.rand(batch, 3, 224, 224, device=device)

        def theirs(images: torch.Tensor = images) -> object:
            return body(F.pad(patches(images).flatten(2).transpose(1, 2), (0, 0, 1, 0)))

        found.append(Case(f"image encoder, batch {batch}", inference(lambda images=images: image_encoder(images)),
                          inference(theirs), "torch's fast path", 1.0))  # fmt: skip
    cfg_audio = TINY.audio
    other = (
        encoder(cfg_audio.audio_dim, cfg_audio.layers, cfg_audio.heads, cfg_audio.intermediate_size, norm_first=False)
        .to(device)
        .eval()
    )
    for batch in (1, 8):
        mel = torch.randn(batch, 300, cfg_audio.n_mels, device=device)

        def heard(mel: torch.Tensor = mel) -> object:
            return other(audio_encoder.proj(audio_encoder.flatten(audio_encoder.down(mel[:, None]))))

        ours = inference(lambda mel=mel: audio_encoder(mel))
        reference = "torch's fast path, behind the same convolutions"
        found.append(Case(f"audio encoder, 3 s, batch {batch}", ours, inference(heard), reference, 1.0))
    return found

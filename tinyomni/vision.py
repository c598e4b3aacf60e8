"""The image encoder, a ViT: an image is cut into patches, and one CLS token collects what they show.

    image (batch, 3, 224, 224) → 14 × 14 patches → CLS + 196 tokens → 4 blocks → CLS (batch, 1, 128)

Source: Dosovitskiy et al., An Image is Worth 16x16 Words (2020).
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from tinyomni.config import TINY, VisionConfig
from tinyomni.layers import EncoderBlock
from tinyomni.shapes import expect
from tinyomni.stability import assert_finite


def grid_positions(side: int, dim: int) -> Float[Tensor, "n_patches vision_dim"]:
    """Initial position embeddings: half of the numbers encode the row, half the column, as sines and cosines.

    Neighbouring patches start alike, so that what is learned at one place transfers to the next (Beyer et al., 2022,
    arXiv:2205.01580). Measured in the closed world: from random positions the CLS learns places far later.
    """
    inv_freq = 100 ** -(torch.arange(dim // 4) * 4 / dim)
    angle = torch.arange(side)[:, None] * inv_freq
    line = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


class ViTTiny(nn.Module):
    """`vis(img)` → CLS; `vis.forward_features(img)` → (CLS, one vector for each patch)."""

    def __init__(self, cfg: VisionConfig = TINY.vision) -> None:
        super().__init__()
        self.cfg = cfg
        self.proj = nn.Conv2d(3, cfg.vision_dim, kernel_size=cfg.patch, stride=cfg.patch)
        self.cls = nn.Parameter(torch.randn(1, 1, cfg.vision_dim) * 0.02)
        self.pos = nn.Parameter(torch.randn(1, 1 + cfg.side**2, cfg.vision_dim) * 0.02)
        self.pos.data[0, 1:] += grid_positions(cfg.side, cfg.vision_dim)
        self.blocks = nn.ModuleList(
            EncoderBlock(cfg.vision_dim, cfg.heads, cfg.intermediate_size) for _ in range(cfg.layers)
        )
        self.norm = nn.LayerNorm(cfg.vision_dim)
        for name, layer in self.blocks.named_modules():
            if isinstance(layer, nn.Linear):
                # GPT-2's 0.02 suits a width of 768: at 128 the blocks would start out almost at zero
                last = name.endswith(("o_proj", "fc2"))
                nn.init.normal_(layer.weight, std=(layer.in_features * (2 * cfg.layers if last else 1)) ** -0.5)
                nn.init.zeros_(layer.bias)

    def patchify(
        self, img: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch vision_dim rows columns"]:
        """0…1 becomes -1…1, then each patch (16 × 16 × 3) one vector: a convolution whose stride is its kernel size."""
        return self.proj(img * 2 - 1)

    def flatten(
        self, patches: Float[Tensor, "batch vision_dim rows columns"]
    ) -> Float[Tensor, "batch n_patches vision_dim"]:
        """The grid in reading order: (14, 14) → 196."""
        return rearrange(patches, "batch vision_dim rows columns -> batch (rows columns) vision_dim")

    def add_cls(
        self, patches: Float[Tensor, "batch n_patches vision_dim"]
    ) -> Float[Tensor, "batch n_patches+1 vision_dim"]:
        """The learned CLS token in front of the patches."""
        return torch.cat([self.cls.expand(patches.shape[0], -1, -1).to(patches.dtype), patches], dim=1)

    def add_positions(
        self, tokens: Float[Tensor, "batch tokens vision_dim"]
    ) -> Float[Tensor, "batch tokens vision_dim"]:
        """One learned vector for each position, CLS included, is added."""
        return tokens + self.pos[:, : tokens.shape[1]]

    def encode(self, tokens: Float[Tensor, "batch tokens vision_dim"]) -> Float[Tensor, "batch tokens vision_dim"]:
        """The encoder blocks and the final norm."""
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def split_cls(
        self, tokens: Float[Tensor, "batch tokens vision_dim"]
    ) -> tuple[Float[Tensor, "batch 1 vision_dim"], Float[Tensor, "batch tokens-1 vision_dim"]]:
        """The CLS token, and the grid of patches, which the Thinker never sees."""
        return tokens[:, :1], tokens[:, 1:]

    def forward_features(
        self, img: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch 1 vision_dim"], Float[Tensor, "batch n_patches vision_dim"]]:
        """(batch, 3, 224, 224) in 0…1 → CLS (batch, 1, 128) and the grid (batch, 196, 128).

        Raises ShapeError for wrong axes, RuntimeError for NaN or infinity (CLS and grid are counted apart).
        """
        size = self.cfg.image_size
        expect(
            "ViTTiny",
            "img",
            img,
            "batch channels height width",
            channels=3,
            height=size,
            width=size,
            fix=f"load_image(source, size={size}) gives (3, {size}, {size}); channels come first.",
        )
        tokens = self.encode(self.add_positions(self.add_cls(self.flatten(self.patchify(img)))))
        cls, grid = self.split_cls(tokens)
        assert_finite("ViTTiny", cls=cls, grid=grid)
        return cls, grid

    def forward(self, img: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 1 vision_dim"]:
        """(batch, 3, 224, 224) in 0…1 → CLS (batch, 1, 128), the image as one token."""
        return self.forward_features(img)[0]

"""The eye: a picture is cut into patches, and one CLS token collects what they show.

    image (batch, 3, 224, 224) → 14 × 14 patches → CLS + 196 tokens → 4 blocks → CLS (batch, 1, 128)

Source: Dosovitskiy et al., An Image is Worth 16x16 Words (2020).
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from tinyomni.config import TINY, VisionConfig
from tinyomni.shapes import expect
from tinyomni.layers import EncoderBlock
from tinyomni.stability import assert_finite


def grid_positions(side: int, features: int) -> Float[Tensor, "n_patches vision_dim"]:
    """Where the learned positions start: half of the numbers say the row, half the column, as sines and cosines.

    Neighbours start alike, so that what is learned at one place is half known at the next (Beyer et al., 2022,
    arXiv:2205.01580). Measured in the closed world: from random positions the CLS learns places far later.
    """
    inv_freq = 100 ** -(torch.arange(features // 4) * 4 / features)
    angle = torch.arange(side)[:, None] * inv_freq
    line = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


class ViTTiny(nn.Module):
    """`vis(img)` → CLS; `vis.forward_features(img)` → (CLS, one vector for each patch)."""

    def __init__(self, cfg: VisionConfig = TINY.vision) -> None:
        super().__init__()
        self.cfg = cfg
        n_patches = (cfg.image_size // cfg.patch) ** 2
        self.proj = nn.Conv2d(3, cfg.vision_dim, kernel_size=cfg.patch, stride=cfg.patch)
        self.cls = nn.Parameter(torch.randn(1, 1, cfg.vision_dim) * 0.02)
        self.pos = nn.Parameter(torch.randn(1, 1 + n_patches, cfg.vision_dim) * 0.02)
        self.pos.data[0, 1:] += grid_positions(cfg.image_size // cfg.patch, cfg.vision_dim)
        self.blocks = nn.ModuleList(EncoderBlock(cfg.vision_dim, cfg.heads, cfg.intermediate_size) for _ in range(cfg.layers))
        self.norm = nn.LayerNorm(cfg.vision_dim)
        for name, layer in self.blocks.named_modules():
            if isinstance(layer, nn.Linear):
                # GPT-2's 0.02 suits a width of 768: at 128 the blocks would do next to nothing for hundreds of steps
                last = name.endswith(("o_proj", "fc2"))
                nn.init.normal_(layer.weight, std=(layer.in_features * (2 * cfg.layers if last else 1)) ** -0.5)
                nn.init.zeros_(layer.bias)

    def patchify(
        self, img: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch vision_dim rows columns"]:
        """0…1 becomes -1…1, then each 16 × 16 × 3 patch one vector: a convolution whose stride is its size."""
        return self.proj(img * 2 - 1)

    def flatten(
        self, patches: Float[Tensor, "batch vision_dim rows columns"]
    ) -> Float[Tensor, "batch n_patches vision_dim"]:
        """Put the grid in reading order: (14, 14) → 196."""
        return rearrange(patches, "batch vision_dim rows columns -> batch (rows columns) vision_dim")

    def add_cls(
        self, patches: Float[Tensor, "batch n_patches vision_dim"]
    ) -> Float[Tensor, "batch n_patches+1 vision_dim"]:
        """Put the learned CLS token in front."""
        return torch.cat([self.cls.expand(patches.shape[0], -1, -1).to(patches.dtype), patches], dim=1)

    def add_positions(
        self, tokens: Float[Tensor, "batch tokens vision_dim"]
    ) -> Float[Tensor, "batch tokens vision_dim"]:
        """Add one learned vector for each place."""
        return tokens + self.pos[:, : tokens.shape[1]]

    def encode(self, tokens: Float[Tensor, "batch tokens vision_dim"]) -> Float[Tensor, "batch tokens vision_dim"]:
        """The blocks and the last norm."""
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

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
            fix="load_image brings any picture to (3, 224, 224); the channels come before height and width.",
        )
        tokens = self.encode(self.add_positions(self.add_cls(self.flatten(self.patchify(img)))))
        cls, grid = tokens[:, :1], tokens[:, 1:]
        assert_finite("ViTTiny", cls=cls, grid=grid)
        return cls, grid

    def forward(self, img: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 1 vision_dim"]:
        """The picture as one token."""
        return self.forward_features(img)[0]

"""MAE: a small decoder paints the hidden patches from the encodings of the visible ones."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..heads import PatchDecoder
from ..masks import hidden, random_keep
from ..models import AnyEncoder, ViT, average_patches, patch_grid, sine_positions
from .base import Batch, Method, Output
from .recipes import COMMON


class MAE(Method):
    """Defaults are solo-learn's for small images, but for Adam's second beta, .999 (.95).

    A ViT is meant; of others the decoder gets the pooled map alone, in place of the class token.
    """

    paper = "He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022"
    equation = "Section 3: squared error of the hidden patches' pixels"
    loss_class = "torch's MSELoss"
    views = ("weak",)
    recipe = COMMON | {
        "encoder": "vit-small/4",
        "augmentation": "reconstruction",
        "optimizer": "adamw",
        "lr": 2e-4,
        "weight_decay": 0.05,
    }

    def __init__(
        self,
        encoder: AnyEncoder,
        *,
        mask_share: float = 0.75,
        norm_pixels: bool = True,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
    ) -> None:
        """Options of MAE.

        Args:
            encoder: images to encodings and tokens.
            mask_share: of the patches that are hidden.
            norm_pixels: each patch is painted less its mean, over its standard deviation.
            decoder_dim: width of the decoder.
            decoder_depth: its blocks.
            decoder_heads: its attention heads.
        """
        super().__init__()
        if not 0 < mask_share < 1:
            raise ValueError(f"mask_share must lie between 0 and 1, got {mask_share}")
        average_patches(encoder)
        grid = patch_grid(encoder)
        if grid[0] * grid[1] < 2:
            raise ValueError("an image must have 2 patches or more: take smaller ones")
        pixels = encoder.patch**2 * encoder.channels
        decoder = PatchDecoder(encoder.dim, pixels, grid, decoder_dim, decoder_depth, decoder_heads)
        self.online = nn.ModuleList([encoder, decoder])
        decoder.apply(_xavier)
        if isinstance(encoder, ViT):
            encoder.apply(_xavier)
            positions = sine_positions(grid, encoder.dim)
            encoder.network.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.mask_share, self.norm_pixels = mask_share, norm_pixels
        self.criterion = nn.MSELoss()

    def loss(self, batch: Batch) -> Output:
        (images,) = batch.views
        encoder, decoder = self.online
        rows, columns = encoder.squares(images)
        keep = random_keep(batch.uniform(rows * columns), self.mask_share).to(images.device)
        tokens = encoder.visible(images, keep)
        painted, pixels = decoder(tokens, keep), self._pixels(images)
        mask = hidden(keep, rows * columns)
        return Output(self.criterion(painted[mask], pixels[mask]), [encoder.pool(tokens)])

    def _pixels(self, images: Tensor) -> Tensor:  # (N, T, patch * patch * C)
        side = self.online[0].patch
        patches = F.unfold(images, side, stride=side).mT
        if not self.norm_pixels:
            return patches
        variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
        return (patches - mean) / (variance + 1e-6).sqrt()

    def evaluated(self) -> tuple[nn.Module, nn.Module]:
        return self.online[0], nn.Identity()


def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):  # the patches' embedding, initialised as a linear layer
        nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))

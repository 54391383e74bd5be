"""data2vec: from an image with hidden patches, what a teacher's last blocks make of the whole."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..heads import PatchDecoder
from ..masks import Grid, block_masks, block_numbers, hidden, random_keep
from ..models import AnyEncoder, ViT, average_patches, patch_grid
from .base import Batch, Method, MomentumNetwork, Output


class Data2Vec(Method):
    """Defaults are the released ViT-B ones, lr at batch 256; its network also has relative
    positions, layer scale and drop path, its views colour jitter.

    A ViT is meant. Of others the pooled map alone, of an image that hides single squares, predicts
    each of the teacher's last stages there, through MAE's decoder.
    """

    paper = "Baevski et al., data2vec: Self-supervised Learning in Speech, Vision, Language, 2022"
    equation = "Eq. 2: smooth L1 to the mean of the teacher's normalised last blocks"
    loss_class = "torch's SmoothL1Loss"
    views = ("weak",)
    recipe = {  # noqa: RUF012
        "encoder": "vit-small/4",
        "optimizer": "adamw",
        "lr": 2.5e-4,
        "weight_decay": 0.05,
        "decay_norms": False,
        "clip": 3.0,
        "warmup_epochs": 10,
        "lr_floor": 5e-3,
    }

    def __init__(
        self,
        encoder: AnyEncoder,
        *,
        top_blocks: int = 6,
        beta: float = 2.0,
        mask_share: float = 0.6,
        block_patches: int = 16,
        momentum: float = 0.9998,
        decoder_dim: int = 64,
        decoder_depth: int = 2,
        decoder_heads: int = 4,
    ) -> None:
        """Options of data2vec.

        Args:
            encoder: images to encodings and tokens.
            top_blocks: how many of the teacher's last blocks the target is the mean of; of a
                convolutional net's four stages, which are targets each.
            beta: error below which the loss is quadratic.
            mask_share: of the patches that are hidden.
            block_patches: least number of patches in a rectangle that a ViT does not see.
            momentum: decay of the teacher, constant.
            decoder_dim: width of the decoder behind a convolutional net.
            decoder_depth: its blocks.
            decoder_heads: its attention heads.
        """
        super().__init__()
        average_patches(encoder)
        blocks, grid = len(encoder.widths), patch_grid(encoder)
        if not 1 <= top_blocks <= blocks:
            raise ValueError(f"top_blocks must be 1 to the encoder's {blocks}, got {top_blocks}")
        if mask_share > 1 or round(mask_share * grid[0] * grid[1]) < 1:
            raise ValueError(
                f"mask_share must hide at least one of {grid[0]} x {grid[1]} patches and be at "
                f"most 1, got {mask_share}"
            )
        if beta < 0:
            raise ValueError(f"beta must be at least 0, got {beta}")
        self.top_blocks = top_blocks
        self.mask_share, self.block_patches = mask_share, block_patches
        if isinstance(encoder, ViT):
            head: nn.Module = nn.Linear(encoder.dim, encoder.dim)
            token = nn.init.trunc_normal_(torch.empty(encoder.dim), std=0.02)
            self.mask_token = nn.Parameter(token)
        else:
            out = sum(encoder.widths[-top_blocks:])
            head = PatchDecoder(encoder.dim, out, grid, decoder_dim, decoder_depth, decoder_heads)
        self.online = nn.ModuleList([encoder, head])
        self.target = MomentumNetwork(encoder, momentum, shape="constant")
        self.criterion = nn.SmoothL1Loss(beta=beta)

    def loss(self, batch: Batch) -> Output:
        (images,) = batch.views
        encoder, head = self.online
        self.target.update(encoder, batch.progress)
        if isinstance(encoder, ViT):
            mask = self._blocks(batch, encoder.grid(images)).to(images.device)
            tokens = encoder.tokens(images, mask, self.mask_token)
            predictions = [head(tokens[:, 1:][mask])]
        else:
            rows, columns = encoder.squares(images)
            keep = random_keep(batch.uniform(rows * columns), self.mask_share).to(images.device)
            mask, tokens = hidden(keep, rows * columns), encoder.visible(images, keep)
            predictions = head(tokens, keep)[mask].split(encoder.widths[-self.top_blocks :], 1)
        pairs = zip(predictions, self._targets(images), strict=True)
        loss = torch.stack([self.criterion(ours, target[mask]) for ours, target in pairs]).mean()
        return Output(loss, [encoder.pool(tokens)])

    def _blocks(self, batch: Batch, grid: Grid) -> Tensor:
        u, share = batch.uniform(block_numbers(grid)), self.mask_share
        return block_masks(u, grid, low=share, high=share, share=1.0, least=self.block_patches)

    @torch.no_grad()
    def _targets(self, images: Tensor) -> list[Tensor]:  # (N, T, dim) each
        blocks = self.target.module.last_blocks(images, self.top_blocks)
        blocks = [F.layer_norm(block.float(), block.shape[-1:]) for block in blocks]
        if not isinstance(self.target.module, ViT):  # stages differ in width
            return blocks
        mean = torch.stack(blocks).mean(0)
        return [F.layer_norm(mean, mean.shape[-1:])]

    def undecayed(self) -> list[Any]:
        encoder = self.online[0]
        if not isinstance(encoder, ViT):
            return []
        return [encoder.network.pos_embed, encoder.network.cls_token]

    def evaluated(self) -> tuple[nn.Module, nn.Module]:
        """The student, which the released code fine-tunes."""
        return self.online[0], nn.Identity()

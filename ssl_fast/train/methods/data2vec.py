"""data2vec: from an image with hidden patches, what a teacher's last blocks make of the whole."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..masks import block_masks
from ..models import AnyEncoder, averaging_vit
from .base import Batch, Method, MomentumNetwork, Output


class Data2Vec(Method):
    """Defaults are the released ViT-B ones, lr at batch 256; its network also has relative
    positions, layer scale and drop path, its views colour jitter."""

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
    ) -> None:
        """Options of data2vec.

        Args:
            encoder: a vision transformer.
            top_blocks: how many of the teacher's last blocks the target is the mean of.
            beta: error below which the loss is quadratic.
            mask_share: of the patches that are hidden.
            block_patches: least number of patches in a hidden rectangle.
            momentum: decay of the teacher, constant.
        """
        super().__init__()
        vit = averaging_vit(encoder)
        blocks, grid = len(vit.network.blocks), vit.network.patch_embed.grid_size
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
        self.masks = partial(
            block_masks, low=mask_share, high=mask_share, share=1.0, least=block_patches
        )
        self.online = nn.ModuleList([vit, nn.Linear(vit.dim, vit.dim)])
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(vit.dim), std=0.02))
        self.target = MomentumNetwork(vit, momentum, shape="constant")
        self.criterion = nn.SmoothL1Loss(beta=beta)

    def loss(self, batch: Batch) -> Output:
        (images,) = batch.views
        vit, predict = self.online
        self.target.update(vit, batch.progress)
        mask = self.masks(len(images), vit.grid(images)).to(images.device)
        tokens = vit.tokens(images, mask, self.mask_token)
        predictions = predict(tokens[:, 1:][mask])
        return Output(
            self.criterion(predictions, self._targets(images)[mask]), [vit.network.pool(tokens)]
        )

    @torch.no_grad()
    def _targets(self, images: Tensor) -> Tensor:  # (N, T, dim)
        blocks = self.target.module.last_blocks(images, self.top_blocks)
        width = blocks[0].shape[-1:]
        mean = torch.stack([F.layer_norm(block.float(), width) for block in blocks]).mean(0)
        return F.layer_norm(mean, width)

    def undecayed(self) -> list[nn.Parameter]:
        network = self.online[0].network
        return [network.pos_embed, network.cls_token]

    def evaluated(self) -> tuple[nn.Module, nn.Module]:
        """The student, which the released code fine-tunes."""
        return self.online[0], nn.Identity()

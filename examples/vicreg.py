"""VICReg (Bardes et al. 2022): variance, invariance and covariance, no negatives.

For Lightly's loss one import differs. The expander may be wide: no matrix of its width squared is
formed.
"""

import torch
from shared import batches, crop, options, report, report_neighbours, resnet
from torch import Tensor, nn
from torchvision.ops import MLP

from ssl_fast.compat.lightly import VICRegLoss  # was: from lightly.loss import VICRegLoss


class VICReg(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = resnet()
        self.expander = MLP(512, [2048, 2048], norm_layer=nn.BatchNorm1d)

    def forward(self, view: Tensor) -> Tensor:
        return self.expander(self.backbone(view))


def main() -> None:
    chosen = options(__doc__)
    model = VICReg()
    loss_function = VICRegLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    views = [crop(32, least=0.5)] * 2

    for step, (x0, x1) in enumerate(batches(views, chosen)):
        loss = loss_function(model(x0), model(x1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        report(step, loss)

    report_neighbours(model.eval().backbone)


if __name__ == "__main__":
    main()

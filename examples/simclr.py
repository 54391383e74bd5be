"""SimCLR (Chen et al. 2020): two views of an image attract each other, all others repel.

For Lightly's loss one import differs.
"""

import torch
from shared import batches, crop, options, report, report_neighbours, resnet
from torch import Tensor, nn
from torchvision.ops import MLP

from ssl_fast.compat.lightly import NTXentLoss  # was: from lightly.loss import NTXentLoss


class SimCLR(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = resnet()
        self.head = MLP(512, [512, 128], norm_layer=nn.BatchNorm1d)

    def forward(self, view: Tensor) -> Tensor:
        return self.head(self.backbone(view))


def main() -> None:
    chosen = options(__doc__)
    model = SimCLR()
    loss_function = NTXentLoss(temperature=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)
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

"""SwAV (Caron et al. 2020): crops of an image predict each other's balanced cluster assignment.

The loss takes embeddings and prototypes: scores of all crops against all prototypes are not stored.
"""

import torch
from shared import batches, crop, options, report, report_neighbours, resnet
from torch import Tensor, nn
from torch.nn.functional import normalize
from torchvision.ops import MLP

from ssl_fast.losses import SwAVLoss

PROTOTYPES = 512


class SwAV(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = resnet()
        self.head = MLP(512, [512, 128], norm_layer=nn.BatchNorm1d)
        self.prototypes = nn.Parameter(normalize(torch.randn(PROTOTYPES, 128)))

    def forward(self, view: Tensor) -> Tensor:
        return normalize(self.head(self.backbone(view)))


def main() -> None:
    chosen = options(__doc__)
    model = SwAV()
    loss_function = SwAVLoss(temperature=0.1, epsilon=0.05)  # assigns the first two crops
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-6)
    crops = [crop(32, least=0.5)] * 2 + [crop(16, least=0.2, most=0.5)] * 4

    for step, views in enumerate(batches(crops, chosen)):
        loss_function.normalize_prototypes(model.prototypes)
        loss = loss_function([model(view) for view in views], model.prototypes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        report(step, loss)

    report_neighbours(model.eval().backbone)


if __name__ == "__main__":
    main()

"""MSN (Assran et al. 2022): masked views share the cluster assignment of the whole view.

A power-law prior instead of the uniform one is `PMSNLoss()`.
"""

import torch
from shared import batches, crop, options, report, report_neighbours, vit
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.ops import MLP

from ssl_fast.losses import MSNLoss

PROTOTYPES = 256


class MSN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = vit(patch_drop_rate=0.4)  # masks, in training mode alone
        self.head = MLP(192, [512, 128], norm_layer=nn.BatchNorm1d)

    def forward(self, view: Tensor) -> Tensor:
        return self.head(self.backbone(view))


def main() -> None:
    chosen = options(__doc__)
    anchor = MSN()
    target = AveragedModel(anchor, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    target.module.backbone.eval()
    prototypes = nn.Parameter(torch.randn(PROTOTYPES, 128))
    loss_function = MSNLoss(sinkhorn_iterations=3)
    optimizer = torch.optim.AdamW([*anchor.parameters(), prototypes], lr=1e-3)
    crops = [crop(32, least=0.5)] * 2 + [crop(16, least=0.2, most=0.5)] * 4

    for step, (whole, *views) in enumerate(batches(crops, chosen)):
        with torch.no_grad():
            targets = target(whole)
        anchors = torch.cat([anchor(view) for view in views])
        loss = loss_function(anchors, targets, prototypes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        target.update_parameters(anchor)
        report(step, loss)

    report_neighbours(target.module.backbone)


if __name__ == "__main__":
    main()

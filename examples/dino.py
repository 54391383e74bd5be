"""DINO (Caron et al. 2021): small crops predict what a slower copy of the network sees in large.

The loss takes embeddings and the last layer's weights: logits of all crops are not stored.
"""

import torch
from shared import batches, crop, options, report, report_neighbours, vit
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.ops import MLP

from ssl_fast.losses import DINOLoss

PROTOTYPES, STEPS_AN_EPOCH = 1024, 14


class DINO(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = vit()
        self.head = MLP(192, [512, 64], activation_layer=nn.GELU)
        self.last = nn.Parameter(torch.randn(PROTOTYPES, 64))

    def forward(self, view: Tensor) -> Tensor:
        return normalize(self.head(self.backbone(view)))

    def prototypes(self) -> Tensor:
        return normalize(self.last)


def main() -> None:
    chosen = options(__doc__)
    student = DINO()
    teacher = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    loss_function = DINOLoss(PROTOTYPES, warmup_epochs=5)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    crops = [crop(32, least=0.5)] * 2 + [crop(16, least=0.2, most=0.5)] * 4

    for step, views in enumerate(batches(crops, chosen)):
        with torch.no_grad():
            seen = [teacher(view) for view in views[:2]]
        loss = loss_function(
            [student(view) for view in views],
            seen,
            student.prototypes(),
            teacher.module.prototypes(),
            epoch=step // STEPS_AN_EPOCH,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        teacher.update_parameters(student)
        report(step, loss)

    report_neighbours(teacher.module.eval().backbone)


if __name__ == "__main__":
    main()

"""solo-learn's training options for small images (9187ea3, scripts/pretrain/cifar).

Departures: the warm-up starts at a hundredth of the rate (3e-5); float32 (mixed half precision,
here --precision 16-mixed); no linear classifier learns alongside (`ssl-fast eval` fits one).
"""

from typing import Any

COMMON = {
    "epochs": 1000,
    "batch_size": 256,
    "warmup_epochs": 10,
    "lr_floor": 0.0,
    "decay_norms": False,
}


def lars(lr: float, weight_decay: float) -> dict[str, Any]:
    numbers = {"lr": lr, "weight_decay": weight_decay}
    return COMMON | {"optimizer": "lars", "lars_clip": True, **numbers}


def sgd(lr: float, weight_decay: float) -> dict[str, Any]:
    return COMMON | {
        "optimizer": "sgd",
        "lr": lr,
        "weight_decay": weight_decay,
        "decay_norms": True,
    }


def solo(augmentation: str) -> dict[str, Any]:
    """Of methods that solo-learn has: its stem and views."""
    return {"encoder": "resnet18-pad2", "augmentation": augmentation}

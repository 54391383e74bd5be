"""The losses of `lightly.loss` by name, signature and quirk; Lightly itself need not be installed.

    from ssl_fast.compat.lightly import NTXentLoss      # was: from lightly.loss import NTXentLoss

For code whose imports cannot change, `patch()` puts these classes into `lightly.loss`:

    ssl_fast.compat.lightly.patch()                     # from here on, until unpatch()
    with ssl_fast.compat.lightly.patch(): ...           # inside the block

Each module of `lightly.loss` has its counterpart here, with the helpers that users import:
`ssl_fast.compat.lightly.msn_loss.sinkhorn` for `lightly.loss.msn_loss.sinkhorn`, and so on.
"""

from ._patch import patch, unpatch
from .barlow_twins_loss import BarlowTwinsLoss
from .dcl_loss import DCLLoss, DCLWLoss
from .dino_loss import DINOLoss
from .hypersphere_loss import HypersphereLoss
from .ibot_loss import IBOTPatchLoss, IBOTPlusPlusPatchLoss
from .msn_loss import MSNLoss
from .ntx_ent_loss import NTXentLoss
from .pmsn_loss import PMSNCustomLoss, PMSNLoss
from .swav_loss import SwaVLoss
from .vicreg_loss import VICRegLoss
from .vicregl_loss import VICRegLLoss

__all__ = [
    "BarlowTwinsLoss",
    "DCLLoss",
    "DCLWLoss",
    "DINOLoss",
    "HypersphereLoss",
    "IBOTPatchLoss",
    "IBOTPlusPlusPatchLoss",
    "MSNLoss",
    "NTXentLoss",
    "PMSNCustomLoss",
    "PMSNLoss",
    "SwaVLoss",
    "VICRegLLoss",
    "VICRegLoss",
    "patch",
    "unpatch",
]

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
from .frossl_loss import FroSSLLoss
from .hypersphere_loss import HypersphereLoss
from .ibot_loss import IBOTPatchLoss, IBOTPlusPlusPatchLoss
from .koleo_loss import KoLeoLoss
from .mmcr_loss import MMCRLoss
from .msn_loss import MSNLoss
from .negative_cosine_similarity import NegativeCosineSimilarity
from .ntx_ent_loss import NTXentLoss
from .pmsn_loss import PMSNCustomLoss, PMSNLoss
from .swav_loss import SwaVLoss
from .sym_neg_cos_sim_loss import SymNegCosineSimilarityLoss
from .tico_loss import TiCoLoss
from .vicreg_loss import VICRegLoss
from .vicregl_loss import VICRegLLoss
from .wmse_loss import Whitening2d, WMSELoss

__all__ = [
    "BarlowTwinsLoss",
    "DCLLoss",
    "DCLWLoss",
    "DINOLoss",
    "FroSSLLoss",
    "HypersphereLoss",
    "IBOTPatchLoss",
    "IBOTPlusPlusPatchLoss",
    "KoLeoLoss",
    "MMCRLoss",
    "MSNLoss",
    "NTXentLoss",
    "NegativeCosineSimilarity",
    "PMSNCustomLoss",
    "PMSNLoss",
    "SwaVLoss",
    "SymNegCosineSimilarityLoss",
    "TiCoLoss",
    "VICRegLLoss",
    "VICRegLoss",
    "WMSELoss",
    "Whitening2d",
    "patch",
    "unpatch",
]

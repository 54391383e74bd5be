"""Other libraries' names, signatures and quirks on top of ssl_fast's kernels.

    from ssl_fast.compat.lightly import NTXentLoss      # was: from lightly.loss import NTXentLoss
    from ssl_fast.compat.solo import simclr_loss_func   # was: from solo.losses.simclr import ...

Neither library need be installed.
"""

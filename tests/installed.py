"""Run on an installed package, from any folder: `python installed.py [BACKEND]`; prints its path.

The wheels' own test too, so that it needs nothing but ssl_fast.
"""

import importlib.util
import sys

import torch

import ssl_fast
from ssl_fast.functional import sinkhorn
from ssl_fast.losses import NTXentLoss


def main(backend: str = "auto") -> None:
    torch.manual_seed(0)
    scores = torch.randn(8, 16)
    z0, z1 = (torch.nn.functional.normalize(torch.randn(8, 16), dim=1) for _ in range(2))
    z = torch.cat([z0, z1])
    logits = (z @ z.T / 0.5).fill_diagonal_(-torch.inf)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(16).roll(8))
    with ssl_fast.set_backend(backend):
        torch.testing.assert_close(sinkhorn(scores).sum(1), torch.ones(8))
        leaf = z0.requires_grad_()
        loss = NTXentLoss(temperature=0.5)(leaf, z1)
        loss.backward()
    torch.testing.assert_close(loss, expected)
    assert leaf.grad.isfinite().all() and leaf.grad.any()
    for name in ("triton_kernels", "bench"):
        assert importlib.util.find_spec(f"ssl_fast.{name}"), name
    assert "triton_kernels" not in sys.modules  # the name of Triton's own module
    print(ssl_fast.__file__)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The public names and their parameters: what users and other projects' tests call."""

import inspect
import re

import pytest

from ssl_fast import functional, losses

SIGNATURES = """
sinkhorn(scores, *, epsilon=0.05, iterations=3, prior=None, group=None)
soft_cross_entropy(logits, targets, *, temperature=1.0, symmetric=False, reduction='mean', group=None)
linear_soft_cross_entropy(x, weight, targets, *, temperature=1.0, symmetric=False, reduction='mean', group=None)
multi_crop_cross_entropy(students, teachers, prototypes, *, temperature, skip_same=True)
info_nce(query, key, negatives=None, *, temperature=0.2, normalize=True, reduction='mean', group=None)
nt_xent(z0, z1, *, temperature=0.5, normalize=True, group=None)
prior_kl(logits, prior=None, *, temperature=1.0, reverse=False, group=None)
power_law_prior(num_prototypes, exponent=0.25)
msn(anchors, targets, prototypes, *, temperature=0.1, sharpening=0.25, prior=None, prior_weight=1.0, sinkhorn_iterations=0, group=None)
variance_hinge(z, *, gamma=1.0, eps=0.0001, group=None)
covariance_penalty(z, *, group=None)
vicreg(z0, z1, *, gamma=1.0, eps=0.0001, group=None)
cross_correlation_penalty(z0, z1, *, off_diagonal_weight=0.005, eps=1e-05, group=None)
nuclear_norm(z, *, center=False, group=None)
wasserstein_uniformity(z, *, eps, group=None)
gaussian_uniformity(x, *, t=2.0, group=None)
alignment(x, y, *, alpha=2.0)
prototype_alignment(p, q, *, s=2.0)
prototype_uniformity(c, *, t=2.0)
prototype_correlation(c, *, temperature=1.0)
proto_nce(z, centroids, concentration, index, *, negatives=None, reduction='mean')
sinkhorn_distance(x, y, *, epsilon, p=1)
Assignment.sinkhorn(scores, *, epsilon=0.05, iterations=3, prior=None, start='zero', group=None)
Assignment.softmax(scores, *, temperature, center=None)
Assignment.from_dense(targets)
""".strip().splitlines()  # noqa: E501
LOSSES = """
ReSALoss SwAVLoss DINOLoss IBOTLoss KoLeoLoss MSNLoss PMSNLoss NTXentLoss MoCoLoss NNCLRLoss DCLLoss
DCLWLoss BYOLLoss SimSiamLoss AlignUniformLoss VICRegLoss VICRegLLoss BarlowTwinsLoss ZeroCLLoss
WMSELoss CWRGPLoss INTLLoss MECLoss MMCRLoss FroSSLLoss TiCoLoss WassersteinUniformityLoss
ProtoNCELoss PAUCLoss MemoryQueue
""".split()


@pytest.mark.parametrize("line", SIGNATURES, ids=lambda line: line.split("(")[0])
def test_signature(line):
    """Each name, kind and default as promised, in this order; more keywords may follow."""
    name, promised = re.fullmatch(r"([\w.]+)\((.*)\)", line).groups()
    function = functional
    for part in name.split("."):
        function = getattr(function, part)
    actual = list(inspect.signature(function).parameters.values())
    keyword = False
    for wanted in promised.split(", "):
        if wanted == "*":
            keyword = True
            continue
        name, _, default = wanted.partition("=")
        found = next((p for p in actual if p.name == name), None)
        assert found, f"{name} is missing"
        assert (found.kind is found.KEYWORD_ONLY) == keyword, name
        if default:
            assert repr(found.default) == default, name
    positional = [w.partition("=")[0] for w in promised.split(", *")[0].split(", ")]
    assert [p.name for p in actual if p.kind is not p.KEYWORD_ONLY] == positional


@pytest.mark.parametrize("name", LOSSES)
def test_loss(name):
    """A module whose docstring names its source and its cost."""
    assert name in losses.__all__
    told = inspect.getdoc(getattr(losses, name))
    assert "Source:" in told and "Cost:" in told

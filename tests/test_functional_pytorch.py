"""Fits PyTorch: compile, registered operators, autocast, functorch, copies; inputs left alone."""

import copy
import importlib
import inspect
import io
import pickle
import pkgutil

import numpy as np
import pytest
import torch
from checks import (
    DTYPES,
    Allocations,
    assert_relative,
    normal,
    opcheck,
    probabilities,
    same_bits,
    unit,
    value_and_grads,
)

from ssl_fast import backend as dispatch
from ssl_fast import functional
from ssl_fast.functional import (
    Assignment,
    alignment,
    covariance_penalty,
    cross_correlation_penalty,
    decoupled_nt_xent,
    gaussian_uniformity,
    info_nce,
    linear_soft_cross_entropy,
    msn,
    multi_crop_cross_entropy,
    multi_view_nt_xent,
    nt_xent,
    nuclear_norm,
    prior_kl,
    proto_nce,
    prototype_alignment,
    prototype_correlation,
    prototype_uniformity,
    sinkhorn,
    sinkhorn_distance,
    soft_cross_entropy,
    variance_hinge,
    vicreg,
    wasserstein_uniformity,
)
from ssl_fast.losses import AlignUniformLoss, FroSSLLoss, MMCRLoss, ReSALoss

MODULES = [  # all of them: an operator is registered where its module is imported
    importlib.import_module(f"ssl_fast.functional.{file.name}")
    for file in pkgutil.iter_modules(functional.__path__)
]
PRIOR = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1])
INDEX = torch.tensor([4, 0, 0, 2, 1])
CENTER = 0.1 * normal(5, seed=3)


def centred(scores: torch.Tensor) -> Assignment:
    return Assignment.softmax(scores, temperature=0.1, center=CENTER)


def wide(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(5, 12): twice as many columns as rows, where covariances go through the Gram."""
    return torch.cat([x, y, x * y, x + 0.5], 1)


# Everything public, as a function of x (5, 3), y (5, 3) and scores (5, 5).
FORMS = {
    "sinkhorn": lambda x, y, s: sinkhorn(s, prior=PRIOR.to(s)) * x.sum(),
    "assignment": lambda x, y, s: Assignment.sinkhorn((y, y), start="softmax").dense() * x.sum(),
    "centred": lambda x, y, s: centred(s).dense() * x.sum(),
    "logits, dense": lambda x, y, s: soft_cross_entropy(x @ y.T, s.abs(), temperature=0.5),
    "logits, sinkhorn": lambda x, y, s: soft_cross_entropy(
        x @ y.T, Assignment.sinkhorn(s), reduction="none"
    ),
    "logits, symmetric": lambda x, y, s: soft_cross_entropy(x @ y.T, centred(s), symmetric=True),
    "linear, dense": lambda x, y, s: linear_soft_cross_entropy(x, y, s.abs(), reduction="sum"),
    "linear, pair": lambda x, y, s: linear_soft_cross_entropy(
        x, y, Assignment.sinkhorn((y[:, :1], y[:, :1])), reduction="none"
    ),
    "linear, symmetric": lambda x, y, s: linear_soft_cross_entropy(
        x, y, Assignment.sinkhorn(s)[:], temperature=0.2, symmetric=True
    ),
    "crops": lambda x, y, s: multi_crop_cross_entropy(
        [x, 2 * x], [Assignment.sinkhorn(s), centred(s)], y, temperature=0.2
    ),
    "crops of logits": lambda x, y, s: multi_crop_cross_entropy(
        [x @ y.T, y @ x.T, x @ x.T],
        [Assignment.sinkhorn((y[:, :1], y[:, :1]))],
        None,
        temperature=0.2,
    ),
    "prior": lambda x, y, s: prior_kl(x @ y.T, PRIOR.to(s), reverse=True),
    "msn": lambda x, y, s: msn(x, s[:, :3], y, prior=PRIOR.to(s), sinkhorn_iterations=2),
    "nt_xent": lambda x, y, s: nt_xent(x, y, temperature=0.1),
    "nt_xent, views": lambda x, y, s: multi_view_nt_xent([x, y, x * y]),
    "nt_xent, decoupled": lambda x, y, s: decoupled_nt_xent(x, y, weights=s[0], normalize=False),
    "info_nce": lambda x, y, s: info_nce(x, y, reduction="none"),
    "info_nce, mean": lambda x, y, s: info_nce(x, y, temperature=0.1),
    "info_nce, queue": lambda x, y, s: info_nce(x, y, s[:, :3]),
    "info_nce, wide": lambda x, y, s: info_nce(x, x.detach(), y, normalize=False, temperature=0.01),
    "proto_nce": lambda x, y, s: proto_nce(x, y, PRIOR.to(s), INDEX, reduction="sum"),
    "proto_nce, sampled": lambda x, y, s: proto_nce(
        x, y, PRIOR.to(s), INDEX, negatives=INDEX[:3], duplicates="ignore"
    ),
    "variance": lambda x, y, s: variance_hinge(x - 2 * y),
    "covariance": lambda x, y, s: covariance_penalty(x - 2 * y),
    "covariance, dual": lambda x, y, s: covariance_penalty(wide(x, y)),
    "vicreg": lambda x, y, s: sum(vicreg(x, y)),
    "vicreg, dual": lambda x, y, s: sum(vicreg(wide(x, y), wide(y, x))),
    "barlow": lambda x, y, s: cross_correlation_penalty(x, y),
    "barlow, dual": lambda x, y, s: cross_correlation_penalty(wide(x, y), wide(y, x)),
    "resa": lambda x, y, s: ReSALoss()([x, y], [y.detach(), x.detach()], s, s),
    "nuclear norm": lambda x, y, s: nuclear_norm(x) + nuclear_norm(y, center=True),
    "wasserstein": lambda x, y, s: wasserstein_uniformity(torch.cat([x, 0.5 * y])),
    "mmcr": lambda x, y, s: MMCRLoss(0.1)(x[:, None], y[:, None]),
    "frossl": lambda x, y, s: FroSSLLoss(0.3)([x, y]),
    "frossl, wide": lambda x, y, s: FroSSLLoss()([wide(x, y), wide(y, x), wide(x + y, y)]),
    "uniformity": lambda x, y, s: gaussian_uniformity(x) + prototype_uniformity(y),
    "alignment": lambda x, y, s: alignment(x, y, alpha=3.0) + prototype_alignment(x, y.detach()),
    "correlation": lambda x, y, s: prototype_correlation(x) + prototype_correlation(x * y),
    "align_uniform": lambda x, y, s: AlignUniformLoss()(x, y),
    "transport": lambda x, y, s: sinkhorn_distance(x, y, epsilon=0.3, p=2),
}


def operands(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    scores = unit(5, 4, dtype=torch.float64) @ unit(5, 4, seed=1).double().T
    return [unit(5, 3, dtype=dtype, seed=2), unit(5, 3, dtype=dtype, seed=4), scores.to(dtype)]


def test_no_function_is_forgotten() -> None:
    named = {name for form in FORMS.values() for name in form.__code__.co_names}
    assert set(functional.__all__) - named == {"power_law_prior"}  # no loss: a constant


def wrt(form: str) -> int:
    return 1 if form in ("sinkhorn", "assignment", "centred", "logits, dense") else 2


@pytest.mark.parametrize("form", FORMS)
def test_compiles_whole(backend, form) -> None:
    """fullgraph=True, forward and backward; AOT autograd's graph gives the eager bits."""
    torch.compiler.reset()
    compiled = torch.compile(FORMS[form], fullgraph=True, backend="aot_eager")
    eager = value_and_grads(FORMS[form], operands(), wrt(form))
    traced = value_and_grads(compiled, operands(), wrt(form))
    assert all(same_bits(a, b) for a, b in zip(traced, eager, strict=True))


ANY_SHAPE = {
    "sinkhorn": lambda x, y, s: sinkhorn(s),
    "linear, symmetric": lambda x, y, s: linear_soft_cross_entropy(
        x, y, Assignment.sinkhorn(s), symmetric=True
    ),
    "msn": lambda x, y, s: msn(torch.cat([x, y]), s[:, :3], y[:3]),
}


@pytest.mark.parametrize("form", ANY_SHAPE)
def test_compiles_for_any_shape(form) -> None:
    """dynamic=True: one graph for several batch sizes."""
    torch.compiler.reset()
    function = ANY_SHAPE[form]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (4, 7, 9):
        x, y, s = unit(n, 3), unit(n, 3, seed=1), unit(n, 4) @ unit(n, 4, seed=1).T
        count = 0 if form == "sinkhorn" else 2
        eager = value_and_grads(function, [x, y, s], count)
        traced = value_and_grads(compiled, [x, y, s], count)
        assert all(same_bits(a, b) for a, b in zip(traced, eager, strict=True))


def test_inductor() -> None:
    """The default compiler, once: an encoder's last layer, normalisation and ReSA."""
    torch.compiler.reset()
    w = normal(4, 3)

    def step(x, y, s):
        z = [torch.nn.functional.normalize(v @ w.T, dim=1) for v in (x, y)]
        return ReSALoss()(z, [z[1].detach(), z[0].detach()], s, s)

    eager = value_and_grads(step, operands(), 2)
    compiled = value_and_grads(torch.compile(step, fullgraph=True), operands(), 2)
    for a, b in zip(compiled, eager, strict=True):
        assert_relative(a, b.double(), 1e-5, tiny=1e-6)


def calls() -> dict[str, list[tuple]]:
    """Arguments for every registered operator, on the backend that "auto" takes."""
    name = dispatch.select("sinkhorn", torch.device("cpu"), torch.float32)
    x, y, s = operands()
    a = Assignment.sinkhorn(s)
    pair = Assignment(z=x, prototypes=y, scale=20.0, row=a.row, col=a.col)
    q = probabilities(5, 5)
    prior = PRIOR.double().log()
    none = (None,) * 5
    targets = [
        (q, *none),
        (s, None, None, a.scale, a.row, a.col),
        (None, pair.z, pair.prototypes, pair.scale, pair.row, pair.col),
    ]
    targets[0] = (q, None, None, None, None, None)
    found: dict[str, list[tuple]] = {
        "sinkhorn_dense": [(s, 20.0, None, 3, name, ""), (s.half(), 20.0, prior, 1, name, "")],
        "sinkhorn_potentials": [
            (s, None, 20.0, prior, 3, True, name, ""),
            (x, y, 20.0, None, 2, False, name, ""),
        ],
        "softmax_potential": [(s, None, 9.0, CENTER.double(), name), (x, y, 9.0, None, name)],
        "centered_potentials": [
            (s, [s.clone()], CENTER[None], 9.0, name),
            (s.half(), [], CENTER[None].half(), 9.0, name),
        ],
        "token_shares": [(torch.eye(3, dtype=torch.bool), 3, 0.5, torch.float64, name)],
        "evaluate": [(s.bfloat16(), None, a.scale, a.row, a.col, name),
                     (x, y, a.scale, a.row, None, name)],
        "cross_entropy_forward": [], "cross_entropy_backward": [],
        "linear_cross_entropy_forward": [], "linear_cross_entropy_backward": [],
        "linear_symmetric": [],
        "resa_forward": [
            (x, y, [x, y, y + x], [0, 1], [2, 2], 2.0, 9.0, 3, [True, True, grad], name, "")
            for grad in (False, True)
        ],
        "gaussian_potential": [], "alignment_forward": [], "alignment_backward": [],
        "sphere_forward": [
            (x, y, 2.0, 0.5, 1.5, True, True, name),
            (x.half(), y.half(), 2.0, 0.5, 1.5, False, True, name),
        ],
        "correlation_forward": [], "correlation_backward": [],
        "transport_forward": [], "transport_backward": [],
        **calls_of_prior(name), **calls_of_crops(name), **calls_of_contrast(name),
        "covariance_forward": [], "covariance_backward": [],
        "cross_correlation_forward": [
            (x, y, 0.1, 1e-5, own, grad, name, "") for own, grad in ((False, True), (True, False))
        ],
        **calls_of_cosine(name),
        "wasserstein_forward": [
            (x, True, 1e-6, True, True, name, ""),
            (x.half(), False, 1e-6, False, True, name, ""),
            (y.double(), True, 1e-6, False, False, name, ""),
        ],
        "frossl_forward": [
            (x, [y], 0.3, True, name, ""),
            (wide(x, y), [wide(y, x), wide(y, y)], 1.0, True, name, ""),
            (x.double(), [y.double()], 1.0, False, name, ""),
        ],
        "mmcr_forward": [
            (x[None], y[None], 0.1, True, True, name, ""),
            (x[:, None].bfloat16(), y[:, None].bfloat16(), 0.1, False, True, name, ""),
        ],
    }  # fmt: skip
    both = "variance covariance"
    for z0, z1, parts in ((x, y, both), (wide(x, y), wide(y, x), both), (x, None, "variance")):
        forward = (z0, z1, 1.0, 1e-4, 1, parts, True, name, "")
        found["covariance_forward"] += [forward, (*forward[:6], False, name, "")]
        held = torch.ops.ssl_fast.covariance_forward(*forward)[1:]
        rest = (normal(3), 1.0, 1e-4, 1, parts, True, z1 is not None, name, "")
        found["covariance_backward"].append((z0, z1, *held, *rest))
    d = torch.tensor(0.7)
    for k in (x, y.bfloat16()):
        _, row, col = torch.ops.ssl_fast.correlation_forward(k, 2.0, name)
        found["correlation_forward"].append((k, 2.0, name))
        found["correlation_backward"].append((k, 2.0, row, col, d, name))
        found["gaussian_potential"] += [
            (k, 2.0, True, True, name, ""),
            (k, 1.0, False, False, name, ""),
        ]
        numbers = 0.3, 1, 50, 1e-5, name
        _, state = torch.ops.ssl_fast.transport_forward(k, k.flip(0), *numbers)
        found["transport_forward"].append((k, k.flip(0), *numbers))
        found["transport_backward"].append((k, k.flip(0), state, d, *numbers))
        found["alignment_forward"].append((k, k.flip(0), 1.5, name, ""))
        found["alignment_backward"].append((k, k.flip(0), 1.5, d, 0.5, name))
    d_rows = normal(5, seed=8)
    for target in targets:
        for symmetric, reduction in ((False, "none"), (True, "mean")):
            options = (symmetric, reduction)
            d_loss = d_rows if reduction == "none" else torch.tensor(0.7)
            forward = (s, 2.0, *target, *options, name, "")
            found["cross_entropy_forward"].append(forward)
            _, row, col, _ = torch.ops.ssl_fast.cross_entropy_forward(*forward)
            found["cross_entropy_backward"].append((s, 2.0, *target, row, col, d_loss, 0.5, name))
            found["linear_symmetric"].append((x, y, 2.0, *target, "sum", True, symmetric, name, ""))
            forward = (x, y, 2.0, *target, False, reduction, True, name, "")
            found["linear_cross_entropy_forward"].append(forward)
            _, row, col, _, cache = torch.ops.ssl_fast.linear_cross_entropy_forward(*forward)
            found["linear_cross_entropy_backward"].append(
                (x, y, 2.0, *target, row, col, cache, d_loss, 0.5, True, True, name)
            )
    return found


def calls_of_cosine(name: str) -> dict[str, list[tuple]]:
    x, y, _ = operands()
    ops = torch.ops.ssl_fast
    _, stats = ops.cosine_forward(x, y, 1e-8, name)
    mean, row_stats, _ = ops.mean_softmax_forward(x, y, 2.0, name, "")
    held, moment = ops.unit_rows_forward(x, 1e-12, name), torch.eye(3)
    return {
        "cosine_forward": [(x, y, 1e-8, name)],
        "cosine_backward": [(x, y, 1e-8, stats, torch.tensor(0.7), 0.2, True, False, name)],
        "nearest_rows": [(x, name)],
        "nearest_index": [(x, y, name), (x.half(), y.half(), name)],
        "koleo_forward": [(x, 2.0, 1e-8, True, name), (x.half(), 1.0, 1e-3, False, name)],
        "unit_rows_forward": [(x, 1e-8, name), (x.half(), 1e-12, name)],
        "unit_rows_backward": [(x, *ops.unit_rows_forward(x, 1e-8, name), y, 1e-8, name)],
        "tico_forward": [
            (x, y, *held, moment, 8.0, True, True, name),
            (x.half(), y.half(), *held, moment, 8.0, False, True, name),
        ],
        "mean_softmax_forward": [(x, y, 2.0, name, "")],
        "mean_softmax_backward": [(x, y, 2.0, row_stats, mean.double(), True, True, name)],
    }


def calls_of_prior(name: str) -> dict[str, list[tuple]]:
    x, y, s = operands()
    d_loss, log_prior = torch.tensor(0.7), PRIOR.double().log()
    ops = torch.ops.ssl_fast
    kl = (s, 2.0, log_prior, True, name, "")
    _, row, prior, _ = ops.prior_kl_forward(*kl)
    found: dict[str, list[tuple]] = {
        "prior_kl_forward": [kl, (s, 2.0, None, False, name, "")],
        "prior_kl_backward": [(s, 2.0, row, prior, d_loss, 0.5, name)],
        "msn_forward": [], "msn_backward": [],
        "entropy_forward": [(x, y, 2.0, "")],
    }  # fmt: skip
    _, entropy, _ = ops.entropy_forward(x, y, 2.0, "")
    found["entropy_backward"] = [(x, y, 2.0, entropy, d_loss, True, True)]
    for iterations in (0, 2):
        forward = (x, x[:5], y, 10.0, 40.0, log_prior, 0.5, False, iterations, True, name, "", "")
        numbers = (10.0, 40.0, log_prior, 0.5, False, iterations, True)
        forward = (x, x[:5], y, *numbers, name, "", "")
        found["msn_forward"].append(forward)
        _, *kept, _, cache = ops.msn_forward(*forward)
        found["msn_backward"].append(
            (x, x[:5], y, 10.0, 40.0, *kept, cache, d_loss, 0.5, True, True, name)
        )
    return found


def calls_of_crops(name: str) -> dict[str, list[tuple]]:
    x, y, s = operands()
    a, d_loss, ops = Assignment.sinkhorn(s), torch.tensor(0.7), torch.ops.ssl_fast
    fields, scales = [s, None, None, a.row, a.col, probabilities(5, 5), *(None,) * 4], [20.0, 0.0]
    linear = (torch.cat([x, x]), y, fields, 2, 5.0, scales, True, "mean", True, True, name, "")
    logits = (s, [2 * s, s.T.contiguous()], fields, 5.0, scales, True)
    _, rows, _ = ops.multi_crop_logits_forward(*logits, name, "")
    return {
        "multi_crop_forward": [linear],
        "multi_crop_logits_forward": [(*logits, name, "")],
        "multi_crop_logits_backward": [(*logits, rows, d_loss, 0.5, name)],
    }


def calls_of_contrast(name: str) -> dict[str, list[tuple]]:
    x, y, s = operands()
    ops, d_loss = torch.ops.ssl_fast, torch.tensor(0.7)
    found: dict[str, list[tuple]] = {
        "contrastive_rows_forward": [], "contrastive_rows_backward": [],
        "contrastive_pairs_forward": [], "contrastive_pairs_backward": [],
        "contrastive_pairs_at_once": [
            (x, [y], None, 2.0, True, False, True, name),
            (x, [y, x * y], s[:, :3], -2.0, False, True, True, name),
            (x, [y], None, 2.0, True, False, False, name),
        ],
        "queue_forward": [
            (x, y, 2 * y, 2.0, 2, "mean", True, True, name),
            (x.half(), y.half(), 2 * y, 2.0, 0, "sum", True, False, name),
        ],
        "in_batch_forward": [
            (x, y, 2.0, True, "mean", True, True, name),
            (x, y, 2.0, False, "sum", True, False, name),
        ],
        "prototypes_forward": [
            (x, y, [INDEX, INDEX], [y, x], [PRIOR, PRIOR], 0.2, *numbers, True, name)
            for numbers in ((0.0, 0.0, 0.0, 2.0, 2.0, 1.0), (0.5, 2.0, 0.3, 3.0, 1.5, 0.5))
        ] + [(x.half(), y.half(), [INDEX], [], [], 0.0, 1.0, 1.0, 1.0, 2.0, 2.0, 1.0, False, name)],
    }  # fmt: skip
    for pair, scales, without, normalize, reduction in (
        (y, (None, None), (INDEX, INDEX + 1), 2, "none"),
        (x, (PRIOR, CENTER), (None, None), 0, "mean"),
        (None, (None, None), (None, None), 1, "sum"),
    ):
        forward = (x, y, pair, 2.0, *scales, *without, normalize, reduction, True, name, "")
        found["contrastive_rows_forward"].append(forward)
        held = ops.contrastive_rows_forward(*forward)[1:4]
        d_rows = normal(5, seed=8) if reduction == "none" else d_loss
        found["contrastive_rows_backward"].append(
            (x, y, pair, 2.0, *scales, *without, normalize, *held, d_rows, 0.5, True, True,
             pair is x, pair is y, name)
        )  # fmt: skip
    for others, weights, normalize in (([y], None, True), ([y, x * y], s[:, :3], False)):
        pairs = (x, others, weights, 2.0, normalize, weights is not None, name)
        found["contrastive_pairs_forward"].append(pairs)
        held = ops.contrastive_pairs_forward(*pairs)[1:]
        found["contrastive_pairs_backward"].append((x, others, 2.0, normalize, *held, d_loss, name))
    return found


OPERATORS = (
    "sinkhorn_dense", "sinkhorn_potentials", "softmax_potential", "centered_potentials",
    "evaluate", "token_shares",
    "cross_entropy_forward", "cross_entropy_backward",
    "linear_cross_entropy_forward", "linear_cross_entropy_backward", "linear_symmetric",
    "resa_forward",
    "gaussian_potential", "alignment_forward", "alignment_backward", "sphere_forward",
    "correlation_forward", "correlation_backward", "transport_forward", "transport_backward",
    "prior_kl_forward", "prior_kl_backward", "msn_forward", "msn_backward",
    "entropy_forward", "entropy_backward",
    "multi_crop_forward",
    "multi_crop_logits_forward", "multi_crop_logits_backward",
    "contrastive_rows_forward", "contrastive_rows_backward",
    "contrastive_pairs_forward", "contrastive_pairs_backward", "contrastive_pairs_at_once",
    "in_batch_forward", "queue_forward", "prototypes_forward", "frossl_forward",
    "covariance_forward", "covariance_backward", "cross_correlation_forward",
    "wasserstein_forward", "mmcr_forward", "tico_forward",
    "cosine_forward", "cosine_backward", "nearest_rows", "nearest_index",
    "koleo_forward",
    "unit_rows_forward", "unit_rows_backward",
    "mean_softmax_forward", "mean_softmax_backward",
)  # fmt: skip


def test_operators_are_all_checked() -> None:
    registered = {
        schema.name.removeprefix("ssl_fast::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("ssl_fast::")
    }
    assert registered == set(OPERATORS)


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name) -> None:
    for arguments in calls()[name]:
        opcheck(name, *arguments)


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_runs_the_eager_kernels(name) -> None:
    """The registered operator and the direct call agree bit for bit."""
    direct = next(getattr(m, name) for m in MODULES if hasattr(m, name))
    for arguments in calls()[name]:
        with dispatch.trace() as eager:
            expected = direct(*arguments)
        with dispatch.trace() as registered:
            actual = getattr(torch.ops.ssl_fast, name)(*arguments)
        assert eager == registered
        for a, b in zip(_tuple(actual), _tuple(expected), strict=True):
            assert a.numel() == 0 if b is None else same_bits(a, b)


def _tuple(value):
    return value if isinstance(value, tuple | list) else (value,)


@pytest.mark.parametrize("form", [f for f in FORMS if wrt(f) == 2])
def test_torch_func(backend, form) -> None:
    """torch.func.grad is torch.autograd.grad."""
    function, (x, y, s) = FORMS[form], operands()
    expected = value_and_grads(lambda *z: function(*z).sum(), [x, y, s], 2)[1:]
    grads = torch.func.grad(lambda x, y, s: function(x, y, s).sum(), argnums=(0, 1))(x, y, s)
    assert all(same_bits(a, b) for a, b in zip(grads, expected, strict=True))


class Cut(torch.autograd.Function):
    """A copy that hands no gradient back, not even zeros."""

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, d_copy):
        return None


def test_no_gradient_may_arrive(backend) -> None:
    x = normal(5, 3)
    gradient = torch.func.grad(lambda z: Cut.apply(gaussian_uniformity(z)) + z.sum())(x)
    assert same_bits(gradient, torch.ones(5, 3))


@pytest.mark.parametrize("form", ["logits, sinkhorn", "linear, dense", "resa", "wasserstein"])
def test_vmap_is_refused(form) -> None:
    """Never a wrong answer in silence."""
    batch = [torch.stack([t, t]) for t in operands()]
    with pytest.raises((RuntimeError, ValueError, TypeError, NotImplementedError)):
        torch.func.vmap(FORMS[form])(*batch)


@pytest.mark.parametrize("penalty", ["of the loss", "of its square"])
@pytest.mark.parametrize("form", [f for f in FORMS if wrt(f) == 2])
def test_double_backward_is_refused(backend, form, penalty) -> None:
    """A gradient penalty raises, whether the incoming gradient is a constant or depends on x."""
    x, y, s = operands()
    x = x.requires_grad_()
    loss = FORMS[form](x, y, s).sum()
    loss = loss.square() if penalty == "of its square" else loss
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(grad.square().sum(), x)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_inputs_are_left_alone(backend, form, dtype) -> None:
    """Forward and backward write nothing into what the caller holds."""
    inputs = operands(dtype)
    before = [x.clone() for x in inputs]
    upstream = normal(5, seed=7)
    value_and_grads(lambda *z: FORMS[form](*z).sum(-1).mul(1.5).sum(), inputs, wrt(form))
    assert all(same_bits(x, b) for x, b in zip(inputs, before, strict=True))
    assert same_bits(upstream, normal(5, seed=7))


@pytest.mark.parametrize("symmetric", [False, True])
def test_logits_targets_and_upstream_are_left_alone(backend, symmetric) -> None:
    """Handed over directly, with nothing in between that would have copied them."""
    logits, q, prior = normal(5, 5), probabilities(5, 5), PRIOR.clone()
    d_value = torch.tensor(0.7) if symmetric else normal(5, seed=7)
    reduction = "mean" if symmetric else "none"
    held = [logits, q, prior, d_value]
    before = [x.clone() for x in held]
    sinkhorn(logits, prior=prior)
    for targets in (q, Assignment.sinkhorn(q, prior=prior)):
        leaf = logits.requires_grad_()
        value = soft_cross_entropy(leaf, targets, symmetric=symmetric, reduction=reduction)
        torch.autograd.grad(value, leaf, d_value)
    assert all(same_bits(x.detach(), b) for x, b in zip(held, before, strict=True))


def test_gradients_are_fresh() -> None:
    """Writing into a gradient changes neither an input nor the next gradient (Liger #272, #343)."""
    logits = normal(5, 5).requires_grad_()
    value = soft_cross_entropy(logits, probabilities(5, 5))
    (first,) = torch.autograd.grad(value, logits, retain_graph=True)
    kept = first.clone()
    first.fill_(9)
    (second,) = torch.autograd.grad(value, logits)
    assert same_bits(second, kept) and same_bits(logits.detach(), normal(5, 5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_takes_products_in_half(backend, dtype) -> None:
    """As torch.matmul: x and weight are rounded, the gradients come back in float32."""
    x, y, s = operands()
    held = Assignment.sinkhorn(s)

    def cast(x, y):
        with torch.autocast("cpu", dtype):
            return linear_soft_cross_entropy(x, y, held, temperature=0.1)

    def explicit(x, y):
        return linear_soft_cross_entropy(x.to(dtype), y.to(dtype), held, temperature=0.1)

    under, expected = (value_and_grads(f, [x, y], 2) for f in (cast, explicit))
    assert [g.dtype for g in under] == [torch.float32] * 3
    assert all(same_bits(a, b) for a, b in zip(under, expected, strict=True))
    with torch.autocast("cpu", dtype):
        pair = Assignment.sinkhorn((x, y))
    assert same_bits(pair.dense(), Assignment.sinkhorn((x.to(dtype), y.to(dtype))).dense())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_leaves_logits(backend, dtype) -> None:
    """Logits and scores are taken as they come; the loss is float32, as F.cross_entropy's is."""
    for kind in (torch.float32, dtype):
        logits, q = normal(5, 5, dtype=kind), probabilities(5, 5)

        def losses(x, q=q):
            return soft_cross_entropy(x, q) + soft_cross_entropy(x, Assignment.sinkhorn(q))

        expected = value_and_grads(losses, [logits], 1)
        with torch.autocast("cpu", dtype):
            value, grad = value_and_grads(losses, [logits], 1)
            assert same_bits(sinkhorn(logits), sinkhorn(logits.float()))
        assert value.dtype == torch.float32 and grad.dtype == kind
        assert same_bits(value, expected[0]) and same_bits(grad, expected[1])


def test_autocast_resa(backend) -> None:
    """The whole loss under autocast, mixed inputs as in training: finite, near float32."""
    x, y, s = operands()
    with torch.autocast("cpu", torch.bfloat16):
        value, *grads = value_and_grads(
            lambda x, y: ReSALoss()([x, y.bfloat16()], [y, x.bfloat16()], s, s.bfloat16()),
            [x, y],
            2,
        )
    assert all(g.dtype == torch.float32 and bool(g.isfinite().all()) for g in grads)
    assert_relative(value, ReSALoss()([x, y], [y, x], s, s).double(), 2e-2)


def test_half_operands_are_upcast_by_tile(backend) -> None:
    """Forward makes no float32 copy of a whole bfloat16 weight; its one such tensor is d_weight."""
    x, weight = unit(8, 16, dtype=torch.bfloat16), unit(9001, 16, dtype=torch.bfloat16, seed=1)
    q = Assignment.from_dense(probabilities(1, 9001).expand(8, -1))
    with Allocations() as watch:
        linear_soft_cross_entropy(x.requires_grad_(), weight.requires_grad_(), q)
    whole = [s for _, s, d in watch.results if d == torch.float32 and s.numel() >= weight.numel()]
    assert whole == ([weight.shape] if backend == "native" else [])


@pytest.mark.parametrize("duplicate", ["deepcopy", "pickle", "torch.save"])
def test_losses_are_copied(duplicate) -> None:
    loss = ReSALoss(temperature=0.3, epsilon=0.07, iterations=5, symmetric=False)
    if duplicate == "deepcopy":
        other = copy.deepcopy(loss)
    elif duplicate == "pickle":
        other = pickle.loads(pickle.dumps(loss))
    else:
        file = io.BytesIO()
        torch.save(loss, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    x, y, s = operands()
    assert repr(other) == repr(loss)
    assert same_bits(other([x, y], [y, x], s, s), loss([x, y], [y, x], s, s))


def test_assignments_are_copied() -> None:
    """A queue in a checkpoint."""
    held = Assignment.sinkhorn(operands()[2])
    for other in (copy.deepcopy(held), pickle.loads(pickle.dumps(held))):
        assert same_bits(other.dense(), held.dense())


def test_assignments_of_changed_scores_are_refused() -> None:
    """Potentials of the old scores would give rows that do not sum to one."""
    x, y, s = operands()
    for scores, changed in ((s, s), ((x[:, :1], y[:, :1]), x), ((x[:, :1], y[:, :1]), y)):
        held = Assignment.softmax(scores, temperature=0.1)
        part, twin = held[:], copy.deepcopy(held)
        expected = held.dense()
        with torch.no_grad():
            changed.mul_(2.0)
        uses = [
            held.dense, part.dense, lambda held=held: held[:2],
            lambda held=held: soft_cross_entropy(s, held),
            lambda held=held: multi_crop_cross_entropy([s], [held], None, temperature=1.0,
                                                       skip_same=False),
        ]  # fmt: skip
        for use in uses:
            with pytest.raises(RuntimeError, match="changed in place after it was made"):
                use()
        assert same_bits(twin.dense(), expected)
        assert Assignment.softmax(scores, temperature=0.1).dense().isfinite().all()
    given = Assignment.from_dense(s)
    s.zero_()
    assert not given.dense().any()


def test_assignments_cross_into_graphs() -> None:
    """Made in eager mode, used by a compiled function."""
    torch.compiler.reset()
    _, _, s = operands()
    held = Assignment.sinkhorn(s.mul_(2.0))
    compiled = torch.compile(soft_cross_entropy, fullgraph=True, backend="aot_eager")
    assert same_bits(compiled(s, held), soft_cross_entropy(s, held))


def test_dtensor_is_refused(tmp_path) -> None:
    """TypeError that names the argument and the call that would work; so for a group's name."""
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        d = DTensor.from_local(torch.zeros(4, 3), mesh)
        t = torch.zeros(4, 3)
        index = DTensor.from_local(torch.zeros(4, dtype=torch.int64), mesh)
        for name, call in {
            "scores": lambda: sinkhorn(d),
            "logits": lambda: soft_cross_entropy(d, t),
            "targets": lambda: soft_cross_entropy(t, d),
            "x": lambda: linear_soft_cross_entropy(d, t, t),
            "weight": lambda: linear_soft_cross_entropy(t, d, t),
            "z": lambda: Assignment.sinkhorn((d, t)),
            "index": lambda: proto_nce(t, t, torch.ones(4), index),
        }.items():
            with pytest.raises(TypeError, match=f"{name} is a DTensor.*to_local.*full_tensor"):
                call()
        with pytest.raises(ValueError, match=r"group must be the name .* got 'nowhere'"):
            sinkhorn(t, group="nowhere")
    finally:
        dist.destroy_process_group()


def test_docstrings_name_their_arguments() -> None:
    """Every public function explains each argument, what it returns or raises, and its source."""
    public = [getattr(functional, name) for name in functional.__all__ if name != "Assignment"]
    for function in (*public, Assignment.sinkhorn, Assignment.softmax):
        text = inspect.getdoc(function)
        for name in inspect.signature(function).parameters:
            assert name in text, f"{function.__qualname__}: {name}"
        assert "Source:" in text and "Cost:" in text


def test_numbers_of_numpy() -> None:
    """As schedules and sweeps have them."""
    x = normal(5, 3)
    options = {"epsilon": np.float32(0.25), "iterations": np.int64(2)}
    assert same_bits(sinkhorn(x, **options), sinkhorn(x, epsilon=0.25, iterations=2))
    assert same_bits(prior_kl(x, temperature=np.float64(0.5)), prior_kl(x, temperature=0.5))

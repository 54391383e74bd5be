"""Priors on prototypes: the KL divergence of the mean assignment, and MSN's whole loss."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import backend
from . import _check
from ._autograd import apply
from ._mean_softmax import mean_softmax
from ._msn import MSN
from ._operator import is_transformed
from ._prior import PriorKL, prior_logarithm
from ._tiles import product_dtype


def power_law_prior(num_prototypes: int, exponent: float = 0.25) -> Tensor:
    """pi_k proportional to k ** -exponent, k = 1 ... K.

    Args:
        num_prototypes: K, at least 1.
        exponent: >= 0; 0 is uniform, PMSN's default is 0.25.

    Returns:
        (K,), sums to one, in torch's default type, on the CPU.

    Source: Assran et al. 2023 (PMSN), section 4.
    Cost: K numbers.
    """
    count = _check.count("num_prototypes", num_prototypes)
    exponent = _check.at_least_zero("exponent", exponent)
    ranks = torch.arange(1, count + 1, dtype=torch.float64)
    prior = ranks.pow(-exponent)
    return (prior / prior.sum()).to(torch.get_default_dtype())


def prior_kl(
    logits: Tensor,
    prior: Tensor | None = None,
    *,
    temperature: float = 1.0,
    reverse: bool = False,
    group: Any = None,
) -> Tensor:
    """KL divergence between the mean softmax of the rows and a prior on the prototypes.

        p = mean_i softmax(logits_i / temperature);   KL(p || prior) = sum_k p_k log(p_k / prior_k)
        reverse: KL(prior || p), Lightly's PMSN

    With a uniform prior this is MSN's mean-entropy maximisation, log K - H(p).

    Args:
        logits: (N, K), float64, float32, bfloat16 or float16.
        prior: (K,) without gradient, non-negative, sums to 1 within 1e-3; None is uniform.
            KL(p || prior) is infinite where it is zero: refused (on CPU tensors, where
            looking costs nothing).
        temperature: > 0, in units of the logits.
        reverse: KL(prior || p) instead; a prior may then have zeros.
        group: process group: p is the mean over the rows of all ranks; every rank returns the
            same value, and gradients such that the mean over ranks, as DDP takes it, is exact.

    Returns:
        0-d; float32, float64 for float64 logits. The gradient has the logits' type; differentiable
        once.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Source: Assran et al. 2022 (MSN), section 3; 2023 (PMSN), Eq. 9.
    Cost: forward one read of the logits, backward one read and one write. Kept for backward: the
        logits and 4 N + 2 K numbers. p is held as logarithms: a prototype that nobody picks has a
        finite value and gradient.
    """
    _check.matrix("logits", logits)
    log_prior = prior_logarithm(prior, logits.shape[1], logits.device, reverse)
    group = _check.group_name(group)
    inv_temperature = 1.0 / _check.positive("temperature", temperature)
    name = backend.select("prior", logits.device, logits.dtype)
    logits = _check.rows_contiguous(logits)
    return apply(PriorKL, logits, inv_temperature, log_prior, bool(reverse), name, group)


def msn(
    anchors: Tensor,
    targets: Tensor,
    prototypes: Tensor,
    *,
    temperature: float = 0.1,
    sharpening: float = 0.25,
    prior: Tensor | Callable[[Tensor], Tensor] | None = None,
    prior_weight: float = 1.0,
    reverse: bool = False,
    sinkhorn_iterations: int = 0,
    group: Any = None,
    sinkhorn_group: Any = None,
) -> Tensor:
    """MSN and PMSN: masked anchors match their target's assignment, the mean follows a prior.

        loss = mean_vi H(q_i, p_vi) + prior_weight * KL(mean_vi p_vi || prior)
        p_vi = softmax(cos(anchor_vi, prototypes) / temperature)
        q_i = softmax(cos(target_i, prototypes) / temperature) ** (1 / sharpening), normalised;
              then balanced by Sinkhorn-Knopp where `sinkhorn_iterations` > 0

    All three inputs are normalised inside. q is a constant: targets, and the prototypes on their
    way to q, are detached.

    Args:
        anchors: (V N, D), view by view: rows v N to (v + 1) N are view v of the N samples.
        targets: (N, D).
        prototypes: (K, D). A zero row of any input counts as zero and gets a zero gradient.
        temperature: tau > 0, in units of the cosine.
        sharpening: t > 0; q is the softmax at temperature tau t.
        prior: (K,) as in `prior_kl`; None is uniform, which is MSN's mean-entropy term; or a
            function of the mean (K,), called once a step, whose result counts as a constant.
        prior_weight: >= 0; lambda of the papers.
        reverse: KL(prior || mean) instead, which is Lightly's PMSN.
        sinkhorn_iterations: >= 0; MSN's Sinkhorn starts from the sharpened probabilities.
        group: process group: Sinkhorn, mean and prior are taken over the rows of all ranks; every
            rank returns the global loss, and gradients such that the mean over ranks is exact.
        sinkhorn_group: process group of Sinkhorn alone, the loss being this rank's: without
            `group`, which has Sinkhorn's too.

    Returns:
        0-d; float32, float64 for float64 inputs. Gradients reach anchors and prototypes, in their
        types; differentiable once. With `group`, the prototypes are taken as replicated.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Source: Assran et al. 2022 (MSN), facebookresearch/msn 4388dc1; 2023 (PMSN), Eq. 9.
    Cost: products of 2 V N K D operations: one forward, two backward, and one more for the tiles
        that were not kept; 2 N K D for each pass of the teacher. Kept for backward: the inputs,
        4 V N + N + 3 K numbers and tiles of at most the bytes of inputs and gradients. q is not
        stored, nor are normalised copies.
    """
    anchors, targets, prototypes = _check.autocast(anchors, targets, prototypes)
    _check.factors("anchors", anchors, "prototypes", prototypes)
    _check.factors("targets", targets, "prototypes", prototypes)
    if anchors.shape[0] % targets.shape[0] or anchors.shape[0] < targets.shape[0]:
        raise ValueError(
            f"anchors must be whole views of the targets, V * N rows: got {anchors.shape[0]} "
            f"anchors and {targets.shape[0]} targets"
        )
    iterations = _check.count_or_zero("sinkhorn_iterations", sinkhorn_iterations)
    temperature = _check.positive("temperature", temperature)
    scale = 1.0 / (temperature * _check.positive("sharpening", sharpening))
    weight = _check.at_least_zero("prior_weight", prior_weight)
    reverse = bool(reverse)
    if callable(prior) and is_transformed():  # where operators take tensors alone: a product more
        constants = anchors.detach(), prototypes.detach()
        prior = prior(mean_softmax(*constants, temperature=temperature, group=group))
    log_prior = _logarithm(prior, prototypes.shape[0], anchors, reverse)
    name = backend.select("prior", anchors.device, anchors.dtype)
    tensors = [_check.rows_contiguous(x) for x in (anchors, targets.detach(), prototypes)]
    want_grad = torch.is_grad_enabled() and (anchors.requires_grad or prototypes.requires_grad)
    return apply(
        MSN, *tensors, 1.0 / temperature, scale, log_prior, weight, reverse, iterations,
        want_grad, name, _check.group_name(group),
        _check.group_name(sinkhorn_group if group is None else group),
    )  # fmt: skip


def _logarithm(prior: Any, columns: int, like: Tensor, reverse: bool) -> Any:
    """As `prior_logarithm`; of a function, a function."""
    if not callable(prior):
        return prior_logarithm(prior, columns, like.device, reverse)
    dtype = product_dtype(like)
    return lambda mean: prior_logarithm(prior(mean.to(dtype)), columns, like.device, reverse)

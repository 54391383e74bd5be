"""The target of a teacher: q_ik = exp(s_ik / epsilon + row_i + col_k), kept as potentials.

SwAV, DINOv2 and ReSA (Sinkhorn-Knopp), DINO and iBOT (centring), MSN (sharpening): all have this
form, only epsilon and the potentials differ. Scores may be given as such or as their two factors,
z @ prototypes.T, and then they are not stored. `from_dense` holds probabilities of any origin.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from .. import backend
from . import _check
from ._operator import full_precision
from ._tiles import is_no_larger, product, product_dtype
from .sinkhorn import evaluate, sinkhorn_arguments, sinkhorn_potentials, softmax_potential

Scores = Tensor | tuple[Tensor, Tensor]


@dataclasses.dataclass(eq=False, repr=False)
class Assignment:
    """N samples softly assigned to K prototypes. A constant: no gradient flows into it.

    Made by `Assignment.sinkhorn`, `Assignment.softmax` or `Assignment.from_dense`. Tensors are
    held, not copied: scores that are changed in place later no longer belong to the potentials, and
    using the assignment raises.

    Attributes:
        values: (N, K) scores, or probabilities where `scale` is None; None when factored.
        z, prototypes: (N, D) and (K, D) with scores = z @ prototypes.T, or None.
        scale: 1 / epsilon, or None for given probabilities.
        row: (N,) float64 potential of each sample, nats.
        col: (K,) float64 potential of each prototype, nats; None stands for zeros.
    """

    values: Tensor | None = None
    z: Tensor | None = None
    prototypes: Tensor | None = None
    scale: float | None = None
    row: Tensor | None = None
    col: Tensor | None = None

    @classmethod
    def sinkhorn(
        cls,
        scores: Scores,
        *,
        epsilon: float = 0.05,
        iterations: int = 3,
        prior: Tensor | None = None,
        start: str = "zero",
        group: Any = None,
    ) -> Assignment:
        """Sinkhorn-Knopp: prototypes balanced first, samples last (SwAV's order).

        Repeats `iterations` times, from row = 0 (`start="zero"`) or row = -LSE_k(s/epsilon)
        (`start="softmax"`, MSN's Sinkhorn on probabilities):

            col_k = log prior_k - LSE_i(s_ik/epsilon + row_i);  row_i = -LSE_k(s_ik/epsilon + col_k)

        Rows sum to one exactly; columns follow `prior` up to convergence.

        Args:
            scores: (N, K), or the pair (z (N, D), prototypes (K, D)), used as given.
            epsilon: entropy weight, in units of the scores, > 0.
            iterations: at least 1.
            prior: (K,) marginal of the prototypes, non-negative, sums to 1; None is uniform.
                A prototype with prior 0 receives nothing.
            start: "zero" or "softmax".
            group: process group whose ranks share the prototypes; each holds its own rows.

        Raises:
            TypeError, ValueError: naming the argument, what came and what was expected.

        Source: Caron et al. 2020 (SwAV, listing 1); `prior` carries the idea of
            PMSN (Assran et al. 2023, Eq. 9) over to it.
        Cost: iterations + 1 reads of the scores; N + K numbers kept, beside the input itself.
        """
        held = _held(scores)
        _check.choice("start", start, ("zero", "softmax"))
        scale, log_prior, group = sinkhorn_arguments(
            epsilon, iterations, prior, held.shape[1], held.device, group
        )
        first, prototypes, name = held._operands()
        held.row, held.col = sinkhorn_potentials(
            first, prototypes, scale, log_prior, iterations, start == "softmax", name, group
        )
        held.scale = scale
        return held

    @classmethod
    def softmax(
        cls, scores: Scores, *, temperature: float, center: Tensor | None = None
    ) -> Assignment:
        """softmax((s - center) / temperature) of every row: DINO's, iBOT's and MSN's teacher.

        Args:
            scores: (N, K), or the pair (z (N, D), prototypes (K, D)), used as given.
            temperature: > 0, in units of the scores; MSN's sharpening t of softmax(s / tau) is
                the temperature tau * t.
            center: (K,) subtracted from every row, in units of the scores; None is zero.

        Source: Caron et al. 2021 (DINO, algorithm 1).
        Cost: one read of the scores; N + K numbers kept.
        """
        held = _held(scores)
        held.scale = 1.0 / _check.positive("temperature", temperature)
        if center is not None:
            _check.tensor("center", center, (held.shape[1],), "the scores", held.device)
            held.col = center.detach().double() * -held.scale
        first, prototypes, name = held._operands()
        held.row = softmax_potential(first, prototypes, held.scale, held.col, name)
        return held

    @classmethod
    def from_dense(cls, targets: Tensor) -> Assignment:
        """Hold given probabilities (N, K); any finite numbers, rows need not sum to one."""
        _check.matrix("targets", targets)
        _check.constant("targets", targets)
        return cls(values=_check.rows_contiguous(targets))

    def __post_init__(self) -> None:
        self._versions = self._present_versions()

    def __setstate__(self, state: dict) -> None:  # copies and pickles count from 0
        vars(self).update(state)
        self.__post_init__()

    def unchanged(self) -> Assignment:
        """Itself, if no operation in place has changed the scores since the potentials."""
        now = self._present_versions()
        if self.scale is not None and None not in (now, self._versions) and now != self._versions:
            raise RuntimeError(
                "the scores of this Assignment, or their factors z and prototypes, were changed in "
                "place after it was made, and its potentials are those of the old ones: use it "
                "before, or change a copy, as scores / temperature makes one"
            )
        return self

    def _present_versions(self) -> tuple[int, ...] | None:
        if torch.compiler.is_compiling():  # which keeps no count
            return None
        held = self.values, self.z, self.prototypes
        return tuple([t._version for t in held if t is not None and not t.is_inference()])

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        if self.values is not None:
            return self.values.shape[0], self.values.shape[1]
        assert self.z is not None and self.prototypes is not None
        return self.z.shape[0], self.prototypes.shape[0]

    @property
    def device(self) -> torch.device:
        return self._any.device

    @property
    def dtype(self) -> torch.dtype:
        return self._any.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Assignment:
        """The assignment of some rows: a slice, or an index or mask of rows; no copy for slices."""
        if not isinstance(rows, slice) and not (isinstance(rows, Tensor) and rows.dim() == 1):
            shape = f" {tuple(rows.shape)}" if isinstance(rows, Tensor) else ""
            raise TypeError(
                f"Assignment[...] takes a slice or a vector of rows, not {type(rows).__name__}"
                f"{shape}: write assignment[-n:] or assignment[index]"
            )
        part = dataclasses.replace(
            self.unchanged(),
            values=None if self.values is None else self.values[rows],
            z=None if self.z is None else self.z[rows],
            row=None if self.row is None else self.row[rows].contiguous(),
        )
        if not torch.compiler.is_compiling() and not len(part):
            raise ValueError(f"Assignment[...] selects none of {len(self)} rows, got {rows}")
        return part

    def __repr__(self) -> str:
        rows, prototypes = self.shape
        kind = "probabilities" if self.scale is None else f"epsilon={1 / self.scale:g}"
        return f"Assignment({rows} x {prototypes}, {kind}, {self.dtype}, {self.device})"

    def dense(self) -> Tensor:
        """The (N, K) probabilities: float32 for half scores, else the scores' type."""
        if self.scale is None:
            assert self.values is not None
            return self.values.to(product_dtype(self.values))
        first, prototypes, name = self.unchanged()._operands()
        return evaluate(first, prototypes, self.scale, self.row, self.col, name)

    @property
    def _any(self) -> Tensor:
        held = self.values if self.values is not None else self.z
        assert held is not None
        return held

    def _operands(self) -> tuple[Tensor, Tensor | None, str]:
        first = self._any
        return first, self.prototypes, backend.select("sinkhorn", first.device, first.dtype)


def _held(scores: Scores) -> Assignment:
    """Scores, checked and detached; a pair becomes scores where those take no more bytes."""
    if isinstance(scores, Tensor):
        _check.matrix("scores", scores)
        return Assignment(values=_check.rows_contiguous(scores.detach()))
    if not (isinstance(scores, tuple | list) and len(scores) == 2):
        raise TypeError(
            f"scores must be a tensor (N, K) or a pair (z, prototypes), got {type(scores).__name__}"
        )
    z, prototypes = _check.autocast(*scores)
    _check.factors("z", z, "prototypes", prototypes)
    z = _check.rows_contiguous(z.detach())
    prototypes = _check.rows_contiguous(prototypes.detach())
    if is_no_larger(z, prototypes):
        return Assignment(values=full_precision(product, (z, prototypes)))
    return Assignment(z=z, prototypes=prototypes)

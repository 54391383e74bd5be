"""Soft cross-entropy from logits and from embeddings, forward and backward; temperature 0.1."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_fast.functional import Assignment, linear_soft_cross_entropy, soft_cross_entropy

from .cases import Bar, Case, Floor, Limit, Memory, Problem, Skip, full, nbytes, unit
from .pytest_cases import parametrize, run

TEMPERATURE = 0.1
EPSILON = 0.05
WIDTH = 64  # of the embeddings whose cosine similarities are the logits


def logits_and_targets(shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    rows, prototypes = shape
    logits = unit(rows, WIDTH, device) @ unit(prototypes, WIDTH, device).t()
    return [logits.to(dtype), torch.randn(rows, prototypes, device=device).softmax(1)]


def eager(logits: Tensor, targets: Tensor) -> Tensor:
    return -(targets * F.log_softmax(full(logits) / TEMPERATURE, 1)).sum(1).mean()


def ours(logits: Tensor, targets: Tensor) -> Tensor:
    return soft_cross_entropy(logits, targets, temperature=TEMPERATURE)


def reads_and_write(logits: Tensor, targets: Tensor) -> Floor:
    """Forward reads both, backward reads both and writes the gradient."""
    read = nbytes(logits, targets)
    return Floor("4 reads + 1 write", read, read + nbytes(logits))


def embeddings_and_targets(shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """x (N, D), weight (K, D), probabilities (N, K)."""
    rows, prototypes, width = shape
    x, weight = unit(rows, width, device), unit(prototypes, width, device)
    targets = torch.randn(rows, prototypes, device=device).softmax(1)
    return [x.to(dtype), weight.to(dtype), targets.to(dtype)]


def linear_eager(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return eager(x @ weight.t(), targets)


def linear_ours(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return linear_soft_cross_entropy(x, weight, targets, temperature=TEMPERATURE)


def linear_products(x: Tensor, weight: Tensor, *_: Tensor) -> Floor:
    """A product forward and two backward; one more on a GPU, where the logits are not kept."""
    (rows, width), prototypes = x.shape, weight.shape[0]
    again = ((rows, width, prototypes),) if x.is_cuda else ()
    return Floor(
        f"{3 + len(again)} products",
        ((rows, width, prototypes),),
        (*again, (rows, prototypes, width), (prototypes, rows, width)),
    )


def bounded(x: Tensor, weight: Tensor, *_: Tensor) -> Memory:
    """No N x K matrix on a GPU; on a CPU, a cache of the bytes of inputs and gradients."""
    rows, prototypes = x.shape[0], weight.shape[0]
    if x.is_cuda:
        return Memory("no N x K matrix", "peak", rows * prototypes * x.element_size())
    statistics = 64 * (rows + prototypes)
    return Memory("bounded cache", "kept", 2 * nbytes(x, weight) + statistics)


def torch_linear_cross_entropy():
    options = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    if not hasattr(F, "linear_cross_entropy") or options is None:
        raise Skip(f"torch {torch.__version__} has no chunked linear_cross_entropy: needs 2.15")
    return lambda x, weight, targets: F.linear_cross_entropy(
        x / TEMPERATURE, weight, targets, options=options()
    )


def embeddings_and_teacher(shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """x (N, D), weight (K, D), the teacher's z (N, D), prototypes (K, D), row potential (N,)."""
    rows, prototypes, width = shape
    x, weight = unit(rows, width, device).to(dtype), unit(prototypes, width, device).to(dtype)
    z = unit(rows, width, device).to(dtype)
    row = Assignment.softmax((z, weight), temperature=EPSILON).row
    return [x, weight, z, weight.clone(), row]


def teacher_eager(x: Tensor, weight: Tensor, z: Tensor, prototypes: Tensor, row: Tensor) -> Tensor:
    targets = torch.exp(full(z @ prototypes.t()) / EPSILON + row.to(full(z).dtype)[:, None])
    return eager(x @ weight.t(), targets)


def teacher_ours(x: Tensor, weight: Tensor, z: Tensor, prototypes: Tensor, row: Tensor) -> Tensor:
    targets = Assignment(z=z, prototypes=prototypes, scale=1 / EPSILON, row=row)
    return linear_soft_cross_entropy(x, weight, targets, temperature=TEMPERATURE)


def teacher_products(x: Tensor, weight: Tensor, *_: Tensor) -> Floor:
    """The teacher's scores once more in each direction: nothing of size N x K exists."""
    floor = linear_products(x, weight)
    scores = floor.forward[0]
    backward = (scores, *floor.backward)
    return Floor(f"{2 + len(backward)} products", (scores, scores), backward)


LOGITS = Problem(
    "cross_entropy",
    "soft_cross_entropy",
    logits_and_targets,
    eager,
    ours,
    reads_and_write,
    differentiable=(0,),
)
LINEAR = Problem(
    "cross_entropy",
    "linear_soft_cross_entropy",
    embeddings_and_targets,
    linear_eager,
    linear_ours,
    linear_products,
    differentiable=(0, 1),
    memory=bounded,
    rivals=(("torch linear_cross_entropy", torch_linear_cross_entropy),),
)
TEACHER = Problem(
    "cross_entropy",
    "linear_soft_cross_entropy, teacher factored",
    embeddings_and_teacher,
    teacher_eager,
    teacher_ours,
    teacher_products,
    differentiable=(0, 1),
    memory=bounded,
)

CASES = [
    Case(LOGITS, (4096, 3000), bar=Bar(2.2)),
    Case(LOGITS, (1024, 1000), bar=Bar(1)),
    Case(LOGITS, (256, 256), bar=Bar(1)),
    Case(LOGITS, (64, 128), bar=Bar(1.5)),
    Case(LOGITS, (16, 32), bar=Bar(1)),
    Case(LOGITS, (8, 16), bar=Bar(1)),
    Case(LINEAR, (1024, 3000, 128), bar=Bar(1)),
    Case(LINEAR, (256, 65536, 128), bar=Bar(1)),
]
for _dtype in ("bfloat16", "float32"):
    _gpu = {"dtype": _dtype, "device": "cuda", "bar": Bar(1), "limit": Limit(1 / 0.85)}
    CASES += [Case(LOGITS, (32768, 3000), **_gpu), Case(LOGITS, (4096, 65536), **_gpu)]
CASES += [
    Case(problem, (8192, 65536, 256), "bfloat16", "cuda", Bar(1), Limit(1 / 0.6))
    for problem in (LINEAR, TEACHER)
]

pytest_generate_tests = parametrize(CASES)


def test_cross_entropy(benchmark, case, contender):
    run(benchmark, case, contender)

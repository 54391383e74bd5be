"""NT-Xent, in-batch InfoNCE, InfoNCE against a queue, ProtoNCE: eager, `torch.compile`, Lightly."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_fast.functional import info_nce, nt_xent, proto_nce
from ssl_fast.functional.contrastive import queue_info_nce

from .cases import Bar, Case, Floor, Limit, Memory, Problem, full, lightly, nbytes, unit
from .pytest_cases import parametrize, run

TEMPERATURE = 0.2


def two_views(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    return [torch.randn(shape, device=device).to(dtype) for _ in range(2)]


def nt_xent_eager(z0: Tensor, z1: Tensor) -> Tensor:
    z = F.normalize(torch.cat([z0, z1]), dim=1)
    logits = full(z @ z.t()) / TEMPERATURE
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    labels = torch.arange(len(z), device=z.device).roll(len(z0))
    return F.cross_entropy(logits.masked_fill(itself, -torch.inf), labels)


def nt_xent_ours(z0: Tensor, z1: Tensor) -> Tensor:
    return nt_xent(z0, z1, temperature=TEMPERATURE)


def triangle(z0: Tensor, _: Tensor) -> Floor:
    """Half a product forward; half a one to form the tiles again and a whole one backward."""
    rows, width = 2 * z0.shape[0], z0.shape[1]
    half = (rows // 2, width, rows)
    return Floor("2 products", (half,), (half, (rows, rows, width)))


def some_numbers_a_row(z0: Tensor, _: Tensor) -> Memory:
    """Lightly keeps 74 times its input at 4096 x 128; a fiftieth of that is the bound.

    Small batches keep their gradients.
    """
    rows = 2 * z0.shape[0]
    if rows <= 1024:
        return Memory("gradients", "kept", 2 * nbytes(z0) + 1)
    return Memory("1/50 of the similarities", "kept", 4 * rows * rows // 50)


def info_nce_eager(query: Tensor, key: Tensor) -> Tensor:
    query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
    labels = torch.arange(len(query), device=query.device)
    return F.cross_entropy(full(query @ key.t()) / TEMPERATURE, labels)


def info_nce_ours(query: Tensor, key: Tensor) -> Tensor:
    return info_nce(query, key, temperature=TEMPERATURE)


def in_batch(query: Tensor, key: Tensor) -> Floor:
    (rows, width), columns = query.shape, key.shape[0]
    return Floor("3 products", ((rows, width, columns),), ((rows, columns, width),) * 2)


def query_key_queue(shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Query and key (N, D), a queue (K, D) of unit rows."""
    rows, length, width = shape
    views = two_views((rows, width), dtype, device)
    return [*views, unit(length, width, device).to(dtype)]


def queue_eager(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
    """MoCo's listing."""
    query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
    positive = (query * key).sum(1, keepdim=True)
    logits = full(torch.cat([positive, query @ queue.t()], 1)) / TEMPERATURE
    labels = torch.zeros(len(query), dtype=torch.long, device=query.device)
    return F.cross_entropy(logits, labels)


def queue_ours(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
    return queue_info_nce(query, key, queue, TEMPERATURE)


def two_products(query: Tensor, key: Tensor, queue: Tensor) -> Floor:
    """The similarities and the query's gradient, both in the forward visit."""
    (rows, width), length = query.shape, queue.shape[0]
    return Floor("2 products", ((rows, width, length), (rows, length, width)), ())


def beyond_the_queue(query: Tensor, key: Tensor, queue: Tensor) -> Memory:
    return Memory("beyond the queue", "kept", 2_000_000)


def prototypes(shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """z (N, D), centroids (K, D), concentrations (K,), index (N,)."""
    rows, count, width = shape
    index = torch.arange(rows, device=device) * 7919 % count
    concentration = torch.rand(count, device=device) * 0.1 + 0.1
    return [unit(rows, width, device).to(dtype), unit(count, width, device).to(dtype),
            concentration, index]  # fmt: skip


def proto_eager(z: Tensor, centroids: Tensor, concentration: Tensor, index: Tensor) -> Tensor:
    return F.cross_entropy(full(z @ centroids.t()) / concentration, index)


def proto_floor(z: Tensor, centroids: Tensor, *_: Tensor) -> Floor:
    return two_products(z, z, centroids)


def gradient_and_numbers(z: Tensor, centroids: Tensor, *_: Tensor) -> Memory:
    return Memory("bounded", "kept", 4 * nbytes(z) + 16 * centroids.shape[0])


NT_XENT = Problem(
    "contrastive",
    "NT-Xent",
    two_views,
    nt_xent_eager,
    nt_xent_ours,
    triangle,
    differentiable=(0, 1),
    memory=some_numbers_a_row,
    rivals=(("lightly", lightly("NTXentLoss", temperature=TEMPERATURE)),),
)
IN_BATCH = Problem(
    "contrastive",
    "InfoNCE in the batch",
    two_views,
    info_nce_eager,
    info_nce_ours,
    in_batch,
    differentiable=(0, 1),
)
QUEUE = Problem(
    "contrastive",
    "InfoNCE against a queue",
    query_key_queue,
    queue_eager,
    queue_ours,
    two_products,
    differentiable=(0,),
    memory=beyond_the_queue,
)
PROTO = Problem(
    "contrastive",
    "ProtoNCE",
    prototypes,
    proto_eager,
    proto_nce,
    proto_floor,
    differentiable=(0,),
    memory=gradient_and_numbers,
)

CASES = [
    Case(NT_XENT, (1024, 128), bar=Bar(3, "Lightly")),
    Case(NT_XENT, (4096, 128), bar=Bar(5.5, "Lightly")),
    Case(NT_XENT, (256, 128), bar=Bar(1, "Lightly")),
    Case(IN_BATCH, (1024, 128), bar=Bar(1)),
    Case(IN_BATCH, (256, 128), bar=Bar(1)),
    Case(QUEUE, (256, 65536, 128), bar=Bar(1), limit=Limit(1.3)),
    Case(QUEUE, (256, 4096, 128), bar=Bar(1)),
    Case(PROTO, (256, 10000, 128), bar=Bar(1)),
]
for _dtype in ("bfloat16", "float32"):
    CASES += [
        Case(NT_XENT, (8192, 128), _dtype, "cuda", Bar(3), Limit(1 / 0.6)),
        Case(QUEUE, (256, 65536, 128), _dtype, "cuda", Bar(3)),
    ]

pytest_generate_tests = parametrize(CASES)


def test_contrastive(benchmark, case, contender):
    run(benchmark, case, contender)

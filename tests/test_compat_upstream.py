"""What Lightly's own tests assert of its losses, asserted of ours; Lightly need not be there."""

import inspect
import math

import pytest
import torch
from checks import normal
from torch import Tensor

from ssl_fast.compat import lightly as ours
from ssl_fast.compat.lightly import msn_loss, pmsn_loss, vicreg_loss
from ssl_fast.compat.lightly.center import Center
from ssl_fast.functional._norms import normalized

GATHERING = [
    (getattr(ours, name), option)
    for name in ours.__all__
    for option in ("gather_distributed", "sinkhorn_gather_distributed")
    if isinstance(getattr(ours, name), type)
    and option in inspect.signature(getattr(ours, name)).parameters
]


@pytest.mark.parametrize(("cls", "option"), GATHERING)
@pytest.mark.parametrize("available", [True, False])
def test_gathering_asks_once_whether_it_can(cls, option, available, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(torch.distributed, "is_available", lambda: asked.append(1) or available)
    arguments = (len,) if cls is ours.PMSNCustomLoss else ()
    if available:
        cls(*arguments, **{option: True})
    else:
        with pytest.raises(ValueError, match=option):
            cls(*arguments, **{option: True})
    # VICRegL holds a VICReg, which asks too.
    assert len(asked) == (2 if available and cls is ours.VICRegLLoss else 1)


def vicreg_in_pytorch(x: Tensor, y: Tensor) -> Tensor:
    terms = [vicreg_loss._hinge(z, 1e-4) / 2 for z in (x, y)]
    penalties = []
    for z in (x, y):
        z = z - z.mean(0)
        c = z.T @ z / (len(z) - 1)
        off = c.flatten()[:-1].view(len(c) - 1, len(c) + 1)[:, 1:].flatten()
        penalties.append(off.pow(2).sum().div(len(c)))
    invariance = torch.nn.functional.mse_loss(x, y)
    return 25.0 * invariance + 25.0 * (terms[0] + terms[1]) + (penalties[0] + penalties[1])


def test_vicreg_bit_for_bit() -> None:
    """Two samples of 32 features: the last bit of plain PyTorch, in all but rare cases."""
    pairs = [(normal(2, 32, seed=i), normal(2, 32, seed=100 + i)) for i in range(50)]
    same = [ours.VICRegLoss()(x, y).item() == vicreg_in_pytorch(x, y).item() for x, y in pairs]
    assert sum(same) >= 45


def test_vicregl_bit_for_bit() -> None:
    """The global loss with its own helpers, added up in Lightly's order."""
    views = [normal(2, 32, seed=i) for i in range(4)]
    criterion = ours.VICRegLLoss()
    loss = criterion._global_loss([(v, v) for v in views[:2]], [(v, v) for v in views[2:]])
    pairs = [(a, b) for a in views[:2] for b in views if a is not b]
    mean = torch.nn.functional.mse_loss
    invariance = sum((mean(a, b) for a, b in pairs), torch.zeros(1)) / len(pairs)
    variance = sum((vicreg_loss._hinge(v, 1e-4) for v in views), torch.zeros(1)) / 4
    covariance = sum((vicreg_loss._penalty(v) for v in views), torch.zeros(1)) / 4
    assert loss.item() == (25.0 * invariance + 25.0 * variance + covariance).item()


@pytest.mark.parametrize("cls", [ours.VICRegLoss, ours.TiCoLoss])
def test_assertions(cls) -> None:
    with pytest.raises(AssertionError, match="batch size > 1"):
        cls()(normal(1, 32), normal(1, 32))
    with pytest.raises(AssertionError, match="same shape"):
        cls()(normal(2, 32), normal(2, 16))


def test_tico_of_two_types_under_autocast() -> None:
    x, y = normal(5, 8).requires_grad_(), normal(5, 8, seed=1).bfloat16().requires_grad_()
    exact = ours.TiCoLoss()(x, y.float())
    with torch.autocast("cpu", torch.bfloat16):
        loss = ours.TiCoLoss()(x, y)
    loss.backward()
    assert loss.item() == exact.item() and y.grad is not None


def test_vicregl_refusals() -> None:
    views = [(normal(2, 8), normal(2, 3, 3, 4)) for _ in range(2)]
    grids = [normal(2, 3, 3, 2) for _ in range(2)]
    criterion = ours.VICRegLLoss()
    with pytest.raises(ValueError, match="global_view_features and global_view_grids must have"):
        criterion(views, grids[:1])
    with pytest.raises(ValueError, match=r"local_view_grids must have same length.* 2 and 1\."):
        criterion([], [], views, grids[:1])
    with pytest.raises(ValueError, match="both be set or None but found <class 'list'> and"):
        criterion([], [], views, None)


@pytest.mark.parametrize("rows", [1, 2, 19])
@pytest.mark.parametrize("columns", [1, 32])
def test_nt_xent_is_symmetric_at_negative_temperature(rows, columns) -> None:
    x, y = normal(rows, columns), normal(rows, columns, seed=1)
    loss = ours.NTXentLoss(temperature=-1.0)
    assert loss(x, y).item() == pytest.approx(loss(y, x).item(), abs=1e-6)
    with pytest.raises(ValueError, match="Illegal temperature"):
        ours.NTXentLoss(temperature=0.0)


def test_nt_xent_of_equal_rows() -> None:
    """log of the number of candidates, with and without a bank."""
    x = torch.tensor([[1.0, 2.0]]).repeat(4, 1).requires_grad_()
    assert ours.NTXentLoss()(x, x).item() == pytest.approx(math.log(7))
    banked = ours.NTXentLoss(memory_bank_size=(15, 2))
    for _ in range(5):
        loss = banked(x, x.detach())
    assert loss.item() == pytest.approx(math.log(16), abs=1e-6)


def test_bank_at_its_end() -> None:
    """Lightly's cut, and with strict=False a ring."""
    rows = [normal(4, 3, seed=i) for i in range(3)]
    unit = [normalized(x) for x in rows]
    for strict in (True, False):
        loss = ours.NTXentLoss(memory_bank_size=(6, 3), strict=strict)
        for x in rows[:2]:
            loss(x.clone().requires_grad_(), x)
        bank = loss.memory_bank.bank
        assert torch.allclose(bank[4:], unit[1][:2])
        assert torch.allclose(bank[:2], unit[0][:2] if strict else unit[1][2:])
        assert int(loss.memory_bank.bank_ptr) == (0 if strict else 2)
        before = bank.clone()
        loss(rows[2], rows[2])  # nothing requires a gradient: nothing is taken in
        assert torch.equal(loss.memory_bank.bank, before)
        assert not loss.state_dict()


@pytest.mark.parametrize("installed", [(1, 6), (1, 5), None])
def test_bank_of_one_number(installed, monkeypatch) -> None:
    monkeypatch.setattr("ssl_fast.compat.lightly.memory_bank.version", lambda: installed)
    if installed == (1, 6):
        with pytest.raises(ValueError, match="does not specify the feature dimension"):
            ours.NTXentLoss(memory_bank_size=64)
        return
    with pytest.warns(UserWarning, match="does not specify feature dimension"):
        loss = ours.NTXentLoss(memory_bank_size=64)
    loss(normal(5, 7), normal(5, 7, seed=1))
    assert loss.memory_bank.bank.shape == (64, 7)


@pytest.mark.parametrize(("x", "expected"), [
    ([[1.0]], 17.7275),
    ([[0.0, 1.0], [0.0, -1.0]], -math.log(2)),
    ([[0.0, 1.0], [1.0, 0.0]], -math.log(2) / 2),
    ([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [-1.0, -1.0]], 0.2674),
])  # fmt: skip
def test_koleo_values(x, expected) -> None:
    assert ours.KoLeoLoss()(torch.tensor(x)).item() == pytest.approx(expected, rel=1e-4)


def test_ibot_value_and_center() -> None:
    teacher = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    student = torch.tensor([[0.7, 0.8], [0.9, 1.0], [1.1, 1.2]])
    mask = torch.tensor([[[1, 0], [1, 0]], [[0, 0], [0, 1]], [[0, 0], [0, 0]]]).bool()
    criterion = ours.IBOTPatchLoss(2, teacher_temp=0.1, student_temp=0.2)
    assert criterion(teacher, student, mask).item() == pytest.approx(0.4057, rel=1e-4)
    assert torch.allclose(criterion.center.value, 0.1 * teacher.mean(0))


def test_dino() -> None:
    criterion, center = ours.DINOLoss(32), Center((1, 1, 32))
    x = torch.rand(2, 3, 32)
    criterion.update_center(x)
    center.update(x)
    assert torch.allclose(criterion.center, center.value)
    with pytest.raises(ValueError, match="at least two views"):
        criterion([x[0]], [x[1]])
    with pytest.raises(ValueError, match="Unknown mode 'median'"):
        ours.DINOLoss(32, center_mode="median")


@pytest.mark.parametrize("iterations", [0, 1, 2])
@pytest.mark.parametrize("crops", [0, 5])
def test_swav_of_unit_matrices(iterations, crops) -> None:
    criterion = ours.SwaVLoss(sinkhorn_iterations=iterations)
    views, low = [torch.eye(32)] * 2, [torch.eye(32)] * crops
    assert criterion(views, low).item() < 0.5
    assert criterion(views, low, [torch.eye(128, 32)] * 2).item() < 0.5
    assert criterion([torch.eye(32, 1)] * 2, [torch.eye(32, 1)] * crops).item() < 0.5


def test_msn_helpers_and_old_argument() -> None:
    p = torch.rand(8, 10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(msn_loss.sinkhorn(p, iterations=0), p)
    assert bool((msn_loss.sinkhorn(p) != p).all())
    soft, sharp = (msn_loss.sharpen(p, temperature=t) for t in (0.5, 0.1))
    assert torch.equal(soft.argmax(1), sharp.argmax(1))
    assert bool((soft.amax(1) < sharp.amax(1)).all())
    with pytest.warns(DeprecationWarning, match="me_max_weight"):
        assert ours.MSNLoss(me_max_weight=0.5).regularization_weight == 0.5
    with pytest.warns(DeprecationWarning, match="me_max_weight"):
        old = ours.MSNLoss(0.1, 3, 1.0, 0.5, True)  # as 1.5 had them
    assert old.regularization_weight == 0.5 and old.gather_distributed is True
    for wrong in ({"temperature": 0.0}, {"sinkhorn_iterations": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ours.MSNLoss(**wrong)


def test_msn_with_a_regularization_of_its_own() -> None:
    """A subclass may override it, as Lightly's PMSN does: it gets the mean, and gradients."""

    class Own(ours.MSNLoss):
        def regularization_loss(self, mean_anchor_probs: Tensor) -> Tensor:
            return (mean_anchor_probs.log() * power).sum()

    power = pmsn_loss._power_law_distribution(5, 0.25, torch.device("cpu"))
    inputs = [normal(n, 6, seed=n).requires_grad_() for n in (8, 4, 5)]
    losses, gradients = [], []
    for loss_fn, sign in ((Own(regularization_weight=2.0), -1), (ours.PMSNLoss(), 1)):
        base = ours.MSNLoss(regularization_weight=0)(*inputs)
        losses.append((loss_fn(*inputs) - base) * sign / (2.0 if sign < 0 else 1.0))
        gradients.append(torch.autograd.grad(losses[-1], [inputs[0], inputs[2]]))
    entropy = float((power * power.log()).sum())
    assert losses[0].item() + entropy == pytest.approx(losses[1].item(), abs=1e-5)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_pmsn_regularization() -> None:
    p = torch.tensor([0.1, 0.3, 0.6])
    weights = [k**-0.25 for k in (1, 2, 3)]
    prior = [w / sum(weights) for w in weights]
    expected = sum(q * math.log(q / float(x)) for q, x in zip(prior, p, strict=True))
    assert ours.PMSNLoss().regularization_loss(p).item() == pytest.approx(expected, rel=1e-5)


def test_mmcr_and_wmse_refusals() -> None:
    zeros = torch.zeros(3, 32, 128)
    assert ours.MMCRLoss()(zeros, zeros).item() == 0.0
    with pytest.raises(ValueError, match="lmda"):
        ours.MMCRLoss(lmda=-1)
    with pytest.raises(AssertionError):
        ours.MMCRLoss()(zeros, zeros[..., 1:])
    with pytest.raises(ValueError, match="w_size should be"):
        ours.WMSELoss(embedding_dim=2, w_size=2)
    with pytest.raises(RuntimeError, match="divisible by num_samples"):
        ours.WMSELoss(num_samples=3)(normal(5, 128))
    with pytest.raises(ValueError, match="two views"):
        ours.FroSSLLoss()([normal(8, 32)])


def test_symmetric_cosine() -> None:
    with pytest.warns(DeprecationWarning, match="NegativeCosineSimilarity"):
        loss = ours.SymNegCosineSimilarityLoss()
    z0, p0, z1, p1 = (normal(5, 8, seed=i).requires_grad_() for i in range(4))
    cosine = torch.nn.functional.cosine_similarity
    expected = -(cosine(p0, z1).mean() + cosine(p1, z0).mean()) / 2
    value = loss((z0, p0), (z1, p1))
    assert value.item() == pytest.approx(expected.item(), abs=1e-6)
    value.backward()
    assert z0.grad is None and p0.grad is not None


def test_what_pytorch_would_broadcast_or_drop() -> None:
    """Batches that do not fit one another, or hold nothing, are refused and named."""
    one, six, four = normal(1, 8), normal(6, 8), normal(4, 8)
    scores = [normal(4, 8, seed=i) for i in range(2)]
    refused = [
        (lambda: ours.NTXentLoss()(one, six), r"same samples, got \(1, 8\) and \(6, 8\)"),
        (lambda: ours.DCLWLoss()(six, four), r"same samples, got \(6, 8\) and \(4, 8\)"),
        (lambda: ours.SwaVLoss()(scores, [], [six]), "each of the 2 high-resolution crops, got 1"),
        (lambda: ours.KoLeoLoss()(six[:0]), r"non-empty batch, got shape \(0, 8\)"),
        (
            lambda: ours.IBOTPatchLoss(8)(six[:0], six[:0], torch.zeros(2, 3, 3).bool()),
            "no patch is masked",
        ),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()


def test_options_that_lightly_takes() -> None:
    """No weight off the diagonal; views in one tensor."""
    z = torch.stack([normal(6, 4), normal(6, 4, seed=1)])
    a, b = ((v - v.mean(0)) / (v.var(0, correction=0) + 1e-5).sqrt() for v in z)
    expected = ((a * b).mean(0) - 1).square().sum()
    torch.testing.assert_close(ours.BarlowTwinsLoss(lambda_param=0.0)(*z), expected)
    assert torch.equal(ours.FroSSLLoss()(z), ours.FroSSLLoss()(list(z)))

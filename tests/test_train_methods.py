"""Every method of the driver: twenty steps on digits, refusals, and a resume in mid-epoch."""

import copy
import os
import signal

import pytest
import torch
import torch.nn.functional as F
from train_runs import small_run

for package in ("lightning", "torchvision", "sklearn", "timm", "jsonargparse", "rich"):
    pytest.importorskip(package, reason="the driver needs pip install ssl_fast[train]")

from ssl_fast import backend, losses  # noqa: E402
from ssl_fast.cli import main  # noqa: E402
from ssl_fast.train import callbacks, run  # noqa: E402
from ssl_fast.train.methods import METHODS  # noqa: E402
from ssl_fast.train.module import Pretraining  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch):
    """Without accuracies, tables and pictures, which take longer than these trainings."""
    monkeypatch.setattr(run, "finish", lambda *arguments: None)
    monkeypatch.setattr(callbacks.Monitor, "_accuracy", lambda *arguments: 0.0)


def train(folder, method, *more):
    return main(small_run(folder, method, *more))


def state(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("method", METHODS)
def test_twenty_steps(method, tmp_path):
    assert train(tmp_path, method, "--epochs", "1") == 0
    saved = state(tmp_path)
    assert saved["global_step"] == 22
    values = saved["state_dict"].values()
    assert all(torch.isfinite(v).all() for v in values)
    rows = saved["callbacks"]["Monitor"]["rows"]
    assert torch.isfinite(torch.tensor(rows[-1]["loss"]))


@pytest.mark.parametrize("method", ["ibot", "msn", "pmsn", "mae", "data2vec"])
def test_masked_methods_on_a_transformer(method, tmp_path):
    more = ("--epochs", "1", "--encoder", "vit-32/8", "--batch-size", "256")
    assert train(tmp_path, method, *more) == 0


GATHERED = ("--batch-size", "32", "--accumulate-grad-batches", "2")


@pytest.mark.parametrize(("method", "more"), [("swav", ()), ("pauc", ()), ("moco_v3", GATHERED)])
def test_ended_in_mid_epoch_and_resumed_is_bitwise_the_same(
    method, more, tmp_path, monkeypatch, capsys
):
    """SIGTERM at step 33 of 44, and a crash at step 40 of what is left."""

    old = METHODS[method].before_update

    def stop(at, action):
        def before_update(self, step):
            old(self, step)
            if step == at:
                action()

        monkeypatch.setattr(METHODS[method], "before_update", before_update)

    def crash():
        raise RuntimeError("power failure")

    expected = tmp_path / "whole"
    folder = tmp_path / "stopped"
    assert train(expected, method, "--epochs", "2", *more) == 0

    stop(33, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train(folder, method, "--epochs", "2", *more) == 2
    assert f"continue with: ssl-fast train --resume {folder}" in capsys.readouterr().err
    assert state(folder)["global_step"] == 34
    stop(40, crash)
    with pytest.raises(RuntimeError, match="power failure"):
        main(["train", "--resume", str(folder)])
    monkeypatch.setattr(METHODS[method], "before_update", old)
    assert main(["train", "--resume", str(folder)]) == 0

    one, other = state(expected), state(folder)
    assert other["global_step"] == 44
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
    rows = [
        [
            {k: v for k, v in row.items() if k != "seconds"}
            for row in s["callbacks"]["Monitor"]["rows"]
        ]
        for s in (one, other)
    ]
    assert rows[0] == rows[1]


def test_ended_inside_a_gathering_step(tmp_path, monkeypatch):
    """SIGTERM in the first of a step's two batches: batch norm sees none of them twice."""
    loss, calls = METHODS["moco_v3"].loss, 0

    def counted(self, batch):
        nonlocal calls
        calls += 1
        if calls == 2 * 33 + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, batch)

    command = ("--epochs", "2", *GATHERED)
    assert train(tmp_path / "whole", "moco_v3", *command) == 0
    monkeypatch.setattr(METHODS["moco_v3"], "loss", counted)
    assert train(tmp_path / "stopped", "moco_v3", *command) == 2
    assert calls == 2 * 34
    assert state(tmp_path / "stopped")["global_step"] == 34
    assert main(["train", "--resume", str(tmp_path / "stopped")]) == 0
    whole, stopped = (state(tmp_path / name)["state_dict"] for name in ("whole", "stopped"))
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--set epochs", "--set takes KEY=VALUE, such as epochs=5, got 'epochs'"),
        ("--set epoch=3", "Did you mean --epochs?"),
        ("--method resa --prior power_law", "resa has no --prior; these have one"),
        ("--method dino --prior power_law --dino.centering mean", 'centering="sinkhorn"'),
        ("--method swav --prior nowhere.txt", "is no file"),
        ("--method swav --prior class --swav.prototypes 15", "try 10"),
        ("--method pmsn --prior-order sorted", "sorted is for swav, dino and ibot"),
        ("--method msn --msn.patch-drop 1", "patch_drop must be at least 0 and below 1"),
        ("--method msn --msn.prototypes 1", "prototypes must be at least 2"),
        ("--method ibot --ibot.mask-low 0.9", "mask_low <= mask_high"),
        ("--method dino --dino.momentum 2", "between 0 and 1"),
        ("--method mae --mae.mask-share 1", "mask_share must lie between 0 and 1, got 1"),
        (
            "--method mae --mae.decoder-heads 3",
            "width that its heads divide, got 2 blocks of width",
        ),
        ("--method mae --mae.decoder-dim 6 --mae.decoder-heads 1", "multiple of 4, got 6"),
        ("--method mae --encoder vit-64/32", "2 patches or more"),
        ("--method data2vec --data2vec.top-blocks 5", "1 to the encoder's 4, got 5"),
        ("--method data2vec --data2vec.mask-share 0.001", "one of 8 x 8 patches"),
        ("--method data2vec --data2vec.beta -1", "beta must be at least 0"),
        ("--method swa", "Did you mean 'swav'?"),
        ("--method swav --swav.prototype 5", "Did you mean --swav.prototypes?"),
        ("--method wmse --batch-size 100", "must be a multiple of it, such as 64"),
        ("--method wmse --wmse.embedding-dim 64", "must be above embedding_dim 64"),
        ("--method cw_rgp --batch-size 256", "fewer groups, or a larger embedding_dim"),
        ("--method simclr --batch-size 1", "at least 2"),
        ("--method moco_v2 --moco-v2.queue-length 0", "queue_length must be at least 1"),
        ("--method simclr --simclr.temperature 0", "temperature must be"),
        ("--method pcl --pcl.clusters [1]", "at least 2"),
        ("--method pcl --pcl.clusters [2000]", "2000 clusters of 1437 images"),
        ("--method barlow", "Did you mean 'barlow_twins'?"),
        ("--clip -1", "at least 0"),
        ("--accumulate-grad-batches 0", "accumulate_grad_batches must be positive"),
        (
            "--accumulate-grad-batches 30",
            "64 times accumulate_grad_batches 30 is more than the 1437 training images of digits",
        ),
        ("--accelerator cpu --loss-backend triton", "--loss-backend triton: Triton runs on cuda"),
        ("--loss-backend eager", "reference"),
        ("--optimizer adamm", "adamw"),
        ("--uniformity w3", "w2"),
    ],
)
def test_mistakes_are_explained(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments.split()]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not list(tmp_path.iterdir()), "a refused run leaves no folder behind"


def test_gradients_gather_over_batches(tmp_path, monkeypatch):
    """A step is the mean of two batches; the momentum network moves once a step."""
    losses, gradients, old = [], [], Pretraining.training_step

    def step(self, *arguments):
        losses.append(old(self, *arguments))
        weight = next(self.method.online.parameters())
        gradients.append(torch.autograd.grad(losses[-1], weight, retain_graph=True)[0])
        return losses[-1]

    def before_update(self, step):
        mean = (gradients[-2] + gradients[-1]) / 2
        torch.testing.assert_close(next(self.online.parameters()).grad, mean)

    monkeypatch.setattr(Pretraining, "training_step", step)
    monkeypatch.setattr(METHODS["moco_v3"], "before_update", before_update)
    assert train(tmp_path, "moco_v3", "--epochs", "1", *GATHERED) == 0
    saved = state(tmp_path)
    assert (len(losses), saved["global_step"]) == (44, 22)
    assert saved["state_dict"]["method.target.n_averaged"] == 22
    (row,) = saved["callbacks"]["Monitor"]["rows"]
    assert row["loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


@pytest.mark.slow
def test_compiled_encoders_train_alike(tmp_path, monkeypatch):
    compiled, old = [], torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, *rest: (compiled.append(self), old(self, *rest))
    )
    rows = []
    for choice in ("false", "true"):
        more = ("--epochs", "1", "--lr", "1e-4", "--compile", choice)
        assert train(tmp_path / choice, "byol", *more) == 0
        rows += state(tmp_path / choice)["callbacks"]["Monitor"]["rows"]
    assert [type(module).__name__ for module in compiled] == ["Encoder", "Encoder"]
    assert rows[1]["loss"] == pytest.approx(rows[0]["loss"], rel=1e-3)


@pytest.mark.parametrize("method", ["simclr", "byol", "msn"])
def test_the_auxiliary_term(method, tmp_path, monkeypatch):
    """Its weight times W2 is what it adds to the method's loss."""
    from ssl_fast.functional import wasserstein_uniformity

    found = []
    old_step, old_loss = Pretraining.training_step, METHODS[method].loss

    def loss(self, batch):
        out = old_loss(self, batch)
        z = [F.normalize(view) for view in out.projections[:2]]
        found.append([out.loss.item(), wasserstein_uniformity(torch.cat(z)).item()])
        return out

    def step(self, *arguments):
        total = old_step(self, *arguments)
        found[-1].append(total.item())
        return total

    monkeypatch.setattr(METHODS[method], "loss", loss)
    monkeypatch.setattr(Pretraining, "training_step", step)
    more = ("--uniformity", "w2", "--uniformity-weight", "5", "--batch-size", "512")
    assert train(tmp_path, method, "--epochs", "4", *more) == 0
    weights = [(total - alone) / w2 for alone, w2, total in found]
    assert weights == pytest.approx([3.75] * 2 + [2.5] * 2 + [1.25] * 2 + [0.0] * 2, abs=1e-4)


NO_KERNELS = backend.why_not("native", "cpu", torch.float32)
with_kernels = pytest.mark.skipif(NO_KERNELS is not None, reason=str(NO_KERNELS))


@with_kernels
@pytest.mark.parametrize("method", ["simclr", "swav", "vicreg", "msn"])
def test_both_backends_give_the_same_curve(method, tmp_path, monkeypatch):
    """At a tenth of the preset's rate, at which training multiplies roundings tenfold a step."""
    old, found, present = Pretraining.training_step, {}, backend.get_backend()

    def step(self, *arguments):
        loss = old(self, *arguments)
        values.append(loss.item())
        return loss

    monkeypatch.setattr(Pretraining, "training_step", step)
    for choice in ("native", "reference"):
        values = found[choice] = []
        more = ("--batch-size", "128", "--epochs", "1", "--lr", "2e-4", "--loss-backend", choice)
        with backend.trace() as ran:
            assert train(tmp_path / choice, method, *more) == 0
        assert {name for _, name in ran} == {choice}
        assert backend.get_backend() == present, "the choice ends with the run"
    assert len(found["native"]) == 11
    assert found["native"] == pytest.approx(found["reference"], rel=1e-4)


@with_kernels
@pytest.mark.slow
@pytest.mark.parametrize("method", [n for n, m in METHODS.items() if hasattr(losses, m.loss_class)])
def test_each_loss_of_forty_steps_is_plain_pytorchs(method, tmp_path, monkeypatch):
    """A copy of the criterion as it was, queue and generator included, repeats each call."""
    found, twins = [], {}

    def before(criterion, *_):
        twins[criterion] = copy.deepcopy(criterion), torch.get_rng_state()

    def after(criterion, arguments, options, loss):
        twin, state = twins[criterion]
        with torch.random.fork_rng([]), torch.no_grad(), backend.set_backend("reference"):
            torch.set_rng_state(state)
            found.append((loss.item(), twin.forward(*arguments, **options).item()))

    def build(*arguments):
        built = old(*arguments)
        for module in built.modules():
            if type(module).__name__ in dir(losses):
                module.register_forward_pre_hook(before)
                module.register_forward_hook(after, with_kwargs=True)
        return built

    old = run.build_method
    monkeypatch.setattr(run, "build_method", build)
    more = ("--epochs", "2", "--loss-backend", "native")
    assert train(tmp_path, method, *more) == 0
    assert len(found) >= 44
    ours, plain = zip(*found, strict=True)
    assert ours == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("order", ["fixed", "sorted"])
def test_a_prior_reaches_the_loss(order, tmp_path):
    more = ("--prior", "power_law", "--prior-exponent", "1", "--prior-order", order)
    assert train(tmp_path, "swav", "--epochs", "1", *more) == 0


def test_help_of_a_method(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--method", "pmsn", "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for option in ("--pmsn.prototypes", "--pmsn.focal-views", "--prior-exponent", "--uniformity"):
        assert option in text
    assert "default: power_law" in text, "the method's recipe"

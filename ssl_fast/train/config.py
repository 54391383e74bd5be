"""The options of `ssl-fast train`: defaults, presets, command line, YAML files."""

import argparse
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, Namespace

from .errors import UsageError
from .methods import find_method

PRESETS = Path(__file__).parent / "presets"
PUBLISHED = sorted(path.stem for path in PRESETS.glob("*-*.yaml"))  # what --config has names for
EXAMPLE = """\
Underscores and dashes are the same in option names. Examples:
  ssl-fast train --method resa --data digits
  ssl-fast train --method resa --data digits --epochs 5 --resa.temperature 0.2 --run-dir runs/try
  ssl-fast train --method pmsn --prior power_law --prior-exponent 0.5 --encoder vit-64/4
  ssl-fast train --method simclr --uniformity w2 --data cifar10 --data-dir data
  ssl-fast train --config wasserstein-byol --data-dir data --set epochs=100 --set seed=1
  ssl-fast train --config runs/try/config.yaml --seed 1 --run-dir runs/try-seed1
  ssl-fast train --resume runs/try
"""


@dataclass
class TrainOptions:
    """Options of every method.

    Args:
        method: what to train with; `ssl-fast methods` lists them.
        data: digits (comes with scikit-learn), cifar10, cifar100, stl10, inaturalist or
            imagefolder.
        data_dir: folder of the data sets that are not digits.
        corrupt: photographs that cannot be read: fail stops at the first; skip looks for them
            before the training, names them and leaves them out.
        long_tail: of the training set: imbalance keeps ever fewer images of each class, evenly in
            logs, as CIFAR100-LT; power_law 1 / k^exponent of class k. Test sets stay whole.
        imbalance_factor: of imbalance, images of the first class for each of the last.
        tail_exponent: of power_law.
        run_dir: folder for everything that the run writes; by default runs/METHOD-DATA-TIME.
        encoder: small-W (four residual blocks of width W to 8W), resnet18, resnet34, resnet50 (and
            with -pad2, the stem for small images as solo-learn pads it), or vit-W/P (timm's,
            patches of P pixels; width W with four blocks, or tiny, small, base, large).
        compile: the encoders, by torch.compile.
        image_size: side of the views in pixels; 0 takes the data set's.
        augmentation: of photographs, a recipe by its source's name: symmetric, symmetric_weak,
            asymmetric, vicreg, wmse, reconstruction (solo-learn's), wasserstein, align_uniform,
            moco, byol, msn, mae or resa. Digits have one of their own.
        augment_on: where photographs' colours are changed: workers (each image by torchvision,
            while the network is at work) or device (a batch at once by kornia, where workers are
            too slow); crops are the workers' in both.
        epochs: passes over the training images.
        batch_size: images that meet in a loss, all processes together.
        accumulate_grad_batches: how many batches' mean gradient makes a step; momentum networks
            and schedules move once a step, queues and batch statistics with every batch.
        sampler: which images make a batch: epoch (each once an epoch), class_balanced (many
            classes, equally many images of each), class_imbalanced (few classes), inverse_sqrt
            (a class of D images with probability proportional to the root of D).
        classes_per_batch: of class_balanced, where 0 is as many as divide the batch, and of
            class_imbalanced, where 0 is 2.
        optimizer: sgd, lars (timm's), adam or adamw.
        lr: peak learning rate, at this batch size.
        lr_undecayed: that of parameters without weight decay, such as biases and norm layers
            where decay_norms is false; 0 is lr.
        sgd_momentum: of SGD and LARS.
        lars_trust: LARS's trust coefficient.
        lars_clip: whether LARS's rate of a layer is at most lr.
        weight_decay: at the start.
        weight_decay_end: at the end, reached along a cosine; null keeps it constant.
        decay_norms: weight decay, and LARS's trust ratio, for biases and norm layers too.
        clip: largest norm of all gradients together; 0 is none.
        warmup_epochs: of linear warm-up; a cosine follows.
        lr_floor: where the cosine ends, as a share of lr.
        prior: how often each prototype is wanted, in methods that have prototypes: uniform,
            power_law, class (the classes' shares), or a file of K numbers.
        prior_exponent: of power_law, 1 / k^exponent.
        prior_order: fixed, or sorted onto the clusters as they are now.
        uniformity: w2 adds the Wasserstein uniformity of both views' normalised projections.
        uniformity_weight: of that term.
        uniformity_decay: linear lowers the weight epoch by epoch, to 0 in the last.
        loss_backend: what computes the losses: native, triton, reference (plain PyTorch: the same
            curve, to see the time saved) or auto, which leaves it to SSL_FAST_BACKEND and device.
        seed: of data, augmentation and weights.
        eval_every: epochs between two k-nn accuracies.
        eval_limit: images of each set used for them while training; the end uses all.
        workers: processes that load photographs.
        threads: of PyTorch and scikit-learn on the CPU; 0 leaves the choice to them.
        accelerator: Lightning's.
        devices: how many, Lightning's.
        num_nodes: how many machines, Lightning's.
        precision: Lightning's: 32-true, bf16-mixed, 16-mixed.
        progress: a bar; off prints a line per evaluation; auto takes the bar on a terminal.
    """

    method: str = "resa"
    data: str = "digits"
    data_dir: str = "data"
    corrupt: Literal["fail", "skip"] = "fail"
    long_tail: Literal["none", "imbalance", "power_law"] = "none"
    imbalance_factor: float = 20.0
    tail_exponent: float = 0.5
    run_dir: str | None = None
    encoder: str = "resnet18"
    compile: bool = False
    image_size: int = 0
    augmentation: str = "resa"
    augment_on: Literal["workers", "device"] = "workers"
    epochs: int = 200
    batch_size: int = 256
    accumulate_grad_batches: int = 1
    sampler: str = "epoch"
    classes_per_batch: int = 0
    optimizer: Literal["sgd", "lars", "adam", "adamw"] = "sgd"
    lr: float = 0.3
    lr_undecayed: float = 0.0
    sgd_momentum: float = 0.9
    lars_trust: float = 0.02
    lars_clip: bool = False
    weight_decay: float = 1e-4
    weight_decay_end: float | None = None
    decay_norms: bool = True
    clip: float = 0.0
    warmup_epochs: float = 2
    lr_floor: float = 0.1
    prior: str = "uniform"
    prior_exponent: float = 0.25
    prior_order: Literal["fixed", "sorted"] = "fixed"
    uniformity: Literal["none", "w2"] = "none"
    uniformity_weight: float = 0.2
    uniformity_decay: Literal["linear", "constant"] = "linear"
    loss_backend: Literal["auto", "native", "triton", "reference"] = "auto"
    seed: int = 0
    eval_every: int = 1
    eval_limit: int = 5000
    workers: int = 4
    threads: int = 0
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    progress: Literal["auto", "on", "off"] = "auto"


class Help(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside the options; the examples as they are written."""


class Parser(ArgumentParser):
    """Takes --batch-size for batch_size, and prints it so."""

    def error(self, message, ex=None):
        wrong = re.search(r"unrecognized arguments: (--[\w.]+)", message)
        known = [name for action in self._actions for name in action.option_strings]
        close = difflib.get_close_matches(wrong[1], known, n=1) if wrong else []
        raise UsageError(_dashed(message + (f". Did you mean {close[0]}?" if close else "")))

    def parse_args(self, args=None, *rest, **more):
        return super().parse_args([_underscored(arg) for arg in args or []], *rest, **more)

    def format_help(self, *args, **kwargs):
        return _dashed(super().format_help(*args, **kwargs))


def build_parser(method: str, data: str) -> Parser:
    """Defaults are those of this method on this data, so that --help shows them."""
    parser = Parser(
        prog="ssl-fast train",
        description="Train an encoder, measure it and draw it, all in one run folder.",
        epilog=EXAMPLE,
        formatter_class=Help,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        action=ActionConfigFile,
        help=f"YAML file of options, or the name of a published one: {', '.join(PUBLISHED)}",
    )
    parser.add_argument(
        "--set", metavar="KEY=VALUE", help="--KEY VALUE, as scripts write it; may be repeated"
    )
    parser.add_argument("--resume", metavar="RUN_DIR", help="continue a run that was interrupted")
    parser.add_class_arguments(TrainOptions, None)
    parser.add_class_arguments(find_method(method), method, skip={"encoder", "prior"})
    parser.set_defaults({"method": method, "data": data, **preset(method, data)})
    return parser


def preset(method: str, data: str) -> dict[str, Any]:
    """The method's recipe, then presets/DATA.yaml: options, and below `methods` this method's."""
    path = PRESETS / f"{data}.yaml"
    values = yaml.safe_load(path.read_text()) if path.exists() else {}
    special = values.pop("methods", {}).get(method, {})
    return find_method(method).recipe | values | special


def parse(argv: Sequence[str]) -> tuple[Parser, Namespace]:
    """Method and data are looked up first: the other options and defaults depend on them."""
    argv = _with_paths(_without_set(argv))
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--config")
    peek.add_argument("--method")
    peek.add_argument("--data")
    given = vars(peek.parse_known_args(argv)[0])
    file = _read_yaml(Path(given["config"])) if given["config"] else {}
    method, data = (
        given[name] or file.get(name) or getattr(TrainOptions, name) for name in ("method", "data")
    )
    if file.get("set"):
        raise UsageError("set is for the command line: a file holds the options themselves")
    parser = build_parser(method, data)
    return parser, parser.parse_args(argv)


def options_of(config: Namespace) -> tuple[TrainOptions, dict[str, Any]]:
    """The driver's options, and the method's."""
    fields = TrainOptions.__dataclass_fields__
    own = config[config.method].as_dict() if config.method in config else {}
    return TrainOptions(**{name: config[name] for name in fields}), own


def check(options: TrainOptions) -> None:
    positive = ("epochs", "batch_size", "lr", "eval_every", "devices", "num_nodes")
    for name in (*positive, "accumulate_grad_batches"):
        if not getattr(options, name) > 0:
            raise UsageError(f"{name} must be positive, got {getattr(options, name)}")
    for name in ("clip", "uniformity_weight", "lr_undecayed"):
        if not getattr(options, name) >= 0:
            raise UsageError(f"{name} must be at least 0, got {getattr(options, name)}")
    if not options.imbalance_factor >= 1:
        raise UsageError(f"imbalance_factor must be at least 1, got {options.imbalance_factor}")
    if not options.tail_exponent >= 0:
        raise UsageError(f"tail_exponent must be at least 0, got {options.tail_exponent}")
    processes = options.devices * options.num_nodes
    if options.batch_size % processes or options.batch_size // processes < 2:
        raise UsageError(
            f"batch_size {options.batch_size} is shared by {processes} processes: it must be a "
            f"multiple of {processes} and at least {2 * processes}"
        )


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"no configuration file {path}")
    values = yaml.safe_load(path.read_text())
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds no `option: value` lines")
    return values


def _without_set(argv: Sequence[str]) -> list[str]:
    """`--set key=value`, which is `--key value`."""
    out: list[str] = []
    given = iter(argv)
    for arg in given:
        if arg == "--set":
            arg = f"--set={next(given, '')}"
        if arg.startswith("--set="):
            key, equals, value = arg.removeprefix("--set=").partition("=")
            if not key or not equals:
                raise UsageError(f"--set takes KEY=VALUE, such as epochs=5, got {key!r}")
            arg = f"--{key}={value}"
        out.append(arg)
    return out


def _with_paths(argv: Sequence[str]) -> list[str]:
    """Published configurations that --config names, by their paths."""
    out: list[str] = []
    for arg in argv:
        option, equals, name = arg.rpartition("=")
        if name in PUBLISHED and (option or (out or [""])[-1]) == "--config":
            arg = f"{option}{equals}{PRESETS / name}.yaml"
        out.append(arg)
    return out


def _dashed(text: str) -> str:
    return re.sub(r"--\w[\w.]*", lambda name: name[0].replace("_", "-"), text)


def _underscored(arg: str) -> str:
    name, equals, value = arg.partition("=")
    if name.startswith("--"):
        name = "--" + name[2:].replace("-", "_")
    return name + equals + value

"""One run: folder, networks, training, measurement, pictures."""

import inspect
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from threadpoolctl import threadpool_limits
from torch import nn

from ..backend import get_backend, select, set_backend, why_not
from ..bench import machine
from . import data, evaluate, export, report
from .callbacks import Monitor, ProgressBar, SaveOnTerm, checkpoint
from .config import TrainOptions, check, options_of, parse
from .corrupt import CorruptImage
from .cost import Cost
from .errors import Interrupted, UsageError
from .files import AtomicCheckpointIO, is_unused, write_text
from .labels import labels_of
from .longtail import LongTail, cut
from .methods import METHODS, Method, find_method
from .methods.base import Encodings
from .models import AnyEncoder, build_encoder
from .module import Pretraining
from .photos import kornia
from .prior import Prior
from .random import derive_seed
from .samplers import build_order

FOLDER_VARIABLE = "SSL_FAST_RUN_DIR"  # tells the processes that Lightning starts which folder it is
T = TypeVar("T")


def main(argv: list[str]) -> int:
    parser, config = parse(argv)
    if config.resume:
        if argv not in (["--resume", config.resume], [f"--resume={config.resume}"]):
            raise UsageError("--resume takes every other option from the run: give it alone")
        folder = Path(config.resume)
        if not (folder / "config.yaml").is_file():
            raise UsageError(f"{folder} holds no config.yaml, so there is no run to resume")
        parser, config = parse(["--config", str(folder / "config.yaml")])
        options, own = options_of(config)
    else:
        options, own = options_of(config)
        folder = _new_folder(options)
    config.run_dir = str(folder)
    for where in ("config", "resume", "set"):  # from where options came
        del config[where]
    train(folder, options, own, parser.dump(config))
    return 0


def train(
    folder: Path, options: TrainOptions, method_options: dict[str, Any], resolved: str
) -> None:
    """Starts or continues the run in `folder`; `resolved` is its YAML configuration."""
    check(options)
    quiet()
    use_threads(options.threads)
    source = open_source(options)
    _check_batch(options, len(source.pretrain))
    method = build_method(options, method_options, source)
    if options.compile:
        for module in method.modules():
            if isinstance(module, AnyEncoder):
                module.compile()
    images = view_data(options, source, method.views, options.workers)
    trainer = build_trainer(options, folder, source)
    _check_backend(options, trainer)
    if trainer.is_global_zero:
        write_text(folder / "config.yaml", resolved)
        print(f"run folder: {folder}", flush=True)
    last = folder / "last.ckpt"
    module = Pretraining(method, options, encodings(options, source, trainer))
    choice = get_backend() if options.loss_backend == "auto" else options.loss_backend
    try:
        with set_backend(choice):
            trainer.fit(module, images, ckpt_path=last if last.exists() else None)
        if trainer.is_global_zero:
            finish(trainer, method, build_method(options, method_options, source), options, source)
    except SystemExit as stop:  # how Lightning answers Ctrl-C and SIGTERM
        message = f"interrupted; continue with: ssl-fast train --resume {folder}"
        raise Interrupted(message) from stop
    except CorruptImage as error:
        raise UsageError(
            f"{error}. Put a good file in its place and continue with: ssl-fast train --resume "
            f"{folder}. Or start anew with --corrupt skip."
        ) from error


def use_threads(count: int) -> None:
    if count:
        torch.set_num_threads(count)
        threadpool_limits(count)


def open_source(options: TrainOptions) -> data.Source:
    source = data.open_data(
        options.data,
        seed=options.seed,
        data_dir=options.data_dir,
        image_size=options.image_size,
        augmentation=options.augmentation,
    )
    if options.corrupt == "skip":
        source = data.skip_corrupt(source, options.workers)
    if options.long_tail == "none":
        return source
    tail = LongTail(options.long_tail, options.imbalance_factor, options.tail_exponent)
    return cut(source, tail, options.seed)


def view_data(
    options: TrainOptions, source: data.Source, views: Sequence[str], workers: int
) -> data.ViewData:
    order = build_order(
        options.sampler,
        source.pretrain,
        options.batch_size,
        options.seed,
        options.classes_per_batch,
    )
    on_device = options.augment_on == "device" and source.plain is not None
    if on_device:
        kornia()
    return data.ViewData(source, views, order, workers, on_device)


def build_method(options: TrainOptions, method_options: dict[str, Any], source) -> Method:
    """The same weights for the same seed."""
    seed_everything(derive_seed(options.seed, 3) % 2**32, verbose=False)
    encoder = build_encoder(options.encoder, source.channels, source.image_size)
    kind = find_method(options.method)
    given = dict(method_options)
    if "prior" in inspect.signature(kind).parameters:
        given["prior"] = prior_of(options, source)
    elif options.prior != "uniform":
        takers = [n for n, m in METHODS.items() if "prior" in inspect.signature(m).parameters]
        raise UsageError(f"{options.method} has no --prior; these have one: {', '.join(takers)}")
    try:
        method = kind(encoder, **given)
        method.check(options.batch_size, len(source.pretrain))
    except UsageError:
        raise
    except (TypeError, ValueError) as error:  # what a network or loss says of its options
        raise UsageError(f"--{options.method}: {error}") from error
    return method


def prior_of(options: TrainOptions, source: data.Source) -> Prior:
    labels = labels_of(source.pretrain) if options.prior == "class" else None
    return Prior(options.prior, options.prior_exponent, options.prior_order, labels)


def build_trainer(options: TrainOptions, folder: Path, source: data.Source) -> Trainer:
    bar = options.progress == "on" or (options.progress == "auto" and sys.stdout.isatty())
    train, test = _loaders(options, source, options.eval_limit)
    callbacks = [
        Monitor(train, test, options.eval_every, lines=not bar),
        Cost(),
        SaveOnTerm(folder / "last.ckpt"),
        checkpoint(folder),
    ]
    several = options.devices * options.num_nodes > 1
    steps = _steps_an_epoch(options, len(source.pretrain))
    return Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy="ddp" if several else "auto",
        sync_batchnorm=several and options.accelerator != "cpu" and torch.cuda.is_available(),
        precision=options.precision,
        gradient_clip_val=options.clip or None,
        max_epochs=options.epochs,
        accumulate_grad_batches=options.accumulate_grad_batches,
        limit_train_batches=steps * options.accumulate_grad_batches,
        default_root_dir=folder,
        callbacks=[*callbacks, ProgressBar()] if bar else callbacks,
        enable_progress_bar=bar,
        enable_model_summary=False,
        logger=[
            TensorBoardLogger(folder, name="", version="tensorboard"),
            CSVLogger(folder, name="csv"),
        ],
        log_every_n_steps=10,
        plugins=[AtomicCheckpointIO()],
        use_distributed_sampler=False,
    )


def finish(trainer, method: Method, untrained: Method, options: TrainOptions, source) -> None:
    """Measures and draws; the momentum encoder stands for the trained one, as in ReSA's code."""
    monitor, cost = _callback(trainer, Monitor), _callback(trainer, Cost)
    train, test = _loaders(options, source)
    device = trainer.strategy.root_device

    def features(*networks: nn.Module) -> list[evaluate.Features]:
        return evaluate.extract([n.to(device) for n in networks], train, test, device)

    encoder, projector = method.evaluated()
    end, embeddings = features(encoder, projector)
    start, _ = features(*untrained.evaluated())
    measured = {
        "raw pixels": features(evaluate.Pixels())[0],
        "untrained encodings": start,
        "encodings": end,
        "embeddings": embeddings,
    }
    scores = {name: evaluate.measure(f) for name, f in measured.items()}
    folder = Path(trainer.default_root_dir)
    export.write(folder, encoder, options, source, scores)
    report.draw_curves(folder / "curves.png", monitor.rows, scores)
    report.draw_scatter(folder / "scatter.png", start, end)
    report.draw_assignment(folder / "assignment.png", start, end, epsilon=0.05)
    facts = {
        "method": options.method,
        "data": options.data,
        "seed": options.seed,
        "seconds": round(monitor.seconds, 1),
        **machine.stamp(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "loss_backend": _loss_backend(options, device),
        **cost.facts(),
    }
    report.write_results(folder, scores, facts, monitor.rows)


def _new_folder(options: TrainOptions) -> Path:
    """A folder that does not exist yet, or is empty."""
    if int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0):
        name = options.run_dir or os.environ.get(FOLDER_VARIABLE)
        if not name:
            raise UsageError("processes started from outside need --run-dir to agree on a folder")
        return Path(name)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path(options.run_dir or f"runs/{options.method}-{options.data}-{stamp}")
    if not is_unused(folder):
        raise UsageError(
            f"{folder} is not an empty folder. Continue that run: ssl-fast train --resume "
            f"{folder}. Start another: --run-dir with a new name."
        )
    os.environ[FOLDER_VARIABLE] = str(folder)
    return folder


def _loaders(options: TrainOptions, source: data.Source, limit: int = 0) -> tuple:
    """Un-augmented training and test images."""
    return tuple(
        data.plain_loader(source, part, limit, options.workers) for part in ("train", "test")
    )


def encodings(options: TrainOptions, source: data.Source, trainer: Trainer) -> Encodings:
    loader = data.plain_loader(source, "pretrain", workers=options.workers)
    return lambda network: evaluate.encode(network, loader, trainer.strategy.root_device)


def _steps_an_epoch(options: TrainOptions, images: int) -> int:
    return images // options.batch_size // options.accumulate_grad_batches


def _check_batch(options: TrainOptions, images: int) -> None:
    if _steps_an_epoch(options, images):
        return
    each, fits = options.accumulate_grad_batches, 2 ** (images.bit_length() - 1)
    times = f" times accumulate_grad_batches {each}" if each > 1 else ""
    raise UsageError(
        f"batch_size {options.batch_size}{times} is more than the {images} training images of "
        f"{options.data}: try --batch-size {max(1, fits // each)}"
    )


def _loss_backend(options: TrainOptions, device: torch.device) -> str:
    if options.loss_backend != "auto":
        return options.loss_backend
    return select("cross_entropy", device, torch.float32)


def _callback(trainer: Any, kind: type[T]) -> T:
    return next(c for c in trainer.callbacks if isinstance(c, kind))


def _check_backend(options: TrainOptions, trainer: Trainer) -> None:
    choice, device = options.loss_backend, trainer.strategy.root_device.type
    reason = None if choice == "auto" else why_not(choice, device, torch.float32)
    if reason:
        raise UsageError(f"--loss-backend {choice}: {reason}; auto takes what there is")


def quiet() -> None:
    """Lightning's advice about this very code is no news to its user."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*number of training batches.*",
        ".*Checkpoint directory .* exists.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*checkpoint that ended before the epoch ended.*",  # Share.skip
        ".*sync_dist=True.*",  # the loss is the same on every rank, k-nn is rank 0's
        ".*lr_scheduler.step.*",
    ):
        warnings.filterwarnings("ignore", message)

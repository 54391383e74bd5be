"""Training for a study: a method with its preset and a few changes, without a run folder."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer

from ..train import data, evaluate
from ..train import run as driver
from ..train.config import TrainOptions, options_of, parse
from ..train.evaluate import Features
from ..train.methods import Method
from ..train.module import Pretraining


class Job(NamedTuple):
    """What to train: the driver's options and the method's own; `views` in place of its own."""

    options: TrainOptions
    own: dict[str, Any]
    views: Sequence[str] = ()


def digits_job(
    method: str,
    seed: int,
    epochs: int = 0,
    arguments: Sequence[str] = (),
    views: Sequence[str] = (),
) -> Job:
    """As `ssl-fast train --method METHOD --data digits ARGUMENTS` resolves it.

    Epochs other than the preset's shorten its warm-up with them; 0 leaves both.
    """
    arguments = ["--method", method, "--data", "digits", "--seed", str(seed), *arguments]
    if epochs:
        arguments += ["--epochs", str(epochs), "--warmup-epochs", str(epochs / 12)]
    return Job(*options_of(parse(arguments)[1]), views)


def pretrain(job: Job, source: data.Source, callbacks: Sequence[Callback] = ()) -> Method:
    """The trained method; weights, batches and views follow the options' seed."""
    options = job.options
    driver.quiet()
    method = driver.build_method(options, job.own, source)
    views = job.views or method.views
    images = driver.view_data(options, source, views, workers=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=options.epochs,
            gradient_clip_val=options.clip or None,
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        module = Pretraining(method, options, driver.encodings(options, source, trainer))
        trainer.fit(module, images)
    return method


def features(method: Method, source: data.Source) -> list[Features]:
    """Encodings h and embeddings z of the un-augmented training and test images."""
    train, test = (data.plain_loader(source, part) for part in ("train", "test"))
    return evaluate.extract(method.evaluated(), train, test, torch.device("cpu"))


def accuracies(method: Method, source: data.Source) -> tuple[float, float]:
    """5-nn and linear, of the encodings."""
    h = features(method, source)[0]
    return evaluate.knn_accuracy(h), evaluate.probe_accuracy(h)


class Watch(Callback):
    """measure(method, epoch) before the first epoch, after every `every`-th and after the last."""

    def __init__(self, measure: Any, every: int) -> None:
        self.measure, self.every = measure, every

    def on_train_start(self, trainer, module) -> None:
        self.measure(module.method, 0)

    def on_train_epoch_end(self, trainer, module) -> None:
        done = trainer.current_epoch + 1
        if done % self.every == 0 or done == trainer.max_epochs:
            self.measure(module.method, done)

"""How a run is put together: config → prepared data → spec → network → state → step."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from alexnet_jax import evaluation, keys
from alexnet_jax.data import loader
from alexnet_jax.data.prepare import prepared
from alexnet_jax.data.prepared import DataError, Prepared
from alexnet_jax.models import ModelSpec, create_model
from alexnet_jax.training import optimizer as optimizers
from alexnet_jax.training import step as steps
from alexnet_jax.training.config import Config, ConfigError, differences, model_spec, to_dict


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that the loop uses; made by `set_up`."""

    config: Config
    data: Prepared
    spec: ModelSpec
    steps_per_epoch: int
    num_steps: int
    mean_image: jax.Array
    initial: steps.TrainState
    train_step: Callable[..., tuple[steps.TrainState, steps.Metrics]]
    evaluation_step: Callable[..., steps.Metrics]

    @property
    def num_classes(self) -> int:
        """Comes from the data."""
        return len(self.data.classes)

    def batches(self, first_step: int) -> Iterator[loader.Batch]:
        """The training batches from a step on."""
        return loader.training_batches(
            self.data.splits["train"],
            self.config.batch_size,
            seed=self.config.seed,
            last_batch=self.config.data.last_batch,
            first_step=first_step,
            num_steps=self.num_steps,
        )

    def evaluate(self, params: Any, split: str) -> dict[str, Any]:
        """Loss and errors of parameters on every image of a split, centre crops."""
        batches = loader.evaluation_batches(self.data.splits[split], self.config.batch_size)
        return evaluation.evaluate(
            lambda *batch: self.evaluation_step(params, self.mean_image, *batch), batches, self.num_classes
        )

    def metadata(self) -> dict[str, Any]:
        """What a checkpoint says of itself, enough to predict on another machine."""
        return {
            "spec": self.spec.to_dict(),
            "num_classes": self.num_classes,
            "classes": list(self.data.classes),
            "data": self.data.fingerprint,
            "config": to_dict(self.config),
        }


def set_up(config: Config) -> Run:
    """Builds a run; nothing is compiled or trained yet.

    Raises:
      ConfigError: values that do not fit together, or not to the data.
      DataError: data that can't be trained on.
    """
    spec = model_spec(config)
    cache = None if config.data.cache_dir is None else pathlib.Path(config.data.cache_dir)
    data = prepared(config.data.source, size=spec.input.resize, rule=spec.input.resize_rule, cache_dir=cache)
    spec = _with_mean(spec, data)
    count = len(data.splits["train"])
    per_epoch = loader.steps_per_epoch(count, config.batch_size, config.data.last_batch)
    if per_epoch == 0:
        raise ConfigError(
            f"config.batch_size={config.batch_size} is larger than the {count} training images: "
            'make it smaller, or set config.data.last_batch="keep"'
        )
    if len(data.classes) < 2:
        raise DataError(f"{data.directory} has {len(data.classes)} class; training needs at least two")
    dtype = jnp.bfloat16 if config.precision == "bfloat16" else jnp.float32
    model = create_model(
        spec, num_classes=len(data.classes), dtype=dtype, rngs=keys.root(config.seed, keys.Purpose.INIT)
    )
    graph, params = steps.split(model)
    rate = optimizers.learning_rate(config.optimizer, per_epoch)
    optimizer = optimizers.momentum_sgd(
        rate, momentum=config.optimizer.momentum, weight_decay=config.optimizer.weight_decay
    )
    return Run(
        config=config,
        data=data,
        spec=spec,
        steps_per_epoch=per_epoch,
        num_steps=config.num_steps or config.num_epochs * per_epoch,
        mean_image=jnp.asarray(data.statistics.mean_image, jnp.float32),
        initial=steps.init_state(params, optimizer),
        train_step=steps.make_train_step(graph, spec.input, optimizer, rate, seed=config.seed, flip=config.data.flip),
        evaluation_step=steps.make_evaluation_step(graph, spec.input),
    )


def _with_mean(spec: ModelSpec, data: Prepared) -> ModelSpec:
    """The spec with the data's own mean pixel, where the variant subtracts the training set's mean."""
    contract = spec.input
    if contract.mean_image is None:
        return spec
    pixel = data.statistics.mean * (contract.scale / 255)
    red, green, blue = (float(value) for value in pixel)
    mean = (blue, green, red) if contract.channel_order == "bgr" else (red, green, blue)
    return dataclasses.replace(spec, input=dataclasses.replace(contract, mean=mean))


@contextlib.contextmanager
def precision(config: Config) -> Iterator[None]:
    """The arithmetic of the run's matrix products, for the time of the run only."""
    name = {"float32": "float32", "tf32": "tensorfloat32", "bfloat16": "bfloat16"}[config.precision]
    with jax.default_matmul_precision(name):
        yield


def check_workdir(config: Config, workdir: pathlib.Path) -> None:
    """Refuses a workdir with checkpoints of another configuration; writes nothing.

    Raises:
      ConfigError: names the keys that differ and their values.
    """
    path = workdir / "config.json"
    if path.exists() and any((workdir / "checkpoints").glob("[0-9]*")):
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return  # the checkpoint holds the configuration too, see `check_earlier`
        check_earlier(config, earlier, workdir)


def check_earlier(config: Config, earlier: Any, workdir: pathlib.Path) -> None:
    """Refuses to go on with a run that had another configuration.

    Raises:
      ConfigError: names the keys that differ and their values.
    """
    changed = differences(config, earlier if isinstance(earlier, dict) else {})
    if changed:
        raise ConfigError(
            f"{workdir} holds a run with another configuration ({'; '.join(changed)}): "
            "take another --workdir, or go back to the earlier values"
        )


@contextlib.contextmanager
def writing(workdir: pathlib.Path) -> Iterator[None]:
    """Turns a workdir that can't be written into a ConfigError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"--workdir={workdir} can't be used: {error}") from None


def describe(run: Run) -> list[tuple[str, str]]:
    """The lines that a run begins with: a heading and its words."""
    config, data, spec = run.config, run.data, run.spec
    counts = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    widths = "-".join(str(conv.features) for conv in spec.convs)
    hidden = "-".join(str(layer.features) for layer in spec.dense) or "none"
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run.initial.params))
    drops = ", ".join(map(str, config.optimizer.drop_epochs))
    drops = f", × {config.optimizer.drop_factor:g} at epochs {drops}" if drops else ""
    return [
        ("layout", "one device holds the whole batch and the whole network"),
        ("precision", config.precision),
        ("data", f"{config.data.source}: {counts} images of {data.image_size} pixels, {run.num_classes} classes"),
        ("", str(data.directory)),
        (
            "network",
            f"{spec.name}, {spec.groups} group(s), convolutions {widths}, hidden {hidden}, "
            f"crop {spec.input.size}: {parameters:,} parameters",
        ),
        (
            "training",
            f"{run.num_steps:,} steps of {config.batch_size} images, {run.steps_per_epoch:,} an epoch; "
            f"rate {config.optimizer.learning_rate:g}{drops}",
        ),
    ]

"""How a run is put together: config → prepared data → spec → network → state → step."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from alexnet_jax import evaluation, keys
from alexnet_jax.data import loader
from alexnet_jax.data.cached import prepared
from alexnet_jax.data.prepare import Progress
from alexnet_jax.data.prepared import DataError, Prepared, Split, Statistics
from alexnet_jax.data.views import Augmentation, colour_directions
from alexnet_jax.models import ModelSpec, create_model
from alexnet_jax.parallel import Layout
from alexnet_jax.trained import PRECISIONS
from alexnet_jax.training import devices
from alexnet_jax.training import optimizer as optimizers
from alexnet_jax.training import step as steps
from alexnet_jax.training.calls import check_calls
from alexnet_jax.training.config import Config, ConfigError, differences, model_spec, to_dict
from alexnet_jax.training.init_from import Start, start_from
from alexnet_jax.training.parallel_config import describe as describe_layout
from alexnet_jax.training.parallel_config import make_layout
from alexnet_jax.training.processes import Team
from alexnet_jax.training.profiling import check_profile
from alexnet_jax.training.schedules import Schedule, make_schedule


class Interrupted(Exception):
    """An evaluation was left before its end."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that the loop uses; made by `set_up`."""

    config: Config
    data: Prepared
    spec: ModelSpec
    steps_per_epoch: int
    num_steps: int
    mean_image: jax.Array
    augmentation: Augmentation
    train_split: Split
    schedule: Schedule
    initial: steps.TrainState
    train_step: Callable[..., tuple[steps.TrainState, steps.Metrics]]
    evaluation_step: Callable[..., steps.Metrics]
    layout: Layout
    team: Team
    loaded: tuple[tuple[str, str], ...] = ()  # what `describe` says of config.init_from

    @property
    def num_classes(self) -> int:
        """Comes from the data."""
        return len(self.data.classes)

    @property
    def share(self) -> loader.Share:
        """Which rows of each batch this process reads."""
        return loader.Share(self.team.index, self.team.count, multiple=self.layout.size)

    def batches(self, first_step: int) -> Iterator[loader.Batch]:
        """The training batches from a step on."""
        return loader.training_batches(
            self.train_split,
            self.config.batch_size,
            seed=self.config.seed,
            last_batch=self.config.data.last_batch,
            first_step=first_step,
            num_steps=self.num_steps,
            share=self.share,
            place=self.layout.place_rows,
        )

    def evaluate(self, params: Any, split: str, *, interrupted: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """Loss and errors of parameters on every image of a split, centre crops.

        Raises:
          Interrupted: `interrupted` became true before the end, in some process.
        """
        batches = loader.evaluation_batches(
            self.data.splits[split], self.config.batch_size, share=self.share, place=self.layout.place_rows
        )
        before: steps.Metrics = {}

        def step(*batch: Any) -> steps.Metrics:
            nonlocal before
            wish = interrupted()
            if wish and self.team.alone:
                raise Interrupted
            found = self.evaluation_step(params, self.mean_image, *batch, *self.team.wishes(self.layout, wish))
            jax.block_until_ready(before)  # no further ahead, so that an interruption is noticed
            if "wishes" in before and any(self.team.granted(before)):
                raise Interrupted
            before = found
            return found

        return evaluation.evaluate(step, batches, self.num_classes)

    @property
    def rest(self) -> int:
        """The images of an epoch's incomplete last batch, if it is one to train on."""
        return loader.rest(len(self.train_split), self.config.batch_size, self.config.data.last_batch)

    def compile_ahead(self, state: steps.TrainState) -> None:
        """Compiles what the first call does not: the evaluation, and steps of another size or number.

        From then on no signal has to wait for a compilation with something unsaved.
        """
        split, size = self.train_split, self.config.batch_size

        def batch(count: int) -> loader.Batch:
            filled = -(-count // self.layout.size) * self.layout.size // self.team.count
            images = np.zeros((filled, self.data.image_size, self.data.image_size, 3), np.uint8)
            rows = loader.Batch(images, np.zeros(filled, split.labels.dtype), np.ones(filled, bool))
            return self.layout.place_rows(rows)

        self.evaluation_step(state.params, self.mean_image, *batch(size), *self.team.wishes(self.layout, False))
        sizes = [[self.rest]] * bool(self.rest)
        if (several := self.config.steps_per_call) > 1:
            sizes += [[size], [size] * several]
        for steps_of_call in sizes:
            rows = [array for count in steps_of_call for array in batch(count)]
            copied = jax.tree.map(jnp.copy, state)  # a step takes over the state's memory
            wishes = self.team.wishes(self.layout, False, False)
            jax.block_until_ready(self.train_step(copied, self.mean_image, *rows, *wishes))

    def metadata(self) -> dict[str, Any]:
        """What a checkpoint says of itself, enough to predict on another machine."""
        return {
            "spec": self.spec.to_dict(),
            "num_classes": self.num_classes,
            "classes": list(self.data.classes),
            "data": self.data.fingerprint,
            "config": to_dict(self.config),
        }


def set_up(
    config: Config,
    *,
    progress: Progress = lambda done, total, skipped: None,
    resumes: bool = False,
    team: Team | None = None,
) -> Run:
    """Builds a run; nothing is compiled or trained yet.

    Args:
      config: the run.
      resumes: it goes on from a checkpoint of its own, so config.init_from is not read again.
      progress: called while a source is prepared into the cache, see `prepare`.
      team: the processes of the run.

    Raises:
      ConfigError: values that do not fit together, or not to the data or the devices.
      DataError: data that can't be trained on.
      CheckpointError: config.init_from has no network to start from.
    """
    _check_parts(config)
    spec, augmentation = model_spec(config), _augmentation(config)
    layout, team = _layout(config, spec), team or Team()
    cache = None if config.data.cache_dir is None else pathlib.Path(config.data.cache_dir)
    data = prepared(
        config.data.source,
        size=spec.input.resize,
        rule=spec.input.resize_rule,
        val_fraction=config.data.val_fraction,
        cache_dir=cache,
        progress=progress,
    )
    spec = _with_mean(spec, data)
    count = len(data.splits["train"])
    per_epoch = loader.steps_per_epoch(count, config.batch_size, config.data.last_batch)
    if per_epoch == 0:
        raise ConfigError(
            f"config.batch_size={config.batch_size} is larger than the {count} training images: "
            'make it smaller, or set config.data.last_batch="keep"'
        )
    num_steps = config.num_steps or config.num_epochs * per_epoch
    check_profile(config.profile, num_steps)
    check_calls(config, per_epoch, loader.rest(count, config.batch_size, config.data.last_batch))
    if len(data.classes) < 2:
        raise DataError(f"{data.directory} has {len(data.classes)} class; training needs at least two")
    dtype = jnp.bfloat16 if config.precision == "bfloat16" else jnp.float32
    model = create_model(
        spec, num_classes=len(data.classes), dtype=dtype, rngs=keys.root(config.seed, keys.Purpose.INIT)
    )
    graph, params = steps.split(model, layout.tower_axis)
    start = Start(params)
    if config.init_from is not None and not resumes:
        start = start_from(config.init_from, config.init_skip, params, spec, data.classes)
    elif config.init_skip and config.init_from is None and not resumes:
        raise ConfigError(f"config.init_skip={config.init_skip!r} goes with config.init_from, which is None")
    optimizer = optimizers.make_optimizer(config.optimizer, list(params))
    schedule = make_schedule(config.optimizer, per_epoch, num_steps=num_steps, layers=list(params))
    initial = steps.init_state(start.params, optimizer, schedule)
    like = jax.eval_shape(lambda: initial)  # not the arrays, which would stay in the first device's memory
    return Run(
        config=config,
        data=data,
        spec=spec,
        steps_per_epoch=per_epoch,
        num_steps=num_steps,
        mean_image=layout.place_whole(jnp.asarray(data.statistics.mean_image, jnp.float32)),
        augmentation=augmentation,
        train_split=_placed(data, config.data.on_device, layout),
        schedule=schedule,
        initial=layout.place(initial),
        train_step=steps.make_train_step(
            graph,
            spec.input,
            optimizer,
            schedule,
            seed=config.seed,
            augmentation=augmentation,
            directions=_directions(augmentation, data.statistics),
            accumulate_steps=config.accumulate_steps,
            layout=layout,
            like=like,
        ),
        evaluation_step=steps.make_evaluation_step(graph, spec.input, layout=layout, like=like.params),
        layout=layout,
        team=team,
        loaded=start.lines,
    )


def _augmentation(config: Config) -> Augmentation:
    """What the configuration does to the training images.

    Raises:
      ConfigError: more images are to share a draw than a batch has.
    """
    choice = config.data
    if choice.shared_draw > config.batch_size:
        raise ConfigError(
            f"config.data.shared_draw={choice.shared_draw} is larger than config.batch_size={config.batch_size}, "
            f"and only images of one batch share a draw: set it to {config.batch_size} or less"
        )
    return Augmentation(flip=choice.flip, colour_noise=choice.colour_noise, shared_draw=choice.shared_draw)


def _layout(config: Config, spec: ModelSpec) -> Layout:
    """The devices, and whether the network can be split over them.

    Raises:
      ConfigError: it can't, or there are too few, or the batch can't be split so.
    """
    try:
        spec.check_towers(config.parallel.towers)
    except ValueError as error:
        raise ConfigError(f"config.parallel.towers={config.parallel.towers}: {error}") from None
    return make_layout(config.parallel, config.batch_size)


def _placed(data: Prepared, on_device: bool | None, layout: Layout) -> Split:
    """The training images, on the device if that is asked for, or if it is one and they are small beside its memory."""
    split = data.splits["train"]
    if layout.size > 1 and (on_device is None or layout.processes > 1):
        return split
    needed = len(split) * data.image_size**2 * 3
    if on_device is None:
        device = jax.local_devices()[0]
        memory = 0 if device.platform == "cpu" else (device.memory_stats() or {}).get("bytes_limit", 0)
        on_device = needed <= memory / 16
    return loader.resident(split) if on_device else split


def _directions(augmentation: Augmentation, statistics: Statistics) -> np.ndarray | None:
    """What colour noise is made of, from the data's own colours."""
    if augmentation.colour_noise is None:
        return None
    return colour_directions(augmentation.colour_noise, statistics.eigenvalues, statistics.eigenvectors)


def _check_parts(config: Config) -> None:
    """Refuses parts of unequal size."""
    parts, size = config.accumulate_steps, config.batch_size
    if size % parts:
        fitting = [number for number in range(1, size + 1) if size % number == 0]
        near = [[n for n in fitting if n < parts][-1:], [n for n in fitting if n > parts][:1]]
        raise ConfigError(
            f"config.accumulate_steps={parts} does not divide config.batch_size={size}: "
            f"the nearest that do are {' and '.join(str(n) for some in near for n in some)}"
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
    with jax.default_matmul_precision(PRECISIONS[config.precision]):
        yield


def has_checkpoint(workdir: pathlib.Path) -> bool:
    """Whether a run in this workdir goes on from a checkpoint; unfinished ones don't count."""
    paths = (workdir / "checkpoints").glob("[0-9]*")
    return any(path.name.isdecimal() and any(path.iterdir()) for path in paths)


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


def print_beginning(console: Console, run: Run, workdir: pathlib.Path, first_step: int, warning: str | None) -> None:
    """What a run is, how far it is, and what its owner should know first."""
    if warning:
        console.print(warning, style="bold red", markup=False)
    resumed = f"resumes after step {first_step:,}" if first_step else "new run"
    state = "finished" if first_step >= run.num_steps else resumed
    for heading, words in [*describe(run), ("workdir", f"{workdir.absolute()} ({state})")]:
        console.print(f"{heading:<10} {words}", markup=False)


def describe(run: Run) -> list[tuple[str, str]]:
    """The lines that a run begins with: a heading and its words."""
    config, data, spec = run.config, run.data, run.spec
    counts = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    widths = "-".join(str(conv.features) for conv in spec.convs)
    hidden = "-".join(str(layer.features) for layer in spec.dense) or "none"
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run.initial.params))
    parts = f" in {config.accumulate_steps} parts" if config.accumulate_steps > 1 else ""
    return [
        ("program", f"alexnet-jax {version('alexnet-jax')}, jax {jax.__version__}"),
        ("devices", devices.describe(run.layout.devices)),
        ("layout", describe_layout(run.layout)),
        ("precision", config.precision),
        ("data", f"{config.data.source}: {counts} images of {data.image_size} pixels, {run.num_classes} classes"),
        ("", str(data.directory)),
        (
            "network",
            f"{spec.name}, {spec.groups} group(s), convolutions {widths}, hidden {hidden}, "
            f"crop {spec.input.size}: {parameters:,} parameters",
        ),
        *run.loaded,
        (
            "training",
            f"{run.num_steps:,} steps of {config.batch_size} images{parts}, {run.steps_per_epoch:,} an epoch; "
            f"rate {run.schedule.describe()}",
        ),
    ]

"""A trained network from its checkpoint alone, and data for it: both may have been moved since."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from alexnet_jax.checkpoint import CheckpointError, Checkpoints
from alexnet_jax.data.cached import prepared
from alexnet_jax.data.prepare import Progress
from alexnet_jax.data.prepared import MANIFEST, DataError, Prepared, Split, read_manifest
from alexnet_jax.data.sources import SOURCES
from alexnet_jax.models import AlexNet, ModelSpec, create_model

# config.precision -> how JAX calls the arithmetic of its matrix products
PRECISIONS = {"float32": "float32", "tf32": "tensorfloat32", "bfloat16": "bfloat16"}
CHOICES = ("best", "latest")


@dataclasses.dataclass(frozen=True)
class Structure:
    """What a network computes, without its values; hashable.

    Attributes:
      spec: the network, input contract included.
      num_classes: the width of the logits.
      precision: a key of `PRECISIONS`.
    """

    spec: ModelSpec
    num_classes: int
    precision: str

    def graph(self) -> nnx.GraphDef:
        """To be merged with parameters: `nnx.merge(graph, params)(images)`."""
        dtype = jnp.bfloat16 if self.precision == "bfloat16" else jnp.float32
        return nnx.split(_abstract(self.spec, self.num_classes, dtype))[0]

    @contextlib.contextmanager
    def arithmetic(self) -> Iterator[None]:
        """The precision, for what is traced inside."""
        with jax.default_matmul_precision(PRECISIONS[self.precision]):
            yield


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network with its parameters and all that its predictions depend on.

    Attributes:
      place: the path that was given.
      step: the checkpoint's number.
      chosen: why this one, in words.
      spec: the network, input contract included.
      classes: the classes' names, in the order of the logits.
      params: nested dictionaries, `params["conv1"]["kernel"]` and so on, float32.
      mean_image: (R, R, 3), float32, of the training images, on 0 to 255 in RGB.
      config: the run's configuration as plain data.
      data: the fingerprint of the data that it was trained on.
    """

    place: pathlib.Path
    step: int
    chosen: str
    spec: ModelSpec
    classes: tuple[str, ...]
    params: Any
    mean_image: jax.Array
    config: dict[str, Any]
    data: str | None

    @property
    def structure(self) -> Structure:
        """What it computes, in the arithmetic that it was trained with."""
        found = self.config.get("precision", "float32")
        return Structure(self.spec, len(self.classes), found if found in PRECISIONS else "float32")


def open_trained(place: pathlib.Path, checkpoint: str | int = "best") -> Trained:
    """Reads the network of a run; nothing in its folder is changed, a run may be writing there.

    Args:
      place: a workdir, its folder `checkpoints`, or one checkpoint in that.
      checkpoint: "best" by validation (the latest where none was validated), "latest", or a
        step; must be left at "best" where `place` is one checkpoint.

    Raises:
      CheckpointError: there is none, no such one, or one that can't be used.
    """
    folder, only = _folder(place)
    if only is not None and checkpoint not in ("best", only):
        raise CheckpointError(f"{place} is checkpoint {only}: give its run's folder to take checkpoint {checkpoint!r}")
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)  # Orbax warns of what read_only means
    try:
        checkpoints = Checkpoints(folder, read_only=True)
    finally:
        logger.setLevel(before)
    try:
        step, chosen = (only, "as given") if only is not None else _choice(checkpoints, folder, checkpoint)
        about = checkpoints.metadata(step)
        tree = jax.tree.map(jnp.asarray, checkpoints.stored(step).tree)
    finally:
        checkpoints.close()
    try:
        spec, classes = ModelSpec.from_dict(about["spec"]), tuple(about["classes"])
        params, mean_image = tree["state"]["params"], tree["mean_image"]
        wanted = nnx.to_pure_dict(nnx.split(_abstract(spec, len(classes), jnp.float32))[1])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / str(step)} is not the checkpoint of a run ({type(error).__name__}: {error}): "
            "give the workdir of a training run"
        ) from None
    if jax.tree.map(lambda x: tuple(x.shape), wanted) != jax.tree.map(lambda x: tuple(x.shape), params):
        raise CheckpointError(
            f"{folder / str(step)} holds parameters of other shapes than its spec says: it is damaged"
        )
    config = about.get("config")
    config = config if isinstance(config, dict) else {}
    return Trained(place, step, chosen, spec, classes, params, mean_image, config, about.get("data"))


def _abstract(spec: ModelSpec, num_classes: int, dtype: Any) -> AlexNet:
    """The model without values: nothing is drawn."""
    return nnx.eval_shape(lambda: create_model(spec, num_classes=num_classes, dtype=dtype))


def _folder(place: pathlib.Path) -> tuple[pathlib.Path, int | None]:
    """The folder of checkpoints that a path means, and the one in it if the path is that of one."""
    if not place.is_dir():
        raise CheckpointError(f"{place}: there is no such folder; give the workdir of a training run")
    if (place / "checkpoints").is_dir():
        place = place / "checkpoints"
    elif place.absolute().name.isdecimal() and any(place.iterdir()) and not _steps(place):
        return place.absolute().parent, int(place.absolute().name)
    if not _steps(place):
        raise CheckpointError(
            f"{place} holds no finished checkpoint: give the workdir of a training run that has written one"
        )
    return place, None


def _steps(folder: pathlib.Path) -> list[int]:
    """The numbers of the checkpoints in a folder; an empty folder is none."""
    return sorted(
        int(path.name) for path in folder.glob("*") if path.name.isdecimal() and path.is_dir() and any(path.iterdir())
    )


def _choice(checkpoints: Checkpoints, folder: pathlib.Path, wanted: str | int) -> tuple[int, str]:
    """The step that is meant, and why."""
    steps = _steps(folder)
    if wanted == "best":
        best = checkpoints.best_step()
        return (steps[-1], "the latest; none was validated") if best is None else (best, "best by validation")
    if wanted == "latest":
        return steps[-1], "the latest"
    if wanted not in steps:
        raise CheckpointError(
            f"{folder} has no checkpoint {wanted!r}: there are {', '.join(map(str, steps))}; or say best or latest"
        )
    return int(wanted), "as given"


def open_data(
    networks: Sequence[Trained],
    source: str | None = None,
    *,
    progress: Progress = lambda done, total, skipped: None,
) -> tuple[Prepared, list[str]]:
    """The data to evaluate networks on, and what should be said of it.

    Args:
      networks: one, or those of an ensemble.
      source: as `config.data.source`; None is what the first network was trained on.
      progress: see `prepare`.

    Returns:
      The prepared data, of the size and resize rule of every network; notes, a line each.

    Raises:
      DataError: no such data, of another size or rule or with other classes, or networks that
        can't see the same data.
    """
    first = networks[0]
    for other in networks[1:]:
        _check_classes(other.classes, first.classes, f"{other.place} and {first.place} are no ensemble")
        for name in ("resize", "resize_rule"):
            here, there = getattr(first.spec.input, name), getattr(other.spec.input, name)
            if here != there:
                raise DataError(
                    f"{first.place} takes images prepared with {name}={here!r}, {other.place} with {there!r}: "
                    "no data fits both, so evaluate them one by one"
                )
    trained_on = first.config.get("data", {})
    own = trained_on.get("source")
    if source is None and own is None:
        raise DataError(f"{first.place} does not say what it was trained on: give --data")
    chosen = source or own
    kind = chosen.partition(":")[0]
    known = {form.partition(":")[0] for form in SOURCES}
    if kind not in known and not pathlib.Path(chosen).is_dir():
        if source is None:
            raise DataError(f"{first.place} was trained on {own!r}, which is not here: say with --data where it is")
        raise DataError(f"--data {source}: neither a source ({', '.join(SOURCES)}) nor an existing folder")
    contract = first.spec.input
    if kind not in known and (pathlib.Path(chosen) / MANIFEST).is_file():
        manifest = read_manifest(pathlib.Path(chosen))
        for key, flag, wanted in (
            ("image_size", "--size", contract.resize),
            ("resize_rule", "--resize", contract.resize_rule),
        ):
            if manifest[key] != wanted:
                raise DataError(
                    f"{chosen} was prepared with {key}={manifest[key]!r}, {first.place} takes {wanted!r}: "
                    f"prepare it anew with {flag} {wanted}"
                )
    same_kind = own is not None and kind in known and kind == own.partition(":")[0]
    cache = trained_on.get("cache_dir")
    data = prepared(
        chosen,
        size=contract.resize,
        rule=contract.resize_rule,
        val_fraction=trained_on.get("val_fraction") if same_kind else None,
        cache_dir=pathlib.Path(cache) if cache and pathlib.Path(cache).is_dir() else None,
        progress=progress,
    )
    _check_classes(data.classes, first.classes, f"{data.directory} does not fit {first.place}")
    others = [str(network.place) for network in networks if network.data != data.fingerprint]
    notes = [f"not the data that {', '.join(others)} learned from (other checksums); the classes agree"]
    return data, notes if others else []


def _check_classes(found: Sequence[str], wanted: Sequence[str], what: str) -> None:
    """Refuses other classes, or the same in another order."""
    if len(found) != len(wanted):
        raise DataError(f"{what}: {len(found):,} classes and {len(wanted):,}; the same are needed, in the same order")
    for label, (one, other) in enumerate(zip(found, wanted, strict=True)):
        if one != other:
            raise DataError(
                f"{what}: class {label} is {one!r} in the one and {other!r} in the other; "
                "the same are needed, in the same order"
            )


def choose_split(data: Prepared, name: str) -> Split:
    """A split of the data by its name.

    Raises:
      DataError: there is none, or it is empty.
    """
    there = [known for known, split in data.splits.items() if len(split)]
    if name not in there:
        raise DataError(f"--split {name}: {data.directory} has no such images, only {', '.join(there)}")
    return data.splits[name]

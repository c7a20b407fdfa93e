"""What can go wrong in a run, in words: divergence, a loss that stands still, too little memory, a full disk."""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from alexnet_jax import keys
from alexnet_jax.training.config import Config
from alexnet_jax.training.errors import Diverged, OutOfMemory
from alexnet_jax.training.metrics import write_atomically
from alexnet_jax.training.saving import Progress, Saver
from alexnet_jax.training.setup import Run
from alexnet_jax.training.step import TrainState


@contextlib.contextmanager
def memory_in_words(config: Config) -> Iterator[None]:
    """Turns a lack of memory into an `OutOfMemory` that says what to lower."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        device = jax.local_devices()[0]
        limit = (device.memory_stats() or {}).get("bytes_limit")
        room = f" ({limit / 2**30:.1f} GiB)" if limit else ""
        parts, size = config.accumulate_steps, config.batch_size
        advice = []
        if (more := next((n for n in range(parts + 1, size + 1) if size % n == 0), None)) is not None:
            advice.append(f"config.accumulate_steps={more} (the same numbers in less memory)")
        if config.precision != "bfloat16":
            advice.append("config.precision=bfloat16")
        advice.append(f"config.batch_size below {size}")
        if config.data.on_device is not False and device.platform != "cpu":
            advice.append("config.data.on_device=False")
        raise OutOfMemory(
            f"{device.platform}:{device.id} ran out of memory{room} with config.batch_size={size} in {parts} part(s) "
            f"and config.precision={config.precision}: try {', or '.join(advice)}. "
            f"The runtime says: {' '.join(str(error).split())[:200]}"
        ) from error


def stalled(progress: Progress, loss: float, steps: int, step: int, run: Run) -> str | None:
    """Counts for how long the loss has stood within 1 % of ln(classes); a warning, once a run.

    It is due after an epoch's steps (100 at least) beyond the first epoch.

    Args:
      progress: where the count is kept.
      loss: of the last steps.
      steps: how many those are.
      step: the step reached.
      run: the run.
    """
    chance = math.log(run.num_classes)
    if abs(loss - chance) > 0.01 * chance:
        progress.stalled = 0
        return None
    progress.stalled += steps if step > run.steps_per_epoch else 0
    if progress.stall_told or progress.stalled < max(run.steps_per_epoch, 100):
        return None
    progress.stall_told = True
    return (
        f"WARNING: for {progress.stalled:,} steps the loss has stood at ln({run.num_classes}) = {chance:.3f}, that of "
        "guessing. This network is known for it: the signal shrinks from layer to layer until the biases, the same for "
        "every image, drown it. In a new workdir try config.model.init=source2012 (0.03 in conv3 to conv5), kaiming or "
        "pytorch, which start with a larger signal; bvlc_alexnet, whose biases are 0.1 instead of 1; or a variant "
        "whose input is 0 to 255, if this one's is smaller"
    )


def first_bad(metrics: list[dict[str, Any]]) -> int | None:
    """The place of the first step whose loss is no finite number."""
    bad = [not math.isfinite(step["loss"]) for step in metrics]
    return bad.index(True) if any(bad) else None


def report_divergence(
    run: Run,
    workdir: pathlib.Path,
    saver: Saver,
    state: TrainState,
    *,
    what: str,
    step: int,
    reached: int,
    metrics: dict[str, Any],
) -> Diverged:
    """Writes `diverged.json`; the error to raise.

    Args:
      run: the run.
      workdir: where to write.
      saver: of the last good checkpoint.
      state: as it is now, `reached` steps on.
      what: "training" or "validation" loss, or "parameters".
      step: the step where it was first seen.
      reached: the last step taken.
      metrics: the step's loss and rate, as far as they are known.
    """
    last = saver.last_parameters()
    found = {
        "what": what,
        "step": step,
        "epoch": round(step / run.steps_per_epoch, 4),
        **{name: _number(value) for name, value in metrics.items()},
        "batch": _batch(run, step),
        "seen_after_step": reached,
        "layers": _norms({"parameters": state.params, "momentum": _momentum(state)}),
        "checkpoint": None if last is None else last[0],
        "layers_in_checkpoint": None if last is None else _norms({"parameters": last[1]}),
    }
    words = f"{workdir / 'diverged.json'} says what was seen"
    try:
        write_atomically(workdir / "diverged.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        words = f"{workdir / 'diverged.json'} can't be written ({error})"
    kept = saver.last()
    value = metrics.get("loss", math.nan)
    seen = f"the {what} loss is {value}" if what != "parameters" else "a parameter or its momentum is not finite"
    return Diverged(
        f"{seen} at step {step:,}: the run has diverged, and {kept}; {words}. In a new workdir, try "
        f"a lower config.optimizer.learning_rate (now {run.config.optimizer.learning_rate:g}) or another "
        "config.model.init"
    )


def _batch(run: Run, step: int) -> dict[str, Any]:
    """The images of a step: a pure function of its number."""
    split, size = run.data.splits["train"], run.config.batch_size
    epoch, place = divmod(step - 1, run.steps_per_epoch)
    order = keys.permutation(run.config.seed, epoch, count=len(split))
    rows = [int(row) for row in order[place * size : (place + 1) * size]]
    found: dict[str, Any] = {"indices": rows, "labels": [int(split.labels[row]) for row in rows]}
    with contextlib.suppress(Exception):  # the names are a file of their own
        names = run.data.names("train")
        found["names"] = [names[row] for row in rows]
    return found


def _momentum(state: TrainState) -> Any:
    """The optimizer's arrays, by the parameters' names where it has them."""
    traces = [part.trace for part in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "trace"))]
    return traces[0] if traces else {}


def _norms(trees: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By parameter: the Euclidean norm and the greatest size of each tree's array; None where it is not finite."""
    found: dict[str, dict[str, Any]] = {}
    for kind, tree in trees.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            values = np.asarray(leaf, np.float64)
            about = found.setdefault(jax.tree_util.keystr(path, simple=True, separator="."), {})
            about[f"{kind}_norm"] = _number(np.linalg.norm(values))
            about[f"{kind}_largest"] = _number(np.max(np.abs(values), initial=0.0))
            about[f"{kind}_not_finite"] = int(np.sum(~np.isfinite(values)))
    return found


def _number(value: Any) -> float | str:
    """What JSON can hold: a number, or "nan", "inf", "-inf"."""
    return float(value) if math.isfinite(value) else str(float(value))

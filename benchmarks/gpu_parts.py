"""The parts of `gpu.py` that measure networks, each run in a process of its own."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import pathlib
import tempfile
import time
from typing import Any

import comparison
import harness
import workers


def peers(options: Any) -> list[str]:
    """PyTorch, if it is there."""
    return ["PyTorch"] if importlib.util.find_spec("torch") else []


def _team(options: Any) -> workers.Team:
    return workers.Team(options.seconds_each, heap="stock", device=options.device)


def compare(
    report: harness.Report,
    options: Any,
    variant: str,
    precision: str,
    batch_size: int,
    work: str,
    forms: list[str],
) -> None:
    """Training or inference: ours against forms of PyTorch and the matrix product; our compile time is in the row."""
    options.precision = precision
    training = work == "training"
    with _team(options) as team:
        title = f"{work} {variant}, {precision}, batch {batch_size}"
        found = comparison.Comparison(options, report, title, team)
        network = found.network(variant, batch_size)
        found.limits("product", ["JAX"])
        found.limits("copy", ["JAX"])
        found.ours("ours", **network, work="training" if training else "forward")
        if training:
            found.ours("program", **network, work="program")
        for form in forms if peers(options) else []:
            more = {"precision": precision, "device": options.device, "training": training}
            found.peer(f"PyTorch {form}", "PyTorch", **network, form=form, **more)
        found.measure()
        for form in forms:
            found.compare("ours", f"PyTorch {form}")
        found.compare("program", "ours", case="program", peer_name="ours, the bare step")
        found.share("ours", comparison.operations(options, variant, training=training))
        if any(name.startswith("copy") for name in found.found):
            report.note(f"{title}: memory copy {found.limit('copy')[1].median:,.0f} GB/s")


def batches(report: harness.Report, options: Any, variant: str, precision: str) -> None:
    """Our step at every batch size, against the smallest: images a second, first call's seconds, peak memory."""
    import jax
    import our_networks

    spec = our_networks.variant(variant, size=options.image_size, narrow=options.narrow)
    least: harness.Samples | None = None
    for batch_size in sorted(options.batch_sizes):
        start = time.perf_counter()
        case = our_networks.Case(spec, batch_size, precision=precision, classes=options.classes)
        case.run(1)
        first = time.perf_counter() - start
        count = max(1, round(options.seconds_each * case.run(1) / batch_size))
        found = harness.interleave({"ours": functools.partial(case.run, count)}, options.rounds)["ours"]
        least = least or found
        more: dict[str, Any] = {"precision": precision, "batch_size": batch_size, "first_seconds": round(first, 2)}
        stats = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in stats:  # of the process so far: batch sizes rise
            more["peak_mib"] = round(stats["peak_bytes_in_use"] / 2**20)
        title = f"batch {batch_size} of {variant}, {precision}"
        report.add(harness.row(title, found, least, "the smallest batch", "images/s", **more))
        del case


def deterministic(report: harness.Report, options: Any, variant: str, precision: str, batch_size: int) -> None:
    """The step with XLA's deterministic operations (config.deterministic) against the step without."""
    from alexnet_jax.training.devices import DETERMINISTIC

    options.precision = precision
    network = {"variant": variant, "batch_size": batch_size, "classes": options.classes, "size": options.image_size}
    found = []
    before = os.environ.get("XLA_FLAGS", "")
    for flags in (f"{before} {DETERMINISTIC}=true".strip(), before):
        os.environ["XLA_FLAGS"] = flags
        with _team(options) as team:
            team.add("ours", "ours", precision=precision, narrow=options.narrow, **network)
            found.append(team.interleave(options.rounds)["ours"])
    title = f"deterministic {variant}, {precision}, batch {batch_size}"
    report.add(harness.row(title, found[0], found[1], "ours, as it comes", "images/s", precision=precision))


def profile(report: harness.Report, options: Any, variant: str, precision: str, batch_size: int) -> None:
    """The kernels of the step by time: busy milliseconds a step against the clock's, and the 20 longest."""
    import jax
    import our_networks

    spec = our_networks.variant(variant, size=options.image_size, narrow=options.narrow)
    case = our_networks.Case(spec, batch_size, precision=precision, classes=options.classes)
    case.run(3)
    steps = 3
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            took = 1000 * steps * batch_size / case.run(steps)
        file = next(pathlib.Path(folder).rglob("*.xplane.pb"))
        data = jax.profiler.ProfileData.from_file(str(file))
        times: dict[tuple[str, str], float] = {}
        for plane in data.planes:
            for line in plane.lines:
                stream = plane.name.startswith("/device:GPU") and (line.name or "").startswith("Stream")
                if plane.name.startswith("/device:GPU") and not stream:
                    continue  # the same time again, by module and by operation
                for event in line.events:
                    about = dict(event.stats)
                    if not stream and (options.device != "cpu" or "hlo_op" not in about):
                        continue
                    stage = str(about.get("hlo_op") or about.get("name") or "")
                    key = (event.name, stage)
                    times[key] = times.get(key, 0.0) + event.duration_ns * 1e-6
    busy = sum(times.values()) / steps
    longest = sorted(times.items(), key=lambda pair: -pair[1])[:20]
    kernels: list[dict[str, Any]] = [
        {"kernel": name, "operation": stage, "ms": total / steps, "share": total / steps / busy}
        for (name, stage), total in longest
    ]
    title = f"profile of {variant}, {precision}, batch {batch_size}"
    one = (harness.Samples((busy,)), harness.Samples((took / steps,)))
    report.add(
        harness.row(title, one[0], one[1], "time by the clock", "ms a step, busy", kernels=kernels, precision=precision)
    )
    for kernel in kernels:
        text = f"{kernel['ms']:8.3f} ms {kernel['share']:6.1%} {kernel['kernel'][:60]} {kernel['operation'][:70]}"
        print(text, flush=True)


def end_to_end(report: harness.Report, options: Any, variant: str, precision: str, batch_size: int) -> None:
    """Loader, copy to the device, and the program's step fed by the loader, against the step on a resident batch."""
    import jax
    import jax.numpy as jnp
    import loader as loading
    import numpy as np
    import our_networks
    import photographs

    from alexnet_jax import create_model
    from alexnet_jax.trained import PRECISIONS
    from alexnet_jax.training import optimizer as optimizers
    from alexnet_jax.training import schedules
    from alexnet_jax.training import step as steps
    from alexnet_jax.training.config import OptimizerConfig

    spec = our_networks.variant(variant, size=options.image_size, narrow=options.narrow)
    side, number = spec.input.resize, max(options.images, batch_size)
    dtype = jnp.bfloat16 if precision == "bfloat16" else None
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        images = loading.Images(folder / "raw", photographs.crops(number, side), side, "raw")
        count = 12 * number // batch_size
        rates = harness.interleave(
            {
                "host": lambda: loading.our_rate(images, batch_size, count),
                "device": lambda: loading.our_rate(images, batch_size, count, at_device=True),
            },
            options.rounds,
        )
        host, device = rates["host"], rates["device"]
        more: dict[str, Any] = {"batch_size": batch_size, "threads": harness.cores(), "image_size": side}
        title = f"batch {batch_size}, raw {side}²"
        report.add(harness.row(f"loader to device, {title}", device, host, "loader, on the host", "images/s", **more))

        batch = np.zeros((batch_size, side, side, 3), np.uint8)

        def copy(pieces: int) -> float:
            start = time.perf_counter()
            for _ in range(4):
                jax.block_until_ready(jax.device_put(np.array_split(batch, pieces)))
            return 4e-9 * batch.nbytes / (time.perf_counter() - start)

        ways = harness.interleave({"whole": lambda: copy(1), "pieces": lambda: copy(4)}, options.rounds)
        copies = ways["whole"]
        report.add(harness.row(f"copy in four pieces, {title}", ways["pieces"], copies, "whole", "GB/s", **more))
        wanted = harness.Samples(tuple(rate * side * side * 3 * 1e-9 for rate in host.values))
        report.add(harness.row(f"copy to device, {title}", copies, wanted, "what the loader makes", "GB/s", **more))

        config = OptimizerConfig()
        model = create_model(spec, num_classes=options.classes, dtype=dtype)
        graph, params = steps.split(model)
        optimizer = optimizers.make_optimizer(config, list(params))
        schedule = schedules.make_schedule(config, 100, num_steps=10**6, layers=list(params))
        state = steps.init_state(params, optimizer, schedule)
        with jax.default_matmul_precision(PRECISIONS[precision]):
            step = steps.make_train_step(
                graph, spec.input, optimizer, schedule, seed=0, augmentation=our_networks.AUGMENTATION
            )
            mean = jnp.full((side, side, 3), 120, jnp.float32)
            mask = jnp.ones(batch_size, bool)
            resident = jax.device_put((batch, np.zeros(batch_size, np.int32)))

            def run(fed: bool) -> float:
                nonlocal state
                found = loading.ours(images, batch_size, count, at_device=True) if fed else None
                start = time.perf_counter()
                metrics = None
                for _ in range(count):
                    before = metrics
                    if found is None:
                        pixels, labels = resident
                    else:
                        got = next(found)
                        pixels, labels = got.images, got.labels % options.classes
                    state, metrics = step(state, mean, pixels, labels, mask)
                    jax.block_until_ready(before)  # a step late, as train.py
                jax.block_until_ready((state, metrics))
                return count * batch_size / (time.perf_counter() - start)

            rates = harness.interleave({"fed": lambda: run(True), "bare": lambda: run(False)}, options.rounds)
        case = f"end to end, {variant}, {precision}, {title}"
        report.add(harness.row(case, rates["fed"], rates["bare"], "resident batch", "images/s", target=0.95, **more))
        minutes = 90 * 1_281_167 / rates["fed"].median / 60
        report.note(f"{case}: 90 epochs of 1,281,167 images at that rate take {minutes:,.0f} minutes")

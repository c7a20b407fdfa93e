"""A training step against PyTorch and plain Flax, and against the machine's matrix product.

    python benchmarks/step.py [--quick] [--json FILE] [--variants paper torchvision] [--batch-sizes 32 128]

Images a second of a step at full size, random images that stay on the device, float32 unless
`--precision` says otherwise. The compared step is the same work on every side: float images to
mean cross-entropy with dropout, gradient, and the update with momentum and weight decay.
Our own `program` row is the whole step of `train.py` against that: from prepared uint8 images,
with random crops, mirroring, the mean image, and the batch's errors.

The peers, each in its best stock form and all in the same run:

- PyTorch eager (NCHW), channels-last, and `torch.compile` with channels-last; each with
  `torch.optim.SGD(fused=True)`. Beside them channels-last and `torch.compile` with a
  hand-written LRN, which is not stock. Only `paper` and `torchvision` are written in PyTorch.
- plain Flax: `nnx` layers with `feature_group_count`, everything differentiated by JAX;
- our `forms="reference"`.

The measured limit is the best matrix product of PyTorch, JAX and NumPy in the same rounds;
a step's arithmetic counts convolutions and linear layers only.

PyTorch has a process of its own, ours and plain Flax too; each waits while another is measured.
All keep their heap (`--heap`, see `workers.keep_heap` and `keep_heap_of`) and have as many threads
as there are cores, by their own default. OMP_WAIT_POLICY is left alone: PyTorch's threads spin for a moment after
their work, and a note says so if waiting processes took more than 2 % of a core.
"""

from __future__ import annotations

from typing import Any

import comparison
import harness
import torch_networks
import workers

# Milliseconds of PyTorch 2.13.0 on two Zen 4 cores with the heap kept, by variant and batch size; see `comparison`.
EXPECTED: dict[tuple[str, int], dict[str, float]] = {
    ("paper", 32): {
        "PyTorch channels-last": 1135,
        "PyTorch torch.compile": 1075,
        "PyTorch channels-last, own LRN": 945,
    },
    ("paper", 128): {"PyTorch torch.compile": 4872, "PyTorch channels-last, own LRN": 3920},
}
BEST = {("paper", 32): 1.15, ("paper", 128): 1.4, ("torchvision", 32): 1.1, ("torchvision", 128): 1.1}
EAGER = {("paper", 32): 1.5}
SHARE = {("paper", 128): 0.72}


def flax_target(variant: str) -> float | None:
    """What we want over plain Flax."""
    if variant == "torchvision":
        return 1.3
    return 2.0 if variant in ("paper", "source2012", "bvlc_alexnet", "caffenet") else None  # with groups and LRN


def measure(
    arguments: Any, report: harness.Report, peers: list[str], variant: str, batch_size: int, team: workers.Team
) -> None:
    """All rows of one network at one batch size."""
    found = comparison.Comparison(arguments, report, f"training {variant}, batch {batch_size}", team)
    network = found.network(variant, batch_size)
    found.limits("product", comparison.libraries(peers))
    found.ours("ours", **network)
    found.ours('forms="reference"', **network, forms="reference")
    found.ours("program", **network, work="program")
    if "Flax" in peers:
        found.peer("plain Flax", "Flax", **network, precision=arguments.precision)
    stock = [f"PyTorch {form}" for form in torch_networks.STOCK]
    forms = [
        form
        for form, options in torch_networks.FORMS.items()
        if not (options.compiled and arguments.no_compile) and not (options.own_norm and variant == "torchvision")
    ]
    if "PyTorch" in peers and variant in torch_networks.NETWORKS:
        for form in forms:
            more = {"precision": arguments.precision, "device": arguments.device}
            found.peer(f"PyTorch {form}", "PyTorch", **network, form=form, **more)
    found.measure()
    key = (variant, batch_size)
    best = found.best(stock)
    for form in forms:
        name = f"PyTorch {form}"
        target = BEST.get(key) if name == best else EAGER.get(key) if form == "eager" else None
        found.compare("ours", name, target=target, best_stock=name == best)
    found.compare("ours", "plain Flax", target=flax_target(variant))
    found.compare("ours", 'forms="reference"', peer_name='ours, forms="reference"')
    found.compare("program", "ours", case="program", peer_name="ours, the bare step")
    training = comparison.operations(arguments, variant, training=True)
    found.share("ours", training, target=SHARE.get(key))
    found.check_peers(EXPECTED.get(key, {}))
    found.close()


if __name__ == "__main__":
    comparison.run(__doc__, "Training step: images a second", ("PyTorch", "Flax"), (32, 128), measure)

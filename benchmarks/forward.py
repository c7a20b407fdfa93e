"""Inference against PyTorch, ONNX Runtime and plain Flax, and against the machine's matrix product.

    python benchmarks/forward.py [--quick] [--json FILE] [--variants paper torchvision] [--batch-sizes 1 32 128]

Images a second of a forward pass to logits at full size, random images that stay on the device,
float32 unless `--precision` says otherwise. The peers, all in the same run:

- PyTorch in inference mode: eager (NCHW), channels-last, and `torch.compile` with channels-last;
- ONNX Runtime on the same network as a graph of ONNX's operators (float32 on a CPU only), its
  default options;
- plain Flax, and our `forms="reference"`.

Processes, threads, heap and limit are as in `step.py`.
"""

from __future__ import annotations

from typing import Any

import comparison
import harness
import torch_networks
import workers

# Milliseconds on two Zen 4 cores, PyTorch 2.13.0; see `comparison`.
EXPECTED: dict[tuple[str, int], dict[str, float]] = {
    ("paper", 1): {"PyTorch eager": 30.9, "PyTorch torch.compile": 23.1, "ONNX Runtime": 21.9},
    ("paper", 32): {"PyTorch eager": 434, "PyTorch torch.compile": 419, "ONNX Runtime": 432},
    ("paper", 128): {"PyTorch eager": 1665, "ONNX Runtime": 1701},
}
BEST = {("paper", 1): 1.0, ("paper", 32): 1.5, ("paper", 128): 1.5}


def measure(
    arguments: Any, report: harness.Report, peers: list[str], variant: str, batch_size: int, team: workers.Team
) -> None:
    """All rows of one network at one batch size."""
    found = comparison.Comparison(arguments, report, f"inference {variant}, batch {batch_size}", team)
    network = found.network(variant, batch_size)
    found.limits("product", comparison.libraries(peers))
    found.ours("ours", **network, work="forward")
    found.ours('forms="reference"', **network, work="forward", forms="reference")
    names = []
    if "PyTorch" in peers and variant in torch_networks.NETWORKS:
        for form in torch_networks.STOCK:
            if not (torch_networks.FORMS[form].compiled and arguments.no_compile):
                more = {"precision": arguments.precision, "device": arguments.device, "training": False}
                names.append(f"PyTorch {form}")
                found.peer(names[-1], "PyTorch", **network, form=form, **more)
    if "ONNX Runtime" in peers and arguments.precision == "float32" and arguments.device == "cpu":
        names.append("ONNX Runtime")
        found.peer(names[-1], "ONNX Runtime", **network)
    if "Flax" in peers:
        found.peer("plain Flax", "Flax", **network, precision=arguments.precision, training=False)
    found.measure()
    best = found.best(names)
    for name in names:
        target = BEST.get((variant, batch_size)) if name == best else None
        found.compare("ours", name, target=target, best_stock=name == best)
    found.compare("ours", "plain Flax")
    found.compare("ours", 'forms="reference"', peer_name='ours, forms="reference"')
    found.share("ours", comparison.operations(arguments, variant, training=False))
    found.check_peers(EXPECTED.get((variant, batch_size), {}))
    found.close()


if __name__ == "__main__":
    comparison.run(__doc__, "Inference: images a second", ("PyTorch", "ONNX Runtime", "Flax"), (1, 32, 128), measure)

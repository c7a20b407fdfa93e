"""A new head on trained layers: weights from a file, convolutions frozen, another number of classes.

    python examples/fine_tune.py

A network learns the digits 0 to 5 and is saved; another takes its convolutions for the digits 6 to 9,
of which it sees 80 images. `train.py` does the same with `config.init_from` (docs/recipes.md).
"""

from __future__ import annotations

import pathlib
import tempfile

import digits
import jax
import numpy as np
from flax import nnx

from alexnet_jax import load_weights
from alexnet_jax.weights import Weights, save_safetensors


def main() -> None:
    images, _, labels, _ = digits.load(range(6))
    base = digits.network(num_classes=6)
    digits.train(base, images, labels)

    images, test_images, labels, test_labels = digits.load(range(6, 10))
    images, labels = images[:80], labels[:80]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "base.safetensors"
        save_safetensors(Weights(base, "fresh", ()), path)
        # The head of six classes does not fit and is left as it was made; the log says so.
        model = load_weights(path, num_classes=4, partial=True)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    print(f"error of the new head before: {digits.error(model, test_images, test_labels):.1f} %")

    digits.train(model, images, labels, steps=60, frozen=lambda layer: layer.startswith("conv"))
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    for layer, leaves in after.items():
        same = all(np.array_equal(leaves[leaf], before[layer][leaf]) for leaf in leaves)
        print(f"{layer}: {'as it was' if same else 'trained'}")
        if same != layer.startswith("conv"):
            raise SystemExit(f"{layer} should {'not ' if same else ''}have stayed")
    error = digits.error(model, test_images, test_labels)
    print(f"error with trained convolutions, frozen: {error:.1f} %")

    fresh = digits.network(num_classes=4)
    digits.train(fresh, images, labels, steps=60, frozen=lambda layer: layer.startswith("conv"))
    other = digits.error(fresh, test_images, test_labels)
    print(f"error with random convolutions, frozen: {other:.1f} %")
    if error > 15:
        raise SystemExit("the new head has not learnt")


if __name__ == "__main__":
    main()

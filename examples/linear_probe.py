"""How much each layer knows: a linear classifier on its activations.

    python examples/linear_probe.py

Prints a table: a layer, how many numbers it has, and the test error of a linear classifier on
them (least squares with a penalty), with random weights and after training on the digits.
"""

from __future__ import annotations

import digits
import numpy as np
from flax import nnx
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from alexnet_jax import AlexNet, preprocess

LAYERS = ("pool1", "pool2", "pool3", "logits")


def probes(model: AlexNet, data: tuple[np.ndarray, ...]) -> dict[str, tuple[int, float]]:
    """The width of each layer and the test error in per cent of a linear classifier on it."""
    images, test_images, labels, test_labels = data
    activations = nnx.jit(lambda model, images: model.activations(images, LAYERS)[1])
    train, test = (activations(model, preprocess(x, model)) for x in (images, test_images))
    found = {}
    for layer in LAYERS:
        rows, test_rows = (np.asarray(x[layer]).reshape(len(x[layer]), -1) for x in (train, test))
        classifier = make_pipeline(StandardScaler(), RidgeClassifier(alpha=100.0))
        found[layer] = (rows.shape[1], 100 * (1 - classifier.fit(rows, labels).score(test_rows, test_labels)))
    return found


def main() -> None:
    images, test_images, labels, test_labels = digits.load()
    data = images[:400], test_images, labels[:400], test_labels
    model = digits.network()
    random = probes(model, data)
    digits.train(model, images, labels)
    trained = probes(model, data)
    print(f"{'layer':<8} {'width':>6} {'random':>9} {'trained':>9}")
    for layer in LAYERS:
        print(f"{layer:<8} {random[layer][0]:>6} {random[layer][1]:>7.1f} % {trained[layer][1]:>7.1f} %")
    if trained["logits"][1] > 10 or trained["logits"][1] >= random["logits"][1]:
        raise SystemExit("training has not helped the last layer")


if __name__ == "__main__":
    main()

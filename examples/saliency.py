"""Which pixels decide: the gradient of a class's score by the image, drawn beside it.

    python examples/saliency.py --out saliency.png

The map is the largest absolute gradient over the channels (Simonyan et al. 2014, section 3).
"""

from __future__ import annotations

import argparse
import pathlib

import digits
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from alexnet_jax import AlexNet, preprocess


def saliency(model: AlexNet, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The predicted classes (N,), and maps (N, size, size) of the gradients of their scores."""

    def score(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = model(images)
        return logits.max(-1).sum(), logits.argmax(-1)  # an image's score depends on no other image

    grads, predicted = jax.grad(score, has_aux=True)(images)
    return predicted, jnp.abs(grads).max(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("saliency.png"), help="the picture, a PNG")
    options = parser.parse_args()
    matplotlib.use("Agg")
    from matplotlib import pyplot

    images, test_images, labels, test_labels = digits.load()
    model = digits.network()
    digits.train(model, images, labels)
    chosen = [int(np.flatnonzero(test_labels == digit)[0]) for digit in range(10)]
    inputs = preprocess(test_images[chosen], model)
    predicted, maps = jax.jit(lambda images: saliency(model, images))(inputs)

    figure, axes = pyplot.subplots(2, 10, figsize=(10, 2.4), layout="constrained")
    for column, index in enumerate(chosen):
        axes[0, column].imshow(test_images[index])
        axes[0, column].set_title(int(predicted[column]), fontsize=9)
        axes[1, column].imshow(maps[column], cmap="magma")
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    axes[0, 0].set_ylabel("image", fontsize=9)
    axes[1, 0].set_ylabel("|gradient|", fontsize=9)
    figure.suptitle("Digits with the predicted class, and where its score is sensitive", fontsize=10)
    figure.savefig(options.out, dpi=150)

    right = int(np.sum(np.asarray(predicted) == np.arange(10)))
    print(f"{right} of 10 digits are recognised; {options.out}")
    # Strokes matter more than the empty border, or the map says nothing.
    middle, border = maps[:, 8:-8, 8:-8].mean(), maps[:, :3].mean()
    if right < 8 or middle < 1.5 * border:
        raise SystemExit(f"the network has not learnt, or its maps are flat ({middle:.3g} against {border:.3g})")


if __name__ == "__main__":
    main()

"""The paper's network and training on ImageNet, to the letter of its text.

Krizhevsky, Sutskever, Hinton 2012: sections 3 to 5. Where the text leaves a choice, docs/recipes.md
says which was made. Its initialisation is 0.01 everywhere with biases of 1, and networks of this kind
have been seen to stay at ln(1000) = 6.9; source2012_imagenet.py is what the authors' code did, and trained.

Cost: 1,281,167 images × 90 epochs × 4.1 GFLOP (a training step needs three times the 0.72 G
multiply-accumulates, less conv1's input gradient) are 0.48 EFLOP: 13 hours on a GPU that sustains 10 TFLOP/s,
28 days on two CPU cores at the 47 images/s that docs/performance.md has. An estimate: the run was not made. The paper
took five to six days on two GTX 580.
Result: 40.7 % top-1 and 18.2 % top-5 error on ILSVRC-2012's validation images, ten crops (the paper, table 2; its
authors' code has details of its own). Not measured here.
Command:
    alexnet-jax prepare imagenet:DIR --out data/imagenet-256
    python train.py --config=configs/paper_imagenet.py
    alexnet-jax evaluate runs/paper_imagenet --crops ten
"""

from alexnet_jax.training.recipes import imagenet, sized


def get_config(argument=None):
    """The recipe; "tiny" is two steps of a small one."""
    config = imagenet()
    config.data.colour_noise = "paper"
    config.optimizer.schedule = "plateau"
    config.num_epochs = 90
    return sized(config, argument)

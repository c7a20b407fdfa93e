"""torchvision's network, trained as near to its reference script as our views allow.

The script (pytorch/vision, references/classification/README.md and train.py): batch 32 on each of 8 GPUs, 90 epochs,
rate 0.01 for AlexNet (`--lr 1e-2`) divided by 10 every 30 epochs, momentum 0.9, weight decay 1e-4 on weights and
biases. Two differences: it crops a random part of random shape out of the whole image (RandomResizedCrop), here it
is a random 224 × 224 window of the prepared 256 × 256; and it trains on an epoch's incomplete last batch as well.

Cost: 1,281,167 images × 90 epochs × 4.1 GFLOP (0.71 G multiply-accumulates, trained) are 0.47 EFLOP: 13 hours on a
GPU that sustains 10 TFLOP/s. An estimate: nothing of it was measured here.
Result: 56.522 % top-1 and 79.066 % top-5 accuracy, so 43.478 and 20.934 % error, on ILSVRC-2012's validation
images, central crop (torchvision's documentation). Not measured here, and the crops differ.
Command:
    alexnet-jax prepare imagenet:DIR --out data/imagenet-256
    python train.py --config=configs/torchvision_imagenet.py
    alexnet-jax evaluate runs/torchvision_imagenet
"""

from alexnet_jax.training.recipes import imagenet, sized


def get_config(argument=None):
    """The recipe; "tiny" is two steps of a small one."""
    config = imagenet("torchvision")
    config.batch_size = 256
    config.optimizer.weight_decay = 1e-4
    config.optimizer.drop_epochs = (30, 60)
    config.num_epochs = 90
    return sized(config, argument)

"""Caffe's bvlc_alexnet: its network, input and solver.

Images warped to 256 × 256, BGR, less the mean image at the crop's place; batch 256, rate 0.01 divided by 10 every
100,000 steps, biases at twice the rate and without decay; 450,000 steps (Caffe's released weights are those
after 360,000). One difference: Caffe's batches run on over the end of an epoch, here they begin anew.

Cost: 450,000 steps × 256 images × 4.1 GFLOP are 0.48 EFLOP: 13 hours on a GPU that sustains 10 TFLOP/s.
An estimate: nothing of it was measured here.
Result: 57.1 % top-1 and 80.2 % top-5 accuracy, so 42.9 and 19.8 % error, on ILSVRC-2012's validation images,
central crop (Caffe's model zoo). Not measured here.
Command:
    alexnet-jax prepare imagenet:DIR --out data/imagenet-256-warp --resize warp
    python train.py --config=configs/caffe_imagenet.py
    alexnet-jax evaluate runs/caffe_imagenet
The reference CaffeNet (57.4 / 80.4 %): --config.model.name=caffenet --workdir=runs/caffenet.
"""

from alexnet_jax.training.recipes import imagenet, sized


def get_config(argument=None):
    """The recipe; "tiny" is two steps of a small one."""
    config = imagenet("bvlc_alexnet")
    config.data.source = "data/imagenet-256-warp"
    config.batch_size = 256
    config.optimizer.bias_rate_multiplier = 2.0
    config.optimizer.decay_biases = False
    config.optimizer.drop_epochs = ()
    config.optimizer.drop_steps = (100_000, 200_000, 300_000, 400_000)
    config.num_steps = 450_000
    return sized(config, argument)

"""The 2012 source code's run 145 on ImageNet: the network and the timetable behind the paper's table 2.

The source's order of blocks, norms and initialisation; no weight decay on biases; one crop and one flip for 32
images; its colour noise, with the input ÷ 1.1 while it is on; rates by a timetable; a short last batch
takes a full step. One difference: the source does not shuffle, this does.

Cost: 1,281,167 images × 91 epochs × 4.1 GFLOP are 0.48 EFLOP: 13 hours on a GPU that sustains 10 TFLOP/s.
An estimate: nothing of it was measured here.
Result: 40.664 % top-1 and 18.210 % top-5 error on ILSVRC-2012's validation images, ten crops (the source's
own figures; --config.num_epochs=135 goes on with its timetable, to 40.25 / 17.99). Not measured here.
Command:
    alexnet-jax prepare imagenet:DIR --out data/imagenet-256
    python train.py --config=configs/source2012_imagenet.py
    alexnet-jax evaluate runs/source2012_imagenet --crops ten --ties fractional
"""

from alexnet_jax.training.recipes import imagenet, sized


def get_config(argument=None):
    """The recipe; "tiny" is two steps of a small one."""
    config = imagenet("source2012")
    config.data.colour_noise = "source2012"
    config.data.shared_draw = 32
    config.data.last_batch = "keep"
    config.optimizer.schedule = "source2012_145"
    config.optimizer.decay_biases = False
    config.num_epochs = 91
    return sized(config, argument)

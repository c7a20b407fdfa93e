"""Fine-tuning a network of this project on other classes: the sixth-layer network of the paper's table 2.

The paper trained a network with a sixth convolution on ImageNet's Fall 2011 release (21,843 classes; the 2012 source
put a linear bottleneck of 2 × 1,024 before them, which is not offered here) and fine-tuned it on
ILSVRC-2012: conv1 at 1e-4 and frozen from epoch 7, a new head at 0.01, the rest at 1e-3, and so on
(`source2012_finetune`). The biases' rates are not recorded: here they are twice those of the weights.

For your own: --config.init_from=WORKDIR and your data; without the sixth layer
--config.model.sixth_conv=False --config.init_skip=fc8.

Cost: 1,281,167 images × 54 epochs × 4.2 GFLOP are 0.29 EFLOP: 8 hours on a GPU that sustains 10 TFLOP/s. The
training before it is on some 12 times as many images (15 million; the paper, section 2). An estimate: nothing of it
was measured here.
Result: 38.990 % top-1 and 16.622 % top-5 error on ILSVRC-2012's validation images, ten crops (the source's
146-2012-2011, "1 CNN*" of the paper's table 2: 39.0 / 16.6). Not measured here.
Command:
    python train.py --config=configs/source2012_imagenet.py --config.model.sixth_conv=True \\
        --config.data.source=data/fall2011-256 --workdir=runs/pretrained
    python train.py --config=configs/finetune.py
"""

from alexnet_jax.training.recipes import imagenet, sized


def get_config(argument=None):
    """The recipe; "tiny" is two steps of a small one."""
    config = imagenet("source2012")
    config.model.sixth_conv = True
    config.init_from = "runs/pretrained"
    config.init_skip = "fc9"
    config.data.colour_noise = "source2012"
    config.data.shared_draw = 32
    config.data.last_batch = "keep"
    config.optimizer.schedule = "source2012_finetune"
    config.optimizer.decay_biases = False
    config.num_epochs = 54
    return sized(config, argument)

"""One big GPU: bfloat16, batch 1,024, a warm-up and half a cosine. How accurate it gets is not known.

The rate grows with the batch (0.01 × 1,024 / 128) and is warmed up over five epochs, as Goyal et al. 2017
("Accurate, large minibatch SGD") do for ResNet-50; for this network it was not tried. The source's initialisation.

Cost: 1,281,167 images × 90 epochs × 4.1 GFLOP are 0.48 EFLOP. An H200 took 44,000 images a second, without colour
noise, from a prepared folder in the page cache (docs/performance.md): 43 minutes. The whole was never run.
Result: not measured, here or elsewhere.
Command:
    alexnet-jax prepare imagenet:DIR --out data/imagenet-256
    python train.py --config=configs/fast_imagenet.py
"""

from alexnet_jax.training.recipes import imagenet, sized


def get_config(argument=None):
    """The recipe; "tiny" is two steps of a small one."""
    config = imagenet()
    config.model.init = "source2012"
    config.data.colour_noise = "paper"
    config.batch_size = 1024
    config.precision = "bfloat16"
    config.optimizer.schedule = "warmup_cosine"
    config.optimizer.learning_rate = 0.08
    config.optimizer.cosine_epochs = 90
    config.num_epochs = 90
    return sized(config, argument)

"""The paper's figure 1, the solid line: a small ReLU network on CIFAR-10, to 25 % training error.

The network is assumed: cuda-convnet's "18 %" net, with its initialisation and rates; the paper gives none. As
the paper says, nothing is regularised: no decay, no dropout, and the whole image is seen. The paper chose each
line's rate separately, to train as fast as possible: try some with --config.optimizer.learning_rate.

Cost: 50,000 images × 40 epochs × 0.07 GFLOP are 0.15 PFLOP (12 M multiply-accumulates an image, trained): half an hour
on two CPU cores at 100 GFLOP/s. An estimate: it was not measured here.
Result: ReLU reaches 25 % training error in a sixth of the iterations that tanh takes (figure1_tanh.py; the paper,
figure 1). Not measured here.
Command:
    python train.py --config=configs/figure1_relu.py --config.data.source=cifar10:DIR
"""

from alexnet_jax.training.config import default_config
from alexnet_jax.training.recipes import sized


def get_config(argument=None):
    """The recipe; "tiny" is two steps of a small one."""
    config = default_config()
    config.model.name = "cifar"
    config.model.width = config.model.hidden_width = 1.0
    config.model.init = None
    config.data.source = "cifar10:data/cifar10"
    config.data.image_size = config.data.crop_size = None
    config.batch_size = 128
    config.optimizer.schedule = "constant"
    config.optimizer.learning_rate = 0.001
    config.optimizer.bias_rate_multiplier = 2.0
    config.optimizer.weight_decay = 0.0
    config.num_epochs = 40
    return sized(config, argument)

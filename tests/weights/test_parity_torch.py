"""Files that PyTorch itself has written, of networks written out in PyTorch: the same logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models.builders import distance, pictures
from models.builders import narrow as narrow_spec

from alexnet_jax import load_weights
from alexnet_jax.weights import WeightsError

pytestmark = pytest.mark.parity


def torchvision_like(torch, widths, hidden, num_classes, *, adaptive):
    """torchvision's `alexnet`; without the adaptive pool, the half-width listing."""
    nn = torch.nn
    a, b, c, d, e = widths

    class AlexNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(
                *(nn.Conv2d(3, a, 11, stride=4, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
                *(nn.Conv2d(a, b, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
                *(nn.Conv2d(b, c, 3, padding=1), nn.ReLU(inplace=True)),
                *(nn.Conv2d(c, d, 3, padding=1), nn.ReLU(inplace=True)),
                *(nn.Conv2d(d, e, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
            )
            self.avgpool = nn.AdaptiveAvgPool2d((6, 6)) if adaptive else nn.Identity()
            self.classifier = nn.Sequential(
                *(nn.Dropout(), nn.Linear(e * 36, hidden), nn.ReLU(inplace=True)),
                *(nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(inplace=True)),
                nn.Linear(hidden, num_classes),
            )

        def forward(self, x):
            return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))

    torch.manual_seed(0)
    net = AlexNet().eval()
    with torch.no_grad():  # PyTorch's own start leaves logits of 0.02
        for parameter in net.parameters():
            if parameter.ndim > 1:
                torch.nn.init.kaiming_uniform_(parameter)
    return net


NETWORKS = {
    "torchvision": ((64, 192, 384, 256, 256), 4096, 1000, True),
    "half": ((48, 128, 192, 192, 128), 2048, 5, False),
}


@pytest.fixture(scope="module", params=NETWORKS)
def theirs(request, torch):
    widths, hidden, num_classes, adaptive = NETWORKS[request.param]
    return request.param, torchvision_like(torch, widths, hidden, num_classes, adaptive=adaptive)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
def test_the_same_logits(theirs, torch, tmp_path, new):
    name, net = theirs
    torch.save(net.state_dict(), tmp_path / "w.pth", _use_new_zipfile_serialization=new)
    model = load_weights(tmp_path / "w.pth")
    assert model.spec.name == name

    images = pictures(model.spec).astype(np.float32)
    graph, state = nnx.split(model)
    ours = jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, jnp.asarray(images))
    with torch.no_grad():
        expected = net(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
    assert ours.shape == expected.shape
    assert distance(ours, expected) < 1e-5
    assert expected.std() > 0.1  # it is not a constant that agrees


@pytest.fixture(scope="module")
def narrow(torch):
    return torchvision_like(torch, (8, 16, 12, 12, 8), 16, 7, adaptive=True)


def spec_of(net):
    assert net.classifier[6].out_features == 7
    return narrow_spec("torchvision", size=224)


def assert_same(model, net):
    for name, ours in (("conv2", net.features[3]), ("fc8", net.classifier[6])):
        kernel = ours.weight.detach().float().numpy()
        expected = kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T
        np.testing.assert_array_equal(np.asarray(getattr(model, name).kernel[...]), expected)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
def test_what_else_torch_saves(narrow, torch, tmp_path, new):
    """A whole checkpoint with momentum, parameters that need gradients, views, other types and memory formats."""
    path, options = tmp_path / "w.pth", {"_use_new_zipfile_serialization": new}
    optimizer = torch.optim.SGD(narrow.parameters(), lr=0.1, momentum=0.9)
    sum(parameter.sum() for parameter in narrow.parameters()).backward()
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    everything = {"epoch": 3, "loss": 0.5, "optimizer": optimizer.state_dict(), "state_dict": narrow.state_dict()}
    torch.save(everything, path, **options)
    assert_same(load_weights(path, variant=spec_of(narrow)), narrow)

    torch.save(dict(narrow.named_parameters()), path, **options)
    assert_same(load_weights(path, variant=spec_of(narrow)), narrow)

    last = {name: value.contiguous() for name, value in narrow.state_dict().items()}
    last["features.3.weight"] = last["features.3.weight"].to(memory_format=torch.channels_last)
    last["classifier.6.weight"] = torch.cat([last["classifier.6.weight"]] * 2)[7:]
    torch.save(last, path, pickle_protocol=4, **options)
    assert_same(load_weights(path, variant=spec_of(narrow)), narrow)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
def test_what_torch_saves_that_is_no_state_dict(narrow, torch, tmp_path, new):
    path, options = tmp_path / "w.pth", {"_use_new_zipfile_serialization": new}
    state = narrow.state_dict()
    cases = {
        "torch._utils._rebuild_sparse_tensor": {
            **state,
            "classifier.6.weight": state["classifier.6.weight"].to_sparse(),
        },
        "torch.nn.modules.linear.Linear": narrow.classifier[6],
    }
    for words, thing in cases.items():
        torch.save(thing, path, **options)
        with pytest.raises(WeightsError, match=words.replace(".", r"\.")):
            load_weights(path)
    expanded = {**state, "classifier.6.bias": torch.ones(1).expand(7)}
    torch.save(expanded, path, **options)
    with pytest.raises(WeightsError, match=r"save tensor\.clone\(\)"):
        load_weights(path)

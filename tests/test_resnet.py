import pytest
import torch
from torch import nn
from torchvision import models

import resnet
from resnet import LAYERS, ResNet


def pair(name):
    """torchvision's network with statistics as if trained, and ours with the same weights."""
    torch.manual_seed(0)
    peer = getattr(models, name)()
    for norm in (module for module in peer.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean, std=0.1)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
        nn.init.uniform_(norm.weight, 0.2, 0.4)  # else what goes around blocks grows and grows
        nn.init.normal_(norm.bias, std=0.1)
    peer.fc = nn.Identity()
    ours = ResNet(name)
    ours.load_state_dict(peer.state_dict())
    return ours, peer


@pytest.mark.parametrize("name", LAYERS)
def test_equals_torchvisions(name):
    ours, peer = pair(name)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = peer.eval()(images)
        assert expected.shape == (2, ours.feature_size)
        torch.testing.assert_close(ours.eval()(images), expected, rtol=1e-4, atol=1e-5)


def test_fused_and_in_parts_or_not_the_numbers_are_the_same(monkeypatch):
    """oneDNN's fused convolutions are not in PyTorch's documentation: without them it works too."""
    ours, _ = pair("resnet50")
    images = torch.randn(5, 3, 64, 64)
    with torch.inference_mode():
        expected = ours.eval()(images)
        monkeypatch.setattr(resnet, "AT_ONCE", 2)
        torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-5)
        monkeypatch.setattr(resnet, "FUSES", False)
        torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_the_last_stages_beside_a_fused_rest():
    ours, peer = pair("resnet18")
    images = torch.randn(2, 3, 64, 64)
    for network in (ours.eval(), peer.eval()):
        network.requires_grad_(False)
        network.layer4.requires_grad_(True)
        network(images).square().mean().backward()
    torch.testing.assert_close(
        ours.layer4[0].conv1.weight.grad,
        peer.layer4[0].conv1.weight.grad,
        rtol=1e-3,
        atol=1e-4,
    )
    assert ours.layer3[0].conv1.weight.grad is None


def test_equals_torchvisions_with_the_statistics_of_the_batch():
    ours, peer = pair("resnet18")
    images = torch.randn(4, 3, 64, 64)
    torch.testing.assert_close(ours.train()(images), peer.train()(images), rtol=1e-3, atol=1e-3)
    for name, value in peer.state_dict().items():  # and both take in the same of them
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-3, atol=1e-3)


def test_gradients_pass_through_a_batchnorm_that_is_part_of_its_convolution():
    ours, peer = pair("resnet50")
    images = torch.randn(2, 3, 64, 64)
    for network in (ours, peer):
        network.eval()(images).square().mean().backward()
    for name, expected in peer.named_parameters():
        if "conv" in name:
            found = ours.get_parameter(name).grad
            torch.testing.assert_close(found, expected.grad, rtol=1e-3, atol=1e-4)

import pytest
import torch
from torch import nn
from torchvision import models

import resnet
from resnet import ALL_LAYERS, BLOCKS_PER_LAYER, FoldedResNet, ResNet


def pair(name):
    """torchvision's network with statistics as if trained, and ours with the same weights."""
    torch.manual_seed(0)
    peer = getattr(models, name)()
    for norm in (module for module in peer.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean, std=0.1)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
        nn.init.uniform_(norm.weight, 0.2, 0.4)  # else the shortcuts' sum grows and grows
        nn.init.normal_(norm.bias, std=0.1)
    peer.fc = nn.Identity()
    ours = ResNet(name)
    ours.load_state_dict(peer.state_dict())
    return ours, peer


@pytest.mark.parametrize("name", BLOCKS_PER_LAYER)
def test_equals_torchvisions(name):
    ours, peer = pair(name)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = peer.eval()(images)
        assert expected.shape == (2, ours.feature_size)
        torch.testing.assert_close(ours.eval()(images), expected, rtol=1e-4, atol=1e-5)
        folded = FoldedResNet(ours, torch.float32)
        torch.testing.assert_close(folded(images), expected, rtol=1e-4, atol=1e-5)


def test_fused_and_in_parts_or_not_the_numbers_are_the_same(monkeypatch):
    """oneDNN's fused convolutions are not in PyTorch's documentation: without them it works too."""
    ours, _ = pair("resnet50")
    images = torch.randn(5, 3, 64, 64)
    folded = FoldedResNet(ours.eval(), torch.float32)
    expected = ours(images)
    monkeypatch.setattr(resnet, "BATCH_IN_CACHE", 2)
    torch.testing.assert_close(folded(images), expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(resnet, "HAS_FUSED_CONV", False)
    torch.testing.assert_close(folded(images), expected, rtol=1e-4, atol=1e-5)


def test_images_of_another_size_follow():
    """oneDNN's order of the weights depends on the size: one kept for another takes thrice as long.

    So it is renewed; whichever it is, the numbers are the same.
    """
    ours, _ = pair("resnet50")
    folded = FoldedResNet(ours.eval(), torch.float32)
    with torch.inference_mode():
        for n_images, side in ((1, 64), (3, 64), (2, 75), (1, 64)):
            images = torch.randn(n_images, 3, side, side)
            torch.testing.assert_close(folded(images), ours(images), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="a processor without bfloat16"
)
def test_casts_its_input_to_its_dtype():
    ours, _ = pair("resnet18")
    images = torch.randn(2, 3, 64, 64)
    found = FoldedResNet(ours.eval(), torch.bfloat16)(images)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), ours(images), rtol=0.05, atol=0.05)
    assert images.dtype == torch.float32


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("n_frozen", range(1, ALL_LAYERS))
def test_folded_first_layers_and_the_rest_are_the_whole(name, n_frozen):
    ours, _ = pair(name)
    images = torch.randn(2, 3, 64, 64)
    maps = FoldedResNet(ours.eval(), torch.float32, n_frozen)(images)
    found = ours.run_layers(maps, first=n_frozen)
    torch.testing.assert_close(found, ours(images), rtol=1e-4, atol=1e-5)


def test_folding_is_a_copy_without_gradients():
    ours, _ = pair("resnet18")
    images = torch.randn(2, 3, 64, 64)
    folded = FoldedResNet(ours.eval(), torch.float32)
    before = folded(images)
    with torch.no_grad():
        ours.conv1.weight.zero_()
        ours.bn1.running_mean.fill_(9)
    assert torch.equal(folded(images), before)
    assert not before.requires_grad
    assert not torch.equal(FoldedResNet(ours, torch.float32)(images), before)


@pytest.mark.parametrize("is_folded", [False, True])
def test_gradients_of_the_last_layers(is_folded):
    ours, peer = pair("resnet18")
    images = torch.randn(2, 3, 64, 64)
    for network in (ours.eval(), peer.eval()):
        network.requires_grad_(False)
        network.layer4.requires_grad_(True)
    if is_folded:
        features = ours.run_layers(FoldedResNet(ours, torch.float32, 4)(images), first=4)
    else:
        features = ours(images)
    features.square().mean().backward()
    peer(images).square().mean().backward()
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

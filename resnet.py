"""ResNet (arXiv:1512.03385), built and named as torchvision's, so that its weights fit.

It is written out here for two reasons: torchvision takes as long to import as torch itself, and
what comes after a convolution can be a part of it: a BatchNorm whose statistics stand still, and,
where no gradient is wanted, the sum and the ReLU.
"""

# N images, C channels, S side of an image, F features: the length of the pooled vector.

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Name → blocks in each of the four stages; with three convolutions in a block, or with two.
LAYERS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
BOTTLENECK = ("resnet50", "resnet101", "resnet152")

AT_ONCE = 8  # images: what a CPU computes of more does not stay in its cache

# oneDNN's convolution with what follows it, as torch.compile uses it: three times as fast as one
# after the other on processors whose memory is slow beside their arithmetic. Tried on x86 only.
FUSES = platform.machine() in ("x86_64", "AMD64") and hasattr(
    torch.ops.mkldnn, "_convolution_pointwise"
)

Folded = tuple[Tensor, Tensor]  # a convolution's weight and bias, its BatchNorm in them
Fold = Callable[[nn.Conv2d, nn.BatchNorm2d], Folded]


class ResNet(nn.Module):
    """The network up to its pooled vectors, without the layer that names ImageNet's classes."""

    def __init__(self, name: str) -> None:
        """Random weights, after He et al. 2015, arXiv:1502.01852.

        Args:
            name: one of ``LAYERS``.

        Attributes:
            feature_size: F.
        """
        super().__init__()
        self.conv1 = _convolution(3, 64, kernel=7, stride=2)
        self.bn1 = nn.BatchNorm2d(64)
        n_channels = 64
        for number, n_blocks in enumerate(LAYERS[name], start=1):
            stage = nn.Sequential()
            for i in range(n_blocks):
                stride = 2 if number > 1 and i == 0 else 1
                width = 64 * 2 ** (number - 1)
                stage.append(Block(n_channels, width, stride, bottleneck=name in BOTTLENECK))
                n_channels = stage[-1].n_out
            self.add_module(f"layer{number}", stage)
        self.feature_size = n_channels

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) normalised images → (N, F)."""
        device, dtype = images.device.type, images.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        images = images.to(dtype, memory_format=torch.channels_last)
        fold = cache(partial(folded, dtype=dtype))  # once for all parts of the batch
        if device != "cpu" or self.training or torch.is_grad_enabled():
            return self._look(images, fold)
        return torch.cat([self._look(part, fold) for part in images.split(AT_ONCE)])

    def _look(self, images: Tensor, fold: Fold) -> Tensor:
        maps = convolve(images, self.conv1, self.bn1, fold)  # (N, 64, S/2, S/2)
        maps = F.max_pool2d(maps, kernel_size=3, stride=2, padding=1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                maps = block(maps, fold)
        return maps.mean(dim=(2, 3))  # of (N, F, S/32, S/32)


class Block(nn.Module):
    """Two or three convolutions, and a way around them."""

    def __init__(self, n_in: int, width: int, stride: int, *, bottleneck: bool) -> None:
        """From ``n_in`` channels to ``n_out``: ``width``, or four times that after a bottleneck."""
        super().__init__()
        if bottleneck:
            self.n_out = 4 * width
            shapes = [(n_in, width, 1, 1), (width, width, 3, stride), (width, self.n_out, 1, 1)]
        else:
            self.n_out = width
            shapes = [(n_in, width, 3, stride), (width, width, 3, 1)]
        self.n_convolutions = len(shapes)
        for i, (before, after, kernel, step) in enumerate(shapes, start=1):
            self.add_module(f"conv{i}", _convolution(before, after, kernel=kernel, stride=step))
            self.add_module(f"bn{i}", nn.BatchNorm2d(after))
        self.downsample = None
        if stride > 1 or n_in != self.n_out:
            projection = _convolution(n_in, self.n_out, kernel=1, stride=stride)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(self.n_out))

    def forward(self, maps: Tensor, fold: Fold) -> Tensor:
        """(N, C, S, S) → (N, n_out, S/stride, S/stride); ``maps`` may be written over."""
        around = convolve(maps, *self.downsample, fold, relu=False) if self.downsample else maps
        for i in range(1, self.n_convolutions + 1):
            conv, norm = getattr(self, f"conv{i}"), getattr(self, f"bn{i}")
            plus = around if i == self.n_convolutions else None
            maps = convolve(maps, conv, norm, fold, plus=plus)
        return maps


def convolve(
    maps: Tensor,
    conv: nn.Conv2d,
    norm: nn.BatchNorm2d,
    fold: Fold,
    *,
    plus: Tensor | None = None,
    relu: bool = True,
) -> Tensor:
    """``relu(norm(conv(maps)) + plus)``: the same numbers in as few passes as can be.

    Args:
        maps: (N, C, S, S).
        conv: without a bias.
        norm: after it.
        fold: ``folded``, and the dtype of ``maps``.
        plus: of the result's shape; may be written over.
        relu: or without.
    """
    if norm.training:
        maps = norm(conv(maps))
    else:
        weight, bias = fold(conv, norm)
        wants_gradient = torch.is_grad_enabled() and (maps.requires_grad or weight.requires_grad)
        if FUSES and maps.device.type == "cpu" and not wants_gradient:
            return _fused(maps, weight, bias, conv, plus, relu)
        maps = F.conv2d(maps, weight, bias, conv.stride, conv.padding)
    if plus is not None:
        maps += plus
    return F.relu(maps, inplace=True) if relu else maps


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d, dtype: torch.dtype) -> Folded:
    """The one convolution that ``conv`` and then ``norm`` in eval mode are."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    weight = conv.weight * scale.view(-1, 1, 1, 1)
    bias = norm.bias - norm.running_mean * scale
    return weight.to(dtype), bias.to(dtype)


def _fused(
    maps: Tensor, weight: Tensor, bias: Tensor, conv: nn.Conv2d, plus: Tensor | None, relu: bool
) -> Tensor:
    run = torch.ops.mkldnn._convolution_pointwise
    shape = (conv.padding, conv.stride, conv.dilation, conv.groups)
    after = "relu" if relu else "none"
    if plus is None:
        return run(maps, weight, bias, *shape, after, [], "")
    into = torch.ops.mkldnn._convolution_pointwise_.binary
    return into(plus, maps, weight, bias, *shape, "add", 1.0, after, [], "")


def _convolution(n_in: int, n_out: int, *, kernel: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(n_in, n_out, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv

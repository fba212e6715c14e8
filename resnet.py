"""ResNet (arXiv:1512.03385), built and named as torchvision's, so that its weights fit.

It is written out here because torchvision takes as long to import as torch itself. `ResNet` is the
network as everyone knows it; `FoldedResNet` gives the same numbers several times as fast, without
gradients.
"""

# N images, C channels, S side of an image, F features: the length of the pooled vector.

from __future__ import annotations

import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Network → blocks in each of layer1 to layer4.
BLOCKS_PER_LAYER = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
BOTTLENECK = ("resnet50", "resnet101", "resnet152")

ALL_LAYERS = 5  # the stem, which counts as layer 0, and layer1 to layer4


class ResNet(nn.Module):
    """The network up to its pooled features, without the layer that names ImageNet's classes."""

    def __init__(self, name: str) -> None:
        """Random weights, after He et al. 2015, arXiv:1502.01852.

        Args:
            name: one of ``BLOCKS_PER_LAYER``.

        Attributes:
            feature_size: F.
        """
        super().__init__()
        if name not in BLOCKS_PER_LAYER:
            raise ValueError(
                f"unknown ResNet {name!r}: choose one of {', '.join(BLOCKS_PER_LAYER)}"
            )
        block = Bottleneck if name in BOTTLENECK else BasicBlock
        factor = block.expansion
        n1, n2, n3, n4 = BLOCKS_PER_LAYER[name]
        self.conv1 = _convolution(3, 64, kernel=7, stride=2)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _layer(block, n1, 64, 64, stride=1)
        self.layer2 = _layer(block, n2, 64 * factor, 128, stride=2)
        self.layer3 = _layer(block, n3, 128 * factor, 256, stride=2)
        self.layer4 = _layer(block, n4, 256 * factor, 512, stride=2)
        self.feature_size = 512 * factor

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) normalised images → (N, F)."""
        return self.run_layers(images, first=0)

    def run_layers(self, maps: Tensor, *, first: int) -> Tensor:
        """What layer ``first`` takes, (N, C, S, S) → (N, F); 0 is the stem, which takes images."""
        for layer in (self.stem, self.layer1, self.layer2, self.layer3, self.layer4)[first:]:
            maps = layer(maps)
        return maps.mean(dim=(2, 3))  # of (N, F, S/32, S/32)

    def stem(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) normalised images → (N, 64, S/4, S/4)."""
        maps = F.relu(conv_norm(images, self.conv1, self.bn1))
        return F.max_pool2d(maps, kernel_size=3, stride=2, padding=1)


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut around them."""

    expansion = 1  # channels that leave the block, by its width

    def __init__(self, n_in: int, width: int, stride: int) -> None:
        """From ``n_in`` channels to ``width``."""
        super().__init__()
        self.conv1 = _convolution(n_in, width, kernel=3, stride=stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, kernel=3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _downsample(n_in, width, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, S, S) → (N, C', S/stride, S/stride)."""
        # conv_norm(maps, conv, bn) is bn(conv(maps)), here and below.
        shortcut = conv_norm(maps, *self.downsample) if self.downsample else maps
        maps = F.relu(conv_norm(maps, self.conv1, self.bn1))
        return F.relu(conv_norm(maps, self.conv2, self.bn2) + shortcut)

    def pairs(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """The convolutions in order, each with the BatchNorm after it."""
        return [(self.conv1, self.bn1), (self.conv2, self.bn2)]


class Bottleneck(nn.Module):
    """Three convolutions, the middle one narrow, and a shortcut around them."""

    expansion = 4

    def __init__(self, n_in: int, width: int, stride: int) -> None:
        """From ``n_in`` channels to four times ``width``."""
        super().__init__()
        n_out = self.expansion * width
        self.conv1 = _convolution(n_in, width, kernel=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, kernel=3, stride=stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _convolution(width, n_out, kernel=1)
        self.bn3 = nn.BatchNorm2d(n_out)
        self.downsample = _downsample(n_in, n_out, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, S, S) → (N, C', S/stride, S/stride)."""
        shortcut = conv_norm(maps, *self.downsample) if self.downsample else maps
        maps = F.relu(conv_norm(maps, self.conv1, self.bn1))
        maps = F.relu(conv_norm(maps, self.conv2, self.bn2))
        return F.relu(conv_norm(maps, self.conv3, self.bn3) + shortcut)

    def pairs(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """The convolutions in order, each with the BatchNorm after it."""
        return [(self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)]


Block = BasicBlock | Bottleneck


def conv_norm(maps: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """``norm(conv(maps))``: (N, C, S, S) → (N, C', S', S').

    On a CPU a BatchNorm in eval mode is made a part of the convolution, which saves a pass over the
    maps, forward and backward: an eighth of the time of fine-tuning `layer3` and `layer4`.
    """
    if norm.training or maps.device.type != "cpu":
        maps = norm(conv(maps))
    else:
        maps = F.conv2d(maps, *fold(conv, norm), conv.stride, conv.padding)
    return maps


def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The weight and bias of the one convolution that ``conv`` and ``norm`` in eval mode are."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return conv.weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale


def _layer(
    block: type[Block], n_blocks: int, n_in: int, width: int, *, stride: int
) -> nn.Sequential:
    rest = (block(block.expansion * width, width, 1) for _ in range(n_blocks - 1))
    return nn.Sequential(block(n_in, width, stride), *rest)


def _downsample(n_in: int, n_out: int, stride: int) -> nn.ModuleList | None:
    if stride == 1 and n_in == n_out:
        return None
    convolution = _convolution(n_in, n_out, kernel=1, stride=stride)
    return nn.ModuleList([convolution, nn.BatchNorm2d(n_out)])


def _convolution(n_in: int, n_out: int, *, kernel: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(n_in, n_out, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


# ------------------------------------------------------------------ the same, made for inference

BATCH_IN_CACHE = 8  # images: what a CPU computes of more does not stay in its cache

# oneDNN's convolution with what follows it, as torch.compile uses it: three times as fast as one
# after the other on processors whose memory is slow beside their arithmetic. Tried on x86 only.
HAS_FUSED_CONV = platform.machine() in ("x86_64", "AMD64") and all(
    hasattr(torch.ops.mkldnn, name)
    for name in ("_convolution_pointwise", "_convolution_pointwise_", "_reorder_convolution_weight")
)


class FoldedResNet:
    """The first layers of a ResNet in eval mode, each BatchNorm folded into its convolution.

    A copy: it does not follow the ResNet's weights when these change. No gradients.
    """

    @torch.no_grad()
    def __init__(self, resnet: ResNet, dtype: torch.dtype, n_frozen: int = ALL_LAYERS) -> None:
        """Fold the weights, in float32.

        Args:
            resnet: copied from.
            dtype: that is computed in.
            n_frozen: how many of its first layers; 1 is the stem alone, ``ALL_LAYERS`` all and the
                pooling.
        """
        self.dtype, self.is_whole = dtype, n_frozen == ALL_LAYERS
        self.stem = _Folded(dtype, resnet.conv1, resnet.bn1)
        self.blocks: list[tuple[list[_Folded], _Folded | None]] = []
        for layer in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4)[: n_frozen - 1]:
            for block in layer:
                assert isinstance(block, Block)
                convolutions = [_Folded(dtype, conv, norm) for conv, norm in block.pairs()]
                downsample = _Folded(dtype, *block.downsample) if block.downsample else None
                self.blocks.append((convolutions, downsample))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) normalised images → (N, F), or what the next layer takes, (N, C, S, S)."""
        images = images.to(self.dtype, memory_format=torch.channels_last)
        if images.device.type != "cpu":
            return self._run(images)
        return torch.cat([self._run(part) for part in torch.split(images, BATCH_IN_CACHE)])

    def _run(self, images: Tensor) -> Tensor:
        maps = self.stem(images)  # (N, 64, S/2, S/2)
        maps = F.max_pool2d(maps, kernel_size=3, stride=2, padding=1)
        for convolutions, downsample in self.blocks:
            shortcut = downsample(maps, relu=False) if downsample else maps
            for convolution in convolutions[:-1]:
                maps = convolution(maps)
            maps = convolutions[-1](maps, shortcut)
        return maps.mean(dim=(2, 3)) if self.is_whole else maps


class _Folded:
    """A convolution and the BatchNorm after it as a single convolution with a bias."""

    def __init__(self, dtype: torch.dtype, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        weight, bias = fold(conv, norm)
        self.weight = weight.to(dtype, memory_format=torch.channels_last)
        self.bias = bias.to(dtype)
        self.stride, self.padding = conv.stride, conv.padding
        self.packed: tuple[torch.Size, Tensor] | None = None  # for maps of this size

    def __call__(
        self, maps: Tensor, shortcut: Tensor | None = None, *, relu: bool = True
    ) -> Tensor:
        """``relu(conv(maps) + shortcut)`` in few passes; ``shortcut`` may be written over."""
        if HAS_FUSED_CONV and maps.device.type == "cpu":
            return self._fused(maps, shortcut, relu)
        maps = F.conv2d(maps, self.weight, self.bias, self.stride, self.padding)
        if shortcut is not None:
            maps += shortcut
        return maps.relu_() if relu else maps

    def _fused(self, maps: Tensor, shortcut: Tensor | None, relu: bool) -> Tensor:
        # oneDNN wants the weights packed in an order that depends on the size of the maps. It would
        # pack them at every call: a tenth of the time of eight images, a third of one's.
        size, packed = maps.shape[2:], self.packed
        if packed is None or packed[0] != size:
            pack = torch.ops.mkldnn._reorder_convolution_weight
            shape = (self.padding, self.stride, (1, 1), 1)
            self.packed = packed = size, pack(self.weight, *shape, maps.shape)
        weights = (packed[1], self.bias, self.padding, self.stride, (1, 1), 1)
        epilogue: tuple[Any, ...] = ("relu" if relu else "none", [], "")
        if shortcut is None:
            maps = torch.ops.mkldnn._convolution_pointwise(maps, *weights, *epilogue)
        else:
            add_conv = torch.ops.mkldnn._convolution_pointwise_.binary
            maps = add_conv(shortcut, maps, *weights, "add", 1.0, *epilogue)
        return maps

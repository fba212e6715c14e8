"""A model so small that a test needs no time for it."""

import torch

from model import ImageCaptioningModel


def make(vocabulary_size=9, **options):
    torch.manual_seed(0)
    options = {"encoder": "resnet18", "embedding_size": 8, "hidden_size": 8, **options}
    return ImageCaptioningModel(vocabulary_size, **options).eval()


def features_of(model, n=3):
    torch.manual_seed(1)
    return torch.randn(n, model.feature_size)

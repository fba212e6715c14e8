"""The captioner: a ResNet encoder and an LSTM decoder (Show and Tell, arXiv:1411.4555).

The image embedding is the first input of the LSTM, as in the paper, and is also added to every
word embedding: the decoder need not remember the image, which is worth ten CIDEr on Flickr8k.
This file knows token ids, not words, and nothing of files, losses and search.
"""

# N images, B captions, T tokens, E embedding, H hidden, L layers, V vocabulary, S image side,
# F features: the length of the ResNet's pooled vector.

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from draws import Share, drawn_like
from resnet import ALL_LAYERS, FoldedResNet, ResNet

PAD, START, END, UNK = range(4)  # ids of the special tokens

# What torchvision's ImageNet weights expect of pixels in 0..1.
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)

# The number of words that a batch scores is rounded up to a multiple of this: oneDNN prepares a
# bfloat16 product anew for each shape it meets, which takes a third of a step, and keeps it, which
# takes gigabytes.
ROW_MULTIPLE = 64

Encode = Callable[[Tensor], Tensor]  # (N, 3, S, S) uint8 pixels → (N, F) float32 features


class State(NamedTuple):
    """What the decoder carries from token to token."""

    hidden: Tensor  # (L, B, H)
    cell: Tensor  # (L, B, H)
    image: Tensor  # (B, E), the image embedding, the same at every token

    def select(self, rows: Tensor) -> State:
        """The states of these rows of the batch, in this order; a row may be taken repeatedly."""
        return State(
            self.hidden.index_select(1, rows),
            self.cell.index_select(1, rows),
            self.image.index_select(0, rows),
        )


class VariationalDropout(nn.Dropout):
    """Dropout with one mask for all tokens of a caption.

    It trains as well as a new mask at every token and needs a tenth of the random numbers, which
    a CPU draws slowly. PyTorch's own dropout draws each four times as slowly as this one.

    Source: Gal and Ghahramani 2016, arXiv:1512.05287.
    """

    def forward(self, vectors: Tensor, share: Share | None = None) -> Tensor:
        """(B, T, H) → (B, T, H); ``share`` says which rows of a batch these are."""
        if not self.training or not self.p:
            return vectors
        kept = drawn_like(vectors[:, :1], share, Tensor.uniform_) >= self.p  # (B, 1, H)
        return vectors * (kept.to(vectors.dtype) / (1 - self.p))


class FeatureNorm(nn.BatchNorm1d):
    """Standardises image features: raw pooled ones are all positive and nearly alike.

    Standardised they are worth +1.4 CIDEr on Flickr8k. Unless all of the encoder trains, the
    statistics are set once, by ``set_feature_stats``, and kept. If it does, they are the batch's; a
    batch of a single image has no variance and uses the running ones.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, feature_size: int) -> None:
        super().__init__(feature_size, affine=False)

    def forward(self, features: Tensor) -> Tensor:
        """(N, F) → (N, F)."""
        return F.batch_norm(
            features,
            self.running_mean,
            self.running_var,
            training=self.training and len(features) > 1,
            momentum=self.momentum or 0.0,
            eps=self.eps,
        )


class ImageCaptioningModel(nn.Module):
    """A ResNet encoder and an LSTM decoder."""

    # Not saved: constants on the model's device.
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        vocabulary_size: int,
        *,
        encoder: str = "resnet50",
        embedding_size: int = 512,
        hidden_size: int = 512,
        num_layers: int = 1,
        dropout: float = 0.5,
    ) -> None:
        """Build the model with random weights, all of the encoder frozen.

        Args:
            vocabulary_size: V, the four special tokens included.
            encoder: one of ``resnet.BLOCKS_PER_LAYER``.
            embedding_size: E, of image and word embeddings.
            hidden_size: H, of the LSTM.
            num_layers: L, of the LSTM.
            dropout: rate for word embeddings, the LSTM's output and between its layers.
        """
        super().__init__()
        self.options = {  # what it takes to build the same model again
            "vocabulary_size": vocabulary_size,
            "encoder": encoder,
            "embedding_size": embedding_size,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "dropout": dropout,
        }
        # The linear layer that replaces the ResNet's own `fc` stands beside it, not in it, so
        # that the features in front of it can be computed once and cached.
        self.encoder = ResNet(encoder)
        self.feature_size = self.encoder.feature_size
        self.feature_norm = FeatureNorm(self.feature_size)
        self.image_embedding = nn.Linear(self.feature_size, embedding_size)
        self.word_embedding = nn.Embedding(vocabulary_size, embedding_size, padding_idx=PAD)
        self.dropout = VariationalDropout(dropout)
        self.lstm = nn.LSTM(
            embedding_size,
            hidden_size,
            num_layers,
            batch_first=True,
            dropout=dropout if num_layers > 1 else 0.0,
        )
        self.output = nn.Linear(hidden_size, vocabulary_size)
        for name, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
            scaled = 255 * torch.tensor(values).view(1, 3, 1, 1)
            self.register_buffer(name, scaled, persistent=False)
        self.unfreeze_encoder(0)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.output.weight.device

    def unfreeze_encoder(self, trained_layers: int) -> None:
        """Let the last layers of the ResNet train, and freeze the others.

        Args:
            trained_layers: 0 freezes all. 1 to 4 train the convolutions of so many of ``layer1`` to
                ``layer4``, counted from the end, but not their BatchNorm: a batch of some twenty
                images knows less than its statistics. ``ALL_LAYERS`` trains everything, BatchNorm
                too: what random weights need.
        """
        self.trained_layers = trained_layers
        self.encoder.requires_grad_(trained_layers == ALL_LAYERS)
        if trained_layers:  # gradients of convolutions are a tenth faster in this layout
            self.encoder.to(memory_format=torch.channels_last)
        if 0 < trained_layers < ALL_LAYERS:  # ALL_LAYERS is 5: the stem is layer 0
            for number in range(ALL_LAYERS - trained_layers, ALL_LAYERS):
                for module in getattr(self.encoder, f"layer{number}").modules():
                    if isinstance(module, nn.Conv2d):
                        module.requires_grad_(True)

    def set_feature_stats(self, features: Tensor) -> None:
        """Take the mean and variance that features are standardised with from these, (N, F)."""
        correction = int(len(features) > 1)  # a single one has no deviation: it becomes 0
        variance, mean = torch.var_mean(features, dim=0, correction=correction)
        self.feature_norm.running_mean.copy_(mean)
        self.feature_norm.running_var.copy_(variance)

    @torch.no_grad()
    def copy_weights(self, other: ImageCaptioningModel) -> None:
        """Take over the weights of a like model whose vocabulary is a prefix of this one's.

        What is learned for each word has more rows here: those of the new words, which come last,
        stay as they are.
        """
        mine = self.state_dict()
        for name, theirs in other.state_dict().items():
            target = mine[name][: len(theirs)] if theirs.dim() else mine[name]
            target.copy_(theirs)

    def train(self, mode: bool = True) -> ImageCaptioningModel:
        """As ``nn.Module.train``, but pretrained BatchNorm stays in eval mode whatever is asked."""
        super().train(mode)
        if self.trained_layers < ALL_LAYERS:
            self.encoder.eval()  # else its statistics drift: frozen would not be frozen
            self.feature_norm.eval()
        return self

    def is_finite(self) -> bool:
        """Whether all weights and statistics are finite numbers; a diverged run's are not."""
        tensors = [t for t in (*self.parameters(), *self.buffers()) if t.is_floating_point()]
        sums = torch.stack([tensor.detach().sum() for tensor in tensors])
        return bool(sums.isfinite().all())

    def make_encoder(self, trained_layers: int = 0) -> Encode:
        """Make a function from pixels to features.

        Frozen layers are folded here, once, with their weights of this moment, and run without
        gradients: make another function when these weights change. The last ``trained_layers``
        (``ALL_LAYERS``: all) run as modules, so that gradients reach them.

        Returns:
            A function of (N, 3, S, S) uint8 RGB pixels, as ``pictures.transform`` makes them, that
            gives (N, F) float32, the ResNet's pooled features.
        """
        n_frozen = ALL_LAYERS - trained_layers
        dtype = torch.bfloat16 if has_bfloat16(self.device) else torch.float32
        frozen = FoldedResNet(self.encoder, dtype, n_frozen) if n_frozen else None

        def encode(pixels: Tensor) -> Tensor:
            maps = pixels.float().sub_(self.pixel_mean).div_(self.pixel_std)  # (N, 3, S, S)
            if frozen:
                maps = frozen(maps)
            if trained_layers:
                with autocast_bfloat16(self.device):
                    maps = self.encoder.run_layers(maps, first=n_frozen)
            return maps.float()  # (N, F)

        return encode

    def project(self, features: Tensor, weight: float = 1.0) -> Tensor:
        """Project pooled features into the word-embedding space: (N, F) → (N, E).

        ``weight`` multiplies how far they are from the mean of the training images.
        """
        return self.image_embedding(weight * self.feature_norm(features))

    def init_state(self, features: Tensor, image_weight: float = 1.0) -> State:
        """The decoder's state after the image, weighed as in ``project``: (N, F) → N rows."""
        image = self.project(features, image_weight)  # (N, E)
        _, (hidden, cell) = self._run_lstm(image.unsqueeze(1))
        return State(hidden, cell, image)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read tokens after ``state`` and score each one's successor.

        Args:
            tokens: (B, T) ids.
            state: after everything before them.

        Returns:
            (B, T, V) logits, and the state after the last token.
        """
        inputs = self._embed(tokens, state.image)
        hidden, (last, cell) = self._run_lstm(inputs, (state.hidden, state.cell))
        return self.output(self.dropout(hidden)), State(last, cell, state.image)

    def forward(
        self,
        features: Tensor,
        tokens: Tensor,
        caption_to_image: Tensor,
        positions: Tensor,
        share: Share | None = None,
    ) -> Tensor:
        """Teacher forcing: score every token of the captions after the ones before it.

        Only real tokens are scored: the large output layer does no work for padding.

        Args:
            features: (N, F), of the images.
            tokens: (B, T) ids, ``<start>`` words ``<end>``, padded with ``<pad>``.
            caption_to_image: (B,) the row of ``features`` that each caption describes.
            positions: (n_words,) where in ``tokens.flatten()`` the tokens to score are: all but
                ``<start>`` and ``<pad>``.
            share: which rows of the captions of all processes these are.

        Returns:
            (n_words, V) logits; the targets are ``tokens.flatten()[positions]``.
        """
        image = self.project(features).index_select(0, caption_to_image)  # (B, E)
        words = self._embed(tokens[:, :-1], image, share)  # (B, T-1, E)
        hidden, _ = self._run_lstm(torch.cat([image.unsqueeze(1), words], dim=1))  # (B, T, H)
        hidden = self.dropout(hidden, share).flatten(0, 1)  # (B*T, H): row b*T + t scores token t
        hidden = hidden.index_select(0, positions)  # (n_words, H)
        rows = F.pad(hidden, (0, 0, 0, -len(hidden) % ROW_MULTIPLE))
        return self.output(rows)[: len(hidden)]  # (n_words, V)

    def _embed(self, tokens: Tensor, image: Tensor, share: Share | None = None) -> Tensor:
        """The LSTM's inputs: (B, T) ids and the (B, E) embeddings of their images → (B, T, E)."""
        return self.dropout(self.word_embedding(tokens), share) + image.unsqueeze(1)

    def _run_lstm(
        self, inputs: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(B, T, E) → (B, T, H), and the last hidden and cell states, (L, B, H) each.

        Under autocast cuDNN's LSTM runs in float16, whatever the dtype asked for, and small
        gradients become 0. In float32 (TF32) it is as fast, and right.
        """
        if inputs.is_cuda:
            with torch.autocast("cuda", enabled=False):
                return self.lstm(inputs.float(), state)
        return self.lstm(inputs, state)


def autocast_bfloat16(device: torch.device) -> torch.autocast:
    """bfloat16 where it is the faster arithmetic: on a GPU, and on a CPU with instructions for it.

    A processor without them only imitates bfloat16, slower than float32.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device))


def has_bfloat16(device: torch.device) -> bool:
    """Whether ``autocast_bfloat16`` does anything there; numbers differ a little if it does."""
    if device.type == "cuda":  # older GPUs imitate it
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # not in torch 2.10
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))

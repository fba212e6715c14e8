import io
from pathlib import Path

import pytest
import torch

import learning
from corpus import Example
from learning import Loss, Meter, Reading, TrainState
from loader import Flickr30k, Vocabulary, batches, plan_batches
from model import UNK, ImageCaptioningModel
from resnet import ALL_LAYERS


def make(trained_layers=0):
    torch.manual_seed(0)
    model = ImageCaptioningModel(9, encoder="resnet18", embedding_size=8, hidden_size=8)
    model.unfreeze_encoder(trained_layers)
    return model


@pytest.mark.parametrize("chunk_logits", [learning.CHUNK_LOGITS, 10])  # at once, or two words
def test_word_losses(monkeypatch, chunk_logits):
    """In value and gradient PyTorch's own, however few words are taken at a time."""
    monkeypatch.setattr(learning, "CHUNK_LOGITS", chunk_logits)
    torch.manual_seed(0)
    logits, expected = torch.randn(7, 5, requires_grad=True), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    loss, nats = learning.word_losses(logits, expected, 0.1)
    peer = torch.nn.functional.cross_entropy
    theirs = peer(logits, expected, label_smoothing=0.1)
    torch.testing.assert_close(loss, theirs)
    torch.testing.assert_close(nats, peer(logits, expected, reduction="sum").detach())
    torch.testing.assert_close(
        torch.autograd.grad(3 * loss, logits), torch.autograd.grad(3 * theirs, logits)
    )


def test_word_losses_without_gradient():
    logits, expected = torch.randn(7, 5), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    loss, nats = learning.word_losses(logits, expected, 0.0)
    assert not loss.requires_grad
    torch.testing.assert_close(nats, 7 * loss)


def test_schedule_warms_up_and_comes_to_rest():
    factors = [learning.warmup_then_cosine(step, 100, 0.1) for step in range(101)]
    assert factors[:10] == sorted(factors[:10])
    assert max(factors) == factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[100] == pytest.approx(0.0)


@pytest.mark.parametrize("trained_layers", [0, 1, ALL_LAYERS])
def test_a_pretrained_encoder_learns_at_its_own_rate(trained_layers):
    """A tutorial gave the encoder to the optimizer before it froze it, another at 1e-3."""
    model = make(trained_layers)
    found = learning.make_optimizer(
        model, learning_rate=1e-3, encoder_learning_rate=1e-5, weight_decay=0.01
    )
    assert learning.set_learning_rate(found, 0.5) == 0.5e-3
    assert learning.set_learning_rate(found, 1.0) == 1e-3
    rate_of = {p: group["lr"] for group in found.param_groups for p in group["params"]}
    trained = {p for p in model.parameters() if p.requires_grad}
    assert set(rate_of) == trained
    encoder = {rate_of[p] for p in model.encoder.parameters() if p in rate_of}
    assert encoder == {0: set(), 1: {1e-5}, ALL_LAYERS: {1e-3}}[trained_layers]
    assert rate_of[model.output.weight] == 1e-3


def test_weights_of_matrices_decay_and_no_others():
    model = make()
    found = learning.make_optimizer(
        model, learning_rate=1e-3, encoder_learning_rate=1e-5, weight_decay=0.01
    )
    decay_of = {p: group["weight_decay"] for group in found.param_groups for p in group["params"]}
    for weight in (model.output.weight, model.lstm.weight_hh_l0, model.image_embedding.weight):
        assert decay_of[weight] == 0.01
    for weight in (model.word_embedding.weight, model.output.bias, model.lstm.bias_hh_l0):
        assert decay_of[weight] == 0.0


def test_cross_entropy_is_the_mean_of_all_words_of_a_batch():
    """Means of batch means weigh short captions more; padding must not count."""
    captions = ["a dog", "a dog runs far", "a cat"]
    vocabulary = Vocabulary.build(captions, freq_threshold=1)
    model = make()
    examples = [Example(str(i), Path(), [text]) for i, text in enumerate(captions)]
    features = torch.randn(3, model.feature_size)
    data = Flickr30k(examples, vocabulary, torch.device("cpu"), features=features)
    whole = ImageCaptioningModel(len(vocabulary), encoder="resnet18").eval()
    with torch.no_grad():
        whole.output.bias[UNK] = 5.0  # else all words are as likely, and smoothing does nothing

    def losses(batch_size):
        plan = plan_batches(data, batch_size=batch_size, seed=0, whole_images=False)
        for batch in batches(data, plan):
            yield learning.cross_entropy(whole, batch.features, batch, label_smoothing=0.0)

    (together,) = losses(3)
    singles = list(losses(1))
    assert together.count == sum(loss.count for loss in singles) == 3 + 5 + 3
    total = sum(loss.total for loss in singles)
    torch.testing.assert_close(together.total, total, rtol=1e-2, atol=0)  # in bfloat16
    torch.testing.assert_close(together.mean, together.total / together.count)
    assert together.mean.requires_grad
    assert not together.total.requires_grad
    (batch,) = batches(data, [[0, 1, 2]])
    smoothed = learning.cross_entropy(whole, batch.features, batch, label_smoothing=0.5)
    torch.testing.assert_close(smoothed.total, total, rtol=1e-2, atol=0)  # logged without it
    logits = whole(batch.features, batch.tokens, batch.caption_to_image, batch.positions)
    peer = torch.nn.functional.cross_entropy(logits, batch.targets, label_smoothing=0.5)
    torch.testing.assert_close(smoothed.mean, peer, rtol=1e-2, atol=0)
    assert smoothed.mean < 0.97 * together.mean


def test_random_numbers_of_a_step_depend_on_seed_and_step_alone():
    """So a run that is resumed draws what the unbroken one would."""
    cpu = torch.device("cpu")

    def drawn(seed, step):
        learning.seed_step(cpu, seed, step)
        return torch.rand(3).tolist()

    assert drawn(1, 7) == drawn(1, 7)
    assert len({tuple(drawn(seed, step)) for seed in range(3) for step in range(5)}) == 15


def test_a_meters_mean_is_a_sum_divided_by_a_count():
    meter = Meter()
    meter.add(Loss(torch.tensor(9.0), torch.tensor(2.0), 1), n_words=10)
    first = meter.read()
    meter.add(Loss(torch.tensor(9.0), torch.tensor(6.0), 3), n_words=20)
    assert meter.read().mean == 2.0
    assert meter.read().since(first).mean == 2.0
    assert meter.read().since(first).n_words == 20
    assert Reading().words_per_second == 0.0  # no clock has ticked


def test_a_train_state_survives_a_checkpoint():
    state = TrainState(
        "xe",
        *(3, 0, 30, 80, 1, 30, 3),
        best_scores={"CIDEr": 0.5, "loss": 2.5},
        best_epoch="xe 2",
        meter=Meter(seconds=60.0),
    )
    state.finish_step(Loss(torch.tensor(1.0), torch.tensor(4.0), 2), n_words=5)
    file = io.BytesIO()
    torch.save(state.plain(), file)
    file.seek(0)
    same = TrainState.of(torch.load(file, weights_only=True))
    counts = (same.epoch, same.batch, same.stage_step, same.n_steps)
    assert (same.stage, *counts) == ("xe", 3, 1, 31, 80)
    assert (same.epochs_without_improvement, same.step, same.total_epochs) == (1, 31, 3)
    assert (same.best_scores, same.best_epoch) == ({"CIDEr": 0.5, "loss": 2.5}, "xe 2")
    reading = same.meter.read()
    assert (reading.total, reading.count, reading.n_words) == (4.0, 2, 5)
    assert 60 <= reading.seconds < 120


def test_a_stage_begins_anew_and_the_run_goes_on_counting():
    state = TrainState("xe", n_steps=9, epochs_without_improvement=2)
    state.finish_step(Loss(torch.tensor(1.0), torch.tensor(4.0), 2), n_words=5)
    state.finish_epoch()
    assert (state.epoch, state.batch) == (1, 0)
    state.enter("finetune")
    assert (state.stage, state.epoch, state.batch, state.stage_step) == ("finetune", 0, 0, 0)
    assert (state.n_steps, state.epochs_without_improvement) == (0, 0)
    assert (state.step, state.total_epochs) == (1, 1)

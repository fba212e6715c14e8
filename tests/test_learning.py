import signal

import pytest
import torch

import learning
from model import ALL_STAGES, ImageCaptioningModel


def make(stages=0):
    torch.manual_seed(0)
    model = ImageCaptioningModel(9, encoder="resnet18", embedding_size=8, hidden_size=8)
    model.train_encoder(stages)
    return model


@pytest.mark.parametrize("cached", [learning.CACHED_SCORES, 10])  # at once, two words at a time
def test_word_losses(monkeypatch, cached):
    """In value and gradient PyTorch's own, however few words are looked at together."""
    monkeypatch.setattr(learning, "CACHED_SCORES", cached)
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
    factor = learning.warmup_then_cosine(100, 0.1)
    factors = [factor(step) for step in range(101)]
    assert factors[:10] == sorted(factors[:10])
    assert max(factors) == factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[100] == pytest.approx(0.0)


@pytest.mark.parametrize("stages", [0, 1, ALL_STAGES])
def test_a_pretrained_encoder_learns_at_its_own_rate(stages):
    """A tutorial gave the encoder to the optimizer before it froze it, another at 1e-3."""
    model = make(stages)
    found = learning.optimizer(
        model, learning_rate=1e-3, encoder_learning_rate=1e-5, weight_decay=0.01
    )
    rate_of = {p: group["lr"] for group in found.param_groups for p in group["params"]}
    trained = {p for p in model.parameters() if p.requires_grad}
    assert set(rate_of) == trained
    encoder = {rate_of[p] for p in model.encoder.parameters() if p in rate_of}
    assert encoder == {0: set(), 1: {1e-5}, ALL_STAGES: {1e-3}}[stages]
    assert rate_of[model.words.weight] == 1e-3


def test_the_mean_of_the_weights():
    model = make()
    weight = model.words.weight
    average = learning.Average(model, 0.5)
    start = weight.detach().clone()
    with torch.no_grad():
        weight += 1
    average.update()  # the first update forgets more: 10/11 of the new
    with average.applied():
        torch.testing.assert_close(weight, start + 10 / 11)
        assert bool((model.encoder.conv1.weight == make().encoder.conv1.weight).all())
    torch.testing.assert_close(weight, start + 1)


def test_an_interruption_does_not_mix_weights_and_means(monkeypatch):
    model = make()
    average = learning.Average(model, 0.5)
    last = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.no_grad():
        for mean in average.means:
            mean += 1
    copy, n_copies = torch.Tensor.copy_, 0

    def interrupted(self, *args):
        nonlocal n_copies
        n_copies += 1
        if n_copies == 3:
            signal.raise_signal(signal.SIGINT)
        return copy(self, *args)

    monkeypatch.setattr(torch.Tensor, "copy_", interrupted)
    with pytest.raises(KeyboardInterrupt), average.applied():
        pass
    assert all(torch.equal(weight, last[name]) for name, weight in model.state_dict().items())


def test_a_restored_mean_goes_on_as_it_was():
    first, second = make(), make()
    averages = [learning.Average(model, 0.9) for model in (first, second)]
    with torch.no_grad():
        first.words.weight += 1
    averages[0].update()
    averages[1].restore(averages[0].state())
    with averages[0].applied(), averages[1].applied():
        assert torch.equal(first.words.weight, second.words.weight)


def test_without_averaging_the_last_weights_serve():
    model = make()
    average = learning.Average(model, 0.0)
    with torch.no_grad():
        model.words.weight += 1
    last = model.words.weight.detach().clone()
    average.update()
    with average.applied():
        assert torch.equal(model.words.weight, last)
    assert torch.equal(model.words.weight, last)

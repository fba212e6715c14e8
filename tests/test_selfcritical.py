from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import learning
import selfcritical
from corpus import Example
from loader import Flickr30k, Vocabulary, batches
from metrics import CiderD
from model import END, PAD, START, ImageCaptioningModel
from selfcritical import Reward, SelfCritical

CAPTIONS = [["a dog runs", "a dog jumps runs"], ["cat jumps"], ["runs cat a dog"]]
VOCABULARY = Vocabulary.build([text for image in CAPTIONS for text in image], freq_threshold=1)
A, DOG, RUNS, JUMPS, CAT = (VOCABULARY.id_of[w] for w in ("a", "dog", "runs", "jumps", "cat"))


def make():
    torch.manual_seed(0)
    model = ImageCaptioningModel(
        len(VOCABULARY), encoder="resnet18", embedding_size=16, hidden_size=16, dropout=0.0
    )
    features = torch.randn(3, model.feature_size)
    examples = [Example(str(i), Path(), texts) for i, texts in enumerate(CAPTIONS)]
    data = Flickr30k(examples, VOCABULARY, torch.device("cpu"), features=features)
    return model.train(), features, data


def test_the_reward_is_cider_with_the_end_as_a_word():
    reward = Reward(make()[2])
    whole, cut, other = [A, DOG, RUNS, END], [A, DOG, RUNS, PAD], [RUNS, CAT, A, DOG]
    found = reward(np.array([0, 2]), np.array([whole, cut, other, whole]))
    references = [[VOCABULARY.encode(text)[1:] for text in image] for image in CAPTIONS]
    hypotheses = np.array([whole, [*whole[:3], -1], other, whole])
    expected = CiderD(references).scores(np.array([0, 0, 2, 2]), hypotheses)
    np.testing.assert_allclose(found, expected.reshape(2, 2), rtol=1e-6)


def test_a_caption_that_stops_in_the_middle_loses():
    """Without <end> in the reward a third of the captions came to end on "a" or "of"."""
    tokens = np.array([[RUNS, CAT, A, DOG, END], [RUNS, CAT, A, END, PAD]])
    whole, cut = Reward(make()[2])(np.array([2]), tokens)[0]
    assert whole > 2 * cut


def test_captions_above_the_others_become_likelier():
    model, features, _ = make()
    tokens = torch.tensor([[A, DOG, RUNS, END], [JUMPS, JUMPS, CAT, END]] * 3)
    rewards = np.array([[1.0, 0.0]] * 3, np.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def log_probs():
        captions = torch.nn.functional.pad(tokens, (1, 0), value=START)
        positions = torch.arange(30).view(6, 5)[:, 1:].flatten()
        images = torch.arange(3).repeat_interleave(2)
        logits = model(features, captions, images, positions)
        words = logits.log_softmax(-1).gather(1, tokens.view(-1, 1))
        return words.view(3, 2, 4).sum(dim=2)

    before = log_probs()
    for _ in range(5):
        optimizer.zero_grad()
        selfcritical.policy_gradient_loss(
            model, features, tokens, tokens.numpy(), rewards
        ).backward()
        optimizer.step()
    change = log_probs() - before
    assert bool((change[:, 0] > change[:, 1] + 1).all())


def test_the_baseline_of_a_caption_is_the_mean_of_the_others_of_its_image():
    model, features, _ = make()
    tokens = torch.tensor([[A, DOG, RUNS, END], [CAT, JUMPS, END, PAD], [RUNS, END, PAD, PAD]])
    rewards = np.array([[0.9, 0.3, 0.0]], np.float32)
    found = selfcritical.policy_gradient_loss(model, features[:1], tokens, tokens.numpy(), rewards)
    total, n_words = 0.0, 0
    for ids, advantage in zip(tokens, (0.75, -0.15, -0.6), strict=True):
        words = ids[ids != PAD]
        caption = torch.cat([torch.tensor([START]), words]).unsqueeze(0)
        positions = torch.arange(1, len(words) + 1)
        logits = model(features[:1], caption, torch.tensor([0]), positions)
        log_prob = logits.log_softmax(-1).gather(1, words.unsqueeze(1)).sum()
        total, n_words = total - advantage * log_prob, n_words + len(words)
    torch.testing.assert_close(found, total / n_words, rtol=2e-2, atol=2e-3)  # in bfloat16


def test_equal_rewards_teach_nothing():
    model, features, _ = make()
    tokens = selfcritical.sample_captions(model, features, n_samples=4, max_words=6)
    rewards = np.full((3, 4), 0.7, np.float32)
    loss = selfcritical.policy_gradient_loss(model, features, tokens, tokens.numpy(), rewards)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_captions_are_sampled_without_dropout_and_the_model_trains_on():
    model, features, _ = make()
    model.dropout.p = 0.9
    tokens = selfcritical.sample_captions(model, features, n_samples=2, max_words=6)
    assert tokens.shape[0] == 6
    assert model.training
    assert not set(tokens.unique().tolist()) & {START, 3}


@pytest.mark.parametrize("xe_weight", [0.0, 0.2])
def test_it_is_called_as_cross_entropy_is(xe_weight):
    model, features, data = make()
    xe = partial(learning.cross_entropy, label_smoothing=0.0)
    loss_function = SelfCritical(data, n_samples=2, max_words=6, xe=xe, xe_weight=xe_weight)
    (batch,) = batches(data, [[0, 1, 2, 3]])
    torch.manual_seed(0)
    loss = loss_function(model, features, batch)
    torch.manual_seed(0)
    alone = replace(loss_function, xe_weight=0.0)(model, features, batch)
    words = xe(model, features, batch)
    torch.testing.assert_close(loss.mean, alone.mean + xe_weight * words.mean)
    assert loss.count == 6
    assert 0 <= float(loss.total) <= 60
    loss.mean.backward()
    assert model.output.weight.grad is not None

import pytest
import torch

import metrics
import selfcritical
from model import END, PAD, START, ImageCaptioningModel

CAPTIONS = [
    [torch.tensor([START, 4, 5, 6, END]), torch.tensor([START, 4, 5, 7, 6, END])],
    [torch.tensor([START, 8, 7, END])],
    [torch.tensor([START, 6, 8, 4, 5, END])],
]


def make():
    torch.manual_seed(0)
    model = ImageCaptioningModel(
        9, encoder="resnet18", embedding_size=16, hidden_size=16, dropout=0.0
    )
    return model.train(), torch.randn(3, model.feature_size)


def test_the_reward_is_cider_with_the_end_as_a_word():
    reward = selfcritical.Reward(CAPTIONS)
    whole, cut = [4, 5, 6, END], [4, 5, 6, PAD]
    found = reward([0, 2], torch.tensor([whole, cut, [6, 8, 4, 5], whole]))
    references = [[ids[1:].tolist() for ids in image] for image in CAPTIONS]
    cider = metrics.CiderD(references)
    expected = [
        [cider.score(0, whole), cider.score(0, whole[:3])],
        [cider.score(2, [6, 8, 4, 5]), cider.score(2, whole)],
    ]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_a_sentence_that_stops_in_the_middle_loses():
    """Without <end> in the reward a third of the captions came to end on "a" or "of"."""
    reward = selfcritical.Reward(CAPTIONS)
    whole, cut = reward([2], torch.tensor([[6, 8, 4, 5, END], [6, 8, 4, END, PAD]]))[0]
    assert whole > 2 * cut


def test_sentences_above_their_fellows_become_likelier():
    model, images = make()
    good, poor = [4, 5, 6, END], [7, 7, 8, END]
    tokens = torch.tensor([good, poor] * 3)
    rewards = torch.tensor([[1.0, 0.0]] * 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def log_probs():
        sentences = torch.nn.functional.pad(tokens, (1, 0), value=START)
        logits = model(images, sentences, torch.arange(3).repeat_interleave(2))
        words = logits.log_softmax(-1).gather(1, tokens[tokens != PAD].unsqueeze(1))
        return words.view(3, 2, 4).sum(dim=2)

    before = log_probs()
    for _ in range(5):
        optimizer.zero_grad()
        selfcritical.policy_loss(model, images, tokens, rewards).backward()
        optimizer.step()
    change = log_probs() - before
    assert bool((change[:, 0] > change[:, 1] + 1).all())


def test_equal_rewards_teach_nothing():
    model, images = make()
    tokens = selfcritical.draw(model, images, n_samples=4, max_words=6)
    rewards = torch.full((3, 4), 0.7)
    loss = selfcritical.policy_loss(model, images, tokens, rewards)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_sentences_are_drawn_without_dropout_and_the_model_trains_on():
    model, images = make()
    model.dropout.p = 0.9
    tokens = selfcritical.draw(model, images, n_samples=2, max_words=6)
    assert tokens.shape[0] == 6
    assert model.training
    assert not set(tokens.unique().tolist()) & {START, 3}

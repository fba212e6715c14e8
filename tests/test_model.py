import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import loader
import model as module
from model import (
    ALL_STAGES,
    END,
    PAD,
    START,
    UNK,
    ImageCaptioningModel,
    Search,
    caption,
    targets,
)


def make(vocabulary_size=9, **options):
    torch.manual_seed(0)
    options = {"encoder": "resnet18", "embedding_size": 8, "hidden_size": 8, **options}
    return ImageCaptioningModel(vocabulary_size, **options).eval()


def vectors(model, n=3):
    torch.manual_seed(1)
    return torch.randn(n, model.feature_size)


TOKENS = torch.tensor([[START, 4, 5, 6, 7, END], [START, 8, 4, END, PAD, PAD]])


def log_prob_of(model, image, tokens):
    """Of a sentence, by teacher forcing."""
    sentence = torch.tensor([[START, *tokens]])
    logits = model(image.unsqueeze(0), sentence, torch.tensor([0]))
    logits = F.log_softmax(logits, dim=-1)
    return logits.gather(1, sentence[0, 1:].unsqueeze(1)).sum().item()


def test_special_tokens_are_the_vocabularys():
    assert [PAD, START, END, UNK] == [loader.PAD, loader.START, loader.END, loader.UNK]


@pytest.mark.parametrize("num_layers", [1, 2])
def test_word_by_word_equals_teacher_forcing(num_layers):
    """A tutorial fed the whole prefix and carried the state too: training never did that."""
    model = make(num_layers=num_layers)
    images = vectors(model, 2)
    forced = model(images, TOKENS, torch.tensor([0, 1]))
    stepped, state = [], model.start(images)
    for column in TOKENS[:, :-1].T:
        logits, state = model.step(column.unsqueeze(1), state)
        stepped.append(logits[:, 0])
    stepped = torch.stack(stepped, dim=1)[TOKENS[:, 1:] != PAD]
    torch.testing.assert_close(forced, stepped)


def test_padding_changes_nothing():
    model = make()
    images = vectors(model, 2)
    together = model(images, TOKENS, torch.tensor([0, 1]))
    alone = [
        model(images[i : i + 1], row[row != PAD].unsqueeze(0), torch.tensor([0]))
        for i, row in enumerate(TOKENS)
    ]
    torch.testing.assert_close(together, torch.cat(alone))
    assert targets(TOKENS).tolist() == [4, 5, 6, 7, END, 8, 4, END]


def test_captions_meet_their_own_images():
    model = make()
    images = vectors(model, 2)
    swapped = model(images.flip(0), TOKENS, torch.tensor([1, 0]))
    torch.testing.assert_close(swapped, model(images, TOKENS, torch.tensor([0, 1])))


def test_eight_captions_overfit():
    model = make(20, embedding_size=32, hidden_size=32, dropout=0.0).train()
    images = vectors(model, 8)
    torch.manual_seed(2)
    tokens = torch.cat([torch.full((8, 1), START), torch.randint(4, 20, (8, 6))], dim=1)
    tokens = torch.cat([tokens, torch.full((8, 1), END)], dim=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(400):
        loss = F.cross_entropy(model(images, tokens, torch.arange(8)), targets(tokens))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    model.eval()
    said = [found[0].tokens for found in model.caption(images, beam_size=3)]
    assert said == tokens[:, 1:-1].tolist()


def test_a_batch_of_one_image_can_be_learned_from():
    """BatchNorm refuses a single row in training mode: the last batch of an epoch may be one."""
    model = make(dropout=0.0).train()
    image = vectors(model, 1)
    one = model(image, TOKENS[:1], torch.tensor([0]))
    torch.testing.assert_close(one, model.eval()(image, TOKENS[:1], torch.tensor([0])))
    model.train_encoder(ALL_STAGES)  # its vectors change, and what they are standardised by
    norm = model.train().image_embedding[0]
    model(image, TOKENS[:1], torch.tensor([0]))
    before = norm.running_mean.clone()
    model(vectors(model, 2), TOKENS, torch.tensor([0, 1]))
    assert not torch.equal(norm.running_mean, before)


@pytest.mark.parametrize("stages", [0, 2, ALL_STAGES])
def test_frozen_means_frozen(stages):
    """Tutorials left BatchNorm in training mode under a frozen ResNet: its statistics drifted."""
    model = make()
    model.train_encoder(stages)
    model.train()
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    loss = model(images, TOKENS, torch.tensor([0, 1])).sum()
    loss.backward()
    after = model.encoder.state_dict()
    same = all(torch.equal(before[name], after[name]) for name in before)
    learns = {n.split(".")[0] for n, p in model.encoder.named_parameters() if p.grad is not None}
    assert same is (stages < ALL_STAGES)
    layers = [f"layer{n}" for n in range(1, 5)]
    assert learns == {0: set(), 2: set(layers[2:]), ALL_STAGES: {"conv1", "bn1", *layers}}[stages]
    pretrained_norms = [
        n for n, p in model.encoder.named_parameters() if "bn" in n and p.grad is not None
    ]
    assert bool(pretrained_norms) is (stages == ALL_STAGES)


def test_images_are_normalised_as_torchvision_does():
    model = make()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.encode(images)
    from torchvision.transforms.v2.functional import normalize

    expected = normalize(images / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(seen[0], expected)


def test_beam_1_is_greedy():
    model = make()
    images = vectors(model)
    for image, found in zip(images, model.caption(images, beam_size=1, max_words=7), strict=True):
        state, word, said = model.start(image.unsqueeze(0)), START, []
        for position in range(7):
            logits, state = model.step(torch.tensor([[word]]), state)
            logits[..., [PAD, START, UNK]] = -torch.inf
            if position == 0:
                logits[..., END] = -torch.inf
            word = logits.argmax().item()
            if word == END:
                break
            said.append(word)
        assert found[0].tokens == said
        assert len(found) == 1


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0])
def test_a_beam_as_wide_as_all_sentences_finds_the_best(length_penalty):
    model = make(7)  # three words
    torch.nn.init.normal_(model.words.weight)
    images, longest = vectors(model), 3
    words = range(4, 7)
    sentences = [
        [*said, END]
        for n_words in range(1, longest)
        for said in itertools.product(words, repeat=n_words)
    ]
    sentences += [list(said) for said in itertools.product(words, repeat=longest)]
    found = model.caption(
        images, beam_size=len(sentences), max_words=longest, length_penalty=length_penalty
    )
    for image, hypotheses in zip(images, found, strict=True):
        expected = [
            (log_prob_of(model, image, said) / len(said) ** length_penalty, said)
            for said in sentences
        ]
        score, best = max(expected)
        assert hypotheses[0].tokens == [token for token in best if token != END]
        assert hypotheses[0].score == pytest.approx(score, abs=1e-4)
        assert len(hypotheses) == len(sentences)
        scores = [hypothesis.score for hypothesis in hypotheses]
        assert scores == sorted(scores, reverse=True)


def test_log_probs_are_those_of_teacher_forcing():
    model = make()
    images = vectors(model)
    with torch.no_grad():
        model.words.bias[END] = 2.0
    for image, hypotheses in zip(images, model.caption(images, beam_size=4), strict=True):
        for hypothesis in hypotheses:
            said = [*hypothesis.tokens, END]
            assert hypothesis.log_prob == pytest.approx(log_prob_of(model, image, said), abs=1e-4)


def test_no_beam_ends_and_a_caption_still_comes():
    """Two tutorials took the `max()` of an empty list here."""
    model = make()
    with torch.no_grad():
        model.words.bias[END] = -50.0
    for hypotheses in model.caption(vectors(model), beam_size=3, max_words=5):
        assert len(hypotheses) == 3
        assert all(len(hypothesis.tokens) == 5 for hypothesis in hypotheses)


def test_special_words_are_never_written():
    model = make()
    with torch.no_grad():
        model.words.bias[[PAD, START, UNK]] = 50.0
        model.words.bias[END] = 20.0  # would be chosen at once, were an empty caption allowed
    for hypotheses in model.caption(vectors(model), beam_size=3):
        assert all(token > UNK for hypothesis in hypotheses for token in hypothesis.tokens)
        assert all(hypothesis.tokens for hypothesis in hypotheses)
        assert all(math.isfinite(hypothesis.log_prob) for hypothesis in hypotheses)


def test_images_do_not_disturb_each_other():
    model = make()
    images = vectors(model, 5)
    together = model.caption(images, beam_size=3, batch_size=64)
    alone = [model.caption(image.unsqueeze(0), beam_size=3)[0] for image in images]
    in_twos = model.caption(images, beam_size=3, batch_size=2)
    as_tokens = [[[h.tokens for h in image] for image in way] for way in (together, alone, in_twos)]
    assert as_tokens[0] == as_tokens[1] == as_tokens[2]


def test_dropout_is_the_same_at_every_word_of_a_sentence_and_its_own_for_each():
    dropout = module.SteadyDropout(0.25).train()
    vectors = torch.ones(50, 7, 40)
    dropped = dropout(vectors)
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert dropped.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.05)
    assert len(dropped[:, 0].unique(dim=0)) == 50
    assert torch.equal(dropout.eval()(vectors), vectors)


def test_captioning_switches_dropout_off():
    model = make(dropout=0.9).train()
    images = vectors(model)
    assert model.caption(images) == model.caption(images)


@pytest.mark.parametrize("wrong", [{"beam_size": 0}, {"max_words": 0}])
def test_impossible_searches_are_refused(wrong):
    model = make()
    with pytest.raises(ValueError, match="start at 1"):
        model.caption(vectors(model), **wrong)


def test_unknown_encoder_is_refused():
    with pytest.raises(ValueError, match="resnet18"):
        make(encoder="resnet19")


def test_half_precision_sees_nearly_the_same(monkeypatch):
    model = make()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    seen = []
    for half in (False, True):
        monkeypatch.setattr(module, "has_half_precision", lambda _, half=half: half)
        seen.append(model.encode(images))
    assert not torch.equal(*seen)
    assert bool((F.cosine_similarity(*seen) > 0.999).all())


SEARCHES = [{}, {"temperature": 1.0}]


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_ngram_comes_twice(search, n):
    """Without the rule this model, which knows five words, says little else than repeats."""
    model = make()
    images = vectors(model, 20)
    with torch.no_grad():
        model.words.bias[END] = -5.0

    def repeats(**rule):
        for hypotheses in model.caption(images, max_words=12, **search, **rule):
            words = hypotheses[0].tokens
            ngrams = list(zip(*(words[i:] for i in range(n)), strict=False))
            yield len(ngrams) - len(set(ngrams))

    assert any(repeats())
    assert not any(repeats(no_repeat=n))


@pytest.mark.parametrize("search", SEARCHES)
def test_no_sentence_ends_on_a_word_that_must_not_be_last(search):
    """Self-critical training once taught a third of the captions to end on "a"."""
    model = make()
    images = vectors(model, 30)

    def last_words(**rule):
        for hypotheses in model.caption(images, max_words=5, **search, **rule):
            yield from (hypothesis.tokens[-1] for hypothesis in hypotheses)

    assert {4, 5} & set(last_words())
    assert not {4, 5} & set(last_words(not_last=(4, 5)))


@pytest.mark.parametrize("search", SEARCHES)
def test_rules_that_leave_nothing_to_say_still_give_a_caption(search):
    model = make(6)
    for hypotheses in model.caption(
        vectors(model), no_repeat=1, not_last=(4, 5), max_words=5, **search
    ):
        assert len(hypotheses[0].tokens) <= 2
        assert hypotheses[0].log_prob > -math.inf


def test_sentences_are_drawn_as_often_as_the_model_believes():
    model = make(6)
    image = vectors(model, 1)
    found = model.caption(image, temperature=1.0, beam_size=4000, max_words=1)[0]
    share = sum(hypothesis.tokens == [4] for hypothesis in found) / len(found)
    believed = [math.exp(log_prob_of(model, image[0], [word])) for word in (4, 5)]
    assert share == pytest.approx(believed[0] / sum(believed), abs=0.04)
    assert found[0].log_prob == pytest.approx(math.log(max(believed)), abs=1e-4)


def test_a_small_nucleus_is_greedy_search():
    model = make()
    images = vectors(model, 5)
    greedy = model.caption(images, beam_size=1)
    drawn = model.caption(images, beam_size=1, temperature=1.0, top_p=1e-6)
    assert [found[0].tokens for found in drawn] == [found[0].tokens for found in greedy]


def test_an_ensemble_speaks_with_the_mean_of_its_probabilities():
    first, second = make(), make(hidden_size=12, encoder="resnet50")
    images = [vectors(first, 4), vectors(second, 4)]
    found = caption([first, second], images, Search(beam_size=1, max_words=1, no_repeat=0))
    for row, (hypothesis, *_) in enumerate(found):
        word = hypothesis.tokens
        each = [
            log_prob_of(m, theirs[row], word)
            for m, theirs in zip((first, second), images, strict=True)
        ]
        expected = math.log(sum(map(math.exp, each)) / 2)
        assert hypothesis.log_prob == pytest.approx(expected, abs=1e-5)
    alone = caption([first], images[:1], Search())
    twice = caption([first, first], [images[0]] * 2, Search())
    assert [found[0].tokens for found in alone] == [found[0].tokens for found in twice]


def test_a_model_that_starts_from_another_knows_its_words():
    old, new = make(9), make(12)
    new.start_from(old)
    images = vectors(old, 2)
    theirs = old(images, TOKENS, torch.tensor([0, 1]))
    torch.testing.assert_close(new(images, TOKENS, torch.tensor([0, 1]))[:, :9], theirs)


def test_a_single_vector_can_be_standardised():
    model = make()
    model.standardise(vectors(model, 1))
    assert bool(model.image_embedding[0].running_var.isfinite().all())


def test_standardised_vectors_have_mean_0_and_deviation_1():
    model = make().train()
    features = vectors(model, 50) * 3 + 2
    model.standardise(features)
    seen = model.image_embedding[0](features)  # a batch of its own statistics would hide an error
    torch.testing.assert_close(seen.mean(dim=0), torch.zeros(model.feature_size), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.std(dim=0), torch.ones(model.feature_size), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "wrong", [{"no_repeat": -1}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_a_search_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="no_repeat and temperature start at 0"):
        Search(**wrong)

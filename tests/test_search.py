import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from tiny import features_of, make

import search as module
from model import END, PAD, START, UNK
from search import Search, caption, sample


def caption_with(model, features, *, batch_size=64, **changed):
    """Without a ban on repetition and more weight of the image, unless they are given."""
    search = Search(**{"no_repeat_ngram_size": 0, "image_weight": 1.0, **changed})
    return caption([model], [features], search, batch_size=batch_size)


def log_prob_of(model, image, tokens):
    """Of a caption, by teacher forcing."""
    ids = torch.tensor([[START, *tokens]])
    positions = torch.arange(1, ids.shape[1])
    logits = model(image.unsqueeze(0), ids, torch.tensor([0]), positions)
    log_probs = F.log_softmax(logits, dim=-1)
    return log_probs.gather(1, ids[0, 1:].unsqueeze(1)).sum().item()


def test_beam_1_is_greedy():
    model = make()
    features = features_of(model)
    greedy = caption_with(model, features, beam_size=1, max_words=7)
    for image, found in zip(features, greedy, strict=True):
        state, word, said = model.init_state(image.unsqueeze(0)), START, []
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


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_weighs_what_sets_an_image_apart_from_the_mean(temperature):
    model = make()
    features = features_of(model)
    model.set_feature_stats(features + torch.rand_like(features))
    mean = model.feature_norm.running_mean
    for weight in (0.0, 1.0, 1.5):
        torch.manual_seed(0)
        found = caption_with(model, features, image_weight=weight, temperature=temperature)
        torch.manual_seed(0)
        further = caption_with(model, mean + weight * (features - mean), temperature=temperature)
        assert [h[0].tokens for h in found] == [h[0].tokens for h in further]
        scores = torch.tensor([[h[0].log_prob for h in by] for by in (found, further)])
        torch.testing.assert_close(*scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0])
def test_a_beam_as_wide_as_all_sentences_finds_the_best(length_penalty):
    model = make(7)  # three words
    torch.nn.init.normal_(model.output.weight)
    features, longest = features_of(model), 3
    words = range(4, 7)
    sentences = [
        [*said, END]
        for n_words in range(1, longest)
        for said in itertools.product(words, repeat=n_words)
    ]
    sentences += [list(said) for said in itertools.product(words, repeat=longest)]
    found = caption_with(
        model, features, beam_size=len(sentences), max_words=longest, length_penalty=length_penalty
    )
    for image, hypotheses in zip(features, found, strict=True):
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


def best_of_script(monkeypatch, script, n_words, **search):
    """What is found where ``script`` has, at each position, what follows which word."""
    positions = iter(script)

    def step(_, last, states):
        follows = next(positions)
        probability = torch.zeros(len(last), 4 + n_words)
        for row, word in enumerate(last.tolist()):
            for token, value in follows.get(word, {}).items():
                probability[row, token] = value
        return probability.log(), states

    monkeypatch.setattr(module, "_next_log_prob", step)
    model = make(4 + n_words)
    (found,) = caption_with(model, features_of(model, 1), **search)
    return found


def test_what_has_ended_competes_with_what_others_become(monkeypatch):
    a, b = 4, 5
    script = [
        {START: {a: 0.6, b: 0.4}},
        {a: {END: 0.55, a: 0.45}, b: {a: 1.0}},  # "a" ends: -0.55 nats a token
        {a: {a: 0.5, b: 0.5}},  # "b a a" and "b a b" are ahead of it, -0.54,
        {a: {a: 0.45, b: 0.45, END: 0.1}, b: {a: 0.45, b: 0.45, END: 0.1}},  # and fall to -0.6
    ]
    found = best_of_script(monkeypatch, script, 2, beam_size=2, max_words=4)
    assert found[0].tokens == [a]
    assert found[0].score == pytest.approx(math.log(0.6 * 0.55) / 2)
    assert found[1].score < found[0].score


def test_what_has_ended_leaves_its_beam_to_others(monkeypatch):
    """Before version 0.8.0 it kept it, and "a c" was never looked at further."""
    a, b, c = 4, 5, 6
    script = [
        {START: {a: 0.6, b: 0.4}},
        {a: {END: 0.52, c: 0.48}, b: {a: 1.0}},  # "b a" 0.4, "a" ends 0.31, "a c" 0.29
        {a: {END: 0.3, a: 0.7}, c: {END: 1.0}},
    ]
    found = best_of_script(monkeypatch, script, 3, beam_size=2, max_words=3)
    assert found[0].tokens == [a, c]
    assert found[0].score == pytest.approx(math.log(0.6 * 0.48) / 3)


@pytest.mark.parametrize("max_words", [1, 2])
def test_captions_of_one_or_two_words_are_searched_for_too(max_words):
    model = make()
    for hypotheses in caption_with(model, features_of(model), beam_size=3, max_words=max_words):
        assert 1 <= len(hypotheses) <= 3
        assert all(1 <= len(hypothesis.tokens) <= max_words for hypothesis in hypotheses)


def test_log_probs_are_those_of_teacher_forcing():
    model = make()
    features = features_of(model)
    with torch.no_grad():
        model.output.bias[END] = 2.0
    for image, hypotheses in zip(features, caption_with(model, features, beam_size=4), strict=True):
        for hypothesis in hypotheses:
            said = [*hypothesis.tokens, END]
            assert hypothesis.log_prob == pytest.approx(log_prob_of(model, image, said), abs=1e-4)


def test_no_beam_ends_and_a_caption_still_comes():
    """Two tutorials took the `max()` of an empty list here."""
    model = make()
    with torch.no_grad():
        model.output.bias[END] = -50.0
    for hypotheses in caption_with(model, features_of(model), beam_size=3, max_words=5):
        assert len(hypotheses) == 3
        assert all(len(hypothesis.tokens) == 5 for hypothesis in hypotheses)


def test_special_words_are_never_written():
    model = make()
    with torch.no_grad():
        model.output.bias[[PAD, START, UNK]] = 50.0
        model.output.bias[END] = 20.0  # would be chosen at once, were an empty caption allowed
    for hypotheses in caption_with(model, features_of(model), beam_size=3):
        assert all(token > UNK for hypothesis in hypotheses for token in hypothesis.tokens)
        assert all(hypothesis.tokens for hypothesis in hypotheses)
        assert all(math.isfinite(hypothesis.log_prob) for hypothesis in hypotheses)


def test_images_do_not_disturb_each_other():
    model = make()
    features = features_of(model, 5)
    together = caption_with(model, features, beam_size=3, batch_size=64)
    alone = [caption_with(model, image.unsqueeze(0), beam_size=3)[0] for image in features]
    in_twos = caption_with(model, features, beam_size=3, batch_size=2)
    as_tokens = [[[h.tokens for h in image] for image in way] for way in (together, alone, in_twos)]
    assert as_tokens[0] == as_tokens[1] == as_tokens[2]


@pytest.mark.parametrize("search", [{"beam_size": 3}, {"beam_size": 1}, {"temperature": 1.0}])
def test_captions_do_not_depend_on_when_it_is_asked_if_all_have_ended(monkeypatch, search):
    """A GPU is asked at few tokens, since it makes the host wait; ended beams are padded on."""
    model = make()
    features = features_of(model, 20)
    torch.nn.init.normal_(model.output.weight)

    def found():
        torch.manual_seed(0)
        images = caption_with(model, features, max_words=12, **search)
        return [[(hypothesis.tokens, hypothesis.score) for hypothesis in i] for i in images]

    at_every_token = found()
    lengths = {max(len(tokens) for tokens, _ in image) for image in at_every_token}
    assert len(lengths) > 1  # some images leave before others
    monkeypatch.setattr(module, "_is_time_to_check", lambda *_: False)
    for image, expected in zip(found(), at_every_token, strict=True):
        assert [tokens for tokens, _ in image] == [tokens for tokens, _ in expected]
        scores = [score for _, score in expected]
        assert [score for _, score in image] == pytest.approx(scores, abs=1e-5)


def test_captioning_switches_dropout_off():
    model = make(dropout=0.9).train()
    features = features_of(model)
    assert caption_with(model, features) == caption_with(model, features)


SEARCHES = [{}, {"temperature": 1.0}]


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_ngram_comes_twice(search, n):
    """Without the rule this model, which knows five words, says little else than repeats."""
    model = make()
    features = features_of(model, 20)
    with torch.no_grad():
        model.output.bias[END] = -5.0

    def repeats(**rule):
        for hypotheses in caption_with(model, features, max_words=12, **search, **rule):
            words = hypotheses[0].tokens
            ngrams = list(zip(*(words[i:] for i in range(n)), strict=False))
            yield len(ngrams) - len(set(ngrams))

    assert any(repeats())
    assert not any(repeats(no_repeat_ngram_size=n))


@pytest.mark.parametrize("search", SEARCHES)
def test_no_sentence_ends_on_a_word_that_must_not_be_last(search):
    """Self-critical training once taught a third of the captions to end on "a"."""
    model = make()
    features = features_of(model, 30)

    def last_words(**rule):
        for hypotheses in caption_with(model, features, max_words=5, **search, **rule):
            yield from (hypothesis.tokens[-1] for hypothesis in hypotheses)

    assert {4, 5} & set(last_words())
    assert not {4, 5} & set(last_words(banned_final_ids=(4, 5)))


@pytest.mark.parametrize("search", SEARCHES)
def test_rules_that_leave_nothing_to_say_still_give_a_caption(search):
    model = make(6)
    for hypotheses in caption_with(
        model,
        features_of(model),
        no_repeat_ngram_size=1,
        banned_final_ids=(4, 5),
        max_words=5,
        **search,
    ):
        assert len(hypotheses[0].tokens) <= 2
        assert hypotheses[0].log_prob > -math.inf


def test_captions_are_sampled_with_the_models_probabilities():
    model = make(6)
    image = features_of(model, 1)
    found = caption_with(model, image, temperature=1.0, beam_size=4000, max_words=1)[0]
    share = sum(hypothesis.tokens == [4] for hypothesis in found) / len(found)
    expected = [math.exp(log_prob_of(model, image[0], [word])) for word in (4, 5)]
    assert share == pytest.approx(expected[0] / sum(expected), abs=0.04)
    assert found[0].log_prob == pytest.approx(math.log(max(expected)), abs=1e-4)


def test_a_small_nucleus_is_greedy_search():
    model = make()
    features = features_of(model, 5)
    greedy = caption_with(model, features, beam_size=1)
    drawn = caption_with(model, features, beam_size=1, temperature=1.0, top_p=1e-6)
    assert [found[0].tokens for found in drawn] == [found[0].tokens for found in greedy]


def test_an_ensemble_has_the_mean_of_its_models_probabilities():
    first, second = make(), make(hidden_size=12, encoder="resnet50")
    images = [features_of(first, 4), features_of(second, 4)]
    found = caption([first, second], images, Search(beam_size=1, max_words=1, image_weight=1.0))
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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"beam_size": 0}, "--beam-size must be at least 1"),
        ({"max_words": 0}, "--max-words must be at least 1"),
        ({"no_repeat_ngram_size": -1}, "--no-repeat-ngram-size must be at least 0"),
        ({"temperature": -1.0}, "--temperature must be at least 0"),
        ({"top_p": 0.0}, "--top-p must be above 0"),
        ({"temperature": 1.0, "top_p": 1.5}, "--top-p must be above 0"),
    ],
)
def test_a_search_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Search(**wrong)


@pytest.mark.parametrize("top_p", [1.0, 0.5])
@pytest.mark.parametrize("name", ["output.bias", "lstm.weight_hh_l0"])
def test_a_model_that_has_diverged_is_sampled_from_without_an_assertion(name, top_p):
    """On a GPU multinomial's assertion ends the process's use of the device."""
    model = make()
    with torch.no_grad():
        model.get_parameter(name)[5] = torch.nan
    search = Search(beam_size=2, max_words=4, temperature=1.0, top_p=top_p)
    tokens, log_prob = sample([model], [model.init_state(features_of(model))], search)
    assert tokens.shape == (6, 4)
    assert not bool(log_prob.isfinite().any())

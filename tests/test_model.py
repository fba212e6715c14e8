import pytest
import torch
import torch.nn.functional as F
from tiny import features_of, make

import model as module
import search
from model import END, PAD, START
from resnet import ALL_LAYERS

TOKENS = torch.tensor([[START, 4, 5, 6, 7, END], [START, 8, 4, END, PAD, PAD]])


def positions_of(tokens):
    """Where the words to learn are: all but <start> and <pad>."""
    is_word = tokens != PAD
    is_word[:, 0] = False
    return is_word.flatten().nonzero().squeeze(1)


def logits_of(model, features, tokens, caption_to_image):
    return model(features, tokens, torch.tensor(caption_to_image), positions_of(tokens))


@pytest.mark.parametrize("num_layers", [1, 2])
def test_word_by_word_equals_teacher_forcing(num_layers):
    """A tutorial fed the whole prefix and carried the state too: training never did that."""
    model = make(num_layers=num_layers)
    features = features_of(model, 2)
    forced = logits_of(model, features, TOKENS, [0, 1])
    stepped, state = [], model.init_state(features)
    for column in TOKENS[:, :-1].T:
        logits, state = model.step(column.unsqueeze(1), state)
        stepped.append(logits[:, 0])
    stepped = torch.stack(stepped, dim=1)[TOKENS[:, 1:] != PAD]
    torch.testing.assert_close(forced, stepped)


def test_padding_changes_nothing():
    model = make()
    features = features_of(model, 2)
    together = logits_of(model, features, TOKENS, [0, 1])
    alone = [
        logits_of(model, features[i : i + 1], row[row != PAD].unsqueeze(0), [0])
        for i, row in enumerate(TOKENS)
    ]
    torch.testing.assert_close(together, torch.cat(alone))
    expected = [4, 5, 6, 7, END, 8, 4, END]
    assert TOKENS.flatten()[positions_of(TOKENS)].tolist() == expected


@pytest.mark.parametrize("n_captions", [16, 17])  # 64 words, 69
def test_rows_added_for_a_round_number_of_words_are_cut_off(n_captions):
    model = make()
    features = features_of(model, 2)
    tokens = TOKENS.repeat(9, 1)[:n_captions]
    images = [i % 2 for i in range(n_captions)]
    found = logits_of(model, features, tokens, images)
    assert len(found) == len(positions_of(tokens)) == {16: 64, 17: 69}[n_captions]
    few = logits_of(model, features, TOKENS, [0, 1])
    torch.testing.assert_close(found, few.repeat(9, 1)[: len(found)])


def test_captions_meet_their_own_images():
    model = make()
    features = features_of(model, 2)
    swapped = logits_of(model, features.flip(0), TOKENS, [1, 0])
    torch.testing.assert_close(swapped, logits_of(model, features, TOKENS, [0, 1]))


def test_eight_captions_overfit():
    model = make(20, embedding_size=32, hidden_size=32, dropout=0.0).train()
    features = features_of(model, 8)
    torch.manual_seed(2)
    tokens = torch.cat([torch.full((8, 1), START), torch.randint(4, 20, (8, 6))], dim=1)
    tokens = torch.cat([tokens, torch.full((8, 1), END)], dim=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(400):
        logits = logits_of(model, features, tokens, list(range(8)))
        loss = F.cross_entropy(logits, tokens.flatten()[positions_of(tokens)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    found = search.caption(
        [model], [features], search.Search(no_repeat_ngram_size=0, image_weight=1.0)
    )
    assert [hypotheses[0].tokens for hypotheses in found] == tokens[:, 1:-1].tolist()


def test_a_batch_of_one_image_can_be_learned_from():
    """BatchNorm refuses a single row in training mode: the last batch of an epoch may be one."""
    model = make(dropout=0.0).train()
    image = features_of(model, 1)
    one = logits_of(model, image, TOKENS[:1], [0])
    torch.testing.assert_close(one, logits_of(model.eval(), image, TOKENS[:1], [0]))
    model.unfreeze_encoder(ALL_LAYERS)  # features change, and what they are standardised by
    norm = model.train().feature_norm
    before = norm.running_mean.clone()
    logits_of(model, image, TOKENS[:1], [0])
    assert torch.equal(norm.running_mean, before)
    logits_of(model, features_of(model, 2), TOKENS, [0, 1])
    assert not torch.equal(norm.running_mean, before)


@pytest.mark.parametrize("trained_layers", [0, 2, ALL_LAYERS])
def test_frozen_means_frozen(trained_layers):
    """Tutorials left BatchNorm in training mode under a frozen ResNet: its statistics drifted."""
    model = make()
    model.unfreeze_encoder(trained_layers)
    model.train()
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    features = model.make_encoder(trained_layers)(pixels)
    logits_of(model, features, TOKENS, [0, 1]).sum().backward()
    after = model.encoder.state_dict()
    same = all(torch.equal(before[name], after[name]) for name in before)
    learns = {n.split(".")[0] for n, p in model.encoder.named_parameters() if p.grad is not None}
    assert same is (trained_layers < ALL_LAYERS)
    layers = [f"layer{n}" for n in range(1, 5)]
    expected = {0: set(), 2: set(layers[2:]), ALL_LAYERS: {"conv1", "bn1", *layers}}
    assert learns == expected[trained_layers]
    pretrained_norms = [
        n for n, p in model.encoder.named_parameters() if "bn" in n and p.grad is not None
    ]
    assert bool(pretrained_norms) is (trained_layers == ALL_LAYERS)


def test_images_are_normalised_as_torchvision_does():
    model = make()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    found = []
    model.encoder.run_layers = lambda maps, **_: found.append(maps) or maps.mean(dim=(2, 3))
    model.make_encoder(ALL_LAYERS)(pixels)
    from torchvision.transforms.v2.functional import normalize

    expected = normalize(pixels / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(found[0], expected)


def test_frozen_layers_are_folded_beside_layers_that_train():
    model = make()
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    plain = model.make_encoder(ALL_LAYERS)(pixels)
    for trained_layers in (0, 2):
        found = model.make_encoder(trained_layers)(pixels)
        assert bool((F.cosine_similarity(found, plain) > 0.999).all())


def test_dropout_has_one_mask_for_all_tokens_of_a_caption():
    dropout = module.VariationalDropout(0.25).train()
    vectors = torch.ones(50, 7, 40)
    dropped = dropout(vectors)
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert dropped.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.05)
    assert len(dropped[:, 0].unique(dim=0)) == 50
    assert torch.equal(dropout.eval()(vectors), vectors)


def test_unknown_encoder_is_refused():
    with pytest.raises(ValueError, match="resnet18"):
        make(encoder="resnet19")


def test_half_precision_gives_nearly_the_same(monkeypatch):
    able = torch.cpu.get_capabilities()
    if not (able["avx512_bw"] or able["avx_ne_convert"]):
        pytest.skip("oneDNN has no bfloat16 for this processor")
    model = make()
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    found = []
    for half in (False, True):
        monkeypatch.setattr(module, "has_bfloat16", lambda _, half=half: half)
        found.append(model.make_encoder()(pixels))
    assert not torch.equal(*found)
    assert bool((F.cosine_similarity(*found) > 0.999).all())


def test_a_model_that_starts_from_another_knows_its_words():
    old, new = make(9), make(12)
    new.copy_weights(old)
    features = features_of(old, 2)
    theirs = logits_of(old, features, TOKENS, [0, 1])
    torch.testing.assert_close(logits_of(new, features, TOKENS, [0, 1])[:, :9], theirs)


def test_a_single_feature_vector_has_stats():
    model = make()
    model.set_feature_stats(features_of(model, 1))
    assert bool(model.feature_norm.running_var.isfinite().all())


def test_standardised_features_have_mean_0_and_deviation_1():
    model = make().train()
    features = features_of(model, 50) * 3 + 2
    model.set_feature_stats(features)
    found = model.feature_norm(features)  # a batch's own statistics would hide an error
    zeros, ones = torch.zeros(model.feature_size), torch.ones(model.feature_size)
    torch.testing.assert_close(found.mean(dim=0), zeros, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.std(dim=0), ones, atol=1e-3, rtol=0)


def test_weights_that_are_not_finite_are_noticed():
    model = make()
    assert model.is_finite()
    with torch.no_grad():
        model.output.bias[3] = torch.nan
    assert not model.is_finite()

"""Remedies that fit into fit's hooks, continued pretraining, probes and attributions."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from sslcourse.data import python_docs
from sslcourse.data import tokenizer as wordpiece
from sslcourse.models.encoder import EncoderConfig, EncoderForMaskedLM
from sslcourse.models.lora import add_lora
from sslcourse.tasks import encoding, fitting, look_inside, robustness, task_heads
from sslcourse.train.loop import Diverged
from sslcourse.train.recipe import Recipe

TEXTS = [
    "the capital of the country is a large port on the river",
    "exports of oil and gas fell in the last year of the war",
    "the president is elected by popular vote for a five year term",
    "mild winters and hot summers with little rain in the north",
]
RECIPE = Recipe(sequence_length=16, batch_size=4, learning_rate=1e-3)


@pytest.fixture(scope="module")
def tokenizer():
    return wordpiece.train(TEXTS * 3, vocab_size=120)


@pytest.fixture
def language_model(tokenizer):
    """Small, and every weight is noise, so that nothing is zero by construction."""
    torch.manual_seed(0)
    model = EncoderForMaskedLM(EncoderConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return model.eval()


@pytest.fixture
def model(language_model):
    torch.manual_seed(1)
    return task_heads.SequenceClassifier(copy.deepcopy(language_model.model), 2)


@pytest.fixture
def examples(tokenizer):
    return encoding.encode_texts(tokenizer, TEXTS, ["a", "b", "a", "b"], ["a", "b"])


@pytest.fixture
def batch(examples, tokenizer):
    return encoding.collate(examples, tokenizer.pad_token_id)


def gradients(model):
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


# --- augmentation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [robustness.drop_tokens, robustness.drop_spans])
def test_dropping_hides_the_share_asked_for_and_no_special_token(kind, tokenizer):
    ids = torch.randint(5, len(tokenizer), (200, 40))
    ids[:, 0], ids[:, -1], ids[::2, 30:] = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    changed = kind(tokenizer, 0.25, seed=3)(ids)
    special = ids < 5
    assert torch.equal(changed[special], ids[special])
    moved = changed != ids
    assert set(changed[moved].tolist()) == {tokenizer.mask_token_id}
    share = float(moved[~special].float().mean())
    assert share == pytest.approx(0.25, abs=0.02)  # 7,000 tokens: a standard deviation is 0.005
    again = kind(tokenizer, 0.25, seed=3)
    assert torch.equal(again(ids), changed)
    assert not torch.equal(again(ids), changed)  # drawn anew for each batch


def test_replacements_are_the_language_models_own(tokenizer, language_model):
    with torch.no_grad():  # a model that is sure of one word
        language_model.decoder.bias.fill_(-50.0)
        language_model.decoder.bias[17] = 50.0
    ids = torch.randint(18, len(tokenizer), (30, 20))
    ids[:, 0] = tokenizer.cls_token_id
    changed = robustness.replace_tokens(language_model, tokenizer, 0.3, seed=0)(ids)
    assert set(changed[changed != ids].tolist()) == {17}
    assert torch.equal(changed[:, 0], ids[:, 0])
    with torch.no_grad():  # and never a special token, however sure the model is of one
        language_model.decoder.bias[tokenizer.sep_token_id] = 500.0
    again = robustness.replace_tokens(language_model, tokenizer, 0.3, seed=0)(ids)
    assert not bool((again[:, 1:] < 5).any())
    assert torch.equal(robustness.replace_tokens(language_model, tokenizer, 0.0)(ids), ids)


def test_augmented_trains_on_the_changed_ids(model, batch, tokenizer):
    robustness.augmented(lambda ids: ids.flip(0))(model, batch)
    found = gradients(model)
    model.zero_grad()
    model(**{**batch, "input_ids": batch["input_ids"].flip(0)}).loss.backward()
    for name, weight in model.named_parameters():
        assert torch.equal(weight.grad, found[name]), name


# --- adversarial training --------------------------------------------------------------------------------------------


def test_one_step_is_the_gradient_of_both_batches(model, batch):
    """Against the same thing written with inputs_embeds and no hook."""
    weights = copy.deepcopy(model.state_dict())
    loss = robustness.adversarial(0.1)(model, batch)
    found = gradients(model)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())

    model.zero_grad()
    mask, real = batch["attention_mask"], batch["attention_mask"][..., None]

    def loss_at(rows):
        hidden = model.body(inputs_embeds=rows, attention_mask=mask).last_hidden_state
        return model.loss(model.score(hidden, mask), batch["labels"])

    rows = model.body.get_input_embeddings()(batch["input_ids"])
    clean = loss_at(rows)
    slope = torch.autograd.grad(clean, rows, retain_graph=True)[0] * real
    length = (rows.detach() * real).flatten(1).norm(dim=1)
    shift = 0.1 * slope * (length / slope.flatten(1).norm(dim=1))[:, None, None]
    (clean + loss_at(rows + shift)).backward()
    assert float(loss) == pytest.approx(float(clean.detach()), abs=1e-6)
    for name, weight in model.named_parameters():
        assert torch.allclose(weight.grad, found[name], atol=1e-5), name


def test_more_steps_find_worse_shifts_inside_the_ball(model, batch):
    real = batch["attention_mask"].bool()
    shifts, kept = [], robustness.shifted

    def watch(model, shift):
        shifts.append(shift)
        return kept(model, shift)

    losses = {}
    for steps in (1, 8):
        shifts.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(robustness, "shifted", watch)
            robustness.adversarial(0.3, steps)(model, batch)
        last = shifts[-1].detach()
        with torch.no_grad(), robustness.shifted(model, last):
            losses[steps] = float(model(**batch).loss)
        with robustness.shifted(model, None) as seen, torch.no_grad():
            model(**batch)
        radius = 0.3 * (seen["rows"].detach() * real[..., None]).flatten(1).norm(dim=1)
        assert bool((last.flatten(1).norm(dim=1) <= radius * 1.0001).all())
        assert not bool(last[~real].any())
    with torch.no_grad():
        clean = float(model(**batch).loss)
    assert clean < losses[1] < losses[8]


def test_a_zero_gradient_and_a_frozen_table_are_survived(model, batch):
    with torch.no_grad():
        model.head.weight.zero_()  # then no embedding matters
    robustness.adversarial(0.1)(model, batch)
    assert all(bool(torch.isfinite(weight.grad).all()) for weight in model.parameters())
    torch.nn.init.normal_(model.head.weight)
    add_lora(model.body, rank=2)
    model.zero_grad()
    robustness.adversarial(0.1, steps=2)(model, batch)
    assert model.body.get_input_embeddings().weight.grad is None
    assert bool(model.head.weight.grad.abs().sum() > 0)


def test_nothing_stays_hooked(model, batch):
    plain = model(**batch).loss
    with pytest.raises(RuntimeError, match="stop"), robustness.shifted(model, torch.ones(1)):
        raise RuntimeError("stop")
    assert torch.equal(model(**batch).loss, plain)


# --- which weights to keep -------------------------------------------------------------------------------------------


def test_early_stopping_keeps_the_best_and_stops(model, examples):
    values = iter([0.1, 0.5, 0.3, 0.2, 0.9])
    states = []

    def score(model):
        states.append(copy.deepcopy(model.state_dict()))
        return next(values)

    best = robustness.KeepBest(score, every=2, patience=2)
    losses = fitting.fit(model, examples, fitting.Settings(steps=20, batch_size=2), on_step=best)
    assert len(losses) == 8  # best at step 4, none better at 6 and 8
    assert best.history == [(2, 0.1), (4, 0.5), (6, 0.3), (8, 0.2)]
    best.restore(model)
    assert all(torch.equal(value, states[1][name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="every=100"):
        robustness.KeepBest(score, every=100).restore(model)


def test_weight_average_is_the_mean_of_the_states(model, examples):
    states, mean = [], robustness.WeightAverage(first_step=3)

    def both(step, model):
        mean(step, model)
        states.append(copy.deepcopy(model.state_dict()))

    fitting.fit(model, examples, fitting.Settings(steps=6, batch_size=2), on_step=both)
    mean.restore(model)
    assert mean.count == 4
    for name, value in model.state_dict().items():
        wanted = torch.stack([state[name] for state in states[2:]]).mean(0)
        assert torch.allclose(value, wanted, atol=1e-6), name
    with pytest.raises(ValueError, match="first_step=9"):
        robustness.WeightAverage(first_step=9).restore(model)


def test_probabilities_are_predicts_own(model, examples, tokenizer, language_model):
    chances = robustness.probabilities(model, examples, batch_size=3)
    assert [int(row.argmax()) for row in chances] == fitting.predict(model, examples, precision="fp32")
    assert all(row.shape == (1, 2) and float(row.sum()) == pytest.approx(1, abs=1e-5) for row in chances)
    words = [text.split() for text in TEXTS]
    tags = [["O"] * len(row) for row in words]
    tagged = encoding.encode_tags(tokenizer, words, tags, ["O", "X"])
    tagger = task_heads.TokenClassifier(language_model.model, 2)
    chances = robustness.probabilities(tagger, tagged, batch_size=3)
    assert [row.argmax(-1).tolist() for row in chances] == fitting.predict(tagger, tagged, precision="fp32")
    with pytest.raises(ValueError, match="examples is empty"):
        robustness.probabilities(model, [])


# --- a domain apart --------------------------------------------------------------------------------------------------


def test_python_docs_are_split_by_module_and_repeat():
    docs = python_docs.python_docs()
    assert docs == python_docs.python_docs()
    assert len(docs["train"]) > 3000
    assert 0.05 < len(docs["held_out"]) / len(docs["train"]) < 0.4
    assert not set(docs["train"]) & set(docs["held_out"])
    assert all(len(text.split()) >= python_docs.MIN_WORDS for text in docs["held_out"])


def test_a_python_without_sources_says_so(monkeypatch):
    monkeypatch.setattr(python_docs, "_python_texts", lambda: iter(()))
    with pytest.raises(ValueError, match="no sources"):
        python_docs.python_docs()


def test_continued_pretraining_learns_and_repeats(tokenizer, language_model):
    twin, recipe = copy.deepcopy(language_model), replace(RECIPE, learning_rate=5e-3)
    losses = robustness.continue_pretraining(language_model, tokenizer, TEXTS * 4, recipe, 60)
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert robustness.continue_pretraining(twin, tokenizer, TEXTS * 4, recipe, 60) == losses


def test_replay_takes_its_share_of_the_rows(tokenizer, language_model, monkeypatch):
    seen = []

    def record(model, optimizer, inputs, labels, recipe):
        seen.append(torch.where(labels == -100, inputs, labels))
        return torch.tensor(1.0)

    monkeypatch.setattr(robustness, "train_step", record)
    new, old = ["winters winters winters winters"] * 40, ["summers summers summers summers"] * 40
    robustness.continue_pretraining(language_model, tokenizer, new, RECIPE, 5, old_texts=old, old_share=0.25)
    ours, theirs = (set(tokenizer(word, add_special_tokens=False)["input_ids"]) for word in ("summers", "winters"))
    mark = (ours - theirs).pop()
    for rows in seen:
        assert len(rows) == 4
        assert int((rows == mark).any(1).sum()) == 1


# --- looking inside --------------------------------------------------------------------------------------------------


def test_the_probe_is_scikit_learns_logistic_regression():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(300, 8, generator=generator) * torch.arange(1, 9)
    labels = (vectors @ torch.randn(8, 3, generator=generator) + torch.randn(300, 3, generator=generator)).argmax(-1)
    standard = ((vectors - vectors.mean(0)) / vectors.std(0, correction=0)).numpy()
    library = LogisticRegression(C=1 / (0.01 * 300), tol=1e-8, max_iter=5000).fit(standard, labels.numpy())
    found = look_inside.probe(vectors, labels, 3, penalty=0.01)(vectors)
    assert np.mean(library.predict(standard) == found.numpy()) >= 0.99  # both stop near one optimum
    assert float((found == labels).float().mean()) > 0.7


def test_integrated_gradients_of_a_polynomial_are_exact():
    """x0² + x0 x1: along the line from 0 the integrals are x0² + x0 x1 / 2 and x0 x1 / 2; midpoints are exact here."""
    x = torch.tensor([3.0, 5.0], dtype=torch.float64)

    def function(batch):
        return batch[:, 0] ** 2 + batch[:, 0] * batch[:, 1]

    found = look_inside.integrated_gradients(function, x, torch.zeros(2, dtype=torch.float64), steps=3)
    assert found.tolist() == pytest.approx([9 + 7.5, 7.5], abs=1e-12)


def test_integrated_gradients_add_up_and_the_rule_is_of_second_order(model, batch):
    double = model.double()
    rows = double.body.get_input_embeddings()(batch["input_ids"][:1]).detach()[0]

    def function(points):
        mask = torch.ones(points.shape[:2], dtype=torch.long)
        return double.score(double.body(inputs_embeds=points, attention_mask=mask).last_hidden_state, mask)[:, 0]

    wanted = float((function(rows[None]) - function(0.5 * rows[None])).detach())
    gaps = {
        n: abs(float(look_inside.integrated_gradients(function, rows, 0.5 * rows, n).sum()) - wanted) for n in (16, 64)
    }
    assert gaps[64] < 1e-3 * abs(wanted)
    assert gaps[64] < gaps[16] / 8  # a quarter of the step, a sixteenth of the error, roughly


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "fragment"),
    [
        (lambda m, t: robustness.adversarial(0.0), "epsilon=0.0"),
        (lambda m, t: robustness.adversarial(math.nan), "epsilon=nan"),
        (lambda m, t: robustness.adversarial(0.1, steps=0), "steps=0"),
        (lambda m, t: robustness.drop_tokens(t, 1.0), "rate=1.0"),
        (lambda m, t: robustness.drop_spans(t, -0.1), "rate=-0.1"),
        (lambda m, t: robustness.replace_tokens(m, wordpiece.train(TEXTS, vocab_size=80), 0.1), "another checkpoint"),
        (lambda m, t: robustness.KeepBest(lambda model: 0.0, every=0), "every=0"),
        (lambda m, t: robustness.KeepBest(lambda model: 0.0, every=1, patience=0), "patience=0"),
        (lambda m, t: robustness.KeepBest(lambda model: math.nan, every=1)(1, m), "score returned nan"),
        (lambda m, t: robustness.WeightAverage(0), "first_step=0"),
        (lambda m, t: robustness.continue_pretraining(m, t, [], RECIPE, 1), "texts is empty"),
        (lambda m, t: robustness.continue_pretraining(m, t, TEXTS, RECIPE, 0), "steps=0"),
        (lambda m, t: robustness.continue_pretraining(m, t, TEXTS, RECIPE, 1, old_share=0.5), "needs old_texts"),
        (lambda m, t: robustness.continue_pretraining(m, t, TEXTS, RECIPE, 1, old_share=1.0), "old_share=1.0"),
        (lambda m, t: robustness.continue_pretraining(m, t, TEXTS[:1], RECIPE, 1), "too few"),
        (lambda m, t: look_inside.probe(torch.zeros(3, 2), torch.tensor([0, 1]), 2), "vectors holds 3 rows"),
        (lambda m, t: look_inside.probe(torch.zeros(2, 2), torch.tensor([0, 2]), 2), "outside 0 to 1"),
        (lambda m, t: look_inside.probe(torch.full((2, 2), math.inf), torch.tensor([0, 1]), 2), "nan or inf"),
        (lambda m, t: look_inside.integrated_gradients(sum, torch.zeros(2), torch.zeros(3)), "must be equal"),
        (lambda m, t: look_inside.integrated_gradients(sum, torch.zeros(2), torch.zeros(2), 0), "steps=0"),
        (
            lambda m, t: look_inside.integrated_gradients(lambda p: p.sum(1) / 0, torch.ones(2), torch.zeros(2)),
            "nan or inf",
        ),
    ],
)
def test_one_clear_error(call, fragment, language_model, tokenizer):
    with pytest.raises(ValueError, match=fragment):
        call(language_model, tokenizer)


def test_span_predictors_have_no_classes(tokenizer, language_model):
    contexts = ["the capital is a port", "the war fell in the year"]
    examples = encoding.encode_questions(tokenizer, ["what", "what"], contexts, [(0, 3), (0, 3)])
    with pytest.raises(ValueError, match="SpanPredictor scores positions"):
        robustness.probabilities(task_heads.SpanPredictor(language_model.model), examples)


def test_divergence_is_named(tokenizer, language_model):
    with torch.no_grad():
        language_model.decoder.bias.fill_(math.nan)
    with pytest.raises(Diverged, match="step 1"):
        robustness.continue_pretraining(language_model, tokenizer, TEXTS * 4, RECIPE, 3)


def test_a_score_within_training_leaves_dropout_on(model, examples):
    modes = []

    def note(step, model):
        robustness.probabilities(model, examples)
        modes.append(model.training)

    fitting.fit(model, examples, fitting.Settings(steps=3), on_step=note)
    assert modes == [True, True, True]


def test_nan_has_no_probability(model, examples):
    with torch.no_grad():
        model.head.bias[0] = math.nan
    with pytest.raises(ValueError, match=r"head\.bias holds nan"):
        robustness.probabilities(model, examples)


def test_a_recipe_with_more_tokens_than_positions_is_refused(tokenizer, language_model):
    language_model.config.max_position_embeddings = 8
    with pytest.raises(ValueError, match=r"sequence_length=16 is more than the model's 8 positions"):
        robustness.continue_pretraining(language_model, tokenizer, TEXTS * 9, RECIPE, 1)


@pytest.mark.parametrize(
    ("function", "message"),
    [(lambda x: x.square().sum(), "one number for each"), (lambda x: (x - x).sqrt().sum(1), "nan or inf")],
)
def test_a_function_that_cannot_be_attributed_is_named(function, message):
    with pytest.raises(ValueError, match=message):
        look_inside.integrated_gradients(function, torch.ones(3), torch.zeros(3), steps=4)

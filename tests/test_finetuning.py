"""Fine-tuning: examples, heads, training, checkpoints, and one clear error for each bad input."""

import copy
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    RobertaConfig,
    RobertaModel,
    Trainer,
    TrainingArguments,
)

from sslcourse.data import tokenizer as wordpiece
from sslcourse.models.encoder import Encoder, EncoderConfig, EncoderForMaskedLM
from sslcourse.tasks import encoding, fitting, pretrained_bodies, task_heads
from sslcourse.train.loop import Diverged

RIVERS, MILLS = ("old", "wide", "cold", "slow"), ("grain", "saw", "paper")
TEXTS = [f"the {river} river runs past the {mill} mill" for river in RIVERS for mill in MILLS]
TAGS = ["O", "B-PER", "I-PER"]


@pytest.fixture(scope="module")
def tokenizer():
    return wordpiece.train(TEXTS + ["@ # samuel doe kenya exports tea and gold . what is the highest point ?"] * 3, 300)


@pytest.fixture
def body(tokenizer):
    return small_body(len(tokenizer))


def small_body(vocab, positions=64):
    torch.manual_seed(0)
    config = EncoderConfig(vocab_size=vocab, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                           max_position_embeddings=positions)  # fmt: skip
    body = Encoder(config)
    for weight in body.parameters():  # so that layers are no longer the identity
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.15)
    return body.eval()


@pytest.fixture
def toy(tokenizer):
    """Class by one word: a bag of words can learn it, the most frequent class cannot."""
    labels = ["cold" if "cold" in text or "old river" in text else "other" for text in TEXTS]
    return encoding.encode_texts(tokenizer, TEXTS, labels, ["other", "cold"])


# -- examples ----------------------------------------------------------------------------------------------------------


def test_the_first_piece_of_a_word_carries_its_tag(tokenizer):
    words = ("president", "samuel", "doe", "exports", "zzz")
    [example] = encoding.encode_tags(tokenizer, [words], [["O", "B-PER", "I-PER", "O", "O"]], TAGS)
    word_ids = tokenizer(list(words), is_split_into_words=True).word_ids()
    assert len(set(word_ids)) < len(word_ids)  # some word has several pieces, or there is nothing to see
    first = [word is not None and word != before for before, word in zip([None, *word_ids[:-1]], word_ids, strict=True)]
    assert [label != -100 for label in example["labels"]] == first
    assert [label for label in example["labels"] if label != -100] == [0, 1, 2, 0, 0]


def test_a_word_that_the_tokenizer_leaves_out_keeps_its_tag(tokenizer):
    [example] = encoding.encode_tags(tokenizer, [("samuel", "\ufe0f", "doe")], [["B-PER", "O", "I-PER"]], TAGS)
    assert [label for label in example["labels"] if label != -100] == [1, 0, 2]


@pytest.mark.parametrize("answer", ["Kenya", "tea and gold", "gold"])
def test_the_answers_tokens_give_the_answer_back(tokenizer, answer):
    context = "Kenya exports tea and gold."
    start = context.index(answer)
    [example] = encoding.encode_questions(tokenizer, ["what is exported"], [context], [(start, start + len(answer))])
    assert encoding.answer_text(example, context, example["labels"]) == answer


@pytest.mark.parametrize(("subject", "item"), [((0, 5), (22, 26)), ((22, 26), (0, 5))])
def test_markers_stand_before_their_arguments_in_either_order(tokenizer, subject, item):
    text = "Kenya exports tea and gold."
    [example] = encoding.encode_relations(tokenizer, [text], [subject], [item], ["exports"], ["exports"])
    pieces = tokenizer.convert_ids_to_tokens(example["input_ids"])
    assert [pieces[place] for place in example["markers"]] == ["@", "#"]
    marked, _ = encoding.mark_arguments(text, subject, item)
    assert f"@ {text[slice(*subject)]} @" in marked
    assert f"# {text[slice(*item)]} #" in marked


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: encoding.encode_texts(t, [], [], ["a"]), "texts is empty"),
        (lambda t: encoding.encode_texts(t, ["x", "y"], ["a"], ["a"]), "unequal lengths: texts has 2, labels has 1"),
        (lambda t: encoding.encode_texts(t, ["x"], ["b"], ["a"]), "label 'b' is not among classes"),
        (lambda t: encoding.encode_tags(t, [["x", "y"]], [["O"]], TAGS), "2 words and 1 tags"),
        (lambda t: encoding.encode_tags(t, [["mill"] * 20], [["O"] * 20], TAGS, max_length=8), "raise max_length"),
        (lambda t: encoding.encode_questions(t, ["q"], ["text"], [(2, 2)]), r"spans\[0\]=\(2, 2\) is not a part"),
        (
            lambda t: encoding.encode_questions(t, ["q"], ["mill " * 30], [(140, 144)], max_length=16),
            "cut off at max_length",
        ),
        (lambda t: encoding.encode_relations(t, ["abc"], [(0, 2)], [(1, 3)], ["a"], ["a"]), "overlap"),
        (lambda t: encoding.encode_relations(t, ["abc"], [(0, 9)], [(1, 3)], ["a"], ["a"]), r"subjects\[0\]=\(0, 9\)"),
        (lambda t: encoding.collate([], 0), "examples is empty"),
        (lambda t: encoding.encode_texts(t, "x", ["a"], ["a"]), "one string"),
        (lambda t: encoding.encode_texts(t, [None], ["a"], ["a"]), r"texts\[0\]=None is a NoneType"),
        (lambda t: encoding.encode_texts(t, ["\ud800"], ["a"], ["a"]), "surrogate"),
        (lambda t: encoding.encode_texts(t, ["x"], ["a"], ["a", "a"]), "names a class twice"),
        (lambda t: encoding.encode_texts(t, ["x"], ["a"], ["a"], max_length=2), "max_length=2 leaves no room"),
        (lambda t: encoding.encode_tags(t, [["x"], []], [["O"], []], TAGS), "sentence 1 has no words"),
        (
            lambda t: encoding.encode_questions(t, ["mill " * 20], ["text"], [(0, 4)], max_length=16),
            "alone takes 20 tokens",
        ),
        (lambda t: encoding.encode_questions(t, ["q"], ["a  b"], [(1, 3)]), "nothing but blanks"),
    ],
)
def test_bad_examples_are_refused_in_words(tokenizer, call, message):
    with pytest.raises(ValueError, match=message):
        call(tokenizer)


def test_a_span_that_ends_in_a_blank_is_its_words(tokenizer):
    [example] = encoding.encode_questions(tokenizer, ["what"], ["the mill runs"], [(4, 9)])
    assert encoding.answer_text(example, "the mill runs", example["labels"]) == "mill"


# -- heads -------------------------------------------------------------------------------------------------------------


def test_padding_changes_no_prediction(tokenizer, body, toy):
    torch.manual_seed(1)
    model = task_heads.SequenceClassifier(body, 2).eval()
    short = encoding.collate(toy[:2], 0)
    wide = {**short, "input_ids": torch.nn.functional.pad(short["input_ids"], (0, 9)),
            "attention_mask": torch.nn.functional.pad(short["attention_mask"], (0, 9))}  # fmt: skip
    assert torch.allclose(model(**short).logits, model(**wide).logits, atol=1e-5)  # fp32, other order of sums


def test_a_span_lies_in_the_context_and_does_not_end_before_it_starts(tokenizer, body):
    torch.manual_seed(1)
    contexts = TEXTS[:6]
    examples = encoding.encode_questions(tokenizer, ["what is the highest point"] * 6, contexts, [(0, 3)] * 6)
    model = task_heads.SpanPredictor(body)
    for example, (first, last) in zip(examples, fitting.predict(model, examples), strict=True):
        assert first <= last
        inside = [b > a for a, b in example["offsets"]]
        assert inside[first]
        assert inside[last]


def test_the_best_pair_is_not_two_bests():
    model = task_heads.SpanPredictor(small_body(50))
    start, end = torch.tensor([0.0, 1.0, 5.0]), torch.tensor([5.0, 2.0, 0.0])
    assert model.best(torch.stack([start, end])[None]).tolist() == [[0, 0]]


def test_a_relation_is_read_at_its_markers(tokenizer, body):
    torch.manual_seed(1)
    text = "Kenya exports tea and gold."
    pairs = encoding.encode_relations(tokenizer, [text] * 2, [(0, 5)] * 2, [(22, 26)] * 2, ["a"] * 2, ["a", "b"])
    pairs[1]["markers"] = [1, 2]
    logits = task_heads.RelationClassifier(body, 2)(**encoding.collate(pairs, 0)).logits
    assert not torch.allclose(logits[0], logits[1])


def test_labels_out_of_range_are_named(body, toy):
    bad = [{**toy[0], "labels": 7}]
    with pytest.raises(ValueError, match="labels holds 7, outside 0 to 1"):
        fitting.fit(task_heads.SequenceClassifier(body, 2), bad, fitting.Settings(steps=1))


@pytest.mark.parametrize(
    ("head", "change", "message"),
    [
        (task_heads.SequenceClassifier, {"labels": 0.5}, "labels has dtype=torch.float32"),
        (task_heads.SequenceClassifier, {"labels": [0, 1]}, "labels has shape"),
        (task_heads.SequenceClassifier, {"input_ids": [2, 9999, 3]}, "input_ids holds 9999"),
        (task_heads.TokenClassifier, {}, "encode the examples for this task"),
        (task_heads.TokenClassifier, {"input_ids": [2, 5, 3], "labels": [-100] * 3}, "labels holds -100 only"),
        (task_heads.SpanPredictor, {}, "make them with encode_questions"),
        (task_heads.SpanPredictor, {"labels": [1, 999], "offsets": [(0, 1)] * 20}, "labels holds position 999"),
        (task_heads.SpanPredictor, {"labels": [0, 1], "offsets": [(0, 0)] * 2 + [(0, 1)] * 18}, "outside its context"),
        (task_heads.RelationClassifier, {}, "make them with encode_relations"),
        (task_heads.RelationClassifier, {"markers": [1, 999]}, "markers holds"),
    ],
)
def test_examples_of_another_task_or_another_tokenizer_are_named(body, toy, head, change, message):
    example = {**toy[0], **change}
    if "offsets" in change:
        example["input_ids"] = [2] * 20
    with pytest.raises(ValueError, match=message):
        fitting.fit(head(body, 2), [example], fitting.Settings(steps=1))


def test_a_sequence_longer_than_the_models_positions_is_refused(tokenizer):
    model = task_heads.SequenceClassifier(small_body(len(tokenizer), positions=16), 2)
    example = encoding.encode_texts(tokenizer, ["mill " * 40], ["a"], ["a", "b"])
    with pytest.raises(ValueError, match="more than the model's 16 positions"):
        fitting.fit(model, example, fitting.Settings(steps=1))


@pytest.mark.parametrize(("argument", "value"), [("outputs", 0), ("dropout", 1.0), ("dropout", -0.1)])
def test_a_head_that_cannot_be_is_refused(body, argument, value):
    with pytest.raises(ValueError, match=f"{argument}={value}"):
        task_heads.SequenceClassifier(body, **{"outputs": 2, argument: value})


# -- training ----------------------------------------------------------------------------------------------------------


def test_it_learns_what_the_most_frequent_class_does_not_know(body, toy):
    torch.manual_seed(0)
    model = task_heads.SequenceClassifier(body, 2)
    losses = fitting.fit(model, toy, fitting.Settings(steps=60, learning_rate=3e-3, batch_size=6))
    assert losses[-1] < losses[0] / 2
    gold = [example["labels"] for example in toy]
    most_frequent = max(gold.count(0), gold.count(1)) / len(gold)
    assert sum(a == b for a, b in zip(gold, fitting.predict(model, toy), strict=True)) / len(gold) > most_frequent


def fitted(body, toy, seed=0):
    torch.manual_seed(seed)
    model = task_heads.SequenceClassifier(copy.deepcopy(body), 2, dropout=0.2)
    return fitting.fit(model, toy, fitting.Settings(steps=5, batch_size=4, seed=seed)), model


def test_the_same_seed_gives_the_same_bits(body, toy):
    (losses, model), (again, twin), (others, _) = fitted(body, toy), fitted(body, toy), fitted(body, toy, seed=1)
    assert losses == again != others
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_the_callers_random_numbers_are_left_alone(body, toy):
    model = task_heads.SequenceClassifier(body, 2, dropout=0.5)
    before = torch.get_rng_state()
    fitting.fit(model, toy, fitting.Settings(steps=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_example_is_seen_once_an_epoch(body, toy):
    numbered = [{**example, "labels": i} for i, example in enumerate(toy)]
    seen = []

    def note(model, batch):
        seen.extend(batch["labels"].tolist())
        return fitting.backward(model, batch)

    fitting.fit(
        task_heads.SequenceClassifier(body, len(toy)), numbered, fitting.Settings(steps=6, batch_size=4), backward=note
    )
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
    assert seen[:12] != seen[12:]


def test_on_step_can_end_the_run(body, toy):
    losses = fitting.fit(
        task_heads.SequenceClassifier(body, 2), toy, fitting.Settings(steps=9), on_step=lambda step, model: step == 3
    )
    assert len(losses) == 3


def test_what_needs_no_gradient_stays(body, toy):
    model = task_heads.SequenceClassifier(body, 2)
    model.body.requires_grad_(False)
    before = copy.deepcopy(body.state_dict())
    fitting.fit(model, toy, fitting.Settings(steps=3))
    assert all(torch.equal(before[name], weight) for name, weight in body.state_dict().items())
    assert fitting.trained_parameters(model) == 2 * 32 + 2
    model.head.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        fitting.fit(model, toy, fitting.Settings(steps=1))


def test_lower_layers_learn_at_lower_rates(body):
    model = task_heads.SequenceClassifier(body, 2)
    optimizer = fitting.make_optimizer(model, fitting.Settings(learning_rate=1.0, layer_decay=0.5, weight_decay=0.1))
    rate = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    decay = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    for name, weight in model.named_parameters():
        layer = (name + "..").split(".")[2]
        depth = int(layer) + 1 if layer.isdigit() else 0 if "embeddings" in name else 3
        assert rate[id(weight)] == 0.5 ** (3 - depth), name
        assert decay[id(weight)] == (0.1 if weight.ndim == 2 else 0.0), name


def test_nan_ends_the_run_with_advice(body, toy):
    model = task_heads.SequenceClassifier(body, 2)
    with torch.no_grad():
        model.head.bias.fill_(math.nan)
    with pytest.raises(Diverged, match="loss is nan at step 1: lower learning_rate"):
        fitting.fit(model, toy, fitting.Settings(steps=2))


def test_a_gradient_that_is_not_finite_leaves_the_weights_as_they_were(body, toy):
    model = task_heads.SequenceClassifier(body, 2)
    before = copy.deepcopy(model.state_dict())

    def spoilt(model, batch):
        loss = fitting.backward(model, batch)
        model.head.bias.grad.fill_(math.nan)
        return loss

    with pytest.raises(Diverged, match="gradient's norm is nan at step 1"):
        fitting.fit(model, toy, fitting.Settings(steps=1), backward=spoilt)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_nan_are_no_answer(body, toy, value):
    model = task_heads.SequenceClassifier(body, 2)
    with torch.no_grad():
        model.head.weight[0, 0] = value
    with pytest.raises(ValueError, match=r"the weight head\.weight holds nan or inf"):
        fitting.predict(model, toy)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("steps", 0),
        ("steps", 2.5),
        ("batch_size", 0),
        ("layer_decay", 0.0),
        ("learning_rate", -1.0),
        ("max_grad_norm", -1.0),
        ("max_grad_norm", math.nan),
        ("precision", "fp17"),
    ],
)
def test_settings_that_cannot_be_are_refused(argument, value):
    with pytest.raises(ValueError, match=f"{argument}="):
        fitting.Settings(**{argument: value})


@pytest.mark.parametrize("work", [fitting.fit, fitting.predict])
def test_an_empty_split_is_refused(body, work):
    with pytest.raises(ValueError, match="examples is empty"):
        work(task_heads.SequenceClassifier(body, 2), [])


def test_predictions_come_in_order_whatever_the_batch(body, tokenizer):
    torch.manual_seed(3)
    words = [("mill",) * n for n in (9, 2, 5, 1, 7)]
    examples = encoding.encode_tags(tokenizer, words, [["O"] * len(row) for row in words], TAGS)
    model = task_heads.TokenClassifier(body, 3)
    one, many = (fitting.predict(model, examples, batch_size=size, precision="fp32") for size in (1, 5))
    assert one == many
    assert [len(row) for row in one] == [9, 2, 5, 1, 7]


def test_untrained_is_the_same_network_with_other_weights(body):
    twin = pretrained_bodies.untrained(body, seed=1)
    shapes = {name: weight.shape for name, weight in body.named_parameters()}
    assert {name: weight.shape for name, weight in twin.named_parameters()} == shapes
    assert not torch.equal(twin.get_input_embeddings().weight, body.get_input_embeddings().weight)
    again = pretrained_bodies.untrained(body, seed=1)
    assert torch.equal(twin.get_input_embeddings().weight, again.get_input_embeddings().weight)


def test_the_librarys_trainer_takes_the_model(body, toy, tmp_path):
    torch.manual_seed(0)
    model = task_heads.SequenceClassifier(body, 2)
    options = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 5}
    options |= {"max_steps": 40, "learning_rate": 3e-3, "remove_unused_columns": False}
    arguments = TrainingArguments(str(tmp_path), **options)
    trainer = Trainer(
        model=model, args=arguments, train_dataset=toy, data_collator=lambda rows: encoding.collate(rows, 0)
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0] / 2


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tokenizer, tmp_path):
    model = EncoderForMaskedLM(small_body(len(tokenizer)).config)
    model.save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


def test_our_folder_opens_as_our_encoder(folder):
    body, _ = pretrained_bodies.open_encoder(folder)
    assert type(body) is Encoder
    assert torch.equal(body.embeddings.tok_embeddings.weight,
                       load_file(folder / "model.safetensors")["model.embeddings.tok_embeddings.weight"])  # fmt: skip


def stock(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_stock_encoder_is_fine_tuned_by_the_same_functions(tokenizer, toy, tmp_path):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=32)  # fmt: skip
    body, _ = pretrained_bodies.open_encoder(stock(BertModel(config), tokenizer, tmp_path / "bert"))
    model = task_heads.SequenceClassifier(body, 2)
    losses = fitting.fit(model, toy, fitting.Settings(steps=40, learning_rate=3e-3))
    assert losses[-1] < losses[0] / 2


def test_another_kind_of_model_is_refused(tokenizer, tmp_path):
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2)
    with pytest.raises(ValueError, match="gpt2"):
        pretrained_bodies.open_encoder(stock(GPT2Model(config), tokenizer, tmp_path / "gpt"))


def test_weights_of_another_architecture_are_refused(folder):
    save_file({"encoder.weight": torch.zeros(2, 2)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="another architecture"):
        pretrained_bodies.open_encoder(folder)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        pretrained_bodies.open_encoder(tmp_path)


def test_pickled_weights_are_not_loaded(folder):
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="safetensors"):
        pretrained_bodies.open_encoder(folder)


def test_a_tokenizer_of_another_checkpoint_is_refused(folder, tokenizer, tmp_path):
    other = wordpiece.train(TEXTS, 60)
    with pytest.raises(ValueError, match="belongs to another checkpoint"):
        pretrained_bodies.check_pair(small_body(len(tokenizer)), other)
    shutil.rmtree(tmp_path / "ours", ignore_errors=True)
    EncoderForMaskedLM(small_body(len(tokenizer)).config).save_pretrained(folder)
    other.save_pretrained(folder)
    with pytest.raises(ValueError, match="belongs to another checkpoint"):
        pretrained_bodies.open_encoder(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{not json", r"config\.json in .* cannot be read"),
        ("config.json", "{}", r"config\.json in .* cannot be read"),
        ("model.safetensors", "garbage", "the weights in .* are damaged"),
        ("tokenizer.json", "garbage", "no tokenizer that can be read"),
    ],
)
def test_a_broken_file_is_named_with_its_folder(folder, file, content, message):
    (folder / file).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        pretrained_bodies.open_encoder(folder)


@pytest.mark.parametrize(("layers", "message"), [(1, "has model.layers.1"), (3, "lacks model.layers.2")])
def test_layers_that_the_config_does_not_know_are_noticed(folder, layers, message):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"num_hidden_layers": layers, "layer_types": ["full_attention"] * layers}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        pretrained_bodies.open_encoder(folder)


def test_weights_of_16_bits_open_in_fp32(folder, tokenizer):
    EncoderForMaskedLM(small_body(len(tokenizer)).config).bfloat16().save_pretrained(folder)
    body, _ = pretrained_bodies.open_encoder(folder)
    assert {weight.dtype for weight in body.parameters()} == {torch.float32}


def test_a_body_without_its_head_opens(tokenizer, tmp_path):
    small = small_body(len(tokenizer))
    body, _ = pretrained_bodies.open_encoder(stock(small, tokenizer, tmp_path / "body"))
    ids = torch.tensor([[2, 7, 8, 3]])
    with torch.no_grad():
        ours, theirs = (one(ids, torch.ones_like(ids)).last_hidden_state for one in (small, body))
    assert torch.allclose(ours, theirs, atol=1e-5)  # fp32, the stock class adds in another order


def test_a_table_filled_up_to_a_multiple_of_64_is_no_other_checkpoint(tokenizer):
    pretrained_bodies.check_pair(small_body(-(-len(tokenizer) // 64) * 64), tokenizer)
    with pytest.raises(ValueError, match="belongs to another checkpoint"):
        pretrained_bodies.check_pair(small_body(-(-len(tokenizer) // 64) * 64 + 64), tokenizer)


def test_roberta_counts_positions_from_behind_its_padding(tokenizer, toy):
    config = RobertaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                           intermediate_size=32, max_position_embeddings=10, pad_token_id=1)  # fmt: skip
    model = task_heads.SequenceClassifier(RobertaModel(config), 2)
    assert task_heads.positions(model.body) == 8
    assert len(fitting.predict(model, [{"input_ids": [5] * 8, "labels": 0}])) == 1
    with pytest.raises(ValueError, match="more than the model's 8 positions"):
        fitting.predict(model, [{"input_ids": [5] * 9, "labels": 0}])

"""Pretraining: counted right, repeatable to the bit, resumable, and never half-written."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM

from sslcourse.data import tokenizer as wordpiece
from sslcourse.data.ignored import IGNORE
from sslcourse.models.encoder import EncoderConfig, EncoderForMaskedLM
from sslcourse.objectives.masking import MaskedLMDataset
from sslcourse.train.loop import pretrain
from sslcourse.train.optimizers import make_optimizer
from sslcourse.train.recipe import Recipe
from sslcourse.train.step import evaluate, learning_rate, train_epoch
from sslcourse.train.token_rows import EVALUATION_RATE, MaskedRows, Tape, held_out_rows

WORDS = "river town mill grain bread stone bridge market school harbour ship road field winter rain".split()
TEXTS = [" ".join(WORDS[(i * j + i) % len(WORDS)] for j in range(1, 30)) for i in range(1, 61)]
HELD_OUT = [" ".join(WORDS[(i * j + 2) % len(WORDS)] for j in range(1, 30)) for i in range(3, 12)]
RECIPE = Recipe(
    vocab_size=120,
    hidden_size=32,
    intermediate_size=64,
    layers=1,
    heads=1,
    sequence_length=32,
    batch_size=4,
    precision="fp32",
)


@pytest.fixture(scope="module")
def tokenizer():
    return wordpiece.train(TEXTS, vocab_size=120)


def run(tokenizer, recipe=RECIPE, texts=TEXTS, held_out=HELD_OUT, **options):
    options = {"steps": 6, "evaluations": 3, "progress": False, **options}
    return pretrain(texts, held_out, recipe, tokenizer=tokenizer, **options)


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


# --- train_epoch and evaluate


class Fixed(torch.nn.Module):
    """A model whose logits are given, so that what is counted can be known."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, input_ids, labels=None, **_):
        from transformers.modeling_outputs import MaskedLMOutput

        logits = self.logits[input_ids[:, 0]]
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits)


def unequal_rows():
    torch.manual_seed(1)
    labels = torch.full((6, 5), IGNORE)
    labels[0] = torch.tensor([1, 2, 3, 0, 1])
    labels[1, 2], labels[4, :3], labels[5, 0] = 2, 3, 1  # rows 2 and 3, one batch of two, have nothing masked
    inputs = torch.arange(6)[:, None].expand(6, 5).clone()
    return MaskedRows(inputs, labels), Fixed(2 * torch.randn(6, 5, 4))


@pytest.mark.parametrize("batch_size", [1, 2, 4, 6, 100])
def test_evaluate_is_the_mean_over_masked_positions_whatever_the_batches(batch_size):
    rows, model = unequal_rows()
    masked = rows.labels != IGNORE
    scores, targets = model.logits[masked], rows.labels[masked]
    result = evaluate(model, rows, batch_size)
    assert result.count == 10
    assert result.loss == pytest.approx(torch.nn.functional.cross_entropy(scores, targets).item(), abs=1e-6)
    assert result.correct == int((scores.argmax(-1) == targets).sum())


def test_evaluate_leaves_the_model_in_its_mode_and_without_gradients():
    rows, model = unequal_rows()
    model.train()
    evaluate(model, rows)
    assert model.training
    assert model.logits.grad is None


def test_train_epoch_returns_the_mean_over_masked_positions():
    rows, model = unequal_rows()
    masked = rows.labels != IGNORE
    want = torch.nn.functional.cross_entropy(model.logits[masked], rows.labels[masked]).item()
    got = train_epoch(model, rows, 2, torch.optim.SGD(model.parameters(), lr=0.0))  # nothing moves
    assert got == pytest.approx(want, abs=1e-6)  # a mean of batch means, or the empty batch's nan, would differ


@pytest.mark.parametrize(
    "function",
    [lambda m, d: evaluate(m, d), lambda m, d: train_epoch(m, d, 2, torch.optim.SGD(m.parameters(), lr=0.1))],
)
def test_nothing_masked_is_an_error(function):
    rows, model = unequal_rows()
    rows.labels.fill_(IGNORE)
    with pytest.raises(ValueError, match="mask_rate"):
        function(model, rows)


def test_train_epoch_works_with_the_library_model_and_learns(tokenizer):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    model = BertForMaskedLM(config)
    data = MaskedLMDataset(TEXTS, tokenizer, max_length=32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = [train_epoch(model, data, 8, optimizer) for _ in range(4)]
    assert losses[-1] < losses[0] - 0.3
    assert evaluate(model, MaskedLMDataset(HELD_OUT, tokenizer, max_length=32, dynamic=False)).loss < losses[0]


def test_sparse_and_dense_evaluation_agree(tokenizer):
    model = EncoderForMaskedLM(EncoderConfig(vocab_size=len(tokenizer), hidden_size=32, num_attention_heads=1))

    class Dense(torch.nn.Module):  # the same model, without the shortcut
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, **batch):
            return self.inner(**batch)

    rows = held_out_rows(wordpiece.encode(tokenizer, HELD_OUT), tokenizer, 32)
    sparse, dense = evaluate(model, rows), evaluate(Dense(), rows)
    assert sparse.count == dense.count
    assert sparse.correct == dense.correct
    assert sparse.loss == pytest.approx(dense.loss, abs=1e-5)


# --- schedule and optimiser


def test_schedule_rises_falls_and_ends():
    recipe = Recipe(learning_rate=1.0, warmup=0.2)
    rates = [learning_rate(recipe, progress / 100) for progress in range(101)]
    assert rates[0] == 0
    assert rates[20] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)
    assert all(a < b for a, b in zip(rates[:20], rates[1:21], strict=True))
    assert all(a > b for a, b in zip(rates[20:], rates[21:], strict=False))
    cosine = replace(recipe, schedule="cosine")
    assert learning_rate(cosine, 0.6) == pytest.approx(0.5)
    assert learning_rate(cosine, 0.3) > learning_rate(recipe, 0.3)
    assert learning_rate(replace(recipe, schedule="constant"), 0.9) == 1.0
    assert learning_rate(recipe, 1.7) == pytest.approx(0.0, abs=1e-12)  # past the end of a budget in minutes


def test_only_matrices_decay():
    model = EncoderForMaskedLM(EncoderConfig(vocab_size=50))
    decayed, others = make_optimizer(model, Recipe(weight_decay=0.1)).param_groups
    assert decayed["weight_decay"] == 0.1
    assert others["weight_decay"] == 0
    assert {weight.ndim for weight in decayed["params"]} == {2}
    assert {weight.ndim for weight in others["params"]} == {1}
    count = len(decayed["params"]) + len(others["params"])
    assert count == len(list(model.parameters()))


# --- the tape


def test_tape_loses_no_token_and_repeats_itself(tokenizer):
    documents = wordpiece.encode(tokenizer, TEXTS)
    tape = Tape(documents, tokenizer, 32)
    assert len(tape.tokens) == sum(len(document) + 2 for document in documents)
    first = tape.rows(seed=0, epoch=0)
    in_order = tape.tokens[: len(tape) * 32].view(-1, 32)
    assert sorted(map(tuple, first.tolist())) == sorted(map(tuple, in_order.tolist()))  # shuffled, all there, once
    assert not torch.equal(first, in_order)
    assert torch.equal(tape.rows(0, 3), tape.rows(0, 3))
    assert not torch.equal(tape.rows(0, 1), tape.rows(1, 1))


def test_batches_depend_on_seed_and_step_alone(tokenizer):
    tape = Tape(wordpiece.encode(tokenizer, TEXTS), tokenizer, 32)
    recipe = replace(RECIPE, vocab_size=len(tokenizer))
    through = tape.batches(recipe)
    from_the_start = [next(through) for _ in range(2 * (len(tape) // 4) + 3)]
    for step in (1, len(tape) // 4, 2 * (len(tape) // 4) + 2):  # within and across epochs
        inputs, labels = next(tape.batches(recipe, first_step=step))
        assert torch.equal(inputs, from_the_start[step][0])
        assert torch.equal(labels, from_the_start[step][1])


def test_special_tokens_are_never_scored_and_held_out_masks_are_fixed(tokenizer):
    documents = wordpiece.encode(tokenizer, TEXTS * 3)
    rows = held_out_rows(documents, tokenizer, 32)
    again = held_out_rows(documents, tokenizer, 32)
    assert torch.equal(rows.inputs, again.inputs)
    scored = rows.labels[rows.labels != IGNORE]
    assert scored.min() > tokenizer.mask_token_id
    ordinary = int((torch.where(rows.labels != IGNORE, rows.labels, rows.inputs) > tokenizer.mask_token_id).sum())
    spread = 5 * math.sqrt(ordinary * EVALUATION_RATE * (1 - EVALUATION_RATE))  # 5 sigma: 6e-7, and the seed is fixed
    assert abs(len(scored) - EVALUATION_RATE * ordinary) < spread


# --- pretrain


def test_pretrain_learns_and_keeps_the_best_weights(tokenizer):
    result = run(tokenizer, replace(RECIPE, learning_rate=1e-2), steps=60, evaluations=6)
    losses = [row["loss"] for row in result.history]
    assert losses[-1] < losses[0] - 0.3
    rows = held_out_rows(wordpiece.encode(tokenizer, HELD_OUT), tokenizer, 32)
    assert evaluate(result.model, rows).loss == pytest.approx(min(losses), abs=1e-6)
    assert result.stopped == "steps"
    assert [row["step"] for row in result.history] == [10, 20, 30, 40, 50, 60]


def test_best_is_kept_when_the_last_is_worse(tokenizer):
    wild = replace(RECIPE, learning_rate=0.15, schedule="constant", warmup=0.0, max_grad_norm=100.0)
    result = run(tokenizer, wild, steps=6, evaluations=6)
    losses = [row["loss"] for row in result.history]
    assert losses[-1] > min(losses)  # or this test would show nothing
    rows = held_out_rows(wordpiece.encode(tokenizer, HELD_OUT), tokenizer, 32)
    assert evaluate(result.model, rows).loss == pytest.approx(min(losses), abs=1e-5)


def test_steps_repeat_to_the_bit_and_seeds_differ(tokenizer):
    torch.manual_seed(1)
    first = weights(run(tokenizer).model)
    torch.manual_seed(2)  # the caller's random state must not matter
    state = torch.get_rng_state()
    assert same(first, weights(run(tokenizer).model))
    assert torch.equal(state, torch.get_rng_state())  # nor be moved
    assert not same(first, weights(run(tokenizer, replace(RECIPE, seed=1)).model))


class PowerCut(Exception):
    pass


def cut_at(step):
    def on_evaluation(row):
        if row["step"] >= step:
            raise PowerCut

    return on_evaluation


def test_a_resumed_run_ends_with_the_same_bits(tokenizer, tmp_path):
    options = {"steps": 40, "evaluations": 8}  # 40 steps are more than one epoch of this text
    through = run(tokenizer, out=tmp_path / "through", **options)
    with pytest.raises(PowerCut):
        run(tokenizer, out=tmp_path / "cut", on_evaluation=cut_at(20), **options)
    assert not (tmp_path / "cut").exists()
    resumed = run(tokenizer, out=tmp_path / "cut", resume=True, **options)
    assert same(weights(through.model), weights(resumed.model))
    histories = [[{k: v for k, v in row.items() if k != "seconds"} for row in r.history] for r in (through, resumed)]
    assert histories[0] == histories[1]
    assert (tmp_path / "cut" / "model.safetensors").read_bytes() == (
        tmp_path / "through" / "model.safetensors"
    ).read_bytes()
    assert not (tmp_path / "cut.partial").exists()


def test_a_checkpoint_of_another_run_is_refused(tokenizer, tmp_path):
    with pytest.raises(PowerCut):
        run(tokenizer, out=tmp_path / "cut", on_evaluation=cut_at(4))
    for other in ({"recipe": replace(RECIPE, learning_rate=1e-4)}, {"steps": 8}, {"texts": TEXTS[:-1]}):
        with pytest.raises(ValueError, match="has another"):
            run(tokenizer, out=tmp_path / "cut", resume=True, **other)
    with pytest.raises(ValueError, match="resume it, or delete it"):
        run(tokenizer, out=tmp_path / "cut")
    with pytest.raises(ValueError, match="needs out"):
        run(tokenizer, resume=True)


def test_checkpoints_are_safetensors_and_json_only(tokenizer, tmp_path):
    with pytest.raises(PowerCut):
        run(tokenizer, out=tmp_path / "cut", on_evaluation=cut_at(4))
    files = sorted(path.name for path in (tmp_path / "cut.partial" / "checkpoint").iterdir())
    assert files == ["best.safetensors", "model.safetensors", "optimizer.safetensors", "state.json"]
    assert json.loads((tmp_path / "cut.partial" / "checkpoint" / "state.json").read_text())["state"]["step"] == 4
    assert "model.head.dense.weight" not in load_file(tmp_path / "cut.partial" / "checkpoint" / "model.safetensors")


def test_early_stopping_ends_the_run(tokenizer):
    stuck = replace(RECIPE, learning_rate=0.15, schedule="constant", warmup=0.0, max_grad_norm=100.0)
    result = run(tokenizer, stuck, steps=200, evaluations=200, patience=3)
    assert result.stopped == "patience"
    losses = [row["loss"] for row in result.history]
    assert len(losses) - 1 - losses.index(min(losses)) == 3


def test_minutes_end_the_run_and_the_decay_with_it(tokenizer):
    result = run(tokenizer, steps=None, minutes=0.02, evaluations=2)
    last = result.history[-1]
    assert result.stopped == "minutes"
    assert 1.2 <= last["seconds"] < 3  # one step may run over
    assert last["learning_rate"] < 0.2 * RECIPE.learning_rate


def test_tensorboard_log_holds_the_history(tokenizer, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run(tokenizer, tensorboard=tmp_path)
    events = EventAccumulator(str(tmp_path)).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("loss")]
    assert logged == [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in result.history]


def test_the_folder_opens_in_stock_transformers(tokenizer, tmp_path):
    result = run(tokenizer, out=tmp_path / "encoder")
    stock = AutoModelForMaskedLM.from_pretrained(tmp_path / "encoder")
    ids = torch.randint(5, 60, (2, 12))
    assert (stock(ids).logits - result.model(ids).logits).abs().max() < 1e-5
    assert json.loads((tmp_path / "encoder" / "recipe.json").read_text())["learning_rate"] == RECIPE.learning_rate


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"steps": None}, "either steps or minutes"),
        ({"minutes": 1.0}, "either steps or minutes"),
        ({"steps": 0}, "must be positive"),
        ({"steps": None, "minutes": float("nan")}, "must be positive"),
        ({"evaluations": 0}, "evaluations=0"),
        ({"texts": TEXTS[:2]}, "too little"),
        ({"held_out": []}, "at least one document"),
        ({"patience": 0}, "patience=0"),
        ({"held_out": ["rain"]}, "less than one row"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(tokenizer, tmp_path, options, fragment):
    with pytest.raises(ValueError, match=fragment):
        run(tokenizer, out=tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_a_full_folder_is_refused(tokenizer, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not an empty folder"):
        run(tokenizer, out=tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("schedule", "steps"),
        ("activation", "snake"),
        ("precision", "fp8"),
        ("warmup", 1.0),
        ("layers", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("beta2", 2.0),
        ("max_grad_norm", -1.0),
        ("max_grad_norm", float("nan")),
    ],
)
def test_a_recipe_names_what_is_wrong_with_it(name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        Recipe(**{name: value})


def test_a_damaged_or_half_written_checkpoint_is_named_or_cleared(tokenizer, tmp_path):
    with pytest.raises(PowerCut):
        run(tokenizer, out=tmp_path / "cut", on_evaluation=cut_at(4))
    checkpoint = tmp_path / "cut.partial" / "checkpoint"
    checkpoint.rename(checkpoint.with_name("checkpoint.old"))  # as if cut off between the two renames
    weights_file = checkpoint.with_name("checkpoint.old") / "model.safetensors"
    whole = weights_file.read_bytes()
    weights_file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        run(tokenizer, out=tmp_path / "cut", resume=True)
    (checkpoint / "model.safetensors").write_bytes(whole)
    assert run(tokenizer, out=tmp_path / "cut", resume=True).stopped == "steps"
    (tmp_path / "new.partial" / "checkpoint.new").mkdir(parents=True)  # as if cut off in the first save
    assert run(tokenizer, out=tmp_path / "new").stopped == "steps"

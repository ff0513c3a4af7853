"""The encoder: stock-compatible to the weight, and at home in every tool of the ecosystem."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, Trainer, TrainingArguments, pipeline

from sslcourse.data import tokenizer as wordpiece
from sslcourse.data.ignored import IGNORE
from sslcourse.data.packing import isolation_mask
from sslcourse.models.encoder import EncoderConfig, EncoderForMaskedLM, rotary_tables, rotate
from sslcourse.objectives.masking import MaskedLMDataset

TEXTS = [
    "the capital of the country is a large port on the river",
    "exports of oil and gas fell in the last year",
    "the president is elected by popular vote for a five-year term",
    "mild winters, hot summers with little rain",
]


@pytest.fixture(scope="module")
def tokenizer():
    return wordpiece.train(TEXTS * 3, vocab_size=120)


@pytest.fixture
def model(tokenizer):
    """A small encoder whose every weight matters: branches that start at zero are given noise."""
    torch.manual_seed(0)
    model = EncoderForMaskedLM(EncoderConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return model.eval()


def test_weights_start_where_the_layers_say():
    torch.manual_seed(0)
    model = EncoderForMaskedLM(EncoderConfig())
    for layer in model.model.layers:
        assert torch.count_nonzero(layer.attn.Wo.weight) == 0
        assert torch.count_nonzero(layer.mlp.Wo.weight) == 0
        bound = 128**-0.5
        for weight in (layer.attn.Wqkv.weight, layer.mlp.Wi.weight):
            assert weight.abs().max() <= bound
            assert weight.std().item() == pytest.approx(
                bound / 3**0.5, rel=0.03
            )  # uniform; 0.5 % is its sampling error
    assert torch.equal(model.head.dense.weight, torch.eye(128))


def test_stock_transformers_opens_it_with_the_same_logits(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    stock, report = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(stock).__module__.startswith("transformers.")
    assert not any(report.values()), report  # nothing missing, unexpected, mismatched
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    keep = batch["attention_mask"].bool()
    with torch.no_grad():
        ours = model(**batch).logits[keep]
        theirs = stock(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[keep]
    assert (ours - theirs).abs().max() < 1e-5


def test_stock_opens_it_with_this_package_out_of_reach(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    code = f"""
import sys
sys.modules["sslcourse"] = None  # an import of it raises ImportError
from transformers import AutoModelForMaskedLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(tmp_path)!r})
model = AutoModelForMaskedLM.from_pretrained({str(tmp_path)!r})
print(float(model(**tokenizer("oil and [MASK]", return_tensors="pt")).logits.detach().sum()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    batch = tokenizer("oil and [MASK]", return_tensors="pt")
    assert float(done.stdout) == pytest.approx(float(model(**batch).logits.detach().sum()), abs=1e-2)  # a sum of 720


def test_round_trip(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = EncoderForMaskedLM.from_pretrained(tmp_path)
    ids = torch.randint(5, 60, (2, 9))
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.decoder.weight is again.model.embeddings.tok_embeddings.weight
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["ModernBertForMaskedLM"]
    assert config["model_type"] == "modernbert"
    assert config["sparse_prediction"] is False


def test_fill_mask_pipeline(model, tokenizer):
    guesses = pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=3)("the capital of the [MASK]")
    assert len(guesses) == 3
    assert guesses[0]["score"] >= guesses[1]["score"] > 0


def test_trainer_trains_and_evaluates(model, tokenizer, tmp_path):
    data = MaskedLMDataset(TEXTS * 8, tokenizer, max_length=24, mask_rate=0.3, dynamic=False)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=20,
        learning_rate=3e-3,
        report_to=[],
        use_cpu=True,
        per_device_train_batch_size=8,
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.5
    trainer.save_model(str(tmp_path / "saved"))
    assert "ModernBertForMaskedLM" in (tmp_path / "saved" / "config.json").read_text()


@pytest.mark.parametrize(("batch", "accumulation"), [(12, 1), (4, 3), (2, 6)])
def test_trainer_accumulates_to_the_gradient_of_the_whole_batch(model, tokenizer, tmp_path, batch, accumulation):
    data = MaskedLMDataset(TEXTS * 3, tokenizer, max_length=24, mask_rate=0.4, dynamic=False)
    items = [data[i] for i in range(12)]
    whole = {name: torch.stack([item[name] for item in items]) for name in items[0]}
    want = model(**whole).loss
    norm = torch.nn.utils.get_total_norm(torch.autograd.grad(want, list(model.parameters())))
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, learning_rate=0.0, report_to=[], use_cpu=True, disable_tqdm=True,
        per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, save_strategy="no",
        logging_steps=1,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=items)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(want.item(), rel=1e-4)
    assert logged["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)


def test_accelerate_trains(model, tokenizer):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    data = MaskedLMDataset(TEXTS * 4, tokenizer, max_length=24, mask_rate=0.3, dynamic=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    prepared, optimizer, loader = accelerator.prepare(
        model, optimizer, torch.utils.data.DataLoader(data, batch_size=16)
    )
    prepared.train()
    losses = []
    for _ in range(15):
        for batch in loader:
            optimizer.zero_grad()
            loss = prepared(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("narrow", [False, True])
def test_masked_loss_is_the_dense_loss(model, narrow):
    ids = torch.randint(5, 60, (4, 16))
    labels = torch.where(torch.rand(4, 16) < 0.3, ids, IGNORE)
    labels[0, 0] = 7
    loss_sum, count = model.masked_loss(ids, labels, narrow=narrow)
    assert count == int((labels != IGNORE).sum())
    assert torch.allclose(loss_sum / count, model(ids, labels=labels).loss, atol=1e-5)
    (loss_sum / count).backward()
    sparse = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    model(ids, labels=labels).loss.backward()
    for name, weight in model.named_parameters():
        assert torch.allclose(weight.grad, sparse[name], atol=1e-5), name


def test_padding_and_isolation_change_nothing(model):
    ids = torch.randint(5, 60, (1, 10))
    alone = model(ids).logits
    padded = torch.cat([ids, torch.zeros(1, 6, dtype=torch.long)], dim=1)
    mask = (padded != 0).long()
    assert torch.allclose(model(padded, attention_mask=mask).logits[:, :10], alone, atol=1e-5)
    two = torch.cat([ids, torch.randint(5, 60, (1, 7))], dim=1)
    owner = torch.tensor([[0] * 10 + [1] * 7])
    isolated = model(two, attention_mask=isolation_mask(owner)).logits[:, :10]
    assert torch.allclose(isolated, alone, atol=1e-5)
    assert not torch.allclose(model(two).logits[:, :10], alone, atol=1e-2)  # and without the mask it does leak


@pytest.mark.parametrize("padded", [False, True])
def test_hidden_states_and_attentions_are_the_stock_ones(model, tokenizer, tmp_path, padded):
    model.save_pretrained(tmp_path)
    stock = AutoModelForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    batch = tokenizer(TEXTS if padded else TEXTS[:1], padding=True, return_tensors="pt")
    wanted = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        ours, theirs = model(**batch, **wanted), stock(**batch, **wanted)
    keep = batch["attention_mask"].bool()
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 1 + len(model.model.layers)
    for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert torch.allclose(a[keep], b[keep], atol=5e-5)  # activations of size 10: fp32 in another order of sums
    for a, b in zip(ours.attentions, theirs.attentions, strict=True):
        a, b = a.transpose(1, 2)[keep], b.transpose(1, 2)[keep]  # rows of padding mean nothing
        assert torch.allclose(a, b, atol=1e-5)
        assert torch.allclose(a.sum(-1), torch.ones(a.shape[:-1]), atol=1e-5)


def test_rows_in_place_of_ids_give_the_same_output(model, tokenizer):
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    rows = model.get_input_embeddings()(batch["input_ids"])
    with torch.no_grad():
        given = model(inputs_embeds=rows, attention_mask=batch["attention_mask"]).logits
        assert torch.equal(given, model(batch["input_ids"], batch["attention_mask"]).logits)
    for inputs in ({}, {"input_ids": batch["input_ids"], "inputs_embeds": rows}):
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            model(**inputs)


def test_rotation_keeps_lengths_and_depends_on_distance_only():
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 32)
    positions = torch.arange(40)[None]
    cos, sin = rotary_tables(positions, 32)
    queries, keys = rotate(query.expand(1, 1, 40, 32), cos, sin), rotate(key.expand(1, 1, 40, 32), cos, sin)
    assert torch.allclose(queries.norm(dim=-1), query.norm().expand(1, 1, 40), atol=1e-4)
    scores = (queries @ keys.transpose(-1, -2))[0, 0]
    for distance in (0, 3, 11):
        diagonal = scores.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-3)


@pytest.mark.parametrize(
    ("setting", "fragment"),
    [
        ({"hidden_size": 100, "num_attention_heads": 3}, "hidden_size=100"),
        ({"layer_types": ["sliding_attention"] * 3}, "sliding"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_dropout": 0.1}, "mlp_dropout"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"sparse_prediction": True}, "sparse_prediction"),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                }
            },
            "linear",
        ),
    ],
)
def test_what_is_left_out_is_refused(setting, fragment):
    with pytest.raises(ValueError, match=fragment):
        EncoderForMaskedLM(EncoderConfig(**setting))


def test_tokenizer_round_trip(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(TEXTS[0]) == tokenizer(TEXTS[0])
    assert again.mask_token_id == 4

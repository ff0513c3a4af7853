"""Corrections to the source article that no lesson's cell shows: what the libraries of today have and refuse."""

import importlib.metadata

import pytest
import torch
import transformers
from packaging.specifiers import SpecifierSet
from sklearn.metrics import accuracy_score
from transformers import BertConfig, BertForMaskedLM


@pytest.fixture(scope="module")
def bert():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return BertForMaskedLM(BertConfig(vocab_size=16, **sizes))


def test_the_model_takes_labels_and_no_masked_indices(bert):
    ids = torch.tensor([[5, 6, 7]])
    assert bert(ids, labels=ids).loss is not None
    try:
        loss = bert(ids, masked_indices=ids).loss  # today's libraries may swallow the name in silence
    except TypeError:
        loss = None
    assert loss is None


def test_transformers_has_no_adamw():
    assert not hasattr(transformers, "AdamW")
    assert issubclass(torch.optim.AdamW, torch.optim.Optimizer)


def test_accuracy_score_refuses_what_the_article_gives_it():
    with pytest.raises(ValueError, match="not supported"):
        accuracy_score([[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 5, 7]])


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_no_library_of_today_runs_on_the_articles_python(library):
    wanted = importlib.metadata.metadata(library)["Requires-Python"]
    assert not SpecifierSet(wanted).contains("3.8.20")

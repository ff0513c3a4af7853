"""Grids, integer products, whole models in int8 by hand and by the libraries, and what each of them refuses."""

import copy
import math

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import BertConfig, BertModel

from sslcourse.compress import (
    activation_ranges,
    fake_quantization,
    int8_copies,
    int8_layers,
    integers,
    onnx_files,
    serving_routes,
)
from sslcourse.measure import timing
from sslcourse.models.encoder import EncoderConfig, EncoderForMaskedLM
from sslcourse.tasks import task_heads

SIZES = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}


def started(seed: int = 0) -> EncoderForMaskedLM:
    """An encoder whose outputs depend on every layer (it starts with output projections of zero)."""
    torch.manual_seed(seed)
    model = EncoderForMaskedLM(EncoderConfig(**SIZES, num_attention_heads=1)).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.attn.Wo.weight.normal_(0, 0.2)
            layer.mlp.Wo.weight.normal_(0, 0.2)
    return model


def batch(rows: int = 3, length: int = 12, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 300, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[1:, length - 3 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


# -- grids -------------------------------------------------------------------------------------------------------------

WAYS = [{}, {"axis": 0}, {"axis": -1}, {"group": 8}]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shift", [0.0, 5.0, -5.0])
def test_no_number_moves_by_more_than_half_a_step(way, symmetric, bits, shift):
    x = torch.randn(24, 40, dtype=torch.float64) * torch.logspace(-6, 6, 24, dtype=torch.float64)[:, None] + shift
    found = integers.quantize(x, bits, symmetric=symmetric, **way)
    steps = torch.broadcast_to(found.scale, found.values.shape).reshape(x.shape)
    assert float(((found.dequantize() - x).abs() / steps).max()) <= 0.5 + 1e-9  # fp64 rounds at 1e-16 of 2^7 steps
    low, high = integers.limits(bits, symmetric)
    assert low <= int(found.values.min()) <= int(found.values.max()) <= high


@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_stays_zero_and_the_ends_are_reached(symmetric):
    x = torch.tensor([0.0, 3.0, 7.0, 0.0])
    found = integers.quantize(x, symmetric=symmetric)
    assert found.dequantize()[0] == 0
    assert int(found.values.max()) == 127
    assert int(integers.quantize(torch.zeros(4), symmetric=symmetric).dequantize().count_nonzero()) == 0


def test_ties_go_to_the_even_number_and_what_lies_beyond_saturates():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 1000.0, -1000.0])
    found = integers.on_grid(x, torch.tensor(1.0), torch.tensor(0))
    assert found.values.tolist() == [0, 2, 2, 0, -2, 127, -127]


def test_the_affine_grid_is_torchs():
    x = torch.randn(50, 50) * 3 + 1
    found = integers.quantize(x, symmetric=False)
    theirs = torch.fake_quantize_per_tensor_affine(x, float(found.scale), int(found.zero_point), -128, 127)
    assert torch.equal(found.dequantize(), theirs)


def test_four_bits_pack_and_unpack():
    values = torch.arange(-8, 8, dtype=torch.int8).repeat(3, 1)
    packed = integers.pack_int4(values)
    assert packed.shape == (3, 8)
    assert packed.dtype == torch.uint8
    assert torch.equal(integers.unpack_int4(packed), values)


def test_bytes_count_numbers_and_scales():
    x = torch.randn(16, 64)
    assert integers.quantize(x).bytes == 16 * 64 + 4
    assert integers.quantize(x, 4, group=32).bytes == 16 * 64 / 2 + 16 * 2 * 4
    assert integers.quantize(x + 9, symmetric=False, axis=0).bytes == 16 * 64 + 16 * 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: integers.quantize(torch.tensor([1.0, math.nan])), "nan or infinities"),
        (lambda: integers.quantize(torch.tensor([math.inf])), "nan or infinities"),
        (lambda: integers.quantize(torch.empty(0, 3)), "nothing to quantize"),
        (lambda: integers.quantize(torch.ones(4), 9), "bits=9"),
        (lambda: integers.quantize(torch.ones(4), 1), "bits=1"),
        (lambda: integers.quantize(torch.ones(4, 6), group=4), "group=4 does not divide"),
        (lambda: integers.quantize(torch.ones(4, 6), axis=2), "axis=2"),
        (lambda: integers.quantize(torch.ones(4, 6), axis=0, group=2), "not both"),
        (lambda: integers.pack_int4(torch.ones(3, dtype=torch.int8)), "even number"),
        (lambda: integers.pack_int4(torch.full((2,), 8, dtype=torch.int8)), "four bits hold -8 to 7"),
    ],
)
def test_what_no_grid_can_hold_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- products ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (17, 384, 64), (64, 1536, 33), (2, 4096, 2)])
@pytest.mark.parametrize("extreme", [None, -128, 127])
def test_integer_sums_are_exact(shape, extreme):
    n, k, m = shape
    a, b = (torch.randint(-128, 128, size, dtype=torch.int8) for size in ((n, k), (k, m)))
    if extreme is not None:
        a.fill_(extreme)
        b.fill_(-128)
    assert torch.equal(integers.int_product(a, b).long(), a.long() @ b.long())


def test_a_sum_that_could_overflow_is_refused():
    a = torch.zeros(1, integers.LARGEST_SUM, dtype=torch.int8)
    with pytest.raises(ValueError, match="do not fit into an int32"):
        integers.int_product(a, a.t())


@pytest.mark.parametrize("reach", [None, (-4.0, 4.0), (0.0, 3.0), (-5.0, -1.0)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_computes_what_its_grids_stand_for(reach, bias):
    linear = nn.Linear(48, 20, bias=bias)
    layer, x = int8_layers.Int8Linear(linear, reach), torch.randn(5, 7, 48)
    _, activations = layer.accumulate(x.flatten(0, -2))
    weight = layer.weight.double() * layer.scale.double()[:, None]
    exact = activations.dequantize().double() @ weight.t() + (linear.bias.detach().double() if bias else 0)
    assert float((layer(x).flatten(0, -2) - exact).abs().max()) <= 1e-6 * float(exact.abs().max())


# -- models ------------------------------------------------------------------------------------------------------------


def test_a_model_in_int8_says_nearly_the_same_and_takes_a_quarter():
    model = started()
    small = int8_copies.int8_copy(model)
    exact, rounded = model(**batch()).logits, small(**batch()).logits
    assert int8_copies.sqnr(exact, rounded) > 25  # 8 bits allow about 40 dB a layer
    assert int8_copies.agreement(exact.flatten(0, 1), exact.flatten(0, 1)) == 1.0
    assert small.decoder.weight.data_ptr() == small.model.embeddings.tok_embeddings.weight.data_ptr()
    assert 0.25 < int8_copies.disk_bytes(small) / int8_copies.disk_bytes(model) < 0.4  # a small model has many scales
    assert int8_copies.memory_bytes(small) < int8_copies.memory_bytes(model) / 2.5
    assert isinstance(model.decoder, nn.Linear)  # the model itself is as it was


def test_a_model_in_int8_is_saved_and_opened_again(tmp_path):
    small = int8_copies.int8_copy(started())
    save_model(small, str(tmp_path / "small.safetensors"))
    again = int8_copies.int8_copy(started(seed=1))
    assert not torch.equal(again(**batch()).logits, small(**batch()).logits)
    load_model(again, str(tmp_path / "small.safetensors"))
    assert torch.equal(again(**batch()).logits, small(**batch()).logits)


def test_calibrated_ranges_are_what_was_seen():
    model, batches = started(), [batch(seed=seed) for seed in range(3)]
    seen = activation_ranges.observe(model, batches)
    inputs = torch.cat([model.model.embeddings(one["input_ids"]).flatten(0, 1) for one in batches]).detach()
    first = seen["model.layers.0.attn.Wqkv"]
    assert (first.low, first.high) == (float(inputs.min()), float(inputs.max()))
    assert torch.equal(first.channels, inputs.abs().amax(0))
    static = int8_copies.int8_copy(model, reaches={name: (one.low, one.high) for name, one in seen.items()})
    assert int8_copies.sqnr(model(**batch()).logits, static(**batch()).logits) > 20
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_smoothing_changes_nothing_but_what_is_hard_to_round():
    torch.manual_seed(0)
    norm, linear = nn.LayerNorm(64), nn.Linear(64, 32)
    with torch.no_grad():
        norm.weight[5] *= 100  # one channel that is far larger than the others
    x = torch.randn(40, 64)
    exact, before = linear(norm(x)), int8_layers.Int8Linear(linear)(norm(x))
    activation_ranges.smooth(norm, linear, norm(x).abs().amax(0).detach())
    assert torch.allclose(linear(norm(x)), exact, rtol=1e-4, atol=1e-4)
    assert (
        int8_copies.sqnr(exact, int8_layers.Int8Linear(linear)(norm(x))) > int8_copies.sqnr(exact, before) + 6
    )  # more than a bit


@pytest.mark.parametrize(("bits", "zero_point"), [(8, 0), (8, 13), (4, -3), (2, 0)])
def test_fake_rounding_is_torchs_forward_and_backward(bits, zero_point):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    x = (torch.randn(400) * 9).requires_grad_()
    scale = 0.11
    ours = fake_quantization.fake_quantize(x, torch.tensor(scale), torch.tensor(zero_point), low, high)
    weights = torch.randn(400)
    (ours * weights).sum().backward()
    gradient, x.grad = x.grad, None
    theirs = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)
    (theirs * weights).sum().backward()
    assert torch.equal(ours, theirs)
    assert torch.equal(gradient, x.grad)
    assert int((gradient == 0).sum()) > 0  # some saturate, and those learn nothing


def test_a_copy_that_rounds_can_be_trained_and_learns_to_bear_it():
    model, one = started(), batch(rows=8)
    labels = one["input_ids"]
    rounding = int8_copies.fake_copy(model, 2, group=16)
    before = float(rounding(**one, labels=labels).loss)
    optimizer = torch.optim.AdamW(rounding.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        rounding(**one, labels=labels).loss.backward()
        optimizer.step()
    assert float(rounding(**one, labels=labels).loss) < before - 0.5


def test_what_is_kept_is_kept_and_what_is_chosen_is_chosen():
    model = started()
    found = int8_copies.int8_copy(model, keep=["decoder", "head.dense"])
    assert isinstance(found.decoder, nn.Linear)
    assert isinstance(found.model.layers[0].mlp.Wi, int8_layers.Int8Linear)
    found = int8_copies.fake_copy(model, only=["model.layers.0.mlp.Wi"])
    assert [name for name, one in found.named_modules() if isinstance(one, fake_quantization.FakeLinear)] == [
        "model.layers.0.mlp.Wi"
    ]


def broken(model: nn.Module, value: float) -> nn.Module:
    with torch.no_grad():
        model.model.layers[1].mlp.Wo.weight[0, 0] = value
    return model


@pytest.mark.parametrize("make", [int8_copies.int8_copy, int8_copies.torchao_copy, int8_copies.fake_copy])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: int8_copies.int8_copy(started()), "quantized already"),
        (lambda: int8_copies.torchao_copy(started()), "quantized already"),
        (lambda: int8_copies.fake_copy(started()), "quantized already"),
        (lambda: torch.ao.quantization.quantize_dynamic(started(), {nn.Linear}), "quantized already"),
        (lambda: broken(started(), math.nan), "layers.1.mlp.Wo.weight holds nan"),
        (lambda: broken(started(), -math.inf), "layers.1.mlp.Wo.weight holds nan"),
        (lambda: nn.Sequential(nn.LayerNorm(4)), "no nn.Linear"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_model_that_cannot_be_quantized_is_refused(make, model, message):
    with pytest.raises(ValueError, match=message):
        make(model())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": ["decode"]}, "keep names 'decode'"),
        ({"only": ["nothing"]}, "only names 'nothing'"),
        ({"only": ["model.final_norm"]}, "a LayerNorm: only nn.Linear and nn.Embedding"),
        ({"only": ["decoder"], "keep": ["decoder"]}, "keep names all"),
    ],
)
def test_names_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        int8_copies.int8_copy(started(), **options)


class Tokens:
    """As long as a tokenizer of 8,000 pieces."""

    def __len__(self) -> int:
        return 8000


@pytest.mark.parametrize(
    ("batches", "tokenizer", "message"),
    [
        ([], None, "batches is empty"),
        ([{"input_ids": torch.full((2, 4), 300)}], None, "encoded by another tokenizer"),
        ([{"input_ids": torch.full((2, 4), -1)}], None, "encoded by another tokenizer"),
        ([{"input_ids": torch.full((2, 4), 7)}], Tokens(), "of another tokenizer"),
    ],
)
def test_foreign_calibration_data_is_refused(batches, tokenizer, message):
    with pytest.raises(ValueError, match=message):
        activation_ranges.observe(started(), batches, tokenizer)


# -- libraries ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["dynamic", "weight-only"])
def test_torchao_computes_nearly_what_the_model_does(how):
    model = started()
    small = int8_copies.torchao_copy(model, how)
    with torch.no_grad():
        assert int8_copies.sqnr(model(**batch()).logits, small(**batch()).logits) > 25
    assert isinstance(small.decoder, nn.Linear)
    assert int8_copies.disk_bytes(small) < int8_copies.disk_bytes(model)
    with pytest.raises(ValueError, match="how='static'"):
        int8_copies.torchao_copy(model, "static")


@torch.no_grad()
def test_torchao_reads_a_table_of_int8_rows():
    model = bert()
    small, plain = int8_copies.torchao_copy(model, tables=True), int8_copies.torchao_copy(model)
    assert int8_copies.sqnr(model(**batch()).last_hidden_state, small(**batch()).last_hidden_state) > 25
    assert int8_copies.disk_bytes(small) < 0.6 * int8_copies.disk_bytes(plain)  # a table is most of this model
    rows = small.embeddings.word_embeddings(torch.tensor([7, 9]))
    ours = int8_layers.Int8Embedding(model.embeddings.word_embeddings)(torch.tensor([7, 9]))
    assert torch.allclose(rows, ours, atol=float(ours.abs().max()) / 127)  # a whole step: ties and scales are torchao's


def bert() -> BertModel:
    torch.manual_seed(0)
    return BertModel(BertConfig(**SIZES, num_attention_heads=2), add_pooling_layer=False).eval()


def tagger() -> task_heads.TokenClassifier:
    return task_heads.TokenClassifier(started().model, 3).eval()


@pytest.fixture(scope="module", params=[started, bert, tagger])
def exported(request, tmp_path_factory):
    """(model, its graph in fp32), exported once."""
    model, folder = request.param(), tmp_path_factory.mktemp("onnx")
    return model, onnx_files.export_onnx(model, folder / "fp32.onnx", batch())


def outputs(model: nn.Module, one: dict[str, torch.Tensor]) -> torch.Tensor:
    found = model(**one)
    return found.logits if getattr(found, "logits", None) is not None else found.last_hidden_state


def stirred(model: nn.Module, seed: int) -> nn.Module:
    """With weights that are all different, as after training."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


@torch.no_grad()
def test_a_graph_takes_the_weights_of_another_model(tmp_path):
    old, new = stirred(tagger(), 1), stirred(tagger(), 2)
    path = onnx_files.export_onnx(old, tmp_path / "old.onnx", batch())
    filled = onnx_files.refilled_onnx(path, tmp_path / "new.onnx", old, new)
    assert torch.allclose(onnx_files.OnnxModel(filled)(**batch()), new(**batch()).logits, atol=1e-5)
    assert torch.allclose(
        onnx_files.OnnxModel(path)(**batch()), old(**batch()).logits, atol=1e-5
    )  # the source is as it was
    assert not torch.allclose(new(**batch()).logits, old(**batch()).logits, atol=1e-2)


def test_weights_that_do_not_fit_a_graph_are_refused(tmp_path):
    old = stirred(tagger(), 1)
    path, target = onnx_files.export_onnx(old, tmp_path / "old.onnx", batch()), tmp_path / "new.onnx"
    with pytest.raises(ValueError, match=r"stands 0 times in .*, not once; is it old's graph"):
        onnx_files.refilled_onnx(path, target, stirred(tagger(), 3), old)
    with pytest.raises(ValueError, match="other shapes of weights"):
        onnx_files.refilled_onnx(path, target, old, task_heads.TokenClassifier(started().model, 4))
    sick = stirred(tagger(), 2)
    sick.body.layers[1].mlp.Wo.weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="holds nan or infinities"):
        onnx_files.refilled_onnx(path, target, old, sick)
    assert not target.exists()


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 40), (5, 12)])
@torch.no_grad()
def test_a_graph_computes_what_the_model_does_at_any_size(exported, rows, length):
    model, path = exported
    one = batch(rows, length, seed=3)
    one["attention_mask"][:, : max(1, length - 3)] = 1
    real = one["attention_mask"].bool()
    ours, theirs = outputs(model, one)[real], onnx_files.OnnxModel(path)(**one)[real]
    assert float((ours - theirs).abs().max()) <= 1e-5 * float(ours.abs().max())  # fp32, sums in other orders


@torch.no_grad()
def test_small_graphs_compute_nearly_the_same_and_are_smaller(exported, tmp_path):
    model, path = exported
    dynamic = onnx_files.int8_onnx(path, tmp_path / "dynamic.onnx")
    static = onnx_files.static_int8_onnx(path, tmp_path / "static.onnx", [batch(seed=seed) for seed in range(4)])
    kinds = onnx_files.operations(path), onnx_files.operations(dynamic), onnx_files.operations(static)
    assert kinds[0]["MatMulInteger"] == 0
    assert kinds[1]["MatMulInteger"] > 0
    assert kinds[2]["QuantizeLinear"] > 0
    one = batch(seed=9)
    real = one["attention_mask"].bool()
    exact = outputs(model, one)[real]
    for graph in (dynamic, static):
        assert (
            int8_copies.sqnr(exact, onnx_files.OnnxModel(graph)(**one)[real]) > 15
        )  # a range for all tokens costs more than one a token
        assert onnx_files.OnnxModel(graph).bytes < path.stat().st_size
    assert sorted(one.name for one in tmp_path.iterdir()) == ["dynamic.onnx", "static.onnx"]  # no scratch is left


@torch.no_grad()
def test_routes_agree_with_fp32(tmp_path):
    model = started()
    found = serving_routes.routes(model, batch(), tmp_path, [batch(seed=1)])
    exact = model(**batch()).logits
    assert len(found) == 8
    for name, route in found.items():
        assert int8_copies.sqnr(exact, route(**batch())) > 15, name
        assert min(route.disk, route.memory) > 0  # one opens a process for each graph
    assert found["int8 by hand"].disk < found["fp32"].disk


def test_bad_graphs_and_inputs_are_refused_and_nothing_is_lost(tmp_path):
    model, path = started(), tmp_path / "fp32.onnx"
    with pytest.raises(ValueError, match="lacks attention_mask"):
        onnx_files.export_onnx(model, path, {"input_ids": torch.ones(2, 4).long()})
    with pytest.raises(ValueError, match="two or more of each"):
        onnx_files.export_onnx(model, path, batch(rows=1))
    with pytest.raises(ValueError, match="quantized already"):
        onnx_files.export_onnx(int8_copies.int8_copy(model), path, batch())
    with pytest.raises(ValueError, match="holds nan"):
        onnx_files.export_onnx(broken(started(), math.nan), path, batch())
    with pytest.raises(ValueError, match="does not exist"):
        onnx_files.int8_onnx(path, tmp_path / "small.onnx")
    assert list(tmp_path.iterdir()) == []

    onnx_files.export_onnx(model, path, batch())
    whole = path.read_bytes()
    with pytest.raises(ValueError, match="the source itself"):
        onnx_files.int8_onnx(path, path)
    small = onnx_files.int8_onnx(path, tmp_path / "small.onnx")
    with pytest.raises(ValueError, match="quantized already"):
        onnx_files.int8_onnx(small, tmp_path / "smaller.onnx")
    with pytest.raises(ValueError, match="encoded by another tokenizer"):
        onnx_files.static_int8_onnx(path, tmp_path / "static.onnx", [{"input_ids": torch.full((2, 4), 300)}])
    with pytest.raises(ValueError, match="method='mean'"):
        onnx_files.static_int8_onnx(path, tmp_path / "static.onnx", [batch()], method="mean")
    assert path.read_bytes() == whole
    assert sorted(one.name for one in tmp_path.iterdir()) == ["fp32.onnx", "small.onnx"]

    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    for opens in (
        lambda file: onnx_files.int8_onnx(file, tmp_path / "small.onnx"),
        onnx_files.OnnxModel,
        serving_routes.resident_bytes,
    ):
        with pytest.raises(ValueError, match=r"cut\.onnx"):
            opens(tmp_path / "cut.onnx")
    assert onnx_files.OnnxModel(small).bytes == small.stat().st_size


# -- side by side ------------------------------------------------------------------------------------------------------


def test_rivals_take_turns_and_each_starts_some_rounds():
    order = []
    times = timing.side_by_side({name: lambda name=name: order.append(name) for name in "abc"}, rounds=6, warmup=1)
    turns = "aabbcc bbccaa ccaabb".replace(" ", "")  # a call that is not timed, and one that is
    assert order == list("abc") + list(turns) * 2
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 6, "b": 6, "c": 6}


def test_the_ratio_is_of_the_same_round():
    found = timing.ratio([1.0, 2.0, 4.0], [0.5, 1.0, 2.0])
    assert found == (2.0, 2.0, 2.0)
    assert timing.summary([3.0, 1.0, 2.0]) == (2.0, 3.0, 3)
    with pytest.raises(ValueError, match="time both in one run"):
        timing.ratio([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="nothing to time"):
        timing.side_by_side({})
    with pytest.raises(ValueError, match="rounds=0"):
        timing.side_by_side({"a": copy.copy}, rounds=0)

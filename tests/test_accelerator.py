"""benchmarks.accelerator on a CPU, at toy size: everything that a GPU would run, but the compiler."""

import json
import math

import pytest
import torch

import benchmarks
from benchmarks import accelerator
from sslcourse.measure import operation_counts


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for at in range(300):
        (folder / f"{at}.txt").write_text(f"file {at}: the river is {at} km long and ends in the sea. " * 10)
    path = folder.parent / "tokens.safetensors"
    assert accelerator.main(["pack", "--text", str(folder), "--tokens", str(path)]) == 0
    return path


def test_all_contestants_learn_and_are_compared(tokens, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmarks, "MEASURED", tmp_path)
    monkeypatch.setattr(accelerator, "ROUNDS", 2)
    given = ["run", "--size", "tiny", "--device", "cpu", "--tokens", str(tokens), "--seconds", "0.6", "--trial-seconds",
             "0.1", "--seeds", "1", "--looks", "3", "--no-compile"]  # fmt: skip
    assert accelerator.main(given) == 0
    found = json.loads((tmp_path / "accelerator_tiny.json").read_text())
    assert found["device"] == "cpu"
    knowing_nothing = math.log(accelerator.read(tokens, 32, torch.device("cpu")).vocab_size)
    assert found["command"].startswith("python -m benchmarks.accelerator run --size tiny")
    weights = {name: row["weights"] for name, row in found["contestants"].items()}
    assert max(weights.values()) < 1.2 * min(weights.values())
    for name, row in found["contestants"].items():
        seconds, losses, read = zip(*row["curves"][0], strict=True)
        assert seconds[-1] >= 0.6, name
        assert losses[-1] < knowing_nothing, name
        assert list(read) == sorted(read)
        assert {(one["batch"], one["rate"]) for one in row["trials"]} == {
            (batch, rate) for batch in (4, 1) for rate in accelerator.RATES[row["optimizer"]]
        }
        best = min(row["trials"], key=lambda one: one["loss"])
        assert (row["batch"], row["rate"]) == (best["batch"], best["rate"])
        assert (row["started_in_seconds"] > 0) == name.startswith("course")
        assert row["mfu"][0] <= row["mfu"][1] <= row["mfu"][2]
    best = found["ratios"]["best_peer"]
    end = min(point[1] for point in found["contestants"][best]["curves"][0])
    assert found["ratios"]["loss"] == [end] * 3
    assert "MFU" in capsys.readouterr().out


def test_the_step_is_timed_whole_and_with_each_part_changed(tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, "MEASURED", tmp_path)
    monkeypatch.setattr(accelerator, "ROUNDS", 2)
    given = ["parts", "--size", "tiny", "--device", "cpu", "--tokens", str(tokens), "--no-compile"]
    assert accelerator.main(given) == 0
    found = json.loads((tmp_path / "accelerator_tiny_parts.json").read_text())
    assert found["command"].endswith("parts --size tiny --device cpu --tokens " + str(tokens) + " --no-compile")
    assert next(iter(found["contestants"])) == "whole step"
    assert all(0 < row["mfu"][0] <= row["mfu"][2] < 1 for row in found["contestants"].values())


def test_what_is_called_a_part_is_the_only_thing_that_changes(tokens):
    cpu, size = torch.device("cpu"), accelerator.SIZES["tiny"]
    text = accelerator.read(tokens, size.length, cpu)
    found = accelerator.without_parts(size, text, cpu, compiled=False)
    batch = next(accelerator.Bench(size, text, cpu).batches(0, size.rows))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in found["whole step"].model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))  # at the start layers do nothing
        losses = {name: float(one.in_bf16(*batch)) for name, one in found.items()}
    whole = losses.pop("whole step")
    assert losses.pop("documents apart") != whole
    assert losses.pop("layers hand on fp32") != whole
    assert set(losses.values()) == {whole}
    assert {name for name, one in found.items() if one.optimizer != "muon"} == {"AdamW for Muon"}


def test_a_library_of_attention_that_this_device_lacks_is_named_and_left_out(capsys):
    found = accelerator.attention_seconds(accelerator.SIZES["tiny"], torch.device("cpu"))
    assert list(found) == ["flash"]
    assert 0 < found["flash"] < 1
    assert "attention by cudnn: " in capsys.readouterr().out


def test_the_faster_library_of_attention_comes_first_for_everyone(monkeypatch):
    size = accelerator.SIZES["tiny"]
    assert accelerator.fastest_attention(size, torch.device("cpu"))[0] == {}
    for fastest in accelerator.KERNELS:
        spent = dict.fromkeys(accelerator.KERNELS, 2e-3) | {fastest: 1e-3}
        monkeypatch.setattr(accelerator, "attention_seconds", lambda *_, spent=spent: spent)
        found, context = accelerator.fastest_attention(size, torch.device("cuda"))
        assert found == spent
        with context:
            first = torch._C._get_sdp_priority_order()[0]
        assert first == int(accelerator.KERNELS[fastest])


def test_useful_operations_are_those_that_torch_counts(tokens):
    size = accelerator.SIZES["tiny"]
    text = accelerator.read(tokens, size.length, torch.device("cpu"))
    bench = accelerator.Bench(size, text, torch.device("cpu"))
    everyone = accelerator.contestants(size, text, torch.device("cpu"), compiled=False)
    batch = next(bench.batches(0, size.rows))
    slots = round(accelerator.MASK_RATE * size.length)
    for name in ("modernbert", "course rows"):
        one = everyone[name]
        counted = operation_counts.counted_flops(lambda one=one: one.in_bf16(*batch).backward())
        useful = one.flops_per_token * size.rows * size.length
        # the formula takes 0.3 of a row of 32 for what is 10 of 32 in truth
        assert abs(counted / useful - 1) < slots / size.length / accelerator.MASK_RATE - 1 + 0.03, name


def test_a_recording_that_does_not_do_what_it_recorded_is_not_timed(tokens, monkeypatch):
    cpu, size = torch.device("cpu"), accelerator.SIZES["tiny"]
    text = accelerator.read(tokens, size.length, cpu)
    one = accelerator.contestants(size, text, cpu, compiled=False)["course rows"]
    one.pool = "some memory"
    batch = next(accelerator.Bench(size, text, cpu).batches(0, size.rows))

    def recorded(passes, weights, first, pool):
        def replay(*batch):
            for weight in weights:
                weight.grad = None  # as a graph, which writes its gradients anew
            return passes(*(first if stale else batch))

        return replay

    monkeypatch.setattr(accelerator.gpu_step, "captured", recorded)
    stale = False
    assert one.recording_error(batch) < 1e-6
    stale = True  # the batch of the recording is read for ever
    other = tuple(part.flip(0) if part.ndim == 2 else part for part in batch)
    with pytest.raises(RuntimeError, match="they are not to be timed"):
        one.recording_error(other)


def test_who_reads_only_its_document_reads_fewer_keys(tokens):
    text = accelerator.read(tokens, 32, torch.device("cpu"))
    _, documents = text.train.rows()
    by_hand = sum(int((row == one).sum()) for row in documents for one in row) / documents.numel()
    assert accelerator.keys_read(text.train) == pytest.approx(by_hand)


@pytest.mark.parametrize(("given", "says"), [
    (["--device", "quantum"], "--device quantum cannot be used here"),
    (["--device", "cpu", "--seconds", "-1"], "--seconds -1.0 must be positive"),
    (["--device", "cpu", "--seeds", "0"], "--seeds 0 must be positive"),
    (["--device", "cpu", "--tokens", "nowhere"], "--tokens nowhere does not exist; `python -m benchmarks"),
    (["--device", "cpu", "--tokens", __file__], "is not a file of `benchmarks.accelerator pack`"),
])  # fmt: skip
def test_what_cannot_be_used_is_named_with_status_2(given, says, capsys):
    assert accelerator.main(["run", "--size", "tiny", *given]) == 2
    assert says in capsys.readouterr().err

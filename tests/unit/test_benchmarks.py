"""The benchmark programs at toy size: they run, and the page says what they found."""

from __future__ import annotations

import argparse
import json
from xml.etree import ElementTree

import mlx.core as mx
import pytest

from benchmarks import cuda, denoise_step, device, mac, mac_table, pages, peaks, quant_error, report, streaming
from benchmarks.bounds import broken
from benchmarks.denoise_step import fit
from benchmarks.machine import interleaved, machine, ratio, summary


def denoise_result(ratio_to_plain: float) -> dict:
    arms = ("ours T2V", "ours I2V", "plain T2V", "plain I2V")
    row = {
        "generation": "22B",
        "tokens": 384,
        "gflop": 80.0,
        "largest_difference": 1e-6,
        "peak_mib": dict.fromkeys(arms, 30.0),
        "cpu_time": {arm: {"median_ms": 100.0, "min_ms": 99.0, "spread": 0.02} for arm in arms},
        "ours / plain, T2V": {"paired_median": ratio_to_plain},
        "I2V / T2V, ours": {"paired_median": 1.0},
    }
    graph = {"22B T2V": {"kernels": 118.0, "casts": 0, "copies": 0, "nodes": 440.0}}
    return {"benchmark": "denoise_step", "machine": machine(), "fit": {}, "rows": [row], "graph": graph}


def test_the_page_says_what_is_within_its_bound(tmp_path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (results / "a.json").write_text(json.dumps(denoise_result(0.8)))
    (results / "b.json").write_text(json.dumps({"benchmark": "another", "value": 3}))
    page, wrong = report.page(results, tmp_path)
    assert "| denoising pass | time, ours / plain, T2V | at most 0.85 | 0.8 | holds |" in page
    assert "| 22B T2V | 118 | 0 | 0 | 440 |" in page and '"value": 3' in page
    # What was not measured is wrong too, so that no row can be lost.
    assert "time against FLOPs: largest residual of the fit was not measured" in wrong
    assert not [line for line in wrong if line.startswith("denoising pass")]
    ElementTree.parse(tmp_path / "benchmarks" / "pass-22B.svg")
    (results / "a.json").write_text(json.dumps(denoise_result(0.9)))
    page, wrong = report.page(results, tmp_path)
    assert "| at most 0.85 | 0.9 | **BROKEN** |" in page
    assert "denoising pass: time, ours / plain, T2V is 0.9, bound 0.85" in wrong


def test_every_row_has_a_program_a_page_and_bounds(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    for name in report.ORDER:
        assert (report.HERE / f"{name}.py").is_file() and name in report.FULL and name in report.QUICK
        assert name in pages.PAGES
    assert set(pages.JUDGED) == {row.benchmark for row in report.ROWS}
    assert set(denoise_step.BOUNDS) == {bound for row in report.ROWS for bound in row.bounds}


def test_a_program_that_fails_is_said_and_its_old_result_is_not_taken_for_new(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(report, "HERE", tmp_path)
    (tmp_path / "bad.py").write_text("raise SystemExit(3)")
    (tmp_path / "good.py").write_text("import sys; open(sys.argv[-1], 'w').write('{}')")
    assert report.run("bad", [], tmp_path) == "bad ended with status 3 and left no result"
    assert report.run("good", [], tmp_path) is None and (tmp_path / "good.json").read_text() == "{}"


def test_peaks_are_judged_by_their_worst_phase_and_by_growth(tmp_path) -> None:
    def row(size: list[int], predicted: int, actual: int) -> dict:
        peaks_of = {"predicted": {"denoise": predicted}, "actual": {"denoise": actual}}
        return {"case": "distilled", "generation": "2.3", "size": size, **peaks_of}

    result = {"rows": [row([64, 64, 9], 105, 100), row([64, 64, 17], 210, 200)]}
    bounds = peaks.verdicts(result)
    assert bounds["error of a peak"]["worst"] == 0.05 and not broken({"bounds": bounds})
    assert "| distilled | 64x64, 9 | denoise | 0.00 | 0.00 | +5.0 % |" in "\n".join(pages.peaks_page(result, tmp_path))
    result["rows"][1] = row([64, 64, 17], 218, 200)  # each peak within a tenth, its growth is not
    assert broken({"bounds": peaks.verdicts(result)}) == ["error of a slope"]


def test_streaming_at_toy_size(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(streaming, "GRIDS", {8: (2, 2, 2)})
    monkeypatch.setattr(streaming, "HEADS", 2)
    result = streaming.run(blocks=4, tokens=8, steps=1, rounds=1, bits=(None,), passes=(4,))
    found = result["bounds"]
    assert found["streamed latents that differ"]["holds"] and found["streamed latents that differ"]["worst"] == 0
    assert found["bytes read / (steps x not resident)"]["worst"] == 1
    assert "| 32 | 4 | 1 | 4 |" in "\n".join(pages.streaming_page(result, tmp_path))


def test_quantization_table(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(quant_error, "RECIPES", {"8": ("affine", 8, 64), "4": ("affine", 4, 64)})
    monkeypatch.setattr(quant_error, "GRID", (1, 2, 2))
    result = quant_error.run(blocks=1)
    errors = {name: max(row["weights"].values()) for name, row in result["rows"].items()}
    assert errors["8"] < 0.01 < errors["4"]
    assert result["rows"]["8"]["stack"]["video"][0] < result["rows"]["4"]["stack"]["video"][0]
    assert "| 8 | 8.5 |" in "\n".join(pages.quant_page(result, tmp_path))


def test_times_are_fitted_and_compared() -> None:
    rows = [{"gflop": x, "cpu_time": {"ours T2V": {"min_ms": 5 + 2 * x}}} for x in (10.0, 20.0, 40.0)]
    assert fit(rows) == {"gflop_per_s": 500.0, "fixed_ms": 5.0, "largest_residual": pytest.approx(0, abs=1e-9)}
    ticks = iter(range(100))
    times = interleaved({"a": lambda: mx.zeros(1), "b": lambda: mx.zeros(1)}, 3, lambda: float(next(ticks)))
    assert times == {"a": [1.0] * 3, "b": [1.0] * 3}
    assert ratio(times, "a", "b")["paired_median"] == 1 and summary(times["a"])["spread"] == 0


def test_the_readme_has_the_computed_table() -> None:
    stored = json.loads(mac_table.STORED.read_text())
    assert [row["bits"] for row in stored["rows"]] == list(mac_table.NAMES)
    tables = mac_table.table(stored)
    assert tables in mac_table.README.read_text(), "run python benchmarks/mac_table.py --show --readme"
    assert mac_table.fate("whole") == "whole" and mac_table.fate(-1) == "no"


@pytest.mark.slow
def test_the_full_size_models_bytes_on_disk(tmp_path) -> None:
    model, disk = mac_table.write_model(tmp_path, 8)
    stored = next(row for row in json.loads(mac_table.STORED.read_text())["rows"] if row["bits"] == 8)
    weights = sum(path.stat().st_size for path in model.rglob("model*.safetensors"))
    assert disk == stored["disk"] and weights <= disk < weights + 10_000_000  # and the tokenizer


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in device.TOY.items():
        monkeypatch.setitem(device.SHAPES, name, value)


@pytest.mark.slow
def test_what_a_mac_would_be_asked_runs_at_toy_size(toy, tiny_model, tmp_path) -> None:
    mx.save_safetensors(str(tmp_path / "x.safetensors"), {"w": mx.zeros((64, 64))})
    options = {"file": tmp_path / "x.safetensors", "model": tiny_model(), "clip": None}
    found = json.loads(json.dumps(mac.measure(argparse.Namespace(quick=False, toy=True, **options))))
    assert {row["bits"] for row in found["passes"]} == {8, 16}
    assert all("share_of_best_product" in row for row in found["passes"])
    assert {"stored", "turned", "quantized", "dequantized first"} <= found["products"][0].keys()
    assert found["phases"]["actual"].keys() == found["phases"]["predicted"].keys() and found["phases"]["seconds"]
    assert found["raw_disk_gb_per_s"] > 0 and found["disk_gb_per_s"].keys() == {"first", "again"}
    assert len(found["sustained_s"]) == 1 and all("error" in row for row in found["convolutions"])
    assert found["quality"]["affine 8, group 64"]["stack"]["video"][0] < 0.05
    assert "Best product" in "\n".join(pages.device_page(found, tmp_path))


def test_what_an_nvidia_gpu_would_be_asked_runs_at_toy_size(toy) -> None:
    found = cuda.measure(argparse.Namespace(quick=False, toy=True, blocks=1))
    assert found["attention"][0]["mlx"] >= 0 and {row["bits"] for row in found["passes"]} == {8, 16}
    assert attention_beside_another() == {"tokens", "mlx", "other"}


def attention_beside_another() -> set[str]:
    return set(device.attention((16,), lambda n: 1.0)[0])

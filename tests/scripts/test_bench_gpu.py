"""The GPU benchmark runs end to end on the CPU, and what it makes of measurements is right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from nvlm_trt.datasheets.datasheet import Datasheet, load_gpu
from nvlm_trt.errors import UserError
from nvlm_trt.model.config import NvlmConfig
from nvlm_trt.model.synthetic import like_72b
from nvlm_trt.plan.flops import layer_elements


@pytest.fixture(scope="module")
def bench(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("bench_gpu")


@pytest.fixture(scope="module")
def out(bench: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of everything leaves in a folder where there was something."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "work" / "checkpoint").mkdir(parents=True)
    (folder / "work" / "checkpoint" / "weights").write_text("mine")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    bench.main([str(folder), "--device", "cpu", "--tiny", "--gpu", "h100-sxm", "--tp", "1", "2"])
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="module")
def report(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "bench_gpu.json").read_text())
    return content


def test_every_part_is_measured_and_nothing_else_is_left_or_removed(out: Path, report: dict[str, Any]) -> None:
    assert list(report["parts"]) == ["vision", "products", "calibration"]
    assert sorted(path.name for path in out.iterdir()) == ["bench_gpu.json", "bench_gpu.md", "work"]
    assert (out / "work" / "checkpoint" / "weights").read_text() == "mine"
    assert report["machine"]["device"].startswith("CPU")
    assert report["machine"]["torch"] == torch.__version__


def test_the_graph_is_as_near_to_torch_as_float32_allows(report: dict[str, Any]) -> None:
    ran = {(row["what"], row["precision"]): row for row in report["parts"]["vision"] if "not_run" not in row}
    assert {("torch reference", "fp32"), ("ONNX graph", "fp32"), ("torch reference", "bf16")} <= set(ran)
    assert ran["torch reference", "fp32"]["relative_error"] == 0
    assert 0 < ran["ONNX graph", "fp32"]["relative_error"] < 1e-5
    assert 1e-4 < ran["torch reference", "bf16"]["relative_error"] < 0.05
    assert [row["tiles"] for row in report["parts"]["vision"] if row["what"] == "torch reference"] == [1, 7, 14] * 2


def test_what_cannot_run_is_told_with_its_reason(report: dict[str, Any]) -> None:
    """There is no bfloat16 in onnxruntime on the CPU."""
    missing = [row for row in report["parts"]["vision"] if "not_run" in row]
    assert [row["precision"] for row in missing] == ["bf16"]
    assert "NOT_IMPLEMENTED" in missing[0]["not_run"]


def test_every_shape_is_multiplied_in_every_precision(bench: ModuleType, report: dict[str, Any]) -> None:
    rows = report["parts"]["products"]
    assert not [row for row in rows if "not_run" in row]
    seen = {(row["tp"], row["precision"]): set() for row in rows}
    for row in rows:
        seen[row["tp"], row["precision"]].add((row["matrix"], row["batch"]))
    assert {(tp, precision): len(each) for (tp, precision), each in seen.items()} == {
        (tp, precision): kinds * 3 for tp, kinds in ((1, 11), (2, 5)) for precision in ("bf16", "fp8", "int8")
    }


def test_figures_of_the_cpu_are_no_shares_of_a_gpu(report: dict[str, Any]) -> None:
    rows = [*report["parts"]["vision"], *report["parts"]["products"]]
    assert all(row.get("share_of_peak") is None for row in rows)
    assert report["corrections"] == {}


def test_the_decoder_is_calibrated_in_every_precision_that_needs_it(report: dict[str, Any]) -> None:
    rows = report["parts"]["calibration"]
    assert [row["precision"] for row in rows] == ["fp8", "int8_sq", "int4_awq"]
    assert all(row["s_per_layer"] > 0 and row["tokens"] > 100 for row in rows)


def test_shapes_are_those_of_the_released_model(bench: ModuleType) -> None:
    config = like_72b(1).config
    whole, split = bench.shapes_of(config, 1), bench.shapes_of(config, 4)
    assert whole["decoder qkv"] == (10_240, 8192)
    assert whole["decoder fc+gate"] == (59_136, 8192)
    assert whole["vision qkv"] == (9600, 3200)
    assert whole["projector fc1"] == (29_568, 12_800)
    assert split["decoder qkv"] == (2560, 8192)
    assert split["decoder proj"] == (8192, 7392)
    assert split["decoder lm_head"] == (38_016, 8192)
    assert sum(outputs * inputs for name, (outputs, inputs) in whole.items() if name in bench.DECODER) == (
        layer_elements(config.decoder)
    )


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_products_are_those_of_plain_numbers(bench: ModuleType, precision: str) -> None:
    dtype, multiple = bench.PRECISIONS[precision]
    torch.manual_seed(3)
    x, weight = (bench._random((rows, 64), dtype, torch.device("cpu")) for rows in (multiple, 48))
    exact = x.double() @ weight.double().t()
    assert float((bench.multiply(x, weight).double() - exact).abs().max() / exact.abs().max()) < 2**-7


@pytest.fixture
def gpu() -> Datasheet:
    return load_gpu("h100-sxm")


def measured(bench: ModuleType, config: NvlmConfig, gpu: Datasheet) -> dict[str, list[dict[str, Any]]]:
    """A GPU that reaches half of its peak with 512 rows and a quarter of its bandwidth with one."""
    products = []
    for matrix, (outputs, inputs) in bench.shapes_of(config, 1).items():
        for batch in (1, 512):
            rate = gpu.peak("bf16") / 2 if batch == 512 else gpu.bandwidth / 4
            seconds = outputs * inputs * 2 * (512 if batch == 512 else 1) / rate
            row = {"tp": 1, "matrix": matrix, "precision": "bf16", "batch": batch, "us": seconds * 1e6}
            products += [row, row | {"precision": "fp8", "us": 1.0}, row | {"tp": 4, "us": 1.0}]
    products.append({"tp": 1, "matrix": "decoder qkv", "precision": "int8", "not_run": "a reason"})
    tiles = {"what": "ONNX graph", "precision": "bf16", "layers": 4, "tiles": 7, "share_of_peak": 0.3}
    vision = [tiles, tiles | {"share_of_peak": 0.2, "tiles": 1}, tiles | {"precision": "fp32", "share_of_peak": 0.9}]
    return {"vision": [*vision, {"precision": "bf16", "not_run": "a reason"}], "products": products}


def test_corrections_are_shares_that_a_plan_takes_with_where_they_come_from(bench: ModuleType, gpu: Datasheet) -> None:
    config = like_72b(1).config
    found = bench.corrections(measured(bench, config, gpu), config, gpu, "H100, one day").applied()
    assert {name: each.value for name, each in found.items()} == {
        "vision_share_of_peak": 0.3,
        "prefill_share_of_peak": pytest.approx(0.5),
        "decode_share_of_bandwidth": pytest.approx(0.25),
    }
    assert found["vision_share_of_peak"].source == "ONNX graph in bf16, 7 tiles, 4 layers; H100, one day"
    assert "matrix products of a decoder layer alone" in found["prefill_share_of_peak"].source


def test_without_measurements_there_are_no_corrections(bench: ModuleType, gpu: Datasheet) -> None:
    config = like_72b(1).config
    assert bench.corrections({}, config, gpu, "x").applied() == {}
    failed = {"vision": [{"precision": "bf16", "not_run": "a reason"}], "products": []}
    assert bench.corrections(failed, config, gpu, "x").applied() == {}


def test_the_page_holds_corrections_as_the_file_of_a_gpu_model_takes_them(
    bench: ModuleType, gpu: Datasheet, tmp_path: Path
) -> None:
    config = like_72b(1).config
    parts = measured(bench, config, gpu)
    found = bench.corrections(parts, config, gpu, "H100, one day")
    shown = {name: each.model_dump() for name, each in found.applied().items()}
    page = bench.markdown({"machine": {"device": "H100"}, "parts": parts, "corrections": shown})
    lines = page.split("    corrections:\n")[1].splitlines()
    raw = gpu.model_dump(exclude={"name", "corrections"})
    text = yaml.safe_dump(raw) + "corrections:\n" + "\n".join(line.removeprefix("    ") for line in lines) + "\n"
    (tmp_path / "ours.yaml").write_text(text)
    assert load_gpu(str(tmp_path / "ours.yaml")).corrections == found


def test_without_a_gpu_the_script_says_how_to_try_it(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=r"torch sees no GPU.*--device cpu --tiny"):
        bench.main([str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()

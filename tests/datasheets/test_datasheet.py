"""GPU models are data with sources; what a file gets wrong is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nvlm_trt.datasheets.datasheet import COMPUTE_DTYPES, known_gpus, load_gpu
from nvlm_trt.errors import UserError
from nvlm_trt.recipe import BuildRecipe

NEEDED = {
    "a100-80g-sxm",
    "b200",
    "h100-pcie",
    "h100-sxm",
    "h200-sxm",
    "l40s",
    "rtx-6000-ada",
    "rtx-pro-6000-blackwell",
}


def own_model(tmp_path: Path, **changes: object) -> Path:
    """A copy of the H100's figures with changes; a value of None takes the figure away."""
    raw = {**load_gpu("h100-sxm").model_dump(exclude={"name"}), **changes}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in raw.items() if value is not None}))
    return path


def test_the_models_that_are_asked_for_are_there() -> None:
    assert set(known_gpus()) >= NEEDED


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_a_shipped_model_has_sources_and_no_corrections(name: str) -> None:
    gpu = load_gpu(name)
    assert gpu.name == name
    assert gpu.corrections.applied() == {}
    assert all("NVIDIA" in source or "CUDA" in source for source in gpu.sources.model_dump().values())
    peaks = gpu.peak_tflops
    assert peaks.fp32 < peaks.bf16 < peaks.int8
    assert (peaks.fp8 is None) == (gpu.compute_capability < 89)
    assert gpu.peak("bf16") / gpu.bandwidth > 50


@pytest.mark.parametrize(
    ("name", "memory", "bandwidth", "bf16", "fp8", "capability"),
    [
        ("h100-sxm", 80e9, 3.35e12, 989e12, 1979e12, 90),
        ("h200-sxm", 141e9, 4.8e12, 989e12, 1979e12, 90),
        ("h100-pcie", 80e9, 2e12, 756e12, 1513e12, 90),
        ("l40s", 48e9, 0.864e12, 362e12, 733e12, 89),
        ("b200", 180e9, 8e12, 2250e12, 4500e12, 100),
    ],
)
def test_figures(name: str, memory: float, bandwidth: float, bf16: float, fp8: float, capability: int) -> None:
    gpu = load_gpu(name)
    assert (gpu.memory_bytes, gpu.bandwidth, gpu.compute_capability) == (memory, bandwidth, capability)
    assert (gpu.peak("bf16"), gpu.peak("fp8")) == (bf16, fp8)


@pytest.mark.parametrize(
    ("name", "fp32"),
    [("a100-80g-sxm", 19.5e12), ("h100-pcie", 51e12), ("h200-sxm", 67e12), ("l40s", 91.6e12), ("b200", 80e12)],
)
def test_fp32_is_multiplied_without_tensor_cores(name: str, fp32: float) -> None:
    assert load_gpu(name).peak("fp32") == fp32


def test_figures_of_the_a100_and_the_rtx_6000_ada_are_those_of_their_datasheets() -> None:
    a100, ada = load_gpu("a100-80g-sxm"), load_gpu("rtx-6000-ada")
    assert (a100.bandwidth, a100.peak("bf16"), a100.peak("int8"), a100.link) == (2.039e12, 312e12, 624e12, 300e9)
    assert (ada.bandwidth, 4 * ada.peak("bf16"), 2 * ada.peak("fp8"), 2 * ada.peak("int8")) == (960e9, *3 * [1457e12])


def test_weight_only_precisions_multiply_in_bf16() -> None:
    gpu = load_gpu("h100-sxm")
    assert {gpu.peak(name) for name in ("bf16", "fp16", "int8_wo", "int4_wo", "int4_awq")} == {989e12}
    assert {gpu.peak(name) for name in ("int8", "int8_sq")} == {1979e12}


def test_every_precision_of_a_gpu_recipe_has_a_peak() -> None:
    fields = BuildRecipe.model_fields
    named = {*fields["vision_precision"].annotation.__args__, *fields["decoder_precision"].annotation.__args__}  # type: ignore[union-attr]
    assert set(COMPUTE_DTYPES) == named


def test_a_type_that_the_gpu_lacks_has_no_peak() -> None:
    with pytest.raises(UserError, match="a100-80g-sxm: fp8"):
        load_gpu("a100-80g-sxm").peak("fp8")


@pytest.mark.parametrize("name", ["RTX 6000 Ada", "rtx-6000-ADA"])
def test_names_are_read_as_people_write_them(name: str) -> None:
    assert load_gpu(name).name == "rtx-6000-ada"


@pytest.mark.parametrize(("name", "meant"), [("h100", "h100-sxm"), ("h200", "h200-sxm"), ("l40", "l40s")])
def test_an_unknown_name_is_told_the_nearest_one(name: str, meant: str) -> None:
    with pytest.raises(UserError) as caught:
        load_gpu(name)
    assert f"did you mean {meant}?" in str(caught.value)
    assert "rtx-pro-6000-blackwell" in str(caught.value)


def test_a_model_of_ones_own_is_read_from_its_file(tmp_path: Path) -> None:
    gpu = load_gpu(str(own_model(tmp_path, memory_gb=94, title="H100 NVL")))
    assert (gpu.name, gpu.title, gpu.memory_bytes) == ("own", "H100 NVL", 94_000_000_000)


def test_corrections_are_named_with_their_source(tmp_path: Path) -> None:
    measured = {"prefill_share_of_peak": {"value": 0.6, "source": "measured"}}
    gpu = load_gpu(str(own_model(tmp_path, corrections=measured)))
    assert [(name, each.value, each.source) for name, each in gpu.corrections.applied().items()] == [
        ("prefill_share_of_peak", 0.6, "measured")
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory": 80}, "memory: Extra inputs"),
        ({"memory_gb": None}, "memory_gb: Field required"),
        ({"bandwidth_gb_per_s": -1}, "bandwidth_gb_per_s"),
        ({"peak_tflops": {"fp32": 1, "bf16": 1, "int8": 1, "fp4": 1}}, "peak_tflops.fp4: Extra inputs"),
        ({"sources": {"memory_gb": "a datasheet"}}, "sources.peak_tflops: Field required"),
        ({"corrections": {"prefill_share": {"value": 0.5, "source": "x"}}}, "corrections.prefill_share: Extra"),
        ({"corrections": {"prefill_share_of_peak": {"value": 1.5, "source": "x"}}}, "prefill_share_of_peak.value"),
        ({"corrections": {"prefill_share_of_peak": {"value": 0.5}}}, "prefill_share_of_peak.source: Field required"),
    ],
)
def test_a_wrong_figure_is_refused_by_name(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_gpu(str(own_model(tmp_path, **changes)))
    assert message in str(caught.value)


@pytest.mark.parametrize("content", ["- a\n", "a: [", ""])
def test_a_file_that_is_no_mapping_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=r"own\.yaml|cannot be read"):
        load_gpu(str(path))
    with pytest.raises(UserError, match="cannot be read"):
        load_gpu(str(tmp_path / "absent.yaml"))

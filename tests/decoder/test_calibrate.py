"""Calibration of the decoder, layer by layer: right figures, with the memory of one layer."""

from __future__ import annotations

import gc
import json
import weakref
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nvlm_trt.calibration.prompts import CalibrationPrompt
from nvlm_trt.decoder import calibrate as module
from nvlm_trt.decoder.calibrate import CalibrationSettings, calibrate_decoder, peak_bytes, work_bytes
from nvlm_trt.decoder.calibration_layer import LINEARS, DecoderLayer, Observe
from nvlm_trt.decoder.calibration_statistics import LayerStatistics
from nvlm_trt.decoder.convert import convert_decoder
from nvlm_trt.decoder.precision import decoder_precision
from nvlm_trt.decoder.quantize_scales import CalibrationResults, needed_results
from nvlm_trt.errors import CheckpointError, UserError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference import layer_stream, vision_stream
from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.model.reference.layer_stream import read_weights, weight_bytes
from nvlm_trt.model.reference.vision import VisionReference
from nvlm_trt.model.synthetic import like_72b
from nvlm_trt.model.tensors import decoder_layer

from .calibration import SETTINGS, Seen, make_prompts, reference_inputs


class StoppedError(Exception):
    """Ends a calibration when the test has seen enough."""


@pytest.fixture(scope="module")
def checkpoint(decoder_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(decoder_checkpoint)


@pytest.fixture(scope="module")
def prompts(checkpoint: Checkpoint) -> list[CalibrationPrompt]:
    return make_prompts(checkpoint)


@pytest.fixture(scope="module")
def seen(checkpoint: Checkpoint, prompts: list[CalibrationPrompt]) -> Seen:
    return reference_inputs(checkpoint, prompts, torch.bfloat16)


@pytest.fixture(scope="module")
def results(
    checkpoint: Checkpoint, prompts: list[CalibrationPrompt], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The folder of results of a precision."""
    root = tmp_path_factory.mktemp("results")

    def run(name: str) -> Path:
        out = root / name
        if not out.exists():
            precision = decoder_precision(name, kv_cache="fp8", group_size=64)
            calibrate_decoder(checkpoint, prompts, out, root / f"{name}.work", precision=precision, settings=SETTINGS)
        return out

    return run


def layer_files(folder: Path) -> list[dict[str, torch.Tensor]]:
    return [load_file(path) for path in sorted(folder.glob("layer_*.safetensors"))]


def streamed_inputs(checkpoint: Checkpoint, prompts: list[CalibrationPrompt]) -> Seen:
    """Inputs of all linear layers when `DecoderLayer` runs in bfloat16, by layer and name."""
    vision, reference = (kind(checkpoint, torch.bfloat16) for kind in (VisionReference, DecoderReference))
    samples = [embedded(reference, vision, prompt) for prompt in prompts]
    inputs: Seen = defaultdict(list)
    for index in range(checkpoint.config.decoder.num_layers):
        layer = loaded(checkpoint, index, torch.bfloat16, lambda name, x, index=index: inputs[index, name].append(x))
        samples = [layer(sample) for sample in samples]
    return inputs


def loaded(checkpoint: Checkpoint, index: int, dtype: torch.dtype, observe: Observe) -> DecoderLayer:
    prefix = decoder_layer(index)
    weights = read_weights(checkpoint, prefix, dtype, torch.device("cpu"))
    short = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return DecoderLayer(checkpoint.config.decoder, short, observe)


def embedded(reference: DecoderReference, vision: VisionReference, prompt: CalibrationPrompt) -> torch.Tensor:
    table = torch.cat([vision(tile[None])[0] for tile in prompt.tiles()]) if prompt.num_tiles else None
    return reference.embed(prompt.ids, table)


def channel_amax(inputs: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(inputs).abs().amax(dim=0).float()


def test_statistics_are_those_of_hooks_on_the_whole_reference(checkpoint: Checkpoint) -> None:
    prompts = make_prompts(checkpoint, images=False)
    expected = reference_inputs(checkpoint, prompts, torch.float32)
    reference = DecoderReference(checkpoint)
    samples = [reference.embed(prompt.ids, None) for prompt in prompts]
    for index in range(checkpoint.config.decoder.num_layers):
        statistics = LayerStatistics(sum(map(len, samples)), keep=10)
        layer = loaded(checkpoint, index, torch.float32, statistics.observe)
        samples = [layer(sample) for sample in samples]
        for name in LINEARS:
            rows = torch.cat(expected[index, name])
            torch.testing.assert_close(statistics.inputs[name].amax, rows.abs().amax(dim=0), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(statistics.inputs[name].mean, rows.abs().mean(dim=0), rtol=1e-4, atol=1e-6)
            places = [place * len(rows) // 10 for place in range(10)]
            torch.testing.assert_close(statistics.inputs[name].rows, rows[places], rtol=1e-4, atol=1e-5)
        kv_amax = torch.cat(expected[index, "kv"]).abs().max().reshape(1)
        torch.testing.assert_close(statistics.kv_amax, kv_amax, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["fp8", "int8_wo", "bf16"])
def test_files_hold_the_largest_inputs_and_weights(
    checkpoint: Checkpoint, seen: Seen, results: Callable[[str], Path], name: str
) -> None:
    for index, tensors in enumerate(layer_files(results(name))):
        assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
        for linear, weights in LINEARS.items():
            expected = channel_amax(seen[index, linear]).max().reshape(1)
            torch.testing.assert_close(tensors[f"{linear}.input_amax"], expected, rtol=0.02, atol=0)
            if name == "fp8":
                values = [checkpoint.read(f"{decoder_layer(index)}{weight}", torch.bfloat16) for weight in weights]
                largest = max(float(value.abs().max()) for value in values)
                assert tensors[f"{linear}.weight_amax"].tolist() == [largest]
        kv_amax = torch.cat(seen[index, "kv"]).abs().max().float().reshape(1)
        torch.testing.assert_close(tensors["kv.amax"], kv_amax, rtol=0.02, atol=0)
        assert len(tensors) == (9 if name == "fp8" else 5)
    first = layer_files(results(name))[0]
    assert first["qkv.input_amax"] == channel_amax(seen[0, "qkv"]).max(), (
        "before any attention nothing is rounded twice"
    )


@pytest.mark.parametrize("name", ["int8_sq", "int4_awq"])
def test_inputs_are_measured_after_their_factors(
    checkpoint: Checkpoint, prompts: list[CalibrationPrompt], results: Callable[[str], Path], name: str
) -> None:
    inputs = streamed_inputs(checkpoint, prompts)
    for index, tensors in enumerate(layer_files(results(name))):
        for linear in LINEARS:
            prequant = tensors[f"{linear}.prequant"]
            assert bool((prequant > 0).all())
            assert torch.equal(prequant, prequant.bfloat16().float())
            smoothed = torch.cat(inputs[index, linear]) * prequant.bfloat16()
            assert tensors[f"{linear}.input_amax"].tolist() == [float(smoothed.abs().max())]


@pytest.mark.parametrize("name", ["fp8", "int8_sq", "int8_wo", "int4_wo", "int4_awq"])
def test_the_converter_takes_the_results(
    checkpoint: Checkpoint, results: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    precision = decoder_precision(name, kv_cache="fp8", group_size=64)
    CalibrationResults.open(results(name), checkpoint.config.decoder, precision)
    convert_decoder(checkpoint, tmp_path, tp=1, pp=1, precision=precision, calibration=results(name))
    assert (tmp_path / "config.json").is_file()


def test_every_result_that_any_precision_needs_is_there(checkpoint: Checkpoint, results: Callable[[str], Path]) -> None:
    for name in ("fp8", "int8_sq", "int4_awq"):
        needed = needed_results(checkpoint.config.decoder, decoder_precision(name, kv_cache="int8"))
        for tensors in layer_files(results(name)):
            assert needed.keys() <= tensors.keys()
            assert all(tuple(tensors[key].shape) == shape for key, shape in needed.items())


def test_config_tells_samples_settings_and_what_was_found(
    checkpoint: Checkpoint, prompts: list[CalibrationPrompt], results: Callable[[str], Path]
) -> None:
    config = json.loads((results("int8_sq") / "config.json").read_text())
    assert config["quantization"] == {"quant_algo": "W8A8_SQ_PER_CHANNEL", "kv_cache_quant_algo": "FP8"}
    assert config["settings"] == {"device": "cpu", "rows": 64, "alpha_step": 0.25}
    assert [sample["sha256"] for sample in config["samples"]] == [prompt.digest for prompt in prompts]
    assert [sample["tiles"] for sample in config["samples"]] == [3, 0, 6, 0]
    assert config["tokens"] == sum(len(prompt.ids) for prompt in prompts)
    assert config["samples"][3]["visual_tokens"] == 0 < config["samples"][0]["visual_tokens"]
    assert len(config["layers"]) == checkpoint.config.decoder.num_layers
    for layer in config["layers"]:
        assert list(layer) == list(LINEARS)
        for found in layer.values():
            assert found["alpha"] in (0.0, 0.25, 0.5, 0.75, 1.0)
            assert 0 < found["error"] <= found["error_at_zero"] < 0.5
    assert json.loads((results("fp8") / "config.json").read_text())["layers"] == [{}] * len(config["layers"])


def test_what_enters_the_first_layer_are_embeddings_and_rows_of_the_prompt_tables(
    checkpoint: Checkpoint, prompts: list[CalibrationPrompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured: list[torch.Tensor] = []

    def capture(states: layer_stream.HiddenStates, *_: object) -> None:
        captured.extend(states)
        raise StoppedError

    monkeypatch.setattr(module, "stream_layers", capture)
    with pytest.raises(StoppedError):
        calibrate_decoder(checkpoint, prompts, tmp_path / "out", tmp_path / "work", precision=decoder_precision("fp8"))
    vision, reference = (kind(checkpoint, torch.bfloat16) for kind in (VisionReference, DecoderReference))
    for prompt, hidden in zip(prompts, captured, strict=True):
        assert torch.equal(hidden, embedded(reference, vision, prompt))


def test_weights_of_one_layer_are_alive_at_a_time(
    checkpoint: Checkpoint, prompts: list[CalibrationPrompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def watched(*args: object) -> dict[str, torch.Tensor]:
        alive.append(sum(reference() is not None for reference in loaded))
        weights = read_weights(*args)  # type: ignore[arg-type]
        loaded.extend(weakref.ref(tensor) for tensor in weights.values())
        return weights

    monkeypatch.setattr(module, "read_weights", watched)
    monkeypatch.setattr(vision_stream, "read_weights", watched)
    gc.collect()
    gc.disable()  # what only the collector frees would stay in memory for several layers
    try:
        calibrate_decoder(
            checkpoint,
            prompts,
            tmp_path / "out",
            tmp_path / "work",
            precision=decoder_precision("int4_awq", group_size=64),
            settings=SETTINGS,
        )
    finally:
        gc.enable()
    config = checkpoint.config
    assert alive == [0] * (1 + config.vision.num_layers + 1 + config.decoder.num_layers)
    assert len(loaded) > len(alive)


def test_hidden_states_on_disk_stay_within_the_estimate(
    checkpoint: Checkpoint, prompts: list[CalibrationPrompt], tmp_path: Path
) -> None:
    sizes: list[int] = []

    def weigh(*_: int) -> None:
        files = [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
        sizes.append(sum(path.stat().st_size for path in files))

    calibrate_decoder(
        checkpoint,
        prompts,
        tmp_path / "out",
        tmp_path / "work",
        precision=decoder_precision("fp8"),
        progress=weigh,
    )
    tokens = sum(len(prompt.ids) for prompt in prompts)
    generation = 2 * tokens * checkpoint.config.decoder.hidden_size
    assert 1.5 * generation < max(sizes), "two generations, the newer one nearly full"
    assert max(sizes) <= work_bytes(checkpoint.config, tokens) + 20_000, "beside headers and the layers' results"
    assert not (tmp_path / "work" / "vision").exists()


def test_memory_is_that_of_a_layer_and_an_activation() -> None:
    config = like_72b(1).config
    layer = 2 * (2 * 8192 * 8192 + 2 * 1024 * 8192 + 3 * 8192 * 29568)
    assert 2 * layer < peak_bytes(config, 2048) < 6 * 1024**3
    assert peak_bytes(like_72b(40).config, 2048) == peak_bytes(config, 2048)
    assert peak_bytes(config, 4096) - peak_bytes(config, 2048) == 8 * 2048 * 29568


def test_a_gpus_memory_is_given_back_at_the_end(
    checkpoint: Checkpoint, prompts: list[CalibrationPrompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[torch.device] = []
    monkeypatch.setattr(module, "give_back_memory", given.append)
    calibrate_decoder(
        checkpoint, prompts, tmp_path / "o", tmp_path / "w", precision=decoder_precision("fp8"), settings=SETTINGS
    )
    assert given == [torch.device("cpu")]


def test_progress_counts_the_weights_that_samples_pass(
    checkpoint: Checkpoint, prompts: list[CalibrationPrompt], tmp_path: Path
) -> None:
    precision = decoder_precision("fp8")
    totals = []
    for part in (prompts, prompts[3:]):
        told: list[tuple[int, int]] = []
        calibrate_decoder(
            checkpoint,
            part,
            tmp_path / "out",
            tmp_path / "work",
            precision=precision,
            progress=lambda done, total, told=told: told.append((done, total)),
        )
        done = [done for done, _ in told]
        assert done == sorted(done)
        assert len({total for _, total in told}) == 1
        assert told[-1][0] == told[-1][1]
        totals.append(told[-1][1])
    vision = weight_bytes(checkpoint, "vision_model.encoder.") + weight_bytes(checkpoint, "mlp1.")
    decoder = weight_bytes(checkpoint, "language_model.model.layers.")
    assert totals == [vision + decoder, decoder], "text alone needs no vision encoder"


def test_values_that_are_not_finite_name_the_layer(
    decoder_checkpoint: Path, prompts: list[CalibrationPrompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint.open(decoder_checkpoint)
    read = checkpoint.read

    def damaged(name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        tensor = read(name, dtype)
        return tensor * float("nan") if name == f"{decoder_layer(1)}self_attn.v_proj.weight" else tensor

    monkeypatch.setattr(checkpoint, "read", damaged)
    with pytest.raises(CheckpointError, match=r"not finite; seen: nan in .* of layer 1"):
        calibrate_decoder(
            checkpoint, prompts[3:], tmp_path / "out", tmp_path / "work", precision=decoder_precision("fp8")
        )
    assert not (tmp_path / "out").exists()


def test_no_samples_and_no_gpu_are_the_users_mistake(
    checkpoint: Checkpoint, prompts: list[CalibrationPrompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fp8 = decoder_precision("fp8")
    with pytest.raises(UserError, match="no samples"):
        calibrate_decoder(checkpoint, [], tmp_path / "out", tmp_path / "work", precision=fp8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU"):
        calibrate_decoder(
            checkpoint,
            prompts,
            tmp_path / "out",
            tmp_path / "work",
            precision=fp8,
            settings=CalibrationSettings(device="cuda"),
        )
    assert not list(tmp_path.iterdir())

"""The export: the right bytes in the right place, streamed, deterministic, and refused where the model is not one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from nvlm_trt.errors import CheckpointError, RecipeError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.synthetic import tiny_spec, write_synthetic
from nvlm_trt.vision.export import export_vision, vision_export_bytes

FILES = ("vision.onnx", "vision.onnx.data", "config.json")
DUMMY = "five heads and three dummies"
LAYER = "vision_model.encoder.layers.1."

PEAK_SCRIPT = """
import sys
from pathlib import Path
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.vision.export import export_vision
export_vision(Checkpoint.open(sys.argv[1]), Path(sys.argv[2]), precision="fp32", output_dtype="fp32")
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    """The weights of an export by name, read by onnx's own reader."""
    graph = onnx.load(directory / "vision.onnx").graph
    return {
        tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).astype("float32"))
        for tensor in graph.initializer
        if tensor.name.startswith(("vision/layer", "vision/embeddings", "projector"))
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_are_the_checkpoints_own_with_dummy_heads_cut_out(export_of, checkpoint_of, precision):
    checkpoint = checkpoint_of(DUMMY)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    weights = weights_of(export_of(DUMMY, precision))
    real, padded = 80, 128
    qkv = checkpoint.read(f"{LAYER}attn.qkv.weight", dtype).float().view(3, padded, real)[:, :real]
    name = "vision/layer_01/attention"
    assert torch.equal(weights[f"{name}/qkv/weight"], qkv.reshape(3 * real, real))
    proj = checkpoint.read(f"{LAYER}attn.proj.weight", dtype).float()
    assert torch.equal(weights[f"{name}/proj/weight"], proj[:, :real])
    norm = checkpoint.read(f"{LAYER}attn.k_norm.weight", dtype).float()
    assert torch.equal(weights[f"{name}/k_norm/weight"], norm[:real])
    kernel = checkpoint.read("vision_model.embeddings.patch_embedding.weight", dtype).float()
    assert torch.equal(weights["vision/embeddings/patch/weight"], kernel.reshape(real, -1))


def test_every_weight_is_external_in_one_file_at_page_boundaries(export_of):
    out = export_of(DUMMY, "bf16")
    graph = onnx.load(out / "vision.onnx", load_external_data=False).graph
    places = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    ]
    assert len(places) == 4 + 2 * 13 + 4
    assert {place["location"] for place in places} == {"vision.onnx.data"}
    assert all(int(place["offset"]) % 4096 == 0 for place in places)
    last = max(places, key=lambda place: int(place["offset"]))
    assert int(last["offset"]) + int(last["length"]) == (out / "vision.onnx.data").stat().st_size


def test_config_json_tells_what_was_exported(export_of):
    config = json.loads((export_of(DUMMY, "bf16") / "config.json").read_text())
    assert config["precision"] == "bf16"
    assert config["input"] == {"name": "tiles", "dtype": "uint8", "shape": ["num_tiles", 112, 112, 3]}
    assert config["output"] == {"name": "prompt_table", "dtype": "float32", "shape": ["num_tiles", 16, 128]}
    assert config["tokens_per_tile"] == 16
    assert config["stripped_dummy_heads"] == 3
    assert config["mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_checkpoint_gives_the_same_bytes(export_of, checkpoint_of, tmp_path, precision):
    export_vision(checkpoint_of(DUMMY), tmp_path, precision=precision, output_dtype="fp32")
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (export_of(DUMMY, precision) / name).read_bytes()


def test_the_size_of_the_blocks_read_does_not_show_in_the_bytes(export_of, checkpoint_of, tmp_path, monkeypatch):
    monkeypatch.setattr("nvlm_trt.vision.export.BLOCK_VALUES", 700)
    export_vision(checkpoint_of(DUMMY), tmp_path, precision="bf16", output_dtype="fp32")
    written = (tmp_path / "vision.onnx.data").read_bytes()
    assert written == (export_of(DUMMY, "bf16") / "vision.onnx.data").read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_size_is_known_beforehand(export_of, checkpoint_of, precision):
    out = export_of(DUMMY, precision)
    written = sum((out / name).stat().st_size for name in FILES[:2])
    assert vision_export_bytes(checkpoint_of(DUMMY), precision) == written


@pytest.mark.parametrize(("output", "kind"), [("bf16", onnx.TensorProto.BFLOAT16), ("fp16", onnx.TensorProto.FLOAT16)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_table_leaves_the_graph_in_the_decoders_type(checkpoint_of, tmp_path, precision, output, kind):
    export_vision(checkpoint_of(DUMMY), tmp_path, precision=precision, output_dtype=output)
    onnx.checker.check_model(str(tmp_path / "vision.onnx"), full_check=True)
    graph = onnx.load(tmp_path / "vision.onnx", load_external_data=False).graph
    assert graph.output[0].type.tensor_type.elem_type == kind


def test_progress_counts_bytes_up_to_the_size_of_the_file(checkpoint_of, tmp_path):
    seen = []
    export_vision(
        checkpoint_of(DUMMY),
        tmp_path,
        precision="fp32",
        output_dtype="fp32",
        progress=lambda done, total: seen.append((done, total)),
    )
    size = (tmp_path / "vision.onnx.data").stat().st_size
    assert seen == sorted(seen)
    assert seen[-1] == (size, size)
    assert {total for _, total in seen} == {size}


@pytest.mark.parametrize(
    ("name", "row", "column"), [("attn.qkv.weight", 2 * 128 + 100, 3), ("attn.proj.weight", 5, 127)]
)
def test_a_dummy_head_that_holds_something_is_not_stripped_but_refused(tmp_path, name, row, column):
    source = tmp_path / "checkpoint"
    write_synthetic(source, tiny_spec(tile_size=56, decoder_layers=1, max_shard_bytes=None))
    tensors = load_file(source / "model.safetensors")
    tensors[f"{LAYER}{name}"][row, column] = 1e-3
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=name):
        export_vision(Checkpoint.open(source), tmp_path, precision="fp32", output_dtype="fp32")
    assert not (tmp_path / "vision.onnx.data").exists()


@pytest.mark.parametrize(("precision", "output"), [("fp8", "fp32"), ("fp32", "int8")])
def test_a_type_that_the_graph_is_not_written_in_is_refused(checkpoint_of, tmp_path, precision, output):
    with pytest.raises(RecipeError, match="fp32 or bf16"):
        export_vision(checkpoint_of(DUMMY), tmp_path, precision=precision, output_dtype=output)


def test_memory_does_not_grow_with_the_number_of_layers(tmp_path):
    peaks, sizes = [], []
    for layers in (2, 8):
        source, out = tmp_path / f"checkpoint-{layers}", tmp_path / f"export-{layers}"
        out.mkdir()
        spec = tiny_spec(tile_size=56, vision_heads=48, vision_layers=layers, decoder_layers=1, max_shard_bytes=None)
        write_synthetic(source, spec)
        run = subprocess.run(
            [sys.executable, "-c", PEAK_SCRIPT, source, out], capture_output=True, text=True, check=True
        )
        peaks.append(int(run.stdout) * 1024)
        sizes.append((out / "vision.onnx.data").stat().st_size)
    assert sizes[1] - sizes[0] > 60e6
    assert peaks[1] - peaks[0] < 16e6

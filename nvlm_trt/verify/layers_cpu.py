"""Compiled engines of the cpu target layer by layer: each layer is given what enters it in the float32 reference.

An engine's graph is cut before every layer, so that errors do not add up and a layer with a defect stands out. All
layers run in one inference, in the engine's own precision and with its own weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino as ov
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own short name
from openvino import opset15 as ops

from nvlm_trt.decoder.calibration_layer import DecoderLayer
from nvlm_trt.decoder.engine_config import MODEL_NAME, DecoderEngineConfig
from nvlm_trt.decoder.session_cpu import compile_properties
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import rope_table, rotate
from nvlm_trt.model.reference.vision import VisionReference, normalise
from nvlm_trt.model.tensors import decoder_layer
from nvlm_trt.verify.layer_deviation import output_error
from nvlm_trt.verify.layer_errors import LayerError
from nvlm_trt.vision.build_cpu import XML_NAME
from nvlm_trt.vision.runner import PRECISION_HINTS

Array = npt.NDArray[np.generic]
Outputs = Mapping[str, torch.Tensor]

QKV, AFTER = ("query", "key", "value"), "after"
"""Outputs of a layer: what enters its attention, and what it adds to the hidden states."""


def decoder_layers(
    directory: Path, config: DecoderEngineConfig, checkpoint: Checkpoint, embedded: torch.Tensor, threads: int = 0
) -> list[LayerError]:
    """Errors of the decoder's layers.

    Args:
        directory: What `build_decoder_cpu` wrote.
        config: Its config.json.
        checkpoint: The source.
        embedded: What enters the first layer in the reference, float32 [t, hidden].
        threads: Threads to compute with; 0 leaves it to OpenVINO.
    """
    core = ov.Core()
    model = core.read_model(directory / MODEL_NAME)
    nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    layers = range(config.num_layers)
    downs = [nodes[f"layers.{index}.down"] for index in layers]
    joints = [nodes["embedded"], *(next(iter(down.output(0).get_target_inputs())).get_node() for down in downs)]
    results = [nodes[f"layers.{index}.{part}"] for index in layers for part in QKV]
    holes = [nodes["position_ids"], *(nodes[f"layers.{index}.attention"] for index in layers)]
    inputs: dict[str, Array] = {"position_ids": np.arange(len(embedded), dtype=np.int32)}
    expected: list[Outputs] = []
    hidden = embedded
    with torch.inference_mode():
        for index in layers:
            inputs[f"enters.{index}"] = hidden.numpy()
            attended, outputs, hidden = _reference_layer(checkpoint, index, hidden)
            inputs[f"layers.{index}.attention"] = attended.numpy()
            expected.append(outputs)
    isolated = _isolated(model, joints, results, holes)
    seen = _infer(core, isolated, inputs, compile_properties(core, config.precision, threads))
    return [
        _worst(
            "decoder", index, expected[index], _added(seen, inputs, index, [f"layers.{index}.{part}" for part in QKV])
        )
        for index in layers
    ]


def vision_layers(
    directory: Path, precision: str, checkpoint: Checkpoint, tile: npt.NDArray[np.uint8], threads: int = 0
) -> list[LayerError]:
    """Errors of the ViT blocks on one tile.

    Args:
        directory: What `build_vision_cpu` wrote.
        precision: Of the engine.
        checkpoint: The source.
        tile: uint8 [1, s, s, 3].
        threads: Threads to compute with; 0 leaves it to OpenVINO.
    """
    core, reference, layers = ov.Core(), VisionReference(checkpoint), range(checkpoint.config.vision.num_layers)
    model = core.read_model(directory / XML_NAME)
    nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    joints = [nodes["vision/embeddings/rows"], *(nodes[f"vision/layer_{index:02d}/mlp/residual"] for index in layers)]
    inputs: dict[str, Array] = {}
    expected: list[Outputs] = []
    with torch.inference_mode():
        hidden = reference.embed(normalise(tile))
        for index in layers:
            inputs[f"enters.{index}"] = hidden[0].numpy()
            before, hidden = hidden, reference.block(index, hidden)
            expected.append({AFTER: (hidden - before)[0]})
    properties = {"INFERENCE_PRECISION_HINT": PRECISION_HINTS[precision]}
    if threads:
        properties["INFERENCE_NUM_THREADS"] = str(threads)
    isolated = _isolated(model, joints, [], [])
    # OpenVINO 2026.4 cannot compile the pieces of an int8 engine while their number of rows is open.
    isolated.reshape({name: list(value.shape) for name, value in inputs.items()})
    seen = _infer(core, isolated, inputs, properties)
    return [_worst("vision", index, expected[index], _added(seen, inputs, index, [])) for index in layers]


def _reference_layer(
    checkpoint: Checkpoint, index: int, hidden: torch.Tensor
) -> tuple[torch.Tensor, Outputs, torch.Tensor]:
    """What attention gives [t, heads * head_dim], the layer's outputs, and the hidden states after it."""
    config, prefix = checkpoint.config.decoder, decoder_layer(index)
    names = (name for name in checkpoint.tensors if name.startswith(prefix))
    weights = {name.removeprefix(prefix): checkpoint.read(name, torch.float32) for name in names}
    seen: dict[str, torch.Tensor] = {}
    after = DecoderLayer(config, weights, lambda key, values: seen.update({key: values.clone()}))(hidden)
    cos, sin = rope_table(config.head_dim, config.rope_theta, 0, len(hidden), torch.float32)
    outputs = {}
    for name in QKV:
        weight, bias = (weights[f"self_attn.{name[0]}_proj.{part}"] for part in ("weight", "bias"))
        heads = F.linear(seen["qkv"], weight, bias).view(len(hidden), -1, config.head_dim).transpose(0, 1)
        turned = heads if name == "value" else rotate(heads, cos, sin)
        outputs[name] = turned.transpose(0, 1).flatten(1)
    return seen["dense"], {**outputs, AFTER: after - hidden}, after


def _isolated(
    model: ov.Model, joints: Sequence[ov.Node], results: Sequence[ov.Node], parameters: Sequence[ov.Node]
) -> ov.Model:
    """The model in pieces between the joints: inputs `enters.i`, outputs `leaves.i` of piece i, both float32."""
    entries, exits = [], []
    consumers = [joint.output(0).get_target_inputs() for joint in joints]
    for place, joint in enumerate(joints):
        output = joint.output(0)
        if place:
            result = ops.result(ops.convert(output, np.float32))
            result.output(0).get_tensor().set_names({f"leaves.{place - 1}"})
            exits.append(result)
        if place < len(joints) - 1:
            entry = ops.parameter(ov.PartialShape([-1, output.get_partial_shape()[1]]), np.float32)
            entry.output(0).get_tensor().set_names({f"enters.{place}"})
            entries.append(entry)
            value = ops.convert(entry, output.get_element_type())
            for consumer in consumers[place]:
                consumer.replace_source_output(value.output(0))
    return ov.Model([*exits, *results], [*entries, *parameters], "layers")


def _infer(core: ov.Core, model: ov.Model, inputs: Mapping[str, Array], properties: Mapping[str, str]) -> Outputs:
    request = core.compile_model(model, "CPU", dict(properties)).create_infer_request()
    request.infer(dict(inputs))
    return {
        name: torch.from_numpy(request.get_tensor(name).data.copy())
        for output in model.outputs
        for name in output.get_names()
    }


def _added(seen: Outputs, inputs: Mapping[str, Array], index: int, results: Sequence[str]) -> Outputs:
    """A layer's outputs by their short names."""
    added = seen[f"leaves.{index}"] - torch.from_numpy(np.asarray(inputs[f"enters.{index}"], np.float32))
    return {**{name.rpartition(".")[2]: seen[name] for name in results}, AFTER: added}


def _worst(part: str, index: int, expected: Outputs, seen: Outputs) -> LayerError:
    errors = {name: output_error(seen[name], expected[name]) for name in expected}
    name = max(errors, key=lambda each: np.nan_to_num(errors[each], nan=np.inf))
    return LayerError(part, index, name, errors[name])

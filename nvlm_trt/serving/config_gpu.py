"""Configurations of the engines' models on the gpu target: TensorRT and TensorRT-LLM's C++ backend.

The tiles of one request spread over the vision encoder's GPUs: without that the vision encoder of a 7-tile image takes
longer than the prefill of a decoder on 4 or 8 GPUs. Triton sends one request to one instance, so `tile_parallel_vision`
asks for a part of the tiles on each GPU and joins the rows. `multimodal_decoder` hands the joined table to the decoder
inside the server, so that the table (29 MB for 7 tiles of NVLM-D-72B) takes no way over gRPC.
"""

from __future__ import annotations

from typing import Final

from tritonclient.grpc import model_config_pb2 as pb

from nvlm_trt.engine_files import DECODER_ENGINE, PLAN_NAME
from nvlm_trt.errors import EngineError
from nvlm_trt.serving.config_common import (
    ensemble,
    multimodal_decoder,
    nvlm,
    postprocessing,
    preprocessing,
    selftest,
)
from nvlm_trt.serving.config_parts import (
    FEATURES,
    TABLE,
    ModelConfig,
    python_model,
    tensor_input,
    tensor_output,
)
from nvlm_trt.serving.decoder_tensors import (
    DECODER_FROM_PREPROCESSING,
    DECODER_GPU,
    DECODER_OTHER,
    DECODER_REQUIRED,
    LOG_PROBS,
    MROPE,
    OUTPUTS,
    OUTPUTS_GPU,
    RAGGED,
)
from nvlm_trt.serving.preprocessing import TILES
from nvlm_trt.serving.spec import GpuSpec, ServingSpec

TILE_PARALLEL: Final = "tile_parallel_vision"

LOAD_ORDER: Final = ("vision_encoder", "ensemble", "selftest", "nvlm")
"""What a server is told to load, one after the other; with an ensemble come the models that it is made of. The vision
encoder is first, because the C++ backend gives a share of the GPU memory that it finds free to the KV cache: vision
encoders that came later would find too little. All others come with one ensemble: a second one would load the Python
models again that it shares with the first (their folders have changed, as Python left its bytecode there)."""

EXECUTOR_WORKER: Final = "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker"


def gpu_models(spec: ServingSpec) -> tuple[ModelConfig, ...]:
    """Every model of the gpu target's repository.

    Raises:
        EngineError: the spec is not for GPUs.
    """
    gpu = spec.gpu
    if gpu is None:
        raise EngineError("the spec has no member gpu", seen=spec.target, expected="gpu", fix="package it again")
    return (
        nvlm(spec),
        ensemble(),
        preprocessing(spec),
        vision_encoder(spec, gpu),
        tile_parallel_vision(spec, gpu),
        multimodal_decoder(spec, TILE_PARALLEL),
        tensorrt_llm(spec, gpu),
        postprocessing(spec),
        selftest(spec),
    )


def vision_encoder(spec: ServingSpec, gpu: GpuSpec) -> ModelConfig:
    """Tiles to rows of the prompt table on one of the GPUs; the tile count is the batch.

    With several GPUs there is no dynamic batching: it puts the parts of one request, which come at the same moment,
    into one batch for one GPU again (seen with Triton 2.51, without any queue delay), and one part fills a GPU.
    """
    config = ModelConfig(name="vision_encoder", backend="tensorrt", default_model_filename=PLAN_NAME)
    config.max_batch_size = gpu.vision_max_tiles
    config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_GPU, gpus=range(gpu.vision_gpus))
    if gpu.vision_gpus == 1:
        config.dynamic_batching.SetInParent()
    # Activations are allocated when the plan is loaded, before the decoder measures what is free for its KV cache.
    config.parameters["execution_context_allocation_strategy"].string_value = "STATIC"
    side = spec.tile_size
    config.input.append(tensor_input(TILES, "UINT8", (side, side, 3)))
    config.output.append(tensor_output(FEATURES, spec.table_dtype, (spec.tokens_per_tile, spec.hidden_size)))
    return config


def tile_parallel_vision(spec: ServingSpec, gpu: GpuSpec) -> ModelConfig:
    """Tiles of one request to its prompt table, over all GPUs with a vision encoder.

    There are as many instances as GPUs, so that requests of a single tile keep all of them busy, too.
    """
    config = python_model(TILE_PARALLEL, spec, instances=gpu.vision_gpus)
    side = spec.tile_size
    config.input.append(tensor_input(TILES, "UINT8", (-1, side, side, 3)))
    config.output.append(tensor_output(TABLE, spec.table_dtype, (1, -1, spec.hidden_size)))
    return config


def tensorrt_llm(spec: ServingSpec, gpu: GpuSpec) -> ModelConfig:
    """The decoder in TensorRT-LLM's C++ backend, with all inputs and outputs of NVIDIA's own configuration."""
    config = ModelConfig(name="tensorrt_llm", backend="tensorrtllm", max_batch_size=spec.max_batch_size)
    config.model_transaction_policy.decoupled = True  # streaming needs it
    # Requests are handed over at once, whatever their shapes: the executor batches them in flight by itself. There is
    # no queue limit here: the backend's refusal looks like a fault, and `nvlm` refuses beyond max_requests before.
    config.dynamic_batching.SetInParent()
    config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)  # GPUs are the executor's own business
    table = ((TABLE, spec.table_dtype, (-1, -1)),)
    for name, dtype, dims in (*DECODER_FROM_PREPROCESSING, *table, *DECODER_OTHER, *DECODER_GPU):
        one = tuple(dims) == (1,)
        config.input.append(
            tensor_input(
                name,
                dtype,
                dims,
                optional=name not in DECODER_REQUIRED,
                scalar=one and name not in RAGGED | MROPE,
                ragged=name in RAGGED or not (one or name in MROPE),
            )
        )
    config.output.extend(tensor_output(*tensor) for tensor in (*OUTPUTS, *LOG_PROBS, *OUTPUTS_GPU))
    for key, value in decoder_parameters(gpu).items():
        config.parameters[key].string_value = value
    return config


def decoder_parameters(gpu: GpuSpec) -> dict[str, str]:
    """Parameters of the C++ backend; those that are not here keep its default.

    Left out on purpose: ``cross_kv_cache_fraction`` (set for a decoder alone, it ends the server),
    ``max_tokens_in_paged_kv_cache`` (the fraction decides), ``gpu_device_ids``, ``participant_ids`` and ``num_nodes``
    (in leader mode every rank takes the GPU of its number on its node), ``encoder_model_path``, and all of LoRA,
    drafts and CUDA graphs, for which the engine is not built.
    """
    return {
        "gpt_model_type": "inflight_fused_batching",
        "gpt_model_path": DECODER_ENGINE,
        "executor_worker_path": EXECUTOR_WORKER,  # read in orchestrator mode only; as in NVIDIA's configuration
        "max_beam_width": "1",  # the engine is built for greedy decoding and sampling
        "batch_scheduler_policy": "guaranteed_no_evict",  # an answer that has begun is never thrown away for another
        "kv_cache_free_gpu_mem_fraction": f"{gpu.kv_cache_fraction:g}",
        "enable_kv_cache_reuse": _flag(gpu.kv_cache_reuse),  # unset is true; image digests are among the blocks' keys
        "enable_chunked_context": _flag(gpu.chunked_context),  # needs use_paged_context_fmha, on by default
        "exclude_input_in_output": "true",  # the orchestrator counts and decodes the answer's tokens only
        "normalize_log_probs": "true",  # the backend's default, for clients that ask for log probabilities
        "cancellation_check_period_ms": "100",
        "stats_check_period_ms": "100",  # how often the backend's metrics are brought up to date
        "iter_stats_max_iterations": "1000",  # kept for those metrics between two looks
        "request_stats_max_iterations": "0",  # per-request statistics are read for disaggregated serving only
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",  # as in NVIDIA's configuration; the C++ backend takes any memory
        # The backend reads these three without a default and does not load where one is absent; empty means off.
        "guided_decoding_backend": "",
        "tokenizer_dir": "",
        "xgrammar_tokenizer_info_path": "",
    }


def _flag(value: bool) -> str:
    return "true" if value else "false"

"""config.json is read strictly: the decoder by its architecture, traps recognised, nothing by default."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from nvlm_trt.errors import CheckpointError
from nvlm_trt.model.config import load_config, parse_config
from nvlm_trt.model.release import release_config
from nvlm_trt.model.synthetic import like_72b, tiny_spec


def changed(path: str, value: Any) -> dict[str, Any]:
    raw = copy.deepcopy(release_config(tiny_spec().config))
    target: Any = raw
    *parents, last = path.split(".")
    for name in parents:
        target = target[name]
    if value is KeyError:
        del target[last]
    else:
        target[last] = value
    return raw


def test_the_released_config_is_understood(nvlm_72b: Path) -> None:
    config = load_config(nvlm_72b)
    assert config.tokens_per_tile == 256
    assert config.projector_in == 12800
    assert config.projector_hidden == 29568
    assert (config.vision.num_layers, config.decoder.num_layers) == (45, 80)
    assert (config.vision.head_dim, config.decoder.head_dim) == (128, 128)
    assert config.max_tiles == 6


def test_a_synthetic_72b_config_equals_the_released_one_but_for_its_layers(nvlm_72b: Path) -> None:
    raw = json.loads((nvlm_72b / "config.json").read_text())
    raw["vision_config"]["num_hidden_layers"] = raw["llm_config"]["num_hidden_layers"] = 4
    assert parse_config(raw) == like_72b(4).config


def test_what_a_synthetic_config_says_is_read_back() -> None:
    assert parse_config(release_config(tiny_spec().config)) == tiny_spec().config


def test_the_decoders_model_type_llama_and_its_rope_scaling_below_32k_are_ignored() -> None:
    raw: Any = release_config(tiny_spec().config)
    assert raw["llm_config"]["model_type"] == "llama"
    assert raw["llm_config"]["rope_scaling"] == {"factor": 3.0, "type": "dynamic"}
    assert parse_config(raw).decoder.rope_theta == 1e6


def test_rope_scaling_beyond_32k_is_refused() -> None:
    with pytest.raises(CheckpointError, match="rope_scaling beyond 32,768"):
        parse_config(changed("llm_config.max_position_embeddings", 32769))


@pytest.mark.parametrize(
    "scaling",
    [{"type": "linear", "factor": 2.0}, {"rope_type": "yarn", "factor": 4.0}, {"factor": 3.0}, "dynamic"],
)
def test_rope_scaling_that_changes_other_positions_than_those_beyond_32k_is_refused(scaling: object) -> None:
    with pytest.raises(CheckpointError, match="this rope_scaling is not supported"):
        parse_config(changed("llm_config.rope_scaling", scaling))


def test_embeddings_that_are_not_said_to_be_tied_are_not() -> None:
    assert parse_config(changed("llm_config.tie_word_embeddings", KeyError)) == tiny_spec().config


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("llm_config.architectures", ["LlamaForCausalLM"]),
        ("llm_config.architectures", KeyError),
        ("vision_config.architectures", ["SiglipVisionModel"]),
        ("ps_version", "v1"),
        ("ps_version", KeyError),
        ("select_layer", -4),
        ("template", "qwen"),
        ("template", KeyError),
        ("use_thumbnail", KeyError),
        ("downsample_ratio", 0.4),
        ("downsample_ratio", 1e-320),
        ("downsample_ratio", KeyError),
        ("force_image_size", 224),
        ("max_dynamic_patch", 13),
        ("min_dynamic_patch", 2),
        ("min_dynamic_patch", KeyError),
        ("vision_config.qk_normalization", False),
        ("vision_config.norm_type", "layer_norm"),
        ("vision_config.num_hidden_layers", KeyError),
        ("vision_config.num_hidden_layers", 0),
        ("vision_config.num_attention_heads", 7),
        ("vision_config.image_size", "448"),
        ("llm_config.vocab_size", 1.5),
        ("llm_config.hidden_size", True),
        ("llm_config.num_key_value_heads", 3),
        ("llm_config.tie_word_embeddings", True),
        ("llm_config.use_sliding_window", True),
        ("llm_config.rms_norm_eps", float("nan")),
        ("llm_config", []),
    ],
)
def test_a_config_that_is_not_nvlm_d_is_refused_by_name(path: str, value: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_config(changed(path, value))
    assert path.split(".")[-1] in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff"])
def test_a_damaged_config_file_is_one_clear_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_config(tmp_path)


def test_a_missing_directory_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint directory"):
        load_config(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_config(tmp_path)

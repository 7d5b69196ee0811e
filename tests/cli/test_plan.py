"""`nvlm-trt plan`: verdicts are data; only a caller's mistake, or --check, exits with 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nvlm_trt.datasheets.datasheet import known_gpus, load_gpu

Run = Callable[..., Any]
RECIPES = Path(__file__).parents[2] / "build" / "recipes"
FP8 = RECIPES / "nvlm-d-72b-fp8-tp4.yaml"


def test_a_plan_says_what_fits_and_how_fast_at_best(nvlm_trt: Run) -> None:
    shown = nvlm_trt("plan", FP8, "--gpu", "h100-sxm")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith("nvlm-d-72b-fp8-tp4 on 4 x h100-sxm: fits\n")
    for says in ("a bound, not a promise", "corrections  none", "left for the KV cache", "unknown until measured"):
        assert says in shown.out


def test_json_carries_units_in_its_keys(nvlm_trt: Run) -> None:
    facts = nvlm_trt("plan", FP8, "--gpu", "h100-sxm", "--output", "200", "--json").json
    assert facts["verdict"] == {
        "fits": True,
        "does_what_is_asked": True,
        "blockers": [],
        "misses": [],
        "remedies": [],
    }
    assert facts["workload"]["request_tokens"] == 1792 + 58 + 200
    assert facts["gpu"]["bandwidth_bytes_per_s"] == 3.35e12
    assert facts["corrections"] == []
    assert facts["speed"]["ttft_ms"] == pytest.approx(24.8 + 33.4, rel=0.01)
    assert facts["memory"]["gpus"][0]["usable_bytes"] == 72_000_000_000
    assert [choice["gpus"] for choice in facts["choices"]] == [1, 2, 4, 8]
    assert {stage["name"] for stage in facts["build"]["stages"]} >= {"vision-export", "decoder-convert"}
    units = ("_bytes", "_ms", "_tokens", "_s", "_gpu", "_requests", "_tiles", "_rows")
    bare = {"kv_tokens", "requests", "tokens_per_block", "memory_share", "gpus", "kv_bytes_per_token"}
    assert all(name.endswith(units) or name in bare for name in facts["memory"])


def test_what_does_not_fit_is_an_answer_and_check_makes_it_a_failure(nvlm_trt: Run) -> None:
    words = ("plan", FP8, "--gpu", "a100-80g-sxm")
    shown = nvlm_trt(*words)
    assert shown.code == 0
    assert "does not fit\n  - a100-80g-sxm has no fp8" in shown.out
    assert "  - decoder_precision bf16" in shown.out
    assert nvlm_trt(*words, "--check").code == 2
    facts = nvlm_trt(*words, "--check", "--json")
    assert facts.code == 2
    assert facts.json["verdict"]["fits"] is False
    assert facts.json["speed"] is None


def test_check_also_demands_what_was_asked_for(nvlm_trt: Run) -> None:
    words = ("plan", FP8, "--gpu", "h100-sxm", "--check", "--ttft-ms")
    assert nvlm_trt(*words, "500").code == 0
    missed = nvlm_trt(*words, "40")
    assert missed.code == 2
    assert "fits, but falls short\n  - time to first token is 58 ms at best" in missed.out
    assert "would do it, one of\n  - tp 8: 8 GPUs" in missed.out


def test_more_gpus_hold_several_copies(nvlm_trt: Run) -> None:
    shown = nvlm_trt("plan", FP8, "--gpu", "h100-sxm", "--gpus", "8")
    assert "on 8 x h100-sxm: fits" in shown.out
    assert "copies       2 of 4 GPUs each" in shown.out
    assert nvlm_trt("plan", FP8, "--gpu", "h100-sxm", "--gpus", "9", "--json").json["copies"] == 2


def test_the_cheapest_choice_is_marked(nvlm_trt: Run) -> None:
    words = ("plan", FP8, "--gpu", "h200-sxm", "--concurrency", "50", "--all-precisions", "--json")
    chosen = [choice for choice in nvlm_trt(*words).json["choices"] if choice["chosen"]]
    assert [(choice["decoder_precision"], choice["gpus"]) for choice in chosen] == [("fp8", 1)]


def test_a_cheaper_choice_is_told_with_what_it_takes(nvlm_trt: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "own.yaml"
    recipe.write_text(FP8.read_text().replace("max_images: 2", "max_images: 4"))
    words = ("plan", recipe, "--gpu", "h100-sxm", "--concurrency", "50", "--output", "200")
    assert "\n2 GPUs would do with fp8 and max_images 2: " in nvlm_trt(*words).out
    facts = nvlm_trt(*words, "--json").json["cheaper_after_change"]
    assert (facts["gpus"], facts["tp"], facts["decoder_precision"]) == (2, 2, "fp8")


def test_prompt_tables_have_rows_of_their_own(nvlm_trt: Run) -> None:
    def rows(*words: str) -> list[str]:
        return [" ".join(line.split()) for line in nvlm_trt("plan", FP8, "--gpu", "h100-sxm", *words).out.splitlines()]

    busy = rows("--concurrency", "50", "--output", "200")
    assert "kv_cache_fraction 0.9 leaves 3.82" in busy
    assert "- prompt tables of 50 under way 1.47" in busy
    assert "decode step 6.6 memory batch 50, context 1,950" in busy
    assert "prompt tables 0.9 memory 50 of 29.4 MB, copied before every step" in busy
    assert "next token 7.5 both" in busy
    assert "next token 5.4 memory batch 1, context 75" in rows("--images", "0", "--output", "34")


def test_no_speed_is_given_for_all_reduces_between_nodes(nvlm_trt: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "own.yaml"
    recipe.write_text(FP8.read_text().replace("tp: 4", "tp: 8\ngpus_per_node: 4"))
    words = ("plan", recipe, "--gpu", "h100-sxm")
    (note,) = [line for line in nvlm_trt(*words).out.splitlines() if "all-reduces" in line]
    assert note.endswith("all-reduces of a prefill, over the network between nodes, whose speed decides")
    speed = nvlm_trt(*words, "--json").json["speed"]
    assert speed["prefill_all_reduce_sent_bytes"] > 0
    assert speed["prefill_all_reduce_at_link_speed_ms"] is None


def test_a_pipeline_pays_for_a_buffer_of_prompt_tables_for_each_stage(nvlm_trt: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "own.yaml"
    recipe.write_text(FP8.read_text().replace("pp: 1", "pp: 2"))
    lines = nvlm_trt("plan", recipe, "--gpu", "h100-sxm").out.splitlines()
    assert "- prompt tables, 2 x 64 x 3,584 rows 7.52 7.52" in [" ".join(line.split()) for line in lines]


def test_the_gpu_may_come_from_the_recipe(nvlm_trt: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "own.yaml"
    recipe.write_text(FP8.read_text().replace("gpu: h100-sxm", "gpu: l40s").replace("max_images: 2", "max_images: 4"))
    assert "own on 4 x l40s: does not fit" in nvlm_trt("plan", recipe).out
    assert "own on 4 x h100-pcie: fits" in nvlm_trt("plan", recipe, "--gpu", "h100-pcie").out


def test_a_recipe_may_be_named(nvlm_trt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RECIPES.parents[1])
    assert nvlm_trt("plan", "nvlm-d-72b-fp8-tp4", "--gpu", "h100-sxm").code == 0


def test_other_shapes_are_planned_from_their_config(nvlm_trt: Run, tiny_checkpoint: Path) -> None:
    facts = nvlm_trt("plan", FP8, "--gpu", "l40s", "--checkpoint", tiny_checkpoint, "--json").json
    assert facts["verdict"]["fits"] is True
    assert facts["model"]["name"] == "tiny"
    assert facts["workload"]["visual_tokens"] == 7 * 16
    assert facts["memory"]["gpus"][0]["decoder_weights_bytes"] < 10_000_000


def test_corrections_are_shown_with_their_sources(nvlm_trt: Run, tmp_path: Path) -> None:
    raw = load_gpu("h100-sxm").model_dump(exclude={"name"})
    raw["corrections"] = {"decode_share_of_bandwidth": {"value": 0.5, "source": "a run of the benchmark"}}
    model = tmp_path / "ours.yaml"
    model.write_text(yaml.safe_dump(raw))
    shown = nvlm_trt("plan", FP8, "--gpu", model)
    assert "corrections  decode_share_of_bandwidth 0.5 (a run of the benchmark)" in shown.out
    facts = nvlm_trt("plan", FP8, "--gpu", model, "--json").json
    assert facts["corrections"] == [
        {"name": "decode_share_of_bandwidth", "value": 0.5, "source": "a run of the benchmark"}
    ]
    plain = nvlm_trt("plan", FP8, "--gpu", "h100-sxm", "--json").json
    ours, theirs = facts["speed"]["steps"][0], plain["speed"]["steps"][0]
    assert ours["engine"]["ms"] == pytest.approx(2 * theirs["engine"]["ms"])
    assert ours["prompt_tables_ms"] == theirs["prompt_tables_ms"] > 0
    assert facts["speed"]["itl_ms"] == ours["itl_ms"]
    assert ours["itl_ms"] == pytest.approx(ours["engine"]["ms"] + ours["prompt_tables_ms"])


def test_gpu_models_are_listed(nvlm_trt: Run) -> None:
    shown = nvlm_trt("plan", "--gpu", "list")
    assert shown.code == 0
    assert all(f"\n{name} " in shown.out for name in known_gpus())
    listed = nvlm_trt("plan", "--gpu", "list", "--json").json["gpus"]
    assert [gpu["name"] for gpu in listed] == list(known_gpus())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--gpu", "h100-sxm"), "no recipe is given"),
        ((FP8, "--gpu", "h20"), "did you mean h200-sxm?"),
        ((RECIPES / "nvlm-d-mini-cpu.yaml", "--gpu", "l40s"), "only recipes of the gpu target"),
        ((FP8, "--gpu", "l40s", "--checkpoint", "nowhere"), "no checkpoint directory"),
        (("absent.yaml", "--gpu", "l40s"), "there is no such recipe"),
    ],
)
def test_a_mistake_is_told_in_one_line(words: tuple[object, ...], says: str, nvlm_trt: Run) -> None:
    shown = nvlm_trt("plan", *words)
    assert shown.code == 2
    assert says in shown.err
    assert shown.out == ""


@pytest.mark.parametrize("words", [("--gpus", "0"), ("--output", "0"), ("--memory-share", "1.1"), ("--tiles", "0")])
def test_figures_out_of_range_are_refused(words: tuple[str, str], nvlm_trt: Run) -> None:
    shown = nvlm_trt("plan", FP8, "--gpu", "h100-sxm", *words)
    assert shown.code == 2
    assert words[0] in shown.err


def test_a_recipe_without_a_gpu_model_needs_one_on_the_command_line(nvlm_trt: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "gpu.yaml"
    recipe.write_text("target: gpu\n")
    shown = nvlm_trt("plan", recipe)
    assert shown.code == 2
    assert "the recipe names no GPU model" in shown.err

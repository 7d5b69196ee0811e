"""A deployment says what the recipe leaves open, as the build will decide it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nvlm_trt.datasheets.datasheet import load_gpu
from nvlm_trt.errors import RecipeError
from nvlm_trt.plan.deployment import Assumptions, Deployment
from nvlm_trt.plan.memory import gpu_memory
from nvlm_trt.recipe import parse_recipe

Deploy = Callable[..., Deployment]


def test_a_recipe_of_the_cpu_target_has_no_gpus() -> None:
    with pytest.raises(RecipeError, match="target cpu"):
        Deployment.of(parse_recipe({"name": "r", "target": "cpu"}, "r"), None, load_gpu("l40s"), Assumptions())


@pytest.mark.parametrize(("max_tiles", "tiles"), [(1, 1), (2, 3), (6, 7), (12, 13)])
def test_a_thumbnail_comes_with_several_tiles(max_tiles: int, tiles: int, deploy: Deploy) -> None:
    assert deploy(max_tiles=max_tiles).tiles_per_image == tiles


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"max_input_len": 2048}, 8192),
        ({"max_input_len": 16384}, 16384),
        ({"max_input_len": 40_000}, 32_768),
        ({"decoder_engine": {"max_num_tokens": 4096}}, 4096),
        ({"max_input_len": 1000, "max_output_len": 24, "max_batch_size": 2}, 2048),
    ],
)
def test_tokens_of_a_step(fields: dict[str, object], tokens: int, deploy: Deploy) -> None:
    assert deploy(**fields).max_num_tokens == tokens


@pytest.mark.parametrize(("asked", "placed"), [(None, 4), (1, 1), (3, 3), (9, 4)])
def test_vision_engines_are_on_all_gpus_unless_the_recipe_says_fewer(
    asked: int | None, placed: int, deploy: Deploy
) -> None:
    assert deploy(tp=2, pp=2, vision_engine={"gpus": asked}).vision_gpus == placed


@pytest.mark.parametrize(("asked", "placed"), [(None, 8), (2, 2), (16, 8)])
def test_vision_engines_are_on_the_first_node_only(asked: int | None, placed: int, deploy: Deploy) -> None:
    plan = deploy(tp=8, pp=2, vision_engine={"gpus": asked})
    assert (plan.gpus, plan.vision_gpus) == (16, placed)
    assert [memory.vision > 0 for memory in gpu_memory(plan)] == [True] * placed + [False] * (16 - placed)


@pytest.mark.parametrize(
    ("tp", "pp", "gpus_per_node", "ranks"),
    [
        (2, 2, 8, [0, 1, 2, 3]),
        (4, 2, 4, [4, 5, 6, 7, 0, 1, 2, 3]),
        (2, 4, 4, [4, 5, 6, 7, 0, 1, 2, 3]),
        (8, 1, 4, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_of_several_nodes_the_first_has_the_last_stages(
    tp: int, pp: int, gpus_per_node: int, ranks: list[int], deploy: Deploy
) -> None:
    """On each node a rank has the GPU of its index modulo the node's."""
    plan = deploy(tp=tp, pp=pp, gpus_per_node=gpus_per_node)
    assert [rank.index for rank in plan.placed_ranks] == ranks
    assert all(rank.index % gpus_per_node == gpu % gpus_per_node for gpu, rank in enumerate(plan.placed_ranks))


def test_a_batch_of_tiles_is_a_gpus_part_of_a_request_unless_the_recipe_says_otherwise(deploy: Deploy) -> None:
    assert deploy(max_images=2).vision_batch == 14
    assert deploy(max_images=2, tp=4).vision_batch == 4
    assert deploy(max_images=2, tp=4, vision_engine={"gpus": 1}).vision_batch == 14
    assert deploy(vision_engine={"max_tiles": 5}).vision_batch == 5


def test_the_mlp_is_as_wide_as_it_is_stored(deploy: Deploy) -> None:
    assert deploy(tp=4, decoder_precision="int8_wo").decoder.intermediate_size == 29_696
    assert deploy(tp=2, decoder_precision="int8_wo").decoder.intermediate_size == 29_568
    assert deploy(tp=4, decoder_precision="fp8").decoder.intermediate_size == 29_568


def test_a_change_leaves_the_first_deployment_as_it_is(deploy: Deploy) -> None:
    plan = deploy(tp=2)
    assert plan.changed(tp=4, max_batch_size=3).recipe.max_batch_size == 3
    assert (plan.recipe.tp, plan.recipe.max_batch_size) == (2, 8)

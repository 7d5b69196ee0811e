"""Deployments of NVLM-D-72B without a GPU and without weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nvlm_trt.datasheets.datasheet import load_gpu
from nvlm_trt.plan.deployment import Assumptions, Deployment
from nvlm_trt.plan.workload import Workload
from nvlm_trt.recipe import parse_recipe

Deploy = Callable[..., Deployment]


@pytest.fixture(scope="session")
def deploy() -> Deploy:
    """Makes a deployment of the released shapes: a GPU model, and fields of the recipe that differ from the default."""

    def make(gpu: str = "h100-sxm", assumptions: Assumptions | None = None, **fields: object) -> Deployment:
        recipe = parse_recipe({"name": "r", "target": "gpu", **fields}, "r.yaml")
        return Deployment.of(recipe, None, load_gpu(gpu), assumptions or Assumptions())

    return make


@pytest.fixture(scope="session")
def one_image() -> Workload:
    """One image of 6 tiles and its thumbnail, 1,900 tokens in all."""
    return Workload(images=1, tiles=7, tokens_per_tile=256, text_tokens=58, output_tokens=50)

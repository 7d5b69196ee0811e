"""`nvlm-trt plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nvlm_trt.plan.sheet import Table
    from nvlm_trt.recipe import BuildRecipe

LIST = "list"


def plan(
    recipe: Annotated[str | None, typer.Argument(help="A recipe's path, or the name of one in build/recipes.")] = None,
    gpu: Annotated[str | None, typer.Option(help="GPU model, or a YAML file like theirs; list shows them.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs that there are; default tp x pp.")] = None,
    images: Annotated[int, typer.Option(min=0, help="Images of a request.")] = 1,
    tiles: Annotated[int | None, typer.Option(min=1, help="Tiles of an image, thumbnail included.")] = None,
    text: Annotated[int, typer.Option(min=0, help="Other tokens of the prompt: template, tags, question.")] = 58,
    output: Annotated[int, typer.Option(min=1, help="Tokens of the answer.")] = 50,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at a time.")] = 1,
    ttft_ms: Annotated[float | None, typer.Option(min=0, help="Time to first token that is asked for.")] = None,
    all_precisions: Annotated[bool, typer.Option("--all-precisions", help="Compare every decoder precision.")] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="Shapes by this config.json; default NVLM-D-72B.")] = None,
    memory_share: Annotated[float, typer.Option(min=0.1, max=1, help="Of a GPU's memory, used at most.")] = 0.9,
    reserve_gb: Annotated[float, typer.Option(min=0, max=1e4, help="For CUDA, NCCL and workspaces, a GPU.")] = 3.5,
    disk_gbps: Annotated[float, typer.Option(min=0.001, help="GB/s of the disk, for the times of a build.")] = 1.0,
    check: Annotated[bool, typer.Option("--check", help="Exit with 2 unless it does what is asked.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show whether a recipe fits on GPUs, how fast it can be at best, and what building it takes.

    Needs no GPU and no weights. Times are rooflines of datasheet figures: bounds, not promises.
    """
    from nvlm_trt.cli.output import print_json
    from nvlm_trt.datasheets.datasheet import known_gpus, load_gpu
    from nvlm_trt.plan import facts, sheet
    from nvlm_trt.plan.choices import cheaper, cheapest, choices, remedies
    from nvlm_trt.plan.costs import build_costs
    from nvlm_trt.plan.deployment import Assumptions, Deployment
    from nvlm_trt.plan.verdict import judge
    from nvlm_trt.plan.workload import Workload

    if gpu == LIST:
        models = [load_gpu(name) for name in known_gpus()]
        if json:
            print_json({"gpus": [facts.gpu_facts(model) for model in models]})
        else:
            _show(sheet.gpu_table(models))
        return
    built = _recipe(recipe)
    assumptions = Assumptions(memory_share, round(reserve_gb * 1e9))
    deployment = Deployment.of(built, checkpoint, load_gpu(_gpu_name(gpu, built)), assumptions)
    workload = Workload(
        images=images,
        tiles=tiles or deployment.tiles_per_image,
        tokens_per_tile=deployment.config.tokens_per_tile,
        text_tokens=text,
        output_tokens=output,
        concurrency=concurrency,
        ttft_limit_ms=ttft_ms,
    )
    verdict = judge(deployment, workload, gpus)
    changes = remedies(verdict, gpus)
    compared = choices(deployment, workload, gpus=gpus, all_precisions=all_precisions)
    chosen = cheapest(compared)
    after_change = cheaper(compared, chosen, gpus)
    costs = build_costs(deployment.sources, disk_gbps * 1e9)
    count = gpus or deployment.gpus
    if json:
        print_json(
            {
                **facts.verdict_facts(verdict, changes, count),
                "choices": [facts.choice_facts(each, chosen) for each in compared],
                "cheaper_after_change": facts.change_facts(after_change),
                "build": facts.cost_facts(costs),
            }
        )
    else:
        typer.echo("\n".join(sheet.heading(verdict, changes, count)))
        tables = []
        if verdict.capacity is not None:
            tables.append(sheet.memory_table(deployment, verdict.capacity, workload))
        if verdict.speed is not None:
            tables += [sheet.speed_table(deployment, verdict.speed), sheet.step_table(verdict.speed)]
        for table in (*tables, sheet.choice_table(compared, chosen, after_change), sheet.cost_table(costs)):
            typer.echo()
            _show(table)
    if check and not verdict.ok:
        raise typer.Exit(2)


def _recipe(name: str | None) -> BuildRecipe:
    from nvlm_trt.errors import UserError
    from nvlm_trt.pipeline.sources import RECIPE_FOLDER, find_recipe
    from nvlm_trt.recipe import load_recipe

    if name is None:
        raise UserError("no recipe is given", fix=f"name one of {RECIPE_FOLDER} or a file, or use --gpu {LIST}")
    return load_recipe(find_recipe(name))


def _gpu_name(given: str | None, recipe: BuildRecipe) -> str:
    from nvlm_trt.datasheets.datasheet import known_gpus
    from nvlm_trt.errors import UserError

    name = given or recipe.gpu
    if name is None:
        known = ", ".join(known_gpus())
        raise UserError("the recipe names no GPU model", seen=recipe.name, expected=f"--gpu with one of {known}")
    return name


def _show(table: Table) -> None:
    from nvlm_trt.cli.output import print_table

    typer.echo(table.title)
    if table.rows:
        print_table(table.header, table.rows)
    for note in table.notes:
        typer.echo(note)

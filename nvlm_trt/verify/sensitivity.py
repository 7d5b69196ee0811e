"""What each layer costs when it is quantised alone, and which ones to leave out of quantisation."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from nvlm_trt.emulation.vision import VisionArithmetic
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.recipe import BuildRecipe
from nvlm_trt.verify.cases import Case
from nvlm_trt.verify.fake_quant import OneLayerQuantized, Roundings
from nvlm_trt.verify.gates import cost_ratio, failed_costs
from nvlm_trt.verify.golden import Golden
from nvlm_trt.verify.layer_errors import PROJECTOR, LayerCost
from nvlm_trt.verify.measures import kl_divergences
from nvlm_trt.verify.report import VerifyReport, short
from nvlm_trt.verify.subjects import Forced, ReferenceSubject
from nvlm_trt.vision.scales import PROJECTOR_LINEARS, linear_names


def layer_costs(
    checkpoint: Checkpoint,
    reference: DecoderReference,
    goldens: Sequence[Golden],
    stop_id: int,
    *,
    vision: str,
    calibration: Path,
    roundings: Roundings | None,
    exclude: Collection[int] = (),
    weight_limit: float | None = None,
) -> list[LayerCost]:
    """What each layer of both parts costs when it is quantised alone, on the requests with images.

    Args:
        checkpoint: The source.
        reference: Its decoder in float32.
        goldens: Requests with the reference's answers, at least one of them with images.
        stop_id: What ends an answer.
        vision: Precision of vision.
        calibration: What the stage vision-calibrate leaves; of fp8 and int8 only.
        roundings: Those of the decoder's precision; None where it is not quantised.
        exclude: Layers of the decoder that are not quantised.
        weight_limit: Vision's largest code of a weight; None for the precision's own.
    """
    asked = [
        (golden.case, Forced(golden.ids, golden.table, golden.said(stop_id)))
        for golden in goldens
        if golden.table is not None
    ]
    costs = list(vision_costs(checkpoint, vision, calibration, reference, asked, weight_limit))
    if roundings is not None:
        costs += decoder_costs(reference, roundings, [request for _, request in asked], exclude)
    return costs


def decoder_costs(
    reference: DecoderReference, roundings: Roundings, requests: Sequence[Forced], exclude: Collection[int] = ()
) -> Iterator[LayerCost]:
    """One a layer, as they are measured.

    Args:
        reference: The decoder in float32; one layer more is held in memory.
        roundings: Those of the precision.
        requests: At least one, with the reference's tables and answers.
        exclude: Layers that are not quantised, and so cost nothing.
    """
    theirs = torch.cat(ReferenceSubject(reference).logits(requests))
    for layer in range(reference.config.num_layers):
        if layer in exclude:
            continue
        alone = OneLayerQuantized(reference, roundings, layer)
        yield LayerCost("decoder", layer, _kl(torch.cat(ReferenceSubject(alone).logits(requests)), theirs))


def vision_costs(
    checkpoint: Checkpoint,
    precision: str,
    calibration: Path,
    reference: DecoderReference,
    requests: Sequence[tuple[Case, Forced]],
    weight_limit: float | None,
) -> Iterator[LayerCost]:
    """One a ViT block and one for the projector, as they are measured; none in a precision that is not quantised.

    Args:
        checkpoint: The source.
        precision: Of vision.
        calibration: What the stage vision-calibrate leaves.
        reference: The decoder in float32, through which rows become logits.
        requests: At least one case with images, and its request.
        weight_limit: The largest code of a weight; None for the precision's own.
    """
    if precision not in ("fp8", "int8"):
        return

    def logits(linears: Sequence[str]) -> torch.Tensor:
        vision = VisionArithmetic(checkpoint, precision, calibration, linears=linears, weight_limit=weight_limit)
        tables = vision.tables([case.tiles for case, _ in requests])
        asked = [Forced(each.ids, rows, each.answer) for (_, each), rows in zip(requests, tables, strict=True)]
        return torch.cat(ReferenceSubject(reference).logits(asked))

    theirs = logits(())
    for layer in (*range(checkpoint.config.vision.num_layers), PROJECTOR):
        prefix = f"vision/layer_{layer:02d}/"
        own = [name for name in linear_names(checkpoint.config) if name.startswith(prefix)]
        chosen = PROJECTOR_LINEARS if layer == PROJECTOR else own
        yield LayerCost("vision", layer, _kl(logits(chosen), theirs))


def to_exclude(costs: Sequence[LayerCost], ratio: float) -> list[LayerCost] | None:
    """The fewest layers without whose quantisation a figure comes within its bound, if costs add up.

    Args:
        costs: What every quantised layer costs alone.
        ratio: The bound over the figure, below 1.

    Returns:
        The most costly ones, in the order of their costs; None where all together would not do.
    """
    left = total = sum(each.kl for each in costs)
    chosen: list[LayerCost] = []
    for each in sorted(costs, key=lambda cost: -cost.kl):
        if left <= ratio * total:
            break
        chosen.append(each)
        left -= each.kl
    return chosen if len(chosen) < len(costs) else None


PARTS: Mapping[str, str] = {"vision": "vision", "decoder": "decoder", "ranks": "decoder"}
"""Whose layers a failed gate is about, by its part; the others are about both."""


MORE_BITS: Mapping[str, str] = {
    **dict.fromkeys(("int4_wo", "int4_awq", "fp8", "int8_sq"), "int8_wo"),
    "int8_wo": "bf16",
}
"""The next decoder precision of the gpu target that keeps more: 8 bits of weights and all of activations, then all."""


def recipe_changes(layers: Sequence[LayerCost], recipe: BuildRecipe) -> tuple[str, ...]:
    """Lines of the recipe with which these layers are not quantised as they were.

    Decoder layers of the cpu target are left out one by one. Vision stays whole, and so does the decoder of the gpu
    target: they take a precision with more bits; where only the KV cache is quantised, that of the model.

    Args:
        layers: The layers.
        recipe: The recipe as it is.
    """
    changes = []
    if any(each.part == "vision" for each in layers):
        changes.append("vision_precision: bf16")
    decoder = {each.layer for each in layers if each.part == "decoder"}
    if decoder and recipe.target == "cpu":
        changes.append(f"exclude_layers: {sorted(decoder | recipe.exclude_layers)}")
    elif decoder and recipe.decoder_precision in MORE_BITS:
        changes.append(f"decoder_precision: {MORE_BITS[recipe.decoder_precision]}")
    elif decoder:
        changes.append("decoder_engine: {kv_cache_precision: model}")
    return tuple(changes)


def with_advice(report: VerifyReport, costs: Sequence[LayerCost], recipe: BuildRecipe) -> VerifyReport:
    """The report with the costs, and what to change in the recipe if gates on the cost, and no others, failed.

    Args:
        report: The report.
        costs: Of every quantised layer.
        recipe: The recipe as built.
    """
    report = replace(report, costs=tuple(costs))
    failed = failed_costs(report.checks)
    ratio = cost_ratio(failed)
    if ratio is None:
        remarks = () if costs else ("Nothing is quantised: no layer's cost was measured.",)
        return replace(report, remarks=(*report.remarks, *remarks))
    about = {PARTS.get(check.part, "") for check in failed}
    concerned = [each for each in costs if len(about) > 1 or about <= {"", each.part}]
    excluded = to_exclude(concerned, ratio)
    if not excluded:
        remark = "Leaving out single layers will not do: take a precision with more bits for vision or decoder."
        return replace(report, remarks=(*report.remarks, remark))
    share = sum(each.kl for each in excluded) / sum(each.kl for each in concerned)
    names, changes = ", ".join(each.name for each in excluded), recipe_changes(excluded, recipe)
    remark = (
        f"Quantised alone, {names} cost {short(100 * share):g}% of what all layers cost. "
        f"In the recipe: {', '.join(changes)}"
    )
    return replace(report, excluded=tuple(excluded), changes=changes, remarks=(*report.remarks, remark))


def _kl(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float(kl_divergences(ours, theirs).mean())

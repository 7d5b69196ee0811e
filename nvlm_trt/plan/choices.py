"""Other ways to run the same model: the cheapest that does what is asked, and what would make one do so."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from nvlm_trt.datasheets.datasheet import known_gpus, load_gpu
from nvlm_trt.decoder.trtllm_build_command import PAGED_CONTEXT_FIELDS, pages_context
from nvlm_trt.plan.deployment import Deployment
from nvlm_trt.plan.verdict import Verdict, judge
from nvlm_trt.plan.workload import Workload

TENSOR_PARALLEL = (1, 2, 4, 8)
"""Ranks that are looked at: the GPUs of one machine."""

PREFERENCE = ("bf16", "fp16", "fp8", "int8_wo", "int4_awq", "int8_sq", "int4_wo")
"""Decoder precisions, the one that is expected to lose least first.

NVIDIA's figures for Llama-2-70B (MMLU, "quantization in TRT-LLM"): fp8 -0.9 %, int4_awq -1.0 %, int8_sq -2.8 %. Of the
weight-only kinds there are none: 8 bits are put with fp8, 4 bits without calibration last. Not measured on NVLM-D.
"""

LEAST_TOKENS_PER_STEP = 2048
"""max_num_tokens is not looked at below this: prompts in smaller chunks leave the GPU idle."""

FRACTIONS = (0.85, 0.8, 0.75, 0.7, 0.6, 0.5)
"""Of kv_cache_fraction, looked at where the recipe's is larger."""

Change = tuple[str, Deployment]
"""What to change, in words, and the deployment with it."""


def choices(
    deployment: Deployment, workload: Workload, *, gpus: int | None, all_precisions: bool
) -> tuple[Verdict, ...]:
    """The deployment with every number of tensor-parallel ranks, judged.

    Args:
        deployment: Where the recipe's other fields and the GPU model come from.
        workload: The requests.
        gpus: GPUs that there are; None for any number.
        all_precisions: Every decoder precision as well, in the order of PREFERENCE; fp16 only if it is the recipe's
            own, as it costs what bf16 costs.
    """
    own = deployment.recipe.decoder_precision
    precisions = [name for name in PREFERENCE if name in (own, *_others(own))] if all_precisions else [own]
    return tuple(
        judge(deployment.changed(tp=tp, decoder_precision=precision), workload, gpus)
        for precision in precisions
        for tp in TENSOR_PARALLEL
    )


def cheapest(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The first one of those with the fewest GPUs that do all that is asked; None where none does."""
    return min((verdict for verdict in verdicts if verdict.ok), key=lambda each: each.deployment.gpus, default=None)


def cheaper(verdicts: Sequence[Verdict], chosen: Verdict | None, gpus: int | None) -> tuple[Verdict, str] | None:
    """The choice with the fewest GPUs, fewer than the cheapest has, that does what is asked after one smaller limit.

    Args:
        verdicts: The choices.
        chosen: The cheapest one that does what is asked as it is, if there is one.
        gpus: GPUs that there are; None for any number.

    Returns:
        The choice as it is, and what to change in words; None where there is none.
    """
    for verdict in sorted(verdicts, key=lambda each: each.deployment.gpus):
        if chosen is not None and verdict.deployment.gpus >= chosen.deployment.gpus:
            return None
        for kind in _smaller_limits(verdict.deployment, verdict.workload):
            for words, changed in kind:
                if judge(changed, verdict.workload, gpus).ok:
                    return verdict, words
    return None


def remedies(verdict: Verdict, gpus: int | None) -> tuple[str, ...]:
    """Single changes that make a deployment fit which does not, or do what is asked where it fits but falls short.

    Each was judged. The first of a kind is named: the fewest ranks, the precision that loses least, the largest batch.

    Args:
        verdict: The deployment as it is.
        gpus: GPUs that there are; None for any number. More ranks are looked at all the same.
    """
    if verdict.ok:
        return ()

    def enough(changed: Deployment, limit: int | None) -> bool:
        judged = judge(changed, verdict.workload, limit)
        return judged.ok if verdict.fits else judged.fits

    deployment, tp = verdict.deployment, verdict.deployment.recipe.tp
    more = [(f"tp {count}", deployment.changed(tp=count)) for count in TENSOR_PARALLEL if count > tp]
    found = next((change for change in more if enough(change[1], None)), None)
    named = [f"{found[0]}: {found[1].gpus} GPUs"] if found else []
    for kind in _changes(deployment, verdict.workload):
        named += [words for words, changed in kind if enough(changed, gpus)][:1]
    models = [load_gpu(name) for name in known_gpus() if name != deployment.gpu.name]
    able = [gpu.name for gpu in models if enough(dataclasses.replace(deployment, gpu=gpu), gpus)]
    return (*named, *([f"another GPU model: {', '.join(able)}"] if able else []))


def _changes(deployment: Deployment, workload: Workload) -> Iterator[list[Change]]:
    """Changes to the recipe by kind, those that cost least first."""
    recipe = deployment.recipe
    yield [(f"tp {tp}", deployment.changed(tp=tp)) for tp in reversed(TENSOR_PARALLEL) if tp < recipe.tp]
    if workload.concurrency > recipe.max_batch_size:
        batch = workload.concurrency
        yield [(f"max_batch_size {batch}", deployment.changed(max_batch_size=batch))]
    if deployment.precision.quantization.kv_cache_quant_algo is None:
        yield [_with_cache(deployment, name) for name in ("fp8", "int8")]
    elif deployment.refusals:
        yield [_with_cache(deployment, "auto")]
        yield [_with_cache(deployment, recipe.decoder_engine.kv_cache_precision)]
    yield [
        (f"decoder_precision {name}", deployment.changed(decoder_precision=name))
        for name in _others(recipe.decoder_precision)
    ]
    if recipe.vision_precision != "bf16":
        yield [("vision_precision bf16", deployment.changed(vision_precision="bf16"))]
    yield from _smaller_limits(deployment, workload)


def _smaller_limits(deployment: Deployment, workload: Workload) -> Iterator[list[Change]]:
    """Limits of the recipe that the workload does not need, by kind."""
    recipe = deployment.recipe
    yield [
        (f"max_batch_size {batch}: a smaller buffer of prompt tables", deployment.changed(max_batch_size=batch))
        for batch in _halves(recipe.max_batch_size, workload.concurrency)
    ]
    yield [
        (f"max_images {images}: fewer rows of a prompt table, fewer tiles", deployment.changed(max_images=images))
        for images in _halves(recipe.max_images, max(1, workload.images))
    ]
    yield [
        (f"decoder_engine.max_num_tokens {tokens}: fewer activations", _with_engine(deployment, max_num_tokens=tokens))
        for tokens in _halves(deployment.max_num_tokens, LEAST_TOKENS_PER_STEP)
    ]
    yield [
        (
            f"decoder_engine.kv_cache_fraction {fraction}: room for prompt tables",
            _with_engine(deployment, kv_cache_fraction=fraction),
        )
        for fraction in FRACTIONS
        if fraction < recipe.decoder_engine.kv_cache_fraction
    ]


def _with_cache(deployment: Deployment, name: str) -> Change:
    """A KV cache of that precision, and without what trtllm-build would refuse beside it."""
    words, changed = f"decoder_engine.kv_cache_precision {name}", _with_engine(deployment, kv_cache_precision=name)
    off = {field: False for field in PAGED_CONTEXT_FIELDS if getattr(deployment.recipe.decoder_engine, field)}
    if pages_context(changed.precision) or not off:
        return words, changed
    return f"{words} with {' and '.join(off)} false", _with_engine(changed, **off)


def _with_engine(deployment: Deployment, **fields: object) -> Deployment:
    return deployment.changed(decoder_engine=deployment.recipe.decoder_engine.model_copy(update=fields))


def _others(precision: str) -> list[str]:
    return [name for name in PREFERENCE if name not in (precision, "fp16")]


def _halves(value: int, least: int) -> Iterator[int]:
    while value // 2 >= least:
        value //= 2
        yield value

"""Stage `verify`: one engine directory of the cpu target against the torch reference, gate by gate."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nvlm_trt.decoder.engine_config import DecoderEngineConfig
from nvlm_trt.decoder.request import SamplingParams
from nvlm_trt.decoder.session_cpu import DecoderSession
from nvlm_trt.emulation.vision import VisionArithmetic
from nvlm_trt.engine_files import DECODER_CHECKPOINT, DECODER_CPU, TOKENIZER, VISION_CALIBRATION, VISION_CPU
from nvlm_trt.errors import EngineError
from nvlm_trt.eval.answer import EngineAnswerer
from nvlm_trt.eval.reference import ReferenceAnswerer
from nvlm_trt.local import LocalEngine
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.reference.decoder import DecoderReference
from nvlm_trt.model.tokenizer import NvlmTokenizer
from nvlm_trt.progress import Log
from nvlm_trt.recipe import BuildRecipe
from nvlm_trt.verify.answers import Tables, judge_answers
from nvlm_trt.verify.cases import Limits, Tiles, prompt_faults
from nvlm_trt.verify.gates import (
    ANSWER_GATES,
    DECODER_GATES,
    PROMPT_GATES,
    SHARDED_GATES,
    VISION_GATES,
    Check,
    answer_gates,
    failed_costs,
    judge_parts,
)
from nvlm_trt.verify.golden import (
    Floats,
    Golden,
    answer_figures,
    closeness,
    decoder_figures,
    forced_logits,
    make_goldens,
    reference_logits,
    with_excess,
    worst,
)
from nvlm_trt.verify.layer_errors import LayerCost, LayerError
from nvlm_trt.verify.layers_cpu import decoder_layers, vision_layers
from nvlm_trt.verify.report import VerifyReport
from nvlm_trt.verify.sensitivity import layer_costs, with_advice
from nvlm_trt.verify.sharded import precision_distance
from nvlm_trt.verify.shown import Shown, right_tables, show
from nvlm_trt.verify.subjects import ReferenceSubject, SessionSubject
from nvlm_trt.verify.task import answered, task_figures, task_options, task_samples
from nvlm_trt.verify.yardstick import layer_roundings, reduced_decoder
from nvlm_trt.vision.runner import VisionRunner
from nvlm_trt.vision.scales import CPU_WEIGHT_LIMIT

Figures = dict[str, float]


def verify_engine(
    engine: Path,
    checkpoint_dir: Path,
    recipe: BuildRecipe,
    *,
    log: Log = lambda _line: None,
    work: Path | None = None,
    sensitivity: bool = False,
) -> VerifyReport:
    """Compare tokenizer, vision, decoder, whole engine and converted ranks with the reference.

    Args:
        engine: The engine directory, all of whose parts are built.
        checkpoint_dir: The checkpoint that it was built from.
        recipe: The recipe as built: precisions, limits, bounds and the amount of work.
        log: Told what is being compared.
        work: Where the answers to the recipe's task are kept, for a run that is started again; None keeps none.
        sensitivity: Measure what each layer costs when it is quantised alone, also if no gate on that fails.

    Raises:
        EngineError: a part is missing, or the engine is too small for the shortest question, or for one image.
        CheckpointError: the checkpoint cannot be read.
        UserError: the recipe's task cannot be read, or the reference cannot answer all of it.
        FaultError: a rank of the sharded run failed.
    """
    if recipe.target != "cpu":
        raise EngineError("only engines of the cpu target can be verified here", seen=recipe.target)
    samples = task_samples(recipe)
    checkpoint = Checkpoint.open(checkpoint_dir)
    tokenizer = NvlmTokenizer.load(engine / TOKENIZER)
    run = _Run(engine, checkpoint, recipe, DecoderEngineConfig.read(engine / DECODER_CPU))
    shown = show(checkpoint.config, tokenizer, run.limits, recipe.verify_prompts, samples)
    faults = prompt_faults(checkpoint.config, tokenizer, shown.cases)
    remarks = [*faults]
    figures: dict[str, Figures] = {"prompt": {"faults": len(faults), "cases": len(shown.cases)}}

    log("vision: tiles through the engine and the reference")
    expected = shown.tables(VisionArithmetic(checkpoint, "fp32").tables, control=False)
    seen = shown.tables(run.tables, control=True)
    figures["vision"] = run.compare_vision(shown, expected, seen)
    log("decoder: logits after the same tokens")
    reference = DecoderReference(checkpoint)
    goldens = make_goldens(reference, shown.everything, right_tables(expected), recipe.verify_tokens)
    own = goldens[: len(shown.cases)]
    layers = run.layer_errors(own, reference)
    session = run.session(goldens)
    figures["decoder"] = run.compare_decoder(session, own)
    log("answers: prompts with images, and with other images in their place")
    asked = shown.questions(goldens, tokenizer.eos_id, expected, seen)
    found, more = judge_answers(SessionSubject(session, run.decoder.block_size), ReferenceSubject(reference), asked)
    figures |= found
    remarks += more
    log("answer: the whole engine")
    with LocalEngine(engine) as local:
        figures["answer"] = _compare_answers(local, own, tokenizer.eos_id)
        if samples:
            log(f"task: {len(samples)} samples, each answered by the engine and by the reference")
            options = task_options(recipe)
            ours = answered("engine", EngineAnswerer(local, options), samples, log, work)
            whole = ReferenceAnswerer(checkpoint_dir, options=options, recipe=recipe, decoder=reference)
            theirs = answered("reference", whole, samples, log, work)
            figures["task"], more = task_figures(ours, theirs)
            remarks += more
    log(f"sharded: {recipe.tp * recipe.pp} ranks over gloo")
    prompts = [(golden.ids, golden.table) for golden in own]
    figures["sharded"] = precision_distance(checkpoint, engine / DECODER_CHECKPOINT, prompts=prompts).figures()
    precisions = {"vision": recipe.vision_precision, "decoder": recipe.decoder_precision}
    checks = tuple(_judge_all(figures, recipe))
    report = VerifyReport(precisions, checks, figures, tuple(remarks), tuple(layers))
    if not failed_costs(checks) and not sensitivity:
        return report
    log("sensitivity: each layer quantised alone")
    return with_advice(report, run.costs(goldens, tokenizer.eos_id, reference), recipe)


@dataclass(frozen=True, slots=True)
class _Run:
    """One engine directory and what it is compared with."""

    engine: Path
    checkpoint: Checkpoint
    recipe: BuildRecipe
    decoder: DecoderEngineConfig

    @property
    def limits(self) -> Limits:
        """Of prompts that leave room for the tokens to compare."""
        room = self.decoder.max_seq_len - self.recipe.verify_tokens
        return Limits.of(self.recipe, room)

    def tables(self, blocks: Sequence[Tiles]) -> list[Floats | None]:
        """Prompt tables by the compiled vision encoder."""
        runner = VisionRunner(self.engine / VISION_CPU, threads=self.recipe.cpu_threads)
        return [runner.encode(tiles).reshape(-1, runner.hidden_size) if len(tiles) else None for tiles in blocks]

    def compare_vision(self, shown: Shown, expected: Sequence[Tables | None], seen: Sequence[Tables | None]) -> Figures:
        """Figures of the prompt tables of the cases."""
        precision, blocks = self.recipe.vision_precision, [case.tiles for case in shown.cases]
        reduced: list[Floats | None] = [None] * len(blocks)
        if precision != "fp32":
            calibration = self.engine / VISION_CALIBRATION
            rounding = VisionArithmetic(self.checkpoint, precision, calibration, weight_limit=CPU_WEIGHT_LIMIT)
            reduced = rounding.tables(blocks)
        figures, yardsticks = [], []
        for theirs, ours, rounded in zip(expected, seen, reduced, strict=False):
            if theirs is not None and ours is not None:
                figures.append(closeness(ours.right, theirs.right))
                if rounded is not None:
                    yardsticks.append(closeness(rounded, theirs.right))
        return with_excess(figures, yardsticks)

    def layer_errors(self, goldens: Sequence[Golden], reference: DecoderReference) -> list[LayerError]:
        """Of both engines, each layer given what enters it in the reference: on a prompt, and on one of its tiles."""
        golden = max(goldens, key=lambda each: len(each.case.tiles))
        embedded = reference.embed(golden.ids, golden.table)
        directory, threads = self.engine / DECODER_CPU, self.recipe.cpu_threads
        errors = decoder_layers(directory, self.decoder, self.checkpoint, embedded, threads)
        if not len(golden.case.tiles):
            return errors
        precision, tile = self.recipe.vision_precision, golden.case.tiles[:1]
        return [*vision_layers(self.engine / VISION_CPU, precision, self.checkpoint, tile, threads), *errors]

    def costs(self, goldens: Sequence[Golden], stop_id: int, reference: DecoderReference) -> list[LayerCost]:
        """What each layer costs when it is quantised alone."""
        return layer_costs(
            self.checkpoint,
            reference,
            goldens,
            stop_id,
            vision=self.recipe.vision_precision,
            calibration=self.engine / VISION_CALIBRATION,
            roundings=layer_roundings(self.recipe.decoder_precision),
            exclude=self.recipe.exclude_layers,
            weight_limit=CPU_WEIGHT_LIMIT,
        )

    def session(self, goldens: Sequence[Golden]) -> DecoderSession:
        """The compiled decoder with room for the longest request and its answer."""
        longest = max(len(golden.ids) + len(golden.steps) for golden in goldens)
        blocks = -(-longest // self.decoder.block_size)
        recipe = self.recipe
        kept = recipe.cpu_engine.kv_cache_precision
        return DecoderSession(self.engine / DECODER_CPU, self.decoder, blocks, recipe.cpu_threads, kept)

    def compare_decoder(self, session: DecoderSession, goldens: Sequence[Golden]) -> Figures:
        """Figures of the decoder by itself, given the reference's tables and tokens."""
        recipe = self.recipe
        reduced = reduced_decoder(self.checkpoint, recipe.decoder_precision, recipe.exclude_layers)
        figures, yardsticks = [], []
        for golden in goldens:
            logits = forced_logits(session, golden.ids, golden.table, golden.answer, self.decoder.block_size)
            figures.append(decoder_figures(golden.steps, list(logits)))
            if reduced is not None:
                rounded = reference_logits(reduced, golden.ids, golden.table, golden.answer)
                yardsticks.append(decoder_figures(golden.steps, list(rounded)))
        return with_excess(figures, yardsticks)


def _compare_answers(local: LocalEngine, goldens: Sequence[Golden], eos_id: int) -> Figures:
    """Every question asked as a user asks it: encoded images in, tokens out."""
    figures = []
    for golden in goldens:
        images = []
        for picture in golden.case.pictures:
            encoded = io.BytesIO()
            picture.save(encoded, "PNG")
            images.append(encoded.getvalue())
        answer = local.generate(golden.case.question, SamplingParams(len(golden.steps)), images=images)
        until_stop = next((i for i, token in enumerate(golden.answer) if token == eos_id), len(golden.steps))
        same = answer.input_ids == golden.case.prompt.input_ids
        differing = answer_figures(golden.steps[:until_stop], answer.output_ids)
        figures.append({**differing, "prompts_differing": 0.0 if same else 1.0})
    return worst(figures)


def _judge_all(figures: Mapping[str, Figures], recipe: BuildRecipe) -> list[Check]:
    exact = recipe.vision_precision == recipe.decoder_precision == "fp32"
    gates = {
        "prompt": PROMPT_GATES,
        "vision": VISION_GATES[recipe.vision_precision],
        "decoder": DECODER_GATES[recipe.decoder_precision],
        "answer": ANSWER_GATES[exact],
        **answer_gates(recipe),
        "sharded": SHARDED_GATES,
    }
    return judge_parts(gates, figures, recipe.gates, without=() if recipe.gates.task else ("task",))

"""Cut the run of a vision graph into slices, between which others may compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import openvino as ov

RESIDUAL: Final = "/residual"
"""How the graph names what a layer's attention and its MLP add up to (`nvlm_trt.vision.graph`)."""


LEAST_WORK: Final = 3e9
"""Floating-point operations of a slice at least: milliseconds of two cores, beside which a pause (0.3 ms of processor
time, measured) hardly counts. A tile of nvlm-d-mini has less, and stays whole; a layer of InternViT-300M has ten times
that."""


class _Pause(ov.Op):  # type: ignore[misc]
    """Passes a tensor on unchanged, and calls back meanwhile.

    Args:
        call: Called by the thread that runs the graph.
        inputs: The tensor.
    """

    def __init__(self, call: Callable[[], None], inputs: Sequence[Any]) -> None:
        super().__init__(self)
        self._call = call
        self.set_arguments(list(inputs))
        self.constructor_validate_and_infer_types()

    def validate_and_infer_types(self) -> None:
        self.set_output_type(0, self.get_input_element_type(0), self.get_input_partial_shape(0))

    def clone_with_new_inputs(self, inputs: Sequence[Any]) -> _Pause:
        return _Pause(self._call, inputs)

    def evaluate(self, outputs: Sequence[Any], inputs: Sequence[Any]) -> bool:
        inputs[0].copy_to(outputs[0])
        self._call()
        return True

    def has_evaluate(self) -> bool:
        return True


def pause_between_slices(model: ov.Model, call: Callable[[], None]) -> int:
    """Call back after every layer's attention and after its MLP; results stay the same, bit for bit.

    Args:
        model: The vision graph for tiles of a given size, changed in place. Where a slice would be of less than
            `LEAST_WORK`, several are one.
        call: Called by the thread that runs the graph. An exception of it ends the run.

    Returns:
        Slices that a run has now.
    """
    slices, work = 1, 0.0
    for operation in model.get_ordered_ops():
        if not operation.get_friendly_name().endswith(RESIDUAL):
            continue
        rows, width = operation.get_output_shape(0)
        work += 12 * rows * width**2  # two for each of a layer's 12 x width x width weights, of which this is one half
        if work >= LEAST_WORK:
            _pause(operation.output(0), call)
            slices, work = slices + 1, 0.0
    return slices


def _pause(output: ov.Output, call: Callable[[], None]) -> None:
    readers = list(output.get_target_inputs())
    paused = _Pause(call, [output]).output(0)
    for reader in readers:
        reader.replace_source_output(paused)

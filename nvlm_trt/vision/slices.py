"""Cut the run of a vision graph into slices, between which others may compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import openvino as ov

RESIDUAL: Final = "/residual"
"""How the graph names what a layer's attention and its MLP add up to (`nvlm_trt.vision.graph`)."""


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
        model: The vision graph, changed in place.
        call: Called by the thread that runs the graph. An exception of it ends the run.

    Returns:
        Slices that a run has now.
    """
    ends = [operation for operation in model.get_ordered_ops() if operation.get_friendly_name().endswith(RESIDUAL)]
    for operation in ends:
        output = operation.output(0)
        readers = list(output.get_target_inputs())
        paused = _Pause(call, [output]).output(0)
        for reader in readers:
            reader.replace_source_output(paused)
    return len(ends) + 1

"""First tokens of requests that come at once: an answer of one token has no pieces, so a server is seen as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from nvlm_trt.bench.record import CaseRecord
from nvlm_trt.bench.scenarios.base import Scenario, Scene
from nvlm_trt.bench.scenarios.scale import PROMPT_TOKENS, by_size
from nvlm_trt.bench.workload import Question

TILES: Final = 3
"""Of the images: two and a thumbnail, or as many as an image has at most where that is fewer."""


def first(sizes: Sequence[int]) -> Scenario:
    """Texts, images that nobody has seen, and one image that everybody has, by how many come at once."""

    def measure(scene: Scene, size: int) -> Iterator[CaseRecord]:
        tiles = max(count for count in scene.bounds.grids if count <= TILES)
        scene.image_tokens(tiles)
        known = scene.picture(tiles)
        scene.ask(Question(scene.digits(), (known,), max_tokens=1))
        cases: dict[str, Callable[[], Question]] = {
            "text": lambda: scene.text(PROMPT_TOKENS, 1),
            "new image": lambda: scene.about(tiles),
            "known image": lambda: Question(scene.digits(), (known,), max_tokens=1),
        }
        for case, question in cases.items():
            for _ in range(scene.repeats):
                yield scene.together("first", case, [question() for _ in range(size)], size)

    return by_size(sizes, measure, together=True)

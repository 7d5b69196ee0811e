"""The published data sets by name, and the figures that were published for NVLM-D-72B."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from nvlm_trt.errors import UserError
from nvlm_trt.eval.adapters.choice import ai2d, ai2d_no_mask, mathvista, mmmu, realworldqa
from nvlm_trt.eval.adapters.folder import DataFolder
from nvlm_trt.eval.adapters.reading import ocrbench
from nvlm_trt.eval.adapters.vqa import chartqa, docvqa, textvqa, vqav2
from nvlm_trt.eval.tasks import Sample, check
from nvlm_trt.jsonl import FieldError
from nvlm_trt.model.prompt import IMAGE_PLACEHOLDER


@dataclass(frozen=True, slots=True)
class Published:
    """Figures of NVLM-D-72B from its model card, in percent; that of AI2D with mask is the paper's (arXiv 2409.11402).

    Attributes:
        split: What they were measured on.
        hugging_face: With the released code; None where that was not published.
        megatron: With Megatron-LM.
    """

    split: str
    hugging_face: float | None
    megatron: float

    @property
    def nearest(self) -> float:
        """The figure to compare with first: with the released code, else with Megatron-LM."""
        return self.megatron if self.hugging_face is None else self.hugging_face


@dataclass(frozen=True, slots=True)
class Dataset:
    """A published data set.

    Attributes:
        title: Its name.
        read: Its samples, from a folder.
        published: The figures to compare with.
        parts: How many categories the figures are of, where a folder may hold some of them alone.
    """

    title: str
    read: Callable[[DataFolder], Iterator[Sample]]
    published: Published
    parts: int = 1

    def published_for(self, samples: Iterable[Sample]) -> Published | None:
        """The figures, where these samples are of all parts."""
        return self.published if len({sample.category for sample in samples}) >= self.parts else None


DATASETS: Final[Mapping[str, Dataset]] = {
    "docvqa": Dataset("DocVQA", docvqa, Published("test", 92.6, 92.6)),
    "chartqa": Dataset("ChartQA", chartqa, Published("test", 86.0, 86.0), parts=2),
    "textvqa": Dataset("TextVQA", textvqa, Published("val", 82.6, 82.1)),
    "vqav2": Dataset("VQAv2", vqav2, Published("test-dev", 85.4, 85.4)),
    "ocrbench": Dataset("OCRBench", ocrbench, Published("test, 852 and 853 of 1000 points", 85.2, 85.3), parts=10),
    "ai2d": Dataset("AI2D", ai2d, Published("test, with mask", None, 85.2)),
    "ai2d_no_mask": Dataset("AI2D without mask", ai2d_no_mask, Published("test, no mask", 94.2, 94.2)),
    "realworldqa": Dataset("RealWorldQA", realworldqa, Published("test", 69.5, 69.7)),
    "mathvista": Dataset("MathVista", mathvista, Published("testmini", 65.2, 65.2)),
    "mmmu": Dataset("MMMU", mmmu, Published("val", 58.7, 59.7), parts=30),
}


def read_dataset(name: str, data: Path, extracted: Path, limit: int | None = None) -> tuple[Sample, ...]:
    """The samples of a published data set.

    Args:
        name: A key of DATASETS.
        data: The folder that the user has.
        extracted: Where images go that lie inside parquet files.
        limit: How many to read, from the first one on; None for all.

    Raises:
        UserError: there is no such data set, its files are not in the folder, or they are of another format; or naming
            file and entry of the first sample that `check` refuses.
    """
    if name not in DATASETS:
        raise UserError("there is no such data set", seen=name, expected=" | ".join(DATASETS))
    dataset, folder = DATASETS[name], DataFolder(data, extracted)
    samples: dict[str, Sample] = {}
    try:
        for sample in islice(dataset.read(folder), limit):
            check(sample, samples)
            if IMAGE_PLACEHOLDER in sample.question:
                raise FieldError(f"question: seen {IMAGE_PLACEHOLDER}, expected none: the image goes in front")
            samples[sample.id] = sample
    except FieldError as error:
        raise UserError(f"{dataset.title}: {folder.place}: {error}", fix="mend this entry") from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, SyntaxError, OSError) as error:
        raise UserError(
            f"{dataset.title}: {folder.place} is not as its publisher writes it",
            seen=f"{type(error).__name__}: {error}",
            expected=" ".join((dataset.read.__doc__ or "").split()),
        ) from None
    if not samples:
        raise UserError(f"{dataset.title}: the data set is empty", seen=data)
    return tuple(samples.values())

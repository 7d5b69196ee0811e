"""Text in images: OCRBench."""

from __future__ import annotations

from collections.abc import Iterator

from nvlm_trt.eval.adapters.folder import DataFolder, read_json, texts
from nvlm_trt.eval.tasks import Metric, Sample

FORMULAS = "HME100k"
"""The part of OCRBench whose answers are compared with their case and without spaces."""


def ocrbench(data: DataFolder) -> Iterator[Sample]:
    """OCRBench: ``OCRBench.json`` and the images, or the publisher's parquet file; categories are its ten types.

    An entry: dataset_name, image_path, question, answers (a text or several), type. A row of the parquet file: dataset,
    image, question, answer, question_type.
    """
    if data.has("*.parquet"):
        rows = (
            (
                data.extract(row["image"], str(index)),
                row["question"],
                texts(row["answer"], "answer"),
                row["dataset"],
                row["question_type"],
            )
            for index, row in enumerate(data.parquet("test-*.parquet", "*.parquet"))
        )
    else:
        file = data.find_one("OCRBench.json")
        rows = (
            (
                data.image(row["image_path"]),
                row["question"],
                texts(row["answers"], "answers"),
                row["dataset_name"],
                row["type"],
            )
            for row in data.rows(file, read_json(file))
        )
    for index, (image, question, answers, part, kind) in enumerate(rows):
        metric: Metric = "substring_formula" if part == FORMULAS else "substring"
        yield Sample(str(index), (image,), question, (), answers, metric, category=kind)

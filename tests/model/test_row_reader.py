"""Reading a checkpoint from end to end: the same values as one read at a time, every byte once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from nvlm_trt.decoder.convert import convert_decoder
from nvlm_trt.errors import CheckpointError
from nvlm_trt.model.checkpoint import Checkpoint
from nvlm_trt.model.file_writer import FileWriter
from nvlm_trt.model.row_reader import RowReader, read_ahead
from nvlm_trt.model.safetensors_stream import as_bytes
from nvlm_trt.model.synthetic import tiny_spec, write_synthetic


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory = tmp_path_factory.mktemp("rows") / "checkpoint"
    write_synthetic(directory, tiny_spec(tile_size=28, vision_layers=1, decoder_layers=2, max_shard_bytes=100_000))
    return Checkpoint.open(directory)


def test_rows_are_those_that_a_single_read_gives(checkpoint: Checkpoint) -> None:
    with RowReader(checkpoint) as reader:
        for name, info in checkpoint.tensors.items():
            start, stop = info.shape[0] // 3, info.shape[0] // 3 + 1
            assert reader.rows(name, start, stop).equal(checkpoint.read_rows(name, start, stop)), name
            assert reader.rows(name, 0, info.shape[0]).equal(checkpoint.read(name)), name


def test_rows_are_sent_to_a_file_as_they_are_stored(checkpoint: Checkpoint, tmp_path: Path) -> None:
    name = "language_model.model.embed_tokens.weight"
    with RowReader(checkpoint) as reader, FileWriter(tmp_path / "file") as file:
        reader.send(name, 5, 9, file)
        reader.send(name, 0, 2, file)
    sent = torch.cat([checkpoint.read_rows(name, 5, 9), checkpoint.read_rows(name, 0, 2)])
    assert (tmp_path / "file").read_bytes() == as_bytes(sent).tobytes()


def test_a_block_holds_until_the_one_after_the_next_is_read(checkpoint: Checkpoint) -> None:
    name = "language_model.model.embed_tokens.weight"
    with RowReader(checkpoint) as reader:
        first = reader.rows(name, 0, 4)
        kept = first.clone()
        second = reader.rows(name, 4, 8)
        assert first.equal(kept)
        assert second.equal(checkpoint.read_rows(name, 4, 8))
        assert reader.rows(name, 8, 12).data_ptr() == first.data_ptr(), "the same memory again"


def test_an_unknown_tensor_and_a_shard_that_lost_its_end_are_the_checkpoints_fault(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "checkpoint", tiny_spec(tile_size=28, max_shard_bytes=None))
    checkpoint = Checkpoint.open(tmp_path / "checkpoint")
    name = max(checkpoint.tensors, key=lambda each: checkpoint.tensors[each].nbytes)
    with RowReader(checkpoint) as reader:
        with pytest.raises(CheckpointError, match="no such tensor"):
            reader.rows("nothing", 0, 1)
        reader.rows(name, 0, 1)
        os.truncate(checkpoint.path / "model.safetensors", 4096)
        with pytest.raises(CheckpointError, match="shorter than its header says"):
            reader.rows(name, 0, checkpoint.tensors[name].shape[0])
        with (
            FileWriter(tmp_path / "file") as file,
            pytest.raises(CheckpointError, match="shorter than its header says"),
        ):
            reader.send(name, 0, checkpoint.tensors[name].shape[0], file)


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (4, 1), (2, 2)])
def test_a_conversion_reads_every_byte_of_the_decoder_once_for_all_ranks(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tp: int, pp: int
) -> None:
    rows = RowReader.rows
    read: list[int] = []

    def counted(self: RowReader, name: str, start: int, stop: int) -> torch.Tensor:
        block = rows(self, name, start, stop)
        read.append(block.nbytes)
        return block

    monkeypatch.setattr(RowReader, "rows", counted)
    convert_decoder(checkpoint, tmp_path, tp=tp, pp=pp)
    decoder = [info for name, info in checkpoint.tensors.items() if name.startswith("language_model.")]
    assert sum(read) == sum(info.nbytes for info in decoder)


def test_what_is_read_ahead_comes_in_order_and_an_error_comes_with_it() -> None:
    assert list(read_ahead(iter([3, 1, 2]))) == [3, 1, 2]

    def failing() -> object:
        yield 1
        raise CheckpointError("no more")

    ahead = read_ahead(iter(failing()))
    assert next(ahead) == 1
    with pytest.raises(CheckpointError, match="no more"):
        next(ahead)

"""Bytes that changed in a checkpoint: seen with ``--verify-checkpoint``, and only then."""

import random
import shutil
import zipfile

import pytest
from torch.distributed.checkpoint import FileSystemReader

from megatron_cod.checkpoint import checksums
from megatron_cod.checkpoint.directory import damage
from megatron_cod.checkpoint.events import read_events
from tests.distributed.launch import run_training_ranks
from tests.distributed.runs import losses, succeed

PP2 = ["--pipeline-model-parallel-size", "2"]
LAST = "iter_0000006"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny):
    """A run of 8 steps that saves every third, as it was after the sixth; and its losses."""
    folder = tmp_path_factory.mktemp("whole")
    save = ["--save", str(folder / "run"), "--save-interval", "3"]
    succeed(2, [*tiny, *PP2, *save])
    found = losses(folder / "run")
    shutil.rmtree(folder / "run" / "iter_0000008")
    (folder / "run" / "latest_checkpointed_iteration.txt").write_text("6")
    return folder / "run", found[0]


@pytest.fixture()
def run(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    return tmp_path / "run"


def pieces(checkpoint):
    """(name, file, offset, length) of all pieces."""
    stored = FileSystemReader(checkpoint).read_metadata().storage_data
    return [
        (str(key.fqn), checkpoint / piece.relative_path, piece.offset, piece.length) for key, piece in stored.items()
    ]


def data_of(path, offset, length):
    """Where the largest member of a piece lies in its file: first byte and length."""
    content = path.read_bytes()[offset : offset + length]
    (path.parent / "piece.zip").write_bytes(content)
    with zipfile.ZipFile(path.parent / "piece.zip") as archive:
        member = max(archive.infolist(), key=lambda one: one.file_size)
        start = content.index(archive.read(member), member.header_offset)
    (path.parent / "piece.zip").unlink()
    return offset + start, member.file_size


def flip(path, place):
    with path.open("r+b") as file:
        file.seek(place)
        old = file.read(1)
        file.seek(place)
        file.write(bytes([old[0] ^ 0x20]))


def spoil_a_weight(checkpoint):
    """The upper bits of the mantissa of some embeddings."""
    _, path, offset, length = next(piece for piece in pieces(checkpoint) if "word_embeddings" in piece[0])
    start, size = data_of(path, offset, length)
    for place in range(start + 2, start + size, 64):
        flip(path, place)


def test_detects_one_changed_byte(run):
    checkpoint, draw = run / LAST, random.Random(7)
    assert damage(checkpoint, verify=True) is None
    found = pieces(checkpoint)
    some = draw.sample(found, 20)
    assert len(found) > 50
    for _, path, offset, length in some:
        start, size = data_of(path, offset, length)
        place = start + draw.randrange(size)
        flip(path, place)
        assert damage(checkpoint) is None  # the files are all there
        why = damage(checkpoint, verify=True)
        assert why and f"{path.name} holds bytes that have changed" in why and f"the {length} from {offset} on" in why
        flip(path, place)
    assert damage(checkpoint, verify=True) is None


@pytest.mark.slow_except("0", "30")
@pytest.mark.parametrize("place", [0, 30, -22])
def test_detects_damaged_archive(run, place):
    """Its head, a name, its end; of a file beside the pieces as well, such as older versions write."""
    _, path, offset, length = pieces(run / LAST)[3]
    other = run / LAST / "common.pt"
    other.write_bytes(path.read_bytes()[offset : offset + length])
    assert damage(run / LAST, verify=True) is None
    flip(path, offset + place % length)
    assert f"{path.name} holds bytes that have changed" in str(damage(run / LAST, verify=True))
    flip(path, offset + place % length)
    flip(other, place % length)
    assert "common.pt holds bytes that have changed" in str(damage(run / LAST, verify=True))


@pytest.mark.slow
def test_damaged_checkpoint_in_save_is_skipped(whole, run, tiny):
    spoil_a_weight(run / LAST)
    save = ["--save", str(run), "--load", str(run), "--save-interval", "3", "--verify-checkpoint"]
    ended = succeed(2, [*tiny, *PP2, *save])
    assert "holds bytes that have changed" in ended[0].output and "resuming from iter_0000003" in ended[0].output
    assert (run / f"damaged-{LAST}").is_dir()
    assert [one["name"] for one in read_events(run) if one["event"] == "damaged checkpoint"] == [LAST]
    assert losses(run)[0] == whole[1]


@pytest.mark.slow
def test_losses_differ_without_verification(whole, run, tiny):
    """What there is to be seen, and what a check that looks at nothing would let through."""
    spoil_a_weight(run / LAST)
    succeed(2, [*tiny, *PP2, "--save", str(run), "--load", str(run), "--save-interval", "3"])
    found = losses(run)[0]
    assert {step for step in found if found[step] != whole[1][step]} == {7, 8}


def test_rejects_damaged_checkpoint_elsewhere(run, tiny, tmp_path):
    spoil_a_weight(run / LAST)
    load = ["--load", str(run), "--save", str(tmp_path / "other"), "--save-interval", "3"]
    for more in ([], ["--dry-run", "--save", str(run)]):
        ended = run_training_ranks(2, [*tiny, *PP2, *load, *more, "--verify-checkpoint"])
        assert ended[0].code == 2
        line = ended[0].output.strip().splitlines()[-1]
        assert line.startswith("error: checkpoint ") and "holds bytes that have changed" in line
    assert (run / LAST).is_dir()


def test_one_thread_finds_the_same_as_many(run, monkeypatch):
    spoil_a_weight(run / LAST)
    found = damage(run / LAST, verify=True)
    monkeypatch.setattr(checksums, "_THREADS", 1)
    assert found and damage(run / LAST, verify=True) == found

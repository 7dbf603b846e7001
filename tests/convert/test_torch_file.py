"""Files of torch.save without torch: what is written is read, and what could run code or lies about itself is refused."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from psynth_jax.convert.torch_file import MOST_BYTES, read_torch_file, write_torch_file
from psynth_jax.errors import CheckpointError

TENSORS = {
    "net.0.weight": np.arange(12, dtype=np.float32).reshape(4, 3),
    "net.0.bias": np.array([0.5, -1, 2, np.pi], np.float32),
    "scalar": np.float32(3).reshape(()),
    "nothing": np.zeros((0, 3), np.float32),
}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_torch_file(tmp_path / "cache_mapper.pt", TENSORS)
    return tmp_path / "cache_mapper.pt"


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path: Path, **changed: bytes | None) -> Path:
    """Write the archive again, with some members (by their last name) replaced or left out."""
    found = members(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in found.items():
            new = changed.get(name.rsplit("/", 1)[-1].replace(".", "_"), content)
            if new is not None:
                archive.writestr(name, new)
    return path


def assert_refused(path: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        read_torch_file(path)
    assert "cache_mapper.pt" in str(caught.value) and "\n" not in str(caught.value)


def test_comes_back(written: Path) -> None:
    found = read_torch_file(written)
    assert list(found) == list(TENSORS)
    for name, array in TENSORS.items():
        assert found[name].dtype == np.float32 and np.array_equal(found[name], array) and found[name].shape == array.shape


class TestWithTorch:
    pytestmark = pytest.mark.torch

    @pytest.fixture
    def torch(self) -> Any:
        return pytest.importorskip("torch", reason="torch is not installed: its own files are compared with")

    def test_torch_reads_ours(self, torch: Any, written: Path) -> None:
        found = torch.load(written, weights_only=True)
        assert type(found) is OrderedDict and list(found) == list(TENSORS)
        for name, array in TENSORS.items():
            assert np.array_equal(found[name].numpy(), array) and tuple(found[name].shape) == array.shape

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
    def test_we_read_torchs(self, torch: Any, tmp_path: Path, dtype: str) -> None:
        layer = torch.nn.Linear(5, 3).to(getattr(torch, dtype))
        whole = torch.arange(20.0).reshape(4, 5)
        state = layer.state_dict()  # an OrderedDict with a note of its own
        state["view"] = whole.T[1:3]  # neither whole nor contiguous
        state["parameter"] = layer.weight
        torch.save(state, tmp_path / "x.pt")
        found = read_torch_file(tmp_path / "x.pt")
        assert np.array_equal(found["view"], whole.T[1:3].numpy())
        for name in ("weight", "bias", "parameter"):
            expected = (state[name] if name != "parameter" else layer.weight).detach()
            assert found[name].dtype.name == dtype
            assert np.array_equal(found[name].astype(np.float64), expected.to(torch.float64).numpy())

    def test_the_old_format_is_named(self, torch: Any, tmp_path: Path) -> None:
        torch.save({}, tmp_path / "cache_mapper.pt", _use_new_zipfile_serialization=False)
        assert_refused(tmp_path / "cache_mapper.pt", "not a whole file of torch.save")


class Runs:
    """Something whose pickle runs a command when it is read in the usual way."""

    def __init__(self, function: Any, *arguments: Any):
        self.called = function, arguments

    def __reduce__(self) -> Any:
        return self.called


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_runs_something_is_refused_and_runs_nothing(written: Path, tmp_path: Path, protocol: int) -> None:
    flag = tmp_path / "it ran"
    harmful = [
        Runs(os.system, f"touch '{flag}'"),
        Runs(eval, f"open({str(flag)!r}, 'w').close()"),
        Runs(getattr, OrderedDict, "fromkeys"),
        Runs(OrderedDict, [("a", 1)]),
        {"fine": Runs(flag.touch)},
    ]
    for thing in harmful:
        assert_refused(rewrite(written, data_pkl=pickle.dumps(thing, protocol)), "nothing of it was run")
    assert not flag.exists()


# Written by hand, because no pickler writes them: a method of a stand-in, its class, and state for it.
OPCODES = {
    "a name inside of a known one": b"ctorch._utils\n_rebuild_tensor_v2.__call__.__globals__\n.",
    "the class of a stand-in": b"\x80\x04\x8c\x0ctorch._utils\x8c\x1c_rebuild_tensor_v2.__class__\x93.",
    "state for a stand-in": b"ctorch._utils\n_rebuild_tensor_v2\n}(X\x01\x00\x00\x00aK\x01ub.",
    "attributes of a stand-in": b"ctorch._utils\n_rebuild_tensor_v2\nN}(X\x08\x00\x00\x00__call__K\x01u\x86b.",
    "a stand-in instead of a dict": b"ctorch\nFloatStorage\n.",
    "a storage of nothing": b"K\x01Q.",
    "a number": b"K\x01.",
    "an extension": b"\x82\x01.",
    "a memo of billions of entries behind a value": b"}X\x01\x00\x00\x00ar\xff\xff\xff\x07K\x01s.",
    "a key whose hash takes forever": b"})" + b"0".join([b"2\x86"] * 60).replace(b"0", b"") + b"K\x01s.",
    "a set": b"\x8f.",
    "a list": b"].",
    "a value that is no tensor": b"}X\x01\x00\x00\x00aX\x01\x00\x00\x00bs.",
    "nothing": b"",
}


@pytest.mark.parametrize("spelled", OPCODES.values(), ids=list(OPCODES))
def test_pickles_that_no_pickler_writes(written: Path, spelled: bytes) -> None:
    assert_refused(rewrite(written, data_pkl=spelled), "nothing of it was run")


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(b"J" + value.to_bytes(4, "little", signed=True) for value in values) + b"t"


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (4, 4), (4, 1)),
        (9, (4,), (1,)),
        (-1, (2,), (1,)),
        (0, (2**31 - 1, 2**31 - 1), (0, 0)),
        (0, (3,), (1, 1)),
        (0, (3,), (-1,)),
    ],
)
def test_a_tensor_beyond_its_storage(written: Path, offset: int, size: Any, stride: Any) -> None:
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x0ctQ"
    described = b"(" + storage + b"J" + offset.to_bytes(4, "little", signed=True) + numbers(*size) + numbers(*stride)
    spelled = b"\x80\x02}(X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n" + described + b"\x89}tRu."
    assert_refused(rewrite(written, data_pkl=spelled), "a tensor (is described wrongly|reaches beyond its storage)")


def test_a_storage_that_is_cut_off_or_missing(written: Path) -> None:
    whole = members(written)["archive/data/0"]
    assert_refused(rewrite(written, **{"0": whole[:-4]}), "storage 0 has 11 numbers, 12 are declared")
    assert_refused(rewrite(written, **{"0": None}), "data/0")


def test_big_endian_numbers(written: Path) -> None:
    assert_refused(rewrite(written, byteorder=b"big"), "big-endian")


def test_a_truncated_file_and_none(written: Path) -> None:
    written.write_bytes(written.read_bytes()[:-30])
    assert_refused(written, "not a whole file of torch.save")
    written.unlink()
    assert_refused(written, "has no cache_mapper.pt")


def test_a_memo_takes_no_more_than_it_holds(written: Path) -> None:
    """The unpickler in C allots room up to the largest number that is named: gigabytes, for these nine bytes."""
    assert read_torch_file(rewrite(written, data_pkl=b"}r\xff\xff\xff\x07.")) == {}


def test_state_cannot_hide_what_a_dict_holds(written: Path) -> None:
    """An OrderedDict can be given attributes, such as another `values`; here they are forgotten."""
    empty = b"ccollections\nOrderedDict\n)R"
    item, state = b"X\x01\x00\x00\x00aX\x01\x00\x00\x00bs", b"}X\x05\x00\x00\x00itemsccollections\nOrderedDict\ns"
    assert_refused(rewrite(written, data_pkl=empty + item + state + b"b."), "something else than a dict of tensors")


def test_views_that_are_larger_than_the_file(written: Path) -> None:
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ\x00\x00\x10\x00tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + numbers(1 << 20) + numbers(1) + b"\x89}tR"
    items = b"".join(b"X\x02\x00\x00\x00%02d" % n + tensor for n in range(20))
    large = rewrite(written, data_pkl=b"}(" + items + b"u.", **{"0": bytes(4 << 20)})
    assert_refused(large, "views of each other")


def test_an_archive_that_unpacks_to_too_much(written: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", members(written)["archive/data.pkl"])
        archive.writestr("archive/data/0", bytes(MOST_BYTES + 1))
    written.write_bytes(packed.getvalue())
    assert_refused(written, "it is compressed")


def test_a_file_that_is_too_large(written: Path) -> None:
    assert_refused(rewrite(written, **{"1": bytes(MOST_BYTES + 1)}), "larger than 64 MiB")

"""Tilings from a table: which calls take them, that they compute the same, and what a table may not say."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psynth_jax.errors import UserError
from psynth_jax.ops.branch_attention import branch_attention, pallas_gpu, pallas_tpu, reference, tuned, tuning_gpu, xla
from psynth_jax.ops.branch_attention.cases import Case, arguments
from psynth_jax.ops.branch_attention.tuned import Key, Table, forms
from psynth_jax.ops.branch_attention.tuned.forms import FORMS
from psynth_jax.ops.branch_attention.tuning import Tiles, fitting, tiles
from psynth_jax.ops.branch_attention.tuning_gpu import Device, GpuTiles, forward_tiles
from psynth_jax.ops.branch_attention.tuning_xla import XlaTiles
from tests.ops.forms import whole

KIND = "cpu"
*DRAWN, LAYER, SPEC = arguments(Case("smollm2-135m", tokens=20, branches=2, branch_tokens=200, own=40))
KEY = Key.of("xla", tokens=32, group=3, kv_heads=3, width=64, itemsize=4, cached=4, slots=256)
TEXT = "xla tokens=32 group=3 kv_heads=3 width=64 itemsize=4 cached=4 slots=256"
OTHER = XlaTiles(16, 64)


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the mechanism, not at the device that the tests may run on."""
    monkeypatch.setattr("psynth_jax.ops.branch_attention.tuned.choice.local_kind", lambda: KIND)


def attend(*drawn: Any) -> jax.Array:
    return branch_attention(*drawn, LAYER, SPEC, implementation="xla")


def chosen(table: Table) -> Any:
    """Return the one tiling that a trace asks for, and gets, with this table."""
    with tuned.using(table):
        (asked,) = tuned.asked(lambda: jax.eval_shape(attend, *DRAWN))
    return asked.chosen


class TestChoice:
    def test_without_an_entry_the_heuristic_answers(self) -> None:
        (asked,) = tuned.asked(lambda: jax.eval_shape(attend, *DRAWN))
        assert asked.key == KEY and str(KEY) == TEXT
        assert asked.chosen == asked.heuristic == XlaTiles(20, 256)

    def test_an_entry_answers(self) -> None:
        assert chosen(Table(KIND, {KEY: OTHER})) == OTHER

    @pytest.mark.parametrize("name", [name for name, _ in KEY.sizes])
    def test_every_size_of_the_key_counts(self, name: str) -> None:
        sizes = dict(KEY.sizes) | {name: 2 * dict(KEY.sizes)[name]}
        assert chosen(Table(KIND, {Key.of("xla", **sizes): OTHER})) == XlaTiles(20, 256)

    def test_a_table_of_another_device_does_not_answer(self) -> None:
        assert chosen(Table("TPU v5e", {KEY: OTHER})) == XlaTiles(20, 256)

    def test_another_entry_is_another_program_with_the_same_output(self, count_compilations: Callable[..., Any]) -> None:
        call = jax.jit(attend)
        expected = np.asarray(call(*DRAWN))
        with count_compilations() as seen, tuned.using(Table(KIND, {KEY: OTHER})):
            found = np.asarray(call(*DRAWN))
            again = np.asarray(call(*DRAWN))
        assert seen.count == 1
        np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_array_equal(again, found)
        with count_compilations() as seen:
            np.testing.assert_array_equal(call(*DRAWN), expected)
        assert seen.count == 0

    def test_the_blocks_of_the_program_are_those_of_the_entry(self) -> None:
        def slots_read(table: Table) -> set[int]:
            with tuned.using(table):
                text = str(jax.make_jaxpr(lambda *drawn: attend(*drawn))(*DRAWN))
            return {size for size in (64, 128, 256) if f"slice_sizes=(1, 1, 3, {size}, 64)" in text}

        assert slots_read(Table(KIND, {})) == {64, 256}  # the own cache has 64
        assert slots_read(Table(KIND, {KEY: XlaTiles(32, 128)})) == {64, 128}

    def test_installed_until_another_one_is(self) -> None:
        before = tuned.choice._table.get_global()
        try:
            tuned.install(Table(KIND, {KEY: OTHER}))
            (asked,) = tuned.asked(lambda: jax.eval_shape(attend, *DRAWN))
            assert asked.chosen == OTHER
            tuned.install(None)
            (asked,) = tuned.asked(lambda: jax.eval_shape(attend, *DRAWN))
            assert asked.chosen == asked.heuristic
        finally:
            tuned.install(before)

    def test_what_comes_with_the_library_answers_first_of_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(forms, "SHIPPED", tmp_path)
        (tmp_path / "a-chip-9.json").write_text(
            table_text({TEXT: {"tiles": {"tokens": 16, "slots": 64}}}, kind="A Chip (9)")
        )
        shipped = forms.shipped.__wrapped__
        assert shipped("A Chip (9)").tilings == {KEY: OTHER}
        assert shipped("another").tilings == {}


@pytest.fixture(scope="module")
def expected() -> Any:
    return jax.jit(functools.partial(branch_attention, layer=LAYER, spec=SPEC, implementation="reference"))(*DRAWN)


@pytest.mark.slow
class TestSameNumbers:
    """Tiles that no heuristic chooses, against the oracle."""

    @staticmethod
    def assert_the_same(function: Callable[..., Any], kernel: str, cut: Any, expected: Any, drawn: Any = DRAWN) -> None:
        call = lambda *drawn: function(*drawn, LAYER, SPEC)  # noqa: E731
        (asked,) = tuned.asked(lambda: jax.eval_shape(call, *drawn))
        assert asked.key.kernel == kernel and asked.heuristic != cut
        assert FORMS[kernel].problem(cut, dict(asked.key.sizes)) is None
        with tuned.using(Table(KIND, {asked.key: cut})):
            (asked,) = tuned.asked(lambda: jax.eval_shape(call, *drawn))
            found = jax.jit(call)(*drawn)
        assert asked.chosen == asked.take(cut) != asked.heuristic
        np.testing.assert_allclose(found, expected, atol=1e-5)

    @pytest.mark.parametrize("cut", [XlaTiles(32, 64), XlaTiles(7, 128), XlaTiles(10, 16)])
    def test_xla(self, cut: XlaTiles, expected: Any) -> None:
        self.assert_the_same(whole(xla.attend), "xla", cut, expected)

    @pytest.mark.parametrize("cut", [Tiles(1, 16, 256), Tiles(3, 32, 128), Tiles(3, 16, 128)])
    def test_tpu_kernel(self, cut: Tiles, expected: Any) -> None:
        self.assert_the_same(whole(pallas_tpu.attend, interpret=True), "pallas_tpu", cut, expected)

    @pytest.mark.parametrize("cut", [GpuTiles(16, 32, 1, 4, 2), GpuTiles(64, 16, 3, 8, 3)])
    def test_gpu_kernel(self, cut: GpuTiles, expected: Any) -> None:
        self.assert_the_same(whole(pallas_gpu.attend, interpret=True), "pallas_gpu", cut, expected)

    def test_gradients_of_the_tpu_kernel(self) -> None:
        """Its way back keeps to the heuristic's tiles."""
        *new, _, context = DRAWN

        def gradients(function: Callable[..., Any]) -> Any:
            def loss(q: Any, k: Any, v: Any, scalars: Any) -> Any:
                mapped = dataclasses.replace(context, scalars=scalars)
                return (function(q, k, v, None, mapped, LAYER, SPEC) ** 2).sum()

            return jax.jit(jax.grad(loss, (0, 1, 2, 3)))(*new, context.scalars)

        kernel = whole(pallas_tpu.attend, interpret=True)
        expected = gradients(whole(reference.attend))
        (asked,) = tuned.asked(lambda: jax.eval_shape(lambda *a: kernel(*a, LAYER, SPEC), *new, None, context))
        with tuned.using(Table(KIND, {asked.key: Tiles(1, 16, 128)})):
            found = gradients(kernel)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5 * float(jnp.abs(other).max()))


class TestFit:
    """An entry stands for all calls of its key, and is left out where it does not fit one of them."""

    CALL = {"group": 4, "kv_heads": 8, "width": 128, "itemsize": 2, "sources": 2}  # noqa: RUF012

    def test_it_is_cut_down_to_the_call(self) -> None:
        assert fitting(Tiles(4, 64, 1024), tokens=48, slots=512, **self.CALL) == Tiles(4, 48, 512)

    def test_blocks_divide_rows(self) -> None:
        assert fitting(Tiles(8, 1, 1024), tokens=1, slots=1536, **self.CALL) is None

    def test_many_sources_need_more_memory(self) -> None:
        cut = Tiles(8, 1, 1024)
        assert fitting(cut, tokens=1, slots=2048, **self.CALL) == cut
        assert fitting(cut, tokens=1, slots=2048, **self.CALL | {"sources": 6}) is None

    @pytest.mark.parametrize("tokens", [1, 48, 256, 1024])
    def test_the_heuristic_fits_itself(self, tokens: int) -> None:
        cut = tiles(tokens=tokens, slots=4096, **self.CALL)
        assert fitting(cut, tokens=tokens, slots=4096, **self.CALL) == cut


class TestCandidates:
    @pytest.mark.parametrize("tokens", [1, 48, 1024])
    def test_tpu(self, tokens: int) -> None:
        sizes = {"tokens": tokens, "group": 4, "kv_heads": 8, "width": 128, "itemsize": 2, "slots": 4096}
        key = FORMS["pallas_tpu"].key("pallas_tpu", **sizes)
        found = tuned.candidates(key, tiles(**sizes, sources=1))
        assert all(FORMS["pallas_tpu"].problem(cut, dict(key.sizes)) is None for cut in found)
        assert len(set(found)) == len(found) >= 15
        assert {cut.slots for cut in found} >= {256, 512, 1024}

    def test_gpu(self) -> None:
        device = Device(132, 227 << 10)
        heuristic = forward_tiles(4, 128, 2, (2,), 8, 32768, device)
        sizes = {"rows": 4, "heads": 8, "width": 128, "itemsize": 2, "cached": 2, "slots": 32768}
        found = list(tuning_gpu.candidates(sizes, heuristic, device))
        assert heuristic in found
        assert len(set(found)) == len(found) >= 10
        assert {cut.rows for cut in found} == {16}  # 4 rows need no more

    def test_xla(self) -> None:
        found = tuned.candidates(KEY, XlaTiles(32, 256))
        assert set(found) == {XlaTiles(32, 64), XlaTiles(32, 128), XlaTiles(32, 256)}


def table_text(entries: Any, *, version: Any = 1, kind: str = KIND) -> str:
    return json.dumps({"format": version, "device_kind": kind, "entries": entries})


TPU = "pallas_tpu tokens=64 group=4 kv_heads=8 width=128 itemsize=2 slots=4096"
GPU = "pallas_gpu rows=4 heads=8 width=128 itemsize=2 cached=2 slots=4096"


def gpu_tiles(**changed: int) -> dict[str, int]:
    return {"rows": 16, "slots": 32, "splits": 8, "warps": 4, "stages": 2} | changed


class TestRead:
    def test_what_it_says(self) -> None:
        entries = {
            TEXT: {"tiles": {"tokens": 16, "slots": 64}, "seconds": 0.1, "jax": "0.10.2"},
            TPU: {"tiles": {"kv_heads": 2, "tokens": 64, "slots": 1024}},
            GPU: {"tiles": gpu_tiles()},
        }
        found = {str(key): tiling for key, tiling in tuned.read(table_text(entries), "here", KIND).tilings.items()}
        assert found == {TEXT: OTHER, TPU: Tiles(2, 64, 1024), GPU: GpuTiles(**gpu_tiles())}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "here is no table of tilings: not JSON"),
            ("[]", "here is no table of tilings: it has no entries"),
            (table_text([]), "it has no entries"),
            (table_text({}, version=2), "here has format 2; this version reads format 1"),
            (table_text({}, kind="TPU v4"), "here has tilings for 'TPU v4'; the device here is 'cpu'"),
        ],
    )
    def test_bad_files(self, text: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            tuned.read(text, "here", KIND)

    @pytest.mark.parametrize(
        ("key", "tiling", "message"),
        [
            ("abacus tokens=1", {}, "unknown kernel: there are pallas_tpu, pallas_gpu, xla"),
            ("xla tokens=1", {}, "a key that is not xla tokens=… group=…"),
            (TEXT.replace("32", "33"), {}, "a key whose tokens is no power of two"),
            (TEXT, None, "has not the tiles tokens, slots"),
            (TEXT, {"tokens": 16}, "has not the tiles tokens, slots"),
            (TEXT, {"tokens": 16, "slots": 64.0}, "has slots 64.0, which is no positive integer"),
            (TEXT, {"tokens": 0, "slots": 64}, "has tokens 0"),
            (TEXT, {"tokens": True, "slots": 64}, "has tokens True"),
            (TEXT, {"tokens": 64, "slots": 64}, "does not fit: tokens 64 is more than 32"),
            (TEXT, {"tokens": 32, "slots": 8}, "slots 8 is less than 16"),
            (TEXT.replace("32", "2048").replace("256", "512"), {"tokens": 2048, "slots": 512}, "is more than 524288 logits"),
            (TPU, {"kv_heads": 3, "tokens": 64, "slots": 512}, "kv_heads 3 does not divide 8"),
            (TPU, {"kv_heads": 1, "tokens": 24, "slots": 512}, "tokens 24 is neither 64 nor a smaller multiple of 16"),
            (TPU, {"kv_heads": 1, "tokens": 64, "slots": 384}, "slots 384 is neither 4096 nor a multiple of 128 that"),
            (TPU, {"kv_heads": 8, "tokens": 64, "slots": 4096}, "a step would take .* MiB of fast memory, of 40"),
            (GPU, gpu_tiles(rows=24), "rows 24 is not a power of two from 16 to 16"),
            (GPU, gpu_tiles(slots=8), "slots 8 is not a power of two from 16 to 256"),
            (GPU, gpu_tiles(warps=32), "warps 32 is not a power of two from 1 to 16"),
            (GPU, gpu_tiles(splits=129), "splits 129 is not from 1 to 128"),
            (GPU, gpu_tiles(stages=6), "stages 6 is not from 1 to 5"),
            (GPU, gpu_tiles(slots=256, stages=5), "a program would take .* KiB of shared memory"),
        ],
    )
    def test_bad_entries(self, key: str, tiling: Any, message: str) -> None:
        with pytest.raises(UserError, match=f"^here: the entry '{key}' .*{message}"):
            tuned.read(table_text({key: {"tiles": tiling}}), "here", KIND)

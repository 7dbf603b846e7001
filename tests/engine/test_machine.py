"""One machine a model, the size of its pools, and branches from elsewhere."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from psynth_jax.engine import machine as machines
from psynth_jax.engine.machine import (
    Machine,
    branch_block,
    bytes_a_slot,
    home_block,
    machine_of,
    slots_that_fit,
)
from psynth_jax.errors import MemoryLimitError
from psynth_jax.kv.transfer import StoredSlots, read_slots
from psynth_jax.model import Model
from psynth_jax.nn.decoder import Decoder
from psynth_jax.sharding import make_mesh
from tests.engine.machines import CONFIG

L, K, H = CONFIG.layers, CONFIG.kv_heads, CONFIG.head_width


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(Decoder.random(CONFIG, seed=1), None, frozenset(), "random")


def stored(length: int = 5) -> StoredSlots:
    rng = np.random.default_rng(length)
    return StoredSlots({name: rng.standard_normal((L, K, length, H)).astype(np.float32) for name in ("k", "v")})


@dataclasses.dataclass
class Device:
    """A device that says how much memory it has."""

    limit: int
    used: int

    def memory_stats(self) -> dict[str, int]:
        return {"bytes_limit": self.limit, "bytes_in_use": self.used}


def test_a_model_has_one_machine_whoever_asks(model: Model) -> None:
    assert machine_of(model) is machine_of(model)
    assert machine_of(dataclasses.replace(model, name="another tokenizer")) is machine_of(model)
    assert machine_of(model, "xla") is not machine_of(model)
    other = dataclasses.replace(model, decoder=Decoder.random(CONFIG, seed=2))
    assert machine_of(other) is not machine_of(model)


def test_another_mesh_is_another_machine(model: Model) -> None:
    moved = model.on(make_mesh("branch=4,tensor=2"))
    assert machine_of(moved) is not machine_of(model)
    assert machine_of(moved).blocks == 4


def test_a_pool_begins_with_what_the_first_call_needs(model: Model) -> None:
    assert Machine(model.decoder).pool("float32", 100).allocator.slots == 8192
    assert Machine(model.decoder).pool("float32", 10_000).allocator.slots == 16_384


def test_a_slot_takes_keys_values_and_scales(model: Model) -> None:
    assert bytes_a_slot(model.decoder, "float32") == L * K * H * 2 * 4
    assert bytes_a_slot(model.decoder, "int8") == L * K * 2 * (H + 4)


def test_a_pool_takes_half_of_what_is_free(model: Model) -> None:
    bytes_of_a_slot = bytes_a_slot(model.decoder, "bfloat16")
    free = 1000 * bytes_of_a_slot
    assert slots_that_fit(model.decoder, "bfloat16", 1, [Device(free + 77, 77)]) == 384  # 500, in pages of 128


def test_the_fullest_device_of_a_mesh_decides(model: Model) -> None:
    moved = model.decoder.on(make_mesh("branch=4,tensor=2"))
    bytes_of_a_slot = bytes_a_slot(model.decoder, "float32")
    devices: list[Any] = [Device(2000 * bytes_of_a_slot, used) for used in (0, 1000 * bytes_of_a_slot)]
    # Two devices share the heads of a block.
    assert slots_that_fit(moved, "float32", 4, devices) == 896


class TestBlocks:
    """Where questions are answered, and where their branches are."""

    def places(self, model: Model, axes: str, questions: list[int]) -> list[int]:
        """Return the block of each worker, given the question of each."""
        here = Machine(model.decoder.on(make_mesh(axes)) if axes else model.decoder)
        count, taken, found = max(questions) + 1, dict.fromkeys(questions, 0), []
        for question in questions:
            found.append(branch_block(here, question, count, taken[question]))
            taken[question] += 1
        return found

    def test_one_device_is_one_block(self, model: Model) -> None:
        assert self.places(model, "", [0, 0, 1]) == [0, 0, 0]

    def test_branches_go_round(self, model: Model) -> None:
        assert self.places(model, "branch=4,tensor=2", [0] * 6) == [0, 1, 2, 3, 0, 1]

    def test_a_question_stays_on_its_part_of_data(self, model: Model) -> None:
        assert self.places(model, "data=2,branch=2,tensor=2", [0, 0, 0, 1]) == [0, 1, 0, 2]

    def test_questions_are_answered_where_their_branches_are(self, model: Model) -> None:
        here = Machine(model.decoder.on(make_mesh("data=2,branch=2,tensor=2")))
        assert [home_block(here, question, 4) for question in range(4)] == [0, 0, 2, 2]


def test_no_room_for_a_page_is_an_error(model: Model) -> None:
    with pytest.raises(MemoryLimitError, match=r"^after the weights, 1,000 bytes of a device are free"):
        slots_that_fit(model.decoder, "float32", 1, [Device(5000, 4000)])


class TestHeldElsewhere:
    def test_what_is_stored_is_copied_once(self, model: Model) -> None:
        here = Machine(model.decoder)
        pool, held = here.pool("float32"), stored()
        lease = here.held_in(pool, held, 0)
        assert here.held_in(pool, held, 0) is lease
        np.testing.assert_array_equal(read_slots(lease).arrays["v"], held.arrays["v"])

    def test_a_copy_lives_as_long_as_its_original(self, model: Model) -> None:
        here = Machine(model.decoder)
        pool, held = here.pool("float32"), stored()
        here.held_in(pool, held, 0)
        assert pool.used_slots == 64
        del held
        assert pool.used_slots == 0

    def test_what_is_there_is_not_copied(self, model: Model) -> None:
        here = Machine(model.decoder)
        pool = here.pool("float32")
        lease = here.held_in(pool, stored(), 0)
        assert here.held_in(pool, lease, 0) is lease

    def test_other_formats_and_machines_are_converted(self, model: Model) -> None:
        there, here = Machine(model.decoder), Machine(model.decoder)
        lease = there.held_in(there.pool("bfloat16"), stored(), 0)
        copy = here.held_in(here.pool("float32"), lease, 0)
        assert copy.pool is here.pool("float32")
        np.testing.assert_allclose(read_slots(copy).arrays["k"], stored().arrays["k"], atol=0.02)

    def test_slots_that_are_lost_say_so(self, model: Model) -> None:
        here = Machine(model.decoder)
        pool = here.pool("float32")
        lease = here.held_in(pool, stored(), 0)
        pool.lose()
        with pytest.raises(MemoryLimitError, match="keys and values of these branches are lost"):
            here.held_in(pool, lease, 0)


def test_an_accelerator_reads_its_weights_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(machines.buckets_here().shapes()) == 10
    monkeypatch.setattr(machines.jax, "default_backend", lambda: "gpu")
    assert (1, 2048) in machines.buckets_here().prefill

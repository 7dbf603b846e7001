"""One pool of slots behind every call: who shares it, what frees it, and what is left when it is lost."""

from __future__ import annotations

import dataclasses
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.branch import Segment
from psynth_jax.branches import Branches
from psynth_jax.buckets import Buckets
from psynth_jax.engine import machine
from psynth_jax.engine.programs import ProgramCall, Programs
from psynth_jax.errors import MemoryLimitError
from psynth_jax.kv.transfer import read_slots
from psynth_jax.nn.decoder import Decoder
from tests.tiny import random_lora, random_mapper, tiny_model, token_ids

TEXTS, PREFIXES = [token_ids(1, 5), token_ids(2, 19)], [token_ids(3, 7), token_ids(4, 3)]
PROMPT, TARGET = token_ids(5, 9), token_ids(6, 6)
SAMPLED: dict[str, Any] = {"max_new_tokens": 5, "temperature": 1.5}


@pytest.fixture(scope="module")
def model() -> ps.Model:
    return tiny_model(layers=2)


def made(model: ps.Model, **options: Any) -> ps.ParallelSynthesis:
    synth = ps.ParallelSynthesis(model, random_lora(model.config, 1), **options)
    synth.set_mapper(random_mapper(1))
    return synth


def again(model: ps.Model) -> ps.Model:
    """The same weights with no pool yet, and with the programs that are compiled."""
    other = dataclasses.replace(model, machines={})
    machine.machine_of(other).programs = machine.machine_of(model).programs
    return other


def encoded(synth: ps.ParallelSynthesis) -> Branches:
    return synth.encode(TEXTS, prefixes=PREFIXES)


@pytest.fixture(scope="module")
def expected(model: ps.Model) -> np.ndarray:
    synth = made(model)
    return synth.score(PROMPT, TARGET, encoded(synth))


def scores(synth: ps.ParallelSynthesis, branches: Branches) -> np.ndarray:
    return synth.score(PROMPT, TARGET, branches)


def close(one: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_allclose(one, other, atol=1e-5, rtol=0)


class TestShared:
    def test_by_all_over_one_model(self, model: ps.Model, expected: np.ndarray) -> None:
        """What one has made is read by another where it is."""
        one, other = made(model), made(model)
        branches = encoded(one)
        assert one.runner.pool is other.runner.pool
        used = one.runner.pool.used_slots
        close(scores(other, branches), expected)
        gc.collect()
        assert one.runner.pool.used_slots == used
        joined = Branches.join(encoded(other)[0], branches[1])
        close(scores(one, joined), expected)

    def test_by_no_other_number_format(self, model: ps.Model, tmp_path: Path) -> None:
        """Branches are converted once; the copies live as long as what they are made of."""
        wide, low = made(model), made(model, cache_dtype="int8")
        branches = encoded(low)
        found = scores(wide, branches)
        used = wide.runner.pool.used_slots
        close(scores(wide, branches), found)
        assert wide.runner.pool.used_slots == used, "copied twice"
        plain = []
        for branch in branches.questions[0]:
            (segment,) = branch.segments
            plain.append(dataclasses.replace(branch, segments=(Segment(read_slots(segment.held).as_float32()),)))
        close(scores(wide, Branches([plain], branches.fingerprint, batched=False)), found)
        branches.save(tmp_path / "low")
        close(scores(wide, Branches.load(tmp_path / "low")), found)
        close(scores(low, Branches.load(tmp_path / "low")), scores(low, branches))

    def test_by_models_that_differ_in_their_tokenizer(self, model: ps.Model, expected: np.ndarray) -> None:
        other = made(dataclasses.replace(model, name="another"))
        close(scores(other, encoded(made(model))), expected)
        assert other.runner.pool is made(model).runner.pool


class TestSlots:
    def test_are_free_when_nobody_has_them(self, model: ps.Model) -> None:
        synth = made(again(model))
        branches = Branches.join(encoded(synth), synth.work([PROMPT, TARGET], **SAMPLED))
        chat = synth.session(branches)
        chat.reply(PROMPT, **SAMPLED)
        synth.synthesize([PROMPT, TARGET], [branches, branches[:1]], recompute=3, **SAMPLED)
        pool = synth.runner.pool
        assert pool.used_slots > 0
        kept = branches[[1]]
        del branches, chat
        gc.collect()
        assert pool.used_slots == pool.allocator.page
        del kept
        gc.collect()
        assert pool.used_slots == 0

    def test_of_a_sink_stay(self, model: ps.Model) -> None:
        synth = ps.ParallelSynthesis(again(model), dataclasses.replace(made(model).adapter, sink=(7, 8)))
        branches = encoded(synth)
        scores(synth, branches)
        del branches
        gc.collect()
        assert synth.runner.pool.used_slots == synth.runner.pool.allocator.page

    def test_are_free_after_a_callback_that_raised(self, model: ps.Model) -> None:
        synth = made(again(model))

        def hang_up(piece: object) -> None:
            raise ValueError("hang up")

        with pytest.raises(ValueError, match="hang up"):
            synth.work([PROMPT] * 3, on_token=hang_up, **SAMPLED)
        with pytest.raises(ValueError, match="hang up"):
            synth.synthesize(PROMPT, on_token=hang_up, **SAMPLED)
        gc.collect()
        assert synth.runner.pool.used_slots == 0

    def test_of_a_pool_that_grows_hold_what_they_held(
        self, model: ps.Model, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(machine, "LEAST_SLOTS", 64)
        other = again(model)
        synth = made(other)
        branches = encoded(synth)
        chat = synth.session(branches)
        first = chat.reply(PROMPT, **SAMPLED)
        before = synth.runner.pool.allocator.slots
        synth.encode([token_ids(9, 200)] * 3)
        assert synth.runner.pool.allocator.slots > before
        close(scores(synth, branches), expected)
        undisturbed = made(model).session(branches)
        assert undisturbed.reply(PROMPT, **SAMPLED).token_ids == first.token_ids
        assert undisturbed.reply(TARGET, **SAMPLED).token_ids == chat.reply(TARGET, **SAMPLED).token_ids

    def test_are_not_copied_for_a_call_that_is_refused(self, model: ps.Model, tmp_path: Path) -> None:
        synth = made(again(model))
        encoded(made(model)).save(tmp_path / "saved")
        loaded, long = Branches.load(tmp_path / "saved"), token_ids(1, 600)
        chat = synth.session()
        for call in (
            lambda: synth.synthesize(long, loaded),
            lambda: synth.synthesize(PROMPT, loaded, seed="x", max_new_tokens=2),
            lambda: synth.synthesize(PROMPT, loaded, stop="text", max_new_tokens=2),
            lambda: synth.synthesize([PROMPT, PROMPT], loaded),
            lambda: synth.score(long, TARGET, loaded),
            lambda: synth.work([[*long[:400], 1], [*long[:400], 2]], max_new_tokens=2, stop="text"),
            lambda: chat.reply(long),
            lambda: synth.session([loaded, loaded]),
        ):
            with pytest.raises(ps.UserError):
                call()
        assert synth.runner.pool.used_slots == 0 and not synth.runner.pool.heads.k.any()


class TestNumbers:
    """What is stored is what is attended to, so an answer does not depend on where chunks end."""

    @pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
    def test_do_not_depend_on_chunks(self, model: ps.Model, dtype: str) -> None:
        found = []
        for prefill in (((1, 64), (8, 64)), ((1, 4),)):
            synth = made(dataclasses.replace(model, machines={}), cache_dtype=dtype)
            synth.runner.machine.buckets = Buckets(decode=(1,), prefill=prefill)
            branches = encoded(synth)
            answer = synth.synthesize(PROMPT, branches, max_new_tokens=4)
            found.append((scores(synth, branches), answer.token_ids))
        (one, tokens), (other, same) = found
        close(one, other)
        assert tokens == same

    def test_of_two_formats_of_16_bits_are_rounded_too(self) -> None:
        """Of float16 and bfloat16 neither holds all that the other does."""
        decoder = tiny_model(layers=1).decoder
        parameters = {name: value.astype(jnp.bfloat16) for name, value in decoder.parameters().items()}
        low = ps.Model(Decoder(decoder.config, parameters), None, frozenset(), "low")
        heads = machine.empty_heads(low.decoder, 1, "float16", 8)
        tiny = jnp.full((1, 1, 1, decoder.config.head_width), 1e-9, jnp.bfloat16)
        assert not heads.rounded(tiny, tiny)[0].any() and tiny.all()


class Broken:
    """Lets programs run, and raises behind the n-th one of a name: what was donated is gone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException, after: int = 1):
        run, self.left = Programs.run, after

        def broken(programs: Programs, call: ProgramCall) -> Any:
            found = run(programs, call)
            self.left -= 1
            if self.left == 0:
                raise error
            return found

        monkeypatch.setattr(Programs, "run", broken)


class TestLost:
    @pytest.mark.parametrize("after", [1, 3])
    def test_branches_say_so_and_others_are_unharmed(
        self, model: ps.Model, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, after: int
    ) -> None:
        other = again(model)
        synth, low = made(other), made(other, cache_dtype="bfloat16")
        lost, elsewhere = encoded(synth), encoded(low)
        lost.save(tmp_path / "saved")
        loaded = Branches.load(tmp_path / "saved")
        close(scores(synth, loaded), expected)
        before = scores(low, elsewhere)
        with monkeypatch.context() as patch:
            Broken(patch, KeyboardInterrupt(), after)
            with pytest.raises(KeyboardInterrupt):
                synth.synthesize(PROMPT, lost, **SAMPLED)
        self.refused(synth, low, lost, tmp_path / "never")
        close(scores(synth, loaded), expected)
        close(scores(low, elsewhere), before)
        close(scores(synth, synth.encode(lost.token_ids, prefixes=PREFIXES)), expected)
        del lost, loaded
        gc.collect()
        assert synth.runner.pool.used_slots == 0

    @staticmethod
    def refused(synth: ps.ParallelSynthesis, low: ps.ParallelSynthesis, lost: Branches, folder: Path) -> None:
        for call in (
            lambda: scores(synth, lost),
            lambda: scores(low, lost),
            lambda: synth.synthesize(PROMPT, lost, recompute=2),
            lambda: synth.session(lost),
            lambda: lost.save(folder),
        ):
            with pytest.raises(MemoryLimitError, match=r"are lost: .* encode their texts again") as caught:
                call()
            assert isinstance(caught.value, ps.UserError) and "\n" not in str(caught.value)
        assert not folder.exists()

    @pytest.mark.parametrize("after", [1, 2, 4])
    def test_sessions_go_on(self, model: ps.Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, after: int) -> None:
        """Over branches that can be copied again, or over none; the dialogue is run again."""
        synth = made(again(model))
        encoded(synth).save(tmp_path / "saved")
        loaded = Branches.load(tmp_path / "saved")
        for read in (loaded, None):
            undisturbed, disturbed = synth.session(read), synth.session(read)
            expected = [undisturbed.reply(turn, **SAMPLED).token_ids for turn in (PROMPT, TARGET, PROMPT)]
            found = [disturbed.reply(PROMPT, **SAMPLED).token_ids]
            with monkeypatch.context() as patch:
                Broken(patch, KeyboardInterrupt(), after)
                with pytest.raises(KeyboardInterrupt):
                    disturbed.reply(TARGET, **SAMPLED)
            found += [disturbed.reply(turn, **SAMPLED).token_ids for turn in (TARGET, PROMPT)]
            assert found == expected

    def test_a_sink_is_encoded_again(self, model: ps.Model, monkeypatch: pytest.MonkeyPatch) -> None:
        synth = ps.ParallelSynthesis(again(model), dataclasses.replace(made(model).adapter, sink=(7, 8)))
        expected = scores(synth, encoded(synth))
        with monkeypatch.context() as patch:
            Broken(patch, RuntimeError("the device is gone"))
            with pytest.raises(RuntimeError, match="the device is gone"):
                synth.synthesize(PROMPT, **SAMPLED)
        close(scores(synth, encoded(synth)), expected)

    @pytest.mark.parametrize(
        ("message", "kind"), [("INTERNAL: no power", RuntimeError), ("RESOURCE_EXHAUSTED: Out of memory", MemoryLimitError)]
    )
    def test_by_a_step_that_fails_after_its_dispatch(
        self, model: ps.Model, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch, message: str, kind: type[Exception]
    ) -> None:
        """What it was to write cannot be read either, though it is not deleted."""
        synth = made(again(model))
        branches = encoded(synth)

        def failed(result: object) -> None:
            raise jax.errors.JaxRuntimeError(message)

        with monkeypatch.context() as patch:
            patch.setattr(jax, "device_get", failed)
            with pytest.raises(kind):
                synth.synthesize(PROMPT, branches, **SAMPLED)
        with pytest.raises(MemoryLimitError, match="are lost"):
            scores(synth, branches)
        close(scores(synth, encoded(synth)), expected)

    def test_what_another_thread_runs_is_told(self, model: ps.Model) -> None:
        """Its slots are somebody else's from then on: it ends, and writes nothing."""
        synth = made(again(model))
        seen: list[Any] = []

        def lose(piece: Any) -> None:
            seen.append(piece)
            if len(seen) == 2:
                thread = threading.Thread(target=synth.runner.pool.lose)
                thread.start()
                thread.join(60)

        with pytest.raises(MemoryLimitError, match="are lost"):
            synth.synthesize(PROMPT, on_token=lose, **SAMPLED)
        assert len(seen) == 2 and not np.asarray(synth.runner.pool.heads.k).any()


@pytest.mark.parametrize("least", [64, 512])
def test_threads_make_and_grow_one_pool(model: ps.Model, monkeypatch: pytest.MonkeyPatch, least: int) -> None:
    monkeypatch.setattr(machine, "LEAST_SLOTS", least)
    fresh, start = again(model), threading.Barrier(4)
    lengths = (30, 61, 7, 120)

    def ask(synth: ps.ParallelSynthesis, length: int) -> tuple[Any, ...]:
        branches = synth.encode([token_ids(length, length), token_ids(3, 20)])
        answer = synth.synthesize(PROMPT, branches, **SAMPLED)
        return answer.token_ids, synth.work([PROMPT, TARGET], **SAMPLED).token_ids, scores(synth, branches)

    def at_once(length: int) -> tuple[Any, ...]:
        synth = made(fresh)
        start.wait(60)
        return ask(synth, length)

    with ThreadPoolExecutor(4) as pool:
        together = [*pool.map(at_once, lengths)]
    alone = made(model)
    for length, (answer, written, logprobs) in zip(lengths, together, strict=True):
        expected = ask(alone, length)
        assert (answer, written) == expected[:2]
        close(logprobs, expected[2])
    gc.collect()
    assert made(fresh).runner.pool.used_slots == 0

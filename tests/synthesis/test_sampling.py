"""Logits to tokens against NumPy, and options that are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.engine.sampling import RowSampling, _truncate, sample
from psynth_jax.errors import InputError
from psynth_jax.synthesis.outputs import RowOutput
from psynth_jax.synthesis.sampling import SamplingOptions
from tests.rows import row_sampling
from tests.tiny import token_ids

pytestmark = pytest.mark.usefixtures("programs_stay")

V, DRAWS = 13, 4000
LOGITS = (2.0 * np.random.default_rng(0).standard_normal(V)).astype(np.float32)


@jax.jit
def draw(logits: Any, rows: RowSampling, step: Any) -> Any:
    return sample(logits, rows, step).token


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def expected_distribution(temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Cut the sorted distribution by top_k, then by the smallest set of probability top_p of what is left."""
    order = np.argsort(-LOGITS)
    kept = order[: top_k or V]
    probabilities = softmax(LOGITS[kept] / temperature)
    enough = int(np.searchsorted(np.cumsum(probabilities), top_p)) + 1 if top_p < 1 else len(kept)
    result = np.zeros(V)
    result[kept[:enough]] = softmax(LOGITS[kept[:enough]] / temperature)
    return result


def rows_of(count: int, seed: int = 0, **options: Any) -> RowSampling:
    return row_sampling(SamplingOptions(**options), [(seed, row) for row in range(count)])


def many(step: int = 0, seed: int = 0, **options: Any) -> np.ndarray:
    """Draw from the same logits in `DRAWS` rows."""
    rows = rows_of(DRAWS, seed, **options)
    return np.asarray(draw(np.tile(LOGITS, (DRAWS, 1)), rows, np.int32(step)))


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, 0, 1.0),
        (0.5, 0, 1.0),
        (3.0, 0, 1.0),
        (1.0, 4, 1.0),
        (1.0, 1, 1.0),
        (1.0, 0, 0.6),
        (2.0, 5, 0.7),
        (1.0, 99, 0.999),
    ],
)
def test_frequencies_are_those_of_the_truncated_distribution(temperature: float, top_k: int, top_p: float) -> None:
    tokens = many(temperature=temperature, top_k=top_k, top_p=top_p)
    expected = expected_distribution(temperature, top_k, top_p)
    assert set(tokens) <= set(np.flatnonzero(expected)), "a token was drawn that is cut off"
    frequencies = np.bincount(tokens, minlength=V) / DRAWS
    spread = np.sqrt(expected * (1 - expected) / DRAWS)
    assert np.all(np.abs(frequencies - expected) <= 5 * spread + 1e-9)


def test_top_p_always_keeps_the_best_token() -> None:
    assert set(many(temperature=1.0, top_p=1e-6)) == {int(LOGITS.argmax())}


def test_greedy_takes_the_best_token_and_draws_nothing() -> None:
    logits = np.random.default_rng(1).standard_normal((5, V)).astype(np.float32)
    rows = rows_of(5, temperature=0.0)
    np.testing.assert_array_equal(draw(logits, rows, np.int32(3)), logits.argmax(axis=1))


def test_low_temperature_becomes_greedy() -> None:
    assert set(many(temperature=1e-3)) == {int(LOGITS.argmax())}
    assert len(set(many(temperature=1.0))) > 3


def test_rows_may_have_different_options() -> None:
    best = int(LOGITS.argmax())
    mixed = RowSampling(
        temperature=np.tile(np.float32([0.0, 1.0, 1.0, 1.0]), DRAWS // 4),
        top_p=np.tile(np.float32([1.0, 1.0, 1e-6, 1.0]), DRAWS // 4),
        top_k=np.tile(np.int32([0, 1, 0, 0]), DRAWS // 4),
        min_p=np.zeros(DRAWS, np.float32),
        alternatives=np.zeros(DRAWS, np.int32),
        seed=rows_of(DRAWS).seed,
    )
    tokens = np.asarray(draw(np.tile(LOGITS, (DRAWS, 1)), mixed, np.int32(0))).reshape(-1, 4)
    assert (tokens[:, :3] == best).all()
    assert len(set(tokens[:, 3])) > 3


@pytest.mark.parametrize("min_p", [0.05, 0.3, 1.0])
def test_min_p_cuts_what_is_less_likely_than_a_share_of_the_best(min_p: float) -> None:
    """Once the temperature is taken in."""
    chances = softmax(LOGITS / 1.5)
    allowed = set(np.flatnonzero(chances >= min_p * chances.max()).tolist())
    drawn = set(many(temperature=1.5, min_p=min_p))
    assert drawn <= allowed and (len(drawn) > 1 or len(allowed) == 1)
    assert not set(many(temperature=1.5)) <= allowed


def test_most_likely_tokens_are_told_where_a_row_asks() -> None:
    logits = np.random.default_rng(3).standard_normal((2, 50)).astype(np.float32)
    rows = dataclasses.replace(rows_of(2, temperature=0.0), alternatives=np.array([0, 3], np.int32))
    found = sample(logits, rows, np.int32(0))
    expected = np.argsort(-logits, axis=1)[:, :20]
    np.testing.assert_array_equal(found.likely, expected)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found.likely_logprobs, np.take_along_axis(logprobs, expected, axis=1), atol=1e-5)
    assert not np.asarray(sample(logits, rows_of(2, temperature=0.0), np.int32(0)).likely).any()


def test_seed_row_and_step_each_give_other_tokens_and_the_same_ones_again() -> None:
    first = many(temperature=1.0)
    np.testing.assert_array_equal(many(temperature=1.0), first)
    chance = (softmax(LOGITS) ** 2).sum()  # that two independent draws agree
    for other in (many(temperature=1.0, seed=1), many(temperature=1.0, step=1), np.roll(first, 1)):
        assert abs((other == first).mean() - chance) < 0.05


def test_a_rows_token_depends_on_its_own_seed_only() -> None:
    logits = np.random.default_rng(2).standard_normal((6, V)).astype(np.float32)
    together = np.asarray(draw(logits, rows_of(6, 7, temperature=1.0), np.int32(2)))
    for row in range(6):
        alone = row_sampling(SamplingOptions(temperature=1.0), [(7, row)])
        assert int(draw(logits[row : row + 1], alone, np.int32(2))[0]) == together[row]


SEEDS = 200
EVERY = np.arange(SEEDS)


def cut_by_sorting(logits: Any, top_p: Any, top_k: Any) -> Any:
    """Set logits `[V]` outside the top k, and outside the smallest set of probability top_p among those, to -inf."""
    vocabulary = logits.shape[-1]
    descending = jnp.sort(logits, descending=True)
    last = jnp.where(top_k > 0, top_k, vocabulary) - 1
    keep = descending >= descending[last]
    probabilities = jax.nn.softmax(jnp.where(keep, descending, -jnp.inf))
    before = jnp.cumsum(probabilities) - probabilities
    keep &= (before < top_p) | (top_p >= 1)
    smallest = jnp.where(keep, descending, jnp.inf).min()
    return jnp.where(logits >= smallest, logits, -jnp.inf)


@jax.jit
def always_sorted(logits: Any, rows: RowSampling, step: Any) -> Any:
    """Draw row by row, each with its vocabulary sorted, whatever it asks for."""

    def of_row(logits: Any, temperature: Any, top_p: Any, top_k: Any, seed: Any) -> Any:
        key = jax.random.key(seed[0])
        for number in (seed[1], seed[2], step):
            key = jax.random.fold_in(key, number)
        scaled = (logits - logits.max()) / temperature
        kept = cut_by_sorting(scaled, top_p, top_k)
        return jnp.argmax(kept + jax.random.gumbel(key, kept.shape, jnp.float32))

    return jax.vmap(of_row)(logits, rows.temperature, rows.top_p, rows.top_k, rows.seed)


def rows_with(temperature: Any, top_p: Any, top_k: Any) -> RowSampling:
    """Return a row for every seed; options are one number, or one of every row."""
    seeds = row_sampling(SamplingOptions(), [(int(seed), int(seed) % 3) for seed in EVERY]).seed
    options = [
        np.broadcast_to(np.asarray(value, dtype), SEEDS)
        for value, dtype in ((temperature, np.float32), (top_p, np.float32), (top_k, np.int32))
    ]
    nothing = np.zeros(SEEDS, np.float32), np.zeros(SEEDS, np.int32)
    return RowSampling(*options, *nothing, seed=seeds)


class TestCut:
    """The vocabulary is cut where a row of the batch asks for it; no row's token depends on that."""

    LOGITS = (3 * np.random.default_rng(4).standard_normal((SEEDS, 97))).astype(np.float32)
    MODES: Mapping[str, tuple[Any, Any, Any]] = {
        "temperature alone": (0.8, 1.0, 0),
        "top_k": (1.3, 1.0, 5),
        "top_p": (0.7, 0.9, 0),
        "both": (1.0, 0.8, 7),
        "one row of them": (1.0, np.where(EVERY == 17, 0.5, 1.0), 0),
        "mixed rows": (1.1, np.where(EVERY % 3 == 0, 0.85, 1.0), np.where(EVERY % 4 == 0, 6, 0)),
    }

    @pytest.mark.parametrize("mode", MODES)
    def test_tokens_are_those_of_a_sorted_vocabulary(self, mode: str) -> None:
        rows = rows_with(*self.MODES[mode])
        for step in (np.int32(0), np.int32(5)):
            found = draw(self.LOGITS, rows, step)
            np.testing.assert_array_equal(found, always_sorted(self.LOGITS, rows, step))
            assert (np.asarray(found) != self.LOGITS.argmax(axis=1)).sum() > 20

    @pytest.mark.parametrize("mode", MODES)
    def test_equal_logits_are_kept_or_cut_together(self, mode: str) -> None:
        rows, logits = rows_with(*self.MODES[mode]), np.round(self.LOGITS)
        found = draw(logits, rows, np.int32(0))
        np.testing.assert_array_equal(found, always_sorted(logits, rows, np.int32(0)))

    @pytest.mark.parametrize(("top_p", "top_k"), [(0.5, 0), (0.999, 0), (1.0, 1), (1.0, 96), (0.3, 40), (1e-6, 3)])
    def test_what_is_kept_is_what_a_sort_keeps(self, top_p: float, top_k: int) -> None:
        logits = self.LOGITS - self.LOGITS.max(axis=1, keepdims=True)
        options = np.full(SEEDS, top_p, np.float32), np.full(SEEDS, top_k, np.int32)
        found = jax.jit(_truncate)(logits, *options)
        np.testing.assert_array_equal(found, jax.vmap(cut_by_sorting)(logits, *options))

    def test_a_greedy_row_asks_for_nothing(self) -> None:
        rows = rows_with(np.where(EVERY % 2 == 0, 0.0, 1.0), np.where(EVERY % 2 == 0, 0.5, 1.0), 0)
        found = np.asarray(draw(self.LOGITS, rows, np.int32(0)))
        alone = np.asarray(draw(self.LOGITS, rows_with(1.0, 1.0, 0), np.int32(0)))
        np.testing.assert_array_equal(found[::2], self.LOGITS[::2].argmax(axis=1))
        np.testing.assert_array_equal(found[1::2], alone[1::2])

    def test_drawing_is_in_a_branch_and_cutting_in_one_of_its_own(self) -> None:
        def branches(equations: Any) -> Any:
            return [equation.params["branches"] for equation in equations if equation.primitive.name == "cond"]

        traced = jax.make_jaxpr(sample)(self.LOGITS, rows_with(1.0, 1.0, 0), 0)
        (greedy, drawn), (nothing, most_likely) = branches(traced.eqns)
        assert "random_bits" not in str(greedy) and "random_bits" in str(drawn)
        assert "top_k" not in str(nothing) and "top_k" in str(most_likely)
        ((kept, cut),) = branches(drawn.eqns)
        assert [str(branch).count("bitcast_convert_type") for branch in (kept, cut)] == [0, 1]

    def test_one_program_for_all_options(self, count_compilations: Callable[..., Any]) -> None:
        logits = self.LOGITS[:, :50]
        draw(logits, rows_with(1.0, 1.0, 0), np.int32(0))
        with count_compilations() as seen:
            for mode in self.MODES.values():
                draw(logits, rows_with(*mode), np.int32(0))
        assert seen.names == []


def test_any_integer_is_a_seed() -> None:
    rows = row_sampling(SamplingOptions(temperature=1.0), [(-1, 0), (2**40 + 5, 1)])
    np.testing.assert_array_equal(rows.seed, [[2**32 - 1, 2**32 - 1, 0], [5, 2**8, 1]])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 2.5),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("top_k", -1),
        ("top_k", 1.5),
        ("stop", ("",)),
        ("stop", (None,)),
        ("stop", (1.5,)),
    ],
)
def test_an_option_out_of_range_is_named(synth: ps.ParallelSynthesis, name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{name} is .*; it must be"):
        SamplingOptions(**{name: value})
    with pytest.raises(InputError, match=name):
        synth.work([[1, 2]], **{name: value})


def test_numbers_must_be_numbers(synth: ps.ParallelSynthesis) -> None:
    for name, value in (("temperature", None), ("temperature", "hot"), ("top_p", None), ("temperature", float("inf"))):
        with pytest.raises(InputError, match=name):
            SamplingOptions(**{name: value})


@pytest.mark.parametrize(
    ("given", "stops"),
    [((0, "end"), (0, "end")), (["###"], ("###",)), ("###", ("###",)), (0, (0,)), (None, ()), ((), ())],
)
def test_stop_is_one_several_or_none(given: Any, stops: tuple[Any, ...]) -> None:
    assert SamplingOptions(stop=given).stops == stops


def test_huge_top_k_is_off() -> None:
    np.testing.assert_array_equal(many(temperature=1.0, top_k=2**40), many(temperature=1.0))


@pytest.mark.parametrize(
    "options",
    [{"top_p": value, "temperature": 1.0} for value in (1e-44, 1e-38, 1e-12, 9e-7, np.float32(1e-45))]
    + [{"temperature": value} for value in (1e-44, 1e-38, 1e-12, 9e-7, np.float32(1e-45))]
    + [{"temperature": 1e-44, "top_p": 1e-44, "top_k": 3}],
)
def test_what_float32_cannot_tell_from_zero_is_greedy(options: dict[str, Any]) -> None:
    chosen = SamplingOptions(**options)
    assert chosen.greedy
    tokens = sample(jnp.asarray(LOGITS)[None], row_sampling(chosen, [(5, 0)]), np.int32(0))
    assert tokens.token.tolist() == [int(LOGITS.argmax())]
    assert set(many(**options)) == {int(LOGITS.argmax())}


@pytest.mark.parametrize("field", ["temperature", "top_p"])
@pytest.mark.parametrize("value", [1e-44, 1e-38, 1e-30, 1e-6])
def test_extremes_are_sound_in_a_row_too(field: str, value: float) -> None:
    """Rows are arrays of float32, whoever made them: denormals, and quotients beyond float32, choose no other token."""
    rows = row_sampling(SamplingOptions(temperature=1.0), [(seed, 0) for seed in range(50)])
    rows = dataclasses.replace(rows, **{field: np.full(50, value, np.float32)})
    logits = jnp.asarray(np.tile(LOGITS * 1e6, (50, 1)))
    assert set(sample(logits, rows, np.int32(0)).token.tolist()) == {int(LOGITS.argmax())}


@pytest.mark.parametrize("temperature", [1e38, 3e38, 10**30, np.float16(60000)])
def test_a_huge_temperature_draws_evenly(temperature: float) -> None:
    assert len(set(many(temperature=temperature))) == len(LOGITS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 1e39),
        ("temperature", 10**400),
        ("temperature", -1e-44),
        ("temperature", True),
        ("temperature", 1 + 2j),
        ("temperature", np.array([0.5])),
        ("temperature", [0.5]),
        ("top_p", float("nan")),
        ("top_p", float("inf")),
        ("top_p", 0.0),
        ("top_p", "0.9"),
        ("top_k", 1.0),
        ("top_k", None),
        ("top_k", float("inf")),
        ("max_new_tokens", "5"),
        ("max_new_tokens", 5.0),
        ("max_new_tokens", None),
        ("max_new_tokens", True),
        ("max_new_tokens", np.array([1, 2])),
        ("stop", b"end"),
        ("stop", [b"end"]),
        ("stop", {"end"}),
        ("stop", [1.5]),
        ("stop", [None]),
        ("stop", [True]),
        ("stop", [-1]),
        ("stop", ["end", ""]),
        ("stop", np.array([1, 2])),
    ],
)
def test_a_wrong_option_names_itself_its_value_and_what_is_right(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{field} is .*; it must be ") as caught:
        SamplingOptions(**{field: value})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_stop_texts_are_unicode() -> None:
    with pytest.raises(InputError, match="a stop text has a lone surrogate"):
        SamplingOptions(stop=["fine", "\udc80"])


def test_numpy_scalars_are_numbers() -> None:
    given = SamplingOptions(np.int8(100), np.float16(0.5), np.float64(0.25), np.uint64(2**63), np.int64(7))
    assert given == SamplingOptions(100, 0.5, 0.25, 2**63, np.int64(7))
    assert [type(getattr(given, name)) for name in ("max_new_tokens", "temperature", "top_k")] == [int, float, int]
    assert 300 + given.max_new_tokens == 400  # an int8 would overflow


def test_all_of_a_seed_counts() -> None:
    seeds = [0, 1, 1 + 2**32, 1 + 2**33, -1]
    draws = {tuple(many(seed=seed, temperature=1.0)[:50]) for seed in seeds}
    assert len(draws) == len(seeds)


class Words:
    """A tokenizer of whole words."""

    WORDS = ("this ", "qu", "question", "est", "ion", "!")

    def decode(self, ids: Any) -> str:
        return "".join(self.WORDS[token] for token in ids)


class TestStopTextsInsideOfTokens:
    def write(self, *tokens: int, stop: Any) -> tuple[RowOutput, str]:
        output = RowOutput(SamplingOptions(stop=stop), frozenset(), Words(), None)  # type: ignore[arg-type]
        pieces = []
        for token in tokens:
            if output.finish_reason is None:
                pieces.append(output.push(token))
        return output, "".join(pieces)

    def test_text_is_cut_at_the_letter_and_tokens_before_it(self) -> None:
        output, pieces = self.write(0, 2, 5, stop="estion")
        assert (output.text, output.token_ids, output.finish_reason) == ("this qu", [0], "stop")
        assert pieces == output.text

    def test_over_several_tokens(self) -> None:
        output, pieces = self.write(0, 1, 3, 4, 5, stop=["estion", "never"])
        assert (output.text, output.token_ids, output.finish_reason) == ("this qu", [0, 1], "stop")
        assert pieces == output.text

    def test_what_only_looks_like_one_is_kept(self) -> None:
        output, pieces = self.write(0, 1, 3, 5, stop="estion")
        assert (output.text, output.token_ids, output.finish_reason) == ("this quest!", [0, 1, 3, 5], None)
        assert pieces == "this q"  # the rest may still begin a stop text


class TestWorkers:
    """Sampled through `work`: what a worker writes depends on its prompt and its seed."""

    PROMPTS = (token_ids(1, 7), token_ids(2, 12), token_ids(3, 3))

    def write(self, synth: ps.ParallelSynthesis, prompts: Any, seed: Any) -> Any:
        return synth.work(prompts, seed=seed, max_new_tokens=8, temperature=1.5).token_ids

    def test_same_prompts_write_different_branches_from_one_seed(self, synth: ps.ParallelSynthesis) -> None:
        same = [self.PROMPTS[0]] * 3
        first = self.write(synth, same, 3)
        assert len({tuple(ids) for ids in first}) == 3
        assert self.write(synth, same, 3) == first
        assert self.write(synth, same, 4) != first

    def test_a_worker_with_its_own_seed_writes_the_same_in_every_batch(self, synth: ps.ParallelSynthesis) -> None:
        a, b, c = self.PROMPTS
        together = self.write(synth, [a, b, c], [11, 12, 13])
        assert self.write(synth, [c, a, b], [13, 11, 12]) == [together[2], together[0], together[1]]
        assert self.write(synth, [[a], [c, b]], [[11], [13, 12]]) == [[together[0]], [together[2], together[1]]]

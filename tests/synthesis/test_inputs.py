"""What the user did wrong gets one line that says so, before anything is computed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax.branch import Branch
from psynth_jax.branches import Branches
from psynth_jax.engine import machine
from psynth_jax.errors import AdapterError, ConfigError, ContextLengthError, InputError, ModelMismatchError
from psynth_jax.prompts import Role
from tests.tiny import random_lora, random_mapper, talking_model, tiny_config, tiny_decoder, token_ids

PROMPT, TARGET = token_ids(1, 7), token_ids(2, 5)


@pytest.fixture(scope="module")
def branches(synth: ps.ParallelSynthesis) -> Branches:
    return synth.encode([token_ids(3, 5), token_ids(4, 8)])


@pytest.fixture
def nothing_runs(
    synth: ps.ParallelSynthesis, talking: ps.ParallelSynthesis, branches: Branches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let nothing run on a device from here on: what is wrong is found before."""
    for synthesizer in (synth, talking):
        monkeypatch.setattr(synthesizer.runner, "reserve", None)
        monkeypatch.setattr(synthesizer.runner.programs, "run", None)
    monkeypatch.setattr(machine, "write_slots", None)


def refused(kind: type[Exception], match: str, function: Any, *args: Any, **options: Any) -> None:
    with pytest.raises(kind, match=match) as caught:
        function(*args, **options)
    assert isinstance(caught.value, ps.UserError) and "\n" not in str(caught.value)


@pytest.mark.usefixtures("nothing_runs")
class TestEmpty:
    @pytest.mark.parametrize("question", [[], "", "  \n"])
    def test_question(self, talking: ps.ParallelSynthesis, question: Any) -> None:
        refused(InputError, "the question is empty", talking.synthesize, question)
        refused(InputError, "the prompt is empty", talking.score, question, [1])
        refused(InputError, "prompt 2 is empty", talking.work, [[1, 2], question])
        refused(InputError, "the question is empty", talking.synthesize_text, question, [[1, 2]])

    @pytest.mark.parametrize("text", [[], "", "\t"])
    def test_text(self, talking: ps.ParallelSynthesis, text: Any) -> None:
        refused(InputError, "text 2 is empty", talking.encode, ["fine", text])
        refused(InputError, "text 1 of question 2 is empty", talking.encode, [["fine"], [text]])
        refused(InputError, "text 1 is empty", talking.synthesize_text, "why?", [text, "fine"])
        refused(InputError, "the target is empty", talking.score, "why?", text)

    def test_list(self, synth: ps.ParallelSynthesis) -> None:
        for nothing in ([], ()):
            refused(InputError, "prompts must be a list", synth.work, nothing)
            refused(InputError, "texts must be a list", synth.encode, nothing)
        refused(InputError, "prompt 1 is empty", synth.work, [[]])
        refused(InputError, "text 1 is empty", synth.encode, [[]])

    def test_branches(self, synth: ps.ParallelSynthesis, branches: Branches) -> None:
        refused(InputError, "no branch to read", synth.synthesize, PROMPT, branches[:0])
        refused(InputError, "no branch to read", synth.session, branches[:0])

    def test_branch_of_a_worker_that_stopped_at_once(self, synth: ps.ParallelSynthesis, branches: Branches) -> None:
        nothing = Branches([[Branch((), "", 4, 0, (), "stop")]], branches.fingerprint, batched=False)
        joined = Branches.join(branches, nothing)
        refused(InputError, r"branch 3 is empty.*branches\[\[0, 2\]\]", synth.synthesize, PROMPT, joined)
        refused(InputError, "branch 3 is empty", synth.score, PROMPT, TARGET, branches=joined)
        refused(InputError, "branch 1 of question 2 is empty", synth.score, [PROMPT] * 2, [TARGET] * 2, [branches, nothing])


@pytest.mark.usefixtures("nothing_runs")
class TestTokens:
    @pytest.mark.parametrize("token", [-1, 97, 10**12])
    def test_outside_of_the_vocabulary(self, synth: ps.ParallelSynthesis, token: int) -> None:
        message = f"has the token id {token}; the vocabulary has 0 to 96"
        refused(InputError, f"the question {message}", synth.synthesize, [1, token])
        refused(InputError, f"prompt 1 {message}", synth.work, [[token], [1]])
        refused(InputError, f"text 2 of question 1 {message}", synth.encode, [[[1], [token]], [[1]]])
        refused(InputError, f"the prefix of text 1 {message}", synth.encode, [[1]], prefixes=[[token]])
        refused(InputError, f"the target {message}", synth.score, [1], [token])

    @pytest.mark.parametrize("wrong", [7, None, 1.5, [1.5], [True, False], {"role": "user"}, [None], [["a"], 3]])
    def test_that_are_something_else(self, synth: ps.ParallelSynthesis, wrong: Any) -> None:
        refused(InputError, "a question must be a text, a chat or a list of token ids", synth.synthesize, wrong)
        refused(InputError, "prompts must", synth.work, wrong)
        refused(InputError, "texts must", synth.encode, wrong)

    def test_without_a_tokenizer_there_is_no_text(self, synth: ps.ParallelSynthesis) -> None:
        for call in (
            lambda: synth.work(["write"]),
            lambda: synth.encode(["a text"]),
            lambda: synth.synthesize("why?"),
            lambda: synth.synthesize([{"role": "user", "content": "why?"}]),
            lambda: synth.synthesize_text("why?", ["a", "b"]),
            lambda: synth.score("why?", [1]),
            lambda: synth.score([1], "so"),
            lambda: synth.session().reply("why?"),
        ):
            refused(InputError, "tiny has no tokenizer: give token ids instead of text", call)

    def test_without_a_tokenizer_there_is_no_stop_text(self, synth: ps.ParallelSynthesis) -> None:
        for call in (synth.synthesize, synth.session().reply, lambda prompt, stop: synth.work([prompt], stop=stop)):
            refused(InputError, "no tokenizer to find the stop text 'end'", call, PROMPT, stop=["end"])

    def test_a_chat_has_roles_and_contents(self, talking: ps.ParallelSynthesis) -> None:
        refused(InputError, "message", talking.synthesize, [{"role": "user"}])
        refused(InputError, "message", talking.work, [[{"content": "hi"}]])


@pytest.mark.usefixtures("nothing_runs")
class TestWindow:
    """512 positions: the longest branch, the prompt and the new tokens have to fit, not the sum of the branches."""

    def test_of_an_answer(self, synth: ps.ParallelSynthesis, branches: Branches) -> None:
        message = (
            "the question does not fit the context window of 512 positions: the longest branch has 8 tokens, "
            "the prompt has 7, and 498 more are asked for; 497 would fit"
        )
        refused(ContextLengthError, message, synth.synthesize, PROMPT, branches, max_new_tokens=498)
        alone = "512 positions: the prompt has 7, and 506 more are asked for; 505 would fit"
        refused(ContextLengthError, alone, synth.synthesize, PROMPT, max_new_tokens=506)

    def test_of_a_text_baseline_counts_all_texts(self, synth: ps.ParallelSynthesis) -> None:
        texts = [token_ids(i, 250) for i in range(2)]
        refused(ContextLengthError, "the prompt has 507, and 6 more", synth.synthesize_text, PROMPT, texts, max_new_tokens=6)

    def test_of_workers_and_texts(self, synth: ps.ParallelSynthesis) -> None:
        long = token_ids(1, 500)
        refused(ContextLengthError, "prompt 2 does not fit.*has 500, and 13 more", synth.work, [[1], long], 13)
        refused(
            ContextLengthError, "text 1 of question 2.*has 513", synth.encode, [[[1]], [long]], [[None], [PROMPT + [1] * 6]]
        )
        refused(ContextLengthError, "prompt and target does not fit.*has 513", synth.score, long, [1] * 13)


@pytest.mark.usefixtures("nothing_runs")
class TestShapes:
    def test_of_prefixes(self, synth: ps.ParallelSynthesis) -> None:
        for prefixes in ([[1]], [[1], [2], [3]]):
            refused(InputError, "prefixes must have 2 entries", synth.encode, [[1], [2]], prefixes=prefixes)
        nested = [[[1], [2]], [[3]]]
        for prefixes in ([[[1]], [[2]]], [[[1], [2]]], [None, None], [[1], [2]], 7):
            refused(InputError, r"prefixes must have \[2, 1\] entries, by question", synth.encode, nested, prefixes=prefixes)

    def test_of_seeds(self, synth: ps.ParallelSynthesis) -> None:
        for seed in ([1], [1, 2, 3], [[1, 2]], ["a", "b"], [1.5, 2], 1.5, "a", None):
            refused(InputError, "seed must", synth.work, [[1], [2]], seed=seed, temperature=1.0)
        refused(InputError, "seed must", synth.work, [[[1], [2]], [[3]]], seed=[1, 2], temperature=1.0)
        for call in (synth.synthesize, synth.session().reply):
            refused(InputError, "seed must be a whole number; 1.5 is none", call, PROMPT, seed=1.5)

    def test_of_questions_and_branches(self, synth: ps.ParallelSynthesis, branches: Branches) -> None:
        two = Branches.batch([branches, branches])
        refused(InputError, "1 questions and branches for 2", synth.synthesize, PROMPT, two)
        refused(InputError, "2 questions and branches for 1", synth.synthesize, [PROMPT, PROMPT], branches)
        refused(InputError, "1 questions and texts for 2", synth.synthesize_text, PROMPT, [[[1]], [[2]]])
        refused(InputError, "2 prompts and 1 targets", synth.score, [PROMPT, PROMPT], [TARGET])

    def test_of_questions_and_texts_that_are_no_lists(self, synth: ps.ParallelSynthesis) -> None:
        for wrong in ("a text", [1, 2, 3], None, 7):
            refused(InputError, "texts must", synth.encode, wrong)


@pytest.mark.usefixtures("nothing_runs")
class TestTypes:
    @pytest.mark.parametrize("wrong", ["a text", ["a", "b"], [None], 7, [[1, 2]]])
    def test_of_branches(self, synth: ps.ParallelSynthesis, wrong: Any) -> None:
        refused(InputError, "branches must be what", synth.synthesize, PROMPT, wrong)
        refused(InputError, "branches must be what", synth.session, wrong)

    @pytest.mark.parametrize("wrong", [None, 7, 1.5, [1.7, 2.2], ["a"], {"role": "user"}])
    def test_of_one_text(self, synth: ps.ParallelSynthesis, wrong: Any) -> None:
        refused(InputError, "the target must be", synth.score, PROMPT, wrong)
        refused(InputError, "the question must be", synth.session().reply, wrong)
        if wrong is not None:
            refused(InputError, "the prefix of text 1 must be", synth.encode, [PROMPT], prefixes=[wrong])

    def test_of_targets(self, talking: ps.ParallelSynthesis) -> None:
        refused(InputError, "takes a list of targets", talking.score, ["a", "b"], "ab")

    @pytest.mark.parametrize("index", [True, "a", 1.0, [True, False], "01", None, [None], 2, -3, [0, 2]])
    def test_of_selections(self, branches: Branches, index: Any) -> None:
        refused(InputError, "number", branches.__getitem__, index)


@pytest.mark.usefixtures("nothing_runs")
class TestAnotherModel:
    @pytest.fixture
    def strange(self, branches: Branches) -> Branches:
        other = ps.Model(tiny_decoder(tiny_config(), seed=1), None, frozenset(), "other")
        return Branches(branches.questions, other.fingerprint, batched=False)

    def test_made_the_branches(self, synth: ps.ParallelSynthesis, strange: Branches) -> None:
        for call in (
            lambda: synth.synthesize(PROMPT, strange),
            lambda: synth.score(PROMPT, TARGET, branches=strange),
            lambda: synth.score([PROMPT], [TARGET], branches=[strange]),
            lambda: synth.session(strange),
            lambda: synth.mapper_scalars(strange),
        ):
            refused(ModelMismatchError, "made by another model than tiny", call)

    def test_is_one_with_other_weights_or_another_config(self) -> None:
        config = tiny_config()
        model = ps.Model(tiny_decoder(config), None, frozenset(), "tiny")
        again = ps.Model(tiny_decoder(config), None, frozenset({1}), "another name")
        assert model.fingerprint == again.fingerprint
        other_weights = dataclasses.replace(model, decoder=tiny_decoder(config, seed=1))
        other_config = dataclasses.replace(model, decoder=tiny_decoder(tiny_config(norm_eps=1e-6)))
        assert len({model.fingerprint, other_weights.fingerprint, other_config.fingerprint}) == 3


class TestSynthesizer:
    def test_with_unknown_positions(self, synth: ps.ParallelSynthesis) -> None:
        refused(
            InputError, "positions is 'live'.*exact, reference_live", ps.ParallelSynthesis, synth.model, positions="live"
        )

    def test_with_an_unknown_implementation(self, synth: ps.ParallelSynthesis) -> None:
        refused(InputError, "'fast'.*auto", ps.ParallelSynthesis, synth.model, implementation="fast")
        for kernel, device in (("pallas_tpu", "TPU"), ("pallas_gpu", "GPU")):
            refused(InputError, f"{kernel} needs a {device}", ps.ParallelSynthesis, synth.model, implementation=kernel)

    def test_with_an_unknown_cache_dtype(self, synth: ps.ParallelSynthesis) -> None:
        refused(InputError, "cache_dtype is 'int4'.*int8", ps.ParallelSynthesis, synth.model, cache_dtype="int4")

    def test_with_an_adapter_that_is_none(self, synth: ps.ParallelSynthesis, tmp_path: Path) -> None:
        refused(InputError, "no such directory", ps.ParallelSynthesis, synth.model, adapter=tmp_path / "absent")
        refused(AdapterError, "an adapter is a directory", ps.ParallelSynthesis, synth.model, adapter=7)
        lora = random_lora(tiny_config(width=24), 1)
        refused(
            AdapterError,
            r"does not fit tiny: .*down of 'k' has shape \[3, 24, 4\], ex",
            ps.ParallelSynthesis,
            synth.model,
            lora,
        )
        half = dataclasses.replace(synth.adapter.lora, up={})
        refused(AdapterError, "missing up of 'q'", ps.ParallelSynthesis, synth.model, half)

    def test_with_a_mapper_that_is_none(self, synth: ps.ParallelSynthesis) -> None:
        other = ps.ParallelSynthesis(synth.model)
        refused(AdapterError, "missing out_bias", other.set_mapper, {"hidden_bias": random_mapper(1)["hidden_bias"]})

    def test_reference_live_needs_a_prefix(self, synth: ps.ParallelSynthesis) -> None:
        live = ps.ParallelSynthesis(synth.model, positions="reference_live")
        for prefixes in (None, [[1], []], [[1], None]):
            refused(InputError, "text . has no prefix", live.encode, [[1], [2]], prefixes=prefixes)


SURROGATES = ("\ud800", "why\udc80?", "\udfff" * 50)
NO_TEXTS = (b"bytes", bytearray(b"x"), memoryview(b"x"), 7, 1.5, object(), {"a": 1}, {1, 2})


@pytest.mark.usefixtures("nothing_runs")
class TestText:
    """Every entrance of text: what is no Unicode text is refused by one line that names the argument."""

    @pytest.mark.parametrize("text", SURROGATES)
    def test_lone_surrogates(self, talking: ps.ParallelSynthesis, text: str) -> None:
        chat = [{"role": "user", "content": text}]
        named = [{"role": text, "content": "why?"}]
        for call in (
            lambda: talking.work([text]),
            lambda: talking.work([["fine"], ["fine", text]]),
            lambda: talking.work([chat]),
            lambda: talking.work([named]),
            lambda: talking.encode([text]),
            lambda: talking.encode(["fine"], prefixes=[text]),
            lambda: talking.encode(["fine"], prefixes=[chat]),
            lambda: talking.synthesize(text),
            lambda: talking.synthesize(["fine", text]),
            lambda: talking.synthesize(chat),
            lambda: talking.synthesize(named),
            lambda: talking.synthesize_text(text, ["fine"]),
            lambda: talking.synthesize_text("why?", ["fine", text]),
            lambda: talking.synthesize_text([1, 2], ["fine", text]),
            lambda: talking.score(text, "so"),
            lambda: talking.score("why?", text),
            lambda: talking.score(["a", "b"], ["c", text]),
            lambda: talking.synthesize("why?", stop=text),
            lambda: talking.work(["why?"], stop=["fine", text]),
            lambda: talking.session().reply(text),
            lambda: talking.session().reply(chat),
            lambda: talking.session().reply("why?", stop=[text]),
            lambda: ps.worker_prompts(text, ps.load_roles(), 2),
            lambda: ps.worker_prompts("why?", [Role("x", text)], 2),
            lambda: ps.worker_prompts("why?", [Role(text, "x")], 2),
        ):
            refused(InputError, r"lone surrogate \(U\+D", call)

    @pytest.mark.parametrize("text", NO_TEXTS)
    def test_what_is_no_text(self, talking: ps.ParallelSynthesis, text: Any) -> None:
        for call in (
            lambda: talking.work([text]),
            lambda: talking.work(text),
            lambda: talking.work([[{"role": "user", "content": text}]]),
            lambda: talking.encode([text]),
            lambda: talking.encode(text),
            lambda: talking.encode(["fine"], prefixes=[text]),
            lambda: talking.synthesize(text),
            lambda: talking.synthesize(["fine", text]),
            lambda: talking.synthesize([{"role": text, "content": "x"}]),
            lambda: talking.synthesize_text(text, ["fine"]),
            lambda: talking.synthesize_text("why?", [text]),
            lambda: talking.synthesize_text("why?", text),
            lambda: talking.score(text, "so"),
            lambda: talking.score("why?", text),
            lambda: talking.session().reply(text),
            lambda: ps.worker_prompts(text, ps.load_roles(), 2),
            lambda: ps.worker_prompts("why?", [Role("x", text)], 2),
            lambda: ps.worker_prompts("why?", text, 2),
            lambda: ps.worker_prompts("why?", [text], 2),
        ):
            refused(InputError, ".", call)

    def test_of_a_later_turn(self, talking: ps.ParallelSynthesis) -> None:
        chat = talking.session()
        chat._dialogue = (1, 2, 3)
        for text in (*SURROGATES, *NO_TEXTS, "", "  "):
            refused(InputError, "the question", chat.reply, text)

    def test_a_template_that_renders_nothing_is_named_with_the_model(self) -> None:
        model = talking_model(layers=1)
        model.tokenizer.backend.chat_template = "{% if false %}x{% endif %}"
        synth = ps.ParallelSynthesis(model)
        for call in (lambda: synth.synthesize("why?"), lambda: synth.session().reply("why?"), lambda: synth.work(["why?"])):
            refused(InputError, "for talking: the chat template renders nothing", call)


@pytest.mark.usefixtures("nothing_runs")
class TestArguments:
    """Arguments of the wrong type: the argument, its value, and what is right."""

    @pytest.mark.parametrize("model", ["smollm2-135m", Path("smollm2-135m"), None, 7, b"x"])
    def test_model(self, model: Any) -> None:
        refused(InputError, "model is .*; it must be what load_model returns", ps.ParallelSynthesis, model)

    def test_a_name_says_how_to_load_it(self) -> None:
        refused(InputError, r"ParallelSynthesis\(load_model\('smollm2-135m'\)\)", ps.ParallelSynthesis, "smollm2-135m")

    @pytest.mark.parametrize("mesh", ["branch=2", {"branch": 2}, 2, [1]])
    def test_mesh(self, synth: ps.ParallelSynthesis, mesh: Any) -> None:
        refused(InputError, "mesh is .*make_mesh", ps.ParallelSynthesis, synth.model, mesh=mesh)
        refused(ConfigError, "mesh is .*make_mesh", ps.load_model, "tiny-random", mesh=mesh)

    @pytest.mark.parametrize("adapter", [7, b"x", {}, [1], object(), random_mapper(1)])
    def test_adapter(self, synth: ps.ParallelSynthesis, adapter: Any) -> None:
        refused(AdapterError, "an adapter is a directory.*not ", ps.ParallelSynthesis, synth.model, adapter)

    @pytest.mark.parametrize("wrong", [7, ["exact"], None, b"exact", np.array([1, 2])])
    def test_positions(self, synth: ps.ParallelSynthesis, wrong: Any) -> None:
        refused(InputError, "positions is .*exact, reference_live", ps.ParallelSynthesis, synth.model, positions=wrong)

    @pytest.mark.parametrize("wrong", [7, ["int8"], np.int8, b"int8"])
    def test_cache_dtype(self, synth: ps.ParallelSynthesis, wrong: Any) -> None:
        refused(InputError, "cache_dtype is .*int8", ps.ParallelSynthesis, synth.model, cache_dtype=wrong)

    @pytest.mark.parametrize("wrong", [7, ["xla"], None, b"xla"])
    def test_implementation(self, synth: ps.ParallelSynthesis, wrong: Any) -> None:
        refused(InputError, "implementation", ps.ParallelSynthesis, synth.model, implementation=wrong)

    @pytest.mark.parametrize("wrong", [7, "print", [print], True])
    def test_on_token(self, synth: ps.ParallelSynthesis, branches: Branches, wrong: Any) -> None:
        for call in (
            lambda: synth.work([PROMPT], on_token=wrong),
            lambda: synth.synthesize(PROMPT, branches, on_token=wrong),
            lambda: synth.synthesize_text(PROMPT, [PROMPT], on_token=wrong),
            lambda: synth.session().reply(PROMPT, on_token=wrong),
        ):
            refused(InputError, "on_token is .*; it must be a function", call)

    @pytest.mark.parametrize("wrong", [1.5, "x", None, np.float32(1), True, [1], b"x"])
    def test_seed(self, synth: ps.ParallelSynthesis, wrong: Any) -> None:
        for call in (
            lambda: synth.synthesize(PROMPT, seed=wrong),
            lambda: synth.synthesize_text(PROMPT, [PROMPT], seed=wrong),
            lambda: synth.session().reply(PROMPT, seed=wrong),
        ):
            refused(InputError, "seed must be a whole number", call)

    @pytest.mark.parametrize(
        "options",
        [{"max_new_tokens": "5"}, {"temperature": "hot"}, {"temperature": float("nan")}, {"top_p": None}, {"top_k": 1.5}],
    )
    def test_options(self, synth: ps.ParallelSynthesis, options: Any) -> None:
        name, value = next(iter(options.items()))
        for call in (
            lambda: synth.work([PROMPT], **options),
            lambda: synth.synthesize(PROMPT, **options),
            lambda: synth.synthesize_text(PROMPT, [PROMPT], **options),
            lambda: synth.session().reply(PROMPT, **options),
        ):
            refused(InputError, f"{name} is {value!r}; it must be", call)

    @pytest.mark.parametrize("wrong", ["a", b"x", 7, None, [1], {}, [[]]])
    def test_branches(self, synth: ps.ParallelSynthesis, branches: Branches, wrong: Any) -> None:
        refused(InputError, "branches", synth.mapper_scalars, wrong)
        refused(InputError, "branches", synth.mapper_scalars, [branches])
        refused(InputError, "branches", Branches.join, branches, wrong)
        refused(InputError, "branches", Branches.join, wrong)
        refused(InputError, "branches", Branches.batch, wrong)
        refused(InputError, "branches", Branches.batch, [branches, wrong])
        if wrong is not None:
            refused(InputError, "branches|branch to read", synth.score, PROMPT, TARGET, wrong)
        if not isinstance(wrong, str):
            refused(InputError, "directory of branches", Branches.load, wrong)
            refused(InputError, "directory of branches", branches.save, wrong)

    @pytest.mark.parametrize("index", [b"\x00", b"", bytearray(b"\x01"), 0.0, None, np.nan, {}, {0}, object(), 10**30])
    def test_selections(self, branches: Branches, index: Any) -> None:
        refused(InputError, "number", branches.__getitem__, index)
        refused(InputError, "number", Branches.batch([branches]).__getitem__, index)

    @pytest.mark.parametrize("index", [slice("a", None), slice(None, None, 0), slice(1.5), np.zeros((2, 2), int)])
    def test_slices(self, branches: Branches, index: Any) -> None:
        refused(InputError, "selected by", branches.__getitem__, index)

    @pytest.mark.parametrize(
        ("arrays", "said"),
        [
            (None, "must be a mapping"),
            ([1], "must be a mapping"),
            ({1: 2}, "extra 1"),
            (random_mapper(1) | {"out_bias": "x"}, "'out_bias' is no array of numbers"),
            (random_mapper(1) | {"out_bias": [1, "x"]}, "'out_bias' is no array of numbers"),
            (random_mapper(1) | {"out_bias": [np.nan] * 4}, "out_bias has numbers that are not finite"),
            (random_mapper(1) | {"out_bias": [1e300] * 4}, "out_bias has numbers that are not finite"),
            (random_mapper(1) | {"out_bias": [[1], [2, 3]]}, "'out_bias' is no array of numbers"),
        ],
    )
    def test_mappers(self, synth: ps.ParallelSynthesis, arrays: Any, said: str) -> None:
        refused(AdapterError, said, ps.ParallelSynthesis(synth.model).set_mapper, arrays)


class TestShown:
    """What things look like in a session: short, on one line, and without a cache's numbers."""

    def test_all(self, synth: ps.ParallelSynthesis, plain: ps.ParallelSynthesis, branches: Branches) -> None:
        model = repr(synth.model)
        assert model == "Model('tiny', llama, 21,120 parameters, float32)"
        assert repr(synth) == f"ParallelSynthesis({model}, LoRA and mapper, exact positions)"
        assert repr(plain) == f"ParallelSynthesis({model}, no adapter, exact positions)"
        assert repr(branches) == f"Branches(2 branches, lengths [5, 8], made by '{branches.fingerprint[:12]}')"
        assert "2 questions of [2, 1] branches" in repr(Branches.batch([branches, branches[0]]))
        assert repr(synth.session(branches)) == f"Session(2 branches, 0 tokens of dialogue, {model})"
        result = ps.SynthesisResult("a" * 500 + "\n", [1] * 40, 0.5, 7, 13, 9.0, "length")
        assert repr(result).startswith("SynthesisResult('aaa") and "40 tokens, 7 of the prompt, 13 read" in repr(result)
        many = Branches([branches.questions[0] * 500], branches.fingerprint, batched=False)
        for value in (synth, branches, many, result, synth.session()):
            assert "\n" not in repr(value) and len(repr(value)) < 200


class TestTaken:
    """What looks unusual and is right."""

    def test_in_arrays_are_taken_too(self, synth: ps.ParallelSynthesis, branches: Branches) -> None:
        expected = synth.score(PROMPT, TARGET, branches=branches)
        given = synth.score(np.array(PROMPT), np.array(TARGET, np.uint8), branches=branches)
        np.testing.assert_array_equal(given, expected)
        with pytest.raises(InputError, match="a question must be"):
            synth.score(np.array(PROMPT, np.float32), TARGET, branches=branches)

    def test_what_just_fits_is_taken(self, synth: ps.ParallelSynthesis, branches: Branches) -> None:
        """Eight branches of 8 tokens overlap: together they take 8 positions."""
        many = branches[[1] * 8]
        assert synth.score(token_ids(1, 500), [1] * 4, branches=many).shape == (4,)
        with pytest.raises(ContextLengthError):
            synth.score(token_ids(1, 500), [1] * 5, branches=many)


class TestCopies:
    """Greedy workers with the same prompt write the same branch: the user is told, and gets what was asked for."""

    def test_are_warned_of(self, synth: ps.ParallelSynthesis) -> None:
        with pytest.warns(UserWarning, match="same prompt write the same branch") as caught:
            branches = synth.work([PROMPT, PROMPT], max_new_tokens=3)
        assert branches.token_ids[0] == branches.token_ids[1]
        assert [warning.filename for warning in caught] == [__file__], "the warning should point at the user's line"

    def test_of_different_questions_are_none(self, synth: ps.ParallelSynthesis) -> None:
        branches = synth.work([[PROMPT], [PROMPT]], max_new_tokens=3)  # a warning would be an error
        assert branches.token_ids[0] == branches.token_ids[1]

    def test_are_none_with_a_temperature(self, synth: ps.ParallelSynthesis) -> None:
        branches = synth.work([PROMPT, PROMPT], max_new_tokens=6, temperature=2.0)
        assert branches.token_ids[0] != branches.token_ids[1]

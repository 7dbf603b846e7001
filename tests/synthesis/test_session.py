"""A conversation over branches against one long prompt over the same branches."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax import prompts
from psynth_jax.branches import Branches
from psynth_jax.engine import admission
from psynth_jax.engine.batch_runner import Launched
from psynth_jax.engine.scheduler import Scheduler
from psynth_jax.errors import ContextLengthError, InputError
from psynth_jax.kv.transfer import read_slots
from tests.tiny import talking_model, tiny_model, token_ids

# Lengths that share chunk sizes: every other one is a compilation.
TURNS = (token_ids(1, 7), token_ids(2, 5))
SAMPLED = {"max_new_tokens": 4, "temperature": 1.5}


@pytest.fixture(scope="module")
def branches(synth: ps.ParallelSynthesis) -> Branches:
    texts, prefixes = [token_ids(4, 5), token_ids(5, 19)], [token_ids(6, 11), token_ids(7, 2)]
    return synth.encode(texts, prefixes=prefixes)


@pytest.mark.parametrize("over_branches", [True, False])
@pytest.mark.slow
def test_every_turn_equals_one_long_prompt(synth: ps.ParallelSynthesis, branches: Branches, over_branches: bool) -> None:
    """Sampled with a temperature: the tokens are right only if the numbers are."""
    read = branches if over_branches else None
    held = branches.questions[0][0].segments[0].held
    before = read_slots(held)
    chat, dialogue = synth.session(read), []
    for number, turn in enumerate(TURNS):
        dialogue += turn
        reply = chat.reply(turn, seed=number, **SAMPLED)
        whole = synth.synthesize(dialogue, read, seed=number, **SAMPLED)
        assert reply.token_ids == whole.token_ids
        assert (reply.prompt_tokens, reply.cached_tokens) == (len(turn), 24 if over_branches else 0)
        dialogue += reply.token_ids
        assert chat.tokens == len(dialogue)
    for name, values in read_slots(held).arrays.items():
        np.testing.assert_array_equal(values, before.arrays[name])


@pytest.mark.slow
def test_two_conversations_over_the_same_branches_do_not_meet(synth: ps.ParallelSynthesis, branches: Branches) -> None:
    alone = [synth.session(branches).reply(TURNS[0], **SAMPLED).token_ids for _ in range(2)]
    one, other = synth.session(branches), synth.session(branches)
    other.reply(TURNS[1], **SAMPLED)
    assert one.reply(TURNS[0], **SAMPLED).token_ids == alone[0] == alone[1]


def test_what_a_stop_token_cut_off_is_not_part_of_the_dialogue(synth: ps.ParallelSynthesis, branches: Branches) -> None:
    whole = synth.session(branches).reply(TURNS[0], **SAMPLED)
    place = next(i for i in range(1, 4) if whole.token_ids[i] not in whole.token_ids[:i])
    chat = synth.session(branches)
    first = chat.reply(TURNS[0], **SAMPLED, stop=[whole.token_ids[place]])
    assert (first.token_ids, chat.tokens) == (whole.token_ids[:place], len(TURNS[0]) + place)
    second = chat.reply(TURNS[1], **SAMPLED)
    assert second.token_ids == synth.synthesize([*TURNS[0], *first.token_ids, *TURNS[1]], branches, **SAMPLED).token_ids


class TestText:
    """Turns given as text are rendered by the chat template, the second one behind the first answer."""

    def test_turns_are_those_of_the_template(self, talking: ps.ParallelSynthesis) -> None:
        tokenizer = talking.model.tokenizer
        branches = talking.encode(["some notes", "others"])
        chat = talking.session(branches)
        first = chat.reply("What now?", max_new_tokens=24)
        second = chat.reply("And then?", max_new_tokens=24)
        opening = tokenizer.chat(prompts.synthesis_messages("What now?"))
        turn = tokenizer.encode("<|im_end|>\n<|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n")
        assert second.prompt_tokens == len(turn)
        whole = talking.synthesize([*opening, *first.token_ids, *turn], branches, max_new_tokens=24)
        assert second.token_ids == whole.token_ids

    def test_what_a_stop_text_cut_off_is_not_part_of_the_dialogue(self, talking: ps.ParallelSynthesis) -> None:
        whole = talking.session().reply("What now?", max_new_tokens=24)
        place = next(i for i in range(1, 20) if whole.text[i] != "\ufffd" and whole.text.find(whole.text[i]) == i)
        chat = talking.session()
        first = chat.reply("What now?", max_new_tokens=24, stop=[whole.text[place]])
        assert first.text == whole.text[:place]
        opening = talking.model.tokenizer.chat(prompts.question_messages("What now?"))
        assert chat.tokens == len(opening) + len(first.token_ids)
        tail = token_ids(9, 5)
        again = talking.synthesize([*opening, *first.token_ids, *tail], max_new_tokens=24)
        assert chat.reply(tail, max_new_tokens=24).token_ids == again.token_ids

    def test_an_empty_turn_is_refused_and_costs_nothing(self, talking: ps.ParallelSynthesis) -> None:
        chat = talking.session()
        with pytest.raises(InputError, match="empty"):
            chat.reply(" \n")
        first = chat.reply("What now?", max_new_tokens=24)
        with pytest.raises(InputError, match="empty"):
            chat.reply("")
        assert first.prompt_tokens + len(first.token_ids) == chat.tokens


def test_a_turn_beyond_the_window_is_refused_and_costs_nothing(synth: ps.ParallelSynthesis, branches: Branches) -> None:
    chat = synth.session(branches)
    chat.reply(TURNS[0], **SAMPLED)
    with pytest.raises(ContextLengthError, match="this turn"):
        chat.reply(token_ids(8, 480), **SAMPLED)
    assert chat.tokens == len(TURNS[0]) + 4


class Failing:
    """A callback that raises at its n-th token."""

    def __init__(self, error: BaseException, at: int):
        self.error, self.left = error, at

    def __call__(self, piece: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("hang up"), SystemExit(3), GeneratorExit()])
@pytest.mark.parametrize("at", [1, 3, 4])
@pytest.mark.parametrize("turn", [0, 1])
def test_a_turn_that_raised_has_not_been(
    synth: ps.ParallelSynthesis, branches: Branches, error: BaseException, at: int, turn: int
) -> None:
    """The same turn asked again, and those after it, give what they give in a conversation where nothing happened."""
    undisturbed, disturbed = synth.session(branches), synth.session(branches)
    for number in range(3):
        ids = TURNS[number % 2]
        if number == turn:
            before = disturbed.tokens
            for _ in range(2):
                with pytest.raises(type(error)):
                    disturbed.reply(ids, on_token=Failing(error, at), seed=number, **SAMPLED)
                assert disturbed.tokens == before
        replies = [chat.reply(ids, seed=number, **SAMPLED) for chat in (undisturbed, disturbed)]
        assert replies[0].token_ids == replies[1].token_ids
        assert undisturbed.tokens == disturbed.tokens


def test_many_turns_are_a_few_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row reads a limited number of pieces of the pool: turns are copied behind each other, and nothing changes."""
    synth = ps.ParallelSynthesis(tiny_model(layers=1))
    undisturbed, compacting = ps.ParallelSynthesis(tiny_model(layers=1)).session(), synth.session()
    between = []
    for number in range(5):
        expected = undisturbed.reply(TURNS[number % 2], seed=number, **SAMPLED)
        with monkeypatch.context() as patch:
            patch.setattr(admission, "MOST_PIECES", 2)
            found = compacting.reply(TURNS[number % 2], seed=number, **SAMPLED)
        between.append(synth.runner.reserve(1, 0))  # the next turn cannot lie behind this one
        assert found.token_ids == expected.token_ids
        np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5)
    assert synth.runner.scheduler.counts["compactions"] > 0


def test_what_is_copied_may_be_evicted_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The room for the copy may be what was found: then the copy is the turn's alone."""
    synth = ps.ParallelSynthesis(tiny_model(layers=1))
    undisturbed, chat = ps.ParallelSynthesis(tiny_model(layers=1)).session(), synth.session()
    pool, copy = synth.runner.pool, admission.compacted

    def evicting(leases: Any, block: int) -> Any:
        found = copy(leases, block)
        pool.prefixes.clear()
        return found

    between = []
    for number in range(4):
        expected = undisturbed.reply(TURNS[number % 2], seed=number, **SAMPLED)
        with monkeypatch.context() as patch:
            patch.setattr(admission, "MOST_PIECES", 1)
            patch.setattr(admission, "compacted", evicting)
            found = chat.reply(TURNS[number % 2], seed=number, **SAMPLED)
        between.append(synth.runner.reserve(1, 0))
        assert found.token_ids == expected.token_ids
    assert synth.runner.scheduler.counts["compactions"] > 0
    between.clear()
    pool.prefixes.clear()
    assert pool.used_slots == pool.allocator.owned_slots() == 0


@pytest.mark.parametrize("step", ["prefill", "decode"])
@pytest.mark.parametrize("turn", [0, 1])
def test_a_turn_broken_off_between_two_steps_has_not_been(
    synth: ps.ParallelSynthesis, branches: Branches, monkeypatch: pytest.MonkeyPatch, step: str, turn: int
) -> None:
    """What it has written is nobody's."""
    undisturbed, disturbed = synth.session(branches), synth.session(branches)
    for number in range(turn):
        assert undisturbed.reply(TURNS[number], **SAMPLED).token_ids == disturbed.reply(TURNS[number], **SAMPLED).token_ids
    collect = Scheduler._collect

    def interrupted(scheduler: Scheduler, launched: Launched) -> None:
        collect(scheduler, launched)
        if (launched.batch.tokens > 1) == (step == "prefill"):
            raise KeyboardInterrupt

    monkeypatch.setattr(Scheduler, "_collect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        disturbed.reply(TURNS[turn], **SAMPLED)
    monkeypatch.undo()
    for number in range(turn, 2):
        assert undisturbed.reply(TURNS[number], **SAMPLED).token_ids == disturbed.reply(TURNS[number], **SAMPLED).token_ids


def test_a_callback_cannot_ask_the_next_turn(synth: ps.ParallelSynthesis, branches: Branches) -> None:
    chat = synth.session(branches)
    with pytest.raises(InputError, match="answering a turn"):
        chat.reply(TURNS[0], on_token=lambda piece: chat.reply(TURNS[1]), **SAMPLED)
    assert chat.tokens == 0
    assert chat.reply(TURNS[0], **SAMPLED).token_ids == synth.session(branches).reply(TURNS[0], **SAMPLED).token_ids


def test_turns_of_several_threads_come_one_after_the_other(synth: ps.ParallelSynthesis, branches: Branches) -> None:
    chat = synth.session(branches)
    with ThreadPoolExecutor(4) as pool:
        replies = [*pool.map(lambda _: chat.reply(TURNS[0], **SAMPLED), range(4))]
    alone = synth.session(branches)
    expected = [alone.reply(TURNS[0], **SAMPLED).token_ids for _ in range(4)]
    assert sorted(reply.token_ids for reply in replies) == sorted(expected)


def test_a_question_may_hold_what_stands_for_an_answer(talking: ps.ParallelSynthesis) -> None:
    chat = talking.session()
    chat.reply("why?", max_new_tokens=2)
    assert chat.reply("what is \u2042answer\u2042?", max_new_tokens=2).token_ids is not None


@pytest.mark.parametrize(
    "template", ["{{ messages[-1].content }}", "{% for m in messages * 2 %}{{ m.content }}{% endfor %}"]
)
def test_a_template_that_cannot_go_on_is_named(template: str) -> None:
    model = talking_model(layers=1)
    model.tokenizer.backend.chat_template = template
    chat = ps.ParallelSynthesis(model).session()
    chat.reply("why?", max_new_tokens=2)
    with pytest.raises(InputError, match="does not show earlier answers"):
        chat.reply("and?", max_new_tokens=2)


def test_messages_start_a_conversation_only(talking: ps.ParallelSynthesis) -> None:
    chat = talking.session()
    messages = [{"role": "user", "content": "why?"}]
    chat.reply(messages, max_new_tokens=2)
    with pytest.raises(InputError, match="later turns are a text or token ids"):
        chat.reply(messages, max_new_tokens=2)


def test_a_batch_of_questions_is_refused(synth: ps.ParallelSynthesis, branches: Branches) -> None:
    with pytest.raises(InputError, match=r"branches\[0\]"):
        synth.session(Branches.batch([branches, branches]))

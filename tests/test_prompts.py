"""Roles from YAML, and the messages that are made of a question."""

from __future__ import annotations

from pathlib import Path

import pytest

import psynth_jax as ps
from psynth_jax.errors import InputError
from psynth_jax.prompts import (
    Role,
    baseline_messages,
    load_roles,
    question_messages,
    synthesis_messages,
    worker_messages,
    worker_prompts,
)


def content(messages: list) -> str:
    (message,) = messages
    assert message["role"] == "user"
    return message["content"]


def test_built_in_roles_differ() -> None:
    roles = load_roles()
    assert len(roles) >= 3
    assert len({role.name for role in roles}) == len({role.text for role in roles}) == len(roles)


def test_roles_of_the_user(tmp_path: Path) -> None:
    file = tmp_path / "roles.yaml"
    file.write_text("- name: poet\n  text: Answer in rhyme.\n- {name: naïf, text: Être bref.}\n", encoding="utf-8")
    expected = (Role("poet", "Answer in rhyme."), Role("naïf", "Être bref."))
    assert load_roles(file) == load_roles(str(file)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold a list"),
        ("[]", "must hold a list"),
        ("name: poet", "must hold a list"),
        ("just words", "must hold a list"),
        ("- poet", "role 1"),
        ("- name: poet", "role 1"),
        ("- {name: poet, text: Rhyme.}\n- {name: critic, text: ''}", "role 2"),
        ("- {name: poet, text: 7}", "role 1"),
        ("- {name: poet, text: Rhyme., temperature: 1}", "role 1"),
        ("- {name: poet, text: [unclosed", "not valid YAML"),
        ("- !!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "roles.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        load_roles(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml: No such file"):
        load_roles(tmp_path / "nowhere.yaml")
    with pytest.raises(InputError, match="directory"):
        load_roles(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("- {name: naïf, text: x}".encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        load_roles(tmp_path / "latin.yaml")


def test_workers_take_roles_in_order_and_start_over() -> None:
    roles = load_roles()[:2]
    prompts = ps.worker_prompts("Why?", roles, 3)
    assert [content(messages) for messages in prompts] == [
        content(worker_messages("Why?", role)) for role in (roles[0], roles[1], roles[0])
    ]
    assert worker_prompts("Why?", roles, 0) == []


def test_workers_share_everything_before_their_role() -> None:
    one, other = (content(worker_messages("Why is it so?", Role("x", text))) for text in ("Alpha.", "Omega."))
    assert one.startswith("Question: Why is it so?") and one.endswith("Alpha.")
    assert one.removesuffix("Alpha.") == other.removesuffix("Omega.")


def test_the_question_is_in_every_prompt_as_it_was_asked() -> None:
    question = "What does {x} mean in 'f\"{x}\"'?"
    assert content(question_messages(question)) == question
    assert content(synthesis_messages(question)).endswith(question)
    assert content(baseline_messages(question, ["a {note}", "more"])).endswith(content(synthesis_messages(question)))


def test_the_baseline_pastes_all_texts_in_order() -> None:
    pasted = content(baseline_messages("Why?", ["  first note\n", "second note"]))
    assert pasted.index("first note") < pasted.index("second note") < pasted.index("Why?")
    assert pasted.count("[Notes 1]") == pasted.count("[Notes 2]") == 1

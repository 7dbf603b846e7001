"""FLAN: prompts are cut into their examples, inverse prompts are turned round, and groups stay as they are."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from psynth_jax.data.sources import few_shot_rules as rules
from tests.data.sources.converting import reason, record


def row(inputs: str, targets: str = "4", task: str = "cot_gsm8k", **extra: Any) -> dict[str, Any]:
    return {"inputs": inputs, "targets": targets, "_task_name": task, "_template_type": "fs_noopt", **extra}


class TestForward:
    BY_BLANKS = "Q: 1+1?\nA: 2\n\nQ: 1+2?\nA: 3\n\n\nQ: 1+3?\nA:"

    @pytest.mark.parametrize(
        "prompt",
        [
            BY_BLANKS,
            "Question: 1+1?\nAnswer: 2\n***\nQuestion: 1+2?\nAnswer: 3\n***\nQuestion: 1+3?\nAnswer:",
            "Problem: 1+1?\nSolution: 2\n----\nProblem: 1+2?\nSolution: 3\n  ----\nProblem: 1+3?\n\nSolution:\n",
            "Question 1: 1+1?\n\nExplanation: 2\n\nQuestion 2: 1+2?\n\nExplanation: 3\n\nQuestion 3: 1+3?\n\nExplanation:",
        ],
    )
    def test_examples_question_and_target(self, prompt: str) -> None:
        made = record("flan", row(prompt))
        assert made.query.endswith("\n\n1+3?") and made.target == "4"
        assert [branch.text.partition("\n")[0] for branch in made.branches] == ["Example question 1:", "Example question 2:"]
        assert ["1+1?" in made.branches[0].text, "3" in made.branches[1].text] == [True, True]
        assert made.meta == {"_task_name": "cot_gsm8k", "_template_type": "fs_noopt", "rules": rules.VERSION}

    def test_blank_lines_inside_examples_are_kept_where_separators_stand(self) -> None:
        prompt = "Read.\n\n1+1?\nA: 2\n____\nRead.\n\n1+2?\nA: 3\n____\nRead.\n\n1+3?\nA:"
        made = record("flan", row(prompt))
        assert made.branches[0].text == "Example question 1:\nRead.\n\n1+1?\nA: 2" and made.query.endswith("Read.\n\n1+3?")

    def test_options_stay_with_their_question(self) -> None:
        options = "\nOptions:\n- yes\n- no"
        prompt = f"Q: Red?{options}\nA: yes\n\nQ: Blue?{options}\nA: no\n\nQ: Green?{options}"
        assert record("flan", row(prompt, "no")).query.endswith(f"Green?{options}")

    def test_only_the_first_examples(self) -> None:
        assert len(record("flan", row(self.BY_BLANKS), max_contexts=1).branches) == 1

    @pytest.mark.parametrize(
        ("change", "options", "said"),
        [
            ({"inputs": ""}, {}, "no inputs or no targets"),
            ({"targets": None}, {}, "no inputs or no targets"),
            ({"_template_type": "zs_opt"}, {}, "a prompt without examples"),
            ({"inputs": "Q: 1+1?\nA: 2\n\nQ: 1+2?"}, {}, "too few examples"),
            ({"inputs": "Q:\nA:\n\nQ: 1+1?\nA: 2\n\nQ: 1+2?"}, {}, "too few examples"),
            ({"inputs": "Q: 1+1?\nA: 2\n\nQ: 1+2?\nA: 3\n\nA:"}, {}, "no question"),
            ({}, {"min_branches": 3}, "too few examples"),
        ],
    )
    def test_what_is_dropped(self, change: dict[str, Any], options: dict[str, Any], said: str) -> None:
        assert reason("flan", row(self.BY_BLANKS) | change, **options) == said


class TestInverse:
    PROMPT = "Answer: 2\nQuestion: 1+1?\n\nAnswer: 3\nQuestion: 1+2?\n\nAnswer: 4\nQuestion:"

    def test_markers_give_pairs_and_the_prompt_asks_for_the_answer(self) -> None:
        made = record("flan", row(self.PROMPT, "1+3?", "cot_gsm8k_ii"))
        assert [branch.text for branch in made.branches] == [
            "Example question 1:\n1+1?\n\nExample answer 1:\n2",
            "Example question 2:\n1+2?\n\nExample answer 2:\n3",
        ]
        assert made.query.endswith("\n\n1+3?") and made.target == "4"

    def test_the_short_answer_comes_last(self) -> None:
        prompt = self.PROMPT.replace(
            "Answer: 4\nQuestion:", "Answer: 4\nRationale: One and three, which have to be added.\nQ:"
        )
        assert record("flan", row(prompt, "1+3?", "x_ii")).target == "One and three, which have to be added.\n4"
        target = "1+3?\nExplanation: One and three, which have to be added to each other, make up this whole number."
        assert record("flan", row(self.PROMPT, target, "x_ii")).target.split("\n")[-1] == "4"

    def test_blocks_are_read_where_markers_fail(self) -> None:
        prompt = "two\n\nWhat is 1+1?\n\nthree\n\nWhat is 1+2?\nOptions:\n- two\n- three\n\nfour"
        made = record("flan", row(prompt, "What is 1+3?", "x_ii"))
        assert made.branches[1].text.endswith("Example answer 2:\nthree") and made.target == "four"

    def test_a_short_last_line_behind_options_is_the_answer(self) -> None:
        assert rules.split_answer("Which?\nOptions:\n- red\n- blue\nred") == ("Which?\nOptions:\n- red\n- blue", "red")
        assert rules.split_answer("Which?\nOptions:\n- red\n- blue") == ("Which?\nOptions:\n- red\n- blue", "")
        assert rules.split_answer("Which?\nred") == ("Which?\nred", "")

    def test_what_is_dropped(self) -> None:
        assert reason("flan", row("Answer: 2\nQuestion: 1+1?\n\nAnswer: 3\nQuestion:", "1+2?", "x_ii")) == "too few examples"
        assert reason("flan", row(self.PROMPT.replace("Answer: 4", ""), "1+3?", "x_ii")) == "no answer"
        assert reason("flan", row(self.PROMPT, "Answer: 1+3?", "x_ii")) == "no question"


class TestGroups:
    ROW: ClassVar[dict[str, Any]] = {
        "id": "s/0",
        "task": "strategyqa",
        "examples": [{"input": f"q{n}", "target": f"a{n}", "rationale": f"r{n}"} for n in (1, 2)],
        "input": "q",
        "target": "yes",
        "rationale": "Because.",
    }

    def test_reasons_then_the_answer(self) -> None:
        made = record("flan_cot", self.ROW)
        assert made.branches[1].text == "Example question 2:\nq2\n\nExample answer 2:\nr2\nThe answer is a2"
        assert (made.id, made.target, made.answers) == ("s/0", "Because.\nThe answer is yes", ("yes",))
        assert made.query.endswith("\n\nq") and made.meta == {"task": "strategyqa"}

    def test_answers_alone(self) -> None:
        made = record("flan_cot", self.ROW, rationale=False)
        assert made.target == "yes" and made.branches[0].text.endswith("Example answer 1:\na1")

    def test_only_the_first_examples(self) -> None:
        assert len(record("flan_cot", self.ROW, max_contexts=1).branches) == 1

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"examples": []}, "too few examples"),
            ({"examples": ["q", "a"]}, "an example is no object"),
            ({"examples": [{"input": "q1"}, {}]}, "an input or a target is empty"),
            ({"target": ""}, "an input or a target is empty"),
        ],
    )
    def test_what_is_dropped(self, change: dict[str, Any], said: str) -> None:
        assert reason("flan_cot", self.ROW | change) == said

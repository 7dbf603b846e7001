"""`psynth run` on a tiny model: what goes to stdout and stderr, where branches come from, what the options do."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

import psynth_jax as ps
from psynth_jax.synthesis import pipeline
from tests.cli.conftest import Command
from tests.tiny import random_lora, random_mapper

RESULT = {"answer", "ttft_s", "prompt_tokens", "cached_tokens", "decode_tokens_per_s", "finish_reason"}
QUESTION = "Why does bread rise?"


@pytest.fixture
def run(psynth: Command, model_directory: Path) -> Command:
    """Run `psynth run QUESTION` with short texts."""

    def run_it(*arguments: object, question: str = QUESTION) -> Any:
        model = ("--model", model_directory, "--max-new-tokens", 4)
        work = () if "--branch" in arguments else ("--worker-tokens", 5)  # given branches have no workers
        return psynth("run", question, *model, *work, *arguments)

    return run_it


class TestJson:
    @pytest.mark.slow
    def test_workers(self, run: Command) -> None:
        found = run("--workers", 2, "--json").json
        assert set(found) == {"question", "workers", "adapter"} | RESULT
        assert found["adapter"] is None
        assert found["question"] == QUESTION
        assert [set(worker) for worker in found["workers"]] == [{"role", "text", "tokens", "finish_reason"}] * 2
        assert [worker["role"] for worker in found["workers"]] == [role.name for role in ps.load_roles()[:2]]
        assert [(worker["tokens"], worker["finish_reason"]) for worker in found["workers"]] == [(5, "length")] * 2
        assert [len(worker["text"]) for worker in found["workers"]] == [5, 5]
        assert len(found["answer"]) == 4
        assert found["cached_tokens"] == 10
        assert found["prompt_tokens"] > len(QUESTION)
        assert found["ttft_s"] > 0

    def test_equals_the_library(self, run: Command, model_directory: Path) -> None:
        found = run("--workers", 2, "--json").json
        synth = ps.ParallelSynthesis(ps.load_model(model_directory))
        branches = synth.work(ps.worker_prompts(QUESTION, ps.load_roles(), 2), 5)
        result = synth.synthesize(QUESTION, branches, 4)
        assert [worker["text"] for worker in found["workers"]] == branches.texts
        assert (found["answer"], found["prompt_tokens"]) == (result.text, result.prompt_tokens)

    def test_compare(self, run: Command) -> None:
        found = run("--workers", 2, "--json", "--compare").json
        assert set(found) == {"question", "workers", "adapter", "text", "question_alone"} | RESULT
        assert set(found["text"]) == set(found["question_alone"]) == RESULT
        assert found["text"]["cached_tokens"] == found["question_alone"]["cached_tokens"] == 0
        assert found["text"]["prompt_tokens"] > found["prompt_tokens"] + 10  # the texts are prefilled too
        assert found["question_alone"]["prompt_tokens"] < found["prompt_tokens"]

    @pytest.mark.slow
    def test_texts_that_are_too_long_to_paste(self, run: Command) -> None:
        """Three branches of 200 tokens overlap, their texts do not: the others answer all the same."""
        branches = [argument for letter in "abc" for argument in ("--branch", letter * 200)]
        found = run(*branches, "--json", "--compare").json
        assert found["cached_tokens"] == 600 and len(found["answer"]) == 4
        assert set(found["text"]) == {"error"} and "pasted texts does not fit" in found["text"]["error"]
        assert set(found["question_alone"]) == RESULT
        done = run(*branches, "--compare")
        assert (done.code, done.out) == (0, found["answer"] + "\n")
        assert "from text · does not fit" in done.err and "times that from caches" not in done.err

    def test_given_branches(self, run: Command, tmp_path: Path) -> None:
        (tmp_path / "note.txt").write_bytes(b"the disk is full\n")  # the last new line is the file's
        found = run("--branch", "all is well", "--branch", f"@{tmp_path / 'note.txt'}", "--json").json
        assert found["workers"] == [
            {"role": "branch 1", "text": "all is well", "tokens": 11, "finish_reason": "given"},
            {"role": "branch 2", "text": "the disk is full", "tokens": 16, "finish_reason": "given"},
        ]
        assert found["cached_tokens"] == 27

    def test_question_from_a_file(self, run: Command, tmp_path: Path) -> None:
        (tmp_path / "question.txt").write_text("Wie geht's, Jürgen?", encoding="utf-8")
        assert run("--branch", "x", "--json", question=f"@{tmp_path / 'question.txt'}").json["question"] == (
            "Wie geht's, Jürgen?"
        )

    @pytest.mark.parametrize(
        ("content", "read"), [(b"Why?", "Why?"), (b"Why?\r\n", "Why?"), (b"Why?\n\n", "Why?\n"), (b"\nWhy?\r", "\nWhy?\r")]
    )
    def test_standard_input(self, run: Command, monkeypatch: pytest.MonkeyPatch, content: bytes, read: str) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert run("--branch", "x", "--max-new-tokens", 1, "--json", question="-").json["question"] == read

    def test_a_branch_on_standard_input(self, run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a note\n")))
        assert run("--branch", "-", "--max-new-tokens", 1, "--json").json["workers"][0]["text"] == "a note"

    def test_the_terminal_says_which_adapter_is_used(
        self, run: Command, model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "none").mkdir()
        monkeypatch.chdir(tmp_path)
        options = ("--branch", "x", "--max-new-tokens", 1)
        assert "adapter: none (no adapter is shipped for" in run(*options).err
        assert "adapter: none (as asked)" in run(*options, "--adapter", "none").err
        assert "./none is not an adapter" in run(*options, "--adapter", "./none").err  # that is a directory

    @pytest.mark.slow
    def test_roles(self, run: Command, tmp_path: Path) -> None:
        (tmp_path / "roles.yaml").write_text("- {name: '[bold]poet', text: Rhyme.}\n- {name: judge, text: Judge.}\n")
        found = run("--roles", tmp_path / "roles.yaml", "--workers", 3, "--temperature", 1, "--json").json
        assert [worker["role"] for worker in found["workers"]] == ["[bold]poet", "judge", "[bold]poet"]
        assert len({worker["text"] for worker in found["workers"]}) == 3

    @pytest.mark.slow
    def test_sampling(self, run: Command) -> None:
        def text(*options: object) -> str:
            found = run("--workers", 1, "--json", *options).json
            return found["workers"][0]["text"] + found["answer"]

        hot = ("--temperature", 2)
        greedy = text()
        drawn = text(*hot)
        assert text(*hot) == drawn != greedy
        assert text(*hot, "--seed", 1) not in (drawn, greedy)
        assert text(*hot, "--top-k", 1) == text(*hot, "--top-p", 0.0001) == greedy

    def test_reference_live_needs_workers(self, run: Command) -> None:
        found = run("--workers", 2, "--positions", "reference_live", "--json").json
        assert found["cached_tokens"] == 10
        assert found["answer"] != run("--workers", 2, "--json").json["answer"]

    @pytest.mark.slow
    def test_cache_dtype(self, run: Command) -> None:
        plain = run("--workers", 2, "--json").json
        same, int8 = (run("--workers", 2, "--json", "--cache-dtype", dtype).json for dtype in ("float32", "int8"))
        assert plain["answer"] == same["answer"]
        assert int8["cached_tokens"] == plain["cached_tokens"] and int8["ttft_s"] > 0

    @pytest.mark.slow
    def test_adapter(self, run: Command, model_directory: Path, tmp_path: Path) -> None:
        model = ps.load_model(model_directory)
        synth = ps.ParallelSynthesis(model, adapter=random_lora(model.config, 1))
        synth.set_mapper(random_mapper(1))
        ps.save_adapter(str(tmp_path / "adapter"), synth.adapter, model)
        with_it = run("--branch", "a note", "--adapter", tmp_path / "adapter", "--compare", "--json").json
        without = run("--branch", "a note", "--compare", "--json").json
        assert with_it["answer"] != without["answer"]
        assert with_it["text"]["answer"] == without["text"]["answer"]  # the baseline is the base model


class TestForPeople:
    def test_answer_alone_on_stdout(self, run: Command) -> None:
        answer = run("--workers", 2, "--json").json["answer"]
        done = run("--workers", 2)
        assert (done.code, done.out) == (0, answer + "\n")
        roles = [role.name for role in ps.load_roles()[:2]]
        for word in [*(f"{role} · 5 tokens · cut off" for role in roles), "TTFT", "caches", "4 · cut off"]:
            assert word in done.err
        assert "\x1b" not in done.err + done.out
        assert answer not in done.err

    def test_compare(self, run: Command) -> None:
        found = run("--workers", 2, "--json", "--compare").json
        done = run("--workers", 2, "--compare")
        assert (done.code, done.out) == (0, found["answer"] + "\n")
        for word in ["from caches", "from text", "from question alone", found["text"]["answer"], "TTFT from text is"]:
            assert word in done.err
        assert "\x1b" not in done.err + done.out

    @pytest.mark.slow
    def test_long_given_text_is_cut_in_the_view_only(self, run: Command) -> None:
        done = run("--branch", "word " * 80)
        assert done.code == 0
        assert done.err.count("word") == 48
        assert "branch 1 · 400 tokens · given" in done.err

    @pytest.mark.filterwarnings("default:greedy workers")
    def test_copies_are_warned_of_in_one_line(self, run: Command, tmp_path: Path) -> None:
        (tmp_path / "roles.yaml").write_text("- {name: poet, text: Rhyme.}\n")
        done = run("--roles", tmp_path / "roles.yaml", "--workers", 2)
        assert done.code == 0
        assert done.err.startswith("warning: greedy workers with the same prompt write the same branch")
        assert done.err.count("warning") == 1


class TestWorkersThatWriteNothing:
    @pytest.fixture
    def texts(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Replace what the workers write by these texts."""
        texts: list[str] = []

        def work(self: pipeline.ParallelSynthesis, *_: Any, **__: Any) -> ps.Branches:
            return self.encode(texts)

        monkeypatch.setattr(pipeline.ParallelSynthesis, "work", work)
        monkeypatch.setattr(pipeline.inputs, "plain_ids", lambda model, text, what: tuple(model.tokenizer.encode(text)))
        return texts

    def test_are_left_out(self, run: Command, texts: list[str]) -> None:
        texts[:] = ["one", " \n", "three"]
        found = run("--json", "--compare").json
        assert [worker["text"] for worker in found["workers"]] == texts
        assert found["cached_tokens"] == 8
        assert "critic · 5 tokens" in (err := run("--compare").err)
        assert "fact finder · 2 tokens · wrote nothing, left out" in err

    def test_all_of_them(self, run: Command, texts: list[str]) -> None:
        texts[:] = [" ", "\n"]
        done = run("--workers", 2, "--json")
        assert (done.code, done.out) == (2, "")
        assert done.err == "error: no worker wrote anything: try other roles, or a temperature above 0\n"


class TestInterrupted:
    def test_quits_quietly(self, run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(pipeline.ParallelSynthesis, "work", interrupted)
        done = run()
        assert (done.code, done.out, done.err) == (130, "", "")

    def test_our_own_mistakes_are_not_hidden(self, run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: Any, **__: Any) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(pipeline.ParallelSynthesis, "work", broken)
        done = run()
        assert (done.code, done.out) == (1, "")
        assert done.err.splitlines()[-1].startswith("internal error: RuntimeError: a bug; details are in ")


@pytest.mark.weights
@pytest.mark.slow
def test_real_weights_give_the_same_text_twice(psynth: Command, smollm2_path: Path) -> None:
    arguments = ("run", QUESTION, "--model", smollm2_path, "--workers", 2, "--worker-tokens", 8, "--max-new-tokens", 8)
    first, second = psynth(*arguments, "--json").json, psynth(*arguments, "--json").json
    assert set(first) == {"question", "workers", "adapter"} | RESULT
    assert first["adapter"].endswith("adapters/smollm2-135m"), (
        "the adapter that comes with the package is found by the weights"
    )
    base = psynth(*arguments, "--adapter", "none", "--json").json
    assert base["adapter"] is None and base["workers"] == first["workers"]
    assert first["workers"] == second["workers"]
    assert first["answer"] == second["answer"]
    assert first["answer"].isascii() and " " in first["answer"]
    assert base["cached_tokens"] == sum(worker["tokens"] for worker in first["workers"]) == 16
    described = json.loads((Path(first["adapter"]) / "psynth_adapter.json").read_text())
    assert first["cached_tokens"] == 16 + len(described["sink"])

"""Live workers of an evaluation: written once, read by every method, resumed, shared by processes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import psynth_jax as ps
from psynth_jax.convert.adapter_directory import Adapter
from psynth_jax.errors import DataError, InputError
from psynth_jax.evaluation.benchmarks.benchmark import Benchmark, BenchmarkQuestion
from psynth_jax.evaluation.lines import Lines, Shard
from psynth_jax.evaluation.live import WorkerOptions
from psynth_jax.evaluation.methods import Synthesizers, choose, encoded
from psynth_jax.evaluation.run import Plan, evaluate
from psynth_jax.evaluation.tasks import Question
from psynth_jax.mapper import Mapper
from psynth_jax.prompts import Role, question_messages
from tests.tiny import random_lora, random_mapper, talking_model

METHODS = ("text", "branches", "wrong-branches", "vote", "best-worker", "self")
WORKERS = WorkerOptions(workers=2, max_new_tokens=7, seed=3)


class Sums(Benchmark):
    """Made-up questions: an answer is right that begins with a letter of the name."""

    name = "sums"
    max_new_tokens = 9

    def __init__(self, count: int = 5):
        super().__init__("made up")
        self.count = count

    def question(self, where: str, row: Mapping[str, Any], number: int) -> BenchmarkQuestion:
        raise AssertionError("there are no rows")

    def questions(self) -> Sequence[BenchmarkQuestion]:
        found = []
        for number in range(self.count):
            asked = f"What is {number} and {number}?"
            answer = (str(2 * number),)
            question = BenchmarkQuestion(str(number), self.name, asked, (), answer, worker_prompt=f"Think: {asked}")
            found.append(question)
        return found

    def extract(self, written: str) -> str:
        return written[:1]

    def judged(self, written: str, question: Question) -> tuple[str, Mapping[str, float]]:
        return self.extract(written), {"accuracy": float(self.extract(written) in "aeiou")}


@pytest.fixture(scope="module")
def synthesizers() -> Synthesizers:
    model = talking_model()
    return Synthesizers.over(model, Adapter(random_lora(model.config, 1), Mapper.from_arrays(random_mapper(1))))


def plan(methods: Sequence[str] = METHODS, workers: WorkerOptions = WORKERS, **changed: Any) -> Plan:
    return Plan.of(Sums(), choose(methods, {"adapter"}), batch=2, workers=workers, **changed)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def ran(synthesizers: Synthesizers, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ran")
    return folder, evaluate(plan(), synthesizers, folder)


class TestWorkers:
    def test_are_asked_the_benchmarks_prompt(self, ran: tuple[Path, Any], synthesizers: Synthesizers) -> None:
        """Line by line what the same workers write alone."""
        folder, _ = ran
        for line in lines(folder / "questions.jsonl"):
            assert len(line["workers"]) == 2 and line["seconds"] > 0
            for worker in line["workers"]:
                assert worker["prompt"] == f"Think: {line['question']}"
                assert worker["tokens"] == len(worker["token_ids"]) <= 7

    def test_write_the_same_in_any_batch(self, ran: tuple[Path, Any], synthesizers: Synthesizers, tmp_path: Path) -> None:
        folder, _ = ran
        alone = Plan.of(Sums(), choose(["vote"], set()), batch=1, workers=WORKERS)
        evaluate(alone, synthesizers, tmp_path)
        texts = {line["id"]: [each["token_ids"] for each in line["workers"]] for line in lines(folder / "questions.jsonl")}
        for line in lines(tmp_path / "questions.jsonl"):
            assert [each["token_ids"] for each in line["workers"]] == texts[line["id"]]

    def test_draw_apart(self, ran: tuple[Path, Any]) -> None:
        folder, _ = ran
        for name in ("questions", "others"):
            for line in lines(folder / f"{name}.jsonl"):
                first, second = line["workers"]
                assert first["token_ids"] != second["token_ids"]
        one, other = (lines(folder / f"{name}.jsonl")[0]["workers"][0] for name in ("questions", "others"))
        assert one["token_ids"] != other["token_ids"]

    def test_roles_come_last(self, synthesizers: Synthesizers, tmp_path: Path) -> None:
        told = dataclasses.replace(WORKERS, roles=[Role("short", "Be short."), Role("odd", "Be odd.")], workers=3)
        evaluate(plan(["vote"], told, limit=1), synthesizers, tmp_path)
        (line,) = lines(tmp_path / "questions.jsonl")
        assert [worker["role"] for worker in line["workers"]] == ["short", "odd", "short"]
        assert line["workers"][1]["prompt"] == "Think: What is 0 and 0?\n\nYour part: Be odd."

    @pytest.mark.parametrize(
        ("changed", "said"),
        [({"workers": 0}, "workers is 0"), ({"temperature": -1.0}, "temperature is -1"), ({"top_p": 0.0}, "top_p is 0")],
    )
    def test_refuse_nonsense(self, changed: dict[str, Any], said: str) -> None:
        with pytest.raises(InputError, match=said):
            WorkerOptions(**changed)

    def test_no_tokens_is_not_the_default(self) -> None:
        with pytest.raises(InputError, match="max_new_tokens is 0"):
            WorkerOptions(max_new_tokens=0)

    def test_private_questions_are_not_kept(self, synthesizers: Synthesizers, tmp_path: Path) -> None:
        hidden = type("Hidden", (Sums,), {"private": True})
        asked = Plan.of(hidden(2), choose(["text", "vote"], set()), batch=2, workers=WORKERS)
        first = evaluate(asked, synthesizers, tmp_path)
        assert "What is" not in (tmp_path / "questions.jsonl").read_text()
        (tmp_path / "rows.jsonl").unlink()
        again = evaluate(asked, synthesizers, tmp_path)  # from the workers' lines
        assert again["methods"]["vote"]["accuracy"] == first["methods"]["vote"]["accuracy"]


class TestMethods:
    def test_read_the_caches_of_the_live_workers(self, synthesizers: Synthesizers, ran: tuple[Path, Any]) -> None:
        """The caches that are computed from a line are those that the workers had."""
        folder, _ = ran
        (line, *_) = lines(folder / "questions.jsonl")
        base = synthesizers.base
        chats = [question_messages(worker["prompt"]) for worker in line["workers"]]
        seeds = [17, 18]
        live = base.work(chats, 7, 0.6, 0.95, seed=seeds)
        from psynth_jax.evaluation.tasks import Written

        workers = [
            Written(worker["prompt"], branch.token_ids, branch.text, branch.finish_reason)
            for worker, branch in zip(line["workers"], live.questions[0], strict=True)
        ]
        question = Question(line["id"], line["task"], line["question"], (), ("0",)).written_by(workers)
        again = encoded(base, [question])
        one, other = base.score("Well?", "yes", live), base.score("Well?", "yes", again[0])
        assert abs(one - other).max() < 1e-5

    def test_all_read_the_same_workers(self, ran: tuple[Path, Any]) -> None:
        folder, summary = ran
        written = {line["id"]: [worker["text"] for worker in line["workers"]] for line in lines(folder / "questions.jsonl")}
        tokens = {line["id"]: sum(w["tokens"] for w in line["workers"]) for line in lines(folder / "questions.jsonl")}
        for row in lines(folder / "rows.jsonl"):
            if row["method"] in ("vote", "best-worker"):
                assert row["written"] in [*written[row["id"]], ""]
            if row["method"] == "branches":
                assert row["cached_tokens"] == tokens[row["id"]]
        assert set(summary["methods"]) == set(METHODS)
        assert summary["methods"]["best-worker"]["accuracy"]["mean"] >= summary["methods"]["vote"]["accuracy"]["mean"]

    def test_are_compared_with_text(self, ran: tuple[Path, Any]) -> None:
        _, summary = ran
        for name, found in summary["methods"].items():
            assert ("judge_consistency" in found) == (name != "text")
        text, branches = (summary["methods"][name]["accuracy"]["mean"] for name in ("text", "branches"))
        assert summary["methods"]["branches"]["difference_to_text"]["accuracy"]["value"] == pytest.approx(branches - text)

    def test_the_summary_says_how_workers_wrote(self, ran: tuple[Path, Any]) -> None:
        folder, summary = ran
        tokens = sum(worker["tokens"] for line in lines(folder / "questions.jsonl") for worker in line["workers"])
        assert summary["worker_output"]["tokens"] == tokens
        assert (summary["workers"], summary["worker_temperature"], summary["worker_max_new_tokens"]) == (2, 0.6, 7)
        assert (summary["worker_output"]["texts"], summary["worker_output"]["does_not_fit"]) == (10, 0)

    def test_the_summary_counts_workers_that_did_not_fit(self, synthesizers: Synthesizers, tmp_path: Path) -> None:
        options = dataclasses.replace(WORKERS, max_new_tokens=100_000)
        summary = evaluate(plan(["text"], options, limit=2, max_new_tokens=3), synthesizers, tmp_path)
        assert (summary["worker_output"]["does_not_fit"], summary["worker_output"]["empty"]) == (4, 4)
        assert summary["methods"]["text"]["n"] == 2


class TestResuming:
    def test_writes_nothing_twice(self, ran: tuple[Path, Any], synthesizers: Synthesizers) -> None:
        folder, summary = ran
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert evaluate(plan(), synthesizers, folder) == summary
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    def test_goes_on_behind_a_torn_line(self, ran: tuple[Path, Any], synthesizers: Synthesizers, tmp_path: Path) -> None:
        folder, _ = ran
        evaluate(plan(["vote"], limit=3), synthesizers, tmp_path)
        path = tmp_path / "questions.jsonl"
        path.write_text(path.read_text()[:-30])
        evaluate(plan(["vote"]), synthesizers, tmp_path)
        whole = {line["id"]: line["workers"] for line in lines(folder / "questions.jsonl")}
        assert {line["id"]: line["workers"] for line in lines(path)} == whole

    def test_refuses_other_workers(self, ran: tuple[Path, Any], synthesizers: Synthesizers) -> None:
        folder, _ = ran
        with pytest.raises(InputError, match="workers is 3, it was 2"):
            evaluate(plan(workers=dataclasses.replace(WORKERS, workers=3)), synthesizers, folder)

    @pytest.mark.parametrize(
        "line",
        [
            {},
            {"workers": []},
            {"id": ["0"]},
            {"workers": [{"prompt": "a", "text": "b", "finish_reason": "stop", "role": "", "token_ids": ["x"]}]},
        ],
        ids=str,
    )
    def test_a_damaged_line(self, synthesizers: Synthesizers, tmp_path: Path, line: dict[str, Any]) -> None:
        evaluate(plan(["vote"], limit=1), synthesizers, tmp_path)
        whole = {"task": "sums", "id": "0", "seconds": 1.0, "batch": 1} | line
        (tmp_path / "questions.jsonl").write_text(json.dumps(whole) + "\n")
        with pytest.raises(DataError, match=r"questions\.jsonl:1: not a question with what its workers wrote"):
            evaluate(plan(["vote"], limit=1), synthesizers, tmp_path)


class TestShards:
    def test_together_are_the_whole(self, ran: tuple[Path, Any], synthesizers: Synthesizers, tmp_path: Path) -> None:
        methods = [name for name in METHODS if name != "wrong-branches"]  # whose branches are wrong depends on the part
        first = evaluate(plan(methods, shard=Shard(1, 2)), synthesizers, tmp_path)
        assert first["methods"] == {}
        last = evaluate(plan(methods, shard=Shard(2, 2)), synthesizers, tmp_path)
        _, whole = ran
        for name in methods:
            assert last["methods"][name]["accuracy"] == whole["methods"][name]["accuracy"]
        assert len(lines(tmp_path / "rows.1-of-2.jsonl")) == 3 * len(methods)
        assert len(lines(tmp_path / "rows.2-of-2.jsonl")) == 2 * len(methods)

    def test_one_process_writes_a_part(self, synthesizers: Synthesizers, tmp_path: Path) -> None:
        evaluate(plan(["vote"], limit=1), synthesizers, tmp_path)
        with Lines(tmp_path, "rows", Shard()).open(), pytest.raises(InputError, match="written by another process"):
            evaluate(plan(["vote"]), synthesizers, tmp_path)

    def test_settings_that_another_process_writes_are_no_foreign_files(
        self, synthesizers: Synthesizers, tmp_path: Path
    ) -> None:
        (tmp_path / ".settings.json-abcd").mkdir()
        assert evaluate(plan(["vote"], limit=1), synthesizers, tmp_path)["questions"] == 1

    def test_are_merged_by_a_run_over_all(self, synthesizers: Synthesizers, tmp_path: Path) -> None:
        for number in (1, 2):
            evaluate(plan(["vote"], shard=Shard(number, 2)), synthesizers, tmp_path)
        (tmp_path / "summary.json").unlink()
        assert evaluate(plan(["vote"]), synthesizers, tmp_path)["methods"]["vote"]["n"] == 5
        assert not (tmp_path / "rows.jsonl").read_text()

    @pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "a/b", "1/0", "1/2/3", "-1/2"])
    def test_are_written_as_number_of_count(self, text: str) -> None:
        with pytest.raises(InputError, match="shard"):
            Shard.parse(text)

    def test_more_parts_than_questions(self) -> None:
        with pytest.raises(InputError, match="there are 5 questions only"):
            plan(["vote"], shard=Shard(1, 6))


def test_what_a_folder_of_records_keeps_of_its_questions(data: Path, synthesizers: Synthesizers, tmp_path: Path) -> None:
    from psynth_jax.evaluation.tasks import QATask

    folder = tmp_path / "results"
    evaluate(Plan.of(QATask(data), choose(["vote"], set())), synthesizers, folder)
    found = lines(folder / "questions.jsonl")
    assert [line["id"] for line in found] == [f"q{number}" for number in range(5)]
    assert found[0]["workers"][0]["text"] == "Oslo has harbour 0." and found[0]["seconds"] is None
    assert isinstance(synthesizers.base, ps.ParallelSynthesis)

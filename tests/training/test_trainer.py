"""Runs: what is learned, what a stop and a start do to the numbers, and what is left when something fails."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

import psynth_jax as ps
from psynth_jax.adapter.sink import chat_sink
from psynth_jax.convert.adapter_directory import Adapter, save_adapter
from psynth_jax.data.example import BranchTokens, Example, ExampleList
from psynth_jax.data.shards import digest
from psynth_jax.errors import CheckpointError, ConfigError, TrainingError, UserError
from psynth_jax.training import reporter
from psynth_jax.training.checkpoint import CheckpointStore
from psynth_jax.training.config import Checkpoints, Task
from psynth_jax.training.metrics import Metrics
from psynth_jax.training.pipeline import Loaded
from psynth_jax.training.tasks import TaskData, load_tasks
from psynth_jax.training.trainer import Trainer
from tests.tiny import random_lora, tiny_model
from tests.training.codes import codes as make_codes
from tests.training.codes import distance, losses, next_gradient, start
from tests.training.examples import config, ids, random_examples
from tests.trees import tree_differences


@pytest.fixture(scope="module")
def model() -> ps.Model:
    return ps.load_model("tiny-random", layers="stacked")


@pytest.fixture(scope="module")
def codes(model: ps.Model) -> ExampleList:
    return make_codes(model)


@pytest.fixture(scope="module")
def straight(model: ps.Model, codes: ExampleList, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """Six steps without a stop."""
    trainer = start(config(tmp_path_factory.mktemp("straight")), model, codes)
    assert trainer.run().reason == "done"
    return trainer


class TestExport:
    @pytest.mark.slow
    def test_says_what_was_learned_and_how_it_went(self, codes: ExampleList, straight: Trainer, tmp_path: Path) -> None:
        summary = json.loads((straight.export(tmp_path / "now") / "psynth_adapter.json").read_text())["training"]
        assert summary["loss"] == [[step, round(loss, 4)] for step, loss in losses(straight.workdir).items()]
        assert summary["course"]["steps"] == summary["steps"] == 6 and summary["config"]["seed"] == straight.config.seed
        assert summary["data"] == [{"task": codes.task, "examples": len(codes), "sha256": digest(codes)}]
        other = ExampleList(codes.task, [codes[number] for number in reversed(range(len(codes)))])
        assert digest(other) != digest(codes)

    @pytest.mark.parametrize("dtype", [None, "bfloat16"])
    def test_what_a_run_can_begin_from(
        self, model: ps.Model, codes: ExampleList, straight: Trainer, tmp_path: Path, dtype: str | None
    ) -> None:
        begin = str(straight.export(tmp_path / "begin", dtype))
        trainable = straight.config.trainable.model_dump() | {"start": begin}
        again = start(config(tmp_path / "again", trainable=trainable), model, codes)
        for one, other in zip(
            jax.tree.leaves(again.state.parameters), jax.tree.leaves(straight.state.parameters), strict=True
        ):
            assert one.dtype == np.float32
            np.testing.assert_allclose(one, other, rtol=0 if dtype is None else 2**-8, atol=1e-12)


class TestResuming:
    def test_three_and_three_steps_are_six(
        self, model: ps.Model, codes: ExampleList, straight: Trainer, tmp_path: Path
    ) -> None:
        first = start(config(tmp_path, train={"steps": 6, "stop_at": 3}), model, codes)
        assert dataclasses.astuple(first.run())[:2] == (3, "stop_at")
        second = start(config(tmp_path), model, codes)
        assert second.step == 3
        second.run()
        assert tree_differences(second.state, straight.state) == []
        assert losses(tmp_path) == losses(straight.workdir)

    def test_a_finished_run_is_not_run_again(self, model: ps.Model, codes: ExampleList, straight: Trainer) -> None:
        before = losses(straight.workdir)
        again = start(straight.config, model, codes)
        assert dataclasses.astuple(again.run())[:2] == (6, "done")
        assert losses(straight.workdir) == before

    @pytest.mark.slow
    def test_on_another_mesh(self, model: ps.Model, codes: ExampleList, straight: Trainer, tmp_path: Path) -> None:
        start(config(tmp_path, train={"steps": 6, "stop_at": 3}), model, codes).run()
        mesh = "data=2,fsdp=2,tensor=2"
        again = start(config(tmp_path, mesh=mesh), model.on(ps.make_mesh(mesh)), codes)
        assert again.step == 3
        alone = start(config(tmp_path), model, codes)
        assert distance(next_gradient(again), next_gradient(alone)) < 1e-6
        down = again.state.parameters.down["q"]
        assert down.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", None)
        again.run()
        assert losses(tmp_path) == pytest.approx(losses(straight.workdir), rel=1e-5)

    @pytest.mark.slow
    def test_extended_it_is_the_run_that_it_would_have_been(
        self, model: ps.Model, codes: ExampleList, straight: Trainer, tmp_path: Path
    ) -> None:
        """Bit for bit: the schedule's length is the run's own, not that of a start."""
        optimizer = {"learning_rate": 1e-2, "warmup": 2}
        short = config(tmp_path, train={"steps": 4}, optimizer=optimizer | {"schedule_steps": 6})
        assert dataclasses.astuple(start(short, model, codes).run())[:2] == (4, "done")
        longer = start(config(tmp_path), model, codes)  # which does not name it
        assert longer.config.optimizer.schedule_steps == 6
        longer.run()
        assert tree_differences(longer.state, straight.state) == []
        assert losses(tmp_path) == losses(straight.workdir)
        assert json.loads((tmp_path / "config.json").read_text())["optimizer"]["schedule_steps"] == 6

        on = start(config(tmp_path, train={"steps": 8}), model, codes)
        on.run()
        rates = [json.loads(line)["learning_rate"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert rates[7] == rates[6] == pytest.approx(1e-3) and rates[6] < rates[5], "at its end the rate stays"
        shorter = start(config(tmp_path, train={"steps": 5}), model, codes)
        assert dataclasses.astuple(shorter.run())[:2] == (8, "done")
        anew = start(config(tmp_path, train={"steps": 9}, optimizer=optimizer | {"schedule_steps": 20}), model, codes)
        anew.run()
        last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["step"] == 9 and last["learning_rate"] > 2e-3

    @pytest.mark.slow
    def test_a_run_without_the_record_keeps_its_length(
        self, model: ps.Model, codes: ExampleList, straight: Trainer, tmp_path: Path
    ) -> None:
        """As an earlier version left it: stopped at 3 of 6, and extended to 7."""
        start(config(tmp_path, train={"steps": 6, "stop_at": 3}), model, codes).run()
        about = tmp_path / "checkpoints" / "3" / "about" / "metadata"
        values = json.loads(about.read_text())
        del values["config"]["optimizer"]["schedule_steps"], values["checksums"]
        about.write_text(json.dumps(values))
        (about.parents[1] / "checksums.json").unlink()
        again = start(config(tmp_path, train={"steps": 7, "stop_at": 6}), model, codes)
        assert (again.step, again.config.optimizer.schedule_steps) == (3, 6)
        again.run()
        assert tree_differences(again.state, straight.state) == []

    @pytest.mark.slow
    def test_another_run_came_between(self, model: ps.Model, codes: ExampleList, tmp_path: Path) -> None:
        run = config(tmp_path, train={"steps": 1})
        first, second = start(run, model, codes), start(run, model, codes)
        first.run()
        with pytest.raises(TrainingError, match=r"another run has worked in .* since this one was prepared"):
            second.run()

    @pytest.mark.slow
    def test_a_lost_attempt_is_not_in_the_adapter(self, model: ps.Model, codes: ExampleList, tmp_path: Path) -> None:
        start(config(tmp_path, train={"steps": 2}), model, codes).run()
        with (tmp_path / "metrics.jsonl").open("ab") as file:
            file.write(b"\xff\0\n")
            file.writelines(b'{"step": %d, "loss": 99.0}\n' % step for step in range(3, 33))
        told: list[str] = []
        again = Trainer(config(tmp_path, train={"steps": 3}), model, [TaskData(*_task(codes))], say=told.append)
        summary = json.loads((again.run().adapter / "psynth_adapter.json").read_text())["training"]
        assert [step for step, _ in summary["loss"]] == [1, 2, 3] and summary["course"]["steps"] == 3
        assert summary["course"]["final_loss"] < 99
        assert any("1 damaged lines are left out" in text for text in told)

    def test_a_config_that_disagrees_is_refused(self, model: ps.Model, codes: ExampleList, straight: Trainer) -> None:
        changed = straight.config.model_copy(update={"seed": 7})
        with pytest.raises(ConfigError, match="disagree: seed is 7, it was 0"):
            start(changed, model, codes)

    def test_other_batches_are_refused(self, model: ps.Model, tmp_path: Path) -> None:
        """Its position in them would mean other examples.  What was trained is still taken up, to be exported."""
        cut = config(tmp_path, train={"steps": 6, "stop_at": 1})
        start(cut, model, make_codes(model, 24)).run()
        again = start(config(tmp_path), model, make_codes(model, 20))
        assert again.step == 1
        with pytest.raises(ConfigError, match="was begun with other batches, of other data or by another version"):
            again.run()

    def test_another_base_is_refused(self, model: ps.Model, codes: ExampleList, straight: Trainer) -> None:
        parameters = model.decoder.parameters()
        other = type(model.decoder)(model.config, parameters | {"embedding": parameters["embedding"] + 1})
        with pytest.raises(ConfigError, match="was trained on the base model"):
            start(straight.config, dataclasses.replace(model, decoder=other, name="other"), codes)


@pytest.mark.slow
class TestLearning:
    @pytest.mark.parametrize(
        "trainable",
        [{}, {"rank": 0}, {"mapper": False}, {"mapper": False, "targets": ("gate", "up", "down")}],
        ids=["both", "mapper alone", "adapter alone", "adapter on the MLP alone"],
    )
    def test_each_part_learns_and_the_base_stays(
        self, model: ps.Model, codes: ExampleList, tmp_path: Path, trainable: Mapping[str, Any]
    ) -> None:
        before = jax.tree.map(np.array, model.decoder.parameters())
        optimizer = {"learning_rate": 1e-2, "schedule": "constant", "warmup": 0}
        run = config(tmp_path, train={"steps": 80}, trainable=trainable, optimizer=optimizer, checkpoint={"every": 100})
        one_batch = ExampleList("codes", [codes[number] for number in range(4)])
        start(run, model, one_batch).run()
        found = losses(tmp_path)
        reached = {"both": 0.05, "mapper alone": 0.999 * found[1], "adapter alone": 0.05}
        name = "mapper alone" if trainable.get("rank") == 0 else "adapter alone" if trainable else "both"
        assert min(found.values()) < reached[name]  # at this rate the last losses jump
        lora = ps.ParallelSynthesis(model, adapter=tmp_path / "adapter").adapter.lora
        assert (sorted(lora.down) if lora else []) == sorted(run.trainable.targets if run.trainable.rank else [])
        assert tree_differences(model.decoder.parameters(), before) == []

    def test_it_is_read_from_the_branches(self, model: ps.Model, codes: ExampleList, tmp_path: Path) -> None:
        """With the branches of another question the targets that were learned are no longer found."""
        optimizer = {"learning_rate": 1e-2, "schedule": "constant", "warmup": 0}
        run = config(tmp_path, train={"steps": 60}, optimizer=optimizer, checkpoint={"every": 100})
        few = [codes[number] for number in range(4)]
        trainer = start(run, model, ExampleList("codes", few))
        synth = ps.ParallelSynthesis(model, adapter=trainer.run().adapter)

        def score(example: Example, of: Example) -> float:
            branches = synth.encode([branch.kept.tolist() for branch in of.branches])
            return float(synth.score(example.prompt.tolist(), example.target.tolist(), branches).mean())

        right = np.mean([score(example, example) for example in few])
        wrong = np.mean([score(example, few[number - 1]) for number, example in enumerate(few)])
        assert right > -0.3 and wrong < right - 2

    def test_the_average_is_what_is_exported(self, model: ps.Model, codes: ExampleList, tmp_path: Path) -> None:
        run = config(tmp_path, optimizer={"learning_rate": 1e-2, "average": 0.5}, train={"steps": 2})
        trainer = start(run, model, codes)
        trainer.run()
        assert trainer.state.average is not None
        assert tree_differences(trainer.state.average, trainer.state.parameters) != []
        lora = ps.ParallelSynthesis(model, adapter=tmp_path / "adapter").adapter.lora
        assert lora is not None and tree_differences(lora.up, trainer.state.average.up) == []

    def test_learns_from_a_teacher_with_a_lora(
        self, model: ps.Model, codes: ExampleList, straight: Trainer, tmp_path: Path
    ) -> None:
        """One that is what the student will be when it has learned, reading text, teaches other than the base."""
        taught = {"data": ({"synthetic": 1, "cross_entropy": 0.0, "distillation": 1.0},), "train": {"steps": 2}}
        wearing = {"teacher": str(straight.workdir / "adapter")}
        for name, given in {"base": {}, "lora": wearing}.items():
            start(config(tmp_path / name, **taught, **given), model, codes).run()
        base, lora = (losses(tmp_path / name) for name in ("base", "lora"))
        assert abs(base[1] - lora[1]) > 1e-3 and base[2] != lora[2]
        changing = {"teacher": str(tmp_path / "changing")}
        save_adapter(tmp_path / "changing", Adapter(random_lora(model.config, 1), None), model)
        start(config(tmp_path / "moved", **taught, **changing), model, codes).run()
        save_adapter(tmp_path / "changing", Adapter(random_lora(model.config, 2), None), model)
        with pytest.raises(ConfigError, match=r"taught by another adapter than .*changing is now"):
            start(config(tmp_path / "moved", **taught, **changing), model, codes)
        save_adapter(tmp_path / "mapper", Adapter(None, straight.state.parameters.mapper), model)
        with pytest.raises(ConfigError, match="has no LoRA"):
            start(config(tmp_path / "none", **taught, teacher=str(tmp_path / "mapper")), model, codes)

    def test_the_sink_is_exported(self, model: ps.Model, tmp_path: Path) -> None:
        run = config(tmp_path, data=({"synthetic": 4},), trainable={"sink": True}, train={"steps": 1})
        data, _ = load_tasks(run)
        Trainer(run, model, data).run()
        assert model.tokenizer is not None
        assert ps.ParallelSynthesis(model, adapter=tmp_path / "adapter").adapter.sink == chat_sink(model.tokenizer)
        without = config(tmp_path / "on", data=({"synthetic": 4},), trainable={"start": str(tmp_path / "adapter")})
        with pytest.raises(ConfigError, match=r"set trainable\.sink=true"):
            Trainer(without, model, data)

    def test_starts_from_an_adapter(self, model: ps.Model, codes: ExampleList, straight: Trainer, tmp_path: Path) -> None:
        known = {"start": str(straight.workdir / "adapter")}
        trainer = start(config(tmp_path, trainable=known), model, codes)
        assert tree_differences(trainer.state.parameters, straight.state.parameters) == []
        with pytest.raises(ConfigError, match="has a LoRA of rank 16, the config of 3; a LoRA on o, q too"):
            start(config(tmp_path / "other", trainable={**known, "rank": 3, "targets": ("k", "v")}), model, codes)

    def test_what_an_adapter_lacks_begins_as_the_identity(
        self, model: ps.Model, codes: ExampleList, straight: Trainer, tmp_path: Path
    ) -> None:
        learned = straight.state.parameters
        lora, mapper = tmp_path / "lora", tmp_path / "mapper"
        scale = straight.config.trainable.alpha / straight.config.trainable.rank
        save_adapter(lora, Adapter(learned.lora(scale), None), model)
        save_adapter(mapper, Adapter(None, learned.mapper), model)
        after_text = start(config(tmp_path / "a", trainable={"start": str(lora)}), model, codes).state.parameters
        assert tree_differences((after_text.down, after_text.up), (learned.down, learned.up)) == []
        assert after_text.mapper is not None and not after_text.mapper.out_kernel.any()
        of_mapper = start(config(tmp_path / "b", trainable={"start": str(mapper)}), model, codes).state.parameters
        assert tree_differences(of_mapper.mapper, learned.mapper) == []
        assert of_mapper.up and not any(up.any() for up in of_mapper.up.values())
        with pytest.raises(ConfigError, match="has a mapper, the config trains none"):
            start(config(tmp_path / "c", trainable={"start": str(mapper), "mapper": False}), model, codes)
        wider = {"start": str(lora), "targets": ("q", "k", "v", "o", "gate", "up", "down")}
        on_mlp = start(config(tmp_path / "d", trainable=wider), model, codes).state.parameters
        assert tree_differences({target: on_mlp.up[target] for target in learned.up}, learned.up) == []
        assert not any(on_mlp.up[target].any() for target in ("gate", "up", "down"))

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"mapper_hidden": 8}, "it has a mapper of 32 hidden units, the config of 8"),
            ({"rank": 0}, "it has a LoRA, the config trains none"),
            ({"alpha": 4.0}, r"it has alpha / rank = 2\.0, the config 0\.25"),
        ],
    )
    def test_an_adapter_of_another_form(
        self, model: ps.Model, codes: ExampleList, straight: Trainer, tmp_path: Path, changed: dict[str, Any], said: str
    ) -> None:
        begin = {"start": str(straight.workdir / "adapter"), **changed}
        with pytest.raises(ConfigError, match=f"differs from the config's `trainable`: {said}"):
            start(config(tmp_path, trainable=begin), model, codes)


@pytest.mark.slow
class TestEvaluation:
    def test_a_run_without_a_mesh_uses_one_device(
        self, model: ps.Model, codes: ExampleList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reporter, "peak_flops", lambda device: 1e12)
        start(config(tmp_path, train={"steps": 1}), model, codes).run()
        numbers = json.loads((tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
        assert numbers["mfu"] == pytest.approx(numbers["flops_per_s"] / 1e12), "the other devices are not waited for"

    def test_best_is_kept_and_known(self, model: ps.Model, codes: ExampleList, tmp_path: Path) -> None:
        """A learning rate that destroys what it has learned: the first evaluation is the best."""
        run = config(
            tmp_path,
            evaluation=({"synthetic": 1},),
            train={"steps": 8, "evaluate_every": 2},
            checkpoint={"every": 2, "keep": 2},
            optimizer={"learning_rate": 0.5, "warmup": 0, "clip": 0.0},
        )
        told: list[tuple[int, float]] = []
        held_out = ExampleList("codes", [codes[number] for number in range(8)])
        seen = lambda step, numbers: told.append((step, numbers["eval_loss"])) if "eval_loss" in numbers else None  # noqa: E731
        Trainer(run, model, [TaskData(run.data[0], codes)], [TaskData(run.evaluation[0], held_out)], seen).run()
        assert [step for step, _ in told] == [2, 4, 6, 8]
        best = min(told, key=lambda item: item[1])[0]
        with CheckpointStore(tmp_path, Checkpoints(keep=2)) as store:
            assert store.best == best and set(store.steps) == {best, 6, 8}

    def test_no_step_is_timed_while_another_one_is_compiled(self, model: ps.Model, tmp_path: Path) -> None:
        """A step is reported before the next one is compiled: its time would hold the compilation, or lose it."""
        run = config(tmp_path, train={"steps": 4}, batch={"tokens": 2048, "examples": 4, "shapes": 2})
        branches = (BranchTokens(ids(5, 0), ids(7, 150)),) * 3
        short, others = random_examples(12, seed=0), random_examples(12, seed=1)
        long = [dataclasses.replace(each, branches=branches) for each in others]
        source = ExampleList("random", [*short, *long])
        events: list[str] = []
        trainer = Trainer(
            *(run, model, [TaskData(run.data[0], source)]),
            on_step=lambda step, numbers: events.append("reported"),
            say=lambda text: events.append("compiling") if text.startswith("compiling") else None,
        )
        train_batch = trainer.train_batch

        def begun(loaded: Loaded) -> object:
            events.append("begun")
            return train_batch(loaded)

        trainer.train_batch = begun  # type: ignore[method-assign, assignment]
        trainer.run()
        assert events.count("compiling") > 1
        for place in (place for place, event in enumerate(events) if event == "compiling"):
            before = events[:place]
            assert before.count("reported") == before.count("begun") - 1, "all but the one that is compiled for"

    def test_tasks_of_one_name_count_as_one(self, model: ps.Model, codes: ExampleList, tmp_path: Path) -> None:
        """Two tasks called codes and one called more: their losses, of training and evaluation, by name and by tokens."""
        run = config(
            tmp_path,
            data=({"synthetic": 1},) * 3,
            evaluation=({"synthetic": 1},) * 3,
            train={"steps": 1, "evaluate_every": 1},
            batch={"tokens": 1 << 16, "examples": 32, "shapes": 1, "branch_tokens": 22},
        )
        parts = [("codes", range(4)), ("codes", range(4, 12)), ("more", range(12, 16))]
        sources = [ExampleList(name, [codes[number] for number in numbers]) for name, numbers in parts]
        trainer = Trainer(run, model, [*map(TaskData, run.data, sources)], [*map(TaskData, run.evaluation, sources)])
        trainer.run()
        step, evaluated = map(json.loads, (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        for found, prefix, whole in ((step, "loss/", "cross_entropy"), (evaluated, "eval_loss/", "eval_loss")):
            assert {name for name in found if name.startswith(prefix)} == {f"{prefix}codes", f"{prefix}more"}
            mean = (12 * found[f"{prefix}codes"] + 4 * found[f"{prefix}more"]) / 16  # targets of the same length
            assert mean == pytest.approx(found[whole], rel=1e-5)
        assert trainer.dropped == {"codes": {}, "more": {}, "codes (evaluation)": {}, "more (evaluation)": {}}

    def test_targets_that_a_model_lacks(self, codes: ExampleList, tmp_path: Path) -> None:
        mixture = tiny_model(family="qwen3_moe", qk_norm=True, experts=4, experts_per_token=2)
        with pytest.raises(ConfigError, match=r"trainable\.targets: a qwen3_moe has no gate; it has q, k, v, o"):
            start(config(tmp_path, trainable={"targets": ("q", "gate")}), mixture, codes)

    def test_what_evaluation_leaves_out_is_told(self, model: ps.Model, codes: ExampleList, tmp_path: Path) -> None:
        run = config(tmp_path, evaluation=({"synthetic": 1},), train={"steps": 1, "evaluate_every": 1})
        long = dataclasses.replace(codes[0], target=np.zeros(run.batch.target_tokens + 1, np.int32))
        held_out = TaskData(run.evaluation[0], ExampleList("codes", [codes[1], long]))
        trainer = Trainer(run, model, [TaskData(run.data[0], codes)], [held_out])
        assert trainer.dropped["codes (evaluation)"] == {"a longer target than target_tokens": 1}

    def test_an_evaluation_of_nothing(self, model: ps.Model, codes: ExampleList, tmp_path: Path) -> None:
        run = config(tmp_path, evaluation=({"synthetic": 1, "weight": 0.01},), train={"steps": 1, "evaluate_every": 1})
        with pytest.raises(ConfigError, match="no example is taken"):
            Trainer(run, model, [TaskData(run.data[0], codes)], [TaskData(run.evaluation[0], codes)])


def _task(codes: ExampleList) -> tuple[Task, ExampleList]:
    return Task(synthetic=1), codes


class TestFailures:
    def test_a_base_that_is_not_finite_is_named(self, model: ps.Model, codes: ExampleList, tmp_path: Path) -> None:
        parameters = dict(model.decoder.parameters())
        (name, *_) = parameters
        parameters[name] = parameters[name].at[(0,) * parameters[name].ndim].set(np.nan)
        broken = dataclasses.replace(model, decoder=type(model.decoder)(model.config, parameters))
        with pytest.raises(TrainingError, match=f"step 1 is not a number .*weights of the base model .* not finite: {name}"):
            start(config(tmp_path, train={"steps": 1}), broken, codes).run()

    @pytest.mark.slow
    def test_a_base_whose_logits_overflow_is_named(self, model: ps.Model, codes: ExampleList, tmp_path: Path) -> None:
        parameters = dict(model.decoder.parameters())
        parameters["final_norm"] = parameters["final_norm"] * 1e38
        broken = dataclasses.replace(model, decoder=type(model.decoder)(model.config, parameters))
        with pytest.raises(TrainingError, match="the logits of the base model tiny-random itself are not finite"):
            start(config(tmp_path, train={"steps": 1}), broken, codes).run()

    def test_an_adapter_that_is_not_finite_is_named(self, model: ps.Model, codes: ExampleList, tmp_path: Path) -> None:
        lora = random_lora(model.config, 1)
        save_adapter(tmp_path / "inf", Adapter(lora, None), model)
        file = tmp_path / "inf" / "adapter.safetensors"
        tensors = safetensors.numpy.load_file(file)
        safetensors.numpy.save_file(tensors | {"lora.q.up": np.full_like(tensors["lora.q.up"], np.inf)}, file)
        rank: dict[str, Any] = {"rank": lora.rank, "alpha": float(lora.scale) * lora.rank, "targets": tuple(lora.down)}
        rank["start"] = str(tmp_path / "inf")
        with pytest.raises(UserError, match="finite"):
            start(config(tmp_path / "run", trainable=rank), model, codes)

    def test_a_folder_that_cannot_be_written(
        self, model: ps.Model, codes: ExampleList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def read_only(*_: object, **__: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        for place in ("psynth_jax.training.trainer.write_text", "psynth_jax.training.metrics.FileLines"):
            with monkeypatch.context() as patched:
                patched.setattr(place, read_only)
                with pytest.raises(TrainingError, match="cannot be written: Read-only file system"):
                    start(config(tmp_path), model, codes).run()

    @pytest.mark.slow
    def test_a_loss_that_is_no_number_stops_the_run(self, model: ps.Model, codes: ExampleList, tmp_path: Path) -> None:
        run = config(tmp_path, train={"steps": 20}, checkpoint={"every": 4})
        trainer = start(run, model, codes)

        def poison(step: int, numbers: Mapping[str, Any]) -> None:
            if step == 5:
                trainer.state = dataclasses.replace(
                    trainer.state, parameters=jax.tree.map(lambda x: x * np.nan, trainer.state.parameters)
                )

        trainer._on_step = poison
        with pytest.raises(TrainingError, match=r"step [67] is not a number \(examples codes .*checkpoint of step 4 stays"):
            trainer.run()
        again = start(run, model, codes)
        assert again.step == 4
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(again.state.parameters))

    def test_a_full_disk_says_so(
        self, model: ps.Model, codes: ExampleList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trainer = start(config(tmp_path, checkpoint={"every": 2}), model, codes)
        save = ocp.CheckpointManager.save

        def full(manager: ocp.CheckpointManager, step: int, **arguments: Any) -> Any:
            if step == 4:
                raise OSError(28, os.strerror(28))
            return save(manager, step, **arguments)

        monkeypatch.setattr(ocp.CheckpointManager, "save", full)
        with pytest.raises(TrainingError, match=r"the disk is full .* last whole one is step 2"):
            trainer.run()
        monkeypatch.undo()
        assert start(config(tmp_path), model, codes).step == 2

    def test_a_disk_that_is_full_when_numbers_are_written(
        self, model: ps.Model, codes: ExampleList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        trainer = start(config(tmp_path), model, codes)
        monkeypatch.setattr(Metrics, "write", full)
        with pytest.raises(TrainingError, match="No space left on device; its whole checkpoints stay"):
            trainer.run()

    def test_a_damaged_checkpoint_is_named(self, model: ps.Model, codes: ExampleList, tmp_path: Path) -> None:
        start(config(tmp_path), model, codes).run()
        (tmp_path / "checkpoints" / "6" / "about" / "metadata").write_text("{")
        with pytest.raises(CheckpointError, match=r"checkpoint 6 cannot be read: .*; step 3 is whole: remove .*/6 to go"):
            start(config(tmp_path), model, codes)

    @pytest.mark.slow
    def test_sigterm_saves_and_ends(self, model: ps.Model, codes: ExampleList, straight: Trainer, tmp_path: Path) -> None:
        def terminate(step: int, numbers: Mapping[str, Any]) -> None:
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

        outcome = start(config(tmp_path, checkpoint={"every": 100}), model, codes, terminate).run()
        assert outcome.reason == "terminated" and 2 <= outcome.step < 6
        again = start(config(tmp_path), model, codes)
        assert again.step == outcome.step
        again.run()
        assert tree_differences(again.state.parameters, straight.state.parameters) == []

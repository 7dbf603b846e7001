"""Configs: strict, overridable, and compared when a run is continued."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from psynth_jax.errors import ConfigError
from psynth_jax.training.config import TrainConfig, differences, read_config, read_run_config, with_schedule_steps
from psynth_jax.training.plain_values import as_tuples
from tests.training.examples import config

TEXT = """
workdir: runs/one
model: tiny-random
data:
  - synthetic: 8
optimizer: {learning_rate: 1e-3}
train: {steps: 4}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(TEXT)
    return path


def test_defaults_and_overrides(file: Path) -> None:
    found = read_config(file, ["train.steps=9", "optimizer.learning_rate=2e-5", "data.0.weight=0.5", "mesh=data=2"])
    assert (found.train.steps, found.optimizer.learning_rate, found.data[0].weight) == (9, 2e-5, 0.5)
    assert found.mesh == "data=2" and found.trainable.rank == 16


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.step=9"], "train.step: Extra inputs"),
        (["train.steps=many"], "train.steps: Input should be a valid integer"),
        (["train.steps=0"], "train.steps: Input should be greater"),
        (["train.steps=9", "train.steps=8"], "train.steps is given twice"),
        (["steps"], "'steps' is no override"),
        (["data.3.weight=1"], "nothing at data.3.weight"),
        (["model.name=x"], "nothing at model.name"),
        (["data.0.path=somewhere"], "either a path or a number"),
        (["data.0.synthetic=null", "data.0.path=d", "data.0.kinds=[judge]"], "kinds are of synthetic examples"),
        (["data.0.kinds=[]"], "data.0.kinds"),
        (["data.0.kinds=[judges]"], "data.0.kinds.0: Input should be 'lookup', 'join'"),
        (["data.0.cross_entropy=0"], "nothing would be learned"),
        (["trainable.mapper=false", "trainable.rank=0"], "nothing would be trained"),
        (["trainable.targets=[q, q]"], "each once"),
        (["reads=text"], "no branch to map"),
        (["teacher=text-adapter"], "would teach nothing"),
        (["reads=text", "trainable.mapper=false", "trainable.sink=true"], "no branch to stand after a sink"),
        (["train.steps=[1"], "not valid"),
        (["workdir=s3://bucket/run"], "a folder that all hosts see, or in a bucket"),
    ],
)
def test_wrong_values_are_named(file: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_config(file, overrides)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TEXT + "model: other\n", "model is given twice"),
        ("- a list\n", "must hold keys and values"),
        ("workdir: [\n", "cannot read"),
        ("model: tiny-random\n", "workdir: Field required"),
    ],
)
def test_wrong_files_are_named(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_config(file)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_config(tmp_path / "none.yaml")


class TestDifferences:
    def test_what_decides_the_numbers_may_not_change(self) -> None:
        before = config("a")
        same = config("b", mesh="data=2", checkpoint={"every": 1}, remat=False)
        assert differences(same, before.model_dump(mode="json")) == []
        other = config("a", seed=1, batch={"tokens": 1})
        assert [item.partition(" ")[0] for item in differences(other, before.model_dump(mode="json"))] == ["seed", "batch"]

    def test_steps_may_change_and_what_an_earlier_version_did_not_know(self) -> None:
        before = config("a").model_dump(mode="json")
        del before["optimizer"]["schedule_steps"]
        assert differences(config("a", train={"steps": 9}), before) == []
        changed = config("a", optimizer={"learning_rate": 1.0, "warmup": 2, "schedule_steps": 9})
        assert [item.partition(" ")[0] for item in differences(changed, before)] == ["optimizer"]


class TestScheduleSteps:
    def test_what_it_is(self) -> None:
        def steps(config: TrainConfig, before: TrainConfig | None) -> int | None:
            known = None if before is None else before.model_dump(mode="json")
            return with_schedule_steps(config, known).optimizer.schedule_steps

        given = config("a", optimizer={"schedule_steps": 5})
        longer = config("a", train={"steps": 9})
        assert steps(longer, None) == 9
        assert steps(longer, config("a")) == 6, "of a run that recorded none"
        assert steps(longer, given) == 5
        assert steps(given, config("a")) == 5


ODD = [".inf", "-.inf", ".nan", "1e999", "9" * 400]


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize(
    "key",
    [
        "data.0.weight",
        "data.0.cross_entropy",
        "data.0.distillation",
        "trainable.alpha",
        *(f"optimizer.{name}" for name in ("learning_rate", "mapper_learning_rate", "final", "beta1", "beta2", "epsilon")),
        "optimizer.weight_decay",
        "optimizer.clip",
        "optimizer.average",
    ],
)
def test_numbers_are_finite(file: Path, key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")) as error:
        read_config(file, [f"{key}={value}"])
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize("key", ["train.steps", "seed", "trainable.rank", "batch.tokens", "optimizer.schedule_steps"])
def test_counts_have_a_size(file: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        read_config(file, [f"{key}={2**63}"])


def test_a_config_reads_back(file: Path, tmp_path: Path) -> None:
    odd = r'workdir="a\x7f\u2028 b\t\U0001F600"'
    found = read_config(file, [odd, "optimizer.clip=0", "seed=9223372036854775807"])
    (tmp_path / "config.json").write_text(found.model_dump_json(indent=1))
    assert read_run_config(tmp_path) == found.model_copy(update={"workdir": str(tmp_path)})


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "a: &a [*a]",
        "workdir: " + "[" * 5000,
        "workdir: " + "{a: " * 5000,
        "3: x",
        "null: x",
        "? [a, b]\n: x",
        "data: {2: x}",
        "workdir: 2024-99-99",
        "workdir: !!timestamp x",
        "workdir: !!int x",
        "workdir: !!bool x",
        "workdir: !!float x",
        "workdir: !!binary '='",
        "workdir: !!python/object/apply:os.system [ls]",
        'workdir: "a\\0b"',
        'workdir: "\\ud800"',
        "a: " + "9" * 5000,
        "--- a\n--- b",
        "x: \x00",
        "",
        "3",
    ],
    ids=str,
)
def test_odd_yaml_is_one_line(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_config(file)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "override",
    [
        "workdir=2024-01-01",
        "workdir=!!binary aGk=",
        "workdir=!!set {a}",
        "workdir=[" + "[" * 5000,
        "train.steps=0x_",
        "data." + "9" * 5000 + ".weight=1",
        "data.-1.weight=1",
        ".".join("a" * 5000) + "=1",
        "..=1",
        "workdir=a\udce9b",
        "a\udce9=1",
        "workdir=&a [*a]",
        "=1",
    ],
    ids=lambda text: text[:20].encode("ascii", "replace").decode(),
)
def test_odd_overrides_are_one_line(file: Path, override: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_config(file, [override])
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


def test_kinds_of_a_task(file: Path) -> None:
    file.write_text("workdir: w\nmodel: tiny-random\ntrain: {steps: 1}\ndata: [{synthetic: 8, kinds: [judge, steps]}]\n")
    found = read_config(file, [])
    assert found.data[0].kinds == ("judge", "steps")
    assert read_config(file, ["data.0.kinds=yesno"]).data[0].kinds == ("yesno",)
    assert read_config(file, ["data.0.kinds=null"]).data[0].kinds is None
    assert TrainConfig.parse(as_tuples(found.model_dump(mode="json"))) == found


def test_an_alias_is_written_out(file: Path) -> None:
    """What is set on the command line changes one place of the two."""
    file.write_text("workdir: w\nmodel: tiny-random\ntrain: {steps: 1}\ndata: [&one {synthetic: 8}, *one]\n")
    found = read_config(file, ["data.0.weight=2"])
    assert [task.weight for task in found.data] == [2.0, 1.0]


def test_a_config_that_is_no_regular_file(file: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    for read in (lambda: read_config(tmp_path / "config.json"), lambda: read_run_config(tmp_path)):
        with pytest.raises(ConfigError, match="not a regular file"):
            read()


def test_many_wrong_values_are_counted(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"and 29\d more") as error:
        read_config(file, [f"data=[{', '.join(['{synthetic: x}'] * 300)}]"])
    assert len(str(error.value)) < 2000

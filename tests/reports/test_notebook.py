"""What the notebooks share: a runtime whose TPU or GPU JAX does not see stops them, any other does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from psynth_jax.errors import UserError
from psynth_jax.reports import notebook
from psynth_jax.reports.notebook import check_devices, memory_table


def test_devices_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio" / "vfio").touch()  # there without a TPU, too
    check_devices(tmp_path)
    assert capsys.readouterr().out.startswith("8 x cpu (jax ")


@pytest.mark.parametrize(
    ("device", "kind", "extra"), [("accel0", "TPU", "tpu"), ("vfio/0", "TPU", "tpu"), ("nvidia0", "GPU", "cuda")]
)
def test_a_device_that_jax_does_not_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, kind: str, extra: str
) -> None:
    (tmp_path / device).parent.mkdir(exist_ok=True)
    (tmp_path / device).touch()
    check_devices(tmp_path)  # the tests tell JAX to take the CPU
    monkeypatch.setattr(notebook, "_chosen_platforms", lambda: None)
    with pytest.raises(
        UserError, match=rf"has a {kind}, and JAX sees only the CPU: install psynth-jax with its extra {extra}"
    ):
        check_devices(tmp_path)


def test_memory_of_a_device_that_does_not_tell(capsys: pytest.CaptureFixture[str]) -> None:
    memory_table()
    assert capsys.readouterr().out == "this kind of device does not tell how much memory is used\n"

"""What the notebooks share: a TPU runtime on which JAX sees only the CPU stops them, any other does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from psynth_jax.errors import UserError
from psynth_jax.reports.notebook import check_devices, memory_table


def test_devices_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio" / "vfio").touch()  # there without a TPU, too
    check_devices(tmp_path)
    assert capsys.readouterr().out.startswith("8 x cpu (jax ")


@pytest.mark.parametrize("device", ["accel0", "vfio/0"])
def test_a_tpu_that_jax_does_not_see(tmp_path: Path, device: str) -> None:
    (tmp_path / device).parent.mkdir(exist_ok=True)
    (tmp_path / device).touch()
    with pytest.raises(UserError, match=r"has a TPU, and JAX sees only the CPU: install psynth-jax\[tpu\]"):
        check_devices(tmp_path)


def test_memory_of_a_device_that_does_not_tell(capsys: pytest.CaptureFixture[str]) -> None:
    memory_table()
    assert capsys.readouterr().out == "this kind of device does not tell how much memory is used\n"

"""Models, adapters, branches and data in a bucket, and what is refused there in one line."""

from __future__ import annotations

import gzip
import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

import psynth_jax as ps
from psynth_jax import cli
from psynth_jax.convert.convert import convert
from psynth_jax.convert.load import open_model
from psynth_jax.data.record import read_records, write_records
from psynth_jax.data.shards import open_shards
from psynth_jax.errors import InputError, UserError
from psynth_jax.storage import client, paths
from psynth_jax.storage.paths import BucketPath
from psynth_jax.storage.staging import UPLOADING, staged


def psynth(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["psynth", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


class TestModels:
    @pytest.mark.parametrize("to", ["hf", "psynth"])
    def test_are_converted_to_a_bucket_and_from_it(self, to: str, bucket: BucketPath, tmp_path: Path) -> None:
        convert("tiny-random", f"{bucket}/model", to)  # type: ignore[arg-type]
        assert UPLOADING not in {each.name for each in bucket.files()}
        model, first = ps.load_model(f"{bucket}/model"), ps.load_model("tiny-random")
        assert model.fingerprint == first.fingerprint
        convert(f"{bucket}/model", tmp_path / "back", "hf")
        assert open_model(tmp_path / "back").written_identity().fingerprint == first.fingerprint

    def test_arrays_of_ours_are_read_where_they_are(self, bucket: BucketPath, tmp_path: Path) -> None:
        convert("tiny-random", f"{bucket}/model", "psynth")
        mesh = ps.make_mesh("branch=4,tensor=2")
        assert ps.load_model(f"{bucket}/model", mesh=mesh).fingerprint == ps.load_model("tiny-random").fingerprint
        copied = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
        assert "psynth_model.json" in copied and "manifest.ocdbt" not in copied

    def test_a_copy_is_made_once_and_again_when_the_model_changes(self, bucket: BucketPath) -> None:
        (bucket / "a").write_text("1")
        first = staged(bucket)
        assert staged(bucket) == first
        (bucket / "a").write_text("2")
        assert (staged(bucket) / "a").read_text() == "2" and (first / "a").read_text() == "1"

    def test_what_is_none_is_told(self, bucket: BucketPath) -> None:
        with pytest.raises(UserError, match="nothing is there"):
            open_model(str(bucket))
        (bucket / "run" / "checkpoints" / "2" / "x").write_text("")
        with pytest.raises(UserError, match="it is the folder of a training run"):
            open_model(f"{bucket}/run")
        (bucket / "files" / "notes.txt").write_text("")
        with pytest.raises(UserError, match=r"it has no config\.json"):
            open_model(f"{bucket}/files")

    def test_half_an_upload_is_not_read_and_can_be_written_again(
        self, bucket: BucketPath, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        uploaded = BucketPath.upload

        def stops(self: BucketPath, source: Path) -> None:
            if self.name == "config.json":
                raise PermissionError(13, "stopped")
            uploaded(self, source)

        monkeypatch.setattr(BucketPath, "upload", stops)
        with pytest.raises(UserError, match=r"cannot write gs://.*: stopped"):
            convert("tiny-random", f"{bucket}/model", "hf")
        monkeypatch.undo()
        with pytest.raises(UserError, match="was not uploaded to its end"):
            open_model(f"{bucket}/model")
        convert("tiny-random", f"{bucket}/model", "hf")
        assert open_model(f"{bucket}/model").name == f"{bucket}/model"

    def test_a_target_that_holds_something_is_refused(self, bucket: BucketPath) -> None:
        (bucket / "model" / "thesis.txt").write_text("mine")
        with pytest.raises(InputError, match=r"is not an empty directory: it has thesis\.txt"):
            convert("tiny-random", f"{bucket}/model", "hf")
        assert (bucket / "model" / "thesis.txt").read_text() == "mine"


def test_adapters_and_branches(bucket: BucketPath) -> None:
    model = ps.load_model("tiny-random")
    synth = ps.ParallelSynthesis(model)
    branches = synth.encode(["one two", "three"])
    before = synth.synthesize("q?", branches, max_new_tokens=4, seed=0).token_ids
    branches.save(f"{bucket}/branches")
    assert synth.synthesize("q?", ps.Branches.load(f"{bucket}/branches"), max_new_tokens=4, seed=0).token_ids == before


def test_records_and_examples(bucket: BucketPath, monkeypatch: pytest.MonkeyPatch) -> None:
    records = f"{bucket}/records.jsonl.gz"
    assert psynth(monkeypatch, "data", "prepare", "synthetic", "--limit", "6", "--records", records) == 0
    assert gzip.decompress(BucketPath(records).read_bytes()).count(b"\n") == 6
    assert len(list(read_records(records))) == 6
    arguments = ("data", "prepare", "records", records, "--into", f"{bucket}/data", "--model", "tiny-random")
    assert psynth(monkeypatch, *arguments) == 0
    shards = open_shards(f"{bucket}/data")
    assert sum(map(len, shards)) == 6 and all(np.all(shard.lengths > 0) for shard in shards)
    assert psynth(monkeypatch, "data", "info", f"{bucket}/data") == 0
    write_records(f"{bucket}/again.jsonl", read_records(records))
    assert len(list(read_records(f"{bucket}/again.jsonl"))) == 6


def test_a_whole_run_by_the_command_line(
    bucket: BucketPath, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["data", "prepare", "synthetic", "--limit", "8", "--into", f"{bucket}/data", "--model", "tiny-random"]
    assert psynth(monkeypatch, *arguments) == 0
    settings = {
        "workdir": f"{bucket}/run",
        "model": "tiny-random",
        "data": [{"path": f"{bucket}/data"}],
        "train": {"steps": 2},
        "batch": {"tokens": 16384, "examples": 2},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    killed = {"host": "elsewhere", "pid": 7, "time": time.time(), "files": []}  # in the middle of its last upload
    (bucket / "run" / "adapter" / UPLOADING).write_text(json.dumps(killed))
    assert psynth(monkeypatch, "train", tmp_path / "run.yaml") == 0
    assert psynth(monkeypatch, "export", f"{bucket}/run", "--into", f"{bucket}/best") == 0
    assert psynth(monkeypatch, "report", "train", f"{bucket}/run") == 0
    assert any(each.name.startswith("run/compiled/") for each in bucket.files()), "programs are kept with the run"
    assert not str(jax.config.jax_compilation_cache_dir).startswith("gs://"), "and others are not"
    capsys.readouterr()
    run = ("run", "q?", "--model", "tiny-random", "--branch", "b", "--max-new-tokens", "2")
    for adapter in (f"{bucket}/run/adapter", f"{bucket}/best"):
        assert psynth(monkeypatch, *run, "--adapter", adapter) == 0
    assert psynth(monkeypatch, *run, "--adapter", f"{bucket}/run") == 2
    assert f"its adapter is {bucket}/run/adapter" in capsys.readouterr().err


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers every request with one status, for the first so many requests."""

    status, asked, fails = 403, 0, 10**9

    def do_GET(self) -> None:
        type(self).asked += 1
        failing = self.asked <= self.fails
        self.answer(self.status if failing else 200)

    def answer(self, status: int) -> None:
        content = b'{"error": {"message": "sa@x does not have access."}}' if status != 200 else b'{"items": []}'
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Answers]]:
    """A store that refuses; its handler says how."""
    handler = type("Handler", (Answers,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_address[1]}")
    client._forget_client()
    yield handler
    client._forget_client()
    server.shutdown()
    thread.join()
    server.server_close()


class TestRefusals:
    def test_no_such_bucket(self, bucket: BucketPath, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="cannot read gs://no-such-bucket/m: there is no bucket no-such-bucket"):
            open_model("gs://no-such-bucket/m")
        with pytest.raises(UserError, match="there is no bucket no-such-bucket"):
            convert("tiny-random", "gs://no-such-bucket/m", "hf")

    @pytest.mark.parametrize(
        ("status", "said"), [(403, "not allowed: .*does not have access"), (401, "no credentials: run `gcloud auth")]
    )
    def test_not_allowed(self, answers: type[Answers], status: int, said: str) -> None:
        answers.status = status
        for read in (lambda: open_model("gs://private/m"), lambda: convert("tiny-random", "gs://private/m", "hf")):
            with pytest.raises(UserError, match=said) as caught:
                read()
            assert "\n" not in str(caught.value)

    def test_is_one_line_and_exit_code_2(
        self, answers: type[Answers], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert psynth(monkeypatch, "train", "configs/tiny.yaml", "workdir=gs://private/run") == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: gs://private/run cannot be written: not allowed: ")

    def test_what_passes_is_tried_again(self, answers: type[Answers]) -> None:
        answers.status, answers.fails = 503, 2
        assert BucketPath("gs://busy-bucket/x").files() == []
        assert answers.asked >= 3

    def test_what_does_not_pass_ends(self, answers: type[Answers], monkeypatch: pytest.MonkeyPatch) -> None:
        answers.status = 503
        monkeypatch.setattr(client, "PATIENCE", 2.0)
        with pytest.raises(OSError, match="the bucket does not answer"):
            BucketPath("gs://busy-bucket/x").files()
        assert answers.asked >= 2

    def test_credentials_are_looked_for_again_after_a_refusal(self, answers: type[Answers]) -> None:
        before = client.client()
        assert client.client() is before
        with pytest.raises(OSError, match="not allowed"):
            BucketPath("gs://private/x").files()
        assert client.client() is not before

    def test_a_condition_that_fails_on_what_is_gone_by_now_is_a_conflict(self, answers: type[Answers]) -> None:
        answers.do_POST = lambda self: self.answer(412)  # type: ignore[method-assign]
        answers.status = 404
        with pytest.raises(FileExistsError, match="somebody else has written it meanwhile"):
            BucketPath("gs://some-bucket/owner.json").write_bytes(b"{}", only_over=7)


class TestDownloads:
    @pytest.mark.parametrize("size", [0, 1, 256 << 10, 600_000])
    def test_come_in_chunks(self, bucket: BucketPath, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int) -> None:
        monkeypatch.setattr(paths, "_CHUNK", 256 << 10)
        content = np.random.default_rng(0).bytes(size)
        (bucket / "x").write_bytes(content)
        (bucket / "x").download(tmp_path / "x", (bucket / "x").stat().generation)
        assert (tmp_path / "x").read_bytes() == content

    def test_are_compared_with_the_checksum(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(b"123456789")
        client.check_sum(tmp_path / "x", "4waSgw==")  # 0xe3069283, the check value of CRC32C
        with pytest.raises(client.BucketError, match="its checksum is another"):
            client.check_sum(tmp_path / "x", "4waShA==")


def test_branches_are_read_without_what_lies_next_to_them(bucket: BucketPath, monkeypatch: pytest.MonkeyPatch) -> None:
    ps.ParallelSynthesis(ps.load_model("tiny-random")).encode(["one"]).save(f"{bucket}/branches")
    (bucket / "branches" / "huge").write_bytes(b"")
    download, names = BucketPath.download, []

    def noted(path: BucketPath, target: Path, generation: int | None = None) -> None:
        names.append(path.name)
        download(path, target, generation)

    monkeypatch.setattr(BucketPath, "download", noted)
    ps.Branches.load(f"{bucket}/branches")
    assert names and "huge" not in names

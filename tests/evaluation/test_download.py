"""Benchmark files come whole and as they were pinned, or not at all: from a server of our own."""

import dataclasses
import gzip
import hashlib
import http.server
import io
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest
from etils import epath

from jaxllm import evaluate
from jaxllm.errors import UserError
from jaxllm.evaluation import selection
from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.download import FileSource, _move, download, pinned, source_of
from jaxllm.evaluation.registry import benchmarks
from jaxllm.kvstore import KeyValueStore
from tests.buckets import Proxy

TEXT = b"one line\n" * 1000


def digest(data):
    return hashlib.sha256(data).hexdigest()


def zipped(**members):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in members.items():
            archive.writestr(name.replace("__", "/") + ".txt", text)
    return packed.getvalue()


def tarred(members):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    return packed.getvalue()


@pytest.fixture
def server():
    """Serves `server.files`; what is in `server.short` breaks off. Notes what it was asked for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            data = self.server.files.get(self.path)
            if data is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if self.path in self.server.short else data)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        serving.files, serving.short, serving.asked = {}, set(), []
        serving.url = f"http://127.0.0.1:{serving.server_port}/"
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield serving
        serving.shutdown()


def below(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_file_is_fetched_once_and_again_when_it_is_damaged(server, tmp_path):
    server.files = {"/data/a.txt": TEXT}
    source, sums = FileSource("set/", f"{server.url}data/"), {"set/a.txt": digest(TEXT)}
    assert download(["set/a.txt"], tmp_path, [source], sums).downloaded == ["set/a.txt"]
    assert (tmp_path / "set/a.txt").read_bytes() == TEXT
    assert download(["set/a.txt"], tmp_path, [source], sums).present == ["set/a.txt"]
    assert server.asked == ["/data/a.txt"]
    (tmp_path / "set/a.txt").write_text("damaged")
    assert download(["set/a.txt"], tmp_path, [source], sums).downloaded == ["set/a.txt"]
    assert (tmp_path / "set/a.txt").read_bytes() == TEXT
    assert below(tmp_path) == ["set/a.txt"]


def test_packed_files_stay_packed(server, tmp_path):
    data = gzip.compress(TEXT)
    server.files = {"/a.jsonl.gz": data}
    sums = {"set/a.jsonl.gz": digest(data)}
    done = download(["set/a.jsonl"], tmp_path, [FileSource("set/", server.url)], sums)
    assert (done.downloaded, below(tmp_path)) == (["set/a.jsonl.gz"], ["set/a.jsonl.gz"])


def test_another_file_than_the_pinned_one_is_refused(server, tmp_path):
    server.files = {"/a.txt": b"tampered"}
    sums = {"set/a.txt": digest(TEXT)}
    with pytest.raises(UserError) as refused:
        download(["set/a.txt"], tmp_path, [FileSource("set/", server.url)], sums)
    message = str(refused.value)
    assert message.startswith(f"set/a.txt: {server.url}a.txt is not the pinned file, nothing was")
    assert digest(b"tampered") in message and digest(TEXT) in message
    assert below(tmp_path) == []


def test_what_breaks_off_or_is_not_there_leaves_nothing(server, tmp_path):
    source, sums = FileSource("set/", server.url), {"set/a.txt": digest(TEXT)}
    with pytest.raises(UserError, match=r"^set/a.txt: http://.*a.txt answers 404 Not Found"):
        download(["set/a.txt"], tmp_path, [source], sums)
    server.files, server.short = {"/a.txt": TEXT}, {"/a.txt"}
    with pytest.raises(UserError, match=r"a.txt cannot be read .*4500 bytes read.*; try again"):
        download(["set/a.txt"], tmp_path, [source], sums)
    nowhere = FileSource("set/", "http://127.0.0.1:1/")
    with pytest.raises(UserError, match=r"a.txt cannot be read .*; try again"):
        download(["set/a.txt"], tmp_path, [nowhere], sums)
    assert below(tmp_path) == []


def test_archives_are_read_once_for_all_of_their_files(server, tmp_path):
    data = zipped(top__a=b"a", top__b=b"b", other__c=b"c")
    server.files = {"/x.zip": data}
    source = FileSource("set/", f"{server.url}x.zip", digest(data), "top/")
    done = download(["set/a.txt", "set/b.txt"], tmp_path, [source], {})
    assert done.downloaded == ["set/a.txt", "set/b.txt"]
    assert below(tmp_path) == ["set/a.txt", "set/b.txt"]
    assert (tmp_path / "set/b.txt").read_bytes() == b"b"
    assert download(["set/b.txt"], tmp_path, [source], {}).present == ["set/b.txt"]
    assert server.asked == ["/x.zip"]
    with pytest.raises(UserError, match=r"d.txt: .*x.zip holds no top/d.txt"):
        download(["set/d.txt"], tmp_path, [source], {})


def test_a_folder_comes_out_of_an_archive_whole(server, tmp_path):
    data = tarred({"./top/test/1.txt": b"1", "./top/test/2.txt": b"2", "./top/train/3.txt": b"3"})
    server.files = {"/x.tar.gz": data}
    source = FileSource("set/", f"{server.url}x.tar.gz", digest(data), "top/")
    download(["set/test"], tmp_path, [source], {})
    assert below(tmp_path) == ["set/test/1.txt", "set/test/2.txt"]


def test_members_cannot_leave_the_directory(server, tmp_path):
    data = tarred({"top/test/../../../../evil.txt": b"1"})
    server.files = {"/x.tar.gz": data}
    source = FileSource("set/", f"{server.url}x.tar.gz", digest(data), "top/")
    with pytest.raises(UserError):
        download(["set/test"], tmp_path / "in", [source], {})
    assert below(tmp_path) == []


def test_what_has_no_hash_is_left_to_the_user(tmp_path):
    sources = [FileSource("set/", "https://example.org/page")]
    done = download(["set/a.txt", "else/b.txt"], tmp_path, sources, {})
    assert done.manual == {"set/a.txt": "https://example.org/page", "else/b.txt": ""}
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.txt").write_text("got by hand")
    assert download(["set/a.txt"], tmp_path, sources, {}).present == ["set/a.txt"]


def test_the_command_fetches_what_a_task_reads(server, tmp_path, monkeypatch, capsys):
    rows = b'{"task_id": "t/0", "prompt": "def f():\\n"}\n'
    packed = gzip.compress(rows)
    server.files = {"/HumanEval.jsonl.gz": packed}
    served = dataclasses.replace(
        benchmarks(),
        sources=(
            FileSource("humaneval/", server.url),
            FileSource("mbpp/", "https://example.org/mbpp"),
        ),
        sha256={"humaneval/HumanEval.jsonl.gz": digest(packed)},
    )
    monkeypatch.setattr(selection, "benchmarks", lambda modules: served)
    with pytest.raises(UserError, match=r"--download needs a place: set EvalConfig.data_dir"):
        evaluate.main(["--download", "--tasks=humaneval"])
    with pytest.raises(UserError, match="name what to score: --model_dir=DIR"):
        evaluate.main(["--tasks=humaneval"])
    monkeypatch.setenv("JAXLLM_DATA_DIR", str(tmp_path))
    assert evaluate.main(["--download", "--tasks=humaneval"]) == 0
    assert below(tmp_path) == ["humaneval/HumanEval.jsonl.gz"]
    assert evaluate.main(["--download", "--tasks=humaneval,mbpp"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "1 files downloaded, 0 were there",
        "0 files downloaded, 1 were there",
        "to get by hand: mbpp/mbpp.jsonl, from https://example.org/mbpp",
    ]
    (task,) = benchmarks().load(["humaneval"])
    assert selection.locate(task, EvalConfig()) == (tmp_path / "humaneval/HumanEval.jsonl.gz",)


def test_a_missing_file_names_the_way_to_it(tmp_path):
    def message(name):
        with pytest.raises(UserError) as missing:
            selection.select(EvalConfig(tasks=(name,), data_dir=str(tmp_path)))
        return str(missing.value)

    brings = "`python -m jaxllm.evaluate --download --tasks={}` brings it"
    assert message("arc_easy_5shot").endswith(brings.format("arc_easy"))
    assert message("hellaswag").endswith(brings.format("hellaswag"))
    assert message("mmlu_anatomy").endswith(
        "get it by hand from https://people.eecs.berkeley.edu/~hendrycks/data.tar"
    )


def test_every_file_of_every_task_has_a_source():
    known = [name for name in benchmarks().names() if not name.startswith("unit_")]  # of a test
    for task in benchmarks().load(known):
        for name in task.files + (task.few_shot.files if task.few_shot else ()):
            source = source_of(name, benchmarks().sources)
            assert source is not None, name
            if source.url.startswith("https://raw.githubusercontent.com/"):
                assert pinned(name, benchmarks().sha256), name


def test_hashes_are_those_of_the_files_at_hand(shared_data):
    """The shared data pack files anew; what was packed is upstream's."""
    checked, hashes = 0, benchmarks().sha256
    for path in (shared_data / "evals").rglob("*.gz"):
        name = str(path.relative_to(shared_data / "evals")).removesuffix(".gz")
        if name in hashes and name.split("/")[0] in ("agieval", "bbh", "gsm8k"):
            assert digest(gzip.decompress(path.read_bytes())) == hashes[name], name
            checked += 1
    assert checked > 60


def test_files_are_moved_into_a_bucket(bucket: Proxy, tmp_path: Path) -> None:
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "inner" / "a").write_bytes(b"1")
    (tmp_path / "folder" / "b").write_bytes(b"2")
    root = epath.Path(f"gs://bucket/{tmp_path.name}")
    _move(tmp_path / "folder", root / "task" / "all")
    _move(tmp_path / "folder" / "b", root / "task" / "one")
    assert KeyValueStore(root).names() == ["task/all/b", "task/all/inner/a", "task/one"]

"""Benchmark files come whole and as they were pinned, or not at all: from a server of our own."""

import gzip
import hashlib
import http.server
import io
import tarfile
import threading
import zipfile

import pytest

from jaxllm import evals, evaluate
from jaxllm.errors import UserError
from jaxllm.evals._sums import SUMS
from jaxllm.evaluation import download, resolve
from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.download import Upstream, fetch

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
    source, sums = Upstream("set/", f"{server.url}data/"), {"set/a.txt": digest(TEXT)}
    assert fetch(["set/a.txt"], tmp_path, [source], sums).new == ["set/a.txt"]
    assert (tmp_path / "set/a.txt").read_bytes() == TEXT
    assert fetch(["set/a.txt"], tmp_path, [source], sums).kept == ["set/a.txt"]
    assert server.asked == ["/data/a.txt"]
    (tmp_path / "set/a.txt").write_text("damaged")
    assert fetch(["set/a.txt"], tmp_path, [source], sums).new == ["set/a.txt"]
    assert (tmp_path / "set/a.txt").read_bytes() == TEXT
    assert below(tmp_path) == ["set/a.txt"]


def test_packed_files_stay_packed(server, tmp_path):
    data = gzip.compress(TEXT)
    server.files = {"/a.jsonl.gz": data}
    sums = {"set/a.jsonl.gz": digest(data)}
    done = fetch(["set/a.jsonl"], tmp_path, [Upstream("set/", server.url)], sums)
    assert (done.new, below(tmp_path)) == (["set/a.jsonl.gz"], ["set/a.jsonl.gz"])


def test_another_file_than_the_pinned_one_is_refused(server, tmp_path):
    server.files = {"/a.txt": b"tampered"}
    sums = {"set/a.txt": digest(TEXT)}
    with pytest.raises(UserError) as refused:
        fetch(["set/a.txt"], tmp_path, [Upstream("set/", server.url)], sums)
    message = str(refused.value)
    assert message.startswith(f"set/a.txt: expected SHA-256 {digest(TEXT)}, found ")
    assert digest(b"tampered") in message and f"{server.url}a.txt" in message
    assert below(tmp_path) == []


def test_what_breaks_off_or_is_not_there_leaves_nothing(server, tmp_path):
    source, sums = Upstream("set/", server.url), {"set/a.txt": digest(TEXT)}
    with pytest.raises(UserError, match=r"^set/a.txt: http://.*a.txt answers 404 Not Found"):
        fetch(["set/a.txt"], tmp_path, [source], sums)
    server.files, server.short = {"/a.txt": TEXT}, {"/a.txt"}
    with pytest.raises(UserError, match=f"broke off after 4500 of {len(TEXT)} bytes; try again"):
        fetch(["set/a.txt"], tmp_path, [source], sums)
    nowhere = Upstream("set/", "http://127.0.0.1:1/")
    with pytest.raises(UserError, match=r"a.txt cannot be read .*; try again"):
        fetch(["set/a.txt"], tmp_path, [nowhere], sums)
    assert below(tmp_path) == []


def test_archives_are_read_once_for_all_of_their_files(server, tmp_path):
    data = zipped(top__a=b"a", top__b=b"b", other__c=b"c")
    server.files = {"/x.zip": data}
    source = Upstream("set/", f"{server.url}x.zip", digest(data), "top/")
    done = fetch(["set/a.txt", "set/b.txt"], tmp_path, [source], {})
    assert done.new == ["set/a.txt", "set/b.txt"]
    assert below(tmp_path) == ["set/a.txt", "set/b.txt"]
    assert (tmp_path / "set/b.txt").read_bytes() == b"b"
    assert fetch(["set/b.txt"], tmp_path, [source], {}).kept == ["set/b.txt"]
    assert server.asked == ["/x.zip"]
    with pytest.raises(UserError, match=r"d.txt: .*x.zip holds no top/d.txt"):
        fetch(["set/d.txt"], tmp_path, [source], {})


def test_a_folder_comes_out_of_an_archive_whole(server, tmp_path):
    data = tarred({"./top/test/1.txt": b"1", "./top/test/2.txt": b"2", "./top/train/3.txt": b"3"})
    server.files = {"/x.tar.gz": data}
    source = Upstream("set/", f"{server.url}x.tar.gz", digest(data), "top/")
    fetch(["set/test"], tmp_path, [source], {})
    assert below(tmp_path) == ["set/test/1.txt", "set/test/2.txt"]


def test_members_cannot_leave_the_directory(server, tmp_path):
    data = tarred({"top/test/../../../../evil.txt": b"1"})
    server.files = {"/x.tar.gz": data}
    source = Upstream("set/", f"{server.url}x.tar.gz", digest(data), "top/")
    with pytest.raises(UserError):
        fetch(["set/test"], tmp_path / "in", [source], {})
    assert below(tmp_path) == []


def test_what_has_no_hash_is_left_to_the_user(tmp_path):
    sources = [Upstream("set/", "https://example.org/page")]
    done = fetch(["set/a.txt", "else/b.txt"], tmp_path, sources, {})
    assert done.by_hand == {"set/a.txt": "https://example.org/page", "else/b.txt": ""}
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.txt").write_text("got by hand")
    assert fetch(["set/a.txt"], tmp_path, sources, {}).kept == ["set/a.txt"]


def test_the_command_fetches_what_a_task_reads(server, tmp_path, monkeypatch, capsys):
    rows = b'{"task_id": "t/0", "prompt": "def f():\\n"}\n'
    packed = gzip.compress(rows)
    server.files = {"/HumanEval.jsonl.gz": packed}
    monkeypatch.setattr(evals, "sources", lambda: (
        Upstream("humaneval/", server.url), Upstream("mbpp/", "https://example.org/mbpp")
    ))  # fmt: skip
    monkeypatch.setattr(resolve, "SUMS", {"humaneval/HumanEval.jsonl.gz": digest(packed)})
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
        "1 files fetched, 0 were there",
        "0 files fetched, 1 were there",
        "to get by hand: mbpp/mbpp.jsonl, from https://example.org/mbpp",
    ]
    (task,) = evals.load(["humaneval"])
    assert resolve.files(task, EvalConfig()) == (tmp_path / "humaneval/HumanEval.jsonl.gz",)


def test_a_missing_file_names_the_way_to_it(tmp_path):
    def message(name):
        with pytest.raises(UserError) as missing:
            resolve.resolve(EvalConfig(tasks=(name,), data_dir=str(tmp_path)))
        return str(missing.value)

    brings = "`python -m jaxllm.evaluate --download --tasks={}` brings it"
    assert message("arc_easy_5shot").endswith(brings.format("arc_easy"))
    assert message("hellaswag").endswith(brings.format("hellaswag"))
    assert message("mmlu_anatomy").endswith(
        "get it by hand from https://people.eecs.berkeley.edu/~hendrycks/data.tar"
    )


def test_every_file_of_every_task_has_a_source():
    for task in evals.load([name for name in evals.names() if not name.endswith("…")]):
        for name in task.reads + (task.few_shot.reads if task.few_shot else ()):
            source = download.source_of(name, evals.sources())
            assert source is not None, name
            if source.url.startswith("https://raw.githubusercontent.com/"):
                assert download.packed(name, SUMS), name


def test_hashes_are_those_of_the_files_at_hand(shared_data):
    """The shared data pack files anew; what was packed is upstream's."""
    checked = 0
    for path in (shared_data / "evals").rglob("*.gz"):
        name = str(path.relative_to(shared_data / "evals")).removesuffix(".gz")
        if name in SUMS and name.split("/")[0] in ("agieval", "bbh", "gsm8k"):
            assert digest(gzip.decompress(path.read_bytes())) == SUMS[name], name
            checked += 1
    assert checked > 60

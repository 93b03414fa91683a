"""Corpora are prepared into buckets and read from them as from a directory."""

import contextlib
import dataclasses
import itertools
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gcsfs
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from jaxllm.data.config import DataConfig
from jaxllm.data.files import path_corpus
from jaxllm.data.loader import open_batches, open_source
from jaxllm.errors import UserError
from jaxllm.kvstore import ByteRange, KeyValueStore
from tests.buckets import Proxy


@pytest.fixture
def remote(config: DataConfig, bucket: Proxy, tmp_path: Path) -> DataConfig:
    return dataclasses.replace(config, cache_dir=f"gs://bucket/{tmp_path.name}/cache")


def test_files_are_read_and_written(bucket: Proxy, tmp_path: Path) -> None:
    for directory in (tmp_path / "a b", f"gs://bucket/{tmp_path.name}/a b"):
        files = KeyValueStore(directory)
        files.write({"x/one": b"0123456789", "two": b""})
        assert files.names() == ["two", "x/one"]
        assert files.read("two", "three", "x/one") == [b"", None, b"0123456789"]
        assert files.start_reads([ByteRange("x/one", 2, 5)] * 3)() == [b"234"] * 3
        with pytest.raises(UserError, match="a b"):
            files.start_reads([ByteRange("x/one", 8, 12)])()
        with pytest.raises(UserError, match="three is missing"):
            files.start_reads([ByteRange("three", 0, 1)])()


_READ = """
import os
from jaxllm.kvstore import KeyValueStore, traffic

assert os.environ["TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES"] == "1"
print(KeyValueStore("gs://bucket/hung").read("file"), traffic()["requests/repeated"])
"""


def test_a_request_without_an_answer_is_repeated(bucket: Proxy) -> None:
    """In a process of its own, since TensorStore reads the limit once."""
    KeyValueStore("gs://bucket/hung").write({"file": b"1"})
    waits = iter([300.0])
    bucket.rule = lambda method, path: next(waits, None) if "file" in path else None
    done = subprocess.run(
        [sys.executable, "-c", _READ], capture_output=True, text=True, check=False, timeout=60,
        env=os.environ | {"TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS": "2"},
    )  # fmt: skip
    assert done.stdout == "[b'1'] 1\n", done.stderr


def test_a_bucket_that_does_not_exist_is_named(bucket: Proxy) -> None:
    with pytest.raises(UserError, match="gs://nothing/x"):
        KeyValueStore("gs://nothing/x").write({"file": b"1"})


@pytest.mark.parametrize("layout", ["concat", "pack"])
def test_a_corpus_in_a_bucket_is_that_of_a_directory(config, remote, layout: str) -> None:
    local = open_source(dataclasses.replace(config, layout=layout))
    there = open_source(dataclasses.replace(remote, layout=layout))
    assert there.fingerprint == local.fingerprint
    for name, array in local.sequences(5, 60).items():
        np.testing.assert_array_equal(there.sequences(5, 60)[name], array)


def test_corpora_are_read_from_a_bucket(config, bucket: Proxy, corpus_dir: Path, tmp_path) -> None:
    files = {str(p.relative_to(corpus_dir)): p.read_bytes() for p in corpus_dir.rglob("*.*")}
    there = f"gs://bucket/{tmp_path.name}/corpus"
    KeyValueStore(there).write({name: data for name, data in files.items() if data})
    remote = dataclasses.replace(config, corpus_dir=there, cache_dir=str(tmp_path / "other"))
    assert open_source(remote).fingerprint == open_source(config).fingerprint


def test_patterns_and_records_are_read_from_a_bucket(bucket: Proxy, tmp_path: Path) -> None:
    writer = ArrayRecordWriter(str(tmp_path / "a-train.array_record"), "group_size:1")
    for i in range(600):
        writer.write(b'{"text": "%d"}' % i)
    writer.close()
    there = f"gs://bucket/{tmp_path.name}/records"
    record = (tmp_path / "a-train.array_record").read_bytes()
    KeyValueStore(there).write({"x/a-train.array_record": record, "x/features.json": b"{}"})
    local = path_corpus(f"{tmp_path}/*.array_record", "text")
    remote = path_corpus(f"{there}/*/*-train.array_record", "text")
    for split in ("train", "validation"):
        documents = [[*p.documents()] for c in (local, remote) for p in c.parts(split)]
        assert documents[0] == documents[1] != []


def test_a_corpus_that_cannot_be_listed_is_named(bucket: Proxy, tmp_path: Path) -> None:
    there = f"gs://bucket/{tmp_path.name}/closed"
    KeyValueStore(there).write({"web/train.jsonl": b'{"text": "one"}'})
    (part,) = path_corpus(f"{there}/web", "text").parts("train")
    for path in ("gs://nothing/x", "gs://nothing/x/*.jsonl"):
        with pytest.raises(
            UserError, match=r"gs://nothing/x.* cannot be listed: no such .* bucket"
        ):
            path_corpus(path, "text")
    with pytest.raises(UserError, match="no file matches gs://bucket/none"):
        path_corpus("gs://bucket/none/*.jsonl", "text")
    bucket.rule = lambda method, path: 403
    gcsfs.GCSFileSystem.clear_instance_cache()
    for path in (there, f"{there}/**"):
        with pytest.raises(UserError, match=r"closed.* cannot be listed \(Forbidden"):
            path_corpus(path, "text")
    with pytest.raises(UserError, match=r"train\.jsonl cannot be read .*Forbidden"):
        list(part.documents())


def test_opening_a_corpus_costs_few_requests(remote: DataConfig, bucket: Proxy) -> None:
    open_source(remote)
    before = bucket.requests.total()
    source = open_source(remote)
    assert bucket.requests.total() - before <= 3 * len(source.prepared)
    before = bucket.requests.total()
    source.sequences(0, 32)
    assert bucket.requests.total() - before <= 32 + len(source.prepared)


@pytest.mark.parametrize("layout", ["concat", "pack"])
def test_a_slow_bucket_does_not_stop_the_loop(remote, bucket: Proxy, layout: str) -> None:
    source = open_source(dataclasses.replace(remote, layout=layout))
    bucket.rule = lambda method, path: 0.05
    waited = 0.0
    with contextlib.closing(open_batches(source, 8)) as loader:
        next(loader)
        start = time.perf_counter()
        for _ in range(20):
            time.sleep(0.2)
            began = time.perf_counter()
            next(loader)
            waited += time.perf_counter() - began
    assert waited < 0.01 * (began - start)


def test_faults_on_the_way_lose_nothing_and_are_counted(config, remote, bucket, capsys) -> None:
    expected = open_source(config).sequences(0, 40)
    count = itertools.count()
    faults = {3: 503, 6: "reset", 9: 429}
    bucket.rule = lambda method, path: faults.get(next(count) % 10)
    source = open_source(remote)
    for name, array in source.sequences(0, 40).items():
        np.testing.assert_array_equal(array, expected[name])
    assert re.search(
        r"prepare train: \d+ requests to buckets were repeated", capsys.readouterr().err
    )


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket s3://bucket on this machine."""
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    import boto3

    server = moto.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield "s3://bucket"
    server.stop()


def test_s3_is_a_bucket_like_another(config: DataConfig, s3: str, corpus_dir: Path) -> None:
    files = {str(p.relative_to(corpus_dir)): p.read_bytes() for p in corpus_dir.rglob("*.*")}
    KeyValueStore(f"{s3}/corpus").write({name: data for name, data in files.items() if data})
    remote = dataclasses.replace(config, corpus_dir=f"{s3}/corpus", cache_dir=f"{s3}/cache")
    assert open_source(remote).fingerprint == open_source(config).fingerprint
    expected = open_source(config).sequences(0, 20)
    for name, array in open_source(remote).sequences(0, 20).items():
        np.testing.assert_array_equal(array, expected[name])

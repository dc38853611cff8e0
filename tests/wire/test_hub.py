"""The real huggingface_hub against the Hub's download API over our own registry."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.conftest import LiveServer, clean_environment, run_server
from tests.real_models import minilm_folder

from wherry import Client

hub = pytest.importorskip("huggingface_hub", reason="pip install huggingface_hub")
from huggingface_hub import errors as hub_errors  # noqa: E402

MIB = 1 << 20
BIG_BYTES = 200 * MIB
CODE = (Path(str(files("wherry.learning"))) / "examples" / "echo" / "model.py").read_bytes()
MANIFEST = """task = "tensor"
runtime = "python_class"
files = [{files}]
[signature]
inputs = [{{name = "X", datatype = "FP32", shape = [-1]}}]
outputs = [{{name = "X", datatype = "FP32", shape = [-1]}}]
[sample]
X = [1.0]
"""


def import_files(live: LiveServer, name: str, added: dict[str, bytes | int], **options: Any) -> Any:
    """A new version of a model that has these files besides its code; a number is a sparse file."""
    folder = Path(tempfile.mkdtemp(dir=live.home))
    for path, content in {"model.py": CODE, **added}.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int):
            with target.open("wb") as file:
                file.truncate(content)
        else:
            target.write_bytes(content)
    listed = ", ".join(f'"{path}"' for path in ("model.py", *added))
    (folder / "wherry.toml").write_text(MANIFEST.format(files=listed))
    with Client(live.url, live.key) as client:
        return client.models.import_model(folder, name=name, **options)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server of these tests' own, whose list of models is theirs."""
    with run_server(tmp_path_factory.mktemp("hub"), "--allow-code") as live:
        yield live


@pytest.fixture(scope="module")
def minilm(server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of real files."""
    folder = minilm_folder(tmp_path_factory.mktemp("minilm"))
    with Client(server.url, server.key) as client:
        client.models.import_model(folder, name="hub-minilm")
    return "default/hub-minilm"


@pytest.fixture(scope="module")
def tree(server: LiveServer) -> str:
    """A model of two versions, the first of which is the champion."""
    first: dict[str, bytes | int] = {"a/b/c.bin": b"abc", "a/d.bin": b"", "config.json": b"{}"}
    import_files(server, "hub-tree", first, alias="champion")
    import_files(server, "hub-tree", {**first, "config.json": b'{"newer": true}'})
    return "default/hub-tree"


@pytest.fixture(scope="module")
def big(server: LiveServer) -> str:
    """A model with a large file."""
    import_files(server, "hub-big", {"weights.bin": BIG_BYTES})
    return "default/hub-big"


@pytest.fixture
def api(server: LiveServer) -> Any:
    """The client, with a key that may download and nothing else."""
    return hub.HfApi(endpoint=server.url, token=make_key(server, scopes=["download"]))


def make_key(server: LiveServer, **fields: Any) -> str:
    answer = server.http.post("/platform/v1/keys", json={"name": "hub", **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()["secret"]


def digest_of(path: str | Path) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ------------------------------------------------------------------------------ downloads


def test_a_snapshot_is_the_version_and_its_model_answers(api: Any, minilm: str, tmp_path: Path):
    onnxruntime = pytest.importorskip("onnxruntime")
    tokenizers = pytest.importorskip("tokenizers")
    folder = Path(api.snapshot_download(minilm, cache_dir=tmp_path))
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.onnx",
        "tokenizer.json",
        "wherry.toml",
    ]
    encoded = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode("A cat.")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    fields = {
        "input_ids": [encoded.ids],
        "attention_mask": [encoded.attention_mask],
        "token_type_ids": [encoded.type_ids],
    }
    names = {each.name for each in session.get_inputs()}
    import numpy as np

    feeds = {name: np.array(rows) for name, rows in fields.items() if name in names}
    (vectors, *_) = session.run(None, feeds)
    assert vectors.shape[-1] == 384
    assert folder.name == api.model_info(minilm).sha


def test_the_environment_alone_sends_a_client_here(server: LiveServer, minilm: str, tmp_path: Path):
    """As transformers and vLLM do, without a line of code for us."""
    program = (
        "import huggingface_hub, sys; "
        "print(huggingface_hub.hf_hub_download(sys.argv[1], 'tokenizer.json'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, minilm],
        env={
            **clean_environment(),
            "HF_ENDPOINT": server.url,
            "HF_TOKEN": make_key(server, scopes=["download"]),
            "HF_HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = Path(done.stdout.strip())
    assert found.is_relative_to(tmp_path)
    assert '"vocab"' in found.read_text()


def test_a_big_file_comes_whole(api: Any, big: str, tmp_path: Path):
    path = api.hf_hub_download(big, "weights.bin", cache_dir=tmp_path)
    assert Path(path).stat().st_size == BIG_BYTES
    info = api.get_paths_info(big, ["weights.bin"])[0]
    assert digest_of(path) == info.lfs.sha256


def test_a_download_that_breaks_continues_where_it_stopped(
    server: LiveServer, api: Any, big: str, tmp_path: Path
):
    with cut_connections(server, [50 * MIB, 100 * MIB]) as relay:
        path = hub.hf_hub_download(
            big, "weights.bin", endpoint=relay.url, token=api.token, cache_dir=tmp_path
        )
    assert Path(path).stat().st_size == BIG_BYTES
    starts = [int(each) for each in relay.ranges]
    assert len(starts) == 2
    assert 0 < starts[0] <= 50 * MIB
    assert starts[0] < starts[1] <= starts[0] + 100 * MIB


def test_many_downloads_at_once_do_not_mix(
    api: Any, big: str, tree: str, minilm: str, tmp_path: Path
):
    wanted = [(big, "weights.bin"), (minilm, "model.onnx"), (tree, "a/b/c.bin")] * 4

    def get(number: int) -> tuple[str, str]:
        repository, file = wanted[number]
        path = api.hf_hub_download(repository, file, cache_dir=tmp_path / str(number))
        return file, digest_of(path)

    with ThreadPoolExecutor(len(wanted)) as pool:
        found = list(pool.map(get, range(len(wanted))))
    expected = {
        file: api.get_paths_info(repository, [file])[0].lfs.sha256 for repository, file in wanted
    }
    assert found == [(file, expected[file]) for _, file in wanted]


def test_a_second_snapshot_downloads_nothing_and_a_new_version_only_what_changed(
    server: LiveServer, api: Any, tree: str, tmp_path: Path
):
    old = Path(api.snapshot_download(tree, revision="champion", cache_dir=tmp_path))
    new = Path(api.snapshot_download(tree, cache_dir=tmp_path))
    assert (old / "config.json").read_bytes() == b"{}"
    assert (new / "config.json").read_bytes() == b'{"newer": true}'
    assert (old / "a/b/c.bin").resolve() == (new / "a/b/c.bin").resolve()
    again = hub.snapshot_download(
        tree, endpoint=server.url, token=api.token, cache_dir=tmp_path, local_files_only=True
    )
    assert Path(again) == new


# ------------------------------------------------------------------------------ looking


def test_a_repository_tells_its_files_branches_and_tags(api: Any, tree: str):
    info = api.model_info(tree, files_metadata=True)
    assert (info.id, info.author, info.private, info.pipeline_tag) == (
        tree,
        "default",
        True,
        "tensor",
    )
    sizes = {each.rfilename: each.size for each in info.siblings}
    assert sizes["a/b/c.bin"] == 3
    assert sizes["a/d.bin"] == 0
    assert api.list_repo_files(tree) == sorted(sizes)
    refs = api.list_repo_refs(tree)
    branches = {each.name: each.target_commit for each in refs.branches}
    tags = {each.name: each.target_commit for each in refs.tags}
    assert branches == {"main": tags["2"], "champion": tags["1"]}
    assert info.sha == tags["2"]
    assert api.repo_exists(tree)
    assert api.file_exists(tree, "a/d.bin")
    assert not api.file_exists(tree, "a/e.bin")
    assert api.revision_exists(tree, "champion")


def test_a_tree_is_listed_by_folders_or_whole(api: Any, tree: str):
    top = [each.path for each in api.list_repo_tree(tree)]
    assert top == ["a", "config.json", "model.py", "wherry.toml"]
    assert [each.path for each in api.list_repo_tree(tree, "a")] == ["a/b", "a/d.bin"]
    deep = [each.path for each in api.list_repo_tree(tree, recursive=True, expand=True)]
    assert deep == ["a", "a/b", "a/b/c.bin", "a/d.bin", *top[1:]]
    commits = {each.last_commit.title for each in api.list_repo_tree(tree, expand=True)}
    assert commits == {"version 2"}
    (file, folder) = api.get_paths_info(tree, ["a/d.bin", "a", "absent"])[::-1]
    assert (file.path, file.size, folder.path) == ("a/d.bin", 0, "a")
    assert file.lfs.sha256 == hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize("name", ["1", "champion", "commit", "start"])
def test_a_revision_is_a_number_an_alias_or_the_beginning_of_a_digest(
    api: Any, tree: str, tmp_path: Path, name: str
):
    commit = api.model_info(tree, revision="1").sha
    revision = {"commit": commit, "start": commit[:9]}.get(name, name)
    path = api.hf_hub_download(tree, "config.json", revision=revision, cache_dir=tmp_path)
    assert Path(path).read_bytes() == b"{}"
    assert commit in path


def test_the_teams_models_are_listed_and_found(api: Any, tree: str, minilm: str, big: str):
    listed = [each.id for each in api.list_models()]
    assert {tree, minilm, big} <= set(listed)
    assert [each.id for each in api.list_models(search="hub-t")] == [tree]
    assert list(api.list_models(author="somebody")) == []
    assert [each.id for each in api.list_models(pipeline_tag="feature-extraction")] == [minilm]
    paged = httpx.get(
        f"{api.endpoint}/api/models?limit=1", headers={"authorization": f"Bearer {api.token}"}
    )
    assert len(paged.json()) == 1
    pages = list(
        hub.utils.paginate(f"{api.endpoint}/api/models", {"limit": 1}, dict(paged.request.headers))
    )
    assert [each["id"] for each in pages] == listed


def test_a_model_of_the_own_team_needs_no_team(api: Any, tree: str, tmp_path: Path):
    assert api.model_info("hub-tree").id == tree
    assert api.list_repo_files("hub-tree") == api.list_repo_files(tree)
    path = api.hf_hub_download("hub-tree", "a/b/c.bin", cache_dir=tmp_path)
    assert Path(path).read_bytes() == b"abc"


def test_the_key_is_known_by_its_team(api: Any):
    found = api.whoami()
    assert (found["name"], found["auth"]["accessToken"]["role"]) == ("default", "read")


# ------------------------------------------------------------------------------ refusals


def test_what_does_not_exist_is_told_as_the_client_knows_it(api: Any, tree: str, tmp_path: Path):
    with pytest.raises(hub_errors.RepositoryNotFoundError):
        api.model_info("default/nothing-here")
    with pytest.raises(hub_errors.RevisionNotFoundError):
        api.model_info(tree, revision="17")
    with pytest.raises(hub_errors.RevisionNotFoundError):
        api.hf_hub_download(tree, "config.json", revision="0" * 40, cache_dir=tmp_path)
    with pytest.raises(hub_errors.EntryNotFoundError):
        api.hf_hub_download(tree, "absent.bin", cache_dir=tmp_path)
    with pytest.raises(hub_errors.EntryNotFoundError):
        list(api.list_repo_tree(tree, "absent"))
    assert not api.repo_exists("default/nothing-here")


def test_another_teams_model_does_not_exist(server: LiveServer, api: Any, tree: str):
    with pytest.raises(hub_errors.RepositoryNotFoundError):
        api.snapshot_download("another-team/hub-tree")
    answer = httpx.get(
        f"{server.url}/another-team/hub-tree/resolve/main/config.json",
        headers={"authorization": f"Bearer {api.token}"},
    )
    assert (answer.status_code, answer.headers["x-error-code"]) == (404, "RepoNotFound")


def test_a_wrong_key_is_told_apart_from_an_absent_model(server: LiveServer, tree: str):
    with pytest.raises(hub_errors.HfHubHTTPError, match="Invalid credentials") as refused:
        hub.HfApi(endpoint=server.url, token="wh-" + "x" * 43).model_info(tree)
    assert refused.value.response.status_code == 401
    assert not isinstance(refused.value, hub_errors.RepositoryNotFoundError)


def test_to_call_a_model_is_not_to_have_it(server: LiveServer, tree: str, tmp_path: Path):
    for scope in ("invoke", "publish", "operate"):
        api = hub.HfApi(endpoint=server.url, token=make_key(server, scopes=[scope]))
        assert api.model_info(tree).id == tree
        with pytest.raises(hub_errors.GatedRepoError, match="'download'") as refused:
            api.hf_hub_download(tree, "config.json", cache_dir=tmp_path)
        assert refused.value.response.status_code == 403


def test_a_key_for_one_deployment_reads_no_files(server: LiveServer, tree: str, tmp_path: Path):
    token = make_key(server, scopes=["download", "invoke"], deployments=["something"])
    api = hub.HfApi(endpoint=server.url, token=token)
    with pytest.raises(hub_errors.GatedRepoError, match="some deployments"):
        api.hf_hub_download(tree, "config.json", cache_dir=tmp_path)


@pytest.mark.parametrize("path", ["../x", "a/../config.json", "%2e%2e/x", "a%00b", "//etc/passwd"])
def test_a_path_is_only_ever_a_name_of_a_file_of_the_version(
    server: LiveServer, tree: str, path: str
):
    answer = raw_get(server, f"/{tree}/resolve/main/{path}")
    assert b" 404 " in answer.split(b"\r\n", 1)[0]


def test_reading_a_file_leaves_a_trace(server: LiveServer, api: Any, tree: str, tmp_path: Path):
    api.hf_hub_download(tree, "model.py", cache_dir=tmp_path)
    lines = [line for line in server.log().splitlines() if "model file read" in line]
    assert any("hub-tree@2" in line and "model.py" in line for line in lines)


# ------------------------------------------------------------------------------ HTTP


@pytest.mark.parametrize(
    ("asked", "status", "body"),
    [
        ("bytes=1-1", 206, b"b"),
        ("bytes=1-", 206, b"bc"),
        ("bytes=-2", 206, b"bc"),
        ("bytes=0-99", 200, b"abc"),
        ("bytes=0-0,2-2", 200, b"abc"),
        ("bytes=2-1", 200, b"abc"),
        ("pages=1-2", 200, b"abc"),
        ("bytes=3-", 416, b""),
        ("bytes=-0", 416, b""),
    ],
)
def test_ranges_are_those_of_http(
    server: LiveServer, tree: str, asked: str, status: int, body: bytes
):
    answer = server.http.get(f"/{tree}/resolve/main/a/b/c.bin", headers={"range": asked})
    assert (answer.status_code, answer.content) == (status, body)
    if status == 206:
        assert answer.headers["content-range"].endswith("/3")
    if status == 416:
        assert answer.headers["content-range"] == "bytes */3"


def test_what_the_client_has_already_is_not_sent_again(server: LiveServer, tree: str):
    url = f"/{tree}/resolve/champion/a/b/c.bin"
    head = server.http.head(url)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "3", b"")
    etag = head.headers["etag"]
    assert etag == head.headers["x-linked-etag"] == f'"{hashlib.sha256(b"abc").hexdigest()}"'
    same = server.http.get(url, headers={"if-none-match": f'"other", W/{etag}'})
    assert (same.status_code, same.content) == (304, b"")
    other = server.http.get(url, headers={"range": "bytes=1-", "if-range": '"other"'})
    assert (other.status_code, other.content) == (200, b"abc")
    ours = server.http.get(url, headers={"range": "bytes=1-", "if-range": etag})
    assert (ours.status_code, ours.content) == (206, b"bc")


def test_a_client_that_leaves_ends_the_reading(server: LiveServer, big: str):
    for _ in range(140):  # more than may be sent at once
        with server.http.stream("GET", f"/{big}/resolve/main/weights.bin") as answer:
            assert answer.status_code == 200
            next(answer.iter_raw())
    assert server.http.head(f"/{big}/resolve/main/weights.bin").status_code == 200


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"{", "application/json"), (b"[]", "application/json"), (b"&".join([b"paths=x"] * 2000), "")],
)
def test_lists_of_paths_that_cannot_be_are_refused(
    server: LiveServer, tree: str, body: bytes, kind: str
):
    headers = {"content-type": kind} if kind else {}
    answer = server.http.post(f"/api/models/{tree}/paths-info/main", content=body, headers=headers)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}


# ------------------------------------------------------------------------------ tools


class Relay:
    """Where clients connect instead, and the starts of the ranges that they asked for."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.ranges: list[str] = []


@contextlib.contextmanager
def cut_connections(server: LiveServer, after_bytes: list[int]) -> Iterator[Relay]:
    """A relay whose first answers of more bytes are cut there, one after another."""
    target = httpx.URL(server.url)
    listener = socket.create_server(("127.0.0.1", 0))
    relay = Relay(f"http://127.0.0.1:{listener.getsockname()[1]}")

    def upwards(client: socket.socket, upstream: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                for line in data.lower().split(b"\r\n"):
                    if line.startswith(b"range: bytes="):
                        relay.ranges.append(line[13:].decode().rstrip("-"))
                upstream.sendall(data)

    def downwards(client: socket.socket, upstream: socket.socket) -> None:
        sent = 0
        with contextlib.suppress(OSError):
            while data := upstream.recv(1 << 16):
                sent += len(data)
                if after_bytes and sent > after_bytes[0]:
                    after_bytes.pop(0)
                    break
                client.sendall(data)
        for each in (client, upstream):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                upstream = socket.create_connection((target.host, target.port or 80))
                for work in (upwards, downwards):
                    threading.Thread(target=work, args=(client, upstream), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield relay
    finally:
        listener.close()


def raw_get(server: LiveServer, path: str) -> bytes:
    """An answer to a path that HTTP libraries would tidy up."""
    target = httpx.URL(server.url)
    with socket.create_connection((target.host, target.port or 80), timeout=10) as connection:
        head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        connection.sendall(f"{head}Authorization: Bearer {server.key}\r\n\r\n".encode())
        answer = b""
        while data := connection.recv(1 << 16):
            answer += data
        return answer

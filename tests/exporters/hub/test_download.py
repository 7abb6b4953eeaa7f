"""Downloads into the shared cache: complete, checked, resumed, and the token stays with the Hub."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from ortkit import OutputError
from ortkit.exporters.checkpoint.hashed_file import hash_file
from ortkit.exporters.hub.download import need_space
from tests.hub_server import LocalHub
from tests.hub_users import ADA, SMALL_FILES, HubUser, user_of

# Downloads what an export needs and prints where it lies, as `ortkit export` does, in a process of its own and without
# torch: so it runs with the generations of huggingface_hub that transformers does not accept.
DOWNLOAD = """
import json, sys
from ortkit.exporters.hub.access import check_access
from ortkit.exporters.hub.download import download, remember
from ortkit.exporters.progress import NoProgress
from ortkit.exporters.sources import needed_files
from ortkit import OrtkitError
host = sys.argv[2]
told = []
class Recorder(NoProgress):
    def update(self, done, total, unit):
        assert unit == "bytes"
        told.append((done, total))
try:
    access = check_access(sys.argv[1], "main", command="again", token_host=host)
    folder = download(access, needed_files(access), Recorder()).folder
    remember(access)
    print(json.dumps({"folder": str(folder), "told": told}))
except OrtkitError as error:
    print(json.dumps({"error": type(error).__name__, "message": error.message, "hint": error.hint}))
"""


def start(user: HubUser, hub: LocalHub, model: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DOWNLOAD, model, hub.host],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=user.environment | environment,
    )


def run(user: HubUser, hub: LocalHub, model: str, **environment: str) -> dict:
    finished = user.run_code(DOWNLOAD, model, hub.host, **environment)
    assert b"Traceback" not in finished.stderr
    assert finished.stdout, finished.stderr
    return json.loads(finished.stdout)


def test_only_what_an_export_needs_is_downloaded_and_shared(every_user: HubUser, hub: LocalHub) -> None:
    found = run(every_user, hub, "org/public")
    folder = Path(found["folder"])

    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "modules.json", "README.md"}
    for name in names:
        assert (folder / name).read_bytes() == hub.repos["org/public"].files[name].content
    assert folder == every_user.home / ".cache/huggingface/hub/models--org--public/snapshots" / ("c" * 40)
    total = sum(len(hub.repos["org/public"].files[name].content) for name in names)
    assert found["told"][-1] == [total, total]


def test_what_is_there_is_not_downloaded_again(any_user: HubUser, hub: LocalHub) -> None:
    first = run(any_user, hub, "org/public")
    sent = hub.stored_bytes

    assert run(any_user, hub, "org/public")["folder"] == first["folder"]
    assert hub.stored_bytes == sent == 300_000


def test_what_another_tool_downloaded_is_used(every_user: HubUser, hub: LocalHub) -> None:
    code = "import huggingface_hub as h; h.snapshot_download('org/public', allow_patterns=['*.safetensors', '*.json'])"
    assert every_user.run_code(code).returncode == 0
    sent = hub.stored_bytes
    assert sent >= 300_000

    run(every_user, hub, "org/public")
    assert hub.stored_bytes == sent


def test_the_token_does_not_follow_to_the_storage(every_user: HubUser, hub: LocalHub) -> None:
    run(every_user, hub, "org/gated", HF_TOKEN=ADA)

    to_hub = [request for request in hub.requests if request.server == "hub"]
    to_storage = [request for request in hub.requests if request.server == "storage"]
    assert to_storage
    assert all(request.authorization == f"Bearer {ADA}" for request in to_hub)
    assert all(request.authorization is None for request in to_storage)


def test_a_file_of_the_wrong_content_is_removed_and_fetched_again(any_user: HubUser, hub: LocalHub) -> None:
    hub.repos["org/public"].trouble = "wrong"
    found = run(any_user, hub, "org/public")

    assert found["error"] == "CheckpointError"
    assert found["message"].startswith(
        f"`model.safetensors` from `{hub.host}` is not what the Hub promised: its hash is"
    )
    assert found["hint"] == ("run the command again; if it stays so, something between here and the Hub changes files")
    hub.repos["org/public"].trouble = None
    folder = Path(run(any_user, hub, "org/public")["folder"])
    assert (folder / "model.safetensors").read_bytes() == bytes(300_000)


def test_a_small_file_of_the_wrong_content_is_noticed_too(any_user: HubUser, hub: LocalHub) -> None:
    file = hub.repos["org/public"].files["config.json"]
    assert file.blob == hashlib.sha1(b"blob 22\0" + file.content).hexdigest()
    object.__setattr__(file, "content", b'{"model_type": "evil"}')

    found = run(any_user, hub, "org/public")

    assert found["error"] == "CheckpointError"
    assert found["message"].startswith(f"`config.json` from `{hub.host}` is not what the Hub promised")


def test_a_download_that_breaks_off_again_and_again(every_user: HubUser, hub: LocalHub) -> None:
    hub.repos["org/public"].trouble = "cut"
    found = run(every_user, hub, "org/public")

    assert found["error"] == "NetworkError"
    assert hub.host in found["message"]
    assert "broke" in found["message"]
    assert found["hint"].startswith("run the command again: the download resumes")


def test_a_file_that_the_hub_lists_and_does_not_have(any_user: HubUser, hub: LocalHub) -> None:
    names = [*SMALL_FILES, "LICENSE"]
    hub.repos["org/public"].lies = {"siblings": [{"rfilename": name, "blobId": "a" * 40, "size": 5} for name in names]}
    del hub.repos["org/public"].files["config.json"]

    assert run(any_user, hub, "org/public") == {
        "error": "NetworkError",
        "message": f"`{hub.host}` answers 404 for `config.json`",
        "hint": "run the command again: the download resumes",
    }


def test_a_cache_that_cannot_be_written(user: HubUser, hub: LocalHub, tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("in the way")

    assert run(user, hub, "org/public", HF_HUB_CACHE=str(tmp_path / "a-file" / "hub")) == {
        "error": "OutputError",
        "message": f"the cache `{tmp_path / 'a-file' / 'hub'}` cannot be written: Not a directory",
        "hint": "set HF_HOME to a folder that you may write to",
    }


@pytest.mark.parametrize(("left", "wanted"), [(300_000, None), (300_001, None), (299_999, "bytes=299999-")])
def test_what_is_left_of_a_download_that_was_broken_off_late(
    user: HubUser, hub: LocalHub, left: int, wanted: str | None
) -> None:
    """Between its last byte and its new name, and longer than it may be."""
    blobs = user.home / ".cache/huggingface/hub/models--org--public/blobs"
    blobs.mkdir(parents=True)
    sha256 = hub.repos["org/public"].files["model.safetensors"].sha256
    (blobs / f"{sha256}.ortkit.incomplete").write_bytes(bytes(left))

    folder = Path(run(user, hub, "org/public")["folder"])

    assert (folder / "model.safetensors").read_bytes() == bytes(300_000)
    asked = [request.range for request in hub.requests if request.server == "storage"]
    assert asked == ([] if left == 300_000 else [wanted])
    assert not list(blobs.glob("*.incomplete"))


def test_two_downloads_at_once(user: HubUser, hub: LocalHub) -> None:
    hub.bytes_per_second = 3e5
    processes = [start(user, hub, "org/public") for _ in range(3)]

    found = [json.loads(process.communicate(timeout=60)[0]) for process in processes]

    assert len({answer["folder"] for answer in found}) == 1
    assert hub.stored_bytes == 300_000, "the others waited for the first"


def test_gits_hash() -> None:
    path = Path(__file__)
    expected = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True).stdout.strip()

    assert hash_file(path, git=True).git_sha1 == expected
    assert hash_file(path).git_sha1 is None


def test_a_disk_that_is_too_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ortkit.exporters.hub.download.constants.HF_HUB_CACHE", str(tmp_path / "not" / "there" / "yet"))
    monkeypatch.setattr("ortkit.exporters.hub.download.shutil.disk_usage", lambda _: SimpleNamespace(free=20_000_000))
    need_space(20_000_000)

    with pytest.raises(OutputError) as caught:
        need_space(1_234_567_890)
    assert caught.value.message == (
        f"the download needs 1,234.6 MB in `{tmp_path / 'not/there/yet'}`, and 20.0 MB are free"
    )
    assert caught.value.hint == "free some space, or set HF_HOME to a folder on a larger disk"


CHUNK = 10 * 2**20
"""So much is there before a download is killed."""
SIZE = 4 * CHUNK


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert process.poll() is None, "the download ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)


def kept_in(blobs: Path) -> int:
    """Bytes of files that are not complete yet."""
    return sum(path.stat().st_size for path in blobs.glob("*.incomplete"))


def kill_and_resume(seed: int, folder: Path) -> tuple[int, str | None]:
    """Kill a download at a random point and start it again: bytes the first left, the range the second asked for."""
    choose = random.Random(seed)
    content = choose.randbytes(SIZE)
    hub = LocalHub()
    hub.add("org/large", {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": content})
    user = user_of(hub, folder / str(seed))
    try:
        hub.bytes_per_second = 8e7
        process = start(user, hub, "org/large")
        blobs = user.home / ".cache/huggingface/hub/models--org--large/blobs"
        point = choose.randint(CHUNK, SIZE - CHUNK)
        wait_until(lambda: hub.stored_bytes >= point and kept_in(blobs) >= CHUNK, process)
        process.kill()
        process.communicate()
        hub.bytes_per_second = None
        left = kept_in(blobs)
        found = run(user, hub, "org/large")
        assert (Path(found["folder"]) / "model.safetensors").read_bytes() == content
        return left, [request.range for request in hub.requests if request.server == "storage"][-1]
    finally:
        hub.close()


@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 12), marks=pytest.mark.slow)])
def test_a_killed_download_goes_on_where_it_was(tmp_path: Path, seeds: range) -> None:
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda seed: kill_and_resume(seed, tmp_path), seeds))

    for left, wanted in results:
        assert left >= CHUNK
        assert wanted == f"bytes={left}-", "only what was missing was asked for"

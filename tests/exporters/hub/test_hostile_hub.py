"""A Hub that lies: nothing is written outside of the cache, nothing of this machine gets into it, and no token leaves.

Each attack is a repository of the local Hub; one process asks for all of them, with each generation of huggingface_hub.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import OfflineModeIsEnabled

from ortkit import NetworkError
from ortkit.exporters.hub.access import description_in
from ortkit.exporters.hub.names import hash_in, is_file_name, is_hash, is_repo_id
from ortkit.exporters.hub.transport import no_network, redirected, upgraded
from ortkit.exporters.printable import printable
from tests.hub_server import BOMB, File, LocalHub
from tests.hub_users import ADA, SMALL_FILES, HubUser

DOWNLOAD_ALL = r"""
import json, re, sys
from pathlib import Path
from ortkit.exporters.hub.access import check_access
from ortkit.exporters.hub.download import download, remember
from ortkit.exporters.sources import needed_files
from ortkit import OrtkitError
found = {}
for model in sys.argv[2:]:
    try:
        access = check_access(model, "main", command="again", token_host=sys.argv[1])
        download(access, needed_files(access))
        remember(access)
        found[model] = ["", ""]
    except OrtkitError as error:
        found[model] = [type(error).__name__, error.message]
peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024
print(json.dumps({"found": found, "peak": peak}))
"""


def ask_for(user: HubUser, hub: LocalHub, models: list[str], **environment: str) -> dict:
    finished = user.run_code(DOWNLOAD_ALL, hub.host, *models, **environment)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def files_under(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def with_file(hub: LocalHub, name: str, path: str, content: bytes, **facts: object) -> None:
    hub.add(name, SMALL_FILES | {path: content}, **facts)


def test_a_hub_whose_names_are_paths(every_user: HubUser, hub: LocalHub) -> None:
    """The `ETag` of a file without a hash, the commit, the id, file names and hashes lead out of the cache."""
    every_user.write_token(ADA)
    secret = every_user.token_file
    for name, tag in {
        "org/etag-reads": '"../../../token"',
        "org/etag-writes": '"../../../../../.profile"',
        "org/etag-absolute": f'"{every_user.home}/.bashrc"',
        "org/etag-empty": '""',
        "org/etag-weak": 'W/"0123"',
        "org/etag-linked": f'"{"a" * 40}"',
    }.items():
        facts = {"X-Linked-Etag": '"../../../token"'} if name == "org/etag-linked" else {}
        headers = {"LICENSE": {"ETag": tag, **facts}}
        with_file(hub, name, "LICENSE", b"owned", unhashed=frozenset({"LICENSE"}), headers=headers)
    with_file(hub, "org/etag-of-another", "LICENSE", b"owned", unhashed=frozenset({"LICENSE"}))
    hub.repos["org/etag-of-another"].headers = {"LICENSE": {"ETag": f'"{"a" * 40}"'}}
    lies = {
        "org/commit-up": {"sha": "../../../../x"},
        "org/commit-absolute": {"sha": str(every_user.home / "x")},
        "org/commit-upper": {"sha": "C" * 40},
        "org/commit-none": {"sha": 3},
        "org/id-up": {"id": "../../x"},
        "org/id-list": {"id": ["org/x"]},
        "org/blob-up": {"siblings": [{"rfilename": "config.json", "size": 2, "blobId": "../../../token"}]},
        "org/lfs-up": {"siblings": [{"rfilename": "model.safetensors", "lfs": {"sha256": "../../x", "size": 1}}]},
        "org/size-negative": {"siblings": [{"rfilename": "config.json", "size": -5, "blobId": "a" * 40}]},
        "org/twice": {"siblings": [{"rfilename": "config.json", "blobId": blob * 40} for blob in "ab"]},
        "org/siblings": {"siblings": {"a": 1}},
    }
    for name, lie in lies.items():
        hub.add(name, SMALL_FILES, lies=lie)
    before = files_under(every_user.home)

    found = ask_for(every_user, hub, [name for name in hub.repos if name.startswith(("org/etag", *lies))])["found"]

    strange = f"`{hub.host}` answers with what the Hub would not say"
    assert {name: error for name, error in found.items() if name in lies} == {
        name: ["NetworkError", strange] for name in lies
    }
    unchecked = f"`{hub.host}` does not give the hash of `LICENSE`, so what it sends cannot be checked"
    assert {name: error for name, error in found.items() if name not in (*lies, "org/etag-of-another")} == {
        f"org/etag-{kind}": ["NetworkError", unchecked]
        for kind in ("reads", "writes", "absolute", "empty", "weak", "linked")
    }
    kind, message = found["org/etag-of-another"]
    assert kind == "CheckpointError"
    assert message.startswith(f"`LICENSE` from `{hub.host}` is not what the Hub promised")
    assert secret.read_text() == ADA
    written = files_under(every_user.home) - before
    assert all(name.startswith(".cache/huggingface/hub/models--org--") for name in written)
    assert not [name for name in written if name.endswith("LICENSE")]
    assert not [
        path for path in every_user.home.rglob("*") if path.is_symlink() and "/blobs/" not in str(path.resolve())
    ]


def test_a_cache_with_links_out_of_it_is_mended(user: HubUser, hub: LocalHub) -> None:
    """As older versions left it that believed the `ETag`: what the link leads to is neither read nor removed."""
    user.write_token(ADA)
    with_file(hub, "org/poisoned", "LICENSE", b"the terms")
    snapshot = user.home / ".cache/huggingface/hub/models--org--poisoned/snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "LICENSE").symlink_to("../../../../token")
    (snapshot / "config.json").symlink_to(user.home / "nothing")
    assert (snapshot / "LICENSE").read_text() == ADA

    offline = user.run("export", "org/poisoned", "--revision", "c" * 40, "--offline")
    found = ask_for(user, hub, ["org/poisoned"])["found"]

    assert offline.code == 6, "it holds no config.json"
    assert found == {"org/poisoned": ["", ""]}
    assert (snapshot / "LICENSE").read_text() == "the terms"
    assert user.token_file.read_text() == ADA
    (snapshot / "README.md").unlink()
    (snapshot / "README.md").symlink_to(user.token_file)
    offline = user.run("export", "org/poisoned", "--offline")
    assert offline.code == 7
    assert f"`README.md` of `{snapshot}` is a link to `{user.token_file}`, outside of the checkpoint" in offline.err


def test_a_file_without_a_hash_is_checked_by_its_tag(any_user: HubUser, hub: LocalHub) -> None:
    """And what else a Hub may say in headers is not read: `X-Repo-Commit` and the links of Xet."""
    with_file(hub, "org/honest", "LICENSE", b"the terms", unhashed=frozenset({"LICENSE", "config.json"}))
    hub.repos["org/honest"].headers = {
        name: {
            "X-Repo-Commit": commit,
            "X-Xet-Hash": "a" * 64,
            "Link": f'<http://localhost:{hub.storage.server_port}/auth>; rel="xet-auth"',
            "Content-Disposition": 'attachment; filename="../../x"',
        }
        for name, commit in {"config.json": "../../x", "LICENSE": "/x", "model.safetensors": "C" * 40}.items()
    }

    found = ask_for(any_user, hub, ["org/honest"], HF_TOKEN=ADA, HF_XET_HIGH_PERFORMANCE="1")["found"]

    assert found == {"org/honest": ["", ""]}
    snapshot = any_user.home / ".cache/huggingface/hub/models--org--honest/snapshots" / ("c" * 40)
    assert (snapshot / "LICENSE").read_bytes() == b"the terms"
    away = [request for request in hub.requests if request.server == "storage"]
    assert [request.path for request in away] == ["/org/honest/model.safetensors"]
    assert all(request.authorization is None for request in away)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_takes_the_token_along(any_user: HubUser, hub: LocalHub, status: int) -> None:
    elsewhere = f"http://localhost:{hub.storage.server_port}/org/public/config.json"
    hub.add("org/leads-away", SMALL_FILES)
    hub.redirects = {
        "/org/leads-away/resolve/": (status, elsewhere),
        "/api/models/org/asks-away/": (status, f"//localhost:{hub.storage.server_port}/api/models/org/public"),
    }
    if status != 302:
        del hub.redirects["/org/leads-away/resolve/"]

    ask_for(any_user, hub, ["org/leads-away", "org/asks-away"], HF_TOKEN=ADA)

    away = [request for request in hub.requests if request.server == "storage"]
    assert away
    assert all(request.authorization is None for request in away)
    assert any(request.authorization is not None for request in hub.requests)


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://x/y", "http://", "http://[::1", "", "/again", "\x01"]
)
def test_a_redirect_to_nowhere(user: HubUser, hub: LocalHub, location: str) -> None:
    hub.redirects = {"/api/models/org/away/": (302, location), "/again": (302, "/again")}

    kind, message = ask_for(user, hub, ["org/away"])["found"]["org/away"]

    assert (kind, message.startswith(f"`{hub.host}` ")) == ("NetworkError", True), message


def test_a_hub_that_sends_too_much(every_user: HubUser, hub: LocalHub) -> None:
    """Packed or not, announced or not: memory stays small and the disk too."""
    hub.add("org/bomb", SMALL_FILES, trouble="bomb")
    with_file(hub, "org/packed-file", "LICENSE", b"short", sent={"LICENSE": BOMB})
    hub.repos["org/packed-file"].headers = {"LICENSE": {"Content-Encoding": "gzip"}}
    with_file(hub, "org/longer", "LICENSE", b"short", sent={"LICENSE": b"not so short"})
    with_file(hub, "org/unannounced", "LICENSE", b"x", unhashed=frozenset({"LICENSE"}))
    hub.repos["org/unannounced"].sent = {"LICENSE": bytes(17 << 20)}
    hub.repos["org/unannounced"].headers = {"LICENSE": {"ETag": f'"{"a" * 40}"'}}
    siblings = [{"rfilename": name, "blobId": "b" * 40} for name in SMALL_FILES if name != "LICENSE"]
    hub.repos["org/unannounced"].lies = {"siblings": [{"rfilename": "LICENSE"}, *siblings]}
    hub.add("org/huge-config", SMALL_FILES)
    hub.repos["org/huge-config"].lies = {"siblings": [*siblings[1:], {"rfilename": "config.json", "size": 10**9}]}

    hub.add("org/many", SMALL_FILES | {f"LICENSE{number}": b"" for number in range(1000)})
    models = ["org/many", "org/bomb", "org/packed-file", "org/longer", "org/unannounced", "org/huge-config"]

    answer = ask_for(every_user, hub, models)

    found = answer["found"]
    assert found["org/many"] == ["CheckpointError", "`org/many` has 1,005 files for an export, and may have 1,000"]
    assert found["org/bomb"] == ["NetworkError", f"`{hub.host}` answers with what the Hub would not say"]
    for name, size in {"packed-file": 5, "longer": 5, "unannounced": 16 << 20}.items():
        assert found[f"org/{name}"] == [
            "CheckpointError",
            f"`LICENSE` from `{hub.host}` is larger than the {size} bytes that were announced",
        ], name
    assert found["org/huge-config"] == [
        "CheckpointError",
        "`config.json` of `org/huge-config` has 1,000.0 MB, and such a file may have 16.8 MB",
    ]
    assert answer["peak"] < 200
    assert sum(path.stat().st_size for path in every_user.home.rglob("*") if path.is_file()) < 2 << 20


def test_a_packed_answer_is_read(user: HubUser, hub: LocalHub) -> None:
    """Some mirrors pack what nobody asked them to."""
    content = SMALL_FILES["README.md"]
    hub.add("org/packed", SMALL_FILES, sent={"README.md": gzip.compress(content)})
    hub.repos["org/packed"].headers = {"README.md": {"Content-Encoding": "gzip"}}

    assert ask_for(user, hub, ["org/packed"])["found"] == {"org/packed": ["", ""]}


def test_nothing_is_asked_while_a_checkpoint_is_converted(monkeypatch: pytest.MonkeyPatch, hub: LocalHub) -> None:
    """Its files may name other models, which libraries would ask for with the token that is in force."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    api = HfApi(endpoint=hub.endpoint)
    assert api.model_info("org/public").id == "org/public"
    before = len(hub.requests)

    with no_network(), pytest.raises(OfflineModeIsEnabled):
        api.model_info("org/public")
    assert len(hub.requests) == before
    assert api.model_info("org/public").id == "org/public"


def test_a_redirect_does_not_take_tls_away() -> None:
    assert redirected("https://x/a", "/b?c=%20 d") == "https://x/b?c=%20%20d"
    assert upgraded("http://x/a", "https://x/b")
    assert not upgraded("http://x/a", "https://y/b")
    assert not upgraded("http://x:8080/a", "https://x/b")
    with pytest.raises(NetworkError) as caught:
        redirected("https://x/a", "http://x/b")
    assert caught.value.message == "`huggingface.co` redirects to `http://x`, without TLS"


def test_a_header_that_never_ends(any_user: HubUser, hub: LocalHub) -> None:
    hub.add("org/drip", SMALL_FILES, trouble="drip")

    found = ask_for(any_user, hub, ["org/drip"], HF_HUB_ETAG_TIMEOUT="1")["found"]

    assert found == {"org/drip": ["NetworkError", f"`{hub.host}` sent almost nothing for 3 seconds"]}


def test_a_file_that_comes_byte_by_byte(user: HubUser, hub: LocalHub) -> None:
    hub.add("org/drip-file", SMALL_FILES, trouble="drip-file")

    found = ask_for(user, hub, ["org/drip-file"], HF_HUB_DOWNLOAD_TIMEOUT="1")["found"]

    assert found == {"org/drip-file": ["NetworkError", f"`{hub.host}` sent almost nothing for 3 seconds"]}


@pytest.mark.parametrize("content", [b"[" * 100_000, b"3", b"null", b"[]", b"{}", b'{"id": "org/x"', b"\xff\xfe\x00"])
def test_a_description_of_another_form(user: HubUser, hub: LocalHub, content: bytes) -> None:
    hub.answers = {"/api/models/org/odd/revision/main": content, "/api/whoami-v2": content}

    strange = ["NetworkError", f"`{hub.host}` answers with what the Hub would not say"]
    assert ask_for(user, hub, ["org/odd"])["found"] == {"org/odd": strange}


def test_forms() -> None:
    assert hash_in(f'W/"{"a" * 64}"') == "a" * 64
    for tag in (None, "", '"A"', f'"{"a" * 41}"', f'"{"a" * 40}/"', f"{'a' * 39}\n", '"../' + "a" * 40 + '"'):
        assert hash_in(tag) is None
    assert not is_hash("a" * 40 + "\n")
    for name in ("LICENSE", "1_Pooling/config.json", "LICENSE (1).txt", "Lizenz-für-alle.txt"):
        assert is_file_name(name)
    for name in (
        "",
        "/x",
        "a//b",
        "..",
        "a/../b",
        ".",
        "a\\b",
        "a\n",
        "\x1b[31m",
        "x" * 300,
        3,
        None,
        "\ud800",
        "a\u202eb",
    ):
        assert not is_file_name(name)
    for repo in ("gpt2", "org/name", "org/name-1.5_b"):
        assert is_repo_id(repo)
    for repo in ("", "a/b/c", "../b", "a/..", "a/b--c", "-a/b", "a/b.", "a b/c", "a/b\n", "é/b", None):
        assert not is_repo_id(repo)
    assert printable("a\x1b[31mb\n") == "a\\x1b[31mb\\n"
    assert len(printable("x" * 10_000, 200)) < 300


def test_names_that_no_file_has_are_left_out() -> None:
    siblings = [
        {"rfilename": name, "blobId": "a" * 40, "size": 1} for name in ("config.json", "../x", "LICENSE\x1b[2J")
    ]

    found = description_in({"id": "org/x", "sha": "b" * 40, "siblings": siblings})

    assert [file.name for file in found.files] == ["config.json"]


def test_what_a_hub_says_of_a_model_is_shown_without_escape_sequences(user: HubUser, hub: LocalHub) -> None:
    hub.add("org/colours", SMALL_FILES, license="\x1b[31mmit\x1b]0;title\x07")

    finished = user.run("access", "org/colours")

    assert finished.code == 0
    assert b"license  \\x1b[31mmit\\x1b]0;title\\x07, public" in finished.out
    assert b"\x1b" not in finished.out


def test_the_files_of_the_local_hub_have_gits_hashes() -> None:
    assert File(b"", large=False).blob == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from ortkit.runtime.errors import InputError, OutputError
from ortkit.toolkit.io.streams import open_input, open_output, refuse_input


def write(output: object, content: bytes) -> None:
    with open_output(str(output)) as file:
        file.write(content)


def test_a_file_appears_when_all_is_written(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.write_bytes(b"old")
    with open_output(str(output)) as file:
        file.write(b"new")
        assert output.read_bytes() == b"old"

    assert output.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [output]


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("folder/file")

    write(tmp_path / "link", b"new")

    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "file").read_bytes() == b"new"
    assert list((tmp_path / "folder").iterdir()) == [tmp_path / "folder" / "file"]


def test_a_link_under_the_name_of_the_unfinished_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"another's")
    (tmp_path / f".out.{os.getpid()}.partial").symlink_to("other")

    write(tmp_path / "out", b"new")

    assert (tmp_path / "out").read_bytes() == b"new"
    assert not (tmp_path / "out").is_symlink()
    assert (tmp_path / "other").read_bytes() == b"another's"


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()

    write(pipe, b"through")

    reader.join(timeout=60)
    assert read == [b"through"]
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_device_is_written_to_and_stays(tmp_path: Path) -> None:
    # Through links of our own, since root would replace the device itself.
    (tmp_path / "null").symlink_to(os.devnull)
    (tmp_path / "full").symlink_to("/dev/full")
    before = Path(os.devnull).stat()

    write(tmp_path / "null", b"nowhere")

    assert os.path.samestat(Path(os.devnull).stat(), before)
    with pytest.raises(OutputError, match="/full` cannot be written: No space left on device"):
        write(tmp_path / "full", b"nowhere")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_symlink()) == ["full", "null"]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that opens and cannot be read is Linux's")
def test_an_input_that_cannot_be_read_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    def copy(source: str | None) -> None:
        with open_input(source) as stream, open_output(str(tmp_path / "out")) as file:
            file.writelines(stream)

    with pytest.raises(InputError) as caught:
        copy("/proc/self/mem")

    assert caught.value.message == "`/proc/self/mem` cannot be read: Input/output error"
    with Path("/proc/self/mem").open("rb") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", SimpleNamespace(buffer=file))
        with pytest.raises(InputError, match="stdin cannot be read: Input/output error"):
            copy(None)
    assert not list(tmp_path.iterdir())


def test_a_pipe_is_read_as_its_lines_come() -> None:
    reading, writing = os.pipe()
    with open_input(f"/dev/fd/{reading}") as stream:
        for line in (b"one\n", b"two\n"):
            os.write(writing, line)
            assert next(iter(stream)) == line
        os.close(writing)
        assert stream.read() == b""
    os.close(reading)


def test_an_output_that_is_the_input_is_refused(tmp_path: Path) -> None:
    path, link, other = tmp_path / "file", tmp_path / "link", tmp_path / "other"
    path.write_bytes(b"text")
    other.write_bytes(b"text")
    link.hardlink_to(path)

    for source, output in [(path, path), (link, path), (path, link)]:
        with open_input(str(source)) as stream, pytest.raises(InputError) as caught:
            refuse_input(stream, str(output))
        assert caught.value.message == f"`{output}` is also the input, and would be replaced"
        assert caught.value.hint == "choose another file with `--output`"
    with open_input(str(path)) as stream:
        refuse_input(stream, str(other))
        refuse_input(stream, str(tmp_path / "new"))
        refuse_input(stream, None)
    with open_input(os.devnull) as stream:
        # Devices and pipes are not replaced.
        refuse_input(stream, os.devnull)


def test_partial_output_is_kept_after_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    output.write_bytes(b"old")

    def fail(content: bytes, *, keeps: bool) -> None:
        with pytest.raises(KeyboardInterrupt), open_output(str(output), keeps=keeps) as file:
            file.write(content)
            raise KeyboardInterrupt

    fail(b"new", keeps=False)
    fail(b"", keeps=True)
    assert capsys.readouterr().err == ""
    assert list(tmp_path.iterdir()) == [output]
    fail(b"new", keeps=True)
    assert capsys.readouterr().err == f"note: the partial output is in `{output}.incomplete`\n"
    assert output.read_bytes() == b"old"
    assert (tmp_path / "out.incomplete").read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 2

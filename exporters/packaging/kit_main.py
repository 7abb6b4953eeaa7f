"""`__main__` of the installer's zip. Runs on Python 3.6 too, to say what is wrong with a Python that is too old."""

import sys

LOWEST = (3, 11)


def fail(message: str, hint: str) -> int:
    sys.stderr.write(f"error: {message}\n\nhint: {hint}\n")
    return 1


def main() -> int:
    if sys.version_info < LOWEST:
        return fail(
            f"`{sys.executable}` is Python {sys.version_info[0]}.{sys.version_info[1]}, and ortkit needs 3.11 or later",
            "install a newer Python beside it, and name it: `ORTKIT_PYTHON=/path/to/python3.11 sh KIT ...`",
        )
    try:
        from ortkit.runtime.installer.cli import main as install  # noqa: PLC0415 - not before the version is checked
    except ImportError as error:
        if (error.name or "ortkit").startswith("ortkit"):
            raise
        return fail(
            f"`{sys.executable}` lacks the module `{error.name}` of Python's standard library",
            "install the whole of Python: on Debian `python3`, not only `python3-minimal`",
        )
    return install()


if __name__ == "__main__":
    sys.exit(main())

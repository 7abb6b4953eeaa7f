import inspect
import re

import ortkit
from ortkit.runtime import errors

DRAWN = re.compile(r"([A-Z]\w+Error)\s+(\d+)")


def classes() -> dict[str, type[errors.OrtkitError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.OrtkitError)
    }


def test_the_docstring_lists_every_class_with_its_exit_code() -> None:
    drawn = {name: int(code) for name, code in DRAWN.findall(errors.__doc__ or "")}

    assert drawn == {name: error.exit_code for name, error in classes().items()}


def test_every_error_is_public() -> None:
    assert classes().keys() <= set(ortkit.__all__)


def test_the_text_of_an_error_is_its_message_and_hint() -> None:
    assert str(errors.BundleError("it broke", hint="mend it")) == "it broke\n\nhint: mend it"
    assert str(errors.BundleError("it broke")) == "it broke"


def test_errors_are_also_the_builtin_exceptions_that_callers_expect() -> None:
    assert issubclass(errors.NotFoundError, FileNotFoundError)
    assert issubclass(errors.InputError, ValueError)
    assert issubclass(errors.OutputError, OSError)
    assert issubclass(errors.MissingPartError, ImportError)
    assert issubclass(errors.NetworkError, ConnectionError)
    assert issubclass(errors.OutOfMemoryError, MemoryError)

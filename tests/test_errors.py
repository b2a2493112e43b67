import pickle

import pytest

from batchinfer import errors
from batchinfer.errors import BatchinferError

CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, BatchinferError)]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("BatchinferError", 1),
        ("UserError", 2),
        ("SpecError", 2),
        ("InputError", 2),
        ("InputTaken", 2),
        ("OutputError", 2),
        ("AnotherSpec", 2),
        ("OutputBusy", 2),
        ("ModelError", 2),
        ("ResourceError", 2),
        ("ClusterError", 2),
        ("WrongRelease", 2),
        ("TooManyFailedRows", 3),
        ("BudgetPassed", 3),
        ("Stopped", 4),
        ("EngineError", 1),
        ("ClusterNotStarted", 1),
        ("WorkersLost", 1),
        ("StorageError", 1),
        ("StoreRefused", 1),
    ],
)
def test_each_error_has_the_exit_code_of_the_contract(name, code):
    assert getattr(errors, name).exit_code == code


def test_no_class_is_without_a_line_in_the_exit_code_test():
    tested = test_each_error_has_the_exit_code_of_the_contract.pytestmark[0].args[1]
    assert {name for name, _ in tested} == {c.__name__ for c in CLASSES}


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_survives_the_way_from_a_worker(kind):
    back = pickle.loads(pickle.dumps(kind("what happened", "what to do")))
    assert type(back) is kind
    assert (str(back), back.message, back.remedy) == ("what happened", "what happened", "what to do")
    assert back.exit_code == kind.exit_code


@pytest.mark.parametrize("kind", CLASSES)
def test_the_docstring_draws_every_class_with_its_exit_code(kind):
    lines = [line for line in (errors.__doc__ or "").splitlines() if kind.__name__ in line.split()]
    lines = lines or [line for line in (errors.__doc__ or "").splitlines() if f"── {kind.__name__}" in line]
    assert len(lines) == 1
    drawn = f"exit {kind.exit_code}" in lines[0]
    # A class below one of the main branches has its code from there.
    assert drawn == (kind is BatchinferError or BatchinferError in kind.__bases__)


def test_the_message_alone_is_what_is_printed():
    assert str(BatchinferError("a", "b")) == "a"


def test_every_row_error_code_in_the_package_is_explained():
    from pathlib import Path
    from re import findall

    sources = "".join(path.read_text() for path in Path(errors.__file__).parent.rglob("*.py"))
    used = set(findall(r'RowError\(\s*"(\w+)"', sources))
    assert used
    assert used <= errors.ROW_ERROR_CODES.keys()

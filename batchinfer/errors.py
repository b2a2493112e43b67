"""Every error that batchinfer raises on purpose, and the exit code of each.

    BatchinferError            exit 1   anything that is not the user's mistake
    ├── UserError              exit 2   the spec, the input or the call is wrong: nothing was started
    │   ├── SpecError                   the job spec
    │   ├── InputError                  the input files or their columns
    │   │   └── InputTaken              another run of the job took some files first
    │   ├── OutputError                 the output location
    │   │   ├── AnotherSpec             it holds results of another spec
    │   │   └── OutputBusy              another process is writing there
    │   ├── ModelError                  the model
    │   ├── ResourceError               the GPUs of the cluster
    │   ├── ClusterError                the cluster cannot be reached, or is not one to submit to
    │   └── WrongRelease                a package that batchinfer builds on is of another release
    ├── TooManyFailedRows      exit 3   the run ended, with more failed rows than allowed
    ├── BudgetPassed           exit 3   runs cost more than a budget of `batchinfer costs`
    ├── Stopped                exit 4   stopped by a signal or a budget: resumable
    ├── EngineError            exit 1   the engine did not start, or died more often than allowed
    ├── ClusterNotStarted      exit 1   the cluster of a run on this machine did not start
    ├── WorkersLost            exit 1   more processes or machines were lost than allowed
    └── StorageError           exit 1   a read or a write failed
        └── StoreRefused                no such bucket, no permission, no credentials; before a run begins, exit 2

`str(error)` is one readable message; `error.remedy` says what to do next. A failed row is never an exception, but a
`RowError`, which is written to the output as data.
"""

from __future__ import annotations

from dataclasses import dataclass


class BatchinferError(Exception):
    """Base of the tree: `message` says what happened, `remedy` what to do about it."""

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        # Both are arguments of Exception, so that the error survives pickling on its way from a Ray worker.
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return self.message


class UserError(BatchinferError):
    """The spec, the input or the call is wrong; nothing was started and nothing was written."""

    exit_code = 2


class SpecError(UserError):
    """The job spec cannot be used."""


class InputError(UserError):
    """The input files cannot be used."""


class InputTaken(InputError):
    """Another run of the same job took some of the files after they were listed."""


class OutputError(UserError):
    """The output location cannot be used."""


class AnotherSpec(OutputError):
    """The output holds results of another spec."""


class OutputBusy(OutputError):
    """Another process is writing to this output now."""


class ModelError(UserError):
    """The model cannot be found or cannot be run."""


class ResourceError(UserError):
    """The cluster lacks the resources that the spec needs."""


class ClusterError(UserError):
    """The cluster cannot be reached, refuses access, or cannot run this job."""


class WrongRelease(UserError):
    """A package that batchinfer builds on is of a release that lacks a needed name."""


class TooManyFailedRows(BatchinferError):
    """The run ended, with a larger share of failed rows than `limits.max_error_rate`."""

    exit_code = 3


class BudgetPassed(BatchinferError):
    """Runs cost more than a budget that `batchinfer costs` was given."""

    exit_code = 3


class Stopped(BatchinferError):
    """The run was stopped by a signal or a budget; the same command resumes it."""

    exit_code = 4


class EngineError(BatchinferError):
    """The engine did not start, or died more often than the run allows."""


class ClusterNotStarted(BatchinferError):
    """Ray did not start on this machine; the same command may succeed when the machine is less busy."""


class WorkersLost(BatchinferError):
    """More processes or machines were lost than the run allows; committed shards stay."""


class StorageError(BatchinferError):
    """A read or a write failed; committed shards stay."""


class StoreRefused(StorageError):
    """The store refuses these credentials, or has no such bucket."""


@dataclass(frozen=True, slots=True)
class RowError:
    """Why one row failed: data, not an exception.

    `code` is one of the words in `ROW_ERROR_CODES`; `message` is for a person.
    """

    code: str
    message: str


ROW_ERROR_CODES = {
    "input_invalid": "the row cannot be read, and input.on_bad_row says to set it aside",
    "prompt_empty": "the prompt is null or has no text",
    "prompt_invalid": "the messages column does not hold a list of {role, content}, or a value is no text",
    "prompt_too_long": "the prompt does not leave room for one output token in the context",
    "template_error": "the template met a missing or unusable value in this row",
    "sampling_invalid": "the row's sampling_column holds a key or a value that sampling does not take",
    "output_invalid": "the output does not fit output.choices, output.json_schema or output.regex",
    "reasoning_unfinished": "the model ended, or sampling.max_tokens cut it, while it was thinking: it has no answer",
    "request_invalid": "the request of a batch file has a wrong or unsupported key, method or url",
    "model_not_found": "the request of a batch file is for a model that input.models does not name",
    "step_failed": "a step of the row failed, or one whose answer this step uses: see <step>_error_code",
    "engine_rejected": "the engine refused the request",
    "engine_killed": "the engine died each time it ran this row alone",
}

REJECTED_CODES = frozenset(
    {
        *("input_invalid", "prompt_empty", "prompt_invalid", "prompt_too_long", "template_error"),
        *("sampling_invalid", "engine_rejected"),
        *("request_invalid", "model_not_found"),
    }
)
"""The codes of rows that the engine never ran: their tokens are no work, and count in no speed and no cost a token."""

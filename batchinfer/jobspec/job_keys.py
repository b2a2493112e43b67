"""A whole job spec: its sections, and the rules that hold between them. Each section has a module of its own.

Every model is frozen and refuses unknown keys. `jobspec/load.py` turns the errors of pydantic into messages for a
person. `schemas/job-spec.schema.json` is generated from these models.
"""

from __future__ import annotations

import difflib
from typing import Literal, Self

from pydantic import Field, model_validator

from batchinfer.jobspec.base import Keys, Text
from batchinfer.jobspec.constraints import require_reachable
from batchinfer.jobspec.engine_keys import EngineSpec
from batchinfer.jobspec.input_keys import InputSpec
from batchinfer.jobspec.model_keys import SCRIPTED, ModelSpec
from batchinfer.jobspec.notify_keys import NotifySpec
from batchinfer.jobspec.output_keys import RESULT_COLUMNS, EmbedSpec, OutputSpec
from batchinfer.jobspec.prompt_keys import PromptSpec
from batchinfer.jobspec.reasoning_keys import ReasoningSpec
from batchinfer.jobspec.run_keys import LimitsSpec, ResourcesSpec, ShardsSpec
from batchinfer.jobspec.sampling_keys import SamplingSpec
from batchinfer.jobspec.schedule_keys import ScheduleSpec
from batchinfer.jobspec.store_keys import StoresSpec
from batchinfer.jobspec.variables import has_variables

ROW_NUMBER = "row_number"
"""The id column of a job without `input.id_column`: the row's position in the input, from 0."""


class EvaluateSpec(Keys):
    """Compare the output with a column of the input; the report has the accuracy. Needs `sampling.n: 1`.

    A label that `output.abstain_below` withholds is compared too.
    """

    expected: str
    """The column with the right answer; the output must equal it as text.

    Rows where it is null are not compared. A failed row counts as wrong."""
    part: str | None = None
    """The key of a JSON answer to compare, as in `total`. null: the whole answer, as text.

    Needed with `output.as: struct` or `columns`."""
    by: str | None = None
    """A column: the report has the accuracy for each of its values. null: one accuracy, over all rows."""


_GIVES = {"embed": "a vector", "classify": "a label of its own", "score": "a number"}


def _require_part(evaluate: EvaluateSpec | None, output: OutputSpec) -> None:
    if evaluate is None:
        return
    keys = (output.json_schema or {}).get("properties", {})
    if evaluate.part is None and output.as_ != "json":
        raise ValueError(f"evaluate.part must name the key to compare beside output.as: {', '.join(keys)}")
    if evaluate.part is not None and evaluate.part not in keys:
        near = difflib.get_close_matches(evaluate.part, keys, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"its keys are {', '.join(keys) or 'none'}"
        raise ValueError(f"evaluate.part {evaluate.part!r:.100} is no key of output.json_schema: {hint}")


class JobSpec(Keys):
    """One job: read `input`, make prompts, run `model`, write `output`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """The job's name, in the accounting, in the reports and in the ids of submitted jobs.

    1 to 100 letters, digits, dots, dashes and underscores; the first is a letter or a digit. A job with `schedule` or
    `input.incremental` finds its earlier runs by this name."""
    task: Literal["generate", "embed", "classify", "score"] = "generate"
    """What to do with each prompt.

    `generate` writes an answer. The others read the prompt without a chat template. `embed` writes a list of float32,
    of length one. `classify` runs a sequence classifier, and writes its label, with the columns of `output.confidence`.
    `score` runs a cross-encoder (a reranker), and writes how well the prompt answers `prompt.query`."""
    model: ModelSpec
    """The model that runs."""
    input: InputSpec
    """The rows: where they are, and which of their columns to use."""
    prompt: PromptSpec
    """How a row becomes a prompt."""
    embed: EmbedSpec = EmbedSpec()
    """How `task: embed` makes vectors."""
    sampling: SamplingSpec = SamplingSpec()
    """How the model chooses tokens, and when an answer ends."""
    reasoning: ReasoningSpec | None = None
    """What becomes of a model's thinking. null: the text is kept as it is, thinking and answer together."""
    output: OutputSpec
    """Where the results go, and which shape an answer must have."""
    engine: EngineSpec = EngineSpec()
    """vLLM's engine arguments."""
    resources: ResourcesSpec = ResourcesSpec()
    """The devices: which, how many, and at what price."""
    shards: ShardsSpec = ShardsSpec()
    """How the input is cut into shards."""
    limits: LimitsSpec = LimitsSpec()
    """When the run stops by itself: cost, time, failed rows, restarts."""
    schedule: ScheduleSpec | None = None
    """When the job runs, for jobs that recur. null: only when it is started."""
    evaluate: EvaluateSpec | None = None
    """Compare the output with a column of the input. null: no comparison."""
    notify: NotifySpec | None = None
    """Whom a command tells when a run ends; null: nobody. May change when a run resumes."""
    storage: StoresSpec = Field(default_factory=dict)
    """How to reach the stores of `s3://` URIs, by the beginnings of the URIs; the longest that fits applies.

    Example: `{s3://data: {region: eu-central-1}, s3://runs: {profile: writer}}`. URIs without an entry are reached as
    the AWS environment says."""
    labels: dict[Text, Text] = Field(default_factory=dict)
    """Any names and values, as in `{team: search}`, for the accounting and the report.

    `batchinfer submit --label KEY=VALUE` adds one. Quote a value that YAML reads as another type."""

    @property
    def id_column(self) -> str:
        """The name of the first column of the results."""
        return self.input.id_column or ROW_NUMBER

    @property
    def generates(self) -> bool:
        """Does the model write texts?"""
        return self.task == "generate"

    @property
    def wants_chat(self) -> bool:
        """Do prompts go through the chat template of a model that has one?"""
        return self.generates if self.prompt.chat is None else self.prompt.chat

    @property
    def tells_confidence(self) -> bool:
        """Do the results have the probability of each label?"""
        return self.output.confidence or self.task == "classify"

    @property
    def _told(self) -> tuple[str, ...]:
        of_label = ("confidence", "probabilities") if self.tells_confidence else ()
        guess = ("guess",) if self.output.abstain_below is not None else ()
        return (*of_label, *guess, *(("scale",) if self.output.embedding_type == "int8" else ()))

    @property
    def companions(self) -> tuple[str, ...]:
        """The columns beside the output that have its name and an ending, as `output_confidence`."""
        return tuple(f"{self.output.column}_{name}" for name in self._told)

    @property
    def repeats(self) -> bool:
        """Does the job run repeatedly, each run in its own folder?"""
        return self.schedule is not None or self.input.incremental is not None

    @model_validator(mode="after")
    def _columns_distinct(self) -> Self:
        taken = [self.id_column, *(c for c in self.input.columns if c != self.input.id_column)]
        own = (
            *RESULT_COLUMNS,
            *(("logprobs",) if self.sampling.logprobs is not None else ()),
            *(("truncated_tokens",) if self.prompt.too_long == "truncate" else ()),
            *(("reasoning_tokens",) if self.reasoning is not None else ()),
            *self.companions,
        )
        thinking = self.reasoning.column if self.reasoning is not None else None
        if thinking is not None and thinking in (*taken, *own, *self.output.columns):
            raise ValueError(f"reasoning.column {thinking!r} is the name of another column of the results")
        answers = self.output.columns
        typed = self.output.as_ == "columns"
        for name in (*answers, *own):
            if name in taken:
                remedy = "set output.column to another name" if name in answers else "do not pass it through"
                if typed and name in answers:
                    remedy = "rename the key of the schema, or store the answer as: struct"
                raise ValueError(f"input column {name!r} would collide with a result column: {remedy}")
        for name in answers:
            if name in own:
                key = f"the key {name!r} of output.json_schema" if typed else f"output.column {name!r}"
                raise ValueError(f"{key} is the name of a result column: choose another")
        if self.input.id_column is None and ROW_NUMBER in self.input.columns:
            raise ValueError(f"input.columns holds {ROW_NUMBER!r}, the name of the generated id: set input.id_column")
        return self

    @model_validator(mode="after")
    def _has_the_label_of_its_budget(self) -> Self:
        monthly = self.limits.monthly
        if monthly is not None and monthly.label not in self.labels:
            raise ValueError(f"limits.monthly is for the label {monthly.label!r}, which labels does not have")
        return self

    @model_validator(mode="after")
    def _thinks_within_its_tokens(self) -> Self:
        most = self.reasoning.max_tokens if self.reasoning is not None else None
        if most is not None and most >= self.sampling.max_tokens:
            raise ValueError(
                f"reasoning.max_tokens ({most}) leaves no answer of sampling.max_tokens ({self.sampling.max_tokens}), "
                "which counts both: raise the second"
            )
        return self

    @model_validator(mode="after")
    def _columns_hold_one_answer(self) -> Self:
        if self.output.as_ == "columns" and self.sampling.n > 1:
            raise ValueError("output.as columns needs sampling.n = 1: several answers are a list, as: struct")
        return self

    @model_validator(mode="after")
    def _shape_is_reachable(self) -> Self:
        require_reachable(self.output, self.sampling)
        return self

    @model_validator(mode="after")
    def _speculation_samples_plainly(self) -> Self:
        """Refuse sampling that vLLM refuses for each request under speculative decoding."""
        sampling = self.sampling
        given = {"min_tokens": sampling.min_tokens > 0, "min_p": sampling.min_p > 0, "logit_bias": sampling.logit_bias}
        for name, value in given.items():
            if self.model.speculative is not None and value:
                raise ValueError(f"sampling.{name} does not go with model.speculative: leave one of the two out")
        return self

    @model_validator(mode="after")
    def _has_the_tasks_keys(self) -> Self:
        """Refuse keys that apply to another task."""
        prompted = {
            "sampling": self.sampling != SamplingSpec(),
            "reasoning": self.reasoning,
            "output.choices": self.output.choices,
            "output.json_schema": self.output.json_schema,
            "output.regex": self.output.regex,
            "model.speculative": self.model.speculative,
            "model.source: scripted": self.model.source == SCRIPTED,
            "prompt.prefill": self.prompt.prefill,
            "prompt.examples": self.prompt.examples,
        }
        wrong = [key for key, value in prompted.items() if value]
        if not self.generates and wrong:
            raise ValueError(f"task {self.task} gives {_GIVES[self.task]}, not a text: leave {wrong[0]} out")
        of_one = {
            "evaluate": (self.evaluate, ("generate", "classify")),
            "embed": (self.embed != EmbedSpec(), ("embed",)),
            "output.embedding_type": (self.output.embedding_type, ("embed",)),
            "prompt.query": (self.prompt.query, ("score",)),
        }
        for key, (value, tasks) in of_one.items():
            if value and self.task not in tasks:
                raise ValueError(f"{key} is for task {' and '.join(tasks)}: leave it out, or set task: {tasks[-1]}")
        if self.task == "score" and (self.prompt.query is None or self.prompt.messages_column is not None):
            raise ValueError("task score needs prompt.query, and the document in prompt.column or prompt.template")
        needed = self.prompt.needs_chat
        if not self.generates and needed not in (None, "messages_column") and self.prompt.chat is None:
            raise ValueError(f"task {self.task} reads plain text: leave prompt.{needed} out, or set prompt.chat: true")
        if self.embed.instruction is not None and (self.prompt.messages_column or self.prompt.too_long == "truncate"):
            raise ValueError("embed.instruction goes before a whole text: leave messages_column and truncate out")
        if self.task == "score" and self.prompt.too_long == "truncate":
            raise ValueError("prompt.too_long: truncate cuts one text, and task score reads a pair: leave it out")
        return self

    @model_validator(mode="after")
    def _tells_confidence_of_one_label(self) -> Self:
        if self.output.abstain_below is not None and not self.tells_confidence:
            raise ValueError("output.abstain_below needs output.confidence: true, which says how sure the model is")
        given = {
            "sampling.n above 1": self.sampling.n > 1,
            "sampling.logprobs": self.sampling.logprobs is not None,
            "model.speculative": self.model.speculative is not None,
            "reasoning": self.reasoning is not None,
        }
        for name, value in given.items():
            if value and self.output.confidence:
                raise ValueError(f"output.confidence does not go with {name}: leave one of the two out")
        return self

    @model_validator(mode="after")
    def _evaluates_one_output(self) -> Self:
        if self.evaluate is not None and self.sampling.n > 1:
            raise ValueError("evaluate compares one output with one column: it needs sampling.n = 1")
        _require_part(self.evaluate, self.output)
        for key, uri in (("input.uri", self.input.uri), ("output.uri", self.output.uri)):
            if self.schedule is None and has_variables(uri) and "previous" in uri:
                raise ValueError(f"{key} uses run.previous, the tick before this one: it needs schedule.cron")
        return self

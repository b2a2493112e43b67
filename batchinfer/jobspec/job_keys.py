"""A whole job spec: its sections, and the rules that hold between them. Each section has a module of its own.

Every model is frozen and refuses unknown keys. `jobspec/load.py` turns the errors of pydantic into messages for a
person. `schemas/job-spec.schema.json` is generated from these models.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from batchinfer.jobspec.base import Keys, Text
from batchinfer.jobspec.cache_keys import CacheSpec
from batchinfer.jobspec.chunk_keys import ChunkSpec, CombinePrompt, CombineSpec
from batchinfer.jobspec.constraints import require_reachable
from batchinfer.jobspec.engine_keys import EngineSpec
from batchinfer.jobspec.evaluate_keys import EvaluateSpec, require_part
from batchinfer.jobspec.input_keys import InputSpec
from batchinfer.jobspec.lineage_keys import LineageSpec
from batchinfer.jobspec.model_keys import SCRIPTED, ModelSpec
from batchinfer.jobspec.notify_keys import NotifySpec
from batchinfer.jobspec.output_keys import RESULT_COLUMNS, AnswerSpec, EmbedSpec, OutputSpec
from batchinfer.jobspec.prompt_keys import PromptSpec
from batchinfer.jobspec.reasoning_keys import ReasoningSpec
from batchinfer.jobspec.reduce_keys import ReduceSpec
from batchinfer.jobspec.request_keys import request_prompts, require_whole_requests, sampled_as_openai
from batchinfer.jobspec.run_keys import LimitsSpec, ResourcesSpec, ShardsSpec
from batchinfer.jobspec.sampling_keys import NO_LIMIT, SamplingSpec
from batchinfer.jobspec.schedule_keys import ScheduleSpec
from batchinfer.jobspec.step_keys import StepSpec
from batchinfer.jobspec.store_keys import StoresSpec
from batchinfer.jobspec.variables import has_variables

ROW_NUMBER = "row_number"
"""The id column of a job without `input.id_column`: the row's position in the input, from 0."""


MOST_STEPS = 64
"""Each step has some eight columns in every result file: far more make files that no tool shows well."""

NO_PROMPT = PromptSpec()
"""The `prompt` of a job with `steps`, where each step has its own."""


_GIVES = {"embed": "a vector", "classify": "a label of its own", "score": "a number"}


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
    reduce: ReduceSpec | None = None
    """One answer for all rows that have the same key, as in `{key: customer}`. null: one answer for each row."""
    prompt: PromptSpec = NO_PROMPT
    """How a row becomes a prompt. A job has either this or `steps`."""
    steps: tuple[StepSpec, ...] | None = Field(default=None, min_length=1, max_length=MOST_STEPS)
    """Several prompts for each row, with one load of the model. Later ones may use the answers to earlier ones.

    Each step has the column of its name, and the columns of a job with one prompt with that name in front, as in
    `<name>_error_code`. The columns without a name in front tell of the whole row: the sum of its tokens, and
    `step_failed` if a step failed and another has an answer. `retry` runs the failed steps alone."""
    chunk: ChunkSpec | None = None
    """Cut a column's text into chunks, for texts longer than the context. Needs `combine`. null: rows are run whole."""
    combine: CombineSpec | None = None
    """How one answer is made of those to a row's chunks.

    A prompt, as in `{template: ...}`, or a word. `first`: the first answer that is not empty. `majority`: the most
    frequent, the earlier of two. `max_confidence`: the label of the chunk that is most sure; needs `output.confidence`.
    `list`: all answers, as a list."""
    dedupe: bool | None = None
    """Whether requests that are the same to the last token run once in a replica.

    The others get the answer of the first, with `reused` true and no tokens. null: yes if each prompt's sampling has
    temperature 0 or a seed, so that the answers would be the same. The results have the column `reused` then."""
    cache: CacheSpec | None = None
    """Where answers are kept for later runs, and looked up before a request runs. null: nowhere."""
    embed: EmbedSpec = EmbedSpec()
    """How `task: embed` makes vectors."""
    sampling: SamplingSpec = SamplingSpec()
    """How the model chooses tokens, and when an answer ends."""
    sampling_column: Text | None = Field(default=None, min_length=1)
    """A column with keys of `sampling` that differ for a row, as in `{"temperature": 0.2, "max_tokens": 50}`.

    It holds structs, maps or JSON text. A null, of the row or of a key, leaves the job's value. No row may override
    `n`, `logprobs` and `skip_special_tokens`. A row with a key or a value that `sampling` would refuse fails with
    `sampling_invalid`."""
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
    lineage: LineageSpec | None = None
    """Where events of lineage are sent: what a run reads and writes, and what it cost. null: nowhere. May change when a
    run resumes."""
    storage: StoresSpec = Field(default_factory=dict)
    """How to reach the stores of `s3://` URIs, by the beginnings of the URIs; the longest that fits applies.

    Example: `{s3://data: {region: eu-central-1}, s3://runs: {profile: writer}}`. URIs without an entry are reached as
    the AWS environment says."""
    labels: dict[Text, Text] = Field(default_factory=dict)
    """Any names and values, as in `{team: search}`, for the accounting and the report.

    `batchinfer submit --label KEY=VALUE` adds one. Quote a value that YAML reads as another type."""

    @property
    def step_jobs(self) -> tuple[JobSpec, ...]:
        """Each step as a job of one prompt, whose `output.column` is the step's name. A job without steps is its own
        only step, but for the prompt of `combine`. The steps of a job with requests are their kinds: a conversation,
        and, last, a plain text.
        """
        if self.takes_requests:
            return tuple(
                self.model_copy(update={"prompt": prompt}) for prompt in request_prompts(self.prompt, self.generates)
            )
        if self.steps is None:
            return (self,) if not isinstance(self.combine, CombinePrompt) else (self, self._combining(self.combine))
        return tuple(self.model_copy(update=self._of_step(step)) for step in self.steps)

    def _combining(self, combine: CombinePrompt) -> JobSpec:
        prompt = self.prompt.model_copy(
            update={
                "template": combine.template,
                "column": None,
                "system": self.prompt.system if combine.system is None else combine.system,
                "examples": None,
            }
        )
        return self.model_copy(update={"prompt": prompt, "sampling": combine.sampling or self.sampling})

    def _of_step(self, step: StepSpec) -> dict[str, Any]:
        answer = {name: getattr(step.output, name) for name in AnswerSpec.model_fields}
        return {
            "steps": None,
            "dedupe": self.reuses_answers,
            "prompt": step.prompt,
            "sampling": step.sampling or self.sampling,
            "sampling_column": step.sampling_column or self.sampling_column,
            "output": self.output.model_copy(update={**answer, "column": step.name}),
        }

    @property
    def lists_answers(self) -> bool:
        """Is the output of a row a list of answers?"""
        return self.sampling.n > 1 or self.combine == "list"

    @property
    def request_names(self) -> tuple[str, ...]:
        """What the requests of a row are called in the accounting: the steps, or `chunk` and `combine`. Empty for a job
        with one request a row.
        """
        if self.chunk is not None:
            return ("chunk", "combine") if isinstance(self.combine, CombinePrompt) else ("chunk",)
        return tuple(step.name for step in self.steps or ())

    @property
    def reuses_answers(self) -> bool:
        """Do requests that are the same run once, and do the results tell so?"""
        return self._repeats_itself if self.dedupe is None else self.dedupe

    @property
    def _repeats_itself(self) -> bool:
        """Do equal requests have equal answers, in all steps?"""
        samplings = [self.sampling] if self.steps is None else [step.sampling or self.sampling for step in self.steps]
        if isinstance(self.combine, CombinePrompt) and self.combine.sampling is not None:
            samplings.append(self.combine.sampling)
        return all(sampling.repeats_itself for sampling in samplings)

    @property
    def answer_tokens(self) -> int:
        """The most tokens that the answers of one row may have, over all steps."""
        if self.takes_requests:
            # Requests have limits of their own, which are not known where shards are cut.
            most = self.sampling.max_tokens
            return SamplingSpec().max_tokens if most == NO_LIMIT else most
        return sum(job.sampling.max_tokens for job in self.step_jobs)

    @property
    def id_column(self) -> str:
        """The name of the first column of the results."""
        return self.rows_input.id_column or ROW_NUMBER

    @property
    def rows_input(self) -> InputSpec:
        """The input as the rows are read that run. With `reduce` these are the groups, in files of the run."""
        if self.reduce is None:
            return self.input
        return InputSpec(uri=self.input.uri, id_column=self.reduce.key, columns=self.reduce.made)

    @property
    def takes_requests(self) -> bool:
        """Is each row a whole request, as in a batch file of OpenAI's?"""
        return self.input.format == "openai_batch"

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
    def _steps_or_a_prompt(self) -> Self:
        if self.steps is None:
            if self.takes_requests:
                return self
            if not self.prompt.has_source:
                given = "needs exactly one of template, column, messages_column; given: none"
                missing = "this key is missing (or steps, for several prompts a row)"
                raise ValueError(f"prompt: {given if 'prompt' in self.model_fields_set else missing}")
            return self
        if self.prompt != NO_PROMPT:
            raise ValueError("prompt does not go with steps: each step has its own")
        if not self.generates:
            raise ValueError(f"task {self.task} gives {_GIVES[self.task]} for one prompt: leave steps out")
        if self.evaluate is not None:
            raise ValueError("evaluate compares the answer to one prompt: it does not go with steps")
        shape = [
            key for key in AnswerSpec.model_fields if getattr(self.output, key) != AnswerSpec.model_fields[key].default
        ]
        if shape or self.output.column != "output":
            key = (shape or ["column"])[0].rstrip("_")
            raise ValueError(f"output.{key} does not go with steps: put it into the output of a step")
        if len({step.output.compact_json for step in self.steps if step.output.json_schema is not None}) > 1:
            raise ValueError("output.compact_json is for the whole engine: set the same in all steps")
        names = [step.name for step in self.steps]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"steps: two have the name {twice!r}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _requests_sample_as_openai(cls, values: Any) -> Any:
        return sampled_as_openai(values)

    @model_validator(mode="after")
    def _requests_are_whole(self) -> Self:
        if self.takes_requests:
            require_whole_requests(self.task, vars(self))
        elif self.output.format == "openai_batch":
            raise ValueError("output.format openai_batch is for input.format: openai_batch: leave it out")
        return self

    @model_validator(mode="after")
    def _chunks_are_combined(self) -> Self:
        if self.chunk is None:
            if self.combine is not None:
                raise ValueError("combine makes one answer of those to chunks: set chunk.column")
            return self
        if self.combine is None:
            raise ValueError(
                "chunk needs combine, which says how one answer is made: {template: ...}, first, list, ..."
            )
        column = self.chunk.column
        given = {
            "steps": self.steps is not None,
            f"task {self.task}": not self.generates,
            "prompt.messages_column": self.prompt.messages_column is not None,
            "prompt.too_long: truncate": self.prompt.too_long == "truncate",
            "sampling.n above 1": self.sampling.n > 1,
            "sampling.logprobs": self.sampling.logprobs is not None,
            "sampling_column": self.sampling_column is not None,
        }
        for key, value in given.items():
            if value:
                raise ValueError(f"chunk does not go with {key}: leave one of the two out")
        named = [name for name, _ in self.prompt.reads]
        if column not in named:
            raise ValueError(f"chunk.column names {column!r}, and the prompt is made of {', '.join(named)}")
        if self.combine == "max_confidence" and not self.output.confidence:
            raise ValueError("combine: max_confidence needs output.confidence: true")
        of_one = self.output.as_ == "columns" or self.output.confidence or self.evaluate is not None
        if self.combine == "list" and of_one:
            raise ValueError("combine: list makes a list of answers: leave as: columns, confidence, evaluate out")
        if isinstance(self.combine, CombinePrompt):
            sampling = self.combine.sampling or self.sampling
            if sampling.n > 1:
                raise ValueError("combine.sampling.n must be 1: one answer is made of several")
            require_reachable(self.output, sampling)
            read = [name for name, _ in self._combining(self.combine).prompt.reads]
            if column in read:
                raise ValueError(f"combine.template names {column!r}, which is cut into chunks: use answers")
        return self

    @model_validator(mode="after")
    def _each_step_is_a_job(self) -> Self:
        later = [step.name for step in self.steps or ()]
        answers = set(later)
        for step in self.steps or ():
            for name, key in step.reads:
                if name in later:
                    which = "its own answer" if name == step.name else f"the answer of {name}, which comes later"
                    raise ValueError(f"step {step.name}: {key} uses {which}: a step knows the answers before it")
            column = step.sampling_column or self.sampling_column
            if column in answers:
                raise ValueError(f"step {step.name}: sampling_column names {column!r}, a step: it is a column of rows")
            later.remove(step.name)
            try:
                JobSpec.model_validate({**{n: getattr(self, n) for n in JobSpec.model_fields}, **self._of_step(step)})
            except ValidationError as error:
                raise ValueError(
                    f"step {step.name}: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
                ) from None
        return self

    @model_validator(mode="after")
    def _keeps_what_repeats_itself(self) -> Self:
        if self.cache is not None and self.dedupe is False:
            raise ValueError("cache gives equal requests one answer: leave dedupe: false out")
        if self.cache is not None and not self._repeats_itself:
            raise ValueError(
                "cache keeps answers that would be the same again: set temperature 0 or a seed in each prompt's "
                "sampling, or leave it out"
            )
        return self

    def row_columns(self) -> tuple[str, ...]:
        """The columns of the results that tell of a row, besides its id, what is passed through, and the answer."""
        return (
            *RESULT_COLUMNS,
            *(("logprobs",) if self.sampling.logprobs is not None else ()),
            *(("truncated_tokens",) if self.prompt.too_long == "truncate" else ()),
            *(("reasoning_tokens",) if self.reasoning is not None else ()),
            *(("chunks", "levels") if self.chunk is not None else ()),
            *(("reused",) if self.reuses_answers else ()),
            *(("response",) if self.takes_requests else ()),
        )

    @model_validator(mode="after")
    def _columns_distinct(self) -> Self:
        if self.steps is not None:
            self._require_distinct_steps(self.steps)
            return self
        taken = [self.id_column, *(c for c in self.rows_input.columns if c != self.id_column)]
        own = (*self.row_columns(), *self.companions)
        thinking = self.reasoning.column if self.reasoning is not None else None
        if thinking is not None and thinking in (*taken, *own, *self.output.columns):
            raise ValueError(f"reasoning.column {thinking!r} is the name of another column of the results")
        answers = self.output.columns
        typed = self.output.as_ == "columns"
        for name in (*answers, *own):
            if name in taken:
                remedy = "set output.column to another name" if name in answers else "do not pass it through"
                if name == "reused" and name in own:
                    remedy = "do not pass it through, or set dedupe: false"
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

    def _require_distinct_steps(self, steps: tuple[StepSpec, ...]) -> None:
        taken = {self.id_column, *self.rows_input.columns, *RESULT_COLUMNS, "reasoning_tokens"}
        taken |= {"reused"} if self.reuses_answers else set()
        if self.input.id_column is None and ROW_NUMBER in self.input.columns:
            raise ValueError(f"input.columns holds {ROW_NUMBER!r}, the name of the generated id: set input.id_column")
        for step, job in zip(steps, self.step_jobs, strict=True):
            for name in job.step_columns:
                if name in taken:
                    raise ValueError(f"step {step.name} makes the column {name!r}, which is there already: rename it")
                taken.add(name)

    @property
    def step_columns(self) -> tuple[str, ...]:
        """The columns of the results that a step makes; for the jobs of `step_jobs`."""
        name = self.output.column
        thinking = (f"{name}_{self.reasoning.column}",) if self.reasoning is not None and self.reasoning.column else ()
        return (name, *self.companions, *(f"{name}_{column}" for column in self.row_columns()), *thinking)

    @model_validator(mode="after")
    def _has_the_label_of_its_budget(self) -> Self:
        monthly = self.limits.monthly
        if monthly is not None and monthly.label not in self.labels:
            raise ValueError(f"limits.monthly is for the label {monthly.label!r}, which labels does not have")
        return self

    @model_validator(mode="after")
    def _reduces_what_rows_have(self) -> Self:
        if self.reduce is None:
            return self
        talks = any(job.prompt.messages_column for job in self.step_jobs)
        samples = any(job.sampling_column for job in self.step_jobs)
        of_row = (
            (self.input.columns, "input.columns copies values of a row, and a group has several: leave it out"),
            (self.input.group_by, "it brings rows together by its own key: leave input.group_by out"),
            (self.evaluate, "evaluate compares with the value of a row, and a group has several: leave it out"),
            (samples, "sampling_column is for a row, and a group has several: leave it out"),
            (talks, "prompt.messages_column is the conversation of a row, and a group has several: use a template"),
            (self.input.sets_aside, "input.on_bad_row: set_aside would leave rows out of their groups: leave it out"),
        )
        wrong = next((why for given, why in of_row if given), None)
        if wrong is not None:
            raise ValueError(f"reduce: {wrong}")
        return self

    @model_validator(mode="after")
    def _sampling_fits_the_job(self) -> Self:
        self.require_sampling(self.sampling)
        return self

    def require_sampling(self, sampling: SamplingSpec) -> None:
        """Raise ValueError for sampling, of the job or of a row, that contradicts other keys of the job."""
        most = self.reasoning.max_tokens if self.reasoning is not None else None
        if most is not None and most >= sampling.max_tokens:
            raise ValueError(
                f"reasoning.max_tokens ({most}) leaves no answer of sampling.max_tokens ({sampling.max_tokens}), "
                "which counts both: raise the second"
            )
        require_reachable(self.output, sampling)
        # vLLM refuses each such request under speculative decoding.
        given = {"min_tokens": sampling.min_tokens > 0, "min_p": sampling.min_p > 0, "logit_bias": sampling.logit_bias}
        for name, value in given.items():
            if self.model.speculative is not None and value:
                raise ValueError(f"sampling.{name} does not go with model.speculative: leave one of the two out")

    @model_validator(mode="after")
    def _columns_hold_one_answer(self) -> Self:
        if self.output.as_ == "columns" and self.sampling.n > 1:
            raise ValueError("output.as columns needs sampling.n = 1: several answers are a list, as: struct")
        return self

    @model_validator(mode="after")
    def _cuts_one_column(self) -> Self:
        self.prompt.require_one_to_cut(isinstance(self.output.choices, dict))
        return self

    @model_validator(mode="after")
    def _has_the_tasks_keys(self) -> Self:
        """Refuse keys that apply to another task."""
        prompted = {
            "sampling": self.sampling != SamplingSpec(),
            "sampling_column": self.sampling_column,
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
        if self.task == "score" and self.prompt.chat:
            raise ValueError("task score reads query and document as plain text: leave prompt.chat out")
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
        require_part(self.evaluate, self.output)
        for key, uri in (("input.uri", self.input.uri), ("output.uri", self.output.uri)):
            if self.schedule is None and has_variables(uri) and "previous" in uri:
                raise ValueError(f"{key} uses run.previous, the tick before this one: it needs schedule.cron")
        return self

"""Prompts become tokens: through the chat template, with no control token from a row, cut where they are too long.

The engine and the plan count with the same code: what the plan forecasts is what the engine does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple, Protocol

from batchinfer.errors import RowError, SpecError
from batchinfer.jobspec import JobSpec, PromptSpec
from batchinfer.prompting.choices import described
from batchinfer.prompting.control_tokens import ControlTokens, strings_in, unused_mark, with_strings
from batchinfer.prompting.job_prompts import query_spec
from batchinfer.prompting.messages import Message
from batchinfer.prompting.prompts import Prompt, PromptMaker
from batchinfer.prompting.row_sampling import RowSampling

Pieces = tuple[str, ...]
"""A prompt in pieces that become tokens apart from one another: one, unless a text of the row holds a control token."""

MIDDLE = " ... "
"""Stands where `truncate.side: middle` took text away."""

_CLOSE = 4
"""Tokens that a cut prompt may be shorter than the room. With 0 nearly each row takes several more countings, as the
tokens at a cut merge anew."""

_MOST_COUNTINGS = 24
"""Of one prompt while it is cut: two or three are the rule, and halving 100,000 tokens takes 17."""


class Tokenizer(Protocol):
    """What this module needs of the model's tokenizer."""

    def encode(self, texts: Sequence[str], special: bool) -> Sequence[Sequence[int]]:
        """The ids of each text; `special`: with what the tokenizer adds at the ends of a prompt."""

    def ends(self, text: str) -> Sequence[tuple[int, int]] | None:
        """The first and the last character of each token of a text; None if the tokenizer does not say."""

    def pair(self, first: str, second: str) -> tuple[Sequence[int], Sequence[int] | None]:
        """The ids of two texts as one sequence, and the type of each token if the model reads types."""


class Tokenized(NamedTuple):
    """A prompt as the engine gets it."""

    text: str
    ids: Sequence[int]
    truncated: int
    """By how many tokens it is shorter than it was."""
    second: int | None = None
    """Where the second text of a pair begins; None for one text, or if the model does not tell them apart."""


class _Refused(Exception):
    """The chat template raised an error; says which."""


class Writer:
    """Writes prompts as one text each, in pieces. One serves any number of threads.

    `conversation` writes messages, as a chat template does; None: prompts are plain text. `controls` are the control
    tokens of the tokenizer. `knows_tool_calls`: whether the conversation would hold them.
    """

    def __init__(
        self,
        spec: PromptSpec,
        conversation: Callable[[Sequence[Message]], str] | None,
        controls: Collection[str],
        knows_tool_calls: bool = True,
    ) -> None:
        self._conversation = conversation
        self.control_tokens = controls
        self._controls = None if spec.allow_special_tokens else ControlTokens(controls)
        self._maker = PromptMaker(spec)
        self._knows_tool_calls = knows_tool_calls
        self.row_in_system, self.row_in_prefill = self._maker.row_in_system, self._maker.row_in_prefill

    def pieces(self, prompt: Prompt) -> Pieces | RowError:
        """The prompt in pieces, or why there is none."""
        if not self._knows_tool_calls and any("tool_calls" in message for message in prompt.messages or ()):
            return RowError("prompt_invalid", "a message holds tool_calls, which the model's chat template leaves out")
        try:
            if self._controls is None or not any(map(self._controls.stand_in, self._of_row(prompt))):
                return (self._written(prompt),)
            return self._in_pieces(prompt, self._controls)
        except _Refused as error:
            told = f"the model's chat template refused the messages: {error}"
            return RowError("prompt_invalid", told.encode(errors="backslashreplace").decode()[:500])

    def remade(self, prompt: Prompt, column: str, text: str) -> Prompt | RowError:
        """The prompt with another text in a column."""
        return self._maker.prompt_of({**(prompt.row or {}), column: text})

    def _written(self, prompt: Prompt) -> str:
        if self._conversation is None:
            return prompt.as_text()
        try:
            written = self._conversation(prompt.as_messages())
        except Exception as error:
            # A chat template is a program: it refuses conversations that the model was not trained on, such as two
            # turns of the user, and whatever else it raises is this row's error too.
            raise _Refused(str(error) or type(error).__name__) from error
        return written + (prompt.prefill or "")

    def _of_row(self, prompt: Prompt) -> list[str]:
        """The texts that values of the row stand in."""
        if prompt.messages is not None:
            texts = [text for message in self._rows_messages(prompt) for text in strings_in(message)]
        else:
            texts = [prompt.text]
        if self.row_in_system and prompt.system is not None:
            texts.append(prompt.system)
        if self.row_in_prefill and prompt.prefill is not None:
            texts.append(prompt.prefill)
        return texts

    def _rows_messages(self, prompt: Prompt) -> tuple[Message, ...]:
        """The messages without the system message of the spec."""
        messages = prompt.messages or ()
        return messages[1:] if prompt.system is not None and not self.row_in_system else messages

    def _in_pieces(self, prompt: Prompt, controls: ControlTokens) -> Pieces | RowError:
        mark = unused_mark(prompt)
        if mark is not None:
            whole = self._written(prompt)
            for broken in (self._values_broken(prompt, controls, mark), self._all_broken(prompt, controls, mark)):
                pieces = tuple(self._written(broken).split(mark)) if isinstance(broken, Prompt) else ()
                if "".join(pieces) == whole:
                    return tuple(piece for piece in pieces if piece)
        return RowError("prompt_invalid", "a text holds a control token, which the model's chat template does not keep")

    def _values_broken(self, prompt: Prompt, controls: ControlTokens, mark: str) -> Prompt | RowError | None:
        """The prompt of a row with broken values: control tokens that the templates write stay whole."""
        if prompt.row is None:
            return None
        return self._maker.prompt_of(with_strings(dict(prompt.row), lambda text: controls.broken(text, mark)))

    def _all_broken(self, prompt: Prompt, controls: ControlTokens, mark: str) -> Prompt:
        """The prompt with every control token broken in the texts that values of the row stand in."""

        def broken(text: str) -> str:
            return controls.broken(text, mark)

        messages = prompt.messages
        if messages is not None:
            rows = self._rows_messages(prompt)
            own = messages[: len(messages) - len(rows)]
            messages = (*own, *({**with_strings(m, broken), "role": m["role"]} for m in rows))
        return prompt._replace(
            text=broken(prompt.text),
            system=broken(prompt.system) if self.row_in_system and prompt.system is not None else prompt.system,
            prefill=broken(prompt.prefill) if self.row_in_prefill and prompt.prefill is not None else prompt.prefill,
            messages=messages,
        )


class PromptTokens:
    """The tokens of prompts. One serves any number of threads.

    `special`: whether the tokenizer adds its own tokens at the ends, which a chat template writes itself. `context`:
    the longest sequence in tokens, None if it is not known: nothing is cut then. Raises SpecError if `max_tokens`
    leaves no room for a prompt that is cut.
    """

    def __init__(self, spec: JobSpec, tokenizer: Tokenizer, writer: Writer, special: bool, context: int | None) -> None:
        self._tokenizer = tokenizer
        self._writer = writer
        self._special = special
        self._column = described(spec).cut_column
        self._side = spec.prompt.truncate.side if spec.prompt.truncate is not None else "right"
        self._context = None if context is None or self._column is None else context
        self._spec, self._sampling = spec, RowSampling(spec)
        if self._context is not None:
            room_of_cut(spec, self._context)
        self._affixes: tuple[list[int], list[int]] | None = None

    def __call__(self, prompts: Sequence[Prompt]) -> list[Tokenized | RowError]:
        """The tokens of each prompt. All prompts of a shard at once: a fast tokenizer then uses all cores, and lets go
        of the GIL."""
        written = [self._writer.pieces(prompt) for prompt in prompts]
        ids = iter(self._ids([pieces for pieces in written if not isinstance(pieces, RowError)]))
        made: list[Tokenized | RowError] = []
        for prompt, pieces in zip(prompts, written, strict=True):
            if isinstance(pieces, RowError):
                made.append(pieces)
                continue
            whole = Tokenized("".join(pieces), next(ids), 0)
            room = self._room(prompt)
            made.append(whole if room is None or len(whole.ids) <= room else self._cut(prompt, whole, room))
        return made

    def _room(self, prompt: Prompt) -> int | None:
        """The most tokens of a prompt that is cut to fit; None if it is not cut."""
        if self._context is None:
            return None
        return self._context - (self._sampling.of(prompt).max_tokens if self._spec.generates else 0)

    def _ids(self, written: Sequence[Pieces]) -> list[Sequence[int]]:
        single = [pieces[0] for pieces in written if len(pieces) == 1]
        whole = iter(self._tokenizer.encode(single, self._special) if single else [])
        return [next(whole) if len(pieces) == 1 else self._joined(pieces) for pieces in written]

    def _joined(self, pieces: Pieces) -> list[int]:
        inner = [token for ids in self._tokenizer.encode(pieces, False) for token in ids] if pieces else []
        if not self._special:
            return inner
        if self._affixes is None:
            self._affixes = self._added()
        return [*self._affixes[0], *inner, *self._affixes[1]]

    def _added(self) -> tuple[list[int], list[int]]:
        """What the tokenizer adds before and after a prompt."""
        (plain,), (whole,) = (self._tokenizer.encode(["a"], special) for special in (False, True))
        return _around(plain, whole) or ([], [])

    def _cut(self, prompt: Prompt, whole: Tokenized, room: int) -> Tokenized | RowError:
        """The prompt with as much of the column as fits into `room` tokens."""
        assert self._column is not None
        text = (prompt.row or {}).get(self._column)
        if not isinstance(text, str):
            return _too_long(len(whole.ids), room, f"{self._column!r} holds no text to cut")
        tokens = self._tokenizer.ends(text) or [(at, at + 1) for at in range(len(text))]
        best: Tokenized | None = None
        # `least` tokens of the column fit if `best` is set, `most` do not.
        least, most = -1, len(tokens)
        # Above 1 where the tokenizer does not say which characters are a token.
        each = max(1.0, len(tokens) / len(whole.ids))
        kept = len(tokens) - round((len(whole.ids) - room) * each)
        for _ in range(_MOST_COUNTINGS):
            kept = min(max(kept, least + 1), most - 1)
            made = self._with(prompt, _shortened(text, tokens, kept, self._side))
            # A template may fail without the text: with more of it, it may not.
            count = 0 if isinstance(made, RowError) else len(made.ids)
            if count > room:
                most = kept
            else:
                least = kept
                if isinstance(made, Tokenized):
                    best = made._replace(truncated=len(whole.ids) - count)
            if most - least <= 1 or (best is not None and least == kept and room - count <= _CLOSE):
                break
            guess = kept + round((room - count) * each)
            # Where tokens of the column are not tokens of the prompt, as if it stands there twice, halving ends it.
            kept = guess if least < guess < most else (least + most) // 2
        return best or _too_long(len(whole.ids), room, f"it does not fit without any text of {self._column!r}")

    def _with(self, prompt: Prompt, text: str) -> Tokenized | RowError:
        assert self._column is not None
        made = self._writer.remade(prompt, self._column, text)
        pieces = made if isinstance(made, RowError) else self._writer.pieces(made)
        if isinstance(pieces, RowError):
            return pieces
        return Tokenized("".join(pieces), self._ids([pieces])[0], 0)


class PairTokens:
    """The tokens of the query and the document of each prompt as one sequence, for a cross-encoder.

    `queries` and `documents` write the two texts. One serves any number of threads.
    """

    def __init__(self, tokenizer: Tokenizer, queries: Writer, documents: Writer) -> None:
        self._tokenizer = tokenizer
        self._queries, self._documents = queries, documents
        (plain,) = tokenizer.encode(["a"], False)
        whole, types = tokenizer.pair("a", "a")
        self._before, rest = _around(plain, whole) or ([], [])
        self._between, self._after = _around(plain, rest) or ([], [])
        # From the end of the query to the first token of the second type.
        self._second = None if types is None or 1 not in types else types.index(1) - len(self._before) - len(plain)

    def __call__(self, prompts: Sequence[Prompt]) -> list[Tokenized | RowError]:
        """The tokens of each pair. All texts at once, as in `PromptTokens`."""
        written = [self._written(prompt) for prompt in prompts]
        pieces = [p for pair in written if not isinstance(pair, RowError) for text in pair for p in text]
        ids = iter(self._tokenizer.encode(pieces, False) if pieces else [])
        return [pair if isinstance(pair, RowError) else self._joined(*pair, ids) for pair in written]

    def _written(self, prompt: Prompt) -> tuple[Pieces, Pieces] | RowError:
        query = self._queries.pieces(prompt.query or Prompt())
        if isinstance(query, RowError):
            return query
        document = self._documents.pieces(prompt)
        return document if isinstance(document, RowError) else (query, document)

    def _joined(self, query: Pieces, document: Pieces, ids: Iterator[Sequence[int]]) -> Tokenized:
        """The pair as one sequence; `ids` goes on with the tokens of its pieces."""
        first, second = (
            [token for piece in itertools.islice(ids, len(text)) for token in piece] for text in (query, document)
        )
        place = None if self._second is None else len(self._before) + len(first) + self._second
        whole = [*self._before, *first, *self._between, *second, *self._after]
        return Tokenized("".join((*query, "\n\n", *document)), whole, 0, place)


def tokens_of(
    spec: JobSpec, tokenizer: Tokenizer, writer: Writer, special: bool, context: int | None
) -> PromptTokens | PairTokens:
    """The tokens of the job's prompts, which `writer` writes; see `PromptTokens`."""
    if spec.task != "score":
        return PromptTokens(spec, tokenizer, writer, special, context)
    return PairTokens(tokenizer, Writer(query_spec(spec.prompt), None, writer.control_tokens), writer)


def _around(plain: Sequence[int], whole: Sequence[int]) -> tuple[list[int], list[int]] | None:
    """What stands before and after the first `plain` in `whole`; None if it is not there."""
    for start in range(len(whole) - len(plain) + 1):
        if list(whole[start : start + len(plain)]) == list(plain):
            return list(whole[:start]), list(whole[start + len(plain) :])
    return None


def room_of_cut(spec: JobSpec, context: int) -> int:
    """The most tokens of a prompt that is cut to fit. Raises SpecError if none are left."""
    room = context - (spec.sampling.max_tokens if spec.generates else 0)
    if room < 1:
        raise SpecError(
            f"sampling.max_tokens {spec.sampling.max_tokens} leaves no room for a prompt in a context of {context:,}, "
            "and prompt.too_long: truncate keeps that much for the answer",
            f"set sampling.max_tokens below {context:,}",
        )
    return room


def _too_long(count: int, room: int, why: str) -> RowError:
    return RowError("prompt_too_long", f"the prompt has {count:,} tokens, there is room for {room:,}, and {why}")


def _shortened(text: str, tokens: Sequence[tuple[int, int]], kept: int, side: str) -> str:
    """`kept` tokens of a text, of which `tokens` has the first and last characters."""
    if kept <= 0:
        return ""
    if kept >= len(tokens):
        return text
    if side == "right":
        return text[: tokens[kept][0]]
    if side == "left":
        return text[tokens[len(tokens) - kept - 1][1] :]
    head = (kept + 1) // 2
    tail = kept - head
    return text[: tokens[head][0]] + MIDDLE + (text[tokens[len(tokens) - tail - 1][1] :] if tail else "")

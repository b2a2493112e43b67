"""Requests that are the same run once in a replica; the others get the answer of the first, without tokens."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from batchinfer.engine import Completion
from batchinfer.prompting.prompts import Prompt

KEY_BYTES = 16
"""Length of a request's hash. Among 10^9 different requests, two have the same 128 bits with a chance of 10^-21."""

REMEMBERED_BYTES = 256 * 2**20
"""Bytes of answers that a replica remembers: some 450,000 short ones. Fewer miss duplicates that lie far apart, which
then run again. More takes memory of the machine for each of its replicas, which the plan does not count."""

_BYTES_AN_ANSWER = 500
"""Bytes of an answer besides its texts: the hash, the entry of the table, the object and its lists."""

_BYTES_A_LOGPROB = 400
_BYTES_A_LABEL = 100

Ask = Callable[[Sequence[Prompt], Sequence[int]], Sequence[Completion]]


def request_keys(prompts: Sequence[Prompt], size: int = KEY_BYTES, steps: bool = True) -> list[bytes]:
    """A hash of each prompt, of `size` bytes. Equal prompts of one step have equal token ids, sampling and output
    shape. `steps`: whether which step it is of counts.

    The row that a prompt carries counts too: where a value is cut, or a control token is looked for, it shapes the
    tokens.
    """
    keys: list[bytes] = []
    rest: tuple[object, ...] | None = None
    begun = hashlib.blake2b(digest_size=size)
    for prompt in prompts:
        asked = (prompt if steps else prompt._replace(step=0))[1:]
        if asked != rest:
            # All but the text is most often the same for all rows, and so is hashed once.
            rest = asked
            begun = hashlib.blake2b(repr(rest).encode(errors="surrogatepass"), digest_size=size)
        hashed = begun.copy()
        hashed.update(prompt.text.encode(errors="surrogatepass"))
        keys.append(hashed.digest())
    return keys


class _Turn:
    """The requests that one call asks the engine for. `answers`: by hash, those without an error, once it is over."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.answers: dict[bytes, Completion] = {}


class Reuse:
    """The answers of a replica, by the hash of their request. Safe to use from several threads.

    A call asks for the requests that nobody else has asked for. Only then it waits for those that other calls ask for.
    So a call that is waited for never waits, and no two calls wait for one another. What a request fails with is not
    reused: a request whose first one failed is asked again. `repeats`: says whether a request that runs again has
    the same answer; one that does not is asked by each of its rows. None: all are reused.
    """

    def __init__(
        self, remembered_bytes: int = REMEMBERED_BYTES, repeats: Callable[[Prompt], bool] | None = None
    ) -> None:
        self._room = remembered_bytes
        self._repeats = repeats
        self._lock = threading.Lock()
        self._answers: OrderedDict[bytes, Completion] = OrderedDict()
        self._turns: dict[bytes, _Turn] = {}

    def __call__(self, prompts: Sequence[Prompt], places: Sequence[int], ask: Ask) -> list[Completion]:
        """The completions of the prompts. `ask` runs some of them, as the first ones of their kind."""
        keys = request_keys(prompts)
        found: list[Completion | None] = [None] * len(prompts)
        turn = _Turn()
        first: dict[bytes, int] = {}
        alone: list[int] = []
        waiting: list[tuple[int, _Turn]] = []
        with self._lock:
            for i, key in enumerate(keys):
                if self._repeats is not None and not self._repeats(prompts[i]):
                    alone.append(i)
                elif key in first:
                    waiting.append((i, turn))
                elif (answer := self._answers.get(key)) is not None:
                    self._answers.move_to_end(key)
                    found[i] = reused(answer)
                elif (other := self._turns.get(key)) is not None:
                    waiting.append((i, other))
                else:
                    first[key] = i
                    self._turns[key] = turn
        try:
            self._ask(prompts, places, sorted((*first.values(), *alone)), found, ask)
            turn.answers = {
                key: reused(answer) for key, i in first.items() if (answer := found[i]) is not None and not answer.error
            }
        finally:
            self._end(turn, first)
        for i, other in waiting:
            other.over.wait()
            answer = other.answers.get(keys[i])
            found[i] = None if answer is None else reused(answer)
        if waiting:
            # Asked also if nothing is left, so that the meter is read after the wait.
            self._ask(prompts, places, [i for i, _ in waiting if found[i] is None], found, ask)
        return [completion for completion in found if completion is not None]

    @staticmethod
    def _ask(
        prompts: Sequence[Prompt],
        places: Sequence[int],
        which: Sequence[int],
        found: list[Completion | None],
        ask: Ask,
    ) -> None:
        asked = ask([prompts[i] for i in which], [places[i] for i in which])
        for i, completion in zip(which, asked, strict=True):
            found[i] = completion

    def _end(self, turn: _Turn, asked: dict[bytes, int]) -> None:
        with self._lock:
            for key in asked:
                del self._turns[key]
            for key, answer in turn.answers.items():
                self._answers[key] = answer
                self._room -= size_of(answer)
            while self._room < 0:
                self._room += size_of(self._answers.popitem(last=False)[1])
        turn.over.set()


def reused(answer: Completion) -> Completion:
    """The answer for another request that is the same: all that it says, and none of what it took."""
    tokens = answer.input_tokens + answer.output_tokens if answer.reused_tokens is None else answer.reused_tokens
    return Completion(
        answer.texts,
        answer.finish_reasons,
        input_tokens=0,
        cached_tokens=0,
        output_tokens=0,
        logprobs=answer.logprobs,
        embedding=answer.embedding,
        probabilities=answer.probabilities,
        score=answer.score,
        truncated_tokens=answer.truncated_tokens,
        reasoning=answer.reasoning,
        reused_tokens=tokens,
    )


def size_of(answer: Completion) -> int:
    """About how many bytes a remembered answer takes."""
    size = _BYTES_AN_ANSWER + sum(map(sys.getsizeof, answer.texts))
    if answer.reasoning is not None:
        size += sum(map(sys.getsizeof, answer.reasoning))
    if answer.embedding is not None:
        size += answer.embedding.nbytes
    if answer.logprobs is not None:
        size += _BYTES_A_LOGPROB * sum(len(token) for text in answer.logprobs for token in text)
    if answer.probabilities is not None:
        size += _BYTES_A_LABEL * len(answer.probabilities)
    return size

"""Peers that write text, as sessions of the same form as hasten's: what a worker opens beside ours.

Each gives ``generate(arrays, generation)``, one column of ids after the other, and where its logits can be had
``said(ids, count)``: the log-probability of the last ``count`` tokens of a window. Libraries are loaded when a session
is opened; which are there says :func:`builds`. Greedy, of one length, without anything that a repeated prompt could
find again.

Legend: S rows, L tokens of a prompt, V tokens of the vocabulary.
"""

from __future__ import annotations

import ctypes
import importlib.util
import queue
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_TOGETHER = 64  # tokens whose logits are held at once: 262,000 numbers each
_BATCH = 512


def builds() -> dict[str, Any]:
    """Which peers can be imported, in which version, and what they were built with."""
    found: dict[str, Any] = {}
    for name, package in (("llama_cpp", "llama-cpp-python"), ("xllamacpp", "xllamacpp"),
                          ("openvino_genai", "openvino-genai")):  # fmt: skip
        if importlib.util.find_spec(name) is None:
            continue
        try:
            found[name] = {"version": version(package)}
        except PackageNotFoundError:
            found[name] = {"version": "unknown"}
    if "llama_cpp" in found:
        import llama_cpp

        found["llama_cpp"]["system"] = llama_cpp.llama_print_system_info().decode()
    if "xllamacpp" in found:
        import xllamacpp

        found["xllamacpp"]["system"] = str(xllamacpp.get_system_info())
    return found


# ------------------------------------------------------------------ llama.cpp, through its C interface


def open_llama_cpp(*, path: Path, streams: int, tokens: int, threads: int) -> LlamaCpp:
    """``streams`` rows of at most ``tokens`` each."""
    return LlamaCpp(path, streams=streams, tokens=tokens, threads=threads)


class LlamaCpp:
    """Keys and values in fp16, as it does by itself."""

    input_names = ("input_ids",)
    precision = "as the file"

    def __init__(self, path: Path, *, streams: int, tokens: int, threads: int) -> None:
        import llama_cpp as lib

        self._lib = lib
        lib.llama_backend_init()
        quiet = lib.llama_log_callback(lambda *_: None)
        self._quiet = quiet  # the library keeps a pointer to it
        lib.llama_log_set(quiet, ctypes.c_void_p(0))
        self._model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        params = lib.llama_context_default_params()
        params.n_ctx = streams * (-(-tokens // 256) * 256)
        params.n_batch, params.n_ubatch, params.n_seq_max = max(_BATCH, streams), _BATCH, streams
        params.n_threads = params.n_threads_batch = threads
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp opens no context of {params.n_ctx} tokens")
        self._batch_size = int(params.n_batch)
        self._batch = lib.llama_batch_init(self._batch_size, 0, 1)
        self._vocabulary = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model)))

    def generate(self, arrays: Mapping[str, Array], generation: Any) -> Iterator[Array]:
        """Row by row into batches of 512, then one token of each row a step."""
        ids = np.asarray(arrays["input_ids"])
        rows, length = ids.shape
        self._forget()
        place = [(row, at) for row in range(rows) for at in range(length)]
        following = np.zeros(rows, dtype=np.int64)
        for start in range(0, len(place), self._batch_size):
            part = place[start : start + self._batch_size]
            wanted = [at == length - 1 for _, at in part]
            self._decode([int(ids[row, at]) for row, at in part], part, wanted)
            for number, (row, _) in enumerate(part):
                if wanted[number]:
                    following[row] = int(self._logits(number).argmax())
        for step in range(generation.new_tokens):
            if step:
                part = [(row, length + step - 1) for row in range(rows)]
                self._decode([int(i) for i in following], part, [True] * rows)
                following = np.array([int(self._logits(row).argmax()) for row in range(rows)], dtype=np.int64)
            yield following.copy()

    def said(self, ids: Array, count: int) -> Array:
        """float64 [count]."""
        self._forget()
        found: list[float] = []
        first = len(ids) - count - 1  # the token before says it
        for start in range(0, len(ids) - 1, _TOGETHER):
            places = range(start, min(start + _TOGETHER, len(ids) - 1))
            wanted = [at >= first for at in places]
            self._decode([int(ids[at]) for at in places], [(0, at) for at in places], wanted)
            found += [log_odds(self._logits(n), ids[at + 1]) for n, at in enumerate(places) if wanted[n]]
        return np.array(found)

    def close(self) -> None:
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    def _forget(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def _decode(self, ids: list[int], places: list[tuple[int, int]], wanted: list[bool]) -> None:
        batch = self._batch
        batch.n_tokens = len(ids)
        for number, (token, (row, at), said) in enumerate(zip(ids, places, wanted, strict=True)):
            batch.token[number], batch.pos[number], batch.logits[number] = token, at, said
            batch.n_seq_id[number] = 1
            batch.seq_id[number][0] = row
        if self._lib.llama_decode(self._context, batch) != 0:
            raise RuntimeError(f"llama.cpp does not decode {len(ids)} tokens")

    def _logits(self, number: int) -> Array:
        return np.ctypeslib.as_array(self._lib.llama_get_logits_ith(self._context, number), (self._vocabulary,))


# ------------------------------------------------------------------ llama.cpp, through a wheel's server


def open_xllamacpp(*, path: Path, streams: int, tokens: int, threads: int) -> XLlamaCpp:
    """The same as far as its server lets one ask: no logits."""
    return XLlamaCpp(path, streams=streams, tokens=tokens, threads=threads)


class XLlamaCpp:
    """A wheel for every CPU; each row is a request of its own, and the server decodes them together."""

    input_names = ("input_ids",)
    precision = "as the file"

    def __init__(self, path: Path, *, streams: int, tokens: int, threads: int) -> None:
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path = str(path)
        settings.n_ctx, settings.n_parallel = streams * (-(-tokens // 256) * 256), streams
        settings.n_batch = settings.n_ubatch = _BATCH
        settings.warmup = False
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
        self._server = xllamacpp.Server(settings)

    def generate(self, arrays: Mapping[str, Array], generation: Any) -> Iterator[Array]:
        ids = np.asarray(arrays["input_ids"])
        told: queue.Queue[int | Exception] = queue.Queue()
        callers = [
            threading.Thread(target=self._ask, args=(row, [int(i) for i in own], generation.new_tokens, told))
            for row, own in enumerate(ids)
        ]
        for caller in callers:
            caller.start()
        counts, given = np.zeros(len(ids), dtype=np.int64), 0
        while given < generation.new_tokens:
            event = told.get()
            if isinstance(event, Exception):
                raise event
            counts[event] += 1
            while given < min(generation.new_tokens, int(counts.min())):
                given += 1
                yield np.zeros(len(ids), dtype=np.int64)  # the server tells pieces of text, and no ids
        for caller in callers:
            caller.join()

    def close(self) -> None:
        del self._server

    def _ask(self, row: int, ids: list[int], tokens: int, told: queue.Queue[int | Exception]) -> None:
        seen = 0

        def hear(event: Any) -> None:
            nonlocal seen
            if seen < tokens and _has_text(event):
                seen += 1
                told.put(row)

        request = {"prompt": ids, "max_tokens": tokens, "temperature": 0.0, "cache_prompt": False, "ignore_eos": True,
                   "stream": True}  # fmt: skip
        try:
            self._server.handle_completions(request, hear)
            for _ in range(tokens - seen):  # pieces that are no whole letters come together
                told.put(row)
        except Exception as error:
            told.put(error)


def _has_text(event: Any) -> bool:
    return isinstance(event, dict) and bool(event.get("choices") or "content" in event)


# ------------------------------------------------------------------ OpenVINO GenAI


def open_genai(*, folder: Path, streams: int, tokens: int, threads: int) -> GenAi:
    """A folder that ``optimum-cli export openvino --task text-generation-with-past`` wrote."""
    return GenAi(folder, streams=streams, tokens=tokens, threads=threads)


class GenAi:
    """Its own precisions: products in bf16 where the CPU has it, keys and values in 8 bits."""

    input_names = ("input_ids",)
    precision = "as it chooses"

    def __init__(self, folder: Path, *, streams: int, tokens: int, threads: int) -> None:
        import openvino_genai as genai

        plan = genai.SchedulerConfig()
        plan.enable_prefix_caching = False
        plan.max_num_batched_tokens, plan.max_num_seqs = max(_BATCH, streams), max(streams, 1)
        plan.num_kv_blocks = streams * (-(-tokens // 32) + 1)
        self._genai, self._folder, self._threads = genai, folder, threads
        properties = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self._pipe = genai.ContinuousBatchingPipeline(str(folder), plan, "CPU", properties)
        self._reader: Any = None

    def generate(self, arrays: Mapping[str, Array], generation: Any) -> Iterator[Array]:
        import openvino

        wish = self._genai.GenerationConfig()
        wish.max_new_tokens, wish.ignore_eos, wish.do_sample = generation.new_tokens, True, False
        ids = np.ascontiguousarray(arrays["input_ids"])
        handles = [self._pipe.add_request(row, openvino.Tensor(ids[row : row + 1]), wish) for row in range(len(ids))]
        waiting = [deque[int]() for _ in handles]
        given = 0
        while given < generation.new_tokens:
            self._pipe.step()
            for own, handle in zip(waiting, handles, strict=True):
                while handle.can_read():
                    own.extend(i for made in handle.read().values() for i in made.generated_ids)
            while given < generation.new_tokens and all(waiting):
                given += 1
                yield np.array([own.popleft() for own in waiting], dtype=np.int64)

    def said(self, ids: Array, count: int) -> Array:
        """float64 [count], by the same graph: GenAI itself tells no logits of a prompt."""
        if self._reader is None:
            import openvino

            properties = {"INFERENCE_NUM_THREADS": self._threads, "PERFORMANCE_HINT": "LATENCY"}
            compiled = openvino.Core().compile_model(str(self._folder / "openvino_model.xml"), "CPU", properties)
            self._reader = compiled.create_infer_request()
        request = self._reader
        request.reset_state()
        found: list[float] = []
        first = len(ids) - count - 1
        for start in range(0, len(ids) - 1, _TOGETHER):
            end = min(start + _TOGETHER, len(ids) - 1)
            given = {
                "input_ids": ids[None, start:end], "attention_mask": np.ones((1, end), dtype=np.int64),
                "position_ids": np.arange(start, end)[None], "beam_idx": np.zeros(1, dtype=np.int32),
            }  # fmt: skip
            taken = {port.get_any_name() for port in request.model_inputs}
            request.infer({name: np.ascontiguousarray(a) for name, a in given.items() if name in taken})
            logits = request.get_output_tensor(0).data[0]
            found += [log_odds(logits[at - start], ids[at + 1]) for at in range(max(start, first), end)]
        return np.array(found)

    def close(self) -> None:
        del self._pipe


# ------------------------------------------------------------------ perplexity


def log_odds(logits: Array, token: int) -> float:
    """The log-probability of one token, of logits [V]."""
    numbers = np.asarray(logits, dtype=np.float64)
    most = numbers.max()
    return float(numbers[int(token)] - most - np.log(np.exp(numbers - most).sum()))


def said_by(session: Any, *, windows: list[Array], count: int) -> list[list[float]]:
    """(sum of log-probabilities, tokens) of the last ``count`` tokens of each window, by any session: a peer's own
    way, or hasten's sessions step by step through their caches."""
    found = []
    for ids in windows:
        if hasattr(session, "said"):
            odds = session.said(ids, count)
        else:
            prompt, after = ids[None, :-count], ids[None, -count:]
            logits = session.forced({"input_ids": prompt, "attention_mask": np.ones_like(prompt)}, after)[0]
            odds = np.array([log_odds(logits[at], after[0, at]) for at in range(count)])
        found.append([float(odds.sum()), count])
    return found

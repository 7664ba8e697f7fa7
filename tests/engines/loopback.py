"""A server on loopback that speaks as vLLM's and OpenRouter's do, backed by a model, and misbehaves to order.

with serve(model, tokenizer) as server:
    server.next(status(429, {"Retry-After": "2"}))      # the next request only
    server.always = lambda answer: {…}                  # every answer
    engine = server.engine(concurrency=4)
"""

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck.engines.settings import ServerEngine

NAME = "org/teacher"
Answer = dict[str, Any]
Misdeed = Callable[["Handler", Answer], bool]  # True: the request is answered already


@dataclass
class Loopback:
    """A running server, what it was asked, and what it is told to do wrong."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    url: str = ""
    key: str = ""
    most_logprobs: int = 300
    reported: str = NAME
    with_ids: bool = True
    always: Callable[[Answer], Answer] = lambda answer: answer
    requests: list[tuple[str, Answer]] = field(default_factory=list)
    misdeeds: deque[Misdeed] = field(default_factory=deque)
    released: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    running: int = 0
    most_running: int = 0

    def next(self, *misdeeds: Misdeed) -> None:
        """Answer the next requests so, one each."""
        self.misdeeds.extend(misdeeds)

    def engine(self, **changes: Any) -> ServerEngine:
        return ServerEngine(engine="server", base_url=f"{self.url}/v1", model=NAME, vocabulary=300, **changes)

    def asked(self, path: str) -> list[Answer]:
        return [body for at, body in self.requests if at == path]


def status(code: int, headers: dict[str, str] | None = None, message: str = "not now") -> Misdeed:
    def answer(handler: "Handler", _: Answer) -> bool:
        handler.reply(code, {"error": {"message": message}}, headers)
        return True

    return answer


def truncated(handler: "Handler", answer: Answer) -> bool:
    """Promise the whole answer, send half of it, and hang up."""
    data = json.dumps(answer).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.wfile.flush()
    handler.close_connection = True
    return True


def half_json(handler: "Handler", answer: Answer) -> bool:
    """Send half an answer as if it were whole."""
    data = json.dumps(answer).encode()
    handler.reply_bytes(200, data[: len(data) // 2])
    return True


def hang(handler: "Handler", _: Answer) -> bool:
    """Say nothing until the test lets go."""
    handler.loopback.released.wait(30)
    handler.close_connection = True
    return True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    loopback: Loopback

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, code: int, body: Any, headers: dict[str, str] | None = None) -> None:
        self.reply_bytes(code, json.dumps(body).encode(), headers)

    def reply_bytes(self, code: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if not self._allowed():
            return
        if self.path == "/v1/models":
            self.reply(200, {"data": [{"id": NAME, "root": NAME}, {"id": "org/other"}]})
        elif self.path == "/version":
            self.reply(200, {"version": "0.0-loopback"})
        else:
            self.reply(404, {"error": {"message": "no such path"}})

    def do_POST(self) -> None:
        loopback = self.loopback
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._allowed():
            return
        with loopback.lock:
            loopback.requests.append((self.path, body))
            loopback.running += 1
            loopback.most_running = max(loopback.most_running, loopback.running)
            misdeed = loopback.misdeeds.popleft() if loopback.misdeeds else None
        try:
            code, answer = self._answer(body)
            if misdeed is None or not misdeed(self, answer):
                self.reply(code, loopback.always(answer))
        finally:
            with loopback.lock:
                loopback.running -= 1

    def _allowed(self) -> bool:
        if self.loopback.key and self.headers.get("Authorization") != f"Bearer {self.loopback.key}":
            said = self.headers.get("Authorization", "")
            self.reply(401, {"error": {"message": f"Incorrect API key provided: {said}"}})
            return False
        return True

    def _answer(self, body: Answer) -> tuple[int, Answer]:
        asked = max(body.get("prompt_logprobs") or 0, body.get("logprobs") or 0, body.get("top_logprobs") or 0)
        if asked > self.loopback.most_logprobs:
            message = f"Requested sample logprobs of {asked}, which is greater than max allowed: 20"
            return 400, {"error": {"message": message}}
        with self.loopback.lock:
            if self.path == "/v1/completions":
                return 200, complete(self.loopback, body)
            if self.path == "/v1/chat/completions":
                return 200, chat(self.loopback, body)
        return 404, {"error": {"message": "no such path"}}


@torch.no_grad()
def logprobs_of(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """Log-probabilities `[T, V]` of what follows each prefix."""
    return model(torch.tensor([ids])).logits[0].float().log_softmax(-1)


def listed(logprobs_V: torch.Tensor, own: int, count: int, tokenizer: PreTrainedTokenizerBase) -> dict[str, Answer]:
    """One place of vLLM's `prompt_logprobs`: the prompt's own token first, then the most probable, each once."""
    best = logprobs_V.topk(count)
    rank = int((logprobs_V >= logprobs_V[own]).sum())
    place = {str(own): entry(logprobs_V[own], rank, tokenizer, own)}
    for at, (value, token) in enumerate(zip(best.values, best.indices.tolist(), strict=True), start=1):
        place[str(token)] = entry(value, at, tokenizer, token)
    return place


def entry(value: torch.Tensor, rank: int, tokenizer: PreTrainedTokenizerBase, token: int) -> Answer:
    return {"logprob": max(float(value), -9999.0), "rank": rank, "decoded_token": tokenizer.decode([token])}


def complete(loopback: Loopback, body: Answer) -> Answer:
    """`/v1/completions`: vLLM's prompt log-probabilities, OpenAI's echo, or a continuation."""
    ids, model, tokenizer = body["prompt"], loopback.model, loopback.tokenizer
    choice: Answer = {"index": 0, "text": "x", "logprobs": None, "finish_reason": "length", "stop_reason": None}
    count = body.get("prompt_logprobs")
    if count is not None:
        logprobs = logprobs_of(model, ids)
        places = [listed(logprobs[t], ids[t + 1], count, tokenizer) for t in range(len(ids) - 1)]
        choice["prompt_logprobs"] = [None, *places]
        written: list[int] = [int(logprobs[-1].argmax())]
    elif body.get("echo"):
        choice["logprobs"] = echoed(logprobs_of(model, ids), ids, body["logprobs"], tokenizer)
        written = []
    else:
        written, said = continued(loopback, ids, body)
        choice["text"] = tokenizer.decode(written, skip_special_tokens=True)
        choice["finish_reason"] = "stop" if written[-1] == tokenizer.eos_token_id else "length"
        if body.get("logprobs"):
            choice["logprobs"] = numbered(said, written, body["logprobs"])
    if body.get("return_token_ids") and loopback.with_ids:
        choice |= {"prompt_token_ids": ids, "token_ids": written}
    return answer_of(loopback, [choice], len(ids), len(written))


def chat(loopback: Loopback, body: Answer) -> Answer:
    """`/v1/chat/completions`, with tokens as text and bytes."""
    tokenizer = loopback.tokenizer
    text = tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    written, said = continued(loopback, ids, body)
    if written[-1] == tokenizer.eos_token_id:
        written = written[:-1]
    content = []
    for token, logprobs_V in zip(written, said, strict=False):
        best = logprobs_V.topk(body.get("top_logprobs") or 1)
        rivals = [named(tokenizer, rival, logprobs_V) for rival in best.indices.tolist()]
        content.append({**named(tokenizer, token, logprobs_V), "top_logprobs": rivals})
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": tokenizer.decode(written)},
        "logprobs": {"content": content} if body.get("logprobs") else None,
        "finish_reason": "stop" if len(written) < body["max_tokens"] else "length",
    }
    return answer_of(loopback, [choice], len(ids), len(written))


def bytes_of(tokenizer: PreTrainedTokenizerBase, token: int) -> bytes:
    """The bytes of a token, by the tokenizer's own decoder: between two letters, so that nothing is stripped."""
    piece = tokenizer.convert_ids_to_tokens(token)
    if token in tokenizer.added_tokens_decoder:
        return str(piece).encode()
    table = {chr(code): byte for byte, code in BYTE_SIGNS.items()}
    return bytes(table[sign] for sign in piece)


def _byte_signs() -> dict[int, int]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {byte: ord(sign) for byte, sign in bytes_to_unicode().items()}


BYTE_SIGNS = _byte_signs()


def named(tokenizer: PreTrainedTokenizerBase, token: int, logprobs_V: torch.Tensor) -> Answer:
    data = bytes_of(tokenizer, token)
    return {"token": data.decode("utf-8", "replace"), "bytes": list(data), "logprob": float(logprobs_V[token])}


def continued(loopback: Loopback, ids: list[int], body: Answer) -> tuple[list[int], list[torch.Tensor]]:
    """Draw a continuation from a generator with the request's seed."""
    generator = torch.Generator().manual_seed(body.get("seed", 0))
    written: list[int] = []
    said: list[torch.Tensor] = []
    while len(written) < body["max_tokens"]:
        logprobs_V = logprobs_of(loopback.model, ids + written)[-1]
        greedy = body.get("temperature") == 0
        token = int(logprobs_V.argmax() if greedy else torch.multinomial(logprobs_V.exp(), 1, generator=generator))
        written.append(token)
        said.append(logprobs_V)
        if token == loopback.tokenizer.eos_token_id:
            break
    return written, said


def numbered(said: list[torch.Tensor], written: list[int], count: int) -> Answer:
    """`logprobs` of a completion whose tokens are written as `token_id:…`."""
    tops = []
    for logprobs_V, token in zip(said, written, strict=True):
        best = logprobs_V.topk(count)
        top = {f"token_id:{one}": float(logprobs_V[one]) for one in best.indices.tolist()}
        tops.append({**top, f"token_id:{token}": float(logprobs_V[token])})
    return {
        "tokens": [f"token_id:{token}" for token in written],
        "token_logprobs": [float(logprobs_V[token]) for logprobs_V, token in zip(said, written, strict=True)],
        "top_logprobs": tops,
    }


def echoed(logprobs: torch.Tensor, ids: list[int], count: int, tokenizer: PreTrainedTokenizerBase) -> Answer:
    """OpenAI's older `echo` with `logprobs`: tokens as text."""

    def text(token: int) -> str:
        return bytes_of(tokenizer, token).decode("utf-8", "replace")

    tops: list[Answer | None] = [None]
    for t in range(len(ids) - 1):
        tops.append({text(one): float(logprobs[t, one]) for one in logprobs[t].topk(count).indices.tolist()})
    own = [None, *(float(logprobs[t, ids[t + 1]]) for t in range(len(ids) - 1))]
    return {"tokens": [text(token) for token in ids], "token_logprobs": own, "top_logprobs": tops}


def answer_of(loopback: Loopback, choices: list[Answer], read: int, written: int) -> Answer:
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    return {"id": "x", "object": "text_completion", "model": loopback.reported, "choices": choices, "usage": usage}


@contextmanager
def serve(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> Iterator[Loopback]:
    """Run a server on a free port of 127.0.0.1 while the block runs."""
    loopback = Loopback(model, tokenizer, **settings)
    handler = type("BoundHandler", (Handler,), {"loopback": loopback})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    loopback.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield loopback
    finally:
        loopback.released.set()
        server.shutdown()
        server.server_close()
        thread.join()

"""The HTTP side: FastAPI routes over ``Batches``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse

from eval_suite.serving import wire
from eval_suite.serving.batches import Batches, Job, Said, chosen
from factory.errors import UserError

GONE = 499  # nobody reads it: the client has closed the connection
TURN = 0.01  # seconds between two looks at what a thread has said


def app_of(name: str, batches: Batches, max_new_tokens: int) -> FastAPI:
    """The application; ``name`` is the served model's, ``max_new_tokens`` an answer's where a request does not say."""

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(batches.close)

    app = FastAPI(title="steering-factory", lifespan=living)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(each) for each in first["loc"] if each != "body")
        return JSONResponse(wire.fault(f"{where or 'the request'}: {first['msg']}"), 400)

    @app.exception_handler(UserError)
    async def refused(request: Request, error: UserError) -> Response:
        return JSONResponse(wire.fault(str(error)), 400)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        about = {"id": name, "object": "model", "created": 0, "owned_by": "steering-factory"}
        return {"object": "list", "data": [{**about, "directions": list(batches.steerings)}]}

    @app.post("/v1/chat/completions")
    async def chat(asked: wire.ChatRequest, request: Request) -> Response:
        if asked.model != name:
            told = f"model '{asked.model}' is not served; there is: {name}"
            return JSONResponse(wire.fault(told, "not_found_error"), 404)
        steering, strength = chosen(batches.steerings, asked.direction, asked.strength)
        longest = asked.max_completion_tokens or asked.max_tokens or max_new_tokens
        job = Job(await asyncio.to_thread(asked.prompt), steering, strength, longest)
        batches.put(job)
        news = _news(job, request)
        if asked.stream:
            first = await anext(news, None)  # a prompt that cannot be answered is a status, not the end of a stream
            if first is None:
                return Response(status_code=GONE)
            usage = asked.stream_options is not None and asked.stream_options.include_usage
            return StreamingResponse(_events(name, first, news, usage), media_type="text/event-stream")
        heard = [said async for said in news]
        if not heard or (last := heard[-1]).reason is None:
            return Response(status_code=GONE)
        text = "".join(said.text for said in heard)
        return JSONResponse(wire.completion(name, text, last.reason, last.prompt_tokens, last.tokens))

    return app


async def _news(job: Job, request: Request) -> AsyncGenerator[Said]:
    """What is said of a job, until it is over. A client that has gone is noted, so that nothing is made for it."""
    try:
        while True:
            if job.news.empty():
                if await request.is_disconnected():
                    return
                await asyncio.sleep(TURN)
                continue
            said = job.news.get()
            if said.fault is not None:
                raise said.fault
            yield said
            if said.reason is not None:
                return
    finally:
        job.left.set()


async def _events(name: str, first: Said, news: AsyncGenerator[Said], usage: bool) -> AsyncIterator[str]:
    stream, said = wire.Stream(name), first
    async with aclosing(news):
        yield _event(stream.chunk({"role": "assistant", "content": ""}))
        while True:
            if said.text:
                yield _event(stream.chunk({"content": said.text}))
            if said.reason is not None:
                break
            if (following := await anext(news, None)) is None:  # the client has gone
                return
            said = following
        yield _event(stream.chunk({}, said.reason))
        if usage:
            yield _event(stream.used(said.prompt_tokens, said.tokens))
        yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"

"""`gtl explore`: a page on this machine to type a prompt and see what a cell makes of it, beside another run.

It is served to this machine alone: bound to loopback, asked by no other name than its own (a page elsewhere cannot be
turned into one), and drawn from no network. Starlette and uvicorn serve it, which the pipeline has: gradio wants older
releases of pillow and tomlkit than the pipeline's, and calls home.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from gtl_lightning.errors import UserError
from gtl_lightning.fields import LARGEST_SEED, STRONGEST
from gtl_lightning.report.document import PAGES
from gtl_lightning.stages.trace import other_cell, plan_beside, run_name, settings_of, traced
from gtl_lightning.workspace.browser import show
from gtl_lightning.workspace.options import SOURCE_METHOD, SampleRequest
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import Cell, log
from gtl_lightning.workspace.plan import Plan, plan
from gtl_lightning.workspace.sampler import Sampler
from gtl_lightning.workspace.selection import chosen_setting
from gtl_lightning.workspace.text import decode_all

HOST = "127.0.0.1"
PAGE = Path("trace")
"""What shows two runs, to the sampler's request; it is served, not written."""
MOST_TEXTS = 8
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Nothing is loaded from anywhere, nothing is kept, and no other page frames this one."""


class ExploreRequest(BaseModel):
    """What the page asks for; empty is left to validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str = Field("", max_length=10_000)
    gamma: float | None = Field(None, ge=0, le=STRONGEST)
    temperature: float | None = Field(None, ge=0, le=STRONGEST)
    length: int | None = Field(None, ge=1)
    count: int = Field(3, ge=1, le=MOST_TEXTS)
    seed: int = Field(0, ge=0, le=LARGEST_SEED)


@dataclass(frozen=True)
class Explorer:
    """A cell, and what stands beside it, both open; one request is served at a time.

    Attributes:
        params: sampler settings.
        cell: that is explored.
        sampler: its.
        other: method beside it; None for the cell's own denoiser without its ratio.
        beside: sampler of the other.
    """

    params: Params
    cell: Cell
    sampler: Sampler
    other: str | None
    beside: Sampler | None
    turn: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, params: Params, cell: Cell, other: str | None) -> Explorer:
        """Load both.

        Raises:
            UserError: one of them is not there; nothing stands beside the source unless it is named.
        """
        sampler = Sampler.open(params, cell)
        if other is None and sampler.guidance is None:
            if cell.method == SOURCE_METHOD:
                raise UserError(f"{cell.name} is the source itself; give the cell to see beside it: gtl-0.05-0")
            other = SOURCE_METHOD
        beside = None if other is None else Sampler.open(params, other_cell(cell, other))
        return cls(params, cell, sampler, other, beside)

    def request(self, asked: ExploreRequest) -> SampleRequest:
        """In the sampler's terms."""
        return SampleRequest(
            count=asked.count,
            length=asked.length,
            gamma=asked.gamma if self.sampler.guidance is not None else None,
            temperature=asked.temperature,
            prompt=asked.prompt.strip() or None,
            seed=asked.seed,
            trace=PAGE,
            beside=self.other,
        )

    def plans(self, asked: ExploreRequest) -> list[tuple[str, Plan]]:
        """The run beside the cell's, and the cell's own, by name.

        Raises:
            UserError: a prompt or a length that does not fit.
        """
        request = self.request(asked)
        own = plan(self.params, self.sampler, self.cell, request)
        beside = plan_beside(self.params, self.cell, request, own, self.beside)
        return [*([beside] if beside else []), (run_name(self.cell), own)]

    def texts(self, asked: ExploreRequest) -> list[dict[str, Any]]:
        """Of each run its name, its settings in a line, and its texts."""
        with self.turn:
            return [
                {"name": name, "note": settings_of(planned), "texts": decode_all(planned.draw())}
                for name, planned in self.plans(asked)
            ]

    def trace(self, asked: ExploreRequest) -> str:
        """The page of how the same texts come about."""
        with self.turn:
            return traced(self.params, self.cell, self.request(asked), self.sampler, self.beside)

    def page(self) -> str:
        """HTML with what validation chose as what is asked first."""
        setting = chosen_setting(self.params, self.cell, self.sampler.root)
        return PAGES.get_template("explore.html").render(
            title=f"Explore {run_name(self.cell)}",
            gamma=setting.gamma,
            temperature=setting.temperature,
            longest=self.sampler.corpus.length,
            most=MOST_TEXTS,
        )


def application(explorer: Explorer) -> Starlette:
    """What is served: the page, `/texts` as JSON, `/trace` as a page."""

    async def page(request: Request) -> Response:
        return HTMLResponse(explorer.page(), headers=HEADERS)

    async def texts(request: Request) -> Response:
        return await _answered(request, lambda asked: JSONResponse({"runs": explorer.texts(asked)}, headers=HEADERS))

    async def trace(request: Request) -> Response:
        return await _answered(request, lambda asked: HTMLResponse(explorer.trace(asked), headers=HEADERS))

    async def icon(request: Request) -> Response:
        return Response(status_code=204, headers=HEADERS)

    served = {"/": page, "/texts": texts, "/trace": trace, "/favicon.ico": icon}
    only = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    return Starlette(routes=[Route(path, answer) for path, answer in served.items()], middleware=[only])


async def _answered(request: Request, answer: Callable[[ExploreRequest], Response]) -> Response:
    """What is asked for in the address, answered off the loop; what cannot be is one line."""
    given = {name: value for name, value in request.query_params.items() if value != ""}
    try:
        return await run_in_threadpool(answer, ExploreRequest.model_validate(given))
    except ValidationError as error:
        first = error.errors()[0]
        line = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except UserError as error:
        line = str(error).replace("--", "")  # options of the command line, fields here
    return JSONResponse({"error": line}, 400, headers=HEADERS)


def explore_cell(params: Params, cell: Cell, other: str | None, port: int, browser: bool) -> None:
    """Serve a cell's page on loopback until Ctrl-C.

    Args:
        params: of the workspace.
        cell: that is explored.
        other: method beside it, at the same share and repetition; None: the cell unguided, or the source.
        port: 0 takes a free one.
        browser: whether one is opened.

    Raises:
        UserError: a cell that is not there, or a port that is taken.
    """
    import uvicorn

    explorer = Explorer.open(params, cell, other)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
            listening.listen()  # who reads the line below is waited for, not turned away
        except (OSError, OverflowError) as error:
            raise UserError(f"--port {port} cannot be served ({error}); give another, or 0 for a free one") from error
        address = f"http://{HOST}:{listening.getsockname()[1]}"
        log.info("%s: %s and what stands beside it; Ctrl-C ends it", address, cell)
        server = uvicorn.Server(uvicorn.Config(application(explorer), log_level="warning", lifespan="off"))
        if browser:
            threading.Timer(0.5, show, [address]).start()
        with suppress(KeyboardInterrupt):  # it has ended in order then
            server.run(sockets=[listening])

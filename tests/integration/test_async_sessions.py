"""A session of aiohttp that an async hook opens: it serves all tasks of its worker, and is closed there."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections import Counter

import pytest
from aiohttp import web
from support.waiting import wait_until

pytestmark = pytest.mark.any_broker

APP = """
import os
import aiohttp
from flask import Flask
from flask_backend import Backend, current_job
from flask_backend.signals import worker_stopping

app = Flask(__name__)
backend = Backend(app)

@backend.before_first_task("q")
async def connect():
    app.extensions["http"] = aiohttp.ClientSession()

@backend.task("q", time_limit=0.5)
async def fetch(url):
    async with app.extensions["http"].get(url, headers={"Worker": str(os.getpid())}) as answer:
        await answer.read()

@worker_stopping.connect_via(app)
async def disconnect(sender, **facts):
    await app.extensions["http"].close()
    print("disconnected", flush=True)
"""


class Server:
    """An HTTP server that knows the connections, and which worker used them how often."""

    def __init__(self):
        self.requests = Counter()
        self.open = set()
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))

    async def _run(self):
        application = web.Application()
        application.router.add_get("/", self._answer)
        application.router.add_get("/never", self._never)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._stop = asyncio.Event()
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _answer(self, request):
        connection = (request.headers["Worker"], request.transport.get_extra_info("peername")[1])
        self.requests[connection] += 1
        self.open.add(request.transport)
        return web.Response(text="hello")

    async def _never(self, _request):
        await self._stop.wait()
        return web.Response()

    def __enter__(self):
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()


def test_it_serves_all_tasks_of_its_worker_and_is_closed_there(command, tmp_path, broker):
    (tmp_path / "fetching.py").write_text(APP)
    with Server() as server:
        running = command("supervise", "--workers", "2", app="fetching")
        running.wait_for_log("ready: q=2")

        def fetch(path=""):
            broker.put("q", json.dumps({"endpoint": "fetch", "args": [f"{server.url}/{path}"]}).encode())

        for _ in range(30):
            fetch()
        wait_until(lambda: server.requests.total() == 30, "all tasks have run")
        assert len(server.requests) == len({worker for worker, _ in server.requests})  # one connection a worker
        fetch("never")
        running.wait_for_log("TaskTimeout")
        for _ in range(30):
            fetch()
        wait_until(lambda: server.requests.total() == 60, "the session is usable after a cancelled request")
        running.send(signal.SIGTERM)
        assert running.wait() == 0
        assert running.log.count("disconnected") == 2
        assert "Unclosed" not in running.log
        wait_until(lambda: all(transport.is_closing() for transport in server.open), "the connections are closed")

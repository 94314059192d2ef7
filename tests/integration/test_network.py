# SPDX-License-Identifier: BSD-3-Clause
"""Networks that go away without a word: connections look as if they stood, and nobody answers."""
import asyncio
import contextlib
import json
import os
import subprocess
import threading

import pytest
from conftest import wait_for
from hub import TIMEOUT, Engines

phalanx = pytest.importorskip("phalanx")
pytestmark = pytest.mark.usefixtures("no_leftovers")


class Link:
    """A network between a controller and who uses `file`, a copy of its connection file with the ports
    of this process. While it is away nobody answers there; what had been connected before passes
    nothing on from then on, with the network back, either, as TCP repeats ever more rarely."""

    def __init__(self, source, file):
        self.there = asyncio.Event()
        self.thawed = asyncio.Event()
        self.outages = 0
        self.ports = {}  # here: there
        self.servers, self.pumps = [], set()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        connection = json.loads(source.read_text())
        connection.pop("px_local", None)
        for key, value in connection.items():
            if isinstance(value, list) and key == "broadcast":
                connection[key] = [self.call(self.serve(port)) for port in value]
            elif isinstance(value, int):
                connection[key] = self.call(self.serve(value))
        file.write_text(json.dumps(connection))
        file.chmod(0o600)
        self.file = file
        self.loop.call_soon_threadsafe(self.there.set)

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(TIMEOUT)

    async def serve(self, there, here=0):
        server = await asyncio.start_server(lambda *ends: self.join(there, *ends), "127.0.0.1", here)
        self.servers.append(server)
        here = server.sockets[0].getsockname()[1]
        self.ports[here] = there
        return here

    async def join(self, port, reader, writer):
        farther, away = await asyncio.open_connection("127.0.0.1", port)
        for ends in ((reader, away), (farther, writer)):
            pump = asyncio.ensure_future(self.pump(*ends, self.outages))
            self.pumps.add(pump)
            pump.add_done_callback(self.pumps.discard)

    async def pump(self, reader, writer, outages):
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if self.outages != outages:
                    await self.thawed.wait()
                writer.write(data)
                await writer.drain()
        await self.there.wait()  # till then nobody hears of its end
        writer.transport.abort()

    async def leave(self):
        self.outages += 1
        self.there.clear()
        self.thawed.clear()
        for server in self.servers:
            server.close()
        self.servers.clear()

    async def come_back(self):
        for here, there in self.ports.items():
            await self.serve(there, here)
        self.there.set()

    def go_away(self):
        self.call(self.leave())

    def be_back(self):
        self.call(self.come_back())

    def repeat(self):
        """What TCP has not got through until now goes through."""
        self.loop.call_soon_threadsafe(self.thawed.set)

    def close(self):
        async def end():
            for server in self.servers:
                server.close()
            for pump in list(self.pumps):
                pump.cancel()
            await asyncio.gather(*self.pumps, return_exceptions=True)
        self.call(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(TIMEOUT)


@pytest.fixture
def security(px_bin, env, ipython_dir):
    """security(*options): starts a controller; the directory of its connection files."""
    running = []

    def controller(*options):
        directory = ipython_dir / "profile_default" / "security"
        with open(ipython_dir / "controller.log", "w") as log:
            running.append(subprocess.Popen([px_bin / "pxcontroller", *options], env=env, stdout=log,
                                            stderr=log, stdin=subprocess.DEVNULL))
        wait_for((directory / "ipcontroller-client.json").exists, what="the connection files")
        return directory

    yield controller
    for process in running:
        process.terminate()
        process.wait(TIMEOUT)


@pytest.fixture
def link(tmp_path):
    links = []

    def make(source):
        links.append(Link(source, tmp_path / f"link-{len(links)}.json"))
        return links[-1]

    yield make
    for made in links:
        made.close()


@pytest.fixture
def engine(env):
    """engine(link): starts one behind it; (Engines, its pid)."""
    started = []

    def start(link):
        started.append(Engines(env, [f"--file={link.file}", "--log-to-file"]))
        return started[-1], started[-1].registered()[1]

    yield start
    for engines in started:
        engines.process.terminate()
        engines.end()
        engines.ready.close()


def engines_log(ipython_dir):
    return "".join(log.read_text() for log in ipython_dir.glob("profile_default/log/ipengine-*.log"))


def connect(file, engines=1):
    rc = phalanx.Client(str(file))
    rc.wait_for_engines(engines, timeout=TIMEOUT)
    return rc


@pytest.mark.parametrize("curve", [False, True], ids=["plain", "curve"])
def test_an_engine_that_was_given_up_is_back_with_the_network(security, link, engine, curve, tmp_path):
    """Not when TCP repeats on what had been connected before: all of it is connected anew."""
    files = security("--ping=300", "--HeartMonitor.max_heartmonitor_misses=8",
                     *["--enable-curve"] * curve)
    away = link(files / "ipcontroller-engine.json")
    engines, pid = engine(away)
    rc = connect(files / "ipcontroller-client.json")
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)
    lost = rc[0].apply_async(lambda gate: open(gate).close(), gate)
    away.go_away()
    wait_for(lambda: rc.ids == [], what="its unregistration")
    writer = os.open(gate, os.O_RDWR)  # which lets it go on
    with pytest.raises(phalanx.RemoteError):
        lost.get(TIMEOUT)
    away.be_back()
    wait_for(lambda: rc.ids, 15, "its return")
    assert engines.registered() == (rc.ids[0], pid)
    view = rc[rc.ids[0]]
    assert view.apply_async(os.getpid).get(15) == pid
    assert rc.load_balanced_view().map_async(abs, [-1] * 20).get(15) == [1] * 20
    said = view.execute("print('here')")
    said.get(15)
    assert said.stdout == "here\n"
    rc.clear(block=True)
    rc.close()
    os.close(writer)


def test_an_engine_that_is_silent_for_a_while_is_not_given_up(security, link, engine, ipython_dir):
    """Its heart connects anew; what is under way to it is left to TCP."""
    files = security("--ping=300", "--HeartMonitor.max_heartmonitor_misses=40")
    away = link(files / "ipcontroller-engine.json")
    _, pid = engine(away)
    rc = connect(files / "ipcontroller-client.json")
    assert rc[0].apply_sync(os.getpid) == pid
    away.go_away()
    late = rc[0].apply_async(os.getpid)
    wait_for(lambda: "hub.lost" in engines_log(ipython_dir), 15, "the end of its heart's connection")
    away.be_back()
    wait_for(lambda: "hub.back" in engines_log(ipython_dir), 15, "another")
    assert not late.ready()
    away.repeat()
    assert late.get(15) == pid and rc.ids == [0]
    assert "engine-unregistered" not in (ipython_dir / "controller.log").read_text()
    rc.close()


def test_a_client_is_back_with_the_network(security, link, engine):
    files = security()
    _, pid = engine(link(files / "ipcontroller-engine.json"))
    away = link(files / "ipcontroller-client.json")
    rc = connect(away.file)
    assert rc[0].apply_sync(os.getpid) == pid
    away.go_away()
    with pytest.raises(phalanx.RemoteError, match="not answered for 30 s"):
        rc[0].apply_async(os.getpid).get(TIMEOUT + 30)
    away.be_back()
    assert rc[0].apply_async(os.getpid).get(15) == pid
    assert rc.load_balanced_view().map_async(abs, [-1] * 20).get(15) == [1] * 20
    assert rc.broadcast_view().apply_async(os.getpid).get(15) == [pid]
    said = rc[0].execute("print('here')")
    said.get(15)
    assert said.stdout == "here\n"
    rc.close()

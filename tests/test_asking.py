"""A validator among strangers: each misbehaving server costs its waiting time and nothing else."""
import asyncio
import gzip
import threading
import time

import pytest

from omega_lab.chain import Neuron, dev_wallet, sign_response
from omega_lab.chain.auth import exchange_of
from omega_lab.protocol import VIDEOS_PATH, VideoRequest, VideoResponse
from omega_lab.validator.ask import ask_all

REQUEST = VideoRequest(query="anything", num_videos=2)
GOOD = VideoResponse(encoder="toy@1", video_metadata=[]).model_dump_json().encode()
LIMIT, SECONDS = 100_000, 2.0


def head(length, status="200 OK", more=""):
    return f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{more}\r\n".encode()


async def honest(reader, writer):
    sent = {name.lower(): value for name, value in (line.split(": ", 1) for line in reader.asked.decode().split("\r\n")[1:] if line)}
    question = await reader.readexactly(int(sent["content-length"]))
    signed = sign_response(dev_wallet("//Miner0").hotkey, exchange_of(sent, "POST", VIDEOS_PATH, question, GOOD))
    writer.write(head(len(GOOD), more="".join(f"{name}: {value}\r\n" for name, value in signed.items())) + GOOD)


async def unsigned(reader, writer):
    writer.write(head(len(GOOD)) + GOOD)


async def packed(reader, writer):
    bomb = gzip.compress(bytes(10_000_000))  # under the limit as it comes, a hundred times over it unpacked
    writer.write(head(len(bomb), more="content-encoding: gzip\r\n") + bomb)


async def hangs(reader, writer):
    await asyncio.sleep(60)


async def drips(reader, writer):
    writer.write(head(50_000))
    for _ in range(600):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.1)


async def promises_more(reader, writer):
    writer.write(head(10**9) + GOOD)


async def floods(reader, writer):
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    for _ in range(2000):
        writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        await writer.drain()


async def speaks_no_http(reader, writer):
    writer.write(b"\x16\x03\x01 hello\r\n\r\n")


async def dies(reader, writer):
    writer.write(head(1000) + b"{")
    writer.transport.abort()


async def redirects(reader, writer):
    writer.write(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n")


async def fails(reader, writer):
    writer.write(head(4, "500 Oops") + b"oops")


EXPECTED = {honest: "answered", unsigned: "unsigned", packed: "refused", hangs: "timeout", drips: "timeout", promises_more: "no answer", floods: "oversized",
            speaks_no_http: "no answer", dies: "no answer", redirects: "refused", fails: "refused"}


@pytest.fixture(scope="module")
def miners():
    """One loopback server per behaviour, in a thread of its own."""
    loop, ports, servers = asyncio.new_event_loop(), {}, []

    def handler(behave):
        async def handle(reader, writer):
            try:
                reader.asked = await reader.readuntil(b"\r\n\r\n")
                await behave(reader, writer)
                await writer.drain()
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass  # the validator hung up: that is what is tested
            finally:
                writer.close()
        return handle

    async def start():
        for behave in EXPECTED:
            server = await asyncio.start_server(handler(behave), "127.0.0.1", 0)
            servers.append(server)
            ports[behave] = server.sockets[0].getsockname()[1]

    async def stop():
        for server in servers:
            server.close()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield ports
    asyncio.run_coroutine_threadsafe(stop(), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


def neuron(uid, port):
    hotkey = dev_wallet(f"//Miner{uid}").hotkey.ss58_address
    return Neuron(uid=uid, hotkey=hotkey, coldkey=hotkey, stake_rao=0, validator_permit=False, url=f"http://127.0.0.1:{port}",
                  last_update=0, incentive=0.0)


def test_each_stranger_costs_its_own_time_only(miners):
    asked = [neuron(uid, port) for uid, port in enumerate(miners.values())] + [neuron(99, 1)]  # nobody listens on port 1
    began = time.monotonic()
    answers = asyncio.run(ask_all(asked, REQUEST, dev_wallet("//Validator").hotkey, SECONDS, LIMIT))
    assert time.monotonic() - began < SECONDS + 3
    status = {a.miner.uid: a.status for a in answers}
    wanted = {uid: EXPECTED[behave] for uid, behave in enumerate(miners)} | {99: "no answer"}
    assert status == wanted
    assert [a.received_at for a in answers] == sorted(a.received_at for a in answers)
    assert all(a.detail for a in answers if a.status != "answered")


def test_an_impossible_address_is_no_answer():
    broken = Neuron(uid=1, hotkey=dev_wallet("//M").hotkey.ss58_address, coldkey="", stake_rao=0, validator_permit=False,
                    url="http://[::bad", last_update=0, incentive=0.0)
    answer, = asyncio.run(ask_all([broken], REQUEST, dev_wallet("//Validator").hotkey, SECONDS, LIMIT))
    assert answer.status == "no answer"

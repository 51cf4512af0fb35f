"""Checks itself: threads, asyncio with its socket pair and epoll, signals; numpy where it is. The rounds end after SIGTERM."""
import asyncio
import hashlib
import os
import queue
import signal
import threading
import time

try:
    import numpy
except ImportError:
    numpy = None


def fail(what):
    print("fail", what, flush=True)
    os._exit(1)


tasks, results, heard, told = queue.Queue(), queue.Queue(), [], []
local = threading.local()


def work(number):
    local.number = number
    while True:
        n = tasks.get()
        if local.number != number:
            fail("a thread's own")
        results.put((n, hashlib.sha256(b"x" * n).hexdigest()))
        time.sleep(0.001)


async def main():
    pid, last = os.getpid(), time.monotonic()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, lambda: heard.append(1))
    loop.add_signal_handler(signal.SIGTERM, lambda: told.append(1))
    for i in range(6):
        threading.Thread(target=work, args=(i,), daemon=True).start()
    ours, theirs = os.pipe()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ours, "rb"))
    matrix = numpy.random.default_rng(7).random((300, 300)) if numpy is not None else None
    product = (matrix @ matrix) if numpy is not None else None
    n = -1
    while not told:
        n += 1
        print("round", n, flush=True)
        for i in range(50):
            tasks.put(i)
        got = dict([await loop.run_in_executor(None, results.get) for _ in range(50)])
        if any(got[i] != hashlib.sha256(b"x" * i).hexdigest() for i in range(50)):
            fail("the threads")
        os.write(theirs, b"line %d\n" % n)
        if await reader.readline() != b"line %d\n" % n:
            fail("the pipe")
        os.kill(pid, signal.SIGUSR1)
        while len(heard) <= n:
            await asyncio.sleep(0.002)
        if numpy is not None and not numpy.allclose(matrix @ matrix, product):
            fail("numpy")
        now = time.monotonic()
        if now < last or now - last > 20 or os.getpid() != pid:
            fail("clock or pid")
        last = now
        await asyncio.sleep(0.02)
    print("done", flush=True)
    os._exit(42)


asyncio.run(main())

"""A hostile agent that uses up whatever it can get, in one way. Prints `ARMED` first, then what it got at last.

Arguments: the kind of bomb.
"""

import os
import sys
import threading
import time

KIND = sys.argv[1]
print("ARMED", KIND, flush=True)


def fork():
    made = 0
    while True:
        try:
            if os.fork() == 0:
                time.sleep(1000)
            made += 1
        except OSError as error:
            print("LIMIT", KIND, made, error, flush=True)
            time.sleep(0.5)


def threads():
    made = 0
    while True:
        try:
            threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
            made += 1
        except (RuntimeError, MemoryError) as error:
            print("LIMIT", KIND, made, error, flush=True)
            time.sleep(0.5)


def memory():
    hoard = []
    while True:
        hoard.append(b"x" * (8 << 20))


def fill(folder):
    written = 0
    block = os.urandom(1 << 20)
    n = 0
    while True:
        try:
            with open(f"{folder}/bomb-{n}", "wb") as file:
                for _ in range(16):
                    file.write(block)
                    file.flush()
                    written += 1
            n += 1
        except OSError as error:
            print("LIMIT", KIND, written, error, flush=True)
            time.sleep(0.5)


def inodes():
    n = 0
    while True:
        folder = f"many/{n // 1000}"
        os.makedirs(folder, exist_ok=True)
        open(f"{folder}/{n}", "w").close()
        n += 1


def log():
    line = "x" * 4000
    while True:
        print(line)


def cpu():
    for _ in range(16):
        if os.fork() == 0:
            break
    while True:
        pass


def descriptors():
    held = []
    while True:
        try:
            held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError as error:
            print("LIMIT", KIND, len(held), error, flush=True)
            time.sleep(0.5)


def pipes():
    held = []
    while True:
        try:
            reads, writes = os.pipe()
            os.set_blocking(writes, False)
            held.append((reads, writes))
            try:
                while True:
                    os.write(writes, b"x" * 65536)
            except BlockingIOError:
                pass
        except OSError as error:
            print("LIMIT", KIND, len(held), error, flush=True)
            time.sleep(0.5)


def sessions():
    """Processes that leave their group and session, so that a kill of the group misses them."""
    for _ in range(30):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                while True:
                    time.sleep(1)
            os._exit(0)
    print("LIMIT", KIND, 30, "detached", flush=True)
    time.sleep(1000)


{
    "fork": fork, "threads": threads, "memory": memory, "tmp": lambda: fill("/tmp"), "shm": lambda: fill("/dev/shm"),
    "disk": lambda: fill("."), "inodes": inodes, "log": log, "cpu": cpu, "descriptors": descriptors, "pipes": pipes,
    "sessions": sessions,
}[KIND]()

"""RQ jobs that do nothing, by one worker that forks for each. Arguments: port of Redis, jobs.

Prints the milliseconds from the first job added to the last one done."""

import logging
import sys
import time

from redis import Redis
from rq import Queue, Worker

port, jobs = int(sys.argv[1]), int(sys.argv[2])
connection = Redis(port=port)
queue = Queue(connection=connection)
logging.disable(logging.CRITICAL)
first = time.monotonic()
for _ in range(jobs):
    queue.enqueue("time.sleep", 0)
Worker([queue], connection=connection).work(burst=True)
print((time.monotonic() - first) * 1000)
assert queue.finished_job_registry.count == jobs, queue.failed_job_registry.count

"""`rq_peer.py URL SECONDS`: works off about that long a backlog of jobs of 1 KiB, and tells jobs and seconds, putting them into
an empty Redis included.

At its best: all jobs in one pipeline, and the worker that forks for none of them.
"""

import sys
import time

from redis import Redis
from rq import Queue, SimpleWorker

import tasks


def cycle(connection, jobs):
    """The seconds that so many jobs take."""
    queue = Queue("bench", connection=connection)
    began = time.perf_counter()
    queue.enqueue_many([Queue.prepare_data(tasks.handle, [tasks.PAYLOAD]) for _ in range(jobs)])
    SimpleWorker([queue], connection=connection).work(burst=True, logging_level="ERROR")
    ended = time.perf_counter()
    left = len(queue) + len(queue.failed_job_registry)
    if left:
        sys.exit(f"{left} jobs are left or failed")
    return ended - began


def main(url, seconds):
    connection = Redis.from_url(url)
    took = cycle(connection, tasks.FIRST)
    jobs = tasks.enough(took, seconds)
    print(jobs, cycle(connection, jobs))


main(sys.argv[1], float(sys.argv[2]))

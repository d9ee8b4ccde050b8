"""`celery_peer.py SECONDS LIMIT_S`: has a prefork worker of two work off jobs of 1 KiB for about that long, and tells jobs and
seconds. Redis is the one that the variable QUEUE_PEER_URL names; it is empty.

Late acknowledgement and a prefetch of one, as whoever must lose nothing sets them. Jobs are pushed while the worker works.
"""

import os
import signal
import subprocess
import sys
import time

from celery import Celery
from redis import Redis

import tasks

URL = os.environ["QUEUE_PEER_URL"]
START_LIMIT = 60.0

app = Celery("celery_peer", broker=URL)
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
)


@app.task
def handle(payload):
    return tasks.handle(payload)


def cycle(redis, jobs, limit):
    """The seconds that so many jobs take."""
    began = time.perf_counter()
    for _ in range(jobs):
        handle.delay(tasks.PAYLOAD)
    return drained(redis, limit) - began


def drained(redis, limit):
    """When the queue was first seen empty, with nothing unacknowledged; it stays so for some looks, since
    the worker takes a job from the queue a moment before it notes it as unacknowledged."""
    until = time.perf_counter() + limit
    while time.perf_counter() < until:
        seen = time.perf_counter()
        if all(is_empty(redis) for _ in range(10)):
            return seen
        time.sleep(0.001)
    sys.exit(f"{redis.llen('celery')} jobs are left after {limit} s")


def is_empty(redis):
    time.sleep(0.001)
    return redis.llen("celery") == 0 and redis.hlen("unacked") == 0


def main(seconds, limit):
    redis = Redis.from_url(URL)
    options = ["--pool=prefork", "--concurrency=2", "--loglevel=ERROR", "--without-gossip", "--without-mingle"]
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "celery_peer", "worker", *options],
        cwd=os.path.dirname(os.path.abspath(__file__)),
        stdout=subprocess.DEVNULL,
    )
    try:
        cycle(redis, 1, START_LIMIT)
        jobs = tasks.enough(cycle(redis, tasks.FIRST, limit), seconds)
        print(jobs, cycle(redis, jobs, limit))
    finally:
        worker.send_signal(signal.SIGQUIT)  # nothing is left that it should finish
        worker.wait(30)


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]))

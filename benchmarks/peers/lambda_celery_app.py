"""Five tasks of a Celery app on SQS."""

from __future__ import annotations

from celery import Celery
from kombu.transport import SQS

app = Celery("cold", broker="sqs://")
assert SQS.Transport


@app.task
def add(x, y):
    return x + y


@app.task
def greet(name):
    return f"hello {name}"


@app.task
def total(numbers):
    return sum(numbers)


@app.task
def describe(fields):
    return sorted(fields)


@app.task
def ping():
    return "pong"


app.finalize()

"""Five tasks of a Celery app on SQS."""

from __future__ import annotations

from celery import Celery
from kombu.transport import SQS

app = Celery("cold", broker="sqs://")
assert SQS.Transport


@app.task
def add(x, y):  # noqa: ANN001, ANN201
    return x + y


@app.task
def greet(name):  # noqa: ANN001, ANN201
    return f"hello {name}"


@app.task
def total(numbers):  # noqa: ANN001, ANN201
    return sum(numbers)


@app.task
def describe(fields):  # noqa: ANN001, ANN201
    return sorted(fields)


@app.task
def ping():  # noqa: ANN201
    return "pong"


app.finalize()

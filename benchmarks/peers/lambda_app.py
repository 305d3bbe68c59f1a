"""Five tasks of plain JSON types."""

from __future__ import annotations

from cloudq import CloudQ

app = CloudQ("cold")


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
async def aadd(x: int, y: int) -> int:
    return x + y


@app.task
def greet(name: str) -> str:
    return f"hello {name}"


@app.task
def total(numbers: list[float]) -> float:
    return sum(numbers)


@app.task
def describe(fields: dict[str, str]) -> list[str]:
    return sorted(fields)

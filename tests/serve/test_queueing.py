"""Who runs when, and together with whom; no server in here."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poolexport.errors import RequestError
from poolexport.serve.check import facts
from poolexport.serve.config import Limits, Settings
from poolexport.serve.model import Model, open_model
from poolexport.serve.queueing import Engine


@pytest.fixture(scope="module")
def soft(bundles: Path) -> Model:
    """A model that may be batched, and is never quick."""
    found = dataclasses.replace(facts(bundles / "soft"), steady=False)
    return open_model("soft", "1", found, Settings(limits=Limits(batch=8)), together=10**6)


@pytest.fixture(scope="module")
def slow(bundles: Path) -> Model:
    return open_model("slow", "1", facts(bundles / "slow.onnx"), Settings(), together=0)


def images(seed: int, rows: int = 1, size: int = 9) -> dict[str, np.ndarray]:
    return {"input": np.random.default_rng(seed).standard_normal((rows, 3, size, size)).astype(np.float32)}


def settings(**changes: Any) -> Settings:
    return Settings(slots=1, limits=Limits(**{"queue": 16, "run_seconds": 5, **changes}))


def run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def test_requests_that_wait_are_run_together_and_each_gets_its_own(soft, slow):
    feeds = [
        images(seed, rows, size) for seed, (rows, size) in enumerate([(1, 9), (2, 9), (1, 12), (3, 9), (4, 9), (1, 9)])
    ]
    alone = [soft.run(feed)[0] for feed in feeds]
    before = soft.meter.runs

    async def ask() -> list[np.ndarray]:
        engine = Engine(settings())
        first = asyncio.create_task(engine.infer(slow, {"n": np.array([20])}, ["y"]))
        await asyncio.sleep(0)
        answers = await asyncio.gather(*(engine.infer(soft, feed, ["y"]) for feed in feeds))
        await first
        assert engine.idle
        engine.close()
        return [answer for (answer,), _ in answers]

    for got, wanted in zip(run(ask()), alone, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7)
    # 1 + 2 + 3 + 1 of at most 8 rows, the other size, and the 4 that found no room
    assert soft.meter.runs - before == 3


@pytest.mark.parametrize(
    ("chosen", "images_together"),
    [(Settings(), 2), (Settings(batch_rows=2), 10**3)],
    ids=["as much as was measured to pay", "as many rows as were chosen"],
)
def test_no_more_is_run_together(bundles, chosen, images_together):
    found = dataclasses.replace(facts(bundles / "soft"), steady=False)
    model = open_model("soft", "1", found, chosen, together=images_together * images(0)["input"].size)

    async def ask() -> None:
        engine = Engine(settings())
        await asyncio.gather(*(engine.infer(model, images(seed), ["y"]) for seed in range(5)))
        engine.close()

    run(ask())
    assert model.meter.runs == 3


def test_a_delay_lets_others_come(soft):
    async def ask() -> None:
        engine = Engine(dataclasses.replace(settings(), batch_delay=0.2))
        late = asyncio.get_running_loop().create_future()

        async def later() -> None:
            await asyncio.sleep(0.05)
            late.set_result(await engine.infer(soft, images(1), ["y"]))

        started = time.perf_counter()
        other = asyncio.create_task(later())
        await engine.infer(soft, images(0), ["y"])
        await other
        assert 0.15 < time.perf_counter() - started < 8
        engine.close()

    before = soft.meter.runs
    run(ask())
    assert soft.meter.runs - before == 1


def test_one_bad_request_does_not_spoil_its_neighbours(soft, slow):
    async def ask() -> list[Any]:
        engine = Engine(settings())
        first = asyncio.create_task(engine.infer(slow, {"n": np.array([20])}, ["y"]))
        await asyncio.sleep(0)
        feeds = [images(0, size=2), images(1, size=2), images(2)]
        answers = await asyncio.gather(*(engine.infer(soft, feed, ["y"]) for feed in feeds), return_exceptions=True)
        await first
        engine.close()
        return answers

    bad, other, good = run(ask())
    assert isinstance(bad, RequestError)
    assert isinstance(other, RequestError)
    assert bad.status == other.status == 400
    np.testing.assert_allclose(good[0][0], soft.run(images(2))[0], rtol=1e-6)


def test_the_queue_is_bounded_and_deadlines_hold(slow):
    async def ask() -> list[Any]:
        engine = Engine(settings(queue=2, run_seconds=0.3))
        asked = [asyncio.create_task(engine.infer(slow, {"n": np.array([10**9])}, ["y"])) for _ in range(5)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        # the slot is free again
        await engine.infer(slow, {"n": np.array([1])}, ["y"])
        assert engine.idle
        engine.close()
        return answers

    started = time.perf_counter()
    assert [answer.status for answer in run(ask())] == [504, 504, 504, 503, 503]
    assert time.perf_counter() - started < 8


def test_who_leaves_is_forgotten(slow):
    async def ask() -> None:
        engine = Engine(settings(run_seconds=10))
        asked = [asyncio.create_task(engine.infer(slow, {"n": np.array([10**9])}, ["y"])) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert engine.waiting == 2
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        for _ in range(100):
            if not engine.idle:
                await asyncio.sleep(0.01)
        assert engine.idle
        assert engine.waiting == 0
        await engine.infer(slow, {"n": np.array([1])}, ["y"])
        engine.close()

    started = time.perf_counter()
    run(ask())
    assert time.perf_counter() - started < 8


def test_a_run_on_the_loop_that_is_slow_goes_to_the_threads_from_then_on(bundles):
    found = dataclasses.replace(facts(bundles / "slow.onnx"), steady=True, seconds=1e-6, elements=10)
    model = open_model("slow", "1", found, Settings(), together=0)
    assert model.quick({"n": np.array([300])})

    async def ask() -> None:
        engine = Engine(settings())
        await engine.infer(model, {"n": np.array([300])}, ["y"])
        with pytest.raises(RequestError) as caught:
            await engine.infer(model, {"n": np.array([10**9])}, ["y"], 0.2)
        assert caught.value.status == 504
        engine.close()

    run(ask())
    assert not model.quick({"n": np.array([1])})


def test_a_run_on_the_loop_has_a_deadline_too(bundles):
    found = dataclasses.replace(facts(bundles / "slow.onnx"), steady=True, seconds=1e-6, elements=10)
    model = open_model("slow", "1", found, Settings(), together=0)

    async def ask() -> None:
        engine = Engine(settings(run_seconds=0.3))
        with pytest.raises(RequestError) as caught:
            await engine.infer(model, {"n": np.array([10**9])}, ["y"])
        assert caught.value.status == 504
        engine.close()

    run(ask())
    assert not model.quick({"n": np.array([1])})

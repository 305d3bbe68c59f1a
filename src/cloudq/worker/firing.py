"""Fires the schedules of an app from a worker, where nobody else does."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from cloudq.errors import CloudQError

if TYPE_CHECKING:
    from cloudq.app import CloudQ
    from cloudq.recurring import Recurring

logger = logging.getLogger("cloudq.worker")


async def to_fire(app: CloudQ, *, wanted: bool) -> list[Recurring]:
    """The schedules that this worker is to ``fire``; a timer in this process is given them, and those of a cloud's are there.

    ``wanted``: it was told to fire what nobody else does.
    """
    declared = list(app.schedules.values())
    timer = app.timer if declared else None
    if timer is not None and timer.limits.local:
        for each in declared:
            await timer.put_schedule(each.schedule(app))
    elif timer is None and wanted:
        return declared
    elif timer is None and declared:
        advice = "set CLOUDQ_TIMER, and run `cloudq schedule sync`, or have one worker do it by --schedules"
        logger.warning("no timer fires the schedules (%d), nor does this worker: %s", len(declared), advice)
    return []


async def fire(app: CloudQ, recurring: Recurring) -> None:
    """Send a schedule's ticks at their time, each once, also where the clock is set back a little or the sleep ends early."""
    after = app.clock.time()
    while (slot := recurring.trigger.next_after(after)) is not None:
        await app.clock.sleep(max(0.0, slot - app.clock.time()))
        try:
            await app.sender.asend(recurring.queue(app), recurring.tick(app, int(slot)), recurring.id(int(slot)))
        except (CloudQError, TimeoutError) as error:
            logger.error("schedule %r could not be fired: %s", recurring.name, error)
        except Exception:
            logger.exception("schedule %r could not be fired, for an unforeseen reason", recurring.name)
        after = max(slot, app.clock.time())

"""The conformance suites: plain pytest classes that say what a broker, a store or a timer driver must do."""

from cloudq.testing.broker import BrokerConformance
from cloudq.testing.store import StoreConformance
from cloudq.testing.timer import TimerConformance

__all__ = ["BrokerConformance", "StoreConformance", "TimerConformance"]

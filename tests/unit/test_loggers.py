from __future__ import annotations

import logging
import logging.config
import signal
import time
from contextlib import contextmanager

import pytest

from flask_backend.system import loggers
from flask_backend.system.loggers import Delivery, get_logger

NAME = "flask_backend.test"


@pytest.fixture
def logger():
    return get_logger(NAME)


@pytest.fixture(autouse=True)
def _keep_logging_as_it_is():
    root = logging.getLogger()
    loggers = [root, *(each for each in root.manager.loggerDict.values() if isinstance(each, logging.Logger))]
    state = [(each, each.level, each.disabled, each.propagate, each.handlers[:]) for each in loggers]
    yield
    logging.disable(logging.NOTSET)
    logging.getLogger("flask_backend").setLevel(logging.NOTSET)
    for each, level, disabled, propagate, handlers in state:
        each.setLevel(level)
        each.disabled, each.propagate, each.handlers[:] = disabled, propagate, handlers


class List(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record):
        self.messages.append(record.getMessage())


class Failing(List):
    error: BaseException | None = ConnectionError("the chat is down")

    def emit(self, record):
        if self.error:
            raise self.error
        super().emit(record)


@contextmanager
def handlers_of(logger, *handlers):
    logger.handlers[:] = handlers
    logger.propagate = False
    yield
    logger.handlers.clear()
    logger.propagate = True


CONFIG = {"version": 1, "root": {"level": "INFO", "handlers": []}}


class TestConfiguration:
    def test_a_configuration_that_does_not_name_a_logger_of_ours_leaves_it_enabled(self, logger):
        other = logging.getLogger("another")
        logging.config.dictConfig(CONFIG)
        assert other.disabled
        assert not logger.disabled
        assert logger.isEnabledFor(logging.INFO)

    def test_the_same_with_a_configuration_file(self, logger, tmp_path):
        file = tmp_path / "logging.ini"
        file.write_text(
            "[loggers]\nkeys=root\n[handlers]\nkeys=n\n[formatters]\nkeys=\n"
            "[logger_root]\nlevel=INFO\nhandlers=n\n[handler_n]\nclass=NullHandler\nargs=()\n"
        )
        logging.config.fileConfig(file)
        assert logger.isEnabledFor(logging.INFO)

    def test_a_configuration_that_names_a_logger_decides(self, logger):
        logging.config.dictConfig(CONFIG | {"loggers": {NAME: {"level": "ERROR", "propagate": False}}})
        assert not logger.isEnabledFor(logging.WARNING)
        assert logger.isEnabledFor(logging.ERROR)
        assert not logger.propagate
        logging.config.dictConfig(CONFIG | {"loggers": {"flask_backend": {"level": "CRITICAL"}}})
        assert not logger.isEnabledFor(logging.ERROR)

    def test_a_logger_disabled_by_name_stays_disabled(self, logger):
        logging.getLogger(NAME).disabled = True
        assert not logger.isEnabledFor(logging.CRITICAL)
        logging.config.dictConfig(CONFIG | {"loggers": {NAME: {}}})
        assert logger.isEnabledFor(logging.CRITICAL)

    def test_our_loggers_stay_enabled_when_logging_is_disabled_as_a_whole(self, logger):
        logger.setLevel(logging.INFO)
        logging.disable(logging.CRITICAL)
        assert not logging.getLogger("another").isEnabledFor(logging.CRITICAL)
        assert logger.isEnabledFor(logging.INFO)

    def test_a_logger_created_by_the_app_becomes_ours(self):
        theirs = logging.getLogger(f"{NAME}.theirs")
        theirs.setLevel(logging.ERROR)
        ours = get_logger(f"{NAME}.theirs")
        assert ours is theirs
        logging.config.dictConfig(CONFIG)
        assert ours.isEnabledFor(logging.ERROR)
        assert not ours.isEnabledFor(logging.WARNING)


class TestDelivery:
    @pytest.fixture
    def delivery(self, monkeypatch):
        delivery = Delivery()
        delivery.fallback = List()
        monkeypatch.setattr(loggers, "delivery", delivery)
        # Reports go to the handlers of the test, as in an app with all handlers at the root.
        monkeypatch.setattr(loggers, "_own_logger", get_logger(NAME))
        return delivery

    def test_a_handler_that_raises_does_not_affect_the_others(self, delivery, logger):
        good = List()
        with handlers_of(logger, Failing(), good):
            logger.error("the news")
        assert good.messages == ["the log handler Failing has failed: ConnectionError: the chat is down", "the news"]
        assert delivery.fallback.messages == []

    def test_a_record_that_no_handler_takes_goes_to_the_fallback(self, delivery, logger):
        with handlers_of(logger, Failing()):
            logger.error("the news")
            logger.error("more news")
        assert delivery.fallback.messages[1:] == ["the news", "more news"]
        assert delivery.fallback.messages[0].startswith("the log handler Failing has failed: ")

    def test_a_record_that_no_handler_wants_goes_nowhere(self, delivery, logger):
        handler = List()
        handler.setLevel(logging.CRITICAL)
        with handlers_of(logger, handler):
            logger.error("the news")
        assert handler.messages == delivery.fallback.messages == []

    def test_without_a_handler_the_fallback_takes_it(self, delivery, logger):
        with handlers_of(logger):
            logger.error("the news")
        assert delivery.fallback.messages == ["the news"]

    def test_a_handler_that_works_again_gets_the_number_of_records_it_missed(self, delivery, logger):
        handler = Failing()
        with handlers_of(logger, handler):
            logger.error("one")
            logger.error("two")
            handler.error = None
            logger.error("three")
        assert handler.messages == ["three", "the log handler Failing works again; it missed 3 records"]

    def test_an_exit_passes_unless_the_process_is_protected(self, delivery, logger):
        handler = Failing()
        handler.error = SystemExit(9)
        with handlers_of(logger, handler), pytest.raises(SystemExit):
            logger.error("the news")
        delivery.protect()
        with handlers_of(logger, handler):
            logger.error("the news")

    def test_a_handler_that_takes_too_long_is_interrupted_and_gets_no_record_for_a_while(
        self, delivery, logger, monkeypatch
    ):
        class Slow(List):
            def emit(self, record):
                super().emit(record)
                time.sleep(60)

        monkeypatch.setattr(loggers, "LIMIT_S", 0.05)
        delivery.protect()
        delivery.limit()
        alarms: list[int] = []
        previous = signal.signal(signal.SIGALRM, lambda number, _: alarms.append(number))
        slow, good = Slow(), List()
        began = time.monotonic()
        with handlers_of(logger, slow, good):
            logger.error("one")
            logger.error("two")
        assert time.monotonic() - began < 10
        assert slow.messages == ["one"]
        assert good.messages[1:] == ["one", "two"]
        assert good.messages[0].startswith("the log handler Slow has failed: it took longer than 0.05 s")
        # The app's own alarm is unchanged.
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        time.sleep(0.1)
        assert alarms == [signal.SIGALRM]
        signal.signal(signal.SIGALRM, previous)

"""How many readers a real Pushpin has."""

from __future__ import annotations

import pytest
from pytest_django import Settings

from eventstream import holders
from eventstream.series import record_sample
from eventstream.status import get_status
from tests.support.processes import wait_for
from tests.support.sse import Stream
from tests.support.stack import running

pytestmark = pytest.mark.django_db(transaction=True)


def test_pushpins_readers_are_counted(settings: Settings) -> None:
    with running(with_pushpin=True, with_valkey=False, worker=False) as stack:
        assert stack.pushpin is not None
        metrics = f"http://127.0.0.1:{stack.pushpin.config.metrics_port}/metrics"
        settings.GRIP_URL = stack.pushpin.grip_url
        uri = f"http://127.0.0.1:{stack.pushpin.config.publish_port}"
        settings.EVENTSTREAM_PROXY_METRICS = {uri: metrics}
        url = f"{stack.url}/events/?channel=counted"
        with Stream(url).open(), Stream(url).open(), Stream(url).open():
            wait_for(lambda: holders.count_connected(metrics) == 3, "three are there")

            sample = record_sample("default")

        assert sample is not None
        assert [target.reader_count for target in sample.targets] == [3]
        stack.pushpin.process.stop()
        holders.report_proxies()  # no error, and the last figure for two minutes more

    assert get_status().targets[0].reader_count == 3
    assert get_status().reader_count == 0  # those of web processes

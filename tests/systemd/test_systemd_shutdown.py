"""The shutdown of a host. Before the other tests: each machine has the tree for itself."""

from __future__ import annotations

from instances import APP, Instance
from support.waiting import wait_until


def test_at_a_shutdown_the_workers_drain_before_a_local_broker_stops(boot, tmp_path):
    """The broker keeps its jobs in a file of the host, and so can be asked after the next boot."""
    tmp_path.chmod(0o777)
    for name in ("binlog", "files"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o777)
    share = f"--bind={tmp_path}:/mnt"
    app = APP.replace('os.environ.get("STATE_DIRECTORY", "/nowhere")', '"/mnt/files"')

    def prepare(machine):
        machine.path("/etc/default/beanstalkd").write_text(
            'BEANSTALKD_LISTEN_ADDR=127.0.0.1\nBEANSTALKD_LISTEN_PORT=11300\nBEANSTALKD_EXTRA="-b /mnt/binlog"\n'
        )
        machine.run("systemctl", "restart", "beanstalkd")
        instance = Instance(machine, "demo-shutdown")
        instance.release(app)
        instance.edit("ReadWritePaths=/mnt/files")
        return instance

    with boot(share) as machine:
        instance = prepare(machine)
        instance.systemctl("start")
        instance.schedule("wait('go')")
        wait_until((tmp_path / "files" / "go.started").exists, f"the task runs; {instance.describe()}")
        machine.begin_shutdown()
        wait_until(lambda: instance.show("ActiveState") == "deactivating", "the stop has begun")
        assert not (tmp_path / "files" / "go.finished").exists()
        (tmp_path / "files" / "go").touch()
        machine.wait_for_end()
    assert (tmp_path / "files" / "go.finished").exists()
    with boot(share) as machine:
        instance = prepare(machine)
        assert instance.count("ready") == 0

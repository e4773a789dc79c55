"""A request and its descriptors on their way to a worker that systemd started."""

import os
import socket

import pytest

from crashd.edge.sandbox.workerlink import receive_request, send_request


@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_descriptors_come_with_the_request_in_their_order(count: int) -> None:
    ours, theirs = socket.socketpair()
    pipes = [os.pipe() for _ in range(count)]
    with ours, theirs:
        send_request(ours, {"task": "x", "text": "y" * 5000}, [out for out, _ in pipes])
        request = receive_request(theirs)
    assert (request["task"], len(request["text"])) == ("x", 5000)
    got = [request["core_fd"], *request["extra_fds"]] if count else []
    assert len(got) == count and (count or request["core_fd"] is None)
    for fd, (out, into) in zip(got, pipes, strict=True):
        assert os.fstat(fd).st_ino == os.fstat(out).st_ino
        for number in (fd, out, into):
            os.close(number)

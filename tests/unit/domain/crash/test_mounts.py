from crashd.domain.crash.mounts import BINDS_MAX, Bind, find_binds

HOST = b"""\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 8:2 / /srv rw - ext4 /dev/sda2 rw
23 21 8:2 /apps /opt/apps rw - ext4 /dev/sda2 rw
24 21 0:30 / /run rw - tmpfs tmpfs rw
"""
CONTAINER = b"""\
50 40 0:99 / / rw - overlay overlay rw,lowerdir=/l,upperdir=/u
51 50 8:2 /apps/mine /app ro - ext4 /dev/sda2 rw
52 50 8:1 /home/a\\040b/lib /usr/lib/x ro - ext4 /dev/sda1 rw
53 50 0:77 / /tmp rw - tmpfs tmpfs rw
54 50 8:2 /data /app/data ro - ext4 /dev/sda2 rw
"""


def test_find_binds_directories_of_the_host_at_another_path_the_deepest_first() -> None:
    assert list(find_binds(CONTAINER, HOST)) == [
        Bind(b"/usr/lib/x", b"/home/a b/lib"),
        Bind(b"/app/data", b"/srv/data"),
        Bind(b"/app", b"/opt/apps/mine"),
    ]


def test_find_binds_what_is_at_the_same_path_needs_none() -> None:
    assert find_binds(HOST, HOST) == ()


def test_find_binds_a_root_that_is_a_directory_of_the_host() -> None:
    found = find_binds(b"9 1 8:1 /var/lib/machines/x / rw - ext4 /dev/sda1 rw", HOST)
    assert list(found) == [Bind(b"", b"/var/lib/machines/x")]


def test_find_binds_the_upper_of_two_mounts_at_one_path_counts() -> None:
    over = CONTAINER + b"55 51 0:78 / /app rw - tmpfs tmpfs rw\n"
    assert b"/app" not in {bind.point for bind in find_binds(over, HOST)}


def test_find_binds_hostile_lines() -> None:
    for cut in range(len(CONTAINER)):
        find_binds(CONTAINER[:cut], HOST[: cut // 2])
    many = b"".join(b"1 1 8:1 /d%d /e%d rw - ext4 x rw\n" % (n, n) for n in range(5000))
    assert len(find_binds(many, HOST)) == BINDS_MAX

/* The crash-time handler's fast path: hands one crash over to the daemon, and does nothing else.
 *
 * Installed as /usr/libexec/crashd-core, which the kernel starts for each crash. Python needs some
 * fifteen milliseconds to start, in which the crashed process is held; this needs less than one.
 * crashd/corehandler.py is the reference: the same arguments, the same fields, the same exchange with
 * the daemon (drawn there), tested by the same tests. Whatever is out of the ordinary (another pattern
 * than crashd's own, no daemon, no receipt in time) is left to it: this becomes
 * /usr/libexec/crashd-core.py, with the arguments and descriptors that the kernel gave.
 *
 * What the kernel gives (core(5)): root, no environment, the core on descriptor 0, 1 and 2 closed, and
 * with %F (Linux 6.16) a pidfd of the crashed process. Nothing is allocated, nothing is printed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* Of corehandler.py. */
#define SPECIFIERS "pestPIugcdFh"
enum { QUEUED = 'Q', RECEIPT = 'R', RECEIPT_SECONDS = 3, QUEUED_SECONDS = 300, VALUE_MAX = 4096 };

#define ARGUMENTS 12 /* of the pattern that crashd registers: one for each of SPECIFIERS */
#define NAME "/usr/libexec/crashd-core"
#define SOCKET "/run/crashd/handoff.sock"

enum { PID = 5, UID = 7, GID = 8, PIDFD = 11 }; /* positions in argv */

static struct {
    char data[1 << 16]; /* the daemon takes no larger message */
    size_t size;
} message;

_Static_assert(ARGUMENTS * (VALUE_MAX + 3) + 512 < sizeof message.data, "every item fits");

/* Append one item, `key=value` and its NUL; a value is cut after VALUE_MAX bytes. */
static void add(const char *key, const char *value)
{
    size_t key_size = strlen(key), size = strnlen(value, VALUE_MAX);
    char *at = message.data + message.size;

    memcpy(at, key, key_size);
    at[key_size] = '=';
    memcpy(at + key_size + 1, value, size);
    at[key_size + 1 + size] = '\0';
    message.size += key_size + size + 2;
}

__attribute__((format(printf, 3, 4))) static bool format(char *out, size_t size, const char *how, ...)
{
    va_list values;

    va_start(values, how);
    int length = vsnprintf(out, size, how, values);
    va_end(values);
    return length >= 0 && (size_t)length < size;
}

/* Read one numeric argument; -1 when it is not a number below 2^31, as decimal() of corehandler.py. */
static long decimal(const char *text)
{
    size_t size = strnlen(text, 11);
    long long value = strtoll(text, NULL, 10);

    return size > 0 && size <= 10 && strspn(text, "0123456789") == size && value < 1LL << 31 ? value : -1;
}

/* Read a small file of /proc whole, as a string; false when that is not possible. */
static bool read_file(const char *path, char *out, size_t room)
{
    size_t size = 0;
    ssize_t got = -1;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return false;
    while (size < room - 1 && (got = read(fd, out + size, room - 1 - size)) > 0)
        size += (size_t)got;
    close(fd);
    out[size] = '\0';
    return got >= 0;
}

/* Say whether a descriptor is a pidfd whose process is there: of one that is gone it says "Pid:\t-1". */
static bool is_alive(int fd)
{
    char path[64], text[4096];

    if (!format(path, sizeof path, "/proc/self/fdinfo/%d", fd) || !read_file(path, text, sizeof text))
        return false;
    const char *line = strstr(text, "\nPid:\t");
    return line != NULL && line[6] >= '0' && line[6] <= '9';
}

/* Say whether the status of a process names this real id, where the kernel passed one. */
static bool has_id(const char *status, const char *label, const char *id)
{
    const char *found = strstr(status, label);

    if (found == NULL)
        return id[0] == '\0';
    found += strlen(label);
    return strcspn(found, "\t") == strlen(id) && strncmp(found, id, strlen(id)) == 0;
}

/* Open a pidfd of a process that is dumping core, where the kernel has no %F; -1 when in doubt. */
static int open_dumping(long pid, const char *uid, const char *gid)
{
    static char status[1 << 14];
    char path[64];
    int fd = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0);

    if (fd < 0)
        return -1;
    if (format(path, sizeof path, "/proc/%ld/status", pid) && read_file(path, status, sizeof status) &&
        strstr(status, "\nCoreDumping:\t1\n") != NULL && has_id(status, "\nUid:\t", uid) &&
        has_id(status, "\nGid:\t", gid))
        return fd;
    close(fd); /* gone, and its number given to another */
    return -1;
}

/* Find the pidfd that goes with the arguments, and add what it says of who crashed. */
static int find_pidfd(char **argv)
{
    long number = decimal(argv[PIDFD]);

    if (number >= 0) {
        if (number <= 2 || number >= 100 || !is_alive((int)number))
            return -1;
        add("identity", "kernel");
        return (int)number;
    }
    int fd = open_dumping(decimal(argv[PID]), argv[UID], argv[GID]);
    if (fd >= 0)
        add("identity", "opened");
    return fd;
}

static bool send_message(int peer, const int *descriptors, size_t count)
{
    union {
        char room[CMSG_SPACE(2 * sizeof(int))];
        struct cmsghdr align;
    } rights = {.room = {0}};
    struct iovec data = {.iov_base = message.data, .iov_len = message.size};
    struct msghdr header = {
        .msg_iov = &data,
        .msg_iovlen = 1,
        .msg_control = rights.room,
        .msg_controllen = CMSG_SPACE(count * sizeof(int)),
    };
    struct cmsghdr *first = CMSG_FIRSTHDR(&header);

    first->cmsg_level = SOL_SOCKET;
    first->cmsg_type = SCM_RIGHTS;
    first->cmsg_len = CMSG_LEN(count * sizeof(int));
    memcpy(CMSG_DATA(first), descriptors, count * sizeof(int));
    return sendmsg(peer, &header, MSG_NOSIGNAL) >= 0;
}

/* Give the crash to the daemon; true once it has taken it. Whoever gives up first wins, atomically:
 * after the shutdown the daemon's receipt fails, and one that was sent before is in our queue. */
static bool hand_over(const struct sockaddr_un *address, const int *descriptors, size_t count)
{
    const struct timeval first = {.tv_sec = RECEIPT_SECONDS}, queued = {.tv_sec = QUEUED_SECONDS};
    int peer = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    char answer = 0;

    if (peer < 0 || setsockopt(peer, SOL_SOCKET, SO_SNDTIMEO, &first, sizeof first) < 0 ||
        setsockopt(peer, SOL_SOCKET, SO_RCVTIMEO, &first, sizeof first) < 0 ||
        connect(peer, (const struct sockaddr *)address, sizeof *address) < 0 ||
        !send_message(peer, descriptors, count))
        return false;
    if (recv(peer, &answer, 1, 0) == 1 && answer == QUEUED &&
        setsockopt(peer, SOL_SOCKET, SO_RCVTIMEO, &queued, sizeof queued) == 0)
        recv(peer, &answer, 1, 0); /* nothing where the daemon dies, or forgets us */
    shutdown(peer, SHUT_RDWR);
    while (answer != RECEIPT && recv(peer, &answer, 1, 0) == 1)
        ;
    return answer == RECEIPT;
}

static long long now_ns(clockid_t clock)
{
    struct timespec now = {0};

    clock_gettime(clock, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* Become the Python handler. `tried` are the names under which the daemon may know this crash. */
static int fall_back(char **argv, char *tried)
{
    char path[4096];
    char *environment[] = {tried, NULL};

    if (format(path, sizeof path, "%s.py", argv[0]))
        execve(path, argv, environment);
    int log = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
    if (log >= 0)
        dprintf(log, "<3>crashd-core: crash lost: cannot run the Python handler: errno %d\n", errno);
    return 1;
}

int main(int argc, char **argv)
{
    static struct sockaddr_un address = {.sun_family = AF_UNIX};
    char number[24], tried[128];
    unsigned int random;
    int descriptors[2] = {0, -1};

    prctl(PR_SET_DUMPABLE, 0);
    size_t root = argc > 0 ? strlen(argv[0]) : 0;
    if (argc != ARGUMENTS + 1 || root < strlen(NAME) || fcntl(0, F_GETFD) < 0 ||
        strcmp(argv[0] + (root -= strlen(NAME)), NAME) != 0 ||
        !format(address.sun_path, sizeof address.sun_path, "%.*s" SOCKET, (int)root, argv[0]) ||
        (decimal(argv[PIDFD]) < 0 && decimal(argv[PID]) <= 0) ||
        getrandom(&random, sizeof random, 0) != sizeof random)
        return fall_back(argv, NULL);

    long long seen_ns = now_ns(CLOCK_REALTIME), boottime_ns = now_ns(CLOCK_BOOTTIME);
    format(tried, sizeof tried, "CRASHD_CORE=%x-%llx-%08x %lld %lld", getpid(), seen_ns, random, seen_ns,
           boottime_ns);
    char *token = strchr(tried, '=') + 1, *end = strchr(token, ' ');
    *end = '\0';
    add("token", token);
    *end = ' ';
    format(number, sizeof number, "%lld", seen_ns);
    add("seen_ns", number);
    format(number, sizeof number, "%lld", boottime_ns);
    add("boottime_ns", number);
    add("argc", "12");
    for (int i = 0; i < ARGUMENTS; i++)
        add((const char[]){SPECIFIERS[i], '\0'}, argv[i + 1]);
    descriptors[1] = find_pidfd(argv);
    if (hand_over(&address, descriptors, descriptors[1] < 0 ? 1 : 2))
        return 0;
    return fall_back(argv, tried);
}

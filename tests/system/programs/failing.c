/* Preloaded into daemon and workers: the n-th call that changes a file below FAILING_BELOW fails with ENOSPC, or all from
 * the n-th on. Shared by all processes: the file FAILING_STATE, four ints. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static volatile int *state; /* calls that are left, whether all after that fail too, failed, calls in all */
static const char *below;

__attribute__((constructor)) static void begin(void)
{
    const char *name = getenv("FAILING_STATE");
    below = getenv("FAILING_BELOW");
    int fd = name && below ? open(name, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *map = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (map != MAP_FAILED)
        state = map;
}

static int fails(int fd, const char *path)
{
    char link[64], name[4096];
    int saved = errno;
    ssize_t size;
    if (!state)
        return 0;
    if (!path || *path != '/') {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        size = readlink(link, name, sizeof name - 1);
        errno = saved;
        if (size < 0)
            return 0;
        name[size] = 0;
        path = name;
    }
    if (strncmp(path, below, strlen(below)))
        return 0;
    __atomic_add_fetch(&state[3], 1, __ATOMIC_SEQ_CST);
    if (state[0] <= 0 && !(state[1] && state[2]))
        return 0;
    if (__atomic_sub_fetch(&state[0], 1, __ATOMIC_SEQ_CST) > 0 || (state[0] < 0 && !state[1]))
        return 0;
    __atomic_add_fetch(&state[2], 1, __ATOMIC_SEQ_CST);
    errno = ENOSPC;
    return 1;
}

#define REAL(type, name, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

ssize_t write(int fd, const void *data, size_t size)
{
    return fails(fd, 0) ? -1 : REAL(ssize_t, "write", int, const void *, size_t)(fd, data, size);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at)
{
    return fails(fd, 0) ? -1 : REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t)(fd, data, size, at);
}
int fsync(int fd) { return fails(fd, 0) ? -1 : REAL(int, "fsync", int)(fd); }
int fdatasync(int fd) { return fails(fd, 0) ? -1 : REAL(int, "fdatasync", int)(fd); }
int ftruncate64(int fd, off64_t size) { return fails(fd, 0) ? -1 : REAL(int, "ftruncate64", int, off64_t)(fd, size); }
int mkdir(const char *path, mode_t mode) { return fails(-1, path) ? -1 : REAL(int, "mkdir", const char *, mode_t)(path, mode); }
int mkdirat(int fd, const char *path, mode_t mode)
{
    return fails(fd, path) ? -1 : REAL(int, "mkdirat", int, const char *, mode_t)(fd, path, mode);
}
int renameat(int from, const char *old, int to, const char *new)
{
    return fails(to, new) ? -1 : REAL(int, "renameat", int, const char *, int, const char *)(from, old, to, new);
}

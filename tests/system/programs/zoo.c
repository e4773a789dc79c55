/* Processes of every kind of memory; each fills it with a pattern and then dies of SIGSEGV.
 * usage: zoo CASE [DIRECTORY] */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <unistd.h>

#define KIB 1024UL
#define MIB (1024 * KIB)
#define PAGE 4096UL
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

static uint64_t state = 88172645463325252UL;
static uint64_t noise(void)
{
    state ^= state << 13; state ^= state >> 7; state ^= state << 17;
    return state;
}
static void fill(void *at, size_t size)
{
    for (uint64_t *p = at; (char *)p < (char *)at + size; p++) *p = noise();
}
static void check(int bad, const char *what)
{
    if (bad) { perror(what); _exit(3); }
}
static char *map(size_t size, int prot, int flags, int fd)
{
    char *p = mmap(0, size, prot, flags, fd, 0);
    check(p == MAP_FAILED, "mmap");
    return p;
}
static char *anonymous(size_t size)
{
    return map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
}
static void set_filter(const char *value)
{
    int fd = open("/proc/self/coredump_filter", O_WRONLY);
    check(fd < 0 || write(fd, value, strlen(value)) < 0, "coredump_filter");
    close(fd);
}
static int make_file(const char *directory, const char *name, size_t size)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s-%d", directory, name, getpid());
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    check(fd < 0, path);
    char block[PAGE];
    for (size_t done = 0; done < size; done += PAGE) {
        fill(block, PAGE);
        check(write(fd, block, PAGE) != (ssize_t)PAGE, "write");
    }
    unlink(path);
    return fd;
}
static __attribute__((noreturn)) void crash(void)
{
    *(volatile int *)16 = 1;
    _exit(4);
}
static void *idle(void *stack_bytes)
{
    volatile char room[64 * KIB];
    fill((void *)room, sizeof room);
    (void)stack_bytes;
    for (;;) pause();
}
static void *crash_late(void *unused)
{
    (void)unused;
    usleep(100000);
    crash();
}

static void threads(int count)
{
    pthread_t t;
    for (int i = 0; i < count; i++) check(pthread_create(&t, 0, idle, 0), "pthread_create");
    usleep(200000);
}
static void sparse(void)
{
    char *p = anonymous(2048 * MIB);
    volatile char sink;
    for (size_t at = 0; at < 2048 * MIB; at += 37 * MIB) fill(p + at, 3 * PAGE);
    for (size_t at = MIB; at < 2048 * MIB; at += 53 * MIB) sink = p[at]; /* the zero page */
    (void)sink;
    for (size_t at = 0; at < 4 * MIB; at += 2 * PAGE) p[600 * MIB + at] = 1; /* every other page */
    fill(anonymous(40 * MIB), 40 * MIB);
}
static void shared(void)
{
    char *p = map(8 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
    fill(p + MIB, MIB);
    int fd = memfd_create("zoo", 0);
    check(ftruncate(fd, 8 * MIB), "ftruncate");
    p = map(8 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
    fill(p + 2 * MIB, MIB);
    p = map(8 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
    fill(p + 3 * MIB, 64 * KIB);
    int id = shmget(IPC_PRIVATE, 4 * MIB, 0600);
    check(id < 0, "shmget");
    p = shmat(id, 0, 0);
    shmctl(id, IPC_RMID, 0);
    fill(p + MIB, MIB);
}
static void files(const char *directory)
{
    int fd = make_file(directory, "shared", 4 * MIB);
    map(4 * MIB, PROT_READ, MAP_SHARED, fd);
    char *p = map(4 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
    fill(p + MIB, 3 * PAGE);
    int cut = make_file(directory, "cut", 4 * MIB);
    p = map(4 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, cut);
    fill(p, MIB);
    p = map(4 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE, cut);
    fill(p + 3 * MIB, PAGE);
    check(ftruncate(cut, 2 * MIB + 100), "ftruncate");
    int tail = make_file(directory, "tail", PAGE);
    map(16 * PAGE, PROT_READ, MAP_PRIVATE, tail); /* most of it behind the end of the file */
}
static void thp(void)
{
    char *p = anonymous(66 * MIB);
    check(madvise(p, 66 * MIB, MADV_HUGEPAGE), "madvise");
    fill(p, 20 * MIB);
    fill(p + 40 * MIB, 10 * MIB);
    volatile char sink = p[60 * MIB]; /* the huge zero page */
    (void)sink;
    check(madvise(p + 5 * MIB, 300 * KIB, MADV_DONTNEED), "madvise");
}
static int recurse(int depth)
{
    volatile char room[8 * KIB];
    fill((void *)room, sizeof room);
    return recurse(depth + 1) + room[17];
}
static void dontdump(void)
{
    char *p = anonymous(8 * MIB);
    fill(p, 8 * MIB);
    check(madvise(p + MIB, MIB, MADV_DONTDUMP), "madvise");
    check(madvise(p + 4 * MIB, MIB, MADV_DONTDUMP), "madvise");
    check(madvise(p + 4 * MIB + 64 * KIB, 64 * KIB, MADV_DODUMP), "madvise");
}
static void protections(void)
{
    char *p = anonymous(8 * MIB);
    fill(p, 4 * MIB);
    check(mprotect(p, MIB, PROT_NONE), "mprotect");
    check(mprotect(p + MIB, MIB, PROT_READ), "mprotect");
    check(mprotect(p + 5 * MIB, MIB, PROT_NONE), "mprotect");
    p = anonymous(4 * MIB);
    fill(p, 4 * MIB);
    madvise(p + MIB, 16 * PAGE, MADV_GUARD_INSTALL); /* since 6.13 */
}
static void execute_only(void)
{
    char *p = anonymous(4 * MIB);
    fill(p, 4 * MIB);
    check(mprotect(p + MIB, MIB, PROT_EXEC), "mprotect");
}
static void swapped(void)
{
    char *p = anonymous(48 * MIB);
    fill(p, 48 * MIB);
    check(madvise(p + 8 * MIB, 32 * MIB, MADV_PAGEOUT), "madvise");
}
static void mappings(long count)
{
    char *p = anonymous(2 * PAGE * count);
    for (long i = 0; i < count; i++) {
        if (i % 3 == 0) fill(p + 2 * i * PAGE, 64);
        if (mprotect(p + 2 * i * PAGE, PAGE, PROT_READ)) return; /* as many as vm.max_map_count lets */
    }
}
static void slow(void) /* to compress */
{
    uint64_t *p = (uint64_t *)anonymous(192 * MIB);
    for (size_t i = 0; i < 192 * MIB / 8; i++) p[i] = noise() & 0x0307010f03010703UL;
}
static char *sparse_memfd(size_t size, int flags, int *fd)
{
    *fd = memfd_create("sparse", 0);
    check(*fd < 0 || ftruncate(*fd, size), "memfd_create");
    return map(size, PROT_READ | PROT_WRITE, flags, *fd);
}
static void sparse_shared(void)
{
    int fd, id;
    char *p = sparse_memfd(512 * MIB, MAP_SHARED, &fd);
    fill(p + 7 * MIB, PAGE);
    fill(p + 511 * MIB, 3 * PAGE);
    check(pwrite(fd, "unmapped", 8, 99 * MIB) != 8, "pwrite"); /* in no page table */
    p = map(64 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd); /* copies over data and over holes */
    fill(p + 7 * MIB, 64);
    fill(p + 40 * MIB, 2 * PAGE);
    p = mmap(0, 16 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 96 * MIB); /* not from its start */
    check(p == MAP_FAILED, "mmap");
    fill(map(256 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1) + 100 * MIB, PAGE);
    id = shmget(IPC_PRIVATE, 128 * MIB, 0600);
    check(id < 0, "shmget");
    p = shmat(id, 0, 0);
    shmctl(id, IPC_RMID, 0);
    fill(p + 77 * MIB, PAGE);
    char path[4096];
    snprintf(path, sizeof path, "/dev/shm/zoo-%d", getpid());
    fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    check(fd < 0 || ftruncate(fd, 64 * MIB), path);
    unlink(path);
    p = map(64 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
    fill(p + 33 * MIB, PAGE);
    check(mprotect(p + 32 * MIB, 8 * MIB, PROT_NONE), "mprotect");
    p = sparse_memfd(8 * MIB, MAP_SHARED, &fd);
    fill(p, 8 * MIB);
    check(ftruncate(fd, 3 * MIB + 5), "ftruncate"); /* the rest is behind its end */
}
static void guards(const char *directory)
{
    int fd;
    set_filter("0x3f");
    char *p = anonymous(256 * MIB);
    for (size_t at = 0; at < 256 * MIB; at += PAGE) p[at] = 1;
    madvise(p + MIB, 254 * MIB, MADV_GUARD_INSTALL); /* since 6.13 */
    p = sparse_memfd(16 * MIB, MAP_SHARED, &fd);
    fill(p, 16 * MIB);
    madvise(p + MIB, 8 * MIB, MADV_GUARD_INSTALL); /* since 6.15 */
    p = map(16 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
    fill(p + 2 * MIB, PAGE);
    madvise(p + MIB, 8 * MIB, MADV_GUARD_INSTALL);
    p = map(8 * MIB, PROT_READ, MAP_SHARED, make_file(directory, "guarded", 8 * MIB));
    madvise(p + MIB, 4 * MIB, MADV_GUARD_INSTALL);
}
static void user_faults(char *p, size_t size, uint64_t features, uint64_t mode)
{
    int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
    struct uffdio_api api = {.api = UFFD_API, .features = features};
    struct uffdio_register range = {.range = {(uintptr_t)p, size}, .mode = mode};
    check(fd < 0 || ioctl(fd, UFFDIO_API, &api), "userfaultfd");
    check(ioctl(fd, UFFDIO_REGISTER, &range), "UFFDIO_REGISTER");
}
static void uffd_missing(void)
{
    int fd;
    char *p = sparse_memfd(256 * MIB, MAP_SHARED, &fd);
    fill(p + 5 * MIB, 2 * MIB);
    check(pwrite(fd, "unmapped", 8, 99 * MIB) != 8, "pwrite");
    user_faults(p, 256 * MIB, 0, UFFDIO_REGISTER_MODE_MISSING);
    p = anonymous(64 * MIB);
    fill(p + 5 * MIB, MIB);
    user_faults(p, 64 * MIB, 0, UFFDIO_REGISTER_MODE_MISSING);
}
static void uffd_minor(void)
{
    int fd;
    char *p = sparse_memfd(16 * MIB, MAP_SHARED, &fd);
    fill(p, 8 * MIB);
    p = map(16 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
    fill(p + MIB, MIB);
    user_faults(p, 16 * MIB, UFFD_FEATURE_MINOR_SHMEM, UFFDIO_REGISTER_MODE_MINOR);
}
static void hugetlb(void)
{
    char *p = map(4 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1);
    fill(p, MIB);
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "", *directory = argc > 2 ? argv[2] : "/tmp";
    if (!strncmp(name, "filter-", 7)) {
        set_filter(name + 7);
        shared(); files(directory); dontdump();
    }
    else if (!strcmp(name, "threads")) threads(200);
    else if (!strcmp(name, "crowd")) { fill(anonymous(64 * MIB), 64 * MIB); threads(20); }
    else if (!strcmp(name, "sparse")) sparse();
    else if (!strcmp(name, "shared")) shared();
    else if (!strcmp(name, "files")) { set_filter("0x3f"); files(directory); }
    else if (!strcmp(name, "thp")) thp();
    else if (!strcmp(name, "stack")) return recurse(0);
    else if (!strcmp(name, "dontdump")) dontdump();
    else if (!strcmp(name, "protections")) protections();
    else if (!strcmp(name, "execute-only")) execute_only();
    else if (!strcmp(name, "swapped")) swapped();
    else if (!strcmp(name, "mappings")) mappings(2000);
    else if (!strcmp(name, "mappings-max")) mappings(1L << 20);
    else if (!strcmp(name, "hugetlb")) hugetlb();
    else if (!strcmp(name, "sparse-shared")) sparse_shared();
    else if (!strcmp(name, "guards")) guards(directory);
    else if (!strcmp(name, "uffd-missing")) uffd_missing();
    else if (!strcmp(name, "uffd-minor")) uffd_minor();
    else if (!strcmp(name, "dense")) fill(anonymous(64 * MIB), 64 * MIB);
    else if (!strcmp(name, "slow")) slow();
    else if (!strcmp(name, "leader-ended")) {
        pthread_t t;
        fill(anonymous(4 * MIB), 4 * MIB);
        check(pthread_create(&t, 0, crash_late, 0), "pthread_create");
        pthread_exit(0);
    }
    else if (strcmp(name, "plain")) return 2;
    crash();
}

/* A process to be killed: makes the memory or the threads that it is asked for, writes one byte to
 * stdout and waits.
 *
 *     victim dense BYTES              all of it written, zstd makes half of it
 *     victim zeros BYTES              all of it written, with zeros
 *     victim mapped BYTES RESIDENT    RESIDENT of it written, as dense, in pieces of 1 MiB
 *     victim threads COUNT            stacks of 8 MiB, one page of each written
 *     victim pages BYTES COUNT        COUNT pages of it written, spread evenly
 *     victim memfd BYTES COUNT        the same in a shared memfd, whose other pages do not exist
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PIECE ((size_t)1 << 20)
#define PAGE ((size_t)4096)
#define STACK ((size_t)8 << 20)
#define HALF 128 /* words: 1 KiB */

static pthread_barrier_t started;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

/* 1 KiB of noise, 1 KiB of what looks like records, and so on. */
static void fill(uint64_t *word, size_t size)
{
    static uint64_t noise = 88172645463325252u;

    for (uint64_t *end = word + size / sizeof *word; word < end;) {
        for (int i = 0; i < HALF; i++) {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            *word++ = noise;
        }
        for (int i = 0; i < HALF; i++)
            *word++ = i & 7 ? 0x00007f0000000000u + (uint64_t)(i & 7) * 4096 : noise & 0xffff;
    }
}

static void *map(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        fail("mmap");
    return memory;
}

static void map_and_touch(size_t size, size_t resident)
{
    size_t pieces = resident / PIECE;
    char *memory = map(size);

    /* A huge page for each piece would make twice as much resident. */
    if (madvise(memory, size, MADV_NOHUGEPAGE) < 0)
        fail("madvise");
    for (size_t i = 0; i < pieces; i++)
        fill((uint64_t *)(memory + i * (size / pieces / PIECE * PIECE)), PIECE);
}

static void touch_pages(char *memory, size_t size, size_t count)
{
    for (size_t i = 0; i < count; i++)
        fill((uint64_t *)(memory + size / count * i / PAGE * PAGE), PAGE);
}

static void *map_memfd(size_t size)
{
    void *memory;
    int fd = memfd_create("sparse", MFD_CLOEXEC);

    if (fd < 0 || ftruncate(fd, size) < 0)
        fail("memfd_create");
    memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        fail("mmap");
    return memory;
}

static void *idle(void *unused)
{
    volatile char page[4096];

    (void)unused;
    page[0] = 1;
    pthread_barrier_wait(&started);
    for (;;)
        pause();
    return (void *)page;
}

static void start_threads(unsigned count)
{
    pthread_attr_t attributes;
    pthread_t thread;

    pthread_barrier_init(&started, NULL, count + 1);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK);
    for (unsigned i = 0; i < count; i++)
        if (pthread_create(&thread, &attributes, idle, NULL))
            fail("pthread_create");
    pthread_barrier_wait(&started);
}

int main(int argc, char **argv)
{
    const char *what = argc > 2 ? argv[1] : "";
    size_t size = argc > 2 ? strtoull(argv[2], NULL, 10) : 0;

    if (!strcmp(what, "dense"))
        fill(map(size), size);
    else if (!strcmp(what, "zeros"))
        memset(map(size), 0, size);
    else if (!strcmp(what, "mapped") && argc > 3)
        map_and_touch(size, strtoull(argv[3], NULL, 10));
    else if (!strcmp(what, "pages") && argc > 3)
        touch_pages(map(size), size, strtoull(argv[3], NULL, 10));
    else if (!strcmp(what, "memfd") && argc > 3)
        touch_pages(map_memfd(size), size, strtoull(argv[3], NULL, 10));
    else if (!strcmp(what, "threads"))
        start_threads(size);
    else
        return 2;
    if (write(STDOUT_FILENO, "", 1) != 1)
        fail("write");
    for (;;)
        pause();
}

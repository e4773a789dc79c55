/* Pointers that allocators and mmap() give or take, stacks too small, and files too short. */
#define _GNU_SOURCE
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define OUTLINE __attribute__((noinline, noclone))

volatile int sink, zero;

OUTLINE void frees_number(void) {
    free((void *)(long)(zero + 42));
    sink = 1;
}

OUTLINE void frees_wild(void) {
    free((void *)0x123456789000);
    sink = 1;
}

OUTLINE void grows_number(void) {
    char *volatile grown = realloc((void *)(long)(zero + 0x2010), 100);
    sink = grown[0];
}

struct table { char head[16]; int first; };
OUTLINE void map_failed(void) {
    struct table *table = mmap(0, 1UL << 60, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sink = table->first;
    sink = 1;
}

OUTLINE void fills(void) {
    volatile char array[1 << 18];
    for (int n = 0; n < 1 << 18; n += 64) array[n] = 1;
    sink = array[7];
}

static void *small(void *unused) {
    fills();
    sink = 1;
    return unused;
}

OUTLINE void small_stack(void) {
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 65536);
    pthread_create(&thread, &attributes, small, NULL);
    pthread_join(thread, NULL);
}

static void aborts(int number) { abort(); }
OUTLINE void short_file(void) {
    int fd = memfd_create("ring", 0);
    char *ring = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    signal(SIGBUS, aborts);
    ring[40000] = 1;
    sink = 1;
}

static void last(void) { free((void *)last); }
OUTLINE void at_exit(void) {
    atexit(last);
    exit(0);
}

OUTLINE void text_in_frame_pointer(void) {
    long value;
    __asm__ volatile("mov %1, %%rbp; mov 24(%%rbp), %0"
                     : "=r"(value) : "r"(0x4141414141414141) : "rbp", "memory");
    sink = value;
}

OUTLINE void divides_least(volatile int *by) {
    sink = INT_MIN / *by;
    sink = 1;
}

int main(int count, char **words) {
    volatile int minus = zero - 1;
    const char *word = words[1];
    if (!strcmp(word, "frees_number")) frees_number();
    if (!strcmp(word, "frees_wild")) frees_wild();
    if (!strcmp(word, "grows_number")) grows_number();
    if (!strcmp(word, "map_failed")) map_failed();
    if (!strcmp(word, "small_stack")) small_stack();
    if (!strcmp(word, "short_file")) short_file();
    if (!strcmp(word, "at_exit")) at_exit();
    if (!strcmp(word, "text_in_frame_pointer")) text_in_frame_pointer();
    if (!strcmp(word, "divides_least")) divides_least(&minus);
    sink = 2;
    return 0;
}

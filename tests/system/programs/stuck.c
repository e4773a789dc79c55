/* A process with a mapping that never answers: a file of a file system in user space whose server is
 * silent. usage: stuck FILE; it lies between two mappings of 4 MiB with bytes of their own. */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SIZE (4 << 20)

int main(int argc, char **argv)
{
    int filter = open("/proc/self/coredump_filter", O_WRONLY);
    int silent = argc > 1 ? open(argv[1], O_RDONLY) : -1;
    char *room = mmap(0, 3 * SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (silent < 0 || write(filter, "0x3f", 4) != 4 || room == MAP_FAILED)
        return 1;
    memset(room, 'a', SIZE);
    memset(room + 2 * SIZE, 'b', SIZE);
    if (mmap(room + SIZE, SIZE, PROT_READ, MAP_SHARED | MAP_FIXED, silent, 0) == MAP_FAILED)
        return 1;
    *(volatile int *)16 = 1;
}

/* Crashes with so many MiB that do not compress: `dense MIB`, or so many at once, again and again
   for so many seconds: `dense MIB COUNT SECONDS`. */
#include <stdlib.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    size_t size = strtoul(argv[1], 0, 10) << 20;
    char *memory = malloc(size + 1);
    for (size_t at = 0; at < size; at += 256)
        getrandom(memory + at, 256, 0);
    if (argc < 4)
        abort();
    int count = atoi(argv[2]), running = 0;
    time_t end = time(0) + atoi(argv[3]);
    while (time(0) < end || running > 0) {
        if (time(0) < end && running < count) {
            pid_t child = fork();
            if (child == 0)
                abort();
            running += child > 0;
        } else if (wait(0) > 0) {
            running--;
        }
    }
}
